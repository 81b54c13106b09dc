"""Which progress of running jobs is to be written now. Pure.

The slates hold the newest report of each job, so nothing is kept here but what was written last: while the
database is away nothing piles up, and once it is back the newest is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgtasks.worker.messages import Held, Report

# How much one statement writes at most, in bytes of JSON; the rest follows in the next.
BATCH_BYTES = 1 << 18

Reports = Mapping[int, tuple["Held", "Report"]]


class Milestones:
    """What was written of how far each job is. A serial is one run of a job by this worker."""

    def __init__(self) -> None:
        # serial -> when what was written of it was said; the one written longest ago first
        self._written: dict[int, float] = {}
        self._writing: dict[int, float] = {}

    @property
    def writing(self) -> bool:
        """Whether a write is under way: then nothing more is due."""
        return bool(self._writing)

    def due(self, reports: Reports) -> Sequence[tuple[Held, Report]]:
        """Return what is to be written now; tell `answered` what came of it.

        Args:
            reports: the newest of each running job, by serial.
        """
        if self._writing:
            return ()
        self._written = {serial: at for serial, at in self._written.items() if serial in reports}
        order = {serial: place for place, serial in enumerate(self._written, 1)}
        batch: list[tuple[Held, Report]] = []
        size = 0
        for serial in sorted(reports, key=lambda serial: order.get(serial, 0)):
            held, report = reports[serial]
            if self._written.get(serial) == report.at:
                continue
            size += len(report.progress)
            if batch and size > BATCH_BYTES:
                break
            batch.append((held, report))
            self._writing[serial] = report.at
        return batch

    def answered(self, *, again: bool = False) -> None:
        """Take note that the write under way is over; ``again``: it came to nothing, and is due again."""
        if not again:
            for serial, at in self._writing.items():
                self._written.pop(serial, None)
                self._written[serial] = at
        self._writing.clear()
