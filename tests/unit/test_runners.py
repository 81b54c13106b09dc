"""A child runs several jobs at once: in threads, and as coroutines on an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest

from pgtasks import App, current_job, current_request
from pgtasks.worker.messages import Order
from tests.fixtures.forked_child import Pipes, kinds
from tests.unit.worker_fakes import claimed_row

THREADS = {"pool": "threads", "concurrency": 4}
LOOP = {"async_concurrency": 3}
colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.fixture
def app(pipes: Pipes):
    app = App("tests")

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="wait")
    def wait() -> str:
        pipes.say("waiting")
        return pipes.listen()

    @app.task(name="await")
    async def await_() -> str:
        pipes.say("awaiting")
        return await asyncio.to_thread(pipes.listen)

    @app.task(name="aadd")
    async def aadd(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    @app.task(name="bad")
    async def bad(what: str) -> None:
        loop = asyncio.get_running_loop()
        match what:
            case "exit":
                raise SystemExit(3)
            case "exit in another":
                await asyncio.gather(exits())
            case "stop":
                loop.stop()
                await asyncio.sleep(0)
            case "cancel all":
                for task in asyncio.all_tasks():
                    task.cancel()
                await asyncio.sleep(0)
            case _:
                async with asyncio.TaskGroup() as group:
                    group.create_task(exits())

    async def exits() -> None:
        raise SystemExit(4)

    return app


def test_threads_run_as_many_jobs_at_once_as_there_are(app: App, fork: Any):
    child = fork(app, **THREADS)

    child.send(*((n, claimed_row(task="wait")) for n in range(1, 7)))
    for _ in range(4):
        assert child.heard() == "waiting"

    assert len({one.serial for one in child.slate.running()}) == 4
    child.tell("abcdef")
    records = child.end()
    assert kinds(records) == dict.fromkeys(range(1, 7), "succeeded")
    assert sorted(one.result for one in records) == [f'"{letter}"' for letter in "abcdef"]


def test_an_outcome_in_a_thread_does_not_wait_behind_what_runs(app: App, fork: Any):
    child = fork(app, **THREADS)

    child.send((1, claimed_row(task="wait")), (2, claimed_row(task="add", args="[1,2]")))

    assert child.record(2).result == "3"
    child.tell()
    child.end()


@pytest.mark.parametrize("options", [LOOP, {**THREADS, **LOOP}])
def test_coroutines_and_functions_do_not_wait_for_each_other(
    app: App, fork: Any, options: dict[str, Any]
):
    child = fork(app, **options)

    child.call(1, "wait")
    assert child.heard() == "waiting"
    child.call(2, "aadd", args="[1,2]")
    assert child.record(2).result == "3"
    child.call(3, "await")
    assert child.heard() == "awaiting"
    child.tell()
    child.tell()

    assert kinds(child.end()) == {1: "succeeded", 2: "succeeded", 3: "succeeded"}


def test_as_many_coroutines_run_at_once_as_was_said(app: App, fork: Any):
    child = fork(app, **LOOP)

    child.send(*((n, claimed_row(task="await")) for n in range(1, 6)))
    for _ in range(3):
        assert child.heard() == "awaiting"

    assert sorted(one.serial for one in child.slate.running()) == [1, 2, 3]
    child.tell("12345")
    assert kinds(child.end()) == dict.fromkeys(range(1, 6), "succeeded")


def test_coroutines_take_their_turn_without_a_loop_of_their_own(app: App, fork: Any):
    child = fork(app)

    child.send((1, claimed_row(task="await")), (2, claimed_row(task="aadd", args="[1,2]")))
    assert child.heard() == "awaiting"
    assert [one.serial for one in child.slate.running()] == [1]
    child.tell()

    assert [one.serial for one in child.end()] == [1, 2]


@pytest.mark.parametrize("options", [THREADS, LOOP, {**THREADS, **LOOP}])
def test_jobs_that_the_slate_skips_are_not_begun(app: App, fork: Any, options: dict[str, Any]):
    child = fork(app, **options)
    child.slate.skip([2, 3])

    child.send(
        (1, claimed_row(task="add", args="[1,1]")),
        (2, claimed_row(task="add", args="[1,1]")),
        (3, claimed_row(task="aadd", args="[1,1]")),
        (4, claimed_row(task="aadd", args="[1,1]")),
    )

    assert kinds(child.end()) == {1: "succeeded", 2: "skipped", 3: "skipped", 4: "succeeded"}


@pytest.mark.parametrize("options", [{}, THREADS, LOOP])
def test_each_job_knows_itself(app: App, fork: Any, options: dict[str, Any]):
    @app.task(name="who")
    def who() -> list[str]:
        time.monotonic()
        request = current_request()
        assert request is not None
        return [current_job().id, request.id, threading.current_thread().name]

    @app.task(name="awho")
    async def awho() -> list[str]:
        before = current_job().id
        await asyncio.sleep(0.001)
        return [before, current_job().id, threading.current_thread().name]

    child = fork(app, **options)
    rows = {n: claimed_row(task="who" if n % 2 else "awho") for n in range(1, 41)}
    child.send(*rows.items())
    records = child.end()

    import orjson

    for record in records:
        first, second, _ = orjson.loads(record.result)
        assert first == second == rows[record.serial].id


@pytest.mark.parametrize("options", [THREADS, LOOP])
def test_context_variables_do_not_leak_into_the_next_job(
    app: App, fork: Any, options: dict[str, Any]
):
    @app.task(name="paint")
    def paint() -> str:
        before = colour.get()
        colour.set("red")
        return before

    @app.task(name="apaint")
    async def apaint() -> str:
        before = colour.get()
        colour.set("red")
        return before

    task = "paint" if options is THREADS else "apaint"
    child = fork(app, **options)
    child.send(*((n, claimed_row(task=task)) for n in range(1, 21)))

    assert {one.result for one in child.end()} == {'"none"'}


@pytest.mark.parametrize("options", [{}, THREADS, LOOP])
def test_a_child_survives_whatever_a_coroutine_does(app: App, fork: Any, options: dict[str, Any]):
    child = fork(app, **options)

    for serial, what in enumerate(("exit", "exit in another", "stop", "cancel all", "group"), 1):
        child.call(serial, "bad", args=f'["{what}"]')
        child.record(serial)
        child.call(serial + 10, "aadd", args="[1,1]")
        child.record(serial + 10)
    child.call(50, "add", args="[1,1]")
    found = kinds(child.end())

    assert {
        serial: kind for serial, kind in found.items() if serial > 10 and kind != "succeeded"
    } == {}
    assert found[1] == found[2] == found[4] == found[5] == "failed"
    assert found[3] == "succeeded"


def test_what_a_coroutine_leaves_behind_is_ended_with_the_child(app: App, fork: Any, pipes: Pipes):
    left: list[asyncio.Task[None]] = []

    async def for_ever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            pipes.say("ended")

    @app.task(name="leave")
    async def leave() -> None:
        left.append(asyncio.create_task(for_ever()))
        await asyncio.sleep(0)

    child = fork(app, **LOOP)
    child.call(1, "leave")
    child.end()

    assert child.heard() == "ended"


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("add", {"pool": "threads", "concurrency": 16}),
        ("aadd", {"async_concurrency": 200}),
        ("aadd", {"pool": "threads", "concurrency": 16}),
    ],
)
def test_two_thousand_jobs_are_each_reported_once(
    app: App, fork: Any, task: str, options: dict[str, Any]
):
    child = fork(app, **options)

    for start in range(1, 2001, 100):
        child.send(
            *((n, claimed_row(task=task, args=f"[{n},0]")) for n in range(start, start + 100))
        )
        if start == 1:
            child.record(1)  # now it handles signals
        child.ask()
    records = child.end()

    assert kinds(records) == dict.fromkeys(range(1, 2001), "succeeded")
    assert all(one.result == str(one.serial) for one in records)


@pytest.mark.parametrize("options", [THREADS, LOOP])
def test_an_interrupt_reaches_the_one_job_that_it_is_for(
    app: App, fork: Any, pipes: Pipes, options: dict[str, Any]
):
    @app.task(name="spin")
    def spin() -> None:
        pipes.say("spinning")
        while True:
            time.monotonic()

    @app.task(name="sleep")
    async def sleep() -> None:
        pipes.say("spinning")
        await asyncio.sleep(100)

    task = "spin" if options is THREADS else "sleep"
    child = fork(app, **options)
    child.send(*((n, claimed_row(task=task)) for n in range(1, 4)))
    for _ in range(3):
        child.heard()

    for serial in (2, 3, 1):
        child.order(serial, Order.CANCEL)
        assert child.record(serial).kind == "cancelled"
        assert len(child.records) == (2, 3, 1).index(serial) + 1
    child.end()
