"""The results of jobs that ran at once in the caller: all is known, and no database is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from pgtasks.failure import rebuild_error
from pgtasks.job import Bundle, JobError, JobState
from pgtasks.result import AsyncResult, GroupResult

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome

R = TypeVar("R")


class EagerResult(AsyncResult[R]):
    """The result of a job that ran at once in the caller: all is known, and no database is asked."""

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
    ) -> None:
        super().__init__(id, app, task_name)
        self._state = state
        self._value = value
        self._error = error
        self._attempt = attempt
        self.text = text  # the result as it would be stored

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
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Return the result, or raise what the job ended with."""
        if propagate and self._state is not JobState.SUCCEEDED:
            raise cast("BaseException", self._value_or_error(self._look()))
        return cast("R", self._value_or_error(self._look()))

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Return the result, or raise what the job ended with."""
        return self.get(timeout, propagate)

    def forget(self) -> None:
        """Drop the result."""
        self._value = None

    async def aforget(self) -> None:
        """Drop the result."""
        self.forget()

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

    def _look(self) -> StoredOutcome:
        from pgtasks.db.operations import StoredOutcome

        return StoredOutcome(self._state, self._attempt, None, self._error)

    async def _alook(self) -> StoredOutcome:
        return self._look()

    def _value_or_error(self, outcome: StoredOutcome) -> R | BaseException | None:
        if self._state is JobState.SUCCEEDED:
            return self._value
        return rebuild_error(self.app, self.id, self._state, self._error)


class EagerGroupResult(GroupResult[R]):
    """The result of a group that ran at once in the caller."""

    def __init__(
        self, id: str, app: App, results: Sequence[AsyncResult[R]], bundle: Bundle
    ) -> None:
        super().__init__(id, app, results)
        self._bundle = bundle

    def bundle(self) -> Bundle:
        """Return the bundle as it would stand in the database."""
        return self._bundle

    async def abundle(self) -> Bundle:
        """Return the bundle as it would stand in the database."""
        return self._bundle

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Return the results in order, or raise what a member ended with."""
        return [one.get(propagate=propagate) for one in self.results]

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Return the results in order, or raise what a member ended with."""
        return self.get(timeout, propagate)

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
