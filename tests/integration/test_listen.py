"""Listeners: what `App.listen` tells the functions that asked for stopped jobs and bundles."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgtasks import App, Bundle, Job, JobState, group
from tests.fixtures.eventually import eventually


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def somebody_listens(connection: psycopg.Connection[Any]) -> None:
    assert connection.execute("select from pgtasks.listener").fetchone() is not None


@contextmanager
def listening(app: App, connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Call the app's listeners in a thread for a block."""
    stop = threading.Event()
    thread = threading.Thread(target=app.listen, kwargs={"stop": stop.is_set})
    thread.start()
    try:
        eventually(lambda: somebody_listens(connection))
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def told(calls: list[Any], count: int) -> list[Any]:
    def enough() -> list[Any]:
        assert len(calls) >= count
        return calls

    return eventually(enough)


def test_every_way_in_which_a_job_stops_is_told(app, echo, worker, connection):
    calls: list[tuple[str, JobState, bool]] = []

    @app.on_job_stopped
    def stopped(job: Job, will_retry: bool) -> None:
        calls.append((job.id, job.state, will_retry))

    good, bad, again, cancelled = (echo.delay(n).id for n in range(4))
    app.send_task("elsewhere")
    with listening(app, connection):
        held = {one.id: one for one in worker.claim()}
        worker.succeed(held[good], 1)
        worker.fail(held[bad])
        worker.retry(held[again], delay=60)
        worker.release(held[cancelled])
        app.cancel(cancelled)
        told(calls, 4)

    assert calls == [
        (good, JobState.SUCCEEDED, False),
        (bad, JobState.FAILED, False),
        (again, JobState.SCHEDULED, True),
        (cancelled, JobState.CANCELLED, False),
    ]


def test_a_listener_gets_the_whole_job_with_its_result(app, echo, worker, connection):
    jobs: list[Job] = []
    app.on_job_stopped(lambda job, will_retry: jobs.append(job))
    result = echo.apply_async((7,), origin="shop")

    with listening(app, connection):
        worker.succeed(worker.claim(), {"n": 7})
        told(jobs, 1)

    assert jobs == [result.job()]
    assert (jobs[0].origin, jobs[0].args, jobs[0].result) == ("shop", [7], {"n": 7})


def test_stopped_bundles_are_told_to_all_or_to_those_of_one_type(app, echo, worker, connection):
    every: list[Bundle] = []
    imports: list[Bundle] = []
    app.on_bundle_stopped(every.append)
    app.on_bundle_stopped(type="import")(imports.append)
    results = [
        group(echo.s(n) for n in range(2)).apply(type=type) for type in ("import", "other", None)
    ]

    with listening(app, connection):
        for held in worker.claim():
            worker.succeed(held)
        told(every, 3)

    assert [bundle.id for bundle in every] == [result.id for result in results]
    assert {bundle.state for bundle in every} == {"succeeded"}
    assert [bundle.id for bundle in imports] == [results[0].id]


def test_a_listener_that_raises_keeps_nobody_from_hearing(app, echo, worker, connection, caplog):
    heard: list[str] = []

    @app.on_job_stopped
    def broken(job: Job, will_retry: bool) -> None:
        raise ValueError("broken")

    app.on_job_stopped(lambda job, will_retry: heard.append(job.id))
    ids = [echo.delay(n).id for n in range(2)]

    with listening(app, connection):
        for held in worker.claim():
            worker.succeed(held)
        told(heard, 2)

    assert heard == ids
    assert [record.getMessage() for record in caplog.records] == ["a listener raised"] * 2


def test_what_stops_while_nobody_listens_is_not_told(app, echo, worker, connection):
    heard: list[str] = []
    app.on_job_stopped(lambda job, will_retry: heard.append(job.id))
    echo.delay()
    worker.run_all()
    later = echo.delay()

    with listening(app, connection):
        worker.run_all()
        told(heard, 1)

    assert heard == [later.id]


def test_many_jobs_of_one_batch_are_all_told(app, echo, worker, connection):
    heard: list[str] = []
    app.on_job_stopped(lambda job, will_retry: heard.append(job.id))
    results = app.enqueue_many([echo.s()] * 450)

    with listening(app, connection):
        worker.run_all()
        told(heard, 450)

    assert sorted(heard) == sorted(result.id for result in results)


async def test_alisten_tells_until_it_is_cancelled(async_app, worker, connection):
    heard: list[str] = []
    async_app.on_job_stopped(lambda job, will_retry: heard.append(job.id))
    result = await async_app.asend_task("echo")

    listening = asyncio.create_task(async_app.alisten())
    await asyncio.to_thread(eventually, lambda: somebody_listens(connection))
    worker.run_all()
    await asyncio.to_thread(told, heard, 1)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert heard == [result.id]
