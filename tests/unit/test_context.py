"""Eager, ignoring and current hold for one context: other threads and tasks are not disturbed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import App, current_app, current_job, current_request
from pgtasks import context as context_module
from pgtasks.context import eager_var, having
from pgtasks.eager import EagerResult
from pgtasks.errors import ConfigurationError, NoDsnError
from pgtasks.job import NewJob
from pgtasks.result import AsyncResult


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.delenv("PGTASKS_DSN", raising=False)
    monkeypatch.delenv("PGTASKS_EAGER", raising=False)
    return App("shop")


@pytest.fixture
def add(app: App) -> Any:
    @app.task(name="shop.add")
    def add(a: int, b: int = 1) -> int:
        return a + b

    return add


def in_thread(function: Callable[[], Any]) -> Any:
    """Call in a new thread, whose context is empty, and return what it returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


# Eager


def test_eager_holds_for_its_block(app: App, add: Any):
    with app.eager():
        assert add.delay(1).get() == 2

    with pytest.raises(NoDsnError):
        add.delay(1)


def test_eager_ends_with_an_exception_in_its_block(app: App, add: Any):
    with pytest.raises(KeyError), app.eager():
        raise KeyError

    assert eager_var.get() == {}


def test_eager_does_not_reach_other_threads(app: App, add: Any):
    with app.eager():
        found = in_thread(lambda: add.delay(1))

    assert isinstance(found, NoDsnError)


async def test_eager_reaches_the_tasks_that_its_block_starts_and_no_others(app: App, add: Any):
    go = asyncio.Event()

    async def call() -> Any:
        await go.wait()
        return await add.adelay(1)

    outside = asyncio.create_task(call())
    with app.eager():
        inside = asyncio.create_task(call())
    go.set()

    results = await asyncio.gather(outside, inside, return_exceptions=True)

    assert isinstance(results[0], NoDsnError)
    assert isinstance(results[1], EagerResult)


