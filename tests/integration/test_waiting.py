"""Waiting for a result: ``get()`` wakes by notification, polls beneath, and gives up in time."""

import time
from typing import Any

import pytest

from pgtasks import App, ResultTimeoutError, allow_join_result
from tests.fixtures.simulated_worker import SimulatedWorker
from tests.fixtures.waiting import finishing, inside_a_task


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


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

    with inside_a_task(app):
        with pytest.raises(RuntimeError, match="disable_sync_subtasks=False"):
            result.get(timeout=5)
        assert result.get(timeout=5, disable_sync_subtasks=False) == 1
        with allow_join_result():
            assert result.get(timeout=5) == 1
        with pytest.raises(RuntimeError, match="may wait for ever"):
            result.get(timeout=5)


def test_get_calls_back_with_id_and_value(echo, worker):
    result = echo.delay()
    worker.run_all(result="done")
    seen: list[tuple[str, Any]] = []

    value = result.get(timeout=5, interval=0.1, callback=lambda id, value: seen.append((id, value)))

    assert seen == [(result.id, value)] == [(result.id, "done")]


@pytest.mark.parametrize("by_the_call", [True, False])
def test_an_ignored_result_is_none_at_once(app, by_the_call):
    task = app.task(name="forgetful", ignore_result=not by_the_call)(lambda: 1)
    said = {"ignore_result": True} if by_the_call else {}

    with inside_a_task(app):  # nothing waits, so nothing is refused
        assert task.apply_async(**said).get() is None
        assert app.send_task("forgetful", **said).get() is None
        assert task.s().set(**said).delay().get() is None


def test_a_result_that_is_ignored_by_its_task_is_waited_for_if_the_call_says_so(app):
    task = app.task(name="forgetful", ignore_result=True)(lambda: 1)

    with pytest.raises(ResultTimeoutError):
        task.apply_async(ignore_result=False).get(timeout=0)


def test_a_process_that_waited_leaves_no_listener_row_behind(app, echo, dsn, connection):
    result = echo.delay()
    with finishing(dsn, lambda worker: worker.succeed(worker.claim())):
        result.get(timeout=60)

    app.close()

    assert connection.execute("select count(*) from pgtasks.listener").fetchone() == (0,)
