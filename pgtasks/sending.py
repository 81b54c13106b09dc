"""The part of an app that enqueues: jobs one by one, many, and whole canvases; really, eagerly, or not at all.

Methods come in pairs: ``send`` and ``asend`` hold no logic, they run the same operation on a synchronous or an
asynchronous connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pgtasks import codec
from pgtasks.context import eager_var, having, ignoring_var, request_var
from pgtasks.eager import EagerGroupResult, EagerResult
from pgtasks.group_result import GroupResult
from pgtasks.ids import new_id
from pgtasks.job import Bundle, NewJob
from pgtasks.options import check_task_name
from pgtasks.parameters import unnamed
from pgtasks.registry import Registry
from pgtasks.result import AsyncResult, result_of
from pgtasks.task import Task, apply_call_options
from pgtasks.unique import UNIQUE_OPTIONS, make_unique

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.db.run import Operation
    from pgtasks.graph import End, Graph, GroupEnd
    from pgtasks.node import Node

T = TypeVar("T")
Result = AsyncResult[Any] | GroupResult[Any]


class Sending(Registry):
    """What of an app enqueues. Mixed into `App`, which runs the operations."""

    _eager: bool

    @property
    def _app(self) -> App:
        return cast("App", self)

    def run(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation; see `App.run`."""
        raise NotImplementedError

    async def arun(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation; see `App.run`."""
        raise NotImplementedError

    # Enqueue

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a task by its name, which need not be registered here; see `Task.apply_async`."""
        connection = options.pop("connection", None)
        return self.send(self._named_job(name, args, kwargs or {}, options), connection)

    async def asend_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a task by its name, which need not be registered here; see `Task.apply_async`."""
        connection = options.pop("connection", None)
        return await self.asend(self._named_job(name, args, kwargs or {}, options), connection)

    def _named_job(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> NewJob:
        if name in self.tasks:
            return self.tasks[name].new_job(args, kwargs, options)
        check_task_name(name)
        job = NewJob(
            id=new_id(),
            task=name,
            queue=None,
            priority=None,
            args=codec.encode(list(args), "args"),
            kwargs=codec.encode(dict(kwargs), "kwargs"),
        )
        self.route(job, args, kwargs, options)
        apply_call_options(job, options)
        if not UNIQUE_OPTIONS.isdisjoint(options):
            make_unique(job, None, options, lambda: unnamed(*args, **kwargs))
        return job

    def enqueue_many(
        self, jobs: Iterable[Any], *, connection: Any = None
    ) -> list[AsyncResult[Any]]:
        """Enqueue many signatures in one transaction, without a bundle.

        Those that are unique, and whose key another job has, are left out: in their place is the result of that one,
        with ``created`` False.

        Args:
            jobs: signatures, of any tasks of this app.
            connection: write on this connection, in its transaction.
        """
        from pgtasks.db import operations

        rows = [one.new_job() for one in jobs]
        if self._is_eager():
            return [self.run_eagerly(row) for row in rows]
        kept = [row for row in rows if not self._ignores(row)]
        held = self.run(operations.enqueue_jobs(kept), connection) if kept else {}
        return [result_of(self._app, row, held.get(row.id)) for row in rows]

    async def aenqueue_many(
        self, jobs: Iterable[Any], *, connection: Any = None
    ) -> list[AsyncResult[Any]]:
        """Enqueue many signatures in one transaction, without a bundle; see `enqueue_many`."""
        from pgtasks.db import operations

        rows = [one.new_job() for one in jobs]
        if self._is_eager():
            return [await self.arun_eagerly(row) for row in rows]
        kept = [row for row in rows if not self._ignores(row)]
        held = await self.arun(operations.enqueue_jobs(kept), connection) if kept else {}
        return [result_of(self._app, row, held.get(row.id)) for row in rows]

    def send(self, job: NewJob, connection: Any = None) -> AsyncResult[Any]:
        """Write one job, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return self.run_eagerly(job)
        holder = None
        if not self._ignores(job):
            holder = self.run(operations.enqueue_job(job), connection)
        return result_of(self._app, job, holder)

    async def asend(self, job: NewJob, connection: Any = None) -> AsyncResult[Any]:
        """Write one job, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return await self.arun_eagerly(job)
        holder = None
        if not self._ignores(job):
            holder = await self.arun(operations.enqueue_job(job), connection)
        return result_of(self._app, job, holder)

    # A canvas

    def send_graph(
        self,
        node: Node[Any, Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        origin: str | None = None,
        connection: Any = None,
    ) -> Result:
        """Write a whole canvas in one transaction, unless jobs are run eagerly or ignored here.

        Args:
            node: what to write.
            args: arguments for what runs first.
            kwargs: keyword arguments for what runs first.
            options: what is added to the node's own.
            type: what kind of bundle its first group is.
            origin: where it comes from.
            connection: write on this connection, in its transaction.
        """
        from pgtasks.db import operations
        from pgtasks.graph import compile_graph

        graph = compile_graph(node, args, kwargs, options, type=type, origin=origin)
        if self._is_eager():
            from pgtasks.worker.eagerly import run_graph_eagerly

            return self._results_of(graph, run_graph_eagerly(self._app, graph))
        kept = graph.without(self._ignores)
        held: dict[str, str] = {}
        if kept.jobs or not graph.jobs:
            held = self.run(operations.enqueue_jobs(kept.jobs, kept.bundles), connection)
        return self._results_of(graph, held=held)

    async def asend_graph(
        self,
        node: Node[Any, Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        origin: str | None = None,
        connection: Any = None,
    ) -> Result:
        """Write a whole canvas in one transaction; see `send_graph`."""
        from pgtasks.db import operations
        from pgtasks.graph import compile_graph

        graph = compile_graph(node, args, kwargs, options, type=type, origin=origin)
        if self._is_eager():
            from pgtasks.worker.eagerly import arun_graph_eagerly

            return self._results_of(graph, await arun_graph_eagerly(self._app, graph))
        kept = graph.without(self._ignores)
        held: dict[str, str] = {}
        if kept.jobs or not graph.jobs:
            held = await self.arun(operations.enqueue_jobs(kept.jobs, kept.bundles), connection)
        return self._results_of(graph, held=held)

    def grow_group(self, bundle_id: str, node: Node[Any, Any], connection: Any = None) -> Result:
        """Add what a canvas ends with to an open group, as members of it.

        Args:
            bundle_id: the group, or a step in it.
            node: what to add.
            connection: write on this connection, in its transaction.

        Raises:
            JobStateError: the group has stopped, or there is none.
        """
        from pgtasks.db import operations
        from pgtasks.graph import compile_members

        place_id = new_id()
        graph = compile_members(node, place_id)
        ran = _grow_eagerly(bundle_id, graph, place_id)
        if ran is not None:
            return self._results_of(graph, ran)
        self.run(operations.grow_group(bundle_id, graph.jobs, graph.bundles, place_id), connection)
        return self._results_of(graph)

    async def agrow_group(
        self, bundle_id: str, node: Node[Any, Any], connection: Any = None
    ) -> Result:
        """Add what a canvas ends with to an open group; see `grow_group`."""
        from pgtasks.db import operations
        from pgtasks.graph import compile_members

        place_id = new_id()
        graph = compile_members(node, place_id)
        ran = _grow_eagerly(bundle_id, graph, place_id)
        if ran is not None:
            return self._results_of(graph, ran)
        await self.arun(
            operations.grow_group(bundle_id, graph.jobs, graph.bundles, place_id), connection
        )
        return self._results_of(graph)

    def _results_of(
        self,
        graph: Graph,
        ran: Mapping[str, EagerResult[Any]] | None = None,
        held: Mapping[str, str] | None = None,
    ) -> Result:
        """Return a handle on what a graph ends with, and by its parents on what is before that.

        Args:
            graph: what was written.
            ran: what was run instead, by the ids of the jobs.
            held: jobs that were left out, and those that have their keys: of a group they are no members.
        """
        held = held or {}
        from pgtasks.graph import JobEnd

        made: dict[str, Result] = {}  # members of a group may have the same parents

        def handle(end: End) -> Result:
            line: list[End] = []
            before: End | None = end
            while before is not None and before.id not in made:
                line.append(before)
                before = before.parent
            parent = None if before is None else made[before.id]
            for one in reversed(line):
                if isinstance(one, JobEnd):
                    result: Result = (
                        result_of(app, one.job, held.get(one.id)) if ran is None else ran[one.id]
                    )
                else:
                    members = [
                        result_of(app, member.job)
                        if member.parent is None and ran is None
                        else handle(member)
                        for member in one.members
                        if member.id not in held
                    ]
                    result = group_result(one, members)
                result.parent = parent
                parent = made[one.id] = result
            return made[end.id]

        def group_result(end: GroupEnd, members: list[Any]) -> GroupResult[Any]:
            if ran is None:
                return GroupResult(end.id, app, members)
            now = datetime.now(UTC)
            bundle = Bundle(
                id=end.id,
                type=end.bundle.type,
                origin=end.bundle.origin,
                total=len(members),
                remaining=0,
                failed=sum(not one.successful() for one in members),
                created_at=now,
                stopped_at=now,
            )
            return EagerGroupResult(end.id, app, members, bundle)

        app = self._app
        return handle(graph.end)

    # Modes for tests

    def eager(self) -> AbstractContextManager[None]:
        """Run every job at once in the caller for a block, without a database: ``with app.eager():``."""
        return having(eager_var, {**eager_var.get(), id(self): True})

    @contextmanager
    def ignoring(
        self, *tasks: Task[..., Any] | str, when: Callable[[NewJob], bool] | None = None
    ) -> Iterator[list[NewJob]]:
        """Discard jobs for a block: all, those of some tasks, or those for which ``when(job)`` is true.

        Yields a list that fills with what was discarded.
        """
        names = {task if isinstance(task, str) else task.name for task in tasks}
        discarded: list[NewJob] = []

        def ignores(job: NewJob) -> bool:
            ignored = (not names or job.task in names) and (when is None or when(job))
            if ignored:
                discarded.append(job)
            return ignored

        with having(ignoring_var, {**ignoring_var.get(), id(self): ignores}):
            yield discarded

    def run_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now as a worker would, retries included and without their waits."""
        from pgtasks.worker.eagerly import run_eagerly

        return run_eagerly(self._app, job)

    async def arun_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now; a coroutine function is awaited on the running loop."""
        from pgtasks.worker.eagerly import arun_eagerly

        return await arun_eagerly(self._app, job)

    def _is_eager(self) -> bool:
        return eager_var.get().get(id(self), self._eager)

    def _ignores(self, job: NewJob) -> bool:
        ignores = ignoring_var.get().get(id(self))
        return ignores is not None and ignores(job)


def _grow_eagerly(
    bundle_id: str, graph: Graph, place_id: str
) -> Mapping[str, EagerResult[Any]] | None:
    """Run more members of a group that runs here, without a database; None: it does not."""
    request = request_var.get()
    return None if request is None else request.grow_eagerly(bundle_id, graph, place_id)
