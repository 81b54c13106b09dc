"""What the parent knows of tasks, asked by job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

from pgtasks.worker.messages import TaskFacts

if TYPE_CHECKING:
    from pgtasks.worker.messages import Held

NO_FACTS = TaskFacts()


class Facts:
    """Answers what holds for a job.

    Args:
        tasks: what is known of each task that this worker can run.
    """

    def __init__(self, tasks: Mapping[str, TaskFacts]) -> None:
        self.tasks = dict(tasks)
        self.limited = {
            name
            for name, facts in self.tasks.items()
            if facts.soft_time_limit is not None or facts.time_limit is not None
        }

    def of(self, held: Held) -> TaskFacts:
        """Return what is known of the task of a job."""
        return self.tasks.get(held.row.task, NO_FACTS)

    def limits(self, held: Held) -> tuple[float | None, float | None]:
        """Return the soft and the hard limit of a job: what its call said, else what its task has."""
        row = held.row
        said = row.options is not None and "time_limit" in row.options
        if not said and row.task not in self.limited:
            return None, None
        facts = self.of(held)
        soft, hard = facts.soft_time_limit, facts.time_limit
        if said and row.options is not None:
            own = _limits_in(row.options)
            soft, hard = own.get("soft_time_limit", soft), own.get("time_limit", hard)
        return soft, hard


def _limits_in(options: str) -> dict[str, float | None]:
    """Return the time limits in the options of a call, as far as they are any; the child refuses others."""
    try:
        said = orjson.loads(options)
    except ValueError:
        return {}
    return {
        name: float(said[name])
        for name in ("soft_time_limit", "time_limit")
        if isinstance(said, dict) and isinstance(said.get(name), int | float) and said[name] > 0
    }
