"""What a row is, as frozen data: jobs, their attempts, bundles, workers; and a job not yet written.

Pure: builds these from rows, reads no clock and no database. Structs and not dataclasses: `import
pgtasks` makes a dozen of them, at 0.02 ms instead of 1 ms each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from pgtasks import codec
from pgtasks.context import request_var
from pgtasks.errors import ConfigurationError
from pgtasks.progress import Progress


class JobState(StrEnum):
    """Where a job is. The first four are stored, running is derived, the rest is history."""

    BLOCKED = "blocked"  # waits for a bundle
    SCHEDULED = "scheduled"  # start_at lies ahead
    PARKED = "parked"  # held back, with a reason
    READY = "ready"
    RUNNING = "running"  # ready, and a worker holds it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"  # crashed its process too often

    @property
    def finished(self) -> bool:
        """Whether no attempt will follow."""
        return self in FINISHED

    def celery(self, attempt: int) -> str:
        """Return Celery's word for this state; attempt tells PENDING from RETRY."""
        if self is JobState.RUNNING:
            return "STARTED"
        if self is JobState.SUCCEEDED:
            return "SUCCESS"
        if self in (JobState.FAILED, JobState.QUARANTINED):
            return "FAILURE"
        if self in (JobState.CANCELLED, JobState.EXPIRED):
            return "REVOKED"
        return "RETRY" if attempt else "PENDING"


