"""Handles on what was enqueued: `AsyncResult` for a job, `GroupResult` for a bundle.

A handle holds an id and asks the database. ``get()`` registers a listener, looks, then waits: it wakes
by notification, and polls beneath it, since a notification may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pgtasks import codec
from pgtasks.context import current_request
from pgtasks.errors import NotFoundError
from pgtasks.failure import rebuild_error
from pgtasks.job import Bundle, Job, JobState
from pgtasks.waiting import await_, wait

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome

R = TypeVar("R")


class AsyncResult(Generic[R]):
    """A handle on one job.

    Args:
        id: the job's id.
        app: the app whose database holds it.
        task_name: the task's name, if known: its return annotation rebuilds the result.
    """

    def __init__(self, id: str, app: App, task_name: str | None = None) -> None:
        self.id = id
        self.app = app
        self.task_name = task_name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def task_id(self) -> str:
        """Celery's name for `id`."""
        return self.id

    # What it is now

    @property
    def state(self) -> str:
        """Celery's word: PENDING, STARTED, RETRY, SUCCESS, FAILURE or REVOKED.

        Raises:
            NotFoundError: there is no such job.
        """
        return celery_state(self._look())

    async def astate(self) -> str:
        """Return `state`."""
        return celery_state(await self._alook())

    @property
    def status(self) -> str:
        """Celery's other name for `state`."""
        return self.state

    @property
    def result(self) -> R | BaseException | None:
        """What the job returned, the exception it ended with, or None while it has not ended."""
        return self._value_or_error(self._look())

    async def aresult(self) -> R | BaseException | None:
        """Return `result`."""
        return self._value_or_error(await self._alook())

    @property
    def info(self) -> R | BaseException | None:
        """Celery's other name for `result`."""
        return self.result

    @property
    def traceback(self) -> str | None:
        """The worker's traceback as text, or None."""
        return _traceback(self._look())

    async def atraceback(self) -> str | None:
        """Return `traceback`."""
        return _traceback(await self._alook())

    def ready(self) -> bool:
        """Whether the job is finished."""
        return self._look().state.finished

    async def aready(self) -> bool:
        """Whether the job is finished."""
        return (await self._alook()).state.finished

    def successful(self) -> bool:
        """Whether the job succeeded."""
        return self._look().state is JobState.SUCCEEDED

    async def asuccessful(self) -> bool:
        """Whether the job succeeded."""
        return (await self._alook()).state is JobState.SUCCEEDED

    def failed(self) -> bool:
        """Whether the job failed."""
        return celery_state(self._look()) == "FAILURE"

    async def afailed(self) -> bool:
        """Whether the job failed."""
        return celery_state(await self._alook()) == "FAILURE"

    def job(self) -> Job:
        """Return the row, with our own states."""
        return self.app.job(self.id)

    async def ajob(self) -> Job:
        """Return the row, with our own states."""
        return await self.app.ajob(self.id)

    # Waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait until the job is finished and return its result.

        Args:
            timeout: how long to wait, in seconds; None: as long as it takes.
            propagate: raise what the job ended with; False returns the exception instead.
            disable_sync_subtasks: refuse to wait inside of a task, where it may block the very
                child that the job needs.

        Raises:
            ResultTimeoutError: the time is over.
            NotFoundError: there is no such job.
            JobFailedError: it failed, was cancelled or expired; the original exception instead if
                that is a built-in one, or one that the app knows.
            RuntimeError: called inside of a task.
        """
        _refuse_inside_task(disable_sync_subtasks)
        outcome = wait(self.app, {self.id}, self._finished, timeout, f"job {self.id}")
        return self._give(outcome, propagate)

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait until the job is finished and return its result; see `get`."""
        _refuse_inside_task(disable_sync_subtasks)
        outcome = await await_(self.app, {self.id}, self._afinished, timeout, f"job {self.id}")
        return self._give(outcome, propagate)

    # Changing it

    def forget(self) -> None:
        """Drop the stored result; the job stays."""
        from pgtasks.db import operations

        self.app.run(operations.forget_results([self.id]))

    async def aforget(self) -> None:
        """Drop the stored result; the job stays."""
        from pgtasks.db import operations

        await self.app.arun(operations.forget_results([self.id]))

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel the job, at once if it waits.

        Args:
            terminate: stop it if it runs: `Cancelled` is raised in the task, and after the worker's grace
                its process is killed. False lets it go on: a success still counts, a retry does not.
            signal: Celery's, without meaning here: the worker chooses.
            wait: Celery's, without meaning here: when this returns the request is stored.
            timeout: Celery's, for ``wait``.
        """
        self.app.cancel(self.id, terminate=terminate)

    async def arevoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel the job, at once if it waits; see `revoke`."""
        await self.app.acancel(self.id, terminate=terminate)

    # How it asks

    def _look(self) -> StoredOutcome:
        from pgtasks.db import operations

        return _known(self.app.run(operations.get_outcomes([self.id])), self.id)

    async def _alook(self) -> StoredOutcome:
        from pgtasks.db import operations

        return _known(await self.app.arun(operations.get_outcomes([self.id])), self.id)

    def _finished(self) -> StoredOutcome | None:
        outcome = self._look()
        return outcome if outcome.state.finished else None

    async def _afinished(self) -> StoredOutcome | None:
        outcome = await self._alook()
        return outcome if outcome.state.finished else None

    def _give(self, outcome: StoredOutcome, propagate: bool) -> R:
        value = self._value_or_error(outcome)
        if propagate and outcome.state is not JobState.SUCCEEDED:
            raise cast("BaseException", value)
        return cast("R", value)

    def _value_or_error(self, outcome: StoredOutcome) -> R | BaseException | None:
        if not outcome.state.finished:
            return None
        if outcome.state is JobState.SUCCEEDED:
            return cast("R", read_result(self.app, self.task_name, outcome.result))
        return rebuild_error(self.app, self.id, outcome.state, outcome.error)


