"""The handle on one job that was enqueued: `AsyncResult`; on several of them: `pgtasks.result_set`.

A handle holds an id and asks the database. ``get()`` looks, registers a listener, looks, then waits: it
wakes by notification, and polls beneath it, since a notification may be lost. A handle keeps no
outcome, since an operator may start a finished job again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pgtasks import codec
from pgtasks.context import current_app
from pgtasks.errors import NotFoundError
from pgtasks.failure import rebuild_error
from pgtasks.job import Job, JobState, NewJob
from pgtasks.result_tree import JobNode, ResultBase, result_from_tuple
from pgtasks.waiting import allow_join_result, await_, refuse_inside_task, wait

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome
    from pgtasks.result_tree import Node

__all__ = ["AsyncResult", "ResultBase", "allow_join_result", "result_from_tuple"]

R = TypeVar("R", covariant=True)


class AsyncResult(JobNode, Generic[R]):
    """A handle on one job.

    Args:
        id: the job's id.
        app: the app whose database holds it; None: the current app.
        task_name: the task's name, if known: its return annotation rebuilds the result.
        parent: what it came after in its chain, if known; else the database is asked.
        ignored: no result is kept of it, so that ``get()`` gives None at once.

    Attributes:
        created: False if the call made no job, for one has its unique key: this is the handle on that one.
    """

    created: bool = True

    def __init__(
        self,
        id: str,
        app: App | None = None,
        task_name: str | None = None,
        parent: Node | None = None,
        *,
        ignored: bool = False,
    ) -> None:
        self.id = id
        self.app = app or self._default_app or current_app()
        self.task_name = task_name
        self.ignored = ignored
        if parent is not None:
            self.parent = parent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def __str__(self) -> str:
        return self.id

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

        While the job runs, its own word if it has one: see `Task.update_state`.

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
    def info(self) -> Any:
        """Celery's other name for `result`; before that, what the running job says of its progress.

        The meta of ``self.update_state(…, meta=…)``, else a `Progress`, else None.
        """
        return self._info(self._look())

    async def ainfo(self) -> Any:
        """Return `info`."""
        return self._info(await self._alook())

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
        """Whether the job failed, or did not run since what it waited for failed."""
        return celery_state(self._look()) == "FAILURE"

    async def afailed(self) -> bool:
        """Whether the job failed."""
        return celery_state(await self._alook()) == "FAILURE"

    def exists(self) -> bool:
        """Whether there is such a job, and something is kept of it."""
        from pgtasks.db import operations

        return bool(self.app.run(operations.get_states([self.id])))

    async def aexists(self) -> bool:
        """Whether there is such a job, and something is kept of it."""
        from pgtasks.db import operations

        return bool(await self.app.arun(operations.get_states([self.id])))

    # The rest of its row: each asks for all of it, so take job() for several

    def job(self) -> Job:
        """Return the row, with our own states."""
        return self.app.job(self.id)

    async def ajob(self) -> Job:
        """Return the row, with our own states."""
        return await self.app.ajob(self.id)

    @property
    def name(self) -> str:
        """The name of its task; await ``ajob()`` for this and the following."""
        return self.task_name or self.job().task

    @property
    def args(self) -> list[Any]:
        """The positional arguments of its own, without what it took from what it waited for."""
        return self.job().args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self.job().kwargs

    @property
    def queue(self) -> str:
        """The queue that it is or was in."""
        return self.job().queue

    @property
    def worker(self) -> int | None:
        """The number of the worker that has it or had it last; see `App.workers`."""
        return self.job().worker_id

    @property
    def retries(self) -> int:
        """How often it was tried again."""
        job = self.job()
        return max(0, job.attempt - 1 - job.crashes)

    @property
    def date_done(self) -> datetime | None:
        """When it finished, or None."""
        return self.job().stopped_at

    # Waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        *,
        follow_parents: bool = True,
        callback: Callable[[str, R], object] | None = None,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait until the job is finished and return its result; None at once if that is `ignored`.

        Args:
            timeout: how long to wait, in seconds; None: as long as it takes.
            propagate: raise what the job ended with; False returns the exception instead.
            interval: Celery's, without meaning here: notifications wake.
            follow_parents: Celery's, without meaning here: a job whose parent failed ends in the same
                moment, with the parent's error.
            callback: called with the id and the value before it is returned.
            on_message: Celery's, without meaning here.
            disable_sync_subtasks: refuse to wait inside of a task, where it may block the very
                child that the job needs; see also `allow_join_result`.

        Raises:
            ResultTimeoutError: the time is over.
            NotFoundError: there is no such job.
            JobFailedError: it failed, was cancelled or expired; the original exception instead if
                that is a built-in one, or one that the app knows.
            RuntimeError: called inside of a task.
        """
        if self.ignored:
            return cast("R", None)
        refuse_inside_task(disable_sync_subtasks)
        outcome = wait(self.app, self.id, self._finished, timeout, f"job {self.id} is")
        return self._give(outcome, propagate, callback)

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        *,
        follow_parents: bool = True,
        callback: Callable[[str, R], object] | None = None,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait until the job is finished and return its result; see `get`."""
        if self.ignored:
            return cast("R", None)
        refuse_inside_task(disable_sync_subtasks)
        outcome = await await_(self.app, self.id, self._afinished, timeout, f"job {self.id} is")
        return self._give(outcome, propagate, callback)

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, R], object] | None = None
    ) -> R:
        """Raise what the job ended with, if it is finished without success; else return the result.

        Args:
            propagate: False returns the exception instead.
            callback: called with the id and the value before it is returned.

        Of a job that is not finished the value is None.
        """
        return self._give(self._look(), propagate, callback)

    async def amaybe_throw(
        self, propagate: bool = True, callback: Callable[[str, R], object] | None = None
    ) -> R:
        """Raise what the job ended with, if it is finished without success; see `maybe_throw`."""
        return self._give(await self._alook(), propagate, callback)

    # Changing it

    def forget(self) -> None:
        """Drop the stored result; the job stays.

        Once it is finished, also the results of what came before it in its chain, which it has taken.
        """
        for node in self._spent():
            node._drop()

    async def aforget(self) -> None:
        """Drop the stored result; see `forget`."""
        async for node in self._aspent():
            await node._adrop()

    def _drop_known(self) -> None:
        """Drop what is known without the database."""

    def _drop(self) -> None:
        from pgtasks.db import operations

        self.app.run(operations.forget_results([self.id]))

    async def _adrop(self) -> None:
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

    def _give(
        self,
        outcome: StoredOutcome,
        propagate: bool,
        callback: Callable[[str, R], object] | None = None,
    ) -> R:
        value = self._value_or_error(outcome)
        if propagate and isinstance(value, BaseException) and not _succeeded(outcome):
            raise value
        if callback is not None:
            callback(self.id, cast("R", value))
        return cast("R", value)

    def _info(self, outcome: StoredOutcome) -> Any:
        if outcome.state.finished:
            return self._value_or_error(outcome)
        return outcome.progress.info if outcome.progress else None

    def _known_outcome(self) -> StoredOutcome | None:
        """Return how the job ended, if that needs no database."""
        return None

    def _value_or_error(self, outcome: StoredOutcome) -> R | BaseException | None:
        if not outcome.state.finished:
            return None
        if _succeeded(outcome):
            return cast("R", read_result(self.app, self.task_name, outcome.result))
        return rebuild_error(self.app, self.id, outcome.state, outcome.error)


def celery_state(outcome: StoredOutcome) -> str:
    """Return Celery's word for where a job is."""
    if outcome.state is JobState.CANCELLED and outcome.error and outcome.error.dependency:
        return "FAILURE"  # it did not run since what it waited for failed
    if outcome.progress is not None and outcome.progress.state is not None:
        return outcome.progress.state
    return outcome.state.celery(outcome.attempt)