FINISHED = frozenset(
    (
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.EXPIRED,
        JobState.QUARANTINED,
    )
)


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt failed: the exception's class as text, its message, the traceback as text.

    Of a crash (type ``pgtasks.Crash``) there is no exception, but what is known of the process.
    """

    type: str
    message: str
    traceback: str = ""
    args: Sequence[Any] | None = None  # the exception's, if JSON can carry them
    signal: int | None = None  # that killed the process
    exit_code: int | None = None  # or with which it ended by itself
    peak_memory: int | None = None  # bytes that the process held at most
    stderr: str = ""  # its last lines there
    dependency: str | None = None  # the job that failed, where this one did not run for it

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> JobError | None:
        """Build one from what is stored; anything odd in there is shown, not refused."""
        if not value:
            return None
        args = value.get("args")
        return cls(
            type=str(value.get("type", "")),
            message=str(value.get("message", "")),
            traceback=str(value.get("traceback", "")),
            args=args if isinstance(args, list) else None,
            signal=_whole(value.get("signal")),
            exit_code=_whole(value.get("exit_code")),
            peak_memory=_whole(value.get("peak_memory")),
            stderr=str(value.get("stderr") or ""),
            dependency=str(value["dependency"]) if value.get("dependency") else None,
        )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that ended without finishing the job."""

    attempt: int
    worker_id: int | None
    started_at: str | None
    stopped_at: str | None
    error: JobError | None
    replaced: str | None = None  # the task that put another in its place, by self.replace()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request to run a task, as it stands in the database.

    Arguments and result are kept as the JSON text that is stored and decoded on access, so that a job
    with text that cannot be decoded can still be looked at.
    """

    id: str
    task: str
    queue: str
    state: JobState
    priority: int = 0
    args_json: str = "[]"
    kwargs_json: str = "{}"
    attempt: int = 0  # 0: never tried
    crashes: int = 0
    created_at: datetime
    start_at: datetime | None = None
    expires_at: datetime | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    origin: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    bundle_id: str | None = None
    bundle_index: int | None = None
    after_bundle_id: str | None = None  # what it waits or waited for: `after_on` says when it runs
    after_on: Literal["success", "failure", "stop"] | None = None
    takes: Literal["result", "results", "error"] | None = None  # from there, before its arguments
    reason: str | None = None
    cancel_requested: bool = False
    worker_id: int | None = None
    options: Mapping[str, Any] = {}
    attempts: Sequence[Attempt] = ()
    result_json: str | None = None
    error: JobError | None = None
    progress_json: str | None = None  # while it runs, if it said anything

    @property
    def progress(self) -> Progress:
        """How far the job is that runs, as it says; inside of its task also what says so.

        Looking at a job: ``job.progress.done``, ``.total``, ``.message``, ``.meta``; all None before it said
        anything, and once it is finished. In its task: ``current_job().progress(12, 40, "reading")``.
        """
        request = request_var.get()
        if request is not None and request.id == self.id:
            said = request.progress
            return Progress(job_id=self.id) if said is None else said
        return Progress.from_json(self.progress_json, self.id)

    @property
    def connection(self) -> Any:
        """The connection in whose transaction this job runs; see `Request.connection`.

        Raises:
            ConfigurationError: it does not run here, or its task is not ``transactional``.
        """
        request = request_var.get()
        if request is None or request.id != self.id:
            raise ConfigurationError(
                f"job {self.id} does not run here: job.connection works inside of its task"
            )
        return request.connection

    def enqueue(self, what: Any, *args: Any, **kwargs: Any) -> Any:
        """Enqueue a task or a canvas from within this job, whose child it becomes; returns its result.

        The same as ``what.delay(*args, **kwargs)`` there: whatever a running job enqueues is its child.

        Raises:
            ConfigurationError: the job does not run here.
        """
        request = request_var.get()
        if request is None or request.id != self.id:
            raise ConfigurationError(
                f"job {self.id} does not run here: job.enqueue() works inside of its task"
            )
        return what.delay(*args, **kwargs)

    @property
    def args(self) -> list[Any]:
        """The positional arguments; DecodingError if the stored text is not JSON."""
        value = codec.decode(self.args_json, "args")
        return value if isinstance(value, list) else [value]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments; DecodingError if the stored text is not JSON."""
        value = codec.decode(self.kwargs_json, "kwargs")
        return value if isinstance(value, dict) else {}

    @property
    def result(self) -> Any:
        """What the task returned; None while there is nothing, or where nothing is kept."""
        return None if self.result_json is None else codec.decode(self.result_json, "result")

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Job:
        """Build one from a row of the statements get_jobs and list_jobs."""
        # fmt: off
        (
            id, queue, state, priority, created_at, start_at, expires_at, started_at, stopped_at, task, args,
            kwargs, options, origin, parent_id, root_id, bundle_id, bundle_index, after_bundle_id, reason,
            cancel_requested, crashes, attempts, attempt, worker_id, result, error, progress,
            after_on, takes,
        ) = row
        # fmt: on
        return cls(
            id=id,
            task=task,
            queue=queue,
            state=JobState(state),
            priority=priority,
            args_json=args,
            kwargs_json=kwargs,
            attempt=attempt,
            crashes=crashes,
            created_at=created_at,
            start_at=start_at,
            expires_at=expires_at,
            started_at=started_at,
            stopped_at=stopped_at,
            origin=origin,
            parent_id=parent_id,
            root_id=root_id,
            bundle_id=bundle_id,
            bundle_index=bundle_index,
            after_bundle_id=after_bundle_id,
            after_on=after_on,
            takes=takes,
            reason=reason,
            cancel_requested=cancel_requested,
            worker_id=worker_id,
            options=options or {},
            attempts=attempts_from_json(attempts),
            result_json=result,
            error=JobError.from_json(error),
            progress_json=progress,
        )


