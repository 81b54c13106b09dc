"""What becomes of the jobs of a child that died, and of others that end without a child's word. Pure.

A job that had begun is charged a crash only if nothing else can have caused the death: if its child ran
others too, each becomes a *suspect* and runs again alone; if the child was killed for one of them, the others
run again. What a time limit means for a job that was killed for it, its task's policy and hooks must say,
which are user code: another child is asked. And whether a transactional job had committed, the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgtasks.options import MAX_CRASHES
from pgtasks.worker.limits import Reason
from pgtasks.worker.messages import Ended, Held, Running

if TYPE_CHECKING:
    from pgtasks.worker.facts import Facts
    from pgtasks.worker.outbox import Cause, Outbox

CRASH = "pgtasks.Crash"  # the type under which a crash is stored; no class
# Of a job that was killed for its time limit, when nobody is left to say what that means.
SHUT_DOWN = {
    "type": CRASH,
    "message": "was killed at its time limit while the worker stopped",
    "traceback": "",
    "args": None,
}


class Death(NamedTuple):
    """How the child of a job died that it had begun.

    Attributes:
        running: what the slate said of the job.
        cause: what is known of the death.
        reason: why the child was killed, if for this job.
        killed: whether it was killed for any.
        several: whether it ran others too.
        cancelled: whether the job was cancelled.
        limit: of a job that had been killed before, for this time limit, and was to be decided.
    """

    running: Running
    cause: Cause
    reason: Reason | None
    killed: bool
    several: bool
    cancelled: bool
    limit: float | None


class Aftermath:
    """Has the jobs of dead children until it is clear where they go.

    Args:
        facts: of the tasks.
        outbox: where they go if they leave.
    """

    def __init__(self, facts: Facts, outbox: Outbox) -> None:
        self._facts = facts
        self._outbox = outbox
        self.suspects: list[Held] = []
        self.over_limit: list[tuple[Held, float]] = []  # killed for their limit, not decided yet
        self.deciding: dict[int, float] = {}  # serial -> limit, of those that a child decides about
        self.settling: dict[int, tuple[Held, Death]] = {}  # it may have committed

    def begun(self, held: Held, death: Death, *, killing: bool, now: float) -> bool:
        """Take a job that its dead child had begun; returns whether it shall wait again.

        Args:
            held: the job.
            death: of its child.
            killing: all children are being killed.
            now: monotonic seconds.
        """
        if death.running.session:
            self.settling[held.serial] = (held, death)
            self._outbox.settle(held, death.running.session)
            return False
        return self._interrupted(held, death, killing, now)

    def alive(self, held: Held, *, killing: bool, now: float) -> bool:
        """Take note that a job had not committed; returns whether it shall wait again."""
        _, death = self.settling.pop(held.serial)
        return self._interrupted(held, death, killing, now)

    def committed(self, held: Held, now: float) -> Ended:
        """Take note that a job had committed, and return its end."""
        _, death = self.settling.pop(held.serial)
        return Ended(held, "committed", None, None, None, death.running.began, now)

    def undecided(self, held: Held, limit: float) -> None:
        """Take a job that was killed for its time limit: a child shall say what that means."""
        self.over_limit.append((held, limit))

    def _interrupted(self, held: Held, death: Death, killing: bool, now: float) -> bool:
        began = death.running.began
        for_limit = death.reason is Reason.LIMIT
        limit = self._facts.limits(held)[1] if for_limit else death.limit
        not_to_blame = death.killed or death.several
        if death.cancelled:
            self._outbox.add(cancelled(held, began, now), now)
        elif for_limit and limit is not None and not killing:
            self.undecided(held, limit)
        elif self._facts.of(held).at_most_once:
            self._outbox.add(lost(held, began, death.cause, now), now)
        elif killing:
            self._outbox.release([held])
        elif limit is not None and not_to_blame:
            self.undecided(held, limit)
        elif death.killed:  # for another job that it ran
            return True
        elif death.several:
            self.suspects.append(held)
        elif held.row.crashes + 1 >= MAX_CRASHES:
            self._outbox.add(quarantined(held, death.cause, began, now), now)
        else:
            self._outbox.crash(held, death.cause)
        return False

    # What happens meanwhile

    def cancel(self, asked: Callable[[Held], bool], now: float) -> None:
        """End those that were cancelled."""
        hit = [held for held in (*self.suspects, *self._undecided()) if asked(held)]
        self.suspects = [held for held in self.suspects if held not in hit]
        self.over_limit = [entry for entry in self.over_limit if entry[0] not in hit]
        for held in hit:
            self._outbox.add(cancelled(held, None, now), now)

    def give_up(self) -> Sequence[Held]:
        """Return the suspects; none wait any more."""
        suspects, self.suspects = self.suspects, []
        return suspects

    def kill(self, now: float) -> None:
        """Let those go of which nobody is left to say what their time limit means."""
        for held in self._undecided():
            if self._facts.of(held).at_most_once:
                self._outbox.add(lost(held, None, SHUT_DOWN, now), now)
            else:
                self._outbox.crash(held, SHUT_DOWN)
        self.over_limit = []

    def lease_lost(self) -> None:
        """Forget all: they are no longer ours."""
        settling = [held for held, _ in self.settling.values()]
        self._outbox.gone((*self.suspects, *self._undecided(), *settling))
        self.suspects, self.over_limit = [], []
        self.deciding.clear()
        self.settling.clear()

    def held(self) -> int:
        """Return how many jobs are here."""
        return len(self.suspects) + len(self.over_limit) + len(self.settling)

    def _undecided(self) -> list[Held]:
        return [held for held, _ in self.over_limit]


# Ends that no child reported


def cancelled(held: Held, began: float | None, now: float) -> Ended:
    """End a job that was cancelled."""
    return Ended(held, "cancelled", None, None, None, began, now)


def quarantined(held: Held, cause: Cause | None, began: float | None, now: float) -> Ended:
    """End a job that crashed too often: now, for this cause, or elsewhere."""
    message = f"took its process down {held.row.crashes} times"
    error = {"type": CRASH, "message": message} if cause is None else cause
    return Ended(held, "quarantined", None, error, None, began, now)


def lost(held: Held, began: float | None, cause: Cause, now: float) -> Ended:
    """Fail a job of an at_most_once task that may have run to any point."""
    message = f"may have run when its process died: {cause.get('message', '')}"
    error = {
        "type": "pgtasks.errors.JobLostError",
        "message": message,
        "traceback": "",
        "args": [message],
    }
    return Ended(held, "failed", None, error, None, began, now)
