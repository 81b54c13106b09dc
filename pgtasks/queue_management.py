"""Management of queues and tasks: look, pause, resume, limit, move; each also asynchronous."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar

from pgtasks.errors import ConfigurationError
from pgtasks.options import check_ageing, check_label, check_max_running, check_queue_name
from pgtasks.rates import Rate, parse_rate

if TYPE_CHECKING:
    from pgtasks.db.run import Operation
    from pgtasks.job import QueueInfo, TaskInfo

T = TypeVar("T")

# Characters of the reason of a pause; the schema has the same limit.
MAX_REASON = 1000


class QueueManagement:
    """The operations of an app on queues and on tasks as a whole; the app says how they are run."""

    def run(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation on a synchronous connection."""
        raise NotImplementedError

    async def arun(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation on an asynchronous connection."""
        raise NotImplementedError

    def queues(self) -> list[QueueInfo]:
        """Return the queues that hold jobs, have a worker, or were configured, and how each stands."""
        from pgtasks.db import operations

        return self.run(operations.list_queues())

    async def aqueues(self) -> list[QueueInfo]:
        """Return the queues that hold jobs, have a worker, or were configured, and how each stands."""
        from pgtasks.db import operations

        return await self.arun(operations.list_queues())

    def pause_queue(self, name: str, *, reason: str | None = None, by: str | None = None) -> None:
        """Hold a queue: no worker begins a job of it, until `resume_queue`.

        Nothing is claimed from now on; what workers have claimed and not begun they give back within a second, and
        what runs ends. Jobs go on to be enqueued. Again to say another reason.

        Args:
            name: which queue; it may be one that nobody has used yet.
            reason: for people.
            by: who, for people.
        """
        from pgtasks.db import operations

        _check_pause(reason, by)
        check_queue_name(name)
        self.run(operations.pause_queue(name, reason=reason, by=by))

    async def apause_queue(
        self, name: str, *, reason: str | None = None, by: str | None = None
    ) -> None:
        """Hold a queue; see `pause_queue`."""
        from pgtasks.db import operations

        _check_pause(reason, by)
        check_queue_name(name)
        await self.arun(operations.pause_queue(name, reason=reason, by=by))

    def resume_queue(self, name: str) -> bool:
        """Let a queue go on; False if it was not paused."""
        from pgtasks.db import operations

        return self.run(operations.resume_queue(name))

    async def aresume_queue(self, name: str) -> bool:
        """Let a queue go on; False if it was not paused."""
        from pgtasks.db import operations

        return await self.arun(operations.resume_queue(name))

    def limit_queue(
        self,
        name: str,
        *,
        max_running: int | EllipsisType | None = ...,
        rate: Rate | str | float | EllipsisType | None = ...,
        ageing: float | EllipsisType | None = ...,
        by: str | None = None,
    ) -> None:
        """Set limits of a queue for all workers; what is not said stays as it is, None takes a limit away.

        From now on they go before what code declares (``App(queues=…)``), all of them, until `reset_limits`. What
        runs already is left alone.

        Args:
            name: which queue; it may be one that nobody has used yet.
            max_running: see `Queue`.
            rate: see `Queue`.
            ageing: see `Queue`.
            by: who, for people.

        Raises:
            ConfigurationError: a limit is below 1, or is none; or nothing is said.
        """
        from pgtasks.db import operations

        limits, burst = _limits(name, max_running, rate, ageing, by)
        self.run(operations.limit_queue(name, limits, burst=burst, by=by))

    async def alimit_queue(
        self,
        name: str,
        *,
        max_running: int | EllipsisType | None = ...,
        rate: Rate | str | float | EllipsisType | None = ...,
        ageing: float | EllipsisType | None = ...,
        by: str | None = None,
    ) -> None:
        """Set limits of a queue for all workers; see `limit_queue`."""
        from pgtasks.db import operations

        limits, burst = _limits(name, max_running, rate, ageing, by)
        await self.arun(operations.limit_queue(name, limits, burst=burst, by=by))

    def reset_limits(self, name: str) -> bool:
        """Let the limits of a queue be those that code declares, or none; False if nobody had set any by hand."""
        from pgtasks.db import operations

        return self.run(operations.reset_limits(name))

    async def areset_limits(self, name: str) -> bool:
        """Let the limits of a queue be those that code declares, or none; False if nobody had set any by hand."""
        from pgtasks.db import operations

        return await self.arun(operations.reset_limits(name))

    def move_jobs(self, source: str, target: str, *, task: str | None = None) -> int:
        """Move every job of a queue that no worker has taken to another one, and return how many.

        They keep their ids and their order, and stand in line behind those that are there. Unique ones stay if
        another job has their key there. In batches: what was moved stays moved if this is interrupted.

        Args:
            source: from which queue.
            target: to which.
            task: only jobs of this task.
        """
        from pgtasks.db import operations

        check_move(source, target)
        moved, stay = 0, dict[str, str]()
        while True:
            batch = self.run(operations.move_jobs(source, target, task=task, without=stay))
            moved += len(batch.ids)
            stay |= batch.stay
            if not batch.ids and not batch.stay:
                return moved

    async def amove_jobs(self, source: str, target: str, *, task: str | None = None) -> int:
        """Move every job of a queue that no worker has taken to another one; see `move_jobs`."""
        from pgtasks.db import operations

        check_move(source, target)
        moved, stay = 0, dict[str, str]()
        while True:
            batch = await self.arun(operations.move_jobs(source, target, task=task, without=stay))
            moved += len(batch.ids)
            stay |= batch.stay
            if not batch.ids and not batch.stay:
                return moved

    def published_tasks(self) -> list[TaskInfo]:
        """Return the tasks that workers have published, and which are paused."""
        from pgtasks.db import operations

        return self.run(operations.list_tasks())

    async def apublished_tasks(self) -> list[TaskInfo]:
        """Return the tasks that workers have published, and which are paused."""
        from pgtasks.db import operations

        return await self.arun(operations.list_tasks())

    def pause_task(self, name: str, *, reason: str | None = None, by: str | None = None) -> None:
        """Hold a task: within a second no worker begins a job of it, until `resume_task`.

        What workers have claimed and not begun they give back, and what runs ends. Jobs that would stand at the
        head of their queue are parked meanwhile.

        Args:
            name: the task's name.
            reason: for people.
            by: who, for people.

        Raises:
            NotFoundError: no worker has published such a task.
        """
        from pgtasks.db import operations

        _check_pause(reason, by)
        self.run(operations.pause_task(name, reason=reason, by=by))

    async def apause_task(
        self, name: str, *, reason: str | None = None, by: str | None = None
    ) -> None:
        """Hold a task; see `pause_task`."""
        from pgtasks.db import operations

        _check_pause(reason, by)
        await self.arun(operations.pause_task(name, reason=reason, by=by))

    def resume_task(self, name: str) -> bool:
        """Let a task go on, and free what was parked of it; False if it was not paused."""
        from pgtasks.db import operations

        was_paused = self.run(operations.resume_task(name))
        while was_paused and self.run(operations.unpark_paused()) is not None:
            pass  # if this is interrupted, workers do the rest
        return was_paused

    async def aresume_task(self, name: str) -> bool:
        """Let a task go on, and free what was parked of it; False if it was not paused."""
        from pgtasks.db import operations

        was_paused = await self.arun(operations.resume_task(name))
        while was_paused and await self.arun(operations.unpark_paused()) is not None:
            pass  # if this is interrupted, workers do the rest
        return was_paused


def _check_pause(reason: object, by: object) -> None:
    if by is not None:
        check_label("by", by)
    if reason is not None and (not isinstance(reason, str) or len(reason) > MAX_REASON):
        raise ConfigurationError(
            f"the reason of a pause is for people to read: expected at most {MAX_REASON} characters, "
            f"found {reason!r:.200}"
        )


def check_move(source: str, target: str) -> None:
    """Raise ConfigurationError unless these are two names of queues."""
    check_queue_name(source)
    check_queue_name(target)
    if source == target:
        raise ConfigurationError(f"the jobs of queue {source!r} are there already: name another")


def _limits(
    name: str,
    max_running: int | EllipsisType | None,
    rate: Rate | str | float | EllipsisType | None,
    ageing: float | EllipsisType | None,
    by: str | None,
) -> tuple[dict[str, int | float | None], int | None]:
    """Return the limits that were said, checked, with the rate in a second; and its burst."""
    _check_pause(None, by)
    check_queue_name(name)
    limits: dict[str, int | float | None] = {}
    burst = None
    if not isinstance(max_running, EllipsisType):
        check_max_running(max_running)
        limits["max_running"] = max_running
    if not isinstance(rate, EllipsisType):
        bucket = None if rate is None else parse_rate(rate)
        limits["rate"], burst = (bucket.per_second, bucket.tokens) if bucket else (None, None)
    if not isinstance(ageing, EllipsisType):
        check_ageing(ageing)
        limits["ageing"] = ageing
    if not limits:
        raise ConfigurationError(
            f"no limit was said for queue {name!r}: expected max_running, rate or ageing"
        )
    return limits, burst
