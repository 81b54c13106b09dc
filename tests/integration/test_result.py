"""`AsyncResult`: what a caller learns of its job, and how ``get()`` waits for it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from pgtasks import (
    App,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    NotFoundError,
    ResultTimeoutError,
    TaskFailedError,
)
from pgtasks.ids import new_id


class OutOfStockError(Exception):
    """An error of the user's own."""


class FussyError(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(one, two)


NAME = f"{__name__}.OutOfStockError"


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


def test_the_state_is_celerys_word_for_each_of_ours(app, echo, worker, connection):
    result = echo.delay()
    states = {"ready": result.state}
    held = worker.claim_one()
    states["running"] = result.state
    worker.retry(held, delay=60)
    states["scheduled again"] = result.state
    connection.execute("update pgtasks.job set state = 'ready'")
    states["ready again"] = result.state
    states["scheduled"] = echo.apply_async(countdown=60).state
    for outcome in ("succeeded", "failed", "cancelled", "expired", "quarantined"):
        one = echo.apply_async(queue=outcome)
        worker.finish(worker.claim_one(outcome), outcome)
        states[outcome] = one.state
    for state in ("parked", "blocked"):
        one = echo.apply_async(queue=state)
        connection.execute("update pgtasks.job set state = %s where id = %s", [state, one.id])
        states[state] = one.state

    assert states == {
        "ready": "PENDING",
        "scheduled": "PENDING",
        "parked": "PENDING",
        "blocked": "PENDING",
        "running": "STARTED",
        "scheduled again": "RETRY",
        "ready again": "RETRY",
        "succeeded": "SUCCESS",
        "failed": "FAILURE",
        "quarantined": "FAILURE",
        "cancelled": "REVOKED",
        "expired": "REVOKED",
    }


def test_a_handle_answers_every_question_at_each_stage(app, echo, worker):
    def answers(result: Any) -> tuple[Any, ...]:
        return (
            result.ready(),
            result.successful(),
            result.failed(),
            result.result,
            result.traceback,
        )

    good, bad = echo.delay(), echo.delay()
    waiting = answers(good)
    one, other = worker.claim()
    worker.succeed(one, {"n": 1})
    worker.fail(other, "ValueError", "no")

    assert waiting == (False, False, False, None, None)
    assert answers(good) == (True, True, False, {"n": 1}, None)
    ready, successful, failed, error, traceback = answers(bad)
    assert (ready, successful, failed, traceback) == (True, False, True, "Traceback of ValueError")
    assert isinstance(error, ValueError)
    assert (good.status, good.info, good.task_id) == ("SUCCESS", {"n": 1}, good.id)
    assert app.result(good.id) == good


async def test_the_a_twins_give_the_same_answers(async_app, worker):
    good = async_app.send_task("echo")
    bad = async_app.send_task("echo")
    one, other = worker.claim()
    worker.succeed(one, 1)
    worker.fail(other)

    assert await good.astate() == "SUCCESS"
    assert await good.aresult() == 1
    assert (await good.aready(), await good.asuccessful(), await good.afailed()) == (
        True,
        True,
        False,
    )
    assert await good.aget(timeout=5) == 1
    assert (await good.ajob()).id == good.id
    assert await bad.atraceback() == "Traceback of ValueError"
    assert await bad.afailed()
    with pytest.raises(ValueError, match=r"^no$"):
        await bad.aget(timeout=5)
    await good.aforget()
    assert await good.aget(timeout=5) is None
    late = async_app.send_task("echo")
    await late.arevoke()
    assert await late.astate() == "REVOKED"
    with pytest.raises(NotFoundError):
        await async_app.result(new_id()).aget(timeout=5)
    with pytest.raises(ResultTimeoutError):
        await async_app.send_task("echo").aget(timeout=0.01)


def test_an_unknown_id_is_an_error_and_not_pending(app):
    result = app.result(new_id())

    for ask in (lambda: result.state, result.ready, lambda: result.result, result.job):
        with pytest.raises(NotFoundError, match=f"no job has the id {result.id}"):
            ask()
    with pytest.raises(LookupError):
        result.get(timeout=5)


@pytest.mark.parametrize(
    ("type", "args", "expected"),
    [
        ("ValueError", ["no", 3], ValueError("no", 3)),
        ("KeyError", ["key"], KeyError("key")),
        ("FileNotFoundError", [2, "gone"], FileNotFoundError(2, "gone")),
        ("ZeroDivisionError", [], ZeroDivisionError()),
    ],
)
def test_get_raises_a_builtin_exception_with_its_args(echo, worker, type, args, expected):
    result = echo.delay()
    worker.fail(worker.claim(), type, "message", args=args)

    with pytest.raises(type_of(expected)) as raised:
        result.get(timeout=5)

    assert type_of(raised.value) is type_of(expected)
    assert raised.value.args == expected.args
    cause = raised.value.__cause__
    assert isinstance(cause, TaskFailedError)
    assert (cause.type_name, cause.traceback) == (type, f"Traceback of {type}")


def type_of(error: BaseException) -> type[BaseException]:
    return error.__class__


@pytest.mark.parametrize(
    "task_options",
    [{}, {"throws": OutOfStockError}, {"retry_for": (OutOfStockError,)}],
    ids=["known_errors", "throws", "retry_for"],
)
def test_get_raises_the_classes_that_the_app_knows(app, worker, task_options):
    if not task_options:
        app.known_errors.append(OutOfStockError)

    @app.task(name="sell", **task_options)
    def sell() -> None: ...

    result = sell.delay()
    worker.fail(worker.claim(), NAME, "none", args=["none", 7])

    with pytest.raises(OutOfStockError) as raised:
        result.get(timeout=5)
    assert raised.value.args == ("none", 7)


def test_get_raises_a_class_that_was_declared_after_the_first_failure(app, echo, worker):
    first = echo.delay()
    worker.fail(worker.claim(), NAME)
    with pytest.raises(TaskFailedError):
        first.get(timeout=5)

    @app.task(name="sell", throws=OutOfStockError)
    def sell() -> None: ...

    second = sell.delay()
    worker.fail(worker.claim(), NAME)
    with pytest.raises(OutOfStockError):
        second.get(timeout=5)


@pytest.mark.parametrize(
    "type",
    [
        NAME,  # importable, and yet not declared
        "SystemExit",
        "KeyboardInterrupt",
        "print",
        "os.system",
        "builtins.ValueError",
        "subprocess.CalledProcessError",
        "",
    ],
)
def test_no_class_is_looked_up_by_a_name_from_the_database(echo, worker, type):
    result = echo.delay()
    worker.fail(worker.claim(), type, "message", args=["message"])

    with pytest.raises(TaskFailedError) as raised:
        result.get(timeout=5)

    error = raised.value
    assert (error.type_name, error.message) == (type, "message")
    assert error.traceback == f"Traceback of {type}"
    assert isinstance(error, JobFailedError)


def test_a_known_class_that_refuses_the_args_becomes_a_task_failed_error(app, echo, worker):
    app.known_errors.append(FussyError)
    result = echo.delay()
    worker.fail(worker.claim(), f"{__name__}.FussyError", "message", args=[1, 2])

    with pytest.raises(TaskFailedError, match="FussyError: message"):
        result.get(timeout=5)


def test_get_says_how_a_job_ended_that_never_ran(echo, worker):
    cancelled, expired, lost = echo.delay(), echo.delay(), echo.delay()
    cancelled.revoke()
    one, other = worker.claim()
    worker.finish(one, "expired", age=None)
    worker.finish(other, "quarantined")

    with pytest.raises(JobCancelledError, match="was cancelled"):
        cancelled.get(timeout=5)
    with pytest.raises(JobExpiredError, match="expired before"):
        expired.get(timeout=5)
    with pytest.raises(JobFailedError, match="ended quarantined"):
        lost.get(timeout=5)


def test_get_without_propagation_returns_the_exception(echo, worker):
    result = echo.delay()
    worker.fail(worker.claim(), "ValueError", "no")

    error = result.get(timeout=5, propagate=False)

    assert isinstance(error, ValueError)


def test_a_forgotten_result_is_gone_and_the_job_stays(echo, worker):
    result, other = echo.delay(), echo.delay()
    worker.run_all(result=1)

    result.forget()

    assert result.get(timeout=5) is None
    assert (result.state, other.get(timeout=5)) == ("SUCCESS", 1)


def test_a_result_is_rebuilt_as_the_annotated_type(app, worker):
    @dataclass
    class Receipt:
        at: datetime
        total: int

    @app.task(name="sell")
    def sell() -> Receipt:
        raise AssertionError

    sell.run.__annotations__["return"] = Receipt  # what a module-level class would be
    result = sell.delay()
    worker.succeed(worker.claim(), {"at": "2024-01-02T03:04:05+00:00", "total": 3})

    assert result.get(timeout=5) == Receipt(datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), 3)
    assert sell.AsyncResult(result.id).get(timeout=5) == result.get(timeout=5)
    assert app.result(result.id).get(timeout=5) == {
        "at": "2024-01-02T03:04:05+00:00",
        "total": 3,
    }
