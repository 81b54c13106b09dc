"""Results as a tree: what a job came after, what came of it, and the way through all of it.

The rows know both: a job waits for a bundle (its parent: the job of a step, or a group), and names the
job that enqueued it or that it follows (whose child it is).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pgtasks.context import current_app
from pgtasks.errors import IncompleteStream

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.operations import ChildRow, ParentRow
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult

    Node: TypeAlias = "AsyncResult[Any] | GroupResult[Any]"
    # ((id, parent), None) for a job, ((id, parent), members) for a group; lists instead of tuples after JSON.
    Plain: TypeAlias = Sequence[Any]


class ResultBase:
    """What `AsyncResult`, `ResultSet` and `GroupResult` have in common: an app, and a parent."""

    _default_app: App | None = None
    _parent: Node | None = None
    _parent_known = False

    @property
    def parent(self) -> Node | None:
        """What this came after in its chain: a job's or a group's result; None: nothing, or nothing is kept."""
        if not self._parent_known:
            self._parent, self._parent_known = self._read_parent(), True
        return self._parent

    @parent.setter
    def parent(self, parent: Node | None) -> None:
        """Name it, instead of asking the database."""
        self._parent, self._parent_known = parent, True

    async def aparent(self) -> Node | None:
        """Return `parent`."""
        if not self._parent_known:
            self._parent, self._parent_known = await self._aread_parent(), True
        return self._parent

    def _read_parent(self) -> Node | None:
        return None

    async def _aread_parent(self) -> Node | None:
        return None

    def _spent(self) -> Iterator[Node]:
        """Yield this, and what came before it as long as all that took its results is finished."""
        node: Node | None = cast("Node", self)
        while node is not None:
            yield node
            before = node.parent
            node = before if before is not None and node.ready() else None

    async def _aspent(self) -> AsyncIterator[Node]:
        node: Node | None = cast("Node", self)
        while node is not None:
            yield node
            before = await node.aparent()
            node = before if before is not None and await node.aready() else None


class JobNode(ResultBase):
    """A job's place in a tree of results: what `AsyncResult` knows of its relatives."""

    id: str
    app: App

    @property
    def children(self) -> list[Node]:
        """What it enqueued and what follows it, oldest first: jobs, and groups as one each."""
        from pgtasks.db import operations

        found = self.app.run(operations.get_children([self.id]))
        return children_of(self.app, found[self.id])

    async def achildren(self) -> list[Node]:
        """Return `children`."""
        from pgtasks.db import operations

        found = await self.app.arun(operations.get_children([self.id]))
        return children_of(self.app, found[self.id])

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Node | None, Node]]:
        """Yield (parent, node) for this and all that came of it, level by level; (None, this) first.

        The database is asked once a level, whatever its size, and once for each group.

        Args:
            intermediate: leave out what may still come of a job that is not finished, instead of raising.

        Raises:
            IncompleteStream: a job is not finished when the first of the next level is asked for.
        """
        from pgtasks.db import operations

        level = _Level(self)
        while level.pairs:
            yield from level.pairs
            ids = level.asked()
            states = self.app.run(operations.get_states(ids)) if ids else {}
            for node in level.nodes:
                state = states.get(node.id)
                level.finished(node, node.ready() if state is None else state.finished)
            level.check(intermediate)
            ids = level.asked()
            rows = self.app.run(operations.get_children(ids)) if ids else {}
            for node in level.nodes:
                children = rows.get(node.id)
                level.add(
                    node, node.children if children is None else children_of(self.app, children)
                )
            level.descend()

    async def aiterdeps(
        self, intermediate: bool = False
    ) -> AsyncIterator[tuple[Node | None, Node]]:
        """Yield (parent, node) for this and all that came of it; see `iterdeps`."""
        from pgtasks.db import operations

        level = _Level(self)
        while level.pairs:
            for pair in level.pairs:
                yield pair
            ids = level.asked()
            states = await self.app.arun(operations.get_states(ids)) if ids else {}
            for node in level.nodes:
                state = states.get(node.id)
                level.finished(node, await node.aready() if state is None else state.finished)
            level.check(intermediate)
            ids = level.asked()
            rows = await self.app.arun(operations.get_children(ids)) if ids else {}
            for node in level.nodes:
                children = rows.get(node.id)
                level.add(
                    node,
                    await node.achildren() if children is None else children_of(self.app, children),
                )
            level.descend()

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[Node, Any]]:
        """Yield (result, value) for this and all that came of it, waiting for each.

        Args:
            intermediate: as for `iterdeps`.
            options: for each ``get()``: ``timeout``, ``propagate``, ``disable_sync_subtasks``.
        """
        for _, node in self.iterdeps(intermediate):
            yield node, node.get(**options)

    async def acollect(
        self, intermediate: bool = False, **options: Any
    ) -> AsyncIterator[tuple[Node, Any]]:
        """Yield (result, value) for this and all that came of it; see `collect`."""
        async for _, node in self.aiterdeps(intermediate):
            yield node, await node.aget(**options)

    def as_tuple(self) -> tuple[Any, ...]:
        """Return ids only, to be saved as JSON: this and the parents that the handle knows without asking."""
        return (self.id, self._parent.as_tuple() if self._parent else None), None

    def _read_parent(self) -> Node | None:
        from pgtasks.db import operations

        return parent_of(self.app, self.app.run(operations.get_parent(self.id)))

    async def _aread_parent(self) -> Node | None:
        from pgtasks.db import operations

        return parent_of(self.app, await self.app.arun(operations.get_parent(self.id)))


