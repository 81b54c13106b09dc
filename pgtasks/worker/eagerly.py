"""Runs jobs eagerly: in the caller, with the steps of a worker and no database."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pgtasks import codec
from pgtasks.context import Request, having
from pgtasks.eager import EagerGroupResult, EagerResult
from pgtasks.failure import passed_error
from pgtasks.graph import Graph, read_replacement
from pgtasks.guard import Guard
from pgtasks.job import (
    Bundle,
    Job,
    JobError,
    JobState,
    NewBundle,
    NewJob,
    members_of,
    place_members,
)
from pgtasks.worker.attempt import run_attempt
from pgtasks.worker.errback import eager_failures_var
from pgtasks.worker.interrupts import awaited
from pgtasks.worker.rows import NO_OPTIONS, read_options

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.context import Grow


Ran = EagerResult[Any] | EagerGroupResult[Any]

# What the eager job that runs here has enqueued, and so run.
children_var: ContextVar[list[Ran] | None] = ContextVar("pgtasks_eager_children", default=None)


def run_eagerly(app: App, new: NewJob) -> EagerResult[Any]:
    """Run a job to its end in the caller; a coroutine function on a loop of its own."""
    result = _eager(app, new, _run_anywhere)
    _tell_caller([result])
    return result


def _tell_caller(ran: Iterable[Ran]) -> None:
    """Let the eager job that enqueued this, if there is one, have it among its children."""
    children = children_var.get()
    if children is not None:
        children.extend(ran)


async def arun_eagerly(app: App, new: NewJob) -> EagerResult[Any]:
    """Run a job to its end in a thread, so that a coroutine function can have a loop of its own."""
    return await asyncio.to_thread(run_eagerly, app, new)


def _run_anywhere(awaitable: Awaitable[Any]) -> Any:
    """Run a coroutine to its end; in a thread with the same context, if a loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited(awaitable))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, awaited(awaitable)).result()


def _eager(
    app: App,
    new: NewJob,
    await_: Any,
    taken: bool = False,
    group: str | None = None,
    grow: Grow | None = None,
) -> EagerResult[Any]:
    task = app.find_task(new.task)
    attempt = 0
    children: list[Ran] = []
    with having(children_var, children):
        while True:
            attempt += 1
            request = eager_request(app, new, attempt)
            request.run_eagerly_in(group, children, grow)
            outcome = run_attempt(task, request, new.args, new.kwargs, new.input, Guard(), await_)
            if outcome.kind != "retry":
                break
            if outcome.is_uncounted:
                attempt -= 1
    if outcome.kind == "replace" and outcome.result is not None:
        return _run_replacement(app, new, outcome.result, taken, group, grow)
    state = JobState(outcome.kind)
    value = None
    if outcome.result is not None:
        value = task.parameters.convert_result(codec.decode(outcome.result, "result"))
    info = JobError.from_json(outcome.error)
    return EagerResult(
        new.id,
        app,
        new.task,
        state=state,
        value=value,
        error=info,
        attempt=attempt,
        text=outcome.result,
        job=_ended_job(request.job, state, info, outcome.result),
        children=children,
        progress=request.progress,
    )


def _ended_job(job: Job, state: JobState, error: JobError | None, text: str | None = None) -> Job:
    now = datetime.now(UTC)
    return msgspec.structs.replace(job, state=state, stopped_at=now, result_json=text, error=error)


def run_graph_eagerly(app: App, graph: Graph) -> dict[str, EagerResult[Any]]:
    """Run the jobs of a graph one after the other, as far as they become ready; returns all results by id."""
    eager = _EagerGraph(app, graph)
    results = eager.run()
    _tell_caller(eager.adopt())
    return results


async def arun_graph_eagerly(app: App, graph: Graph) -> dict[str, EagerResult[Any]]:
    """Run the jobs of a graph in a thread; see `run_graph_eagerly`."""
    return await asyncio.to_thread(run_graph_eagerly, app, graph)


def _run_replacement(
    app: App, replaced: NewJob, text: str, taken: bool, group: str | None, grow: Grow | None
) -> EagerResult[Any]:
    """Run what a job put in its place, whose last job has its id, and its place in a group that may grow.

    Args:
        app: where the tasks are.
        replaced: the job.
        text: the graph, as the job wrote it.
        taken: somebody takes the result.
        group: the id of the group that the job is a member of.
        grow: runs more members of that group.
    """
    graph = read_replacement(text)
    last = graph.jobs[-1]
    if last.bundle_id is None and replaced.bundle_id is not None:
        last.bundle_id = replaced.bundle_id
        step = NewBundle(id=replaced.bundle_id, total=1, kind="step")
        graph = graph._replace(bundles=[*graph.bundles, step])
    if taken:
        said = codec.decode(last.options, "options") if last.options else {}
        last.options = codec.encode({**said, "ignore_result": False}, "options")
    place = _Place(last.id, last.bundle_id, taken, group, grow)
    eager = _EagerGraph(app, graph, place)
    result = eager.run()[last.id]
    for child in eager.adopt():
        if child is not result:
            result.children.append(child)
    return result


