"""`ResultSet`: results of any jobs, waited for together, in few statements."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from pgtasks import (
    App,
    AsyncResult,
    JobCancelledError,
    NotFoundError,
    ResultSet,
    ResultTimeoutError,
    TaskFailedError,
    allow_join_result,
)
from pgtasks.ids import new_id
from tests.fixtures.simulated_worker import SimulatedWorker
from tests.fixtures.waiting import Ran, finishing, inside_a_task


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


@pytest.fixture
def three(app: App, echo: Any) -> ResultSet[Any]:
    """Three jobs, of two tasks and queues."""
    return ResultSet([echo.delay(0), app.send_task("other", queue="others"), echo.delay(2)])


def progress(results: ResultSet[Any]) -> tuple[Any, ...]:
    return (
        results.completed_count(),
        results.ready(),
        results.waiting(),
        results.successful(),
        results.failed(),
    )


# How far they are


def test_progress_is_told_job_by_job(three, worker):
    seen = [progress(three)]
    worker.succeed(worker.claim_one())
    seen.append(progress(three))
    worker.fail(worker.claim_one("others"))
    seen.append(progress(three))
    worker.succeed(worker.claim_one())
    seen.append(progress(three))

    assert seen == [
        (0, False, True, False, False),
        (1, False, True, False, False),
        (1, False, True, False, True),
        (2, True, False, False, True),
    ]


def test_each_question_is_one_statement(three, statements):
    progress(three)
    three.forget()
    three.maybe_throw()

    assert [one.ids for one in statements] == [3] * 7


def test_an_empty_set_is_ready_and_asks_nobody(app, statements):
    results = ResultSet[Any]([], app)

    assert (results.get(timeout=0), list(results.iterate(timeout=0))) == ([], [])
    assert progress(results) == (0, True, False, True, False)
    results.forget()
    results.revoke()
    assert statements == []


# Waiting


def test_get_gives_the_results_in_the_order_of_the_set(three, worker):
    first, second = worker.claim()
    worker.succeed(second, "last")
    worker.succeed(worker.claim_one("others"), "middle")
    worker.succeed(first, "first")

    assert three.get(timeout=5) == ["first", "middle", "last"]
    assert three.join(5, True, 0.5) == ["first", "middle", "last"]


def test_a_callback_gets_them_in_order_and_get_gives_nothing(three, worker):
    worker.run_all("others", result="other")
    worker.run_all(result="one")
    seen: list[tuple[str, Any]] = []

    returned = three.get(timeout=5, callback=lambda id, value: seen.append((id, value)))

    assert returned == []
    assert seen == list(zip([one.id for one in three], ["one", "other", "one"], strict=True))


def test_get_raises_what_the_first_without_success_ended_with(three, worker):
    worker.fail(worker.claim(), "KeyError", "key")
    three[1].revoke()

    with pytest.raises(KeyError):
        three.get(timeout=5)
    first, second, third = three.get(timeout=5, propagate=False)
    assert isinstance(first, KeyError)
    assert isinstance(second, JobCancelledError)
    assert isinstance(third, KeyError)


def test_get_says_how_many_are_missing_when_the_time_is_over(three, worker):
    worker.succeed(worker.claim_one())

    with pytest.raises(ResultTimeoutError, match=r"^2 of 3 jobs are not finished after 0\.05 s$"):
        three.get(timeout=0.05)


def test_an_unknown_job_is_an_error_at_once(three):
    three.add(AsyncResult(new_id(), three.app))

    for ask in (three.get, three.ready, three.maybe_throw, lambda: next(three.iterate())):
        with pytest.raises(NotFoundError, match=f"no job has the id {three[3].id}"):
            ask()


def test_iterate_yields_values_as_they_come(three, dsn, monkeypatch):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    gates = [threading.Event(), threading.Event()]

    def finish_backwards(worker: SimulatedWorker) -> None:
        first, last = worker.claim()
        worker.succeed(last, "last")
        assert gates[0].wait(20)  # until the test has seen this one
        worker.succeed(worker.claim("others"), "middle")
        assert gates[1].wait(20)
        worker.succeed(first, "first")

    seen = []
    with finishing(dsn, finish_backwards):
        for value in three.iterate(timeout=20):
            seen.append(value)
            if len(seen) < 3:
                gates[len(seen) - 1].set()

    assert seen == ["last", "middle", "first"]


def test_iterate_raises_when_a_failed_one_comes(three, worker):
    worker.run_all("others", result="fine")
    worker.fail(worker.claim_one(), "shop.OutOfStock", "none")

    arrivals = three.iterate(timeout=0.05)

    with pytest.raises((TaskFailedError, ResultTimeoutError)) as raised:
        list(arrivals)
    assert raised.type is TaskFailedError
    values = three.iterate(timeout=0.05, propagate=False)
    kinds = {type(next(values)) for _ in range(2)}
    assert kinds == {str, TaskFailedError}
    with pytest.raises(ResultTimeoutError, match="1 of 3 jobs are"):
        next(values)


def test_iter_native_tells_whose_result_it_is(three, worker):
    worker.fail(worker.claim(), "ValueError", "no")
    worker.run_all("others", result=3)

    seen = dict(three.iter_native(timeout=5))

    good, bad = seen[three[1].id], seen[three[0].id]
    assert good == {"task_id": three[1].id, "status": "SUCCESS", "result": 3, "traceback": None}
    assert isinstance(bad["result"], ValueError)
    assert (bad["status"], bad["traceback"]) == ("FAILURE", "Traceback of ValueError")
    assert len(seen) == 3


def test_waiting_inside_of_a_task_is_refused_unless_allowed(app, three, worker):
    worker.run_all()
    worker.run_all("others")

    with inside_a_task(app):
        for wait in (three.get, three.join, three.iterate, three.aiterate, three.iter_native):
            with pytest.raises(RuntimeError, match="may wait for ever"):
                wait()
        assert list(three.iterate(disable_sync_subtasks=False)) == [None] * 3
        with allow_join_result():
            assert three.join(timeout=5) == [None] * 3


def test_ignored_and_eager_results_are_not_waited_for(app, echo, worker, statements):
    results = ResultSet([echo.apply((1,)), echo.apply_async((2,), ignore_result=True)])

    assert (results.get(timeout=0), list(results.iterate(timeout=0))) == ([1, None], [1, None])
    results.add(echo.delay(3))
    worker.run_all(result=3)
    statements.clear()

    assert results.get(timeout=5) == [1, None, 3]
    assert statements == [Ran("get_outcomes", 1)]


# What waiting costs


def in_batches(size: int) -> Any:
    def finish(worker: SimulatedWorker) -> None:
        while held := worker.claim(limit=size):
            worker.succeed(held, "done")

    return finish


def test_waiting_for_many_takes_few_statements_and_only_asks_for_what_is_open(
    app, echo, dsn, statements, monkeypatch
):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    monkeypatch.setattr("pgtasks.waiting.APART", 0.0)  # it waits for the last of them all the same
    results = ResultSet(app.enqueue_many([echo.s(n) for n in range(1000)]))
    statements.clear()

    with finishing(dsn, in_batches(50)):
        assert results.get(timeout=30) == ["done"] * 1000

    # Before it listens, when it does, and when all were told; one more if the first batch came in between.
    assert {one.name for one in statements} == {"get_outcomes"}
    assert len(statements) <= 4
    assert statements[0].ids == 1000


def test_iterating_over_many_asks_only_for_what_was_told(app, echo, dsn, statements, monkeypatch):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    results = ResultSet(app.enqueue_many([echo.s(n) for n in range(1000)]))
    statements.clear()

    with finishing(dsn, in_batches(100)):
        assert list(results.iterate(timeout=30)) == ["done"] * 1000

    sizes = [one.ids for one in statements]
    assert sizes[:2] == [1000, 1000]
    assert sum(sizes[2:]) <= 1000
    assert len(sizes) <= 12


def test_waiting_polls_for_what_is_open_when_nothing_is_told(app, three, worker, monkeypatch):
    monkeypatch.setattr(app.listener, "subscribe", lambda callback: lambda: None)  # deaf
    asked: list[int] = []
    run = app.run

    def look(operation: Any, connection: Any = None) -> Any:
        found = run(operation, connection)
        asked.append(len(operation.parameters["ids"]))
        if len(asked) == 2:
            worker.run_all(result="late")
            worker.run_all("others", result="late")
        return found

    worker.succeed(worker.claim_one(), "early")
    monkeypatch.setattr(app, "run", look)

    assert three.get(timeout=20) == ["early", "late", "late"]
    assert asked == [3, 2, 2]


def test_waiting_for_many_takes_no_more_connections_than_for_one(app, echo, dsn, connection):
    results = ResultSet(app.enqueue_many([echo.s(n) for n in range(200)]))
    sessions: Sequence[Any] = ()

    def count_and_finish(worker: SimulatedWorker) -> None:
        nonlocal sessions
        sessions = connection.execute(
            "select query from pg_stat_activity"
            " where datname = current_database() and application_name like 'pgtasks%'"
        ).fetchall()
        worker.run_all(result=1)

    with finishing(dsn, count_and_finish):
        assert list(results.iterate(timeout=20)) == [1] * 200

    # One to listen on; one to look with, and the pool opens another while that is being opened.
    assert 2 <= len(sessions) <= 3


# Changing them


def test_revoke_and_forget_are_for_all(three, worker):
    worker.succeed(worker.claim_one(), 1)
    three.forget()
    three.revoke()

    assert [one.state for one in three] == ["SUCCESS", "REVOKED", "REVOKED"]
    assert three[0].get(timeout=5) is None


def test_maybe_throw_does_not_wait(three, worker):
    seen: list[Any] = []
    first, second = worker.claim()
    worker.succeed(first, 1)
    three.maybe_throw(callback=lambda id, value: seen.append(value))
    worker.fail(second, "KeyError", "key")

    with pytest.raises(KeyError):
        three.maybe_throw()
    with pytest.raises(KeyError):
        three[2].maybe_throw()

    assert seen == [1, None, None]
    assert (three[0].maybe_throw(), three[1].maybe_throw()) == (1, None)
    assert isinstance(three[2].maybe_throw(propagate=False), KeyError)


async def test_the_a_twins_give_the_same_answers(async_app, worker):
    results = ResultSet([await async_app.asend_task("echo") for _ in range(3)], async_app)
    first, second, third = worker.claim()
    worker.succeed(first, "first")
    halfway = (
        await results.acompleted_count(),
        await results.aready(),
        await results.awaiting(),
        await results.asuccessful(),
        await results.afailed(),
    )
    with pytest.raises(ResultTimeoutError, match="2 of 3"):
        await results.aget(timeout=0.05)
    worker.succeed(second, "second")
    await results.amaybe_throw()
    worker.fail(third, "KeyError", "key")

    assert halfway == (1, False, True, False, False)
    with pytest.raises(KeyError):
        await results.amaybe_throw()
    with pytest.raises(KeyError):
        await results.ajoin(timeout=5)
    one, two, three = await results.aget(timeout=5, propagate=False)
    assert (one, two, type(three)) == ("first", "second", KeyError)
    values = [one async for one in results.aiterate(timeout=5, propagate=False)]
    assert len(values) == 3
    assert {id async for id, _ in results.aiter_native(timeout=5)} == {one.id for one in results}
    await results.aforget()
    await results.arevoke()
    assert (await results.aget(timeout=5, propagate=False))[:2] == [None, None]


async def test_aiterate_yields_values_as_they_come(async_app, dsn, monkeypatch):
    monkeypatch.setattr("pgtasks.waiting.FIRST_POLL", 30.0)
    results = ResultSet([await async_app.asend_task("echo") for _ in range(2)], async_app)
    gate = threading.Event()

    def finish_backwards(worker: SimulatedWorker) -> None:
        first, last = worker.claim()
        worker.succeed(last, "last")
        assert gate.wait(20)
        worker.succeed(first, "first")

    seen = []
    with finishing(dsn, finish_backwards):
        async for value in results.aiterate(timeout=20):
            seen.append(value)
            gate.set()

    assert seen == ["last", "first"]
