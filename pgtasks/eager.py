"""The results of jobs that ran at once in the caller: all is known, and no database is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pgtasks.context import current_request
from pgtasks.failure import rebuild_error
from pgtasks.group_result import GroupResult
from pgtasks.job import Bundle, Job, JobError, JobState
from pgtasks.progress import Progress
from pgtasks.result import AsyncResult
from pgtasks.waiting import refuse_inside_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome
    from pgtasks.result_tree import Node

R = TypeVar("R", covariant=True)
M = TypeVar("M")


class EagerResult(AsyncResult[R]):
    """The result of a job that ran at once in the caller: all is known, and no database is asked.

    Args:
        id: the job's id.
        app: the app that it ran in.
        task_name: the task's name.
        state: how it ended.
        value: what it returned.
        error: what it raised.
        attempt: how often it was tried.
        text: the result as it would be stored.
        job: the job as it would stand in the database; None: of what the others say.
        parent: what it came after in its chain.
        children: what it enqueued, and what followed it.
        progress: what it said last of how far it was.
    """

    def __init__(
        self,
        id: str,
        app: App,
        task_name: str,
        *,
        state: JobState,
        value: R | None,
        error: JobError | None,
        attempt: int,
        text: str | None = None,
        job: Job | None = None,
        parent: Node | None = None,
        children: Sequence[Node] = (),
        progress: Progress | None = None,
    ) -> None:
        super().__init__(id, app, task_name)
        self._state = state
        self._value = value
        self._error = error
        self._attempt = attempt
        self._job = job
        self._children = list(children)
        self.parent = parent
        self.progress = progress or Progress(job_id=id)
        self.text = text

    @property
    def job_state(self) -> JobState:
        """Where the job would be."""
        return self._state

    @property
    def error_info(self) -> JobError | None:
        """What would be stored of its error."""
        return self._error

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
        """Return the result, or raise what the job ended with; refused in an eager job as it is in a worker."""
        request = current_request()
        refuse_inside_task(disable_sync_subtasks and request is not None and request.is_eager)
        return self._give(self._look(), propagate, callback)

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
        """Return the result, or raise what the job ended with; see `get`."""
        return self.get(
            timeout,
            propagate,
            callback=callback,
            disable_sync_subtasks=disable_sync_subtasks,
        )

    def exists(self) -> bool:
        """Whether there was such a job: yes."""
        return True

    async def aexists(self) -> bool:
        """Whether there was such a job: yes."""
        return True

    def job(self) -> Job:
        """Return the job as it would stand in the database."""
        if self._job is None:
            now = datetime.now(UTC)
            self._job = Job(
                id=self.id,
                task=self.name,
                queue="default",
                state=self._state,
                attempt=self._attempt,
                created_at=now,
                stopped_at=now,
                error=self._error,
            )
        return self._job

    async def ajob(self) -> Job:
        """Return the job as it would stand in the database."""
        return self.job()

    @property
    def children(self) -> list[Node]:
        """What it enqueued, which ran at once as well, and what followed it; whoever runs that adds it."""
        return self._children

    async def achildren(self) -> list[Node]:
        """Return `children`."""
        return self._children

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do nothing: the job ran already."""

    async def arevoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do nothing: the job ran already."""

    def _drop_known(self) -> None:
        self._value = None

    def _drop(self) -> None:
        self._value = None

    async def _adrop(self) -> None:
        self._value = None

    def _known_outcome(self) -> StoredOutcome | None:
        return self._look()

    def _look(self) -> StoredOutcome:
        from pgtasks.db.operations import StoredOutcome

        return StoredOutcome(self._state, self._attempt, None, self._error)

    async def _alook(self) -> StoredOutcome:
        return self._look()

    def _value_or_error(self, outcome: StoredOutcome) -> R | BaseException | None:
        if self._state is JobState.SUCCEEDED:
            return self._value
        return rebuild_error(self.app, self.id, self._state, self._error)


class EagerGroupResult(GroupResult[M]):
    """The result of a group that ran at once in the caller.

    Args:
        id: the bundle's id.
        app: the app that it ran in.
        results: the members' results, in order.
        bundle: the bundle as it would stand in the database.
        parent: what the group came after in its chain.
    """

    def __init__(
        self,
        id: str,
        app: App,
        results: Sequence[AsyncResult[M]],
        bundle: Bundle,
        parent: Node | None = None,
    ) -> None:
        super().__init__(id, app, results)
        self._bundle = bundle
        self.parent = parent

    def bundle(self) -> Bundle:
        """Return the bundle as it would stand in the database."""
        return self._bundle

    async def abundle(self) -> Bundle:
        """Return the bundle as it would stand in the database."""
        return self._bundle

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do nothing: the jobs ran already."""

    async def arevoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do nothing: the jobs ran already."""