class _Place(NamedTuple):
    """What is around a graph that took the place of a job."""

    id: str  # the job's, and that of the graph's last
    step: str | None  # the bundle of that one in the graph
    taken: bool  # somebody takes its result
    group: str | None
    grow: Grow | None


class _EagerGraph:
    """What the functions of schema/ do when members stop: count down, release, pass on errors."""

    def __init__(self, app: App, graph: Graph, place: _Place | None = None) -> None:
        self._app = app
        self._place = place
        self._bundles = {one.id: one for one in graph.bundles}
        self._remaining = {one.id: one.total for one in graph.bundles}
        self._ended: dict[str, list[tuple[NewJob, EagerResult[Any]]]] = {}  # bundle id -> members
        self._waiting: dict[str, list[NewJob]] = {}
        self._results: dict[str, EagerResult[Any]] = {}
        self._jobs: dict[str, NewJob] = {}
        self._unreached: set[str] = set()  # jobs that did not run for what lies before them
        self._failed: set[str] = set()  # bundles that stopped with a failure
        self._ready: deque[NewJob] = deque()
        self._add(graph.jobs)

    def _add(self, jobs: Iterable[NewJob]) -> None:
        for job in jobs:
            self._jobs[job.id] = job
            if job.after_bundle_id is None:
                self._ready.append(job)
            else:
                self._waiting.setdefault(job.after_bundle_id, []).append(job)

    def run(self) -> dict[str, EagerResult[Any]]:
        while self._ready:
            job = self._ready.popleft()
            failures = {id: result.job() for id, result in self._results.items() if result.failed()}
            with having(eager_failures_var, failures):
                taken, group = self._is_taken(job), self._group_of(job)
                result = _eager(self._app, job, _run_anywhere, taken, group, self._grow)
                self._end(job, result)
        return self._results

    def _grow(
        self, bundle_id: str, graph: Graph, place_id: str
    ) -> Mapping[str, EagerResult[Any]] | None:
        """Run more members of a group, in the middle of one of its members; None if it is not here."""
        place = self._place
        if place is not None and bundle_id == place.step:
            return (
                None
                if place.grow is None or place.group is None
                else place.grow(place.group, graph, place_id)
            )
        around = self._bundles.get(bundle_id)
        group = None if around is None else self._bundles.get(around.parent_id or around.id)
        if group is None:
            return None
        count = len(members_of(graph.jobs, graph.bundles, place_id))
        placed = place_members(
            graph.jobs, graph.bundles, place_id, group.id, group.total, group.depth
        )
        self._bundles |= {one.id: one for one in placed}
        self._remaining |= {one.id: one.total for one in placed}
        self._bundles[group.id] = msgspec.structs.replace(group, total=group.total + count)
        self._remaining[group.id] += count
        self._add(graph.jobs)
        return self.run()

    def _group_of(self, job: NewJob) -> str | None:
        if self._place is not None and job.id == self._place.id:
            return self._place.group
        if job.bundle_id is None:
            return None
        bundle = self._bundles[job.bundle_id]
        return bundle.id if bundle.kind == "group" else bundle.parent_id

    def _is_taken(self, job: NewJob) -> bool:
        """Whether a job's result is handed on."""
        if self._place is not None and self._place.taken and job.id == self._place.id:
            return True
        if job.bundle_id is None:
            return False
        around = (job.bundle_id, self._bundles[job.bundle_id].parent_id)
        return any(
            one.takes in ("result", "results")
            for id in around
            for one in self._waiting.get(id or "", ())
        )

    def _end(self, job: NewJob, result: EagerResult[Any]) -> None:
        """Take note of a job's end, and settle what waits for it, deep chains without recursion."""
        ends = deque([(job, result)])
        while ends:
            job, result = ends.popleft()
            self._results[job.id] = result
            bundle_id = job.bundle_id
            if bundle_id is None:
                continue
            members = self._ended
            members.setdefault(bundle_id, []).append((job, result))
            parent_id = self._bundles[bundle_id].parent_id
            if parent_id is not None:
                members.setdefault(parent_id, []).append((job, result))
            for id in (bundle_id, parent_id):
                if id is not None:
                    self._remaining[id] -= 1
                    if not self._remaining[id]:
                        ends.extend(self._settle(id))

    def _settle(self, bundle_id: str) -> list[tuple[NewJob, EagerResult[Any]]]:
        """Release what waits for a bundle that stopped; returns what does not run."""
        waiting = self._waiting.pop(bundle_id, [])
        members = self._ended.get(bundle_id, [])
        failed = [(job, result) for job, result in members if not result.successful()]
        unreached: list[tuple[NewJob, EagerResult[Any]]] = []
        if failed:
            self._failed.add(bundle_id)
        bundle = self._bundles[bundle_id]
        for job in waiting:
            if not failed:
                if job.after_on != "failure":
                    self._release(job, members)
                continue
            first, result = failed[0]
            in_group = bundle.kind == "group"
            if in_group:
                passed_on = self._is_passed_by(_before(bundle))
            else:
                passed_on = first.id in self._unreached and self._is_passed_by(
                    first.after_bundle_id
                )
            if job.after_on == "failure":
                if not passed_on:
                    self._release(job, [], failed_id=first.id)
            else:
                new = in_group and _before(bundle) not in self._failed
                error = passed_error(first.id, result.job_state, result.error_info, new)
                self._unreached.add(job.id)
                unreached.append((job, self._cancelled(job, error)))
        return unreached

    def _is_passed_by(self, bundle_id: str | None) -> bool:
        """Whether what comes after a bundle does not run because of a step that failed before."""
        while bundle_id in self._failed:
            bundle = self._bundles[bundle_id]
            if bundle.kind == "step":
                return True
            bundle_id = _before(bundle)
        return False

    def _release(
        self,
        job: NewJob,
        members: list[tuple[NewJob, EagerResult[Any]]],
        failed_id: str | None = None,
    ) -> None:
        in_order = sorted(members, key=lambda one: one[0].bundle_index or 0)
        texts = [result.text or "null" for _, result in in_order]
        if job.takes == "results":
            job.input = f"[{','.join(texts)}]"
        elif job.takes == "result":
            job.input = texts[0]
        elif job.takes == "error" and failed_id is not None:
            job.input = codec.encode(failed_id, "input")
        self._ready.append(job)

    def _cancelled(self, job: NewJob, error: JobError | None) -> EagerResult[Any]:
        return EagerResult(
            job.id,
            self._app,
            job.task,
            state=JobState.CANCELLED,
            value=None,
            error=error,
            attempt=0,
            job=_ended_job(eager_request(self._app, job, 0).job, JobState.CANCELLED, error),
        )

    def adopt(self) -> list[Ran]:
        """Make each result a child of the job that it follows, groups as one; returns those that follow none."""
        tops: list[Ran] = []
        groups: set[str] = set()
        for job in self._jobs.values():
            child: Ran | None = self._results.get(job.id)
            if child is None:  # an unneeded callback
                continue
            bundle = self._bundles.get(job.bundle_id or "")
            if bundle is not None and (
                group_id := bundle.id if bundle.kind == "group" else bundle.parent_id
            ):
                if group_id in groups:
                    continue
                groups.add(group_id)
                child = self._group(group_id)
            parent = self._results.get(job.parent_id or "")
            if parent is None:
                tops.append(child)
            else:
                parent.children.append(child)
        return tops

    def _group(self, id: str) -> EagerGroupResult[Any]:
        members = sorted(self._ended[id], key=lambda one: one[0].bundle_index or 0)
        now = datetime.now(UTC)
        bundle = Bundle(
            id=id,
            type=self._bundles[id].type,
            origin=self._bundles[id].origin,
            total=len(members),
            remaining=0,
            failed=sum(not result.successful() for _, result in members),
            created_at=now,
            stopped_at=now,
        )
        return EagerGroupResult(id, self._app, [result for _, result in members], bundle)


def _before(group: NewBundle) -> str | None:
    """Return the bundle whose failure keeps all of a group from running; not one for whose failure it runs."""
    return group.after_bundle_id if group.after_on == "success" else None


def eager_request(app: App, new: NewJob, attempt: int) -> Request:
    """Build the request of a job that was never written."""
    said = read_options(new.options) if new.options else NO_OPTIONS
    queue = new.queue or "default"
    now = datetime.now(UTC)

    def make_job() -> Job:
        return Job(
            id=new.id,
            task=new.task,
            queue=queue,
            state=JobState.RUNNING,
            priority=new.priority or 0,
            args_json=new.args,
            kwargs_json=new.kwargs,
            attempt=attempt,
            created_at=now,
            started_at=now,
            start_at=new.start_at,
            expires_at=new.expires_at,
            origin=new.origin,
            parent_id=new.parent_id,
            root_id=new.root_id or new.id,
            bundle_id=new.bundle_id,
            bundle_index=new.bundle_index,
            options=said,
        )

    # fmt: off
    return Request(
        app, new.id, new.task, queue, attempt, 0, new.parent_id, new.root_id, "eager", said, make_job,
        is_eager=True,
    )
    # fmt: on
