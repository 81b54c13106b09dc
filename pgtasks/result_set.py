"""Handles on several jobs of any tasks: `ResultSet`; on those of a bundle: `pgtasks.group_result`.

All are asked for in one statement a look, on one connection. While it waits, a look asks only for what is
not known to be finished, and mostly only for what was told to be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pgtasks.context import current_app
from pgtasks.errors import ConfigurationError
from pgtasks.gathering import Callback, Gathered, asked
from pgtasks.job import JobState
from pgtasks.result import AsyncResult, celery_state
from pgtasks.waiting import refuse_inside_task

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome

R = TypeVar("R")


class ResultSet(Gathered[R]):
    """Handles on jobs of any tasks, in order, each once.

    Args:
        results: the handles.
        app: the app whose database holds them; None: that of the first, else the current app.
    """

    def __init__(self, results: Iterable[AsyncResult[R]] = (), app: App | None = None) -> None:
        self._results: list[AsyncResult[R]] | None = []
        self._app = app or self._default_app
        self.update(results)

    @property
    def app(self) -> App:
        """The app whose database holds them."""
        if self._app is None:
            self._app = self._results[0].app if self._results else current_app()
        return self._app

    @property
    def results(self) -> list[AsyncResult[R]]:
        """The handles, in order."""
        return cast("list[AsyncResult[R]]", self._results)

    async def aresults(self) -> list[AsyncResult[R]]:
        """Return `results`."""
        return self.results

    def __repr__(self) -> str:
        shown = ", ".join(one.id for one in (self._results or ())[:5])
        return f"<{type(self).__name__} [{shown}{', …' if len(self._results or ()) > 5 else ''}]>"

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.results[index]

    def __contains__(self, result: object) -> bool:
        """Whether a handle, or the id of one, is in the set."""
        id = result.id if isinstance(result, AsyncResult) else result
        return any(one.id == id for one in self.results)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultSet) and other.results == self.results

    __hash__: Any = None  # since it changes

    # What is in it

    def add(self, result: AsyncResult[R]) -> None:
        """Add a handle at the end, if it is not in the set."""
        self.update([result])

    def remove(self, result: AsyncResult[R] | str) -> None:
        """Take out a handle, also by its id.

        Raises:
            KeyError: it is not in the set.
        """
        self._changeable()
        if result not in self:
            raise KeyError(result)
        self.discard(result)

    def discard(self, result: AsyncResult[R] | str) -> None:
        """Take out a handle, also by its id, if it is in the set."""
        id = result.id if isinstance(result, AsyncResult) else result
        results = self._changeable()
        results[:] = [one for one in results if one.id != id]

    def update(self, results: Iterable[AsyncResult[R]]) -> None:
        """Add handles at the end: those that are not in the set."""
        own = self._changeable()
        known = {one.id for one in own}
        for one in results:
            if not isinstance(one, AsyncResult):
                raise ConfigurationError(
                    f"a ResultSet is made of handles on jobs, found {one!r}: of a group, update(…) with it"
                )
            if one.id not in known:
                known.add(one.id)
                own.append(one)

    def clear(self) -> None:
        """Take out all handles."""
        self._changeable().clear()

    def _changeable(self) -> list[AsyncResult[R]]:
        return self.results

    # How far they are

    def ready(self) -> bool:
        """Whether all are finished."""
        return all(state.finished for state in self._states())

    async def aready(self) -> bool:
        """Whether all are finished."""
        return all(state.finished for state in await self._astates())

    def successful(self) -> bool:
        """Whether all succeeded."""
        return all(state is JobState.SUCCEEDED for state in self._states())

    async def asuccessful(self) -> bool:
        """Whether all succeeded."""
        return all(state is JobState.SUCCEEDED for state in await self._astates())

    def failed(self) -> bool:
        """Whether one ended without success; other than in Celery, one that was cancelled counts, too."""
        return any(_failed(state) for state in self._states())

    async def afailed(self) -> bool:
        """Whether one ended without success; see `failed`."""
        return any(_failed(state) for state in await self._astates())

    def waiting(self) -> bool:
        """Whether one is not finished."""
        return not self.ready()

    async def awaiting(self) -> bool:
        """Whether one is not finished."""
        return not await self.aready()

    def completed_count(self) -> int:
        """Return how many succeeded."""
        return sum(state is JobState.SUCCEEDED for state in self._states())

    async def acompleted_count(self) -> int:
        """Return how many succeeded."""
        return sum(state is JobState.SUCCEEDED for state in await self._astates())

    # Waiting for them

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callback[R] | None = None,
        *,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for all and return the results in order.

        Args:
            timeout: how long to wait for all, in seconds.
            propagate: raise what the first without success (in order) ended with; False puts the
                exceptions into the list.
            interval: Celery's, without meaning here.
            callback: called with id and value of each, in order; the list is empty then.
            on_message: Celery's, without meaning here.
            disable_sync_subtasks: refuse to wait inside of a task; see also `allow_join_result`.

        Raises:
            ResultTimeoutError: the time is over.
            NotFoundError: there is no such job.
            RuntimeError: called inside of a task.
        """
        refuse_inside_task(disable_sync_subtasks)
        outcomes = {one.id: outcome for one, outcome in self._arrivals(timeout, patient=True)}
        return self._give_all(outcomes, propagate, callback)

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callback[R] | None = None,
        *,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for all and return the results in order; see `get`."""
        refuse_inside_task(disable_sync_subtasks)
        arrivals = self._aarrivals(timeout, patient=True)
        outcomes = {one.id: outcome async for one, outcome in arrivals}
        return self._give_all(outcomes, propagate, callback)

    def join(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callback[R] | None = None,
        *,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for all and return the results in order: Celery's other name for `get`."""
        return self.get(
            timeout, propagate, callback=callback, disable_sync_subtasks=disable_sync_subtasks
        )

    async def ajoin(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callback[R] | None = None,
        *,
        on_message: object = None,
        disable_sync_subtasks: bool = True,
    ) -> list[R]:
        """Wait for all and return the results in order: Celery's other name for `get`."""
        return await self.aget(
            timeout, propagate, callback=callback, disable_sync_subtasks=disable_sync_subtasks
        )

    def iterate(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> Iterator[R]:
        """Yield the value of each as it finishes; `iter_native` tells whose it is.

        Args:
            timeout: how long to wait for all, in seconds.
            propagate: raise what one without success ended with, when it comes; False yields the exception.
            disable_sync_subtasks: refuse to wait inside of a task.

        Raises:
            ResultTimeoutError: the time is over, and not all were yielded.
            NotFoundError: there is no such job.
            RuntimeError: called inside of a task.
        """
        refuse_inside_task(disable_sync_subtasks, "iterate()")
        return (one._give(outcome, propagate) for one, outcome in self._arrivals(timeout))

    def aiterate(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> AsyncIterator[R]:
        """Yield the value of each as it finishes; see `iterate`."""
        refuse_inside_task(disable_sync_subtasks, "iterate()")
        return (one._give(outcome, propagate) async for one, outcome in self._aarrivals(timeout))

    def iter_native(
        self, timeout: float | None = None, *, disable_sync_subtasks: bool = True
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, what is known of it) for each as it finishes, failed or not.

        What is known are Celery's words: ``task_id``, ``status``, ``result`` (or the exception) and
        ``traceback``. The parameters are those of `iterate`.
        """
        refuse_inside_task(disable_sync_subtasks, "iter_native()")
        return ((one.id, _meta(one, outcome)) for one, outcome in self._arrivals(timeout))

    def aiter_native(
        self, timeout: float | None = None, *, disable_sync_subtasks: bool = True
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield (id, what is known of it) for each as it finishes; see `iter_native`."""
        refuse_inside_task(disable_sync_subtasks, "iter_native()")
        return ((one.id, _meta(one, outcome)) async for one, outcome in self._aarrivals(timeout))

    def maybe_throw(self, callback: Callback[R] | None = None, propagate: bool = True) -> None:
        """Raise what the first without success (in order) ended with, without waiting for any.

        Args:
            callback: called with id and value of each before it, in order; None while it is not finished.
            propagate: False hands the exceptions to the callback instead.
        """
        self._give_all(self._outcomes(), propagate, callback)

    async def amaybe_throw(
        self, callback: Callback[R] | None = None, propagate: bool = True
    ) -> None:
        """Raise what the first without success (in order) ended with; see `maybe_throw`."""
        self._give_all(await self._aoutcomes(), propagate, callback)

    # Changing them

    def forget(self) -> None:
        """Drop the stored results; the jobs stay."""
        self._drop()

    async def aforget(self) -> None:
        """Drop the stored results; the jobs stay."""
        await self._adrop()

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel every one that is not finished; the parameters are those of `AsyncResult.revoke`."""
        if ids := asked(self.results):
            self.app.cancel(*ids, terminate=terminate)

    async def arevoke(
        self,
        *,
        terminate: bool = False,
        signal: object = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Cancel every one that is not finished; see `revoke`."""
        if ids := asked(await self.aresults()):
            await self.app.acancel(*ids, terminate=terminate)


def _failed(state: JobState) -> bool:
    return state.finished and state is not JobState.SUCCEEDED


def _meta(one: AsyncResult[Any], outcome: StoredOutcome) -> dict[str, Any]:
    return {
        "task_id": one.id,
        "status": celery_state(outcome),
        "result": one._value_or_error(outcome),
        "traceback": outcome.error.traceback if outcome.error else None,
    }