@pytest.mark.parametrize(
    ("value", "eager"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_eager_by_environment(monkeypatch: pytest.MonkeyPatch, value: str, eager: bool):
    monkeypatch.setenv("PGTASKS_EAGER", value)

    assert App("shop")._is_eager() is eager


def test_eager_by_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGTASKS_EAGER", "1")

    assert not App("shop", eager=False)._is_eager()
    assert App("shop", eager=True)._is_eager()


def test_an_eager_app_is_eager_in_every_thread():
    app = App("shop", eager=True)
    task = app.task(name="shop.one")(lambda: 1)

    assert in_thread(lambda: task.delay().get()) == 1


def test_a_block_can_be_not_eager_in_an_eager_app(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PGTASKS_DSN", raising=False)
    app = App("shop", eager=True)
    task = app.task(name="shop.one")(lambda: 1)

    with having(eager_var, {id(app): False}), pytest.raises(NoDsnError):
        task.delay()


def test_eager_of_one_app_holds_for_that_app_only(app: App):
    task = App("other").task(name="other.one")(lambda: 1)

    with app.eager(), pytest.raises(NoDsnError):
        task.delay()


# Ignoring


def test_ignoring_discards_everything_and_tells_what(app: App, add: Any):
    with app.ignoring() as discarded:
        result = add.delay(1, b=2)
        add.apply_async((3,), queue="other", countdown=5)

    assert isinstance(result, AsyncResult)
    assert [(job.task, job.args, job.kwargs) for job in discarded] == [
        ("shop.add", "[1]", '{"b":2}'),
        ("shop.add", "[3]", "{}"),
    ]
    assert discarded[0].id == result.id
    assert (discarded[1].queue, discarded[1].delay) == ("other", 5.0)


def test_ignoring_by_task_and_by_name(app: App, add: Any):
    other = app.task(name="shop.other")(lambda: None)

    with app.ignoring(add) as discarded:
        add.delay(1)
        with pytest.raises(NoDsnError):
            other.delay()
    with app.ignoring("shop.other"):
        other.delay()
        with pytest.raises(NoDsnError):
            add.delay(1)

    assert len(discarded) == 1


def test_ignoring_by_predicate(app: App, add: Any):
    def is_bulk(job: NewJob) -> bool:
        return job.queue == "bulk"

    with app.ignoring(when=is_bulk) as discarded:
        add.apply_async((1,), queue="bulk")
        with pytest.raises(NoDsnError):
            add.delay(1)

    assert len(discarded) == 1


def test_ignoring_still_checks_the_arguments(app: App, add: Any):
    with app.ignoring() as discarded, pytest.raises(TypeError):
        add.delay()

    assert discarded == []


def test_ignoring_of_one_app_holds_for_that_app_only(app: App):
    task = App("other").task(name="other.one")(lambda: 1)

    with app.ignoring(), pytest.raises(NoDsnError):
        task.delay()


def test_ignoring_does_not_reach_other_threads(app: App, add: Any):
    with app.ignoring():
        found = in_thread(lambda: add.delay(1))

    assert isinstance(found, NoDsnError)


async def test_ignoring_holds_for_the_twins_and_per_asyncio_task(app: App, add: Any):
    async def ignored(number: int) -> list[NewJob]:
        with app.ignoring() as discarded:
            for _ in range(number):
                await add.adelay(number)
                await asyncio.sleep(0)
            await app.aenqueue_many([add.s(number)])
        return discarded

    counts = await asyncio.gather(*(ignored(number) for number in range(5)))

    assert [len(discarded) for discarded in counts] == [1, 2, 3, 4, 5]


def test_an_inner_block_of_ignoring_counts(app: App, add: Any):
    with app.ignoring() as outer, app.ignoring() as inner:
        add.delay(1)

    assert (len(outer), len(inner)) == (0, 1)


# Current


def test_nothing_is_current_outside_of_a_job():
    assert current_request() is None
    with pytest.raises(ConfigurationError, match="no job runs here"):
        current_job()


def test_a_job_is_current_while_it_runs(app: App):
    @app.task(name="shop.look", bind=True)
    def look(self: Any) -> list[Any]:
        request = current_request()
        assert request is not None
        assert self.request is request
        return [current_job().id, request.task, request.attempt, request.is_eager]

    with app.eager():
        result = look.delay()

    assert result.get() == [result.id, "shop.look", 1, True]
    assert current_request() is None
    assert look.request.called_directly


def test_a_job_within_a_job_has_its_own_and_knows_its_parent(app: App):
    seen: dict[str, Any] = {}

    @app.task(name="shop.inner")
    def inner() -> None:
        seen["inner"] = current_job()

    @app.task(name="shop.outer")
    def outer() -> None:
        seen["outer"] = current_job()
        inner.delay()
        seen["after"] = current_job()

    with app.eager():
        outer.delay()

    assert seen["after"] is seen["outer"]
    assert seen["inner"].parent_id == seen["outer"].id
    assert seen["inner"].root_id == seen["outer"].id


def test_a_job_is_not_current_in_the_threads_that_it_starts(app: App):
    @app.task(name="shop.threads")
    def threads() -> bool:
        return in_thread(current_request) is None

    with app.eager():
        assert threads.delay().get()


def test_a_job_is_no_longer_current_after_it_raised(app: App):
    @app.task(name="shop.fails")
    def fails() -> None:
        raise ValueError

    with app.eager():
        fails.delay()

    assert current_request() is None


def test_the_current_app_is_the_one_made_last_or_said():
    first, last = App("first"), App("last")

    assert current_app() is last
    with first.current():
        assert current_app() is first
        with last.current():
            assert current_app() is last
    assert current_app() is last


def test_the_current_app_within_a_job_is_the_jobs():
    first = App("first")
    App("last")

    @first.task(name="shop.which")
    def which() -> str:
        return current_app().name

    with first.eager():
        assert which.delay().get() == "first"


def test_there_may_be_no_app(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context_module, "_newest_app", None)

    with pytest.raises(ConfigurationError, match="there is no app yet"):
        current_app()


def test_the_newest_app_is_not_kept_alive():
    App("short-lived")
    gc.collect()

    reference = context_module._newest_app
    assert reference is not None
    assert reference() is None


def test_a_connection_is_current_for_its_app_and_block_only(app: App):
    other = App("other")
    used: list[Any] = []

    class Connection:
        def execute(self) -> None: ...

    mine = Connection()
    with app.connection(mine):
        used.append(context_module.connection_var.get().get(id(app)))
        used.append(context_module.connection_var.get().get(id(other)))
        used.append(in_thread(lambda: context_module.connection_var.get().get(id(app))))

    assert used == [mine, None, None]
    assert context_module.connection_var.get() == {}
