"""The verdict on other workers, without any clock but the observer's own. Pure.

A worker raises its beat every few seconds. It is declared dead only after this observer has itself seen
the beat stand still for the whole lease, polling without a gap. A failed poll, a long pause of this
process or a restart of the server begins the wait anew, so that an outage condemns nobody; skewed clocks
do not matter, since none is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pgtasks.worker.messages import Trust


class LeaseWatch:
    """Watches the beats of other workers.

    Args:
        lease: for how long a beat may stand still, in seconds.
        gap: the longest pause between two polls that still counts as none, in seconds.
    """

    def __init__(self, lease: float, gap: float) -> None:
        self._lease = lease
        self._gap = gap
        self._seen: dict[int, tuple[int, float]] = {}  # worker id -> beat, since when
        self._polled_at: float | None = None
        self._server: str | None = None

    def observe(self, beats: Mapping[int, int], server: str, now: float) -> list[tuple[int, int]]:
        """Take the beats that one poll read, and return (worker id, beat) of those that are dead.

        Args:
            beats: worker id -> beat, without the observer's own.
            server: what changes when the server was restarted or failed over.
            now: monotonic seconds, of the moment when the poll was sent.
        """
        if self._polled_at is None or now - self._polled_at > self._gap or server != self._server:
            self._seen.clear()
        self._polled_at, self._server = now, server
        for worker in self._seen.keys() - beats.keys():
            del self._seen[worker]
        dead = []
        for worker, beat in beats.items():
            seen = self._seen.get(worker)
            if seen is None or seen[0] != beat:
                self._seen[worker] = (beat, now)
            elif now - seen[1] >= self._lease:
                dead.append((worker, beat))
        return dead

    def silent(self, seconds: float, now: float) -> list[tuple[int, int]]:
        """Return (worker id, beat) of those whose beat was seen standing still for so long."""
        return [
            (worker, beat) for worker, (beat, since) in self._seen.items() if now - since >= seconds
        ]

    def missed(self) -> None:
        """Take note that a poll failed."""
        self._polled_at = None

    def forget(self, workers: Iterable[int]) -> None:
        """Forget workers that were rescued."""
        for worker in workers:
            self._seen.pop(worker, None)


class OwnLease:
    """How long the others have heard nothing of this worker, and so how far it may trust its lease.

    Counted from the moment when the last confirmed beat was sent, on a clock that goes on while the machine
    sleeps and while the process is stopped. Others condemn it no earlier than a lease after they saw that beat.

    Args:
        lease: in seconds.
        now: seconds of such a clock.
    """

    def __init__(self, lease: float, now: float) -> None:
        self._lease = lease
        self.confirmed_at = now

    def confirm(self, sent_at: float) -> None:
        """Take note that a beat which was sent at this moment arrived."""
        self.confirmed_at = max(self.confirmed_at, sent_at)

    def trust(self, now: float) -> Trust:
        """Return how far the lease may be trusted."""
        silence = now - self.confirmed_at
        if silence < self._lease / 2:
            return Trust.SURE
        # A sixth of the lease (5 s of 30 s) is left for what has to end.
        return Trust.UNSURE if silence < self._lease * 5 / 6 else Trust.LOST
