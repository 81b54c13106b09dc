"""Management of jobs and bundles: look, reset, cancel, delete; each also asynchronous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pgtasks.errors import ConfigurationError
from pgtasks.group_result import GroupResult
from pgtasks.ids import parse_id
from pgtasks.job import Bundle, Job, JobFilter, JobState, Status, WorkerInfo
from pgtasks.options import check_priority, check_queue_name
from pgtasks.queue_management import QueueManagement
from pgtasks.result import AsyncResult
from pgtasks.result_set import ResultSet
from pgtasks.result_tree import ResultBase
from pgtasks.task import aware, seconds

if TYPE_CHECKING:
    from pgtasks.app import App

B = TypeVar("B", bound=ResultBase)
Ids = str | AsyncResult[Any]


class Keep(Enum):
    """Stands for what is not said, where None means something."""

    KEEP = "as it is"


KEEP = Keep.KEEP


class Management(QueueManagement):
    """The operations of an app on what is in the database; the app says how they are run."""

    # Jobs

    def result(self, id: str) -> AsyncResult[Any]:
        """Return a handle on a job; whether it exists is asked when it is used."""
        return AsyncResult(parse_id(id), cast("App", self))

    def job(self, id: Ids) -> Job:
        """Return a job's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return self.run(operations.get_job(_id(id)))

    async def ajob(self, id: Ids) -> Job:
        """Return a job's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return await self.arun(operations.get_job(_id(id)))

    def jobs(self, *states: JobState | str, **conditions: Any) -> list[Job]:
        """Return the jobs that fit, newest first.

        Args:
            states: any of these; none: all.
            conditions: see `JobFilter`.
        """
        from pgtasks.db import operations

        return self.run(operations.list_jobs(_filter(states, conditions)))

    async def ajobs(self, *states: JobState | str, **conditions: Any) -> list[Job]:
        """Return the jobs that fit, newest first; see `jobs`."""
        from pgtasks.db import operations

        return await self.arun(operations.list_jobs(_filter(states, conditions)))

    def graph(self, id: Ids) -> list[Job]:
        """Return all jobs of the graph that a job belongs to, oldest first: itself, too.

        A graph is what was enqueued as one canvas, and all that its jobs enqueued and were replaced by. A job
        waits for ``after_bundle_id``, which is the ``bundle_id`` of others; `bundles` with ``ids`` has the rows.

        Raises:
            NotFoundError: there is no such job.
        """
        from pgtasks.db import operations

        return self.run(operations.get_graph(_id(id)))

    async def agraph(self, id: Ids) -> list[Job]:
        """Return all jobs of the graph that a job belongs to, oldest first; see `graph`."""
        from pgtasks.db import operations

        return await self.arun(operations.get_graph(_id(id)))

    def status(self) -> Status:
        """Count jobs and bundles by state."""
        from pgtasks.db import operations

        return self.run(operations.get_status())

    async def astatus(self) -> Status:
        """Count jobs and bundles by state."""
        from pgtasks.db import operations

        return await self.arun(operations.get_status())

    def workers(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        from pgtasks.db import operations

        return self.run(operations.list_workers())

    async def aworkers(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        from pgtasks.db import operations

        return await self.arun(operations.list_workers())

    def reset(self, id: Ids) -> None:
        """Start a finished job again, from its first attempt; its bundle counts it in again.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: it is not finished.
        """
        from pgtasks.db import operations

        self.run(operations.reset_job(_id(id)))

    async def areset(self, id: Ids) -> None:
        """Start a finished job again, from its first attempt; see `reset`."""
        from pgtasks.db import operations

        await self.arun(operations.reset_job(_id(id)))

    def reset_many(self, ids: Iterable[Ids]) -> list[str]:
        """Start finished jobs again and return which; the others are left alone."""
        from pgtasks.db import operations

        return self.run(operations.reset_jobs([_id(id) for id in ids]))

    async def areset_many(self, ids: Iterable[Ids]) -> list[str]:
        """Start finished jobs again and return which; the others are left alone."""
        from pgtasks.db import operations

        return await self.arun(operations.reset_jobs([_id(id) for id in ids]))

    def reschedule(
        self,
        id: Ids,
        *,
        start_at: datetime | timedelta | float | Keep | None = KEEP,
        priority: int | Keep = KEEP,
        queue: str | Keep = KEEP,
    ) -> JobState:
        """Give a job that waits another time, priority or queue; returns the state that it is in then.

        What is not said stays. Its unique key goes to the new queue with it. Of a job that waits for others it is the
        earliest time after these; one that is held back (parked) stays so, unless its time lies ahead.

        Args:
            id: which job.
            start_at: an aware datetime; or a timedelta, or seconds, from now; what is past, or None, is now.
            priority: higher runs first.
            queue: where it goes.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: a worker has it, or it is finished; or another job has its unique key in the new queue.
        """
        from pgtasks.db import operations

        return self.run(operations.reschedule_job(_id(id), **_new_place(start_at, priority, queue)))

    async def areschedule(
        self,
        id: Ids,
        *,
        start_at: datetime | timedelta | float | Keep | None = KEEP,
        priority: int | Keep = KEEP,
        queue: str | Keep = KEEP,
    ) -> JobState:
        """Give a job that waits another time, priority or queue; see `reschedule`."""
        from pgtasks.db import operations

        place = _new_place(start_at, priority, queue)
        return await self.arun(operations.reschedule_job(_id(id), **place))

    def cancel(
        self, *ids: Ids, terminate: bool = True
    ) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel jobs: waiting ones at once, running ones through their worker.

        Args:
            ids: which jobs.
            terminate: stop a running one: `Cancelled` is raised in the task, and after the worker's
                grace its process is killed. False lets it go on: a success still counts, a retry does not.

        Returns what was done, by id; finished and unknown jobs are absent.
        """
        from pgtasks.db import operations

        return self.run(operations.cancel_jobs([_id(id) for id in ids], terminate=terminate))

    async def acancel(
        self, *ids: Ids, terminate: bool = True
    ) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel jobs; see `cancel`."""
        from pgtasks.db import operations

        return await self.arun(operations.cancel_jobs([_id(id) for id in ids], terminate=terminate))

    def delete(self, *ids: Ids) -> list[str]:
        """Delete jobs and return which: waiting ones are cancelled first, running ones stay."""
        from pgtasks.db import operations

        return self.run(operations.delete_jobs([_id(id) for id in ids]))

    async def adelete(self, *ids: Ids) -> list[str]:
        """Delete jobs and return which; see `delete`."""
        from pgtasks.db import operations

        return await self.arun(operations.delete_jobs([_id(id) for id in ids]))

    def delete_finished_jobs(self, *states: JobState | str, **conditions: Any) -> int:
        """Delete finished jobs that fit, in batches, and return how many; never members of open bundles.

        Args:
            states: any of these finished states; none: all of them.
            conditions: ``task``, ``queue``, ``origin``, ``stopped_before`` (an aware datetime).
        """
        from pgtasks.db import operations

        deleted = 0
        while True:
            batch = self.run(operations.delete_history(states=_states(states), **conditions))
            deleted += batch
            if batch < operations.BATCH:
                return deleted

    async def adelete_finished_jobs(self, *states: JobState | str, **conditions: Any) -> int:
        """Delete finished jobs that fit, in batches, and return how many; see `delete_finished_jobs`."""
        from pgtasks.db import operations

        deleted = 0
        while True:
            batch = await self.arun(operations.delete_history(states=_states(states), **conditions))
            deleted += batch
            if batch < operations.BATCH:
                return deleted

    def purge(self, *queues: str) -> int:
        """Cancel every job of these queues that no worker has taken, and return how many."""
        from pgtasks.db import operations

        cancelled = 0
        while True:
            ids = self.run(operations.list_waiting_ids(queues))
            gone = self.run(operations.cancel_waiting_jobs(ids, "purged")) if ids else []
            cancelled += len(gone)
            if not gone:
                return cancelled

    async def apurge(self, *queues: str) -> int:
        """Cancel every job of these queues that no worker has taken, and return how many."""
        from pgtasks.db import operations

        cancelled = 0
        while True:
            ids = await self.arun(operations.list_waiting_ids(queues))
            gone = await self.arun(operations.cancel_waiting_jobs(ids, "purged")) if ids else []
            cancelled += len(gone)
            if not gone:
                return cancelled

    # Bundles

    def group_result(self, id: str) -> GroupResult[Any]:
        """Return a handle on a bundle; whether it exists is asked when it is used."""
        return GroupResult(parse_id(id), cast("App", self))

    def bundle(self, id: str) -> Bundle:
        """Return a bundle's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return self.run(operations.get_bundle(parse_id(id)))

    async def abundle(self, id: str) -> Bundle:
        """Return a bundle's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return await self.arun(operations.get_bundle(parse_id(id)))

    def bundles(self, **conditions: Any) -> list[Bundle]:
        """Return the bundles that fit, newest first.

        Args:
            conditions: ``type``, ``origin``, ``stopped`` (a bool), ``failed`` (a bool),
                ``created_before``, ``before_id``, ``limit``; ``ids``, by which steps are found, too.
        """
        from pgtasks.db import operations

        return self.run(operations.list_bundles(**conditions))

    async def abundles(self, **conditions: Any) -> list[Bundle]:
        """Return the bundles that fit, newest first; see `bundles`."""
        from pgtasks.db import operations

        return await self.arun(operations.list_bundles(**conditions))

    def reset_bundle(self, id: str) -> list[str]:
        """Start all finished members of a bundle again; returns their ids."""
        from pgtasks.db import operations

        return self.run(operations.reset_bundles([parse_id(id)]))

    async def areset_bundle(self, id: str) -> list[str]:
        """Start all finished members of a bundle again; see `reset_bundle`."""
        from pgtasks.db import operations

        return await self.arun(operations.reset_bundles([parse_id(id)]))

    def retry_failed(self, bundle_id: str) -> list[str]:
        """Start a failed graph again from where it broke; returns the ids of the jobs that are ready again.

        What failed in the bundle or before it is ready; what did not run because of that waits again, there and in
        all that follows, and so does what somebody cancelled while it waited, in the bundle, or for it and in no bundle
        itself. What succeeded is left alone.

        Callbacks for failure wait again with what they are for, and all that follows them, however it ended: where one
        put something in its place, that is called. What of them runs at this moment, retried by itself, runs on. (Of
        these callbacks themselves a ``link_error`` that was not needed is gone: if one succeeded and now fails, nothing
        is called for it. And what they added to a group of theirs, by ``add_to_chord``, stays there, and is added
        again.)
        """
        from pgtasks.db import operations

        return self.run(operations.retry_failed([parse_id(bundle_id)]))

    async def aretry_failed(self, bundle_id: str) -> list[str]:
        """Start a failed graph again from where it broke; see `retry_failed`."""
        from pgtasks.db import operations

        return await self.arun(operations.retry_failed([parse_id(bundle_id)]))

    def cancel_bundle(
        self, id: str, *, terminate: bool = True
    ) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel the members of a bundle that are not finished; see `cancel`."""
        from pgtasks.db import operations

        return self.run(operations.cancel_bundles([parse_id(id)], terminate=terminate))

    async def acancel_bundle(
        self, id: str, *, terminate: bool = True
    ) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel the members of a bundle that are not finished; see `cancel`."""
        from pgtasks.db import operations

        return await self.arun(operations.cancel_bundles([parse_id(id)], terminate=terminate))

    def delete_bundle(self, id: str) -> bool:
        """Delete a stopped bundle and its members; False if it is open or unknown."""
        from pgtasks.db import operations

        return bool(self.run(operations.delete_bundles([parse_id(id)])))

    async def adelete_bundle(self, id: str) -> bool:
        """Delete a stopped bundle and its members; False if it is open or unknown."""
        from pgtasks.db import operations

        return bool(await self.arun(operations.delete_bundles([parse_id(id)])))

    def delete_finished_bundles(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        stopped_before: datetime | None = None,
    ) -> int:
        """Delete stopped bundles that fit, with their members, and return how many."""
        from pgtasks.db import operations

        deleted = 0
        while ids := self.run(
            operations.list_stopped_bundles(type=type, origin=origin, stopped_before=stopped_before)
        ):
            deleted += len(self.run(operations.delete_bundles(ids)))
        return deleted

    async def adelete_finished_bundles(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        stopped_before: datetime | None = None,
    ) -> int:
        """Delete stopped bundles that fit, with their members, and return how many."""
        from pgtasks.db import operations

        deleted = 0
        while ids := await self.arun(
            operations.list_stopped_bundles(type=type, origin=origin, stopped_before=stopped_before)
        ):
            deleted += len(await self.arun(operations.delete_bundles(ids)))
        return deleted

    # At the end, since from here on these names stand for the properties

    @cached_property
    def AsyncResult(self) -> type[AsyncResult[Any]]:  # noqa: N802 (Celery's name)
        """The class `AsyncResult` with this app for its own: ``app.AsyncResult(id)``."""
        return self._bound(AsyncResult)

    @cached_property
    def ResultSet(self) -> type[ResultSet[Any]]:  # noqa: N802 (Celery's name)
        """The class `ResultSet` with this app for its own: ``app.ResultSet(results)``."""
        return self._bound(ResultSet)

    @cached_property
    def GroupResult(self) -> type[GroupResult[Any]]:  # noqa: N802 (Celery's name)
        """The class `GroupResult` with this app for its own: ``app.GroupResult.restore(id)``."""
        return self._bound(GroupResult)

    def _bound(self, cls: type[B]) -> type[B]:
        return type(cls.__name__, (cls,), {"_default_app": self, "__module__": cls.__module__})


def _id(id: Ids) -> str:
    return id.id if isinstance(id, AsyncResult) else parse_id(id)


def _filter(states: Sequence[JobState | str], conditions: Mapping[str, Any]) -> JobFilter:
    return JobFilter(states=_states(states), **conditions)


def _states(states: Sequence[JobState | str]) -> list[JobState] | None:
    return [JobState(state) for state in states] if states else None


def _new_place(
    start_at: datetime | timedelta | float | Keep | None, priority: int | Keep, queue: str | Keep
) -> dict[str, Any]:
    """Return the parameters of `pgtasks.db.operations.reschedule_job`.

    Raises:
        ConfigurationError: nothing is said, or something is not what it should be.
    """
    if start_at is KEEP and priority is KEEP and queue is KEEP:
        raise ConfigurationError(
            "expected start_at, priority or queue, found none: say what is to change"
        )
    place: dict[str, Any] = dict.fromkeys(("start_at", "delay", "priority", "queue"))
    place["now"] = start_at is None
    if isinstance(start_at, datetime):
        place["start_at"] = aware("start_at", start_at)
    elif start_at is not None and start_at is not KEEP:
        place["delay"] = max(0.0, seconds("start_at", start_at))
    if priority is not KEEP:
        check_priority(priority)
        place["priority"] = priority
    if queue is not KEEP:
        check_queue_name(queue)
        place["queue"] = queue
    return place
