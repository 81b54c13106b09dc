"""How much is measured: what every benchmark is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for.

    Attributes:
        jobs: how many jobs the throughput benchmarks move; None: as many as the targets say.
        tiny: only see that everything works, in seconds.
        against_raw: run the raw-SQL limit beside the drain.
        tell: called with what is done next, for whoever watches.
    """

    jobs: int | None = None
    tiny: bool = False
    against_raw: bool = False
    tell: Callable[[str], None] = lambda text: None

    def size(self, full: int, tiny: int) -> int:
        """Return how many jobs to move."""
        return self.jobs or (tiny if self.tiny else full)

    def times(self, full: int, tiny: int = 1) -> int:
        """Return how often to repeat."""
        return tiny if self.tiny else full
