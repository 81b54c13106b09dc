"""`GroupResult`: the results of a group in order, and how far it is."""

from typing import Any

import pytest

from pgtasks import (
    App,
    GroupResult,
    JobCancelledError,
    NotFoundError,
    ResultTimeoutError,
    TaskFailedError,
    group,
)
from pgtasks.ids import new_id
from tests.fixtures.simulated_worker import SimulatedWorker
from tests.fixtures.waiting import finishing, inside_a_task


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

    def finish_one_by_one(worker: SimulatedWorker) -> None:
        for held in worker.claim():
            worker.succeed(held, held.bundle_index)

    with finishing(dsn, finish_one_by_one):
        assert result.get(timeout=20) == [0, 1, 2]


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


def test_a_callback_gets_the_results_in_order(echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    for held in reversed(worker.claim()):
        worker.succeed(held, held.bundle_index)
    seen: list[tuple[str, Any]] = []

    returned = result.join(timeout=5, callback=lambda id, value: seen.append((id, value)))

    assert returned == []
    assert seen == [(one.id, n) for n, one in enumerate(result)]


def test_iterate_yields_members_as_they_come_and_none_for_what_is_not_kept(echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    first, second, third = worker.claim()
    worker.succeed([second, third], "third")
    assert echo.app.delete(second.id) == [second.id]

    arrivals = result.iterate(timeout=20)
    early = {next(arrivals), next(arrivals)}
    worker.succeed(first, "first")

    assert early == {"third", None}
    assert list(arrivals) == ["first"]
    with pytest.raises(NotFoundError):
        next(echo.app.group_result(new_id()).iterate())


async def test_aiterate_asks_for_the_members_itself(async_app, worker):
    result = await group(async_app.task(name="echo")(lambda: 1).s() for _ in range(3)).aapply()
    worker.run_all(result=1)

    restored = async_app.group_result(result.id)

    assert [value async for value in restored.aiterate(timeout=5)] == [1, 1, 1]


def test_waiting_for_a_group_reads_one_row_a_look(echo, dsn, statements):
    result = group(echo.s(n) for n in range(200)).apply()
    statements.clear()

    with finishing(dsn, lambda worker: worker.run_all(result=1)):
        assert result.get(timeout=20) == [1] * 200

    assert {one.name for one in statements[:-1]} == {"list_bundles"}
    assert statements[-1] == ("get_outcomes", 200)


def test_a_group_is_restored_by_its_id(app, echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    result.save()

    restored = GroupResult.restore(result.id, app)

    assert restored == result
    assert list(restored) == list(result)
    assert list(app.GroupResult.restore(result.id)) == list(result)
    with app.current():
        assert GroupResult.restore(result.id).app is app
    worker.run_all(result=2)
    assert restored.get(timeout=5) == [2, 2, 2]


async def test_a_group_that_is_unknown_can_be_neither_saved_nor_restored(app, async_app):
    unknown = app.group_result(new_id())

    with pytest.raises(NotFoundError):
        unknown.save()
    with pytest.raises(NotFoundError, match=f"no bundle has the id {unknown.id}"):
        GroupResult.restore(unknown.id, app)
    with pytest.raises(NotFoundError):
        await async_app.group_result(unknown.id).asave()
    with pytest.raises(NotFoundError):
        await GroupResult.arestore(unknown.id, async_app)


async def test_a_group_is_restored_by_the_twin(async_app):
    result = await group([async_app.task(name="echo")(lambda: 1).s()]).aapply()

    restored = await async_app.GroupResult.arestore(result.id)

    assert list(restored) == list(result)
    await restored.asave()


def test_forget_drops_the_results_of_all_members(echo, worker):
    result = group(echo.s(n) for n in range(2)).apply()
    worker.run_all(result=1)

    result.forget()

    assert result.get(timeout=5) == [None, None]


def test_get_inside_of_a_task_is_refused_unless_asked_for(app, echo, worker):
    result = group([echo.s()]).apply()
    worker.run_all(result=1)

    with inside_a_task(app):
        with pytest.raises(RuntimeError, match="may wait for ever"):
            result.get(timeout=5)
        assert result.get(timeout=5, disable_sync_subtasks=False) == [1]
