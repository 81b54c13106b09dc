"""The handle on a bundle: `GroupResult`, the results of a group in the order of its signatures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pgtasks.context import current_app
from pgtasks.errors import ConfigurationError
from pgtasks.ids import parse_id
from pgtasks.result import AsyncResult
from pgtasks.result_set import ResultSet
from pgtasks.waiting import await_, refuse_inside_task, wait

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import StoredOutcome
    from pgtasks.gathering import Callback
    from pgtasks.job import Bundle
    from pgtasks.result_tree import Node

R = TypeVar("R")


class GroupResult(ResultSet[R]):
    """A handle on a bundle. How far it is stands in the bundle's row, so that is one row to read.

    Args:
        id: the bundle's id.
        app: the app whose database holds it; None: the current app.
        results: handles on the members, in order; None: asked for when needed.
        parent: what the group came after in its chain, if known; else the database is asked.

    Its members stand as they were enqueued: what changes a `ResultSet` is refused.
    """

    _gone_is_done = True  # members were enqueued together with the bundle

    def __init__(
        self,
        id: str,
        app: App | None = None,
        results: Sequence[AsyncResult[R]] | None = None,
        parent: Node | None = None,
    ) -> None:
        self.id = id
        self._app = app or self._default_app or current_app()
        self._results = None if results is None else list(results)
        if parent is not None:
            self.parent = parent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __bool__(self) -> bool:
        return True  # also if it is empty, and without asking

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

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

    @property
    def children(self) -> list[AsyncResult[R]]:
        """Celery's other name for `results`."""
        return self.results

    async def achildren(self) -> list[AsyncResult[R]]:
        """Celery's other name for `results`."""
        return await self.aresults()

    def bundle(self) -> Bundle:
        """Return the bundle's row."""
        return self.app.bundle(self.id)

    async def abundle(self) -> Bundle:
        """Return the bundle's row."""
        return await self.app.abundle(self.id)

    # What Celery must be told to keep

    def save(self) -> None:
        """Do nothing but look whether the bundle is there: its rows are what `restore` needs.

        Raises:
            NotFoundError: there is no such bundle.
        """
        self.bundle()

    async def asave(self) -> None:
        """Do nothing but look whether the bundle is there; see `save`."""
        await self.abundle()

    @classmethod
    def restore(cls, id: str, app: App | None = None) -> GroupResult[Any]:
        """Return the handle on a bundle by its id, members included.

        Args:
            id: the bundle's id, saved or not.
            app: the app whose database holds it; None: the current app.

        Raises:
            NotFoundError: there is no such bundle (where Celery returns None: here an unknown id is an
                error everywhere).
        """
        restored: GroupResult[Any] = cls(parse_id(id), app)
        restored.save()
        _ = restored.results
        return restored

    @classmethod
    async def arestore(cls, id: str, app: App | None = None) -> GroupResult[Any]:
        """Return the handle on a bundle by its id, members included; see `restore`."""
        restored: GroupResult[Any] = cls(parse_id(id), app)
        await restored.asave()
        await restored.aresults()
        return restored

    def as_tuple(self) -> tuple[Any, ...]:
        """Return ids only, to be saved as JSON: this, its members, and the parents that it knows without asking.

        Members that it does not know yet are asked for; in a coroutine await ``aresults()`` first.
        """
        parent = self._parent.as_tuple() if self._parent else None
        return (self.id, parent), [one.as_tuple() for one in self.results]

    # How far it is

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

    def completed_count(self) -> int:
        """Return how many members succeeded."""
        bundle = self.bundle()
        return bundle.total - bundle.remaining - bundle.failed

    async def acompleted_count(self) -> int:
        """Return how many members succeeded."""
        bundle = await self.abundle()
        return bundle.total - bundle.remaining - bundle.failed

    # Waiting for it

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
        """Wait for every member and return the results in order; None for one of which nothing is kept.

        The parameters are those of `ResultSet.get`.

        Raises:
            ResultTimeoutError: the time is over.
            NotFoundError: there is no such bundle.
            RuntimeError: called inside of a task.
        """
        refuse_inside_task(disable_sync_subtasks)
        wait(self.app, self.id, lambda: self.ready() or None, timeout, f"bundle {self.id} is")
        return self._give_all(self._outcomes(), propagate, callback)

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
        """Wait for every member and return the results in order; see `get`."""

        async def look() -> bool | None:
            return await self.aready() or None

        refuse_inside_task(disable_sync_subtasks)
        await await_(self.app, self.id, look, timeout, f"bundle {self.id} is")
        return self._give_all(await self._aoutcomes(), propagate, callback)

    def _arrivals(
        self, timeout: float | None, *, patient: bool = False
    ) -> Iterator[tuple[AsyncResult[R], StoredOutcome]]:
        self.bundle()  # or there is no such bundle
        yield from super()._arrivals(timeout, patient=patient)

    async def _aarrivals(
        self, timeout: float | None, *, patient: bool = False
    ) -> AsyncIterator[tuple[AsyncResult[R], StoredOutcome]]:
        await self.abundle()
        async for arrival in super()._aarrivals(timeout, patient=patient):
            yield arrival

    # Changing it

    def forget(self) -> None:
        """Drop the stored results; the jobs stay.

        Once all are finished, also the results of what came before the group in its chain.
        """
        for node in self._spent():
            node._drop()

    async def aforget(self) -> None:
        """Drop the stored results; see `forget`."""
        async for node in self._aspent():
            await node._adrop()

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

    def _changeable(self) -> NoReturn:
        raise ConfigurationError(
            f"the members of bundle {self.id} stand: make a set of your own, ResultSet(group_result)"
        )

    # Its parent: what its first member waits or waited for

    def _read_parent(self) -> Node | None:
        return self.results[0].parent if self.results else None

    async def _aread_parent(self) -> Node | None:
        results = await self.aresults()
        return await results[0].aparent() if results else None
