"""A child runs the jobs that it is sent, one by one, and reports each once."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from typing import Any

import orjson
import psutil
import pytest

from pgtasks import App, Ignore, Reject, Retry, Task, current_job, events
from pgtasks.worker.messages import Order
from pgtasks.worker.wire import Note
from tests.fixtures.forked_child import TIMEOUT, Pipes, kinds
from tests.unit.worker_fakes import claimed_row


@pytest.fixture
def app(pipes: Pipes):
    app = App("tests")

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="noop")
    def noop() -> None:
        pass

    @app.task(name="wait")
    def wait() -> str:
        pipes.say("waiting")
        return pipes.listen()

    @app.task(name="say")
    def say(text: str) -> None:
        pipes.say(text)

    return app


def test_jobs_are_run_in_their_order_and_reported(app: App, fork: Any):
    child = fork(app)

    child.send(*((n, claimed_row(task="add", args=f"[{n},1]")) for n in range(1, 201)))
    records = child.end()

    assert [(one.serial, one.kind, one.result) for one in records] == [
        (n, "succeeded", str(n + 1)) for n in range(1, 201)
    ]
    assert all(one.started <= one.stopped for one in records)


def test_what_runs_stands_on_the_slate_with_its_beginning(app: App, fork: Any):
    child = fork(app)
    before = time.monotonic()

    child.call(5, "wait")
    child.heard()

    (running,) = child.slate.running()
    assert (running.serial, running.session) == (5, 0)
    assert before <= running.began <= time.monotonic()
    child.tell("x")
    assert child.record(5).result == '"x"'


def test_outcomes_are_reported_while_a_job_runs_if_the_parent_asks(app: App, fork: Any):
    child = fork(app)

    child.send((1, claimed_row(task="noop")), (2, claimed_row(task="wait")))
    child.heard()
    child.ask()

    assert child.record(1).kind == "succeeded"
    child.tell()
    assert kinds(child.end()) == {1: "succeeded", 2: "succeeded"}


def test_jobs_that_the_slate_skips_are_not_begun(app: App, fork: Any):
    child = fork(app)
    child.slate.skip_below(3)
    child.slate.skip([4])

    child.send(*((n, claimed_row(task="say", args=f'["{n}"]')) for n in range(1, 6)))
    records = child.end()

    assert kinds(records) == {
        1: "skipped",
        2: "skipped",
        3: "succeeded",
        4: "skipped",
        5: "succeeded",
    }
    assert [child.heard(), child.heard()] == ["3", "5"]
    skipped = records[0]
    assert (skipped.result, skipped.error, skipped.started) == (None, None, skipped.stopped)


def test_a_job_is_skipped_that_is_named_while_it_waits_in_the_pipe(app: App, fork: Any):
    child = fork(app)

    child.send((1, claimed_row(task="wait")), (2, claimed_row(task="noop")))
    child.heard()
    child.slate.skip([2])
    child.tell()

    assert kinds(child.end()) == {1: "succeeded", 2: "skipped"}


def test_a_child_survives_whatever_a_task_does(app: App, fork: Any):
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise SystemExit(1)

        __repr__ = __str__

    @app.task(name="bad")
    def bad(what: str) -> object:
        match what:
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "base":
                raise BaseException("base")
            case "generator":
                raise GeneratorExit
            case "unprintable":
                raise UnprintableError
            case "group":
                raise BaseExceptionGroup("several", [ValueError(1), SystemExit(2)])
            case "object":
                return object()
            case "deep":
                return bad(what)
            case _:
                raise AssertionError(what)

    names = ["exit", "interrupt", "base", "generator", "unprintable", "group", "object", "deep"]
    child = fork(app)

    for serial, name in enumerate(names, 1):
        child.call(serial, "bad", args=f'["{name}"]')
    child.call(99, "add", args="[1,1]")
    child.call(100, "unknown")
    child.call(101, "add", args="[1,")
    child.call(102, "add", options="[]")
    records = child.end()

    assert kinds(records) == {
        **dict.fromkeys(range(1, len(names) + 1), "failed"),
        99: "succeeded",
        100: "failed",
        101: "failed",
        102: "failed",
    }
    assert all(one.error["type"] for one in records if one.kind == "failed")


def test_control_flow_means_what_it_says(app: App, fork: Any):
    @app.task(name="flow")
    def flow(what: str) -> object:
        raise {"retry": Retry(7), "ignore": Ignore(), "reject": Reject("no")}[what]

    child = fork(app)
    for serial, what in enumerate(("retry", "ignore", "reject"), 1):
        child.call(serial, "flow", args=f'["{what}"]')

    assert [(one.kind, one.delay) for one in child.end()] == [
        ("retry", 7),
        ("succeeded", None),
        ("failed", None),
    ]


# Over the limit


class Recording(Task[..., Any]):
    """Calls what happens to its jobs by name; set by the tests."""

    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.app.told.say(f"failed {type(exc).__name__} {list(args)}")  # type: ignore[attr-defined]

    def on_retry(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.app.told.say(f"retry {type(exc).__name__} {list(args)}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_over_its_limit_is_not_run_but_decided(app: App, fork: Any, pipes: Pipes, pool: str):
    app.told = pipes  # type: ignore[attr-defined]

    @app.task(name="slow", base=Recording, retries=1, retry_schedule=[5])
    def slow(x: int) -> None:
        pipes.say("run")

    child = fork(app, pool=pool)
    note = Note(over_limit=2.5)

    child.call(1, "slow", args="[1]", note=note)
    child.call(2, "slow", args="[2]", attempt=2, note=note)
    first, second = child.record(1), child.record(2)
    child.end()

    assert (first.kind, first.delay) == ("retry", 5)
    assert (second.kind, second.error["type"]) == ("failed", "pgtasks.errors.TimeLimitExceeded")
    assert second.error["message"] == "ran longer than its time limit of 2.5 s"
    assert [child.heard(), child.heard()] == [
        "retry TimeLimitExceeded [1]",
        "failed TimeLimitExceeded [2]",
    ]


# Recycling


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "threads", "concurrency": 3},
        {"async_concurrency": 4},
        {"pool": "threads", "concurrency": 3, "async_concurrency": 4},
    ],
)
def test_a_child_runs_as_many_jobs_as_it_may_and_ends(app: App, fork: Any, options: dict[str, Any]):
    @app.task(name="anoop")
    async def anoop() -> None:
        pass

    child = fork(app, max_tasks_per_child=10, **options)
    child.slate.skip([2])

    child.send(
        *((n, claimed_row(task="anoop" if n % 2 else "noop")) for n in range(1, 31)),
    )

    assert child.wait() == 0
    found = kinds(child.records)
    assert sum(kind == "succeeded" for kind in found.values()) == 10
    assert set(found.values()) <= {"succeeded", "skipped"}


def test_a_solo_child_goes_on_since_nobody_would_replace_it(app: App, fork: Any):
    child = fork(app, pool="solo", max_tasks_per_child=2, max_memory_per_child=1)

    child.send(*((n, claimed_row(task="noop")) for n in range(1, 6)))

    assert kinds(child.end()) == dict.fromkeys(range(1, 6), "succeeded")


def test_a_child_that_ran_enough_lets_the_others_end(app: App, fork: Any):
    child = fork(app, pool="threads", concurrency=2, max_tasks_per_child=2)

    child.call(1, "wait")
    child.heard()
    child.call(2, "noop")
    assert child.record(2).kind == "succeeded"
    child.call(3, "noop")
    child.tell()

    assert child.wait() == 0
    assert kinds(child.records) == {1: "succeeded", 2: "succeeded"}


@pytest.mark.parametrize("options", [{}, {"pool": "threads", "concurrency": 2}])
def test_a_child_that_held_too_much_memory_ends_after_its_job(
    app: App, fork: Any, options: dict[str, Any]
):
    @app.task(name="grow")
    def grow(size: int) -> int:
        return len(b"x" * size)

    # The child's peak begins with what this process holds now, not with its peak.
    limit = psutil.Process().memory_info().rss + (20 << 20)
    child = fork(app, max_memory_per_child=limit, **options)

    child.call(1, "noop")
    assert child.record(1).kind == "succeeded"
    child.call(2, "grow", args=f"[{60 << 20}]")

    assert child.wait() == 0
    assert kinds(child.records) == {1: "succeeded", 2: "succeeded"}


# Signals and stacks


def test_signals_to_the_process_group_do_not_end_a_child(app: App, fork: Any):
    child = fork(app)
    child.call(1, "wait")
    child.heard()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        os.kill(child.pid, number)
    child.tell()

    assert kinds(child.end()) == {1: "succeeded"}


def test_a_crash_leaves_a_python_stack_on_stderr(app: App, fork: Any, capfd: Any):
    @app.task(name="crash")
    def crash_here() -> None:
        import ctypes

        ctypes.string_at(0)

    child = fork(app)
    child.call(1, "crash")

    assert child.wait() == -signal.SIGSEGV
    assert "crash_here" in capfd.readouterr().err
    assert [one.serial for one in child.slate.running()] == [1]


def test_usr1_shows_where_everything_stands(app: App, fork: Any, capfd: Any):
    child = fork(app)
    child.call(1, "wait")
    child.heard()

    os.kill(child.pid, signal.SIGUSR1)
    child.tell()
    child.end()

    assert "in wait" in capfd.readouterr().err


# Events


def test_the_beginning_of_a_job_is_told_without_its_arguments(app: App, fork: Any, pipes: Pipes):
    @app.task(name="open", log_arguments=True)
    def open_(x: int) -> None:
        pass

    def tell(name: str, fields: dict[str, object]) -> None:
        pipes.say(orjson.dumps([name, fields]).decode())

    unsubscribe = events.subscribe(tell, "job.started")
    try:
        child = fork(app)
    finally:
        unsubscribe()
    child.call(1, "add", args="[41,42]")
    child.call(2, "open", args="[43]", kwargs="{}", attempt=2)
    told = [orjson.loads(child.heard()) for _ in range(2)]
    child.end()

    assert [name for name, _ in told] == ["job.started", "job.started"]
    assert (told[0][1]["args"], told[0][1]["kwargs"]) == (None, None)
    assert told[0][1]["task"] == "add"
    assert (told[1][1]["args"], told[1][1]["attempt"]) == ("[43]", 2)


def test_hooks_are_called_once_a_child(app: App, fork: Any, pipes: Pipes):
    app.on_child_start(lambda: pipes.say("start"))
    app.on_child_stop(lambda: pipes.say("stop"))
    child = fork(app, pool="threads", concurrency=3)

    child.call(1, "say", args='["job"]')
    child.record(1)
    child.end()
    pipes.say("end")

    assert [child.heard() for _ in range(4)] == ["start", "job", "stop", "end"]


def test_the_connection_of_an_ordinary_task_is_refused_with_what_to_write(app: App, fork: Any):
    @app.task(name="wants")
    def wants() -> None:
        current_job().connection.execute("select 1")

    child = fork(app)
    child.call(1, "wants")

    error = child.record(1).error
    assert error["type"] == "pgtasks.errors.ConfigurationError"
    assert "transactional=True" in error["message"]


def test_an_order_for_a_job_that_ended_does_nothing(app: App, fork: Any):
    child = fork(app)
    child.call(1, "noop")
    child.record(1)

    child.order(1, Order.CANCEL)
    child.call(2, "add", args="[1,1]")

    assert kinds(child.end()) == {1: "succeeded", 2: "succeeded"}


# Progress


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (("leave", "stay"), {}),
        (("leave", "stay"), {"pool": "threads", "concurrency": 1}),
        (("leave_too", "stay_too"), {}),
        (("leave_too", "stay_too"), {"async_concurrency": 2}),
    ],
    ids=["functions", "threads", "coroutine", "coroutines"],
)
def test_what_a_job_left_behind_does_not_speak_in_place_of_the_next(
    app: App, pipes: Pipes, fork: Any, tasks: tuple[str, str], options: dict[str, Any]
):
    leave, stay = tasks

    def begin_to_speak() -> None:
        context = contextvars.copy_context()

        def speak() -> None:
            pipes.listen()
            current_job().progress(1, message="late")
            pipes.say("spoke")

        current_job().progress(0)
        threading.Thread(target=context.run, args=(speak,), daemon=True).start()

    @app.task(name="leave")
    def leave_thread() -> None:
        begin_to_speak()

    @app.task(name="leave_too")
    async def leave_thread_too() -> None:
        begin_to_speak()

    @app.task(name="stay")
    def stay_here() -> None:
        current_job().progress(2)
        pipes.say("said")
        time.sleep(TIMEOUT)

    @app.task(name="stay_too")
    async def stay_here_too() -> None:
        current_job().progress(2)
        pipes.say("said")
        await asyncio.sleep(TIMEOUT)

    child = fork(app, **options)
    child.call(1, leave)
    assert child.record(1).kind == "succeeded"
    child.call(2, stay)
    assert child.heard() == "said"

    child.tell()
    assert child.heard() == "spoke"

    assert [(one.serial, orjson.loads(one.progress)["done"]) for one in child.slate.progress()] == [
        (2, 2)
    ]


def test_progress_of_a_killed_child_is_whole(app: App, fork: Any):
    @app.task(name="count")
    def count() -> None:
        done = 0
        while True:
            done += 1
            current_job().progress(done, 10**9, "x" * 1000)

    child = fork(app)
    child.call(1, "count")
    deadline = time.monotonic() + TIMEOUT
    while not child.slate.progress():
        assert time.monotonic() < deadline

    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    [report] = child.slate.progress()
    assert orjson.loads(report.progress)["total"] == 10**9
    assert report.serial == 1