def read_result(app: App, task_name: str | None, text: str | None) -> Any:
    """Decode a stored result, and rebuild it as the task's annotated return type."""
    if text is None:
        return None
    value = codec.decode(text, "result")
    task = app.tasks.get(task_name) if task_name else None
    return task.parameters.convert_result(value) if task else value


def result_of(app: App, job: NewJob, holder: str | None = None) -> AsyncResult[Any]:
    """Return the handle on a job that was written; or on another, which has its unique key."""
    task = app.tasks.get(job.task)
    ignored = task is not None and task.options.ignore_result
    if job.options is not None:
        ignored = codec.decode(job.options, "options").get("ignore_result", ignored)
    result: AsyncResult[Any] = AsyncResult(holder or job.id, app, job.task, ignored=ignored)
    if holder is not None:
        result.created = False
    return result


def _succeeded(outcome: StoredOutcome) -> bool:
    return outcome.state is JobState.SUCCEEDED


def _known(outcomes: dict[str, StoredOutcome], id: str) -> StoredOutcome:
    try:
        return outcomes[id]
    except KeyError:
        raise NotFoundError(
            f"no job has the id {id}: it was never enqueued, or its history is gone"
        ) from None


def _traceback(outcome: StoredOutcome) -> str | None:
    return outcome.error.traceback if outcome.error else None
