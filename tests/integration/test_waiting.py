"""Waiting for a result: ``get()`` wakes by notification, polls beneath, and gives up in time."""

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgtasks import App, ResultTimeoutError
from pgtasks.context import Request, having, request_var
from pgtasks.ids import new_id
from tests.fixtures.eventually import eventually
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


@contextmanager
def finishing(dsn: str, when_listening: Callable[[SimulatedWorker], object]) -> Any:
    """Let another thread act as a worker as soon as somebody waits for results."""
    errors: list[BaseException] = []

    def act() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:

                def somebody_listens() -> None:
                    assert connection.execute("select from pgtasks.listener").fetchone() is not None

                eventually(somebody_listens)
                when_listening(SimulatedWorker(connection))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert errors == []


def test_get_gives_up_after_the_timeout_and_the_job_goes_on(echo, worker):
    result = echo.delay()

    with pytest.raises(ResultTimeoutError, match=r"is not finished after 0\.05 s"):
        result.get(timeout=0.05)
    with pytest.raises(TimeoutError):
        result.get(timeout=0)

    assert worker.run_all() == 1


def test_get_wakes_by_notification(app, echo, dsn, monkeypatch):
    # Polling alone would take longer than the test may.
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    result = echo.delay()
    began = time.monotonic()

    with finishing(dsn, lambda worker: worker.succeed(worker.claim(), "done")):
        assert result.get(timeout=60) == "done"

    assert time.monotonic() - began < 10


async def test_aget_wakes_by_notification(async_app, dsn, monkeypatch):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    result = await async_app.asend_task("echo")
    began = time.monotonic()

    with finishing(dsn, lambda worker: worker.succeed(worker.claim(), "done")):
        assert await result.aget(timeout=60) == "done"

    assert time.monotonic() - began < 10


def test_get_goes_on_waiting_over_a_retry(app, echo, dsn):
    result = echo.delay()

    def retry_once(worker: SimulatedWorker) -> None:
        worker.retry(worker.claim(), delay=0)
        worker.succeed(worker.claim(), "second")

    with finishing(dsn, retry_once):
        assert result.get(timeout=60) == "second"


def test_get_inside_of_a_task_is_refused_unless_asked_for(app, echo, worker):
    result = echo.delay()
    worker.run_all(result=1)
    request = Request(app, new_id(), "t", "default", 1, 0, None, None, "h", {}, result.job)

    with having(request_var, request):
        with pytest.raises(RuntimeError, match="disable_sync_subtasks=False"):
            result.get(timeout=5)
        assert result.get(timeout=5, disable_sync_subtasks=False) == 1


def test_a_process_that_waited_leaves_no_listener_row_behind(app, echo, dsn, connection):
    result = echo.delay()
    with finishing(dsn, lambda worker: worker.succeed(worker.claim())):
        result.get(timeout=60)

    app.close()

    assert connection.execute("select count(*) from pgtasks.listener").fetchone() == (0,)
