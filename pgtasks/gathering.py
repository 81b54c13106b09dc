"""Gathers the outcomes of several jobs: in few statements, on one connection.

`ResultSet` is the public face of this. While it waits, a look asks only for what is not known to be
finished, and mostly only for what was told to be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgtasks.errors import NotFoundError
from pgtasks.job import JobState
from pgtasks.result_tree import ResultBase
from pgtasks.waiting import AsyncWatch, Watch

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome
    from pgtasks.result import AsyncResult

R = TypeVar("R")
Callback = Callable[[str, R], object]


class Gathered(ResultBase, Generic[R]):
    """How several results are asked for; those that need no database are not."""

    _gone_is_done = False  # what it means that there is no row of one

    @property
    def app(self) -> App:
        """The app whose database holds them."""
        raise NotImplementedError

    @property
    def results(self) -> list[AsyncResult[R]]:
        """The handles, in order."""
        raise NotImplementedError

    async def aresults(self) -> list[AsyncResult[R]]:
        """Return `results`."""
        raise NotImplementedError

    def _drop(self) -> None:
        from pgtasks.db import operations

        for one in self.results:
            one._drop_known()
        if ids := asked(self.results):
            self.app.run(operations.forget_results(ids))

    async def _adrop(self) -> None:
        from pgtasks.db import operations

        for one in await self.aresults():
            one._drop_known()
        if ids := asked(self.results):
            await self.app.arun(operations.forget_results(ids))

    def _states(self) -> list[JobState]:
        from pgtasks.db import operations

        ids = asked(self.results)
        return self._all_states(self.app.run(operations.get_states(ids)) if ids else {})

    async def _astates(self) -> list[JobState]:
        from pgtasks.db import operations

        ids = asked(await self.aresults())
        return self._all_states(await self.app.arun(operations.get_states(ids)) if ids else {})

    def _all_states(self, found: Mapping[str, JobState]) -> list[JobState]:
        states = []
        for one in self.results:
            known = one._known_outcome()
            state = known.state if known else found.get(one.id)
            states.append(state or nothing_kept(one.id, self._gone_is_done).state)
        return states

    def _outcomes(self) -> dict[str, StoredOutcome]:
        from pgtasks.db import operations

        ids = asked(self.results)
        return self._all_outcomes(self.app.run(operations.get_outcomes(ids)) if ids else {})

    async def _aoutcomes(self) -> dict[str, StoredOutcome]:
        from pgtasks.db import operations

        ids = asked(await self.aresults())
        return self._all_outcomes(await self.app.arun(operations.get_outcomes(ids)) if ids else {})

    def _all_outcomes(self, found: Mapping[str, StoredOutcome]) -> dict[str, StoredOutcome]:
        return {
            one.id: one._known_outcome()
            or found.get(one.id)
            or nothing_kept(one.id, self._gone_is_done)
            for one in self.results
        }

    def _arrivals(
        self, timeout: float | None, *, patient: bool = False
    ) -> Iterator[tuple[AsyncResult[R], StoredOutcome]]:
        """Yield each as it finishes, with how it ended: first those that need not be asked for."""
        handles = {one.id: one for one in self.results}
        yield from _unasked(self.results)
        gathering = Gathering(_waited(self.results), gone_is_done=self._gone_is_done)
        for id, outcome in gather(self.app, gathering, timeout, patient=patient):
            yield handles[id], outcome

    async def _aarrivals(
        self, timeout: float | None, *, patient: bool = False
    ) -> AsyncIterator[tuple[AsyncResult[R], StoredOutcome]]:
        """Yield each as it finishes; the twin of `_arrivals`."""
        handles = {one.id: one for one in await self.aresults()}
        for known in _unasked(self.results):
            yield known
        gathering = Gathering(_waited(self.results), gone_is_done=self._gone_is_done)
        async for id, outcome in agather(self.app, gathering, timeout, patient=patient):
            yield handles[id], outcome

    def _give_all(
        self, outcomes: Mapping[str, StoredOutcome], propagate: bool, callback: Callback[R] | None
    ) -> list[R]:
        values = [
            one._give(outcomes[one.id], propagate, callback)
            for one in self.results
            if one.id in outcomes
        ]
        return [] if callback else values


def asked(results: Sequence[AsyncResult[Any]]) -> list[str]:
    """Return the ids of those of which only the database knows."""
    return [one.id for one in results if one._known_outcome() is None]


def _waited(results: Sequence[AsyncResult[Any]]) -> list[str]:
    """Return the ids of those whose results are waited for."""
    return [one.id for one in results if not one.ignored and one._known_outcome() is None]


def _unasked(
    results: Sequence[AsyncResult[R]],
) -> Iterator[tuple[AsyncResult[R], StoredOutcome]]:
    """Yield those whose results are known, or give None at once."""
    for one in results:
        known = nothing_kept(one.id, True) if one.ignored else one._known_outcome()
        if known is not None:
            yield one, known


class Gathering:
    """Which of some jobs are known to be finished, and which are open.

    Args:
        ids: the jobs.
        gone_is_done: a job of which there is no row ended, and nothing is kept of it; else it is unknown.
    """

    def __init__(self, ids: Iterable[str], *, gone_is_done: bool) -> None:
        self.open: Set[str] = set(ids)
        self._total = len(self.open)
        self._gone_is_done = gone_is_done

    @property
    def what(self) -> str:
        """Who is not finished, with its verb."""
        return f"{len(self.open)} of {self._total} jobs are"

    def take(
        self, asked: Set[str], found: Mapping[str, StoredOutcome]
    ) -> list[tuple[str, StoredOutcome]]:
        """Return which of those that were asked for are finished, and how.

        Raises:
            NotFoundError: one is not there.
        """
        finished = []
        for id in asked:
            outcome = found.get(id) or nothing_kept(id, self._gone_is_done)
            if outcome.state.finished:
                finished.append((id, outcome))
        self.open = self.open - {id for id, _ in finished}
        return finished


def gather(
    app: App, gathering: Gathering, timeout: float | None, *, patient: bool
) -> Iterator[tuple[str, StoredOutcome]]:
    """Yield (id, outcome) of each job as it finishes.

    Args:
        app: whose database holds them.
        gathering: the jobs.
        timeout: how long to wait for all, in seconds.
        patient: only the last of them matters, so that fewer looks will do.
    """
    from pgtasks.db import operations

    with Watch(app, gathering.open, timeout, patient=patient) as watch:
        while gathering.open:
            asked = watch.pause(gathering.open, gathering.what)
            found = app.run(operations.get_outcomes(list(asked)))
            yield from gathering.take(asked, found)


async def agather(
    app: App, gathering: Gathering, timeout: float | None, *, patient: bool
) -> AsyncIterator[tuple[str, StoredOutcome]]:
    """Yield (id, outcome) of each job as it finishes; the twin of `gather`."""
    from pgtasks.db import operations

    with AsyncWatch(app, gathering.open, timeout, patient=patient) as watch:
        while gathering.open:
            asked = await watch.pause(gathering.open, gathering.what)
            found = await app.arun(operations.get_outcomes(list(asked)))
            for one in gathering.take(asked, found):
                yield one


def nothing_kept(id: str, gone_is_done: bool) -> StoredOutcome:
    """Return how a job ended of which nothing is kept; NotFoundError if it may never have been."""
    from pgtasks.db.operations import StoredOutcome

    if not gone_is_done:
        raise NotFoundError(
            f"no job has the id {id}: it was never enqueued, or its history is gone"
        )
    return StoredOutcome(JobState.SUCCEEDED, 0, None, None)
