"""The ticks of schedules, in every worker at once: look what is due, compute, enqueue, sleep until the next.

No worker leads. Whoever comes first moves a schedule on, and the others find it moved: `tick_schedules` in the
database sees to it that each tick is enqueued once, so whatever is lost, late or done twice here does no harm. All
times are the database's, also how long to sleep; a sleep is cut by a notification when an earlier tick has come up.

    look ──nothing due──► sleep until the next tick, or LOOK_EVERY
      ▲ └──due──► plan ──► tick_schedules ──┐
      └─────────────────────────────────────┘
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from pgtasks import events
from pgtasks.errors import ConfigurationError
from pgtasks.schedule import EPOCH, Plan, plan
from pgtasks.worker.link import Failed, text_array

if TYPE_CHECKING:
    from pgtasks.worker.link import Reply

Submit = Callable[[str, Mapping[str, object], "Callable[[Reply], None]", float], None]

# Where triggers on pgtasks.schedule tell that an earlier tick has come up.
SCHEDULE_CHANNEL = "pgtasks_schedule"
# The longest sleep, in seconds: for notifications that were lost, and for steps of the database's clock.
LOOK_EVERY = 5.0
LOOK_EVERY_DEAF = 1.0
# How many schedules, and about how many ticks, one statement takes: some 10 ms of this process and of the server.
BATCH = 200
TICKS = 1000
# Workers wake at the same tick: within this time by chance, so that mostly one finds it and the others find it done.
SPREAD = 0.03
# When somebody else is at what this one wanted, it looks again after about this long, doubling up to REFUSED.
BUSY = 0.05
# When the database refused, for whatever reason but the schedule itself; and when it is one that somebody must repair,
# such as rights that are missing.
REFUSED = 1.0
FORBIDDEN = 30.0


class Due(NamedTuple):
    """A schedule that is due, as its row stands; times in microseconds since 1970."""

    name: str
    spec: str
    timezone: str
    catch_up: str
    next_at: int | None
    now: int


class Ticks:
    """What one worker does about schedules.

    Args:
        submit: sends a statement: its name, its parameters, what takes the reply, monotonic seconds.
        wake_at: takes the monotonic moment at which `look` is to be called.
        deaf: notifications are not heard.
    """

    def __init__(self, submit: Submit, wake_at: Callable[[float], None], *, deaf: bool) -> None:
        self._submit = submit
        self._wake_at = wake_at
        self._every = LOOK_EVERY_DEAF if deaf else LOOK_EVERY
        self._batch = BATCH
        self._busy = BUSY
        self._asking = False
        self._look_again = False

    def connected(self) -> None:
        """Begin anew: what was under way was answered as lost."""
        self._asking = False

    def look(self, now: float) -> None:
        """Ask what is due; when something is under way, then after that."""
        self._wake_at(now + self._every)
        if self._asking:
            self._look_again = True
            return
        self._ask("due_schedules", {"limit": self._batch}, self._on_due, now)

    def _ask(
        self,
        name: str,
        parameters: Mapping[str, object],
        on_reply: Callable[[Reply], None],
        now: float,
    ) -> None:
        def done(reply: Reply) -> None:
            self._asking = False
            on_reply(reply)
            if self._look_again and not self._asking:
                self._look_again = False
                self._wake_at(0.0)

        self._asking = True
        self._submit(name, parameters, done, now)

    def _on_due(self, reply: Reply) -> None:
        now = time.monotonic()
        if not isinstance(reply, list):
            self._refused("due_schedules", reply)
            return
        *due, last = reply
        if due:
            self._tick([Due._make(row[:6]) for row in due], now)
            return
        self._batch = BATCH
        self._busy = BUSY
        wait = last[6]
        if wait is not None and wait < self._every:
            self._wake_at(now + max(0.0, wait) + random.uniform(0.0, SPREAD))
        else:
            self._wake_at(now + self._every)

    def _tick(self, due: Sequence[Due], now: float) -> None:
        plans: dict[str, Plan | str] = {}
        ticks = 0
        for one in due:
            plans[one.name] = found = _plan(one)
            ticks += len(found.ticks) if isinstance(found, Plan) else 0
            if ticks >= TICKS:
                break
        taken = due[: len(plans)]
        parameters = _parameters(taken, plans)

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                moved = set(reply[0][0])
                _tell((one, plans[one.name]) for one in taken if one.name in moved)
                self._go_on(done=len(moved) == len(taken))
            elif isinstance(reply, Failed) and reply.sqlstate[:2] in ("22", "23", "42", "54", "P0"):
                self._apart(taken, reply.message)
            else:
                self._refused("tick_schedules", reply)

        self._ask("tick_schedules", parameters, done, now)

    def _go_on(self, *, done: bool) -> None:
        """Look again: at once, or if somebody else is at what this one wanted, a little later each time."""
        if done:
            self._busy = BUSY
            self._wake_at(0.0)
        else:
            self._wake_at(time.monotonic() + self._busy * random.uniform(0.5, 1.5))
            self._busy = min(2 * self._busy, REFUSED)

    def _apart(self, due: Sequence[Due], why: str) -> None:
        """Take schedules one by one, since one of them is refused; and let that one alone for a while."""
        self._batch = 1
        if len(due) > 1:
            self._wake_at(0.0)
            return
        self._ask(
            "tick_schedules",
            _parameters(due, {due[0].name: why}),
            lambda reply: self._after_error(due[0], why, reply),
            time.monotonic(),
        )

    def _after_error(self, one: Due, why: str, reply: Reply) -> None:
        if isinstance(reply, list):
            events.emit("schedule.refused", schedule=one.name, why=why)
            self._wake_at(0.0)
        else:
            self._refused("tick_schedules", reply)

    def _refused(self, statement: str, reply: Any) -> None:
        """Try again a little later; after a broken connection that is when the next one is up."""
        wait = REFUSED
        if isinstance(reply, Failed):
            events.emit(
                "worker.refused", statement=statement, sqlstate=reply.sqlstate, why=reply.message
            )
            wait = FORBIDDEN if reply.sqlstate.startswith("42") else REFUSED
        self._wake_at(time.monotonic() + wait)


def _plan(one: Due) -> Plan | str:
    """Return what to do about a schedule, or why its row cannot be read."""
    try:
        next_at = None if one.next_at is None else _moment(one.next_at)
        return plan(one.spec, one.timezone, one.catch_up, next_at, _moment(one.now))
    except (ConfigurationError, OverflowError) as error:  # anybody may have written the row
        return str(error)


def _parameters(due: Sequence[Due], plans: Mapping[str, Plan | str]) -> dict[str, object]:
    """Return the parameters of tick_schedules."""
    found = [(one, plans[one.name]) for one in due]
    ticks = [
        (one.name, tick) for one, what in found if isinstance(what, Plan) for tick in what.ticks
    ]
    return {
        "name": text_array(one.name for one in due),
        "spec": text_array(one.spec for one in due),
        "timezone": text_array(one.timezone for one in due),
        "expected": text_array(one.next_at for one in due),
        "next_at": text_array(
            what.next_at.isoformat() if isinstance(what, Plan) else None for _, what in found
        ),
        "error": text_array(what[:1000] if isinstance(what, str) else None for _, what in found),
        "ticked": text_array(name for name, _ in ticks),
        "tick": text_array(tick.isoformat() for _, tick in ticks),
    }


def _tell(moved: Iterable[tuple[Due, Plan | str]]) -> None:
    for one, what in moved:
        if isinstance(what, str):
            events.emit("schedule.refused", schedule=one.name, why=what)
            continue
        if what.ticks:
            events.emit("schedule.ticked", schedule=one.name, jobs=len(what.ticks))
        if what.dropped and one.next_at is not None:
            since = _moment(one.next_at).isoformat()
            events.emit("schedule.missed", schedule=one.name, since=since, catch_up=one.catch_up)


def _moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
