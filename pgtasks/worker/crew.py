"""The children as the ledger has them: who holds which jobs, and who gets the next. Pure.

A child has a track for ordinary jobs (one place, or one for each thread) and, if it runs many coroutines at
once, one for these. Short jobs are sent ahead, as much as fits into a moment; nothing is put behind a long
one. A *suspect*, a job that was one of several when its child died, runs in a child that has nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgtasks.worker.pace import IN_PIPE

if TYPE_CHECKING:
    from pgtasks.options import WorkerOptions
    from pgtasks.worker.lanes import Lane
    from pgtasks.worker.limits import Reason
    from pgtasks.worker.messages import Held, Report, Running


@dataclass(slots=True)
class Track:
    """Jobs that were sent and not reported, in order, with the seconds that each was expected to take."""

    places: int
    pipe: dict[int, tuple[Held, float]] = field(default_factory=dict)
    load: float = 0.0  # the sum of these, each counted as `IN_PIPE` at most
    served_once: bool = False  # what was sent last was at_most_once: ordinary jobs have their turn

    @property
    def room(self) -> bool:
        """Whether another job may be sent, if it is a short one."""
        return len(self.pipe) < self.places or self.load < self.places * IN_PIPE / 2

    @property
    def free(self) -> int:
        """How many jobs would begin at once."""
        return max(0, self.places - len(self.pipe))


@dataclass(slots=True)
class Member:
    """What is known of one child."""

    tracks: tuple[Track, ...]
    reported: int = 0  # outcomes so far
    closing: bool = False
    alone: bool = False  # with a suspect: gets nothing else until that one ended
    # serial -> why the child was, or is to be, killed for it
    killed_for: dict[int, Reason] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether it has nothing to do."""
        return not any(track.pipe for track in self.tracks)

    @property
    def load(self) -> float:
        """How much it has to do."""
        return sum(track.load for track in self.tracks)

    def jobs(self) -> Iterator[Held]:
        """Yield what was sent to it and not reported."""
        for track in self.tracks:
            for held, _ in track.pipe.values():
                yield held

    def __contains__(self, serial: int) -> bool:
        return any(serial in track.pipe for track in self.tracks)


