"""An eager job runs at once in the caller, through the same codec, retries and hooks as in a worker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from pgtasks import App, Ignore, Job, JobState, Reject, Retry, Task, current_job, group
from pgtasks.eager import EagerResult
from pgtasks.errors import (
    EncodingError,
    JobFailedError,
    MaxRetriesExceededError,
    TaskFailedError,
    UnknownTaskError,
)


class OrderError(Exception):
    """Known to the app."""


class StrangeError(Exception):
    """Known to nobody."""


@dataclasses.dataclass
class Order:
    id: UUID
    total: Decimal
    placed: datetime


ORDER = Order(UUID(int=7), Decimal("9.90"), datetime(2024, 2, 29, tzinfo=UTC))


@pytest.fixture
def app() -> App:
    return App("shop", eager=True, known_errors=[OrderError])


# Results


def test_a_job_runs_at_once_and_gives_its_result(app: App):
    ran: list[int] = []

    @app.task(name="shop.double")
    def double(n: int) -> int:
        ran.append(n)
        return 2 * n

    result = double.delay(4)

    assert ran == [4]
    assert isinstance(result, EagerResult)
    assert result.get() == 8
    assert (result.state, result.result, result.traceback) == ("SUCCESS", 8, None)
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)


async def test_the_twins_know_the_same(app: App):
    @app.task(name="shop.one")
    def one() -> int:
        return 1

    result = await one.adelay()

    assert await result.aget() == 1
    assert await result.astate() == "SUCCESS"
    assert await result.aresult() == 1
    assert await result.aready()
    assert await result.asuccessful()
    assert not await result.afailed()
    assert await result.atraceback() is None


def test_every_way_to_call_runs(app: App):
    @app.task(name="shop.add")
    def add(a: int, b: int = 0) -> int:
        return a + b

    assert add(1, 2) == 3
    assert add.delay(1, b=2).get() == 3
    assert add.apply_async((1,), {"b": 2}, countdown=60, queue="other").get() == 3
    assert add.apply_at(datetime(2100, 1, 1, tzinfo=UTC), 1).get() == 1
    assert add.apply_at(timedelta(days=1), 1).get() == 1
    assert add.apply((1, 2)).get() == 3
    assert app.send_task("shop.add", (1,), {"b": 2}).get() == 3
    assert [one.get() for one in app.enqueue_many([add.s(1), add.s(2)])] == [1, 2]


def test_an_error_is_kept_until_it_is_asked_for(app: App):
    @app.task(name="shop.fails")
    def fails() -> None:
        raise ValueError("no", 7)

    result = fails.delay()

    assert result.state == "FAILURE"
    assert isinstance(result.result, ValueError)
    assert "ValueError: ('no', 7)" in (result.traceback or "")
    assert isinstance(result.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="no") as caught:
        result.get()
    assert caught.value.args == ("no", 7)
    assert isinstance(caught.value.__cause__, TaskFailedError)


def test_an_error_that_the_app_knows_is_raised_as_itself_others_by_name(app: App):
    @app.task(name="shop.known")
    def known() -> None:
        raise OrderError("late")

    @app.task(name="shop.strange")
    def strange() -> None:
        raise StrangeError("odd")

    with pytest.raises(OrderError, match="late"):
        known.delay().get()
    with pytest.raises(TaskFailedError, match=r"StrangeError: odd"):
        strange.delay().get()


def test_apply_may_throw(app: App):
    @app.task(name="shop.fails")
    def fails() -> None:
        raise ValueError("no")

    assert fails.apply().failed()
    with pytest.raises(ValueError, match="no"):
        fails.apply(throw=True)


def test_apply_needs_no_eager_mode():
    app = App("shop", eager=False)
    task = app.task(name="shop.one")(lambda: 1)

    assert task.apply().get() == 1


def test_an_unknown_task_is_refused_at_once(app: App):
    with pytest.raises(UnknownTaskError, match=r"shop\.nothing"):
        app.send_task("shop.nothing")


def test_reject_fails_and_ignore_succeeds_without_a_result(app: App):
    @app.task(name="shop.reject", retries=3)
    def reject() -> None:
        raise Reject("bad order")

    @app.task(name="shop.ignore")
    def ignore() -> int:
        raise Ignore

    with pytest.raises(JobFailedError, match="bad order"):
        reject.delay().get()
    assert ignore.delay().state == "SUCCESS"
    assert ignore.delay().get() is None


@pytest.mark.parametrize("option", ["ignore_result", "keep_history"])
def test_a_result_that_is_not_kept_is_none(app: App, option: str):
    said = {option: option == "ignore_result"}
    task = app.task(name="shop.one", **said)(lambda: 1)

    assert task.delay().get() is None


def test_a_result_may_be_ignored_by_the_call(app: App):
    task = app.task(name="shop.one")(lambda: 1)

    assert task.apply_async(ignore_result=True).get() is None


# Retries


def test_retries_come_at_once(app: App):
    attempts: list[int] = []

    @app.task(name="shop.flaky", retries=3, retry_schedule=[3600])
    def flaky() -> int:
        attempts.append(current_job().attempt)
        if len(attempts) < 3:
            raise OSError
        return len(attempts)

    assert flaky.delay().get() == 3
    assert attempts == [1, 2, 3]


def test_retries_end(app: App):
    attempts: list[int] = []

    @app.task(name="shop.broken", retries=2)
    def broken() -> None:
        attempts.append(1)
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        broken.delay().get()
    assert len(attempts) == 3


def test_the_call_may_say_how_many(app: App):
    attempts: list[int] = []

    @app.task(name="shop.broken")
    def broken() -> None:
        attempts.append(1)
        raise OSError

    broken.apply_async(retries=4)

    assert len(attempts) == 5


def test_self_retry_and_raise_retry(app: App):
    @app.task(name="shop.bound", bind=True, max_retries=2)
    def bound(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=60)
        return int(self.request.retries)

    @app.task(name="shop.raised", retries=1)
    def raised() -> int:
        if current_job().attempt == 1:
            raise Retry(after=timedelta(hours=1))
        return current_job().attempt

    assert bound.delay().get() == 2
    assert raised.delay().get() == 2


def test_self_retry_without_a_retry_left(app: App):
    @app.task(name="shop.bound", bind=True, max_retries=1)
    def bound(self: Any, exc: bool) -> None:
        raise self.retry(exc=OrderError("late") if exc else None)

    with pytest.raises(OrderError, match="late"):
        bound.delay(exc=True).get()
    with pytest.raises(MaxRetriesExceededError, match="was retried 1 times, and 1 are allowed"):
        bound.delay(exc=False).get()


def test_retry_called_directly_raises_the_reason(app: App):
    @app.task(name="shop.bound", bind=True)
    def bound(self: Any) -> None:
        assert self.request.called_directly
        raise self.retry(exc=OrderError("late"))

    with pytest.raises(OrderError, match="late"):
        bound()


# Typed arguments


def test_annotated_arguments_are_rebuilt_after_the_codec(app: App):
    seen: list[Any] = []

    @app.task(name="shop.ship")
    def ship(order: Order, when: datetime, *tags: str, rush: timedelta | None = None) -> None:
        seen.extend([order, when, tags, rush])

    when = datetime(2024, 3, 1, tzinfo=UTC)
    ship.delay(ORDER, when, "a", rush=timedelta(hours=2)).get()

    assert seen == [ORDER, when, ("a",), timedelta(hours=2)]
    assert seen[0] is not ORDER


def test_a_result_is_rebuilt_as_annotated(app: App):
    @app.task(name="shop.find")
    def find() -> Order:
        return ORDER

    result = find.delay()

    assert result.get() == ORDER
    assert result.get() is not ORDER


def test_what_does_not_fit_its_annotation_fails_the_job_not_the_caller(app: App):
    @app.task(name="shop.ship", retries=3)
    def ship(order: Order) -> None: ...

    result = ship.delay({"id": "x"})  # type: ignore[arg-type]

    assert result.state == "FAILURE"
    with pytest.raises(JobFailedError, match="argument 'order'"):
        result.get()


def test_what_json_cannot_carry_is_refused_in_the_caller_or_fails_the_job(app: App):
    @app.task(name="shop.echo")
    def echo(value: Any) -> Any:
        return {1, 2}

    with pytest.raises(EncodingError, match=r"args\[0\]"):
        echo.delay({1, 2})
    with pytest.raises(JobFailedError, match="result"):
        echo.delay(1).get()


def test_changing_an_argument_does_not_reach_the_caller(app: App):
    @app.task(name="shop.change")
    def change(values: list[int]) -> list[int]:
        values.append(1)
        return values

    mine: list[int] = []

    assert change.delay(mine).get() == [1]
    assert mine == []


def test_a_raw_task_receives_the_job(app: App):
    seen: list[Job] = []

    @app.task(name="shop.raw", raw=True, origin="tests")
    def raw(job: Job) -> str:
        seen.append(job)
        return "done"

    result = raw.apply_async((1, 2), {"free": "form"}, priority=3)

    assert result.get() == "done"
    (job,) = seen
    assert (job.id, job.task, job.state) == (result.id, "shop.raw", JobState.RUNNING)
    assert (job.args, job.kwargs, job.priority, job.origin) == (
        [1, 2],
        {"free": "form"},
        3,
        "tests",
    )


# Coroutine functions


def test_a_coroutine_function_is_awaited(app: App):
    @app.task(name="shop.later")
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert later.delay(1).get() == 2
    assert asyncio.run(later(1)) == 2


async def test_a_coroutine_function_is_awaited_also_where_a_loop_runs(app: App):
    @app.task(name="shop.later")
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert (await later.adelay(1)).result == 2
    assert await later(1) == 2


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_delay_of_a_coroutine_function_works_where_a_loop_runs(app: App):
    @app.task(name="shop.later")
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert later.delay(1).result == 2


def test_retries_of_a_coroutine_function_come_at_once_also_out_of_a_task_group(app: App):
    @app.task(name="shop.group", retries=2)
    async def grouped() -> int:
        attempt = current_job().attempt

        async def inner() -> None:
            if attempt < 3:
                raise Retry(after=60)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inner())
        return attempt

    assert grouped.delay().get() == 3


async def test_the_job_is_current_in_a_coroutine_function(app: App):
    @app.task(name="shop.who")
    async def who() -> str:
        await asyncio.sleep(0)
        return current_job().id

    result = await who.adelay()

    assert await result.aget() == result.id


def test_a_delayed_call_within_a_coroutine_task_runs_too(app: App):
    @app.task(name="shop.inner")
    async def inner() -> int:
        return 1

    @app.task(name="shop.outer")
    async def outer() -> int:
        result = await inner.adelay()
        return await result.aget(disable_sync_subtasks=False) + 1

    assert outer.delay().get() == 2


# Hooks


class Recorded(Task[..., Any]):
    """A task that records its hooks."""

    calls: list[Any]

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Any) -> None:
        self.calls.append(("before", list(args)))

    def on_success(self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Any) -> None:
        self.calls.append(("success", retval))

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: str) -> None:
        self.calls.append(("retry", type(exc).__name__))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: str) -> None:
        assert type(exc).__name__ in einfo
        self.calls.append(("failure", type(exc).__name__))

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: str | None
    ) -> None:
        self.calls.append(("after", status))


def test_hooks_run_around_each_attempt(app: App):
    @app.task(name="shop.flaky", base=Recorded, retries=1)
    def flaky(n: int) -> int:
        if current_job().attempt == 1:
            raise OSError
        return n

    calls: list[Any] = []
    flaky.calls = calls  # type: ignore[attr-defined]
    flaky.delay(5)

    assert calls == [
        ("before", [5]),
        ("retry", "OSError"),
        ("after", "RETRY"),
        ("before", [5]),
        ("success", 5),
        ("after", "SUCCESS"),
    ]


def test_hooks_of_a_failure(app: App):
    @app.task(name="shop.fails", base=Recorded)
    def fails() -> None:
        raise ValueError

    calls: list[Any] = []
    fails.calls = calls  # type: ignore[attr-defined]
    fails.delay()

    assert calls == [("before", []), ("failure", "ValueError"), ("after", "FAILURE")]


def test_a_hook_that_raises_fails_the_job_and_says_so(app: App):
    class Broken(Task[..., Any]):
        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            raise OrderError("in the hook")

    task = app.task(name="shop.one", base=Broken)(lambda: 1)

    with pytest.raises(OrderError, match="in the hook"):
        task.delay().get()


# Groups


def test_a_group_runs_all_members_in_order(app: App):
    ran: list[int] = []

    @app.task(name="shop.note")
    def note(n: int) -> int:
        ran.append(n)
        return n

    result = group(note.s(n) for n in range(5)).apply(type="notes", origin="tests")

    assert ran == [0, 1, 2, 3, 4]
    assert result.get() == [0, 1, 2, 3, 4]
    assert len(result) == 5
    assert result[2].get() == 2
    assert (result.bundle().type, result.bundle().origin) == ("notes", "tests")
    assert (result.bundle().total, result.bundle().remaining) == (5, 0)


def test_a_failed_member_does_not_stop_the_others(app: App):
    ran: list[int] = []

    @app.task(name="shop.note")
    def note(n: int) -> int:
        ran.append(n)
        return 1 // n

    result = group(note.s(n) for n in range(3)).apply()

    assert ran == [0, 1, 2]
    assert result.completed_count() == 2
    assert result.failed()


@pytest.mark.parametrize("where", ["task", "hook"])
def test_ctrl_c_in_an_eager_run_reaches_the_caller(where: str):
    class Interrupted(Task[Any, Any]):
        def on_success(self, *args: Any) -> None:
            if where == "hook":
                raise KeyboardInterrupt

    def function() -> None:
        if where == "task":
            raise KeyboardInterrupt

    app = App("interrupted")
    task = app.task(name="interrupted", base=Interrupted)(function)

    with app.eager(), pytest.raises(KeyboardInterrupt):
        task.delay()
