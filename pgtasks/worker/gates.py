"""What operators hold back, as the ledger has it: pauses, and how much of limited queues may be held. Pure.

The database lets nothing of a paused queue be claimed, and no more of a limited one than is allowed. Here lies
what was claimed before a pause, and the worker's own part: not to hold more of a limited queue than can begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pgtasks.worker.messages import GatesRead, Held

if TYPE_CHECKING:
    from pgtasks.worker.crew import Member
    from pgtasks.worker.lanes import Lane


class Gates:
    """What is paused and limited, and what of that this worker holds."""

    def __init__(self) -> None:
        self.read = GatesRead()
        # serial -> child, of paused jobs in pipes: they are given back if the child has not begun them.
        self.held_back: dict[int, int] = {}
        # token -> lane, of claims of limited queues of which something is left
        self._limited: dict[str, Lane] = {}

    def paused(self, held: Held) -> bool:
        """Whether a job shall not begin, by its queue or its task."""
        read, row = self.read, held.row
        return row.queue in read.paused_queues or row.task in read.paused_tasks

    def part(self, jobs: Sequence[Held]) -> tuple[list[Held], list[Held]]:
        """Return those that may begin, and those that are paused."""
        if not (self.read.paused_queues or self.read.paused_tasks):
            return list(jobs), []
        paused = [self.paused(held) for held in jobs]
        return (
            [held for held, one in zip(jobs, paused, strict=True) if not one],
            [held for held, one in zip(jobs, paused, strict=True) if one],
        )

    def lets_go(self, before: GatesRead) -> bool:
        """Whether something is not paused any more."""
        read = self.read
        return bool(
            before.paused_queues - read.paused_queues or before.paused_tasks - read.paused_tasks
        )

    def hold_back(self, members: Mapping[int, Member], deciding: Mapping[int, float]) -> set[int]:
        """Note anew which jobs in pipes are paused, and return the children for which that changed.

        Args:
            members: the children.
            deciding: jobs that are only sent for what their time limit means.
        """
        before = self.held_back
        self.held_back = {
            held.serial: number
            for number, member in members.items()
            for held in member.jobs()
            if held.serial not in deciding and self.paused(held)
        }
        return {number for _, number in before.items() ^ self.held_back.items()}

    def claimed(self, token: str, queue: str, lane: Lane) -> None:
        """Take note of a claim."""
        if queue in self.read.limited_queues:
            self._limited[token] = lane

    def room(self, lane: Lane, children: int, left: Mapping[str, int]) -> int:
        """Return how many jobs of limited queues a lane may claim: all that are held shall begin at once.

        Args:
            lane: for which lane.
            children: how many children there shall be.
            left: token -> how many jobs of the claim have not left yet.
        """
        if not all(token in left for token in self._limited):
            self._limited = {token: one for token, one in self._limited.items() if token in left}
        held = sum(left[token] for token, one in self._limited.items() if one is lane)
        return lane.places * children - held
