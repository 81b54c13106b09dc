"""What an eager run leaves answers what any result answers, and asks no database."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks import App, EagerResult, JobState, ResultSet, allow_join_result, chain, group
from pgtasks.eager import EagerGroupResult
from tests.fixtures.waiting import inside_a_task


@pytest.fixture
def app() -> App:
    return App("shop", dsn="postgresql://nowhere.invalid/none", eager=True)


@pytest.fixture
def double(app: App) -> Any:
    @app.task(name="shop.double", retries=1, retry_for=OSError)
    def double(n: int) -> int:
        if n == 0:
            raise OSError("none")
        return 2 * n

    return double


def test_its_row_is_known(double):
    result = double.apply_async((3,), queue="mail")

    assert (result.name, result.args, result.kwargs) == ("shop.double", [3], {})
    assert (result.queue, result.retries, result.worker) == ("mail", 0, None)
    assert result.date_done is not None
    assert (result.job().state, result.job().result) == ("succeeded", 6)
    assert (result.info, result.exists(), result.parent) == (6, True, None)
    failed = double.delay(0)
    assert (failed.retries, failed.job().error.type) == (1, "OSError")


def test_get_calls_back_and_maybe_throw_raises(double):
    seen: list[tuple[str, int]] = []
    result = double.delay(1)

    assert result.get(callback=lambda id, value: seen.append((id, value))) == 2
    assert result.maybe_throw() == 2
    assert seen == [(result.id, 2)]
    with pytest.raises(OSError, match="none"):
        double.delay(0).maybe_throw()
    assert isinstance(double.delay(0).get(propagate=False), OSError)


def test_a_set_of_them_answers_everything(double):
    results = ResultSet([double.delay(1), double.delay(0), double.delay(2)])

    assert (results.completed_count(), results.ready(), results.failed()) == (2, True, True)
    first, second, third = results.get(propagate=False)
    assert (first, type(second), third) == (2, OSError, 4)
    assert list(results.iterate(propagate=False))[::2] == [2, 4]
    assert [meta["status"] for _, meta in results.iter_native()] == [
        "SUCCESS",
        "FAILURE",
        "SUCCESS",
    ]
    with pytest.raises(OSError, match="none"):
        results.maybe_throw()
    results.revoke()
    results.forget()
    assert results[0].get() is None


async def test_a_group_of_them_answers_everything(double):
    members = await group(double.s(n) for n in (1, 2)).aapply()

    assert members.get() == members.join() == await members.aget() == [2, 4]
    assert list(members.iterate()) == [one async for one in members.aiterate()] == [2, 4]
    assert (members.completed_count(), members.successful(), members.failed()) == (2, True, False)
    assert members.children == list(members)
    assert (members.parent, await members.aparent()) == (None, None)
    members.save()
    await members.arevoke()
    await members.aforget()
    assert members.get() == [None, None]


def test_what_it_enqueued_are_its_children(app, double):
    @app.task(name="shop.parent")
    def parent() -> str:
        double.delay(1)
        double.apply_async((2,))
        return "parent"

    result = parent.delay()
    other = double.delay(5)

    assert [one.get() for one in result.children] == [2, 4]
    assert [value for _, value in result.collect()] == ["parent", 2, 4]
    assert [parent for parent, _ in result.iterdeps()] == [None, result, result]
    assert other.children == []


def test_what_follows_in_a_canvas_are_its_children_groups_as_one(app, double):
    total = app.task(name="shop.total")(sum)
    result: Any = chain(double.s(1), group(double.s(), double.s()), total.s()).apply_async()
    first = result.parent.parent

    assert result.get() == 8
    assert [type(one) for one in first.children] == [EagerGroupResult]
    assert list(first.children[0]) == list(result.parent)
    assert first.children[0].bundle().total == 2
    assert [value for _, value in first.collect()] == [2, [4, 4], 4, 4]
    pair: Any = chain(double.s(1), double.s()).apply_async()
    assert pair.parent.children == [pair]


def test_a_canvas_in_an_eager_job_is_its_child(app, double):
    @app.task(name="shop.parent")
    def parent() -> None:
        chain(double.s(1), double.s()).delay()
        group(double.s(2), double.s(3)).apply()

    first, members = parent.delay().children

    assert (first.get(), [one.get() for one in first.children]) == (2, [4])
    assert members.get() == [4, 6]


def test_what_takes_the_place_of_a_job_is_walked_once(app, double):
    @app.task(name="shop.replaced", bind=True)
    def replaced(self: Any) -> int:
        raise self.replace(chain(double.s(1), double.s()))

    result = replaced.delay()

    assert result.get() == 4
    assert [value for _, value in result.collect()] == [4, 2]


def test_waiting_in_an_eager_job_is_refused_as_in_a_worker(app, double):
    @app.task(name="shop.waits")
    def waits(allowed: bool) -> int:
        if allowed:
            with allow_join_result():
                return int(double.delay(1).get())
        return int(double.delay(1).get())

    with pytest.raises(RuntimeError, match="may wait for ever"):
        waits.delay(allowed=False).get()
    assert waits.delay(allowed=True).get() == 2


def test_apply_in_a_workers_task_may_be_asked_for_its_result(app, double):
    with inside_a_task(app):
        assert double.apply((2,)).get() == 4
        with pytest.raises(OSError, match="none"):
            double.apply((0,), throw=True)


def test_one_that_was_told_little_makes_its_row_of_that(app):
    result: EagerResult[int] = EagerResult(
        "id", app, "shop.one", state=JobState.SUCCEEDED, value=1, error=None, attempt=2
    )

    assert (result.name, result.retries, result.queue) == ("shop.one", 1, "default")
    assert result.get() == 1
