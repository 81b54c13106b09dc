"""`GroupResult`: the results of a group in order, and how far it is."""

import threading
from typing import Any

import psycopg
import pytest

from pgtasks import (
    App,
    JobCancelledError,
    NotFoundError,
    ResultTimeoutError,
    TaskFailedError,
    group,
)
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


def progress(result: Any) -> tuple[Any, ...]:
    return (
        result.completed_count(),
        result.ready(),
        result.waiting(),
        result.successful(),
        result.failed(),
    )


def test_progress_is_told_member_by_member(echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    first, second, third = worker.claim()

    seen = [progress(result)]
    worker.succeed(first)
    seen.append(progress(result))
    worker.fail(second)
    seen.append(progress(result))
    worker.succeed(third)
    seen.append(progress(result))

    assert seen == [
        (0, False, True, False, False),
        (1, False, True, False, False),
        (1, False, True, False, True),
        (2, True, False, False, True),
    ]


def test_get_gives_the_results_in_the_order_of_the_signatures(app, echo, worker):
    result = group(echo.s(n) for n in range(12)).apply()
    for held in reversed(worker.claim()):
        worker.succeed(held, held.args)

    expected = [f"[{n}]" for n in range(12)]
    assert result.get(timeout=5) == expected
    assert app.group_result(result.id).get(timeout=5) == expected
    assert [one.get(timeout=5) for one in result] == expected
    assert (len(result), result[3].result) == (12, "[3]")
    assert result.successful()


async def test_the_a_twins_give_the_same_answers(async_app, worker):
    @async_app.task(name="echo")
    def echo(n: int) -> None: ...

    result = await group(echo.s(n) for n in range(3)).aapply()
    first, *rest = worker.claim()
    worker.succeed(first, "first")
    halfway = (await result.aready(), await result.awaiting(), await result.acompleted_count())
    worker.succeed(rest, "rest")
    unknown = async_app.group_result(new_id())

    assert halfway == (False, True, 1)
    assert await result.aget(timeout=5) == ["first", "rest", "rest"]
    assert await async_app.group_result(result.id).aget(timeout=5) == ["first", "rest", "rest"]
    assert [one.id for one in await async_app.group_result(result.id).aresults()] == [
        one.id for one in result
    ]
    assert (await result.asuccessful(), await result.afailed()) == (True, False)
    assert (await result.abundle()).state == "succeeded"
    with pytest.raises(NotFoundError):
        await unknown.aget(timeout=5)
    with pytest.raises(ResultTimeoutError):
        await (await group([echo.s(1)]).aapply()).aget(timeout=0.01)


def test_get_raises_what_the_first_failed_member_ended_with(echo, worker):
    result = group(echo.s(n) for n in range(4)).apply()
    result[3].revoke()
    first, second, third = worker.claim()
    worker.fail(third, "KeyError", "third")
    worker.fail(second, "shop.OutOfStock", "second")
    worker.succeed(first, 1)

    with pytest.raises(TaskFailedError, match="second"):
        result.get(timeout=5)
    one, two, three, four = result.get(timeout=5, propagate=False)
    assert one == 1
    assert isinstance(two, TaskFailedError)
    assert isinstance(three, KeyError)
    assert isinstance(four, JobCancelledError)


def test_a_member_of_which_nothing_is_kept_gives_none(echo, worker):
    result = group(echo.s(n) for n in range(2)).apply()
    first, second = worker.claim()
    worker.finish(first, keep=False)
    worker.succeed(second, 2)

    assert result.get(timeout=5) == [None, 2]


def test_get_waits_for_the_last_member_and_wakes_by_notification(echo, dsn, monkeypatch):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    result = group(echo.s(n) for n in range(3)).apply()

    def finish_one_by_one() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:

            def somebody_listens() -> None:
                assert connection.execute("select from pgtasks.listener").fetchone() is not None

            eventually(somebody_listens)
            worker = SimulatedWorker(connection)
            for held in worker.claim():
                worker.succeed(held, held.bundle_index)

    thread = threading.Thread(target=finish_one_by_one)
    thread.start()
    try:
        assert result.get(timeout=20) == [0, 1, 2]
    finally:
        thread.join()


def test_get_gives_up_after_the_timeout(echo):
    result = group(echo.s(n) for n in range(2)).apply()

    with pytest.raises(
        ResultTimeoutError, match=f"bundle {result.id} is not finished after 0.05 s"
    ):
        result.get(timeout=0.05)


def test_an_unknown_bundle_is_an_error(app):
    result = app.group_result(new_id())

    with pytest.raises(NotFoundError, match=f"no bundle has the id {result.id}"):
        result.get(timeout=5)
    with pytest.raises(NotFoundError):
        result.completed_count()


def test_revoke_cancels_what_is_not_finished(echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    worker.succeed(worker.claim_one(), 1)

    result.revoke()

    assert [one.state for one in result] == ["SUCCESS", "REVOKED", "REVOKED"]
    with pytest.raises(JobCancelledError):
        result.get(timeout=5)


def test_get_inside_of_a_task_is_refused_unless_asked_for(app, echo, worker):
    result = group([echo.s()]).apply()
    worker.run_all(result=1)
    request = Request(app, new_id(), "t", "default", 1, 0, None, None, "h", {}, result[0].job)

    with having(request_var, request):
        with pytest.raises(RuntimeError, match="may wait for ever"):
            result.get(timeout=5)
        assert result.get(timeout=5, disable_sync_subtasks=False) == [1]