class GroupResult(Generic[R]):
    """A handle on a bundle: the results of a group, in the order of its signatures.

    Args:
        id: the bundle's id.
        app: the app whose database holds it.
        results: handles on the members, in order; None: asked for when needed.
    """

    def __init__(self, id: str, app: App, results: Sequence[AsyncResult[R]] | None = None) -> None:
        self.id = id
        self.app = app
        self._results = None if results is None else list(results)

    def __repr__(self) -> str:
        return f"<GroupResult {self.id}>"

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.results[index]

    @property
    def results(self) -> list[AsyncResult[R]]:
        """Handles on the members, in order."""
        if self._results is None:
            from pgtasks.db import operations

            ids = self.app.run(operations.get_bundle_members(self.id))
            self._results = [AsyncResult(id, self.app) for id in ids]
        return self._results

    async def aresults(self) -> list[AsyncResult[R]]:
        """Return `results`."""
        if self._results is None:
            from pgtasks.db import operations

            ids = await self.app.arun(operations.get_bundle_members(self.id))
            self._results = [AsyncResult(id, self.app) for id in ids]
        return self._results

    def bundle(self) -> Bundle:
        """Return the bundle's row."""
        return self.app.bundle(self.id)

    async def abundle(self) -> Bundle:
        """Return the bundle's row."""
        return await self.app.abundle(self.id)

    def ready(self) -> bool:
        """Whether every member is finished."""
        return self.bundle().stopped_at is not None

    async def aready(self) -> bool:
        """Whether every member is finished."""
        return (await self.abundle()).stopped_at is not None

    def successful(self) -> bool:
        """Whether every member succeeded."""
        return self.bundle().state == "succeeded"

    async def asuccessful(self) -> bool:
        """Whether every member succeeded."""
        return (await self.abundle()).state == "succeeded"

    def failed(self) -> bool:
        """Whether a member ended without success."""
        return self.bundle().failed > 0

    async def afailed(self) -> bool:
        """Whether a member ended without success."""
        return (await self.abundle()).failed > 0

    def waiting(self) -> bool:
        """Whether a member is not finished."""
        return not self.ready()

    async def awaiting(self) -> bool:
        """Whether a member is not finished."""
        return not await self.aready()

    def completed_count(self) -> int:
        """Return how many members succeeded."""
        bundle = self.bundle()
        return bundle.total - bundle.remaining - bundle.failed

    async def acompleted_count(self) -> int:
        """Return how many members succeeded."""
        bundle = await self.abundle()
        return bundle.total - bundle.remaining - bundle.failed

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for every member and return the results in order.

        Args:
            timeout: how long to wait for all, in seconds.
            propagate: raise what the first failed member (in order) ended with; False puts the
                exceptions into the list.
            disable_sync_subtasks: refuse to wait inside of a task.

        Raises:
            ResultTimeoutError: the time is over.
            NotFoundError: there is no such bundle.
        """
        from pgtasks.db import operations

        _refuse_inside_task(disable_sync_subtasks)
        wait(
            self.app,
            {self.id},
            lambda: True if self.ready() else None,
            timeout,
            f"bundle {self.id}",
        )
        results = self.results
        outcomes = self.app.run(operations.get_outcomes([one.id for one in results]))
        return self._give(results, outcomes, propagate)

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for every member and return the results in order; see `get`."""
        from pgtasks.db import operations

        async def look() -> bool | None:
            return True if await self.aready() else None

        _refuse_inside_task(disable_sync_subtasks)
        await await_(self.app, {self.id}, look, timeout, f"bundle {self.id}")
        results = await self.aresults()
        outcomes = await self.app.arun(operations.get_outcomes([one.id for one in results]))
        return self._give(results, outcomes, propagate)

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel every member that is not finished; the parameters are those of `AsyncResult.revoke`."""
        self.app.cancel_bundle(self.id, terminate=terminate)

    async def arevoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel every member that is not finished; see `revoke`."""
        await self.app.acancel_bundle(self.id, terminate=terminate)

    def _give(
        self, results: Sequence[AsyncResult[R]], outcomes: dict[str, StoredOutcome], propagate: bool
    ) -> list[R]:
        # A member of which nothing is kept gives None.
        return [
            one._give(outcomes[one.id], propagate) if one.id in outcomes else cast("R", None)
            for one in results
        ]


def celery_state(outcome: StoredOutcome) -> str:
    """Return Celery's word for where a job is."""
    return outcome.state.celery(outcome.attempt)


def read_result(app: App, task_name: str | None, text: str | None) -> Any:
    """Decode a stored result, and rebuild it as the task's annotated return type."""
    if text is None:
        return None
    value = codec.decode(text, "result")
    task = app.tasks.get(task_name) if task_name else None
    return task.parameters.convert_result(value) if task else value


def _known(outcomes: dict[str, StoredOutcome], id: str) -> StoredOutcome:
    try:
        return outcomes[id]
    except KeyError:
        raise NotFoundError(
            f"no job has the id {id}: it was never enqueued, or its history is gone"
        ) from None


def _traceback(outcome: StoredOutcome) -> str | None:
    return outcome.error.traceback if outcome.error else None


def _refuse_inside_task(refuse: bool) -> None:
    if refuse and current_request() is not None:
        raise RuntimeError(
            "get() inside of a task may wait for ever, since the job may need this very child: "
            "use a callback, or say disable_sync_subtasks=False"
        )