class Crew:
    """All children of a worker.

    Args:
        options: the worker's.
    """

    def __init__(self, options: WorkerOptions) -> None:
        places = [options.threads]
        if options.async_concurrency > 1:
            places.append(options.async_concurrency)
        self._places = tuple(places)
        self._prefetch = options.prefetch
        self.members: dict[int, Member] = {}
        self.short_in_pipes = 0
        # Children that run out of jobs: track -> the one in which an at_most_once job needs a place, and
        # the one that a suspect needs for itself.
        self.kept: dict[int, int] = {}
        self.kept_alone: int | None = None

    def add(self, number: int) -> None:
        """Add a child that is ready."""
        self.members[number] = Member(tuple(Track(places) for places in self._places))

    def remove(self, number: int) -> Member | None:
        """Forget a child, and return what was known of it."""
        member = self.members.pop(number, None)
        if member is not None:
            self.short_in_pipes -= sum(
                expected < IN_PIPE for track in member.tracks for _, expected in track.pipe.values()
            )
        return member

    def reported(
        self, number: int, records: Sequence[Sequence[Any]]
    ) -> list[tuple[Held, Sequence[Any]]]:
        """Take jobs out of a child's hands, and return each with its record.

        What was out already is left out: reported twice, by pipe and on the slate of a child that died then.
        """
        member = self.members[number]
        found: list[tuple[Held, Sequence[Any]]] = []
        for track in member.tracks:
            pipe, load = track.pipe, track.load
            for record in records:
                if record[0] in pipe:
                    held, expected = pipe.pop(record[0])
                    load -= expected
                    if expected < IN_PIPE:
                        self.short_in_pipes -= 1
                    found.append((held, record))
            track.load = load if pipe else 0.0
        if found:
            member.reported += len(found)
            member.alone = False
        return found

    def free(self, lane: Lane) -> int:
        """Return how many jobs of a lane would begin at once."""
        track = self._track(lane)
        return sum(
            one.tracks[track].free
            for number, one in self.members.items()
            if not one.closing and not one.alone and number != self.kept_alone
        )

    def running(self, slates: Mapping[int, Sequence[Running]]) -> list[Held]:
        """Return the jobs that children run, by what their slates say."""
        found: list[Held] = []
        for number, slots in slates.items():
            member = self.members.get(number)
            if member is not None:
                found += [
                    track.pipe[one.serial][0]
                    for one in slots
                    for track in member.tracks
                    if one.serial in track.pipe
                ]
        return found

    def reports(self, slates: Mapping[int, Sequence[Report]]) -> dict[int, tuple[Held, Report]]:
        """Return by serial how far jobs are, as their slates say; what is no longer here is left out."""
        found: dict[int, tuple[Held, Report]] = {}
        for number, reports in slates.items():
            member = self.members.get(number)
            if member is not None:
                for one in reports:
                    for track in member.tracks:
                        if one.serial in track.pipe:
                            found[one.serial] = (track.pipe[one.serial][0], one)
        return found

    # Who gets what

    def share_anew(self) -> None:
        """Keep nothing free any longer."""
        self.kept.clear()
        self.kept_alone = None

    def place_alone(self, held: Held, lane: Lane) -> int | None:
        """Put a suspect into a child that has nothing else, and return which; None: none is free yet."""
        open_ones = self._open_ones()
        number = min(open_ones, key=lambda number: open_ones[number].load, default=None)
        if number is None:
            return None
        if not open_ones[number].empty:
            self.kept_alone = number
            return None
        member = open_ones[number]
        member.alone = True
        self._put(held, member, lane)
        return number

    def place_first(self, held: Held, lane: Lane) -> int | None:
        """Put a job where it begins at once, and return which child; None: there is no place now."""
        at = self._track(lane)
        open_ones = {
            number: one for number, one in self._open_ones().items() if one.tracks[at].free
        }
        number = min(open_ones, key=lambda number: open_ones[number].load, default=None)
        if number is not None:
            self._put(held, open_ones[number], lane)
        return number

    def keep_free(self, lane: Lane) -> None:
        """Let a child run out of jobs, for one that must not wait behind any."""
        at = self._track(lane)
        tracks = {
            number: one.tracks[at]
            for number, one in self.members.items()
            if not (one.closing or one.alone or one.tracks[at].served_once)
        }
        if tracks:
            self.kept[at] = min(tracks, key=lambda number: tracks[number].load)

    def place(self, lane: Lane) -> Iterator[tuple[int, list[Held]]]:
        """Share what waits in a lane among the children, the least loaded first."""
        at = self._track(lane)
        ready = sorted(
            (
                (number, one)
                for number, one in self.members.items()
                if not (one.closing or one.alone or number == self.kept_alone)
                and (lane.kind.at_most_once or self.kept.get(at) != number)
                and one.tracks[at].room
            ),
            key=lambda entry: (entry[1].tracks[at].load, len(entry[1].tracks[at].pipe)),
        )
        for position, (number, member) in enumerate(ready):
            if not lane.waiting:
                return
            track = member.tracks[at]
            share = -(-len(lane.waiting) // (len(ready) - position))
            jobs = self._fill(track, lane, min(share, self._prefetch - len(track.pipe)))
            if jobs:
                track.served_once = lane.kind.at_most_once
                yield number, jobs

    def _fill(self, track: Track, lane: Lane, most: int) -> list[Held]:
        """Move jobs from a lane into a pipe, as many as should lie there; 40,000 a second go through here."""
        jobs: list[Held] = []
        waiting, pipe, expect = lane.waiting, track.pipe, lane.pace.expect
        free, load, full = track.free, track.load, track.places * IN_PIPE
        limit = max(most, free, 1)
        once = lane.kind.at_most_once
        while waiting and len(jobs) < limit:
            held = waiting[0]
            row = held.row
            # One that took its process down before runs with nothing behind it.
            expected = IN_PIPE if row.crashes else expect(row.task)
            short = expected < IN_PIPE
            if free <= 0 and (once or not short or load >= full or most < 1):
                break
            waiting.popleft()
            if short:
                self.short_in_pipes += 1
            else:
                expected = IN_PIPE
            pipe[held.serial] = (held, expected)
            load += expected
            free -= 1
            jobs.append(held)
            if free <= 0 and (once or not short):
                break
        track.load = load
        lane.in_pipes += len(jobs)
        return jobs

    def _put(self, held: Held, member: Member, lane: Lane) -> None:
        """Put a job into a pipe as a long one, so that nothing is put behind it."""
        track = member.tracks[self._track(lane)]
        track.pipe[held.serial] = (held, IN_PIPE)
        track.load += IN_PIPE
        lane.in_pipes += 1

    def _open_ones(self) -> dict[int, Member]:
        """Return the children that may be given anything."""
        return {
            number: one for number, one in self.members.items() if not one.closing and not one.alone
        }

    def _track(self, lane: Lane) -> int:
        return 1 if lane.kind.asynchronous else 0