def attempts_from_json(value: Sequence[Mapping[str, Any]] | None) -> tuple[Attempt, ...]:
    """Build the record of earlier attempts from what is stored."""
    return tuple(
        Attempt(
            attempt=int(one.get("attempt", 0)),
            worker_id=one.get("worker_id"),
            started_at=one.get("started_at"),
            stopped_at=one.get("stopped_at"),
            error=JobError.from_json(one.get("error")),
            replaced=one.get("replaced"),
        )
        for one in value or ()
    )


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs whose common end is tracked; a group makes one.

    Attributes:
        kind: ``step``: of one job, so that others can wait for it, as for a chain's step; lists leave it out.
        parent_id: the group that a step is in.
    """

    id: str
    type: str | None
    origin: str | None
    total: int
    remaining: int
    failed: int
    created_at: datetime
    stopped_at: datetime | None
    kind: Literal["group", "step"] = "group"
    parent_id: str | None = None

    @property
    def state(self) -> Literal["running", "succeeded", "failed"]:
        """Running until the last member is finished; failed if one of them did not succeed."""
        if self.stopped_at is None:
            return "running"
        return "failed" if self.failed else "succeeded"

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Bundle:
        """Build one from a row of the statement list_bundles."""
        id, type, origin, total, remaining, failed, created_at, stopped_at, kind, parent_id = row
        return cls(
            id=id,
            type=type,
            origin=origin,
            total=total,
            remaining=remaining,
            failed=failed,
            created_at=created_at,
            stopped_at=stopped_at,
            kind=kind,
            parent_id=parent_id,
        )


class UniqueKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key of a job that is unique in its queue, as `pgtasks.unique` makes it.

    Attributes:
        key: the task's name, a colon, and what the arguments make.
        seconds: how long it is held from now; None: until what ``release`` says.
        release: what ends it; None: time alone.
        on_conflict: what a call does that meets it.
    """

    key: str
    seconds: float | None = None
    release: Literal["start", "finish"] | None = "finish"
    on_conflict: Literal["skip", "replace", "raise"] = "skip"


class NewJob(msgspec.Struct, kw_only=True):
    """A job about to be written. Not frozen: it is made by the ten thousand, and never shared."""

    id: str
    task: str
    queue: str | None  # None: as workers published it for the task, else "default"
    args: str = "[]"
    kwargs: str = "{}"
    priority: int | None = 0  # None: likewise, else 0
    start_at: datetime | None = None
    delay: float | None = None  # seconds from the database's now
    expires_at: datetime | None = None
    expires_in: float | None = None  # seconds from the database's now
    options: str | None = None  # JSON
    origin: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    bundle_id: str | None = None
    bundle_index: int | None = None
    # What it waits for, and what it takes from there; see schema/migrations/0006.
    after_bundle_id: str | None = None
    after_on: Literal["success", "failure", "stop"] | None = None
    takes: Literal["result", "results", "error"] | None = None
    input: str | None = None  # JSON, given before its own arguments
    unique: UniqueKey | None = None  # no column: its options carry the key

    def is_plain(self) -> bool:
        """Whether nothing is said but the task, its arguments, its queue and its priority."""
        return (
            self.queue is not None
            and self.priority is not None
            and self.start_at is None
            and self.delay is None
            and self.expires_at is None
            and self.expires_in is None
            and self.options is None
            and self.origin is None
            and self.parent_id is None
            and self.root_id is None
            and self.bundle_id is None
            and not self.waits()
        )

    def takes_turns(self) -> bool:
        """Whether it begins in its turn among the keys of its queue; see `pgtasks.limits`."""
        return self.options is not None and '"fair_key":' in self.options

    def waits(self) -> bool:
        """Whether it waits for a bundle, or would have if that had members."""
        return self.after_bundle_id is not None or self.input is not None


class NewBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle about to be written, with its members counted already."""

    id: str
    total: int
    kind: Literal["group", "step"] = "group"
    type: str | None = None
    origin: str | None = None
    parent_id: str | None = None  # the group that a step is in
    # What all members of a group wait for.
    after_bundle_id: str | None = None
    after_on: Literal["success", "failure"] | None = None
    root_id: str | None = None
    depth: int = 0


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list: every condition that is not None must hold.

    Attributes:
        states: any of these states.
        error: the exception's class as stored, or a part of its message.
        id_prefix: the first characters of the id.
        before_id: only ids before this one (ids are ordered by time): the next page.
        limit: at most so many.
    """

    states: Sequence[JobState] | None = None
    task: str | None = None
    queue: str | None = None
    origin: str | None = None
    bundle_id: str | None = None
    created_before: datetime | None = None
    created_after: datetime | None = None
    started_before: datetime | None = None
    stopped_before: datetime | None = None
    error: str | None = None
    id_prefix: str | None = None
    before_id: str | None = None
    limit: int = 100


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs and bundles there are in each state."""

    jobs: Mapping[JobState, int]
    queues: Mapping[str, Mapping[JobState, int]]
    bundles: Mapping[Literal["running", "succeeded", "failed"], int]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it described itself at its last beat."""

    id: int
    name: str
    host: str
    pid: int
    version: str
    pool: str
    concurrency: int
    queues: Sequence[str]
    tasks: Sequence[str]
    state: str
    idle: bool
    running: Sequence[str]
    stats: Mapping[str, Any]
    started_at: datetime
    beat_at: datetime
    beat_age: float  # seconds, by the database's clock

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> WorkerInfo:
        """Build one from a row of the statement list_workers."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A queue: its depth by state, and what was configured for it.

    Attributes:
        name: what it is called.
        ready, running, scheduled, blocked, parked: how many jobs are in that state.
        oldest_wait: how long its oldest ready job has waited, in seconds.
        workers: how many workers serve it.
        paused_at, paused_by, pause_reason: since when it is paused, by whom and why; None: it is not.
        max_running: how many jobs of it run at most, in all workers together; None: any number.
        rate: how many attempts begin in a second; None: any number.
        burst: how many tokens its bucket holds, if it has a rate.
        tokens: how many lie there now.
        ageing: after so many seconds of waiting a job's priority rises by one.
        limited_at, limited_by: when an operator set these limits, and who; None: they are what code declares.
        declared: what code declares: max_running, rate, burst, ageing, as far as they are said.
    """

    name: str
    ready: int
    running: int
    scheduled: int
    blocked: int
    parked: int
    oldest_wait: float | None
    workers: int
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None
    max_running: int | None = None
    rate: float | None = None
    burst: int | None = None
    tokens: float | None = None
    ageing: float | None = None
    limited_at: datetime | None = None
    limited_by: str | None = None
    declared: Mapping[str, Any] | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> QueueInfo:
        """Build one from a row of the statement list_queues."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task as workers have published it, and whether it is paused.

    Attributes:
        name: what it is called.
        queue, priority: where its jobs go by default.
        ready, running, parked: how many jobs of it are in that state.
        workers: how many workers know it.
        paused_at, paused_by, pause_reason: since when it is paused, by whom and why; None: it is not.
    """

    name: str
    queue: str
    priority: int
    ready: int
    running: int
    parked: int
    workers: int
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> TaskInfo:
        """Build one from a row of the statement list_tasks."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))


class ClaimedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that a worker holds right now."""

    worker_id: int
    id: str
    queue: str
    task: str
    args_json: str
    kwargs_json: str
    priority: int
    attempt: int
    claimed_at: datetime
    running: bool  # a child has begun it
    progress_json: str | None = None

    @property
    def progress(self) -> Progress:
        """How far it is, as it says."""
        return Progress.from_json(self.progress_json, self.id)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> ClaimedJob:
        """Build one from a row of the statement list_claimed_jobs."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))


def members_of(jobs: Sequence[NewJob], bundles: Sequence[NewBundle], place_id: str) -> list[NewJob]:
    """Return the jobs in a bundle, with those in steps of it."""
    within = {place_id, *(one.id for one in bundles if one.parent_id == place_id)}
    return [job for job in jobs if job.bundle_id in within]


def place_members(
    jobs: Sequence[NewJob],
    bundles: Sequence[NewBundle],
    place_id: str,
    group_id: str,
    total: int,
    depth: int,
) -> list[NewBundle]:
    """Put what was made as members of ``place_id`` into a group, which has members already.

    Args:
        jobs: change in place.
        bundles: of these jobs, without the group.
        place_id: the id that stands for the group in them.
        group_id: the group's.
        total: how many members it has.
        depth: of the group.

    Returns:
        The bundles as they are in the group.
    """
    for job in members_of(jobs, bundles, place_id):
        job.bundle_index = total + (job.bundle_index or 0)
        if job.bundle_id == place_id:
            job.bundle_id = group_id
    return [
        msgspec.structs.replace(
            one,
            parent_id=group_id if one.parent_id == place_id else one.parent_id,
            depth=depth + one.depth,
        )
        for one in bundles
    ]