class _Level:
    """The nodes of a tree that lie as far from its root, and what is below them; nobody is met twice.

    (A job that was replaced follows what it enqueued in its place.)
    """

    def __init__(self, root: JobNode) -> None:
        self.pairs: list[tuple[Node | None, Node]] = [(None, cast("Node", root))]
        self.nodes: list[Node] = [cast("Node", root)]
        self._below: list[tuple[Node | None, Node]] = []
        self._unfinished: list[Node] = []
        self._seen = {root.id}

    def asked(self) -> list[str]:
        """Return the ids of the jobs among the nodes of which only the database knows."""
        return [
            node.id
            for node in self.nodes
            if isinstance(node, JobNode) and node._known_outcome() is None
        ]

    def finished(self, node: Node, finished: bool) -> None:
        """Take note of a node that is finished, or is not."""
        if not finished:
            self._unfinished.append(node)

    def check(self, intermediate: bool) -> None:
        """Keep the nodes that are finished; IncompleteStream if another one is not welcome."""
        if self._unfinished and not intermediate:
            raise IncompleteStream(
                f"{self._unfinished[0]!r} is not finished: wait for it before the next level, "
                "or say intermediate=True"
            )
        left_out = set(self._unfinished)
        self.nodes = [node for node in self.nodes if node not in left_out]

    def add(self, node: Node, children: Sequence[Node]) -> None:
        """Put the children of a node into the next level."""
        for child in children:
            if child.id not in self._seen:
                self._seen.add(child.id)
                self._below.append((node, child))

    def descend(self) -> None:
        """Go on to the next level."""
        self.pairs, self._below, self._unfinished = self._below, [], []
        self.nodes = [node for _, node in self.pairs]


def parent_of(app: App, row: ParentRow | None) -> Node | None:
    """Return a handle on what a job waits or waited for."""
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult

    if row is None:
        return None
    if row.is_group:
        return GroupResult(row.id, app)
    return AsyncResult(row.id, app, row.task)


def children_of(app: App, rows: Sequence[ChildRow]) -> list[Node]:
    """Return handles on a job's children, oldest first; members of a group stand as that group."""
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult

    children: list[Node] = []
    groups: set[str] = set()
    for row in rows:
        if row.group_id is None:
            children.append(AsyncResult(row.id, app, row.task))
        elif row.group_id not in groups:
            groups.add(row.group_id)
            children.append(GroupResult(row.group_id, app))
    return children


def result_from_tuple(plain: Plain | Node, app: App | None = None) -> Node:
    """Rebuild what ``as_tuple()`` gave, also after it went through JSON.

    Args:
        plain: what was saved.
        app: whose database holds it; None: the current app.
    """
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult

    if isinstance(plain, ResultBase):
        return plain
    app = app or current_app()
    (id, parent), members = plain
    before = None if parent is None else result_from_tuple(parent, app)
    if members is None:
        return AsyncResult(id, app, parent=before)
    handles = [result_from_tuple(member, app) for member in members]
    return GroupResult(
        id, app, [one for one in handles if isinstance(one, AsyncResult)], parent=before
    )
