"""How long the jobs of each task take, as measured; and so how many to hold ahead. Pure.

An estimate rises at once and falls slowly, so that a task that is sometimes long is treated as long:
a job behind a long one in a pipe would wait for it. An unmeasured task counts as long.
"""

from __future__ import annotations

# How much work, in seconds, is claimed ahead of the children, and how much lies in one pipe. A claim
# and its reply take 3 to 10 ms under load, so 50 ms never run dry (benchmarks/drain.py).
AHEAD = 0.05
IN_PIPE = 0.01

RISE, FALL = (
    0.5,
    0.02,
)  # how much of the way an estimate goes to a longer, or a shorter, measurement
OVERALL_RISE = 0.2  # the mean over all tasks may take one long job more calmly


class Pace:
    """Measured durations, in seconds."""

    def __init__(self) -> None:
        self.tasks: dict[str, float] = {}
        self.overall: float | None = None

    def measure(self, task: str, seconds: float) -> None:
        """Take one measurement."""
        old = self.tasks.get(task)
        if old is None:
            self.tasks[task] = seconds
        else:
            self.tasks[task] = old + (seconds - old) * (RISE if seconds > old else FALL)
        mean = self.overall
        if mean is None:
            self.overall = seconds
        else:
            self.overall = mean + (seconds - mean) * (OVERALL_RISE if seconds > mean else FALL)

    def expect(self, task: str) -> float:
        """Return how long a job of this task will take; `IN_PIPE` or more: nothing waits behind it."""
        return self.tasks.get(task, IN_PIPE)

    def ahead(self, most: int) -> int:
        """Return how many jobs to hold for each child beyond the one that it runs."""
        return 0 if self.overall is None else min(most, int(AHEAD / max(self.overall, 1e-6)))
