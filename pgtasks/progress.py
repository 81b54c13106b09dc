"""How far a running job is: what it says, checked and encoded; pure.

A report goes into memory that the child shares with its parent (`pgtasks.worker.slate`), where each one
replaces the one before it; the parent looks once a second. So a report costs the task a microsecond or two,
waits for nobody, and is lost with the process, which does not matter: what is in the database belongs to one
attempt, and ends with it.
"""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Any

import msgspec
import orjson

from pgtasks import codec
from pgtasks.context import Request, request_var
from pgtasks.errors import ConfigurationError, EncodingError
from pgtasks.guard import guard_var

__all__ = ["MAX_PROGRESS", "Progress", "report", "set_state"]

MAX_PROGRESS = 10_000
"""The cap on one report, in bytes of JSON."""

MAX_WORD = 100

# Words that mean the end of a job: only its outcome says them.
ENDS = frozenset(("SUCCESS", "FAILURE", "REVOKED"))


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a job is, as it last said itself; false while it has said nothing.

    Attributes:
        done: how much is done, in whatever unit.
        total: of how much, if that is known.
        message: what it does now, for people.
        state: a word of its own for where it is, from ``self.update_state``.
        meta: what came with that word.
        at: when it said so; None inside of the task itself.
        job_id: which job.
    """

    done: int | float | None = None
    total: int | float | None = None
    message: str | None = None
    state: str | None = None
    meta: Any = None
    at: datetime | None = None
    job_id: str = ""

    def __call__(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the job is that runs here: ``current_job().progress(12, 40, "reading")``.

        Cheap enough for a loop: only the newest report is passed on, about once a second.

        Args:
            done: how much is done.
            total: of how much; None: unknown.
            message: what the job does now. It is shown like an error message: put no secrets there.

        Raises:
            ConfigurationError: the job does not run here.
            EncodingError: JSON cannot carry one of these, or they are larger than `MAX_PROGRESS`.
        """
        request = request_var.get()
        if request is None or request.id != self.job_id:
            raise ConfigurationError(
                f"job {self.job_id} does not run here: job.progress(…) works inside of its task"
            )
        report(request, done, total, message)

    def __bool__(self) -> bool:
        return self.done is not None or self.state is not None or self.meta is not None

    @property
    def info(self) -> Any:
        """What Celery's ``result.info`` is meanwhile: the meta if there is one, else this; None: nothing."""
        if self.meta is not None:
            return self.meta
        return self if self else None

    def text(self) -> str:
        """Return it in a few words: ``12/40 (30 %) reading``."""
        said = []
        if self.state is not None:
            said.append(self.state)
        if self.done is not None and self.total:
            share = f" ({100 * self.done / self.total:.0f} %)"
            said.append(f"{_number(self.done)}/{_number(self.total)}{share}")
        elif self.done is not None:
            said.append(_number(self.done))
        if self.message:
            said.append(self.message)
        return " ".join(said)

    @classmethod
    def from_json(cls, text: str | bytes | None, job_id: str = "") -> Progress:
        """Build one from what is stored; anything odd in there is left out, not refused."""
        if text is None:
            return cls(job_id=job_id)
        try:
            said = _STORED.decode(text)
        except msgspec.DecodeError:
            return cls(job_id=job_id)
        return msgspec.structs.replace(said, job_id=job_id)


_STORED = msgspec.json.Decoder(Progress)


def report(request: Request, done: float, total: float | None, message: str | None) -> None:
    """Take note of how far the job of a request is; its word and meta stay.

    Raises:
        EncodingError: JSON cannot carry one of these, or they are too large.
    """
    if type(done) is not int:
        done = _as_number(done, "done")
    if total is not None and type(total) is not int:
        total = _as_number(total, "total")
    if message is not None:
        message = str(message)
        if "\0" in message:
            codec.encode(message, "message")  # says what is wrong with it
    before = request.progress
    said: dict[str, object] = {"done": done, "total": total, "message": message}
    if before is not None and (before.state is not None or before.meta is not None):
        said["state"], said["meta"] = before.state, before.meta
    try:
        data = orjson.dumps(said)
    except orjson.JSONEncodeError:
        for name, value in said.items():
            codec.encode(value, name)
        raise
    _post(
        request,
        Progress(
            done=done,
            total=total,
            message=message,
            state=before.state if before else None,
            meta=before.meta if before else None,
            job_id=request.id,
        ),
        data,
    )


def set_state(request: Request, state: str | None, meta: object) -> None:
    """Take note of a job's own word for where it is, and what comes with it; done, total and message stay.

    Raises:
        ConfigurationError: the word is none, or means the end of a job.
        EncodingError: JSON cannot carry the meta, or it is too large.
    """
    check_word(state)
    plain = orjson.loads(codec.encode(meta, "meta", max_bytes=MAX_PROGRESS))
    before = request.progress or Progress(job_id=request.id)
    now = msgspec.structs.replace(
        before, state=before.state if state is None else state, meta=plain
    )
    said = (("done", now.done), ("total", now.total), ("message", now.message))
    _post(
        request,
        now,
        orjson.dumps({**dict(said), "state": now.state, "meta": plain}),
    )


def check_word(state: object) -> None:
    """Refuse what cannot be a job's own word for its state.

    Raises:
        ConfigurationError: with what is wrong.
    """
    if state is None:
        return
    if not isinstance(state, str) or not 0 < len(state) <= MAX_WORD or not state.isprintable():
        raise ConfigurationError(
            f"a state is a word of 1 to {MAX_WORD} characters, found {state!r:.120}"
        )
    if state in ENDS:
        raise ConfigurationError(
            f"state {state!r} says that the job has ended, and only its outcome says that: return, raise, "
            "or raise Reject('why')"
        )


def _post(request: Request, progress: Progress, data: bytes) -> None:
    """Keep a report in the request, and put it where the parent finds it."""
    if len(data) > MAX_PROGRESS:
        raise EncodingError(
            f"progress: {len(data):,} bytes of JSON, expected at most {MAX_PROGRESS:,}: "
            "store it elsewhere and pass a reference"
        )
    guard = None if request.is_eager else guard_var.get()
    serial = 0 if guard is None else guard.serial
    # A thread that the job started may outlive it: then the guard is at another job already.
    if request.over:
        return
    request.progress = progress
    if guard is not None and guard.post is not None:
        guard.post(serial, data)


def _as_number(value: Any, name: str) -> float:
    """Return any kind of number as JSON's, those of numpy as well."""
    try:
        if hasattr(value, "__index__"):
            number: float = value.__index__()
        elif hasattr(value, "__float__"):
            number = value.__float__()
        else:
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise EncodingError(f"{name}: expected a number, found {type(value).__name__}") from None
    if not isfinite(number):
        codec.encode(number, name)
    return number


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
