"""What leaves the worker: outcomes to be written, jobs to be given back, and the claims that end with them. Pure.

A claim's row in the database is the only way by which others find its jobs if this worker dies. So it ends
with the last job of the claim whose exit is committed, in the same transaction, and never before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pgtasks.worker.messages import (
    Batch,
    Crash,
    Ended,
    Finish,
    Held,
    Release,
    ReleaseLost,
    Settle,
    Unwritten,
    Written,
)

# A finish waits so long for more outcomes, while short jobs are under way.
FLUSH_DELAY = 0.004
FLUSH_BATCH = 500

# With so many outcomes unwritten nothing more is claimed: ten full batches, some hundred milliseconds of
# work at full speed, and a bound on memory while the server refuses to store any.
OUTCOMES_LIMIT = 10 * FLUSH_BATCH

# A finish that the server refused for a passing reason (deadlock, time-out) is tried again after this.
WRITE_AGAIN = 0.1

# A claim on a connection that was given up may be committed long after the next one is up, when the server
# or the network stood still. So what was lost is looked for so often.
RELEASE_LOST_EVERY = 10.0

Cause = Mapping[str, Any]


class Outbox:
    """Decides what is written back, and when.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.outcomes: list[Ended] = []
        self.first_outcome_at = 0.0
        self.parts: deque[Batch] = deque()  # batches to write again, or in halves
        self.to_release: list[Held] = []
        self.to_crash: list[tuple[Held, Cause]] = []
        self.to_settle: list[tuple[Held, int]] = []  # with the session of the dead child
        # token -> jobs whose exit is not committed, as far as is known
        self.claims: dict[str, int] = {}
        self.ended_claims: list[str] = []  # nothing is left of them, and the database was not told
        self.writing = False
        self.write_after = now
        self.releasing = 0  # Release, Crash and Settle under way
        self.must_release_lost = False
        self.release_lost_at = now
        self.release_after = now

    # What comes in

    def claimed(self, token: str, jobs: int) -> None:
        """Take note of a claim."""
        self.claims[token] = jobs

    def add(self, ended: Ended, now: float) -> None:
        """Take an outcome."""
        if not self.outcomes:
            self.first_outcome_at = now
        self.outcomes.append(ended)

    def extend(self, ended: Sequence[Ended], now: float) -> None:
        """Take outcomes."""
        if not self.outcomes:
            self.first_outcome_at = now
        self.outcomes += ended

    def release(self, jobs: Iterable[Held]) -> None:
        """Give jobs back unattempted."""
        self.to_release += jobs

    def crash(self, held: Held, cause: Cause) -> None:
        """Give a job back and charge it a crash."""
        self.to_crash.append((held, cause))

    def settle(self, held: Held, session: int) -> None:
        """Find out whether a job committed by itself."""
        self.to_settle.append((held, session))

    def gone(self, jobs: Iterable[Held]) -> None:
        """Take note that jobs left by themselves, or are no longer ours."""
        self._leave(jobs, ())

    def connected(self, now: float) -> None:
        """Begin anew: what claims were lost is unknown."""
        self.must_release_lost = True
        self.release_after = now

    def lost_kept(self, now: float) -> None:
        """Take note that lost claims could not be released."""
        self.must_release_lost = True
        self.release_after = now + WRITE_AGAIN

    def lease_lost(self) -> None:
        """Forget what was to be given back: it is no longer ours."""
        self._leave((*self.to_release, *(held for held, _ in self.to_crash)), ())
        self.to_release, self.to_crash, self.to_settle = [], [], []

    # What the database said

    def written(self, event: Written) -> None:
        """Take note that a batch was committed."""
        self.writing = False
        self._leave([ended.held for ended in event.batch.ended], event.batch.claims)

    def unwritten(self, event: Unwritten, now: float) -> None:
        """Take back a batch that was not committed."""
        self.writing = False
        batch = event.batch
        self._keep_ended(batch.claims)
        if event.reason == "lost":
            batch.again = True
            self.parts.appendleft(batch)
        elif event.reason != "again" and len(batch.ended) > 1:
            # By halves, until what cannot be stored, or takes so long, is alone and keeps no other waiting.
            middle = len(batch.ended) // 2
            self.parts.append(Batch(batch.ended[:middle], [], batch.again))
            self.parts.append(Batch(batch.ended[middle:], [], batch.again))
        elif event.reason != "value":
            self.parts.append(batch)
        else:
            if batch.ended[0].kind == "failed":  # not for its own value, it seems
                self.write_after = now + WRITE_AGAIN
            self.parts.append(Batch([_unstorable(batch.ended[0], event.message)], []))
        if event.reason in ("again", "slow"):
            self.write_after = now + WRITE_AGAIN

    def released(self, command: Release | Crash) -> None:
        """Take note that jobs were given back."""
        self.releasing -= 1
        self._leave(command.jobs, command.claims)

    def unreleased(self, command: Release | Crash, now: float) -> None:
        """Take jobs back that were not given back."""
        self.releasing -= 1
        if isinstance(command, Crash):
            self.to_crash += zip(command.jobs, command.causes, strict=True)
        else:
            self.to_release += command.jobs
        self._keep_ended(command.claims)
        self.release_after = now + WRITE_AGAIN

    def unsettled(self, command: Settle, now: float, *, again: bool) -> None:
        """Take note that a question came to nothing; ``again``: ask it again after a pause."""
        self.releasing -= 1
        if again:
            self.to_settle.append((command.held, command.session))
            self.release_after = now + WRITE_AGAIN

    # What to do

    def returns(
        self, claiming: bool, now: float
    ) -> Iterator[Release | Crash | ReleaseLost | Settle]:
        """Yield what is to be given back now; ``claiming``: a claim is under way, and none is lost yet."""
        if now < self.release_after:
            return
        if (self.must_release_lost or now >= self.release_lost_at) and not claiming:
            self.must_release_lost = False
            self.release_lost_at = now + RELEASE_LOST_EVERY
            yield ReleaseLost(tuple(self.claims))
        for held, session in self.to_settle:
            self.releasing += 1
            yield Settle(held, session)
        self.to_settle.clear()
        if self.to_release:
            jobs, self.to_release = tuple(self.to_release), []
            self.releasing += 1
            yield Release(jobs, self._ending(jobs))
        if self.to_crash:
            crashed, causes = zip(*self.to_crash, strict=True)
            self.to_crash = []
            self.releasing += 1
            yield Crash(crashed, self._ending(crashed), causes)
        if self.ended_claims and not (self.claims or self.writing or self.releasing):
            self.releasing += 1
            yield Release((), self._ending(()))

    def finish(self, at_once: bool, now: float) -> Finish | None:
        """Return the batch to write now, if it is time; ``at_once``: nothing is worth waiting for."""
        if self.writing or now < self.write_after:
            return None
        if self.parts:
            batch = self.parts.popleft()
            batch.claims = self._ending(one.held for one in batch.ended)
        elif self.outcomes and (
            at_once
            or len(self.outcomes) >= FLUSH_BATCH
            or now - self.first_outcome_at >= FLUSH_DELAY
        ):
            ended = self.outcomes[: 2 * FLUSH_BATCH]
            del self.outcomes[: 2 * FLUSH_BATCH]
            self.first_outcome_at = now
            ended.sort(key=lambda one: one.held.row.id)
            batch = Batch(ended, self._ending(one.held for one in ended))
        else:
            return None
        self.writing = True
        return Finish(batch)

    def next_wake(self, now: float) -> float:
        """Return the moment of the next command that no event brings about, while the connection is up."""
        moments = [float("inf")]
        if not self.writing:
            if self.parts:
                moments.append(self.write_after)
            elif self.outcomes:
                moments.append(max(self.first_outcome_at + FLUSH_DELAY, self.write_after))
        if now < self.release_after:
            moments.append(self.release_after)
        return min(moments)

    @property
    def empty(self) -> bool:
        """Whether everything has left."""
        return not (
            self.outcomes
            or self.parts
            or self.writing
            or self.to_release
            or self.to_crash
            or self.to_settle
            or self.releasing
            or self.ended_claims
        )

    @property
    def full(self) -> bool:
        """Whether the database takes nothing back, so that nothing more should be claimed."""
        return len(self.outcomes) >= OUTCOMES_LIMIT

    # Claims

    def _leave(self, jobs: Iterable[Held], told: Collection[str]) -> None:
        """Let jobs go; a claim of which nothing is left has ended, and its row goes with what is said next.

        Args:
            jobs: what left.
            told: the claims whose rows went in the same transaction.
        """
        for token, count in Counter(held.token for held in jobs).items():
            left = self.claims.get(token, 0) - count
            if left > 0:
                self.claims[token] = left
            elif self.claims.pop(token, None) is not None and token not in told:
                self.ended_claims.append(token)

    def _ending(self, jobs: Iterable[Held]) -> list[str]:
        """Return the claims that end once these jobs have left, and those that ended before."""
        leaving = Counter(held.token for held in jobs)
        ended, self.ended_claims = self.ended_claims, []
        return ended + [
            token for token, count in leaving.items() if self.claims.get(token) == count
        ]

    def _keep_ended(self, claims: Iterable[str]) -> None:
        """Take back what the database was not told."""
        self.ended_claims += [token for token in claims if token not in self.claims]


def _unstorable(ended: Ended, message: str) -> Ended:
    """Replace an outcome that cannot be stored by a failure that says so."""
    error = {
        "type": "pgtasks.errors.EncodingError",
        "message": f"the outcome ({ended.kind}) could not be stored: {message}"[:500],
        "traceback": "",
        "args": None,
    }
    return ended._replace(kind="failed", result=None, error=error, delay=None)
