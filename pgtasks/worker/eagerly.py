"""Runs jobs eagerly: in the caller, with the steps of a worker and no database."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from pgtasks import codec
from pgtasks.context import Request, having
from pgtasks.eager import EagerResult
from pgtasks.failure import passed_error
from pgtasks.graph import Graph, read_replacement
from pgtasks.guard import Guard
from pgtasks.job import Job, JobError, JobState, NewJob
from pgtasks.worker.attempt import run_attempt
from pgtasks.worker.errback import eager_failures_var
from pgtasks.worker.interrupts import awaited
from pgtasks.worker.rows import NO_OPTIONS, read_options

if TYPE_CHECKING:
    from pgtasks.app import App


def run_eagerly(app: App, new: NewJob) -> EagerResult[Any]:
    """Run a job to its end in the caller; a coroutine function on a loop of its own."""
    return _eager(app, new, _run_anywhere)


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


def _eager(app: App, new: NewJob, await_: Any) -> EagerResult[Any]:
    task = app.find_task(new.task)
    attempt = 0
    while True:
        attempt += 1
        request = eager_request(app, new, attempt)
        outcome = run_attempt(task, request, new.args, new.kwargs, new.input, Guard(), await_)
        if outcome.kind != "retry":
            break
    if outcome.kind == "replace" and outcome.result is not None:
        return _run_replacement(app, new.id, outcome.result)
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
        progress=request.progress,
    )


def run_graph_eagerly(app: App, graph: Graph) -> dict[str, EagerResult[Any]]:
    """Run the jobs of a graph one after the other, as far as they become ready; returns all results by id."""
    return _EagerGraph(app, graph).run()


async def arun_graph_eagerly(app: App, graph: Graph) -> dict[str, EagerResult[Any]]:
    """Run the jobs of a graph in a thread; see `run_graph_eagerly`."""
    return await asyncio.to_thread(run_graph_eagerly, app, graph)


def _run_replacement(app: App, id: str, text: str) -> EagerResult[Any]:
    """Run what a job put in its place, whose last job has its id."""
    return run_graph_eagerly(app, read_replacement(text))[id]


class _EagerGraph:
    """What the functions of schema/ do when members stop: count down, release, pass on errors."""

    def __init__(self, app: App, graph: Graph) -> None:
        self._app = app
        self._bundles = {one.id: one for one in graph.bundles}
        self._remaining = {one.id: one.total for one in graph.bundles}
        self._ended: dict[str, list[tuple[NewJob, EagerResult[Any]]]] = {}  # bundle id -> members
        self._waiting: dict[str, list[NewJob]] = {}
        self._results: dict[str, EagerResult[Any]] = {}
        self._jobs: dict[str, NewJob] = {}
        self._passive: set[str] = set()  # jobs that did not run for what lies before them
        self._ready: deque[NewJob] = deque()
        for job in graph.jobs:
            self._jobs[job.id] = job
            if job.after_bundle_id is None:
                self._ready.append(job)
            else:
                self._waiting.setdefault(job.after_bundle_id, []).append(job)

    def run(self) -> dict[str, EagerResult[Any]]:
        while self._ready:
            job = self._ready.popleft()
            failures = {
                id: self._failed_job(id) for id in self._results if self._results[id].failed()
            }
            with having(eager_failures_var, failures):
                self._end(job, run_eagerly(self._app, job))
        return self._results

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
        for job in waiting:
            if not failed:
                if job.after_on != "failure":
                    self._release(job, members)
                continue
            first, result = failed[0]
            passed_on = first.id in self._passive
            if job.after_on == "failure":
                if not passed_on:
                    self._release(job, [], failed_id=first.id)
            else:
                in_group = self._bundles[bundle_id].kind == "group" and not passed_on
                error = passed_error(first.id, result.job_state, result.error_info, in_group)
                if not in_group:
                    self._passive.add(job.id)
                unreached.append((job, self._cancelled(job, error)))
        return unreached

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
        )

    def _failed_job(self, id: str) -> Job:
        result, new = self._results[id], self._jobs[id]
        job = eager_request(self._app, new, 1).job
        return msgspec.structs.replace(job, state=result.job_state, error=result.error_info)


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
