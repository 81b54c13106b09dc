"""Who runs too long, and who was cancelled while it ran: when to interrupt, when to kill. Pure.

The slates say when a job began, and they are looked at whenever the parent wakes. A job that had not begun
when they were last looked at cannot have used up its limit before that moment plus the limit: to wake then
is exact, and nothing is polled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pgtasks.worker.messages import Order, Running

# A coroutine that does not end within this time after it was cancelled for its hard limit, in seconds, holds
# up the loop, or refuses: its process is killed.
CANCEL_GRACE = 5.0


class Reason(Enum):
    """Why a child is killed for a job that it runs."""

    LIMIT = "limit"
    CANCEL = "cancel"
    LOST = "lost"  # at_most_once, and the lease cannot be trusted


class Verdict(NamedTuple):
    """What to do about a job that runs: an order, or to kill its child."""

    child: int
    serial: int
    order: Order | None
    reason: Reason | None = None


@dataclass(slots=True)
class _Watched:
    child: int
    asynchronous: bool
    soft: float | None
    hard: float | None
    began: float | None = None
    cancelled: bool = False
    orders: frozenset[Order] = frozenset()  # given so far
    kill_at: float | None = None
    reason: Reason = Reason.LIMIT


class Limits:
    """Watches the jobs in children's hands that have a limit or were cancelled.

    Args:
        kills: whether children can be killed; else a limit is soft only.
        grace: how long a cancelled job may clean up before its child is killed, in seconds.
    """

    def __init__(self, *, kills: bool, grace: float) -> None:
        self._kills = kills
        self._grace = grace
        self._watched: dict[int, _Watched] = {}
        self._must_look = False  # a job was cancelled of which nobody knows whether it began

    @property
    def active(self) -> bool:
        """Whether anything is watched, so that the slates must be looked at."""
        return bool(self._watched)

    def watch(
        self, serial: int, child: int, soft: float | None, hard: float | None, asynchronous: bool
    ) -> None:
        """Watch a job that was handed to a child."""
        self._watched[serial] = _Watched(child, asynchronous, soft, hard)

    def cancel(self, serial: int, child: int, asynchronous: bool) -> None:
        """Interrupt a job that runs in a child."""
        if serial not in self._watched:
            self.watch(serial, child, None, None, asynchronous)
        self._watched[serial].cancelled = True
        self._must_look = True

    def forget(self, serials: Iterable[int]) -> None:
        """Watch these no longer: they ended, or their child is gone."""
        for serial in serials:
            self._watched.pop(serial, None)

    def seen(self, running: Mapping[int, Sequence[Running]]) -> None:
        """Take note of what the slates say."""
        self._must_look = False
        for slots in running.values():
            for one in slots:
                watched = self._watched.get(one.serial)
                if watched is not None:
                    watched.began = one.began

    def due(self, now: float) -> Iterator[Verdict]:
        """Yield what is to be done now; each once."""
        for serial, one in self._watched.items():
            if one.began is None:
                continue
            order = self._order(one, one.began, now)
            if order is not None:
                one.orders |= {order}
                yield Verdict(one.child, serial, order)
            if one.kill_at is not None and now >= one.kill_at:
                one.kill_at = None
                yield Verdict(one.child, serial, None, one.reason)

    def _order(self, one: _Watched, began: float, now: float) -> Order | None:
        """Return the order that is due, and settle when a kill follows."""
        if one.cancelled and Order.CANCEL not in one.orders:
            one.soft = None
            if self._kills:
                one.kill_at, one.reason = now + self._grace, Reason.CANCEL
            return Order.CANCEL
        if one.hard is not None and now >= began + one.hard:
            hard, one.hard = one.hard, None
            if one.asynchronous or self._kills:
                one.soft = None
            if one.asynchronous:
                if self._kills:
                    one.kill_at, one.reason = began + hard + CANCEL_GRACE, Reason.LIMIT
                return Order.HARD_LIMIT
            if self._kills:
                one.kill_at, one.reason = now, Reason.LIMIT
                return None
        if one.soft is not None and now >= began + one.soft:
            one.soft = None
            return Order.SOFT_LIMIT
        return None

    def next_wake(self, now: float) -> float:
        """Return the moment of the next `due`; inf: none is in sight."""
        if self._must_look and self._watched:
            return now
        moments = [float("inf")]
        for one in self._watched.values():
            since = now if one.began is None else one.began
            moments += [since + limit for limit in (one.soft, one.hard) if limit is not None]
            if one.kill_at is not None:
                moments.append(one.kill_at)
        return min(moments)
