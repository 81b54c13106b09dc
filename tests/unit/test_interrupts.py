"""An interrupt reaches the job that it is for, in its own code only; whatever comes when, each job ends once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import App, guarded
from pgtasks.errors import Cancelled, SoftTimeLimitExceeded
from pgtasks.guard import guard_var
from pgtasks.worker.messages import Order
from tests.fixtures.forked_child import ForkedChild, Pipes, kinds
from tests.unit.worker_fakes import claimed_row

SYNC: list[dict[str, Any]] = [{}, {"pool": "threads", "concurrency": 2}, {"async_concurrency": 3}]
ASYNC: list[dict[str, Any]] = [
    {},
    {"pool": "threads", "concurrency": 2},
    {"async_concurrency": 3},
    {"pool": "threads", "concurrency": 2, "async_concurrency": 3},
]


def spin() -> None:
    """Run Python code until an interrupt comes."""
    while True:
        time.monotonic()


@pytest.fixture
def app(pipes: Pipes):
    app = App("tests")

    def body() -> str:
        pipes.say("begun")
        spin()
        return "never"

    @app.task(name="plain", retries=1, retry_schedule=[3])
    def plain() -> str:
        return body()

    @app.task(name="stubborn")
    def stubborn() -> str:
        try:
            return body()
        except Exception:
            return "swallowed"

    @app.task(name="tidy")
    def tidy() -> str:
        try:
            return body()
        except SoftTimeLimitExceeded as error:
            return f"tidied: {error}"
        finally:
            pipes.say("finally")

    @app.task(name="section")
    def section() -> None:
        with guarded():
            with guarded():
                pipes.say("begun")
                while pipes.listen() != "!":
                    pass
                # The order comes by another way than "!", in threads to the main thread: it may be late.
                guard = guard_var.get()
                while guard is not None and guard.pending is None:
                    pass
            pipes.say("inner ended")
        pipes.say("outer ended")

    @app.task(name="noop")
    def noop() -> None:
        pass

    @app.task(name="aplain", retries=1, retry_schedule=[3])
    async def aplain() -> str:
        pipes.say("begun")
        await asyncio.sleep(60)
        return "never"

    @app.task(name="astubborn")
    async def astubborn() -> str:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        except Exception:
            return "swallowed"
        return "never"

    @app.task(name="atidy")
    async def atidy() -> str:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded as error:
            await asyncio.sleep(0)
            return f"tidied: {error}"
        finally:
            pipes.say("finally")
        return "never"

    @app.task(name="asection")
    async def asection() -> None:
        with guarded():
            with guarded():
                pipes.say("begun")
                while await asyncio.to_thread(pipes.listen) != "!":
                    pass
            pipes.say("inner ended")
            await asyncio.sleep(0)
        pipes.say("outer ended")
        await asyncio.sleep(60)

    return app


def interrupted(child: ForkedChild, task: str, order: Order, **changed: Any) -> Any:
    """Run a job, interrupt it once it has begun, and return its record."""
    child.call(1, task, **changed)
    assert child.heard() == "begun"
    assert child.order(1, order)
    return child.record(1)


both = pytest.mark.parametrize(
    ("prefix", "options"), [*(("", one) for one in SYNC), *(("a", one) for one in ASYNC)]
)


@both
def test_a_soft_limit_is_an_exception_like_others(
    app: App, fork: Any, prefix: str, options: dict[str, Any]
):
    record = interrupted(fork(app, **options), f"{prefix}plain", Order.SOFT_LIMIT)

    assert (record.kind, record.delay) == ("retry", 3)
    assert record.error["type"] == "pgtasks.errors.SoftTimeLimitExceeded"
    assert record.error["message"] == "the soft time limit is over"
    assert "plain" in record.error["traceback"]


@both
def test_a_soft_limit_may_be_caught(app: App, fork: Any, prefix: str, options: dict[str, Any]):
    child = fork(app, **options)

    record = interrupted(child, f"{prefix}tidy", Order.SOFT_LIMIT)

    assert (record.kind, record.result) == ("succeeded", '"tidied: the soft time limit is over"')
    assert child.heard() == "finally"
    child.call(2, "noop")
    assert kinds(child.end()) == {1: "succeeded", 2: "succeeded"}


@both
def test_a_cancel_is_not_swallowed_by_except_exception(
    app: App, fork: Any, prefix: str, options: dict[str, Any]
):
    record = interrupted(fork(app, **options), f"{prefix}stubborn", Order.CANCEL)

    assert (record.kind, record.result, record.error) == ("cancelled", None, None)


@both
def test_an_interrupt_waits_for_the_end_of_a_guarded_section(
    app: App, fork: Any, prefix: str, options: dict[str, Any]
):
    child = fork(app, **options)
    child.call(1, f"{prefix}section")
    assert child.heard() == "begun"

    child.order(1, Order.CANCEL)
    child.tell("?")  # it goes on within the section
    child.tell("!")

    assert child.record(1).kind == "cancelled"
    assert child.heard() == "inner ended"
    if prefix:  # at the next await
        assert child.heard() == "outer ended"
    child.end()


@pytest.mark.parametrize("options", SYNC[:1])
def test_a_job_that_blocks_in_a_system_call_is_interrupted(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any]
):
    @app.task(name="blocks")
    def blocks() -> str:
        pipes.say("begun")
        return pipes.listen()

    assert interrupted(fork(app, **options), "blocks", Order.CANCEL).kind == "cancelled"


@both
def test_the_same_order_is_delivered_once(
    app: App, fork: Any, pipes: Pipes, prefix: str, options: dict[str, Any]
):
    @app.task(name="twice")
    def twice() -> str:
        try:
            pipes.say("begun")
            spin()
        except SoftTimeLimitExceeded:
            pipes.say("caught")
            while pipes.listen() != "!":
                pass
        return "once"

    @app.task(name="atwice")
    async def atwice() -> str:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            pipes.say("caught")
            while await asyncio.to_thread(pipes.listen) != "!":
                pass
        return "once"

    child = fork(app, **options)
    child.call(1, f"{prefix}twice")
    assert child.heard() == "begun"
    child.order(1, Order.SOFT_LIMIT)
    assert child.heard() == "caught"

    for _ in range(20):
        child.ask()
        child.tell("?")
    child.tell("!")

    assert child.record(1).result == '"once"'


def test_a_cancel_comes_through_after_a_soft_limit_was_swallowed(app: App, fork: Any, pipes: Pipes):
    @app.task(name="obstinate")
    def obstinate() -> None:
        with contextlib.suppress(SoftTimeLimitExceeded):
            pipes.say("begun")
            spin()
        pipes.say("begun again")
        spin()

    child = fork(app)
    child.call(1, "obstinate")
    assert child.heard() == "begun"
    child.order(1, Order.SOFT_LIMIT)
    assert child.heard() == "begun again"

    child.order(1, Order.CANCEL)

    assert child.record(1).kind == "cancelled"


@pytest.mark.parametrize("options", SYNC)
def test_an_interrupt_goes_through_a_job_that_is_run_eagerly_inside(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any]
):
    @app.task(name="outer")
    def outer() -> str:
        with app.eager():
            app.tasks["stubborn"].delay()
        return "went on"

    child = fork(app, **options)

    assert interrupted(child, "outer", Order.CANCEL).kind == "cancelled"


# Coroutines


@pytest.mark.parametrize("options", ASYNC[2:])
def test_a_coroutine_over_its_hard_limit_fails_whatever_it_does(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any]
):
    @app.task(name="denies", retries=1, retry_schedule=[4], time_limit=1.5)
    async def denies() -> str:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            pipes.say(type(error).__name__)
        return "a result"

    child = fork(app, **options)
    record = interrupted(child, "denies", Order.HARD_LIMIT)

    assert (record.kind, record.delay, record.result) == ("retry", 4, None)
    assert record.error["type"] == "pgtasks.errors.TimeLimitExceeded"
    assert record.error["message"] == "ran longer than its time limit of 1.5 s"
    assert child.heard() == "CancelledError"


def test_a_coroutine_is_told_softly_first_and_then_hard(app: App, fork: Any, pipes: Pipes):
    @app.task(name="slow_to_end")
    async def slow_to_end() -> None:
        pipes.say("begun")
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            pipes.say("soft")
            await asyncio.sleep(60)

    child = fork(app, async_concurrency=2)
    child.call(1, "slow_to_end")
    assert child.heard() == "begun"
    child.order(1, Order.SOFT_LIMIT)
    assert child.heard() == "soft"

    child.order(1, Order.HARD_LIMIT)

    record = child.record(1)
    assert record.kind == "failed"
    assert record.error["type"] == "pgtasks.errors.TimeLimitExceeded"
    assert "slow_to_end" in record.error["traceback"]


@pytest.mark.parametrize("options", ASYNC)
@pytest.mark.parametrize("how", ["gather", "group", "shielding", "timeout"])
@pytest.mark.parametrize("order", [Order.SOFT_LIMIT, Order.CANCEL])
def test_what_a_coroutine_waits_for_is_cancelled_with_it(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any], how: str, order: Order
):
    async def part(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pipes.say(f"{name} cancelled")
            raise

    @app.task(name="parts")
    async def parts() -> None:
        waits = asyncio.ensure_future(together())
        pipes_said = asyncio.get_running_loop().call_later(0.01, pipes.say, "begun")
        try:
            await waits
        finally:
            pipes_said.cancel()

    async def together() -> None:
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(part("one"))
                group.create_task(part("two"))
        elif how == "timeout":
            async with asyncio.timeout(50):
                await asyncio.gather(part("one"), part("two"))
        elif how == "gather":
            await asyncio.gather(part("one"), part("two"))
        else:
            try:
                await asyncio.gather(part("one"), part("two"))
            except asyncio.CancelledError:
                return  # and the interrupt would be lost

    child = fork(app, **options)
    record = interrupted(child, "parts", order)

    assert sorted([child.heard(), child.heard()]) == ["one cancelled", "two cancelled"]
    assert record.kind == ("cancelled" if order is Order.CANCEL else "failed")


def test_a_task_group_of_the_job_itself_ends_its_tasks(app: App, fork: Any, pipes: Pipes):
    async def part() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            pipes.say("part ended")

    @app.task(name="grouped")
    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
            await asyncio.sleep(0)
            pipes.say("begun")
        raise AssertionError("it went on")

    child = fork(app, async_concurrency=2)
    record = interrupted(child, "grouped", Order.SOFT_LIMIT)

    assert child.heard() == "part ended"
    assert record.error["type"] == "pgtasks.errors.SoftTimeLimitExceeded"


def test_a_coroutine_that_caught_its_soft_limit_can_use_timeouts_again(
    app: App, fork: Any, pipes: Pipes
):
    @app.task(name="again")
    async def again() -> str:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            return "timeout"
        return "none"

    child = fork(app, async_concurrency=2)

    assert interrupted(child, "again", Order.SOFT_LIMIT).result == '"timeout"'


@pytest.mark.parametrize("options", ASYNC)
def test_a_coroutine_that_cancels_itself_fails(app: App, fork: Any, options: dict[str, Any]):
    @app.task(name="suicide")
    async def suicide() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    child = fork(app, **options)
    child.call(1, "suicide")

    record = child.record(1)
    assert (record.kind, record.error["type"]) == ("failed", "asyncio.exceptions.CancelledError")


def test_an_awaitable_of_an_ordinary_function_is_interrupted_where_it_awaits(
    app: App, fork: Any, pipes: Pipes
):
    async def inner() -> None:
        try:
            pipes.say("begun")
            await asyncio.sleep(60)
        finally:
            pipes.say("cleaned")

    @app.task(name="awaitable")
    def awaitable() -> object:
        return inner()

    child = fork(app)
    record = interrupted(child, "awaitable", Order.SOFT_LIMIT)

    assert record.error["type"] == "pgtasks.errors.SoftTimeLimitExceeded"
    assert child.heard() == "cleaned"


# At any moment


def hail(child: ForkedChild, last: int, seed: int) -> None:
    """Interrupt whatever runs, at random moments, until a job has ended."""
    chance = random.Random(seed)
    deadline = time.monotonic() + 30.0
    while not any(one.serial == last for one in child.records[-100:]):
        assert time.monotonic() < deadline, f"{last} did not end"
        for running in child.slate.running():
            if chance.random() < 0.5:
                order = chance.choice((Order.SOFT_LIMIT, Order.CANCEL))
                child.slate.interrupt(running.serial, order)
        child.ask()
        if select.select([child.outbox], [], [], chance.random() * 0.001)[0]:
            child.read()


def short_sync(pipes: Pipes) -> Callable[[int], int]:
    def short(n: int) -> int:
        total = 0
        for k in range(40 * n):
            with guarded():
                total += k
        with contextlib.suppress(SoftTimeLimitExceeded):
            sum(range(100 * n))
        return total

    return short


@pytest.mark.parametrize("options", [*SYNC, {"pool": "threads", "concurrency": 16}])
@pytest.mark.parametrize("seed", range(3))
def test_every_job_ends_once_whenever_interrupts_come(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any], seed: int
):
    app.task(name="short")(short_sync(pipes))

    @app.task(name="ashort")
    async def ashort(n: int) -> int:
        for _ in range(n):
            with guarded():
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        return n

    child = fork(app, **options)
    names = ["short", "short", "ashort"]
    jobs = [(n, claimed_row(task=names[n % 3], args=f"[{n % 50}]")) for n in range(1, 2001)]
    child.send(jobs[0])
    child.record(1)
    for start in range(1, len(jobs), 60):
        frame = jobs[start : start + 60]
        child.send(*frame)
        hail(child, frame[-1][0], 1000 * seed + start)
    records = child.end()

    found = kinds(records)
    assert sorted(found) == list(range(1, 2001))
    assert set(found.values()) <= {"succeeded", "failed", "cancelled"}
    assert len(set(found.values())) > 1, "no interrupt came through"
    for record in records:
        if record.kind == "failed":
            assert record.error["type"] == "pgtasks.errors.SoftTimeLimitExceeded"


def test_cancelled_is_no_exception():
    assert not issubclass(Cancelled, Exception)
