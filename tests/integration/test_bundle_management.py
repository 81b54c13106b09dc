"""Management of bundles: look, reset, cancel, delete; synchronously and asynchronously alike."""

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgtasks import App, GroupResult, JobState, group
from pgtasks.ids import new_id
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    """Call a method, or await its twin."""

    async def call(target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        prefix = "a" if request.param == "async" else ""
        value = getattr(target, prefix + name)(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return call


@pytest.fixture
def app(async_app: App) -> App:
    return async_app


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def half_failed(echo: Any, worker: SimulatedWorker, **about: Any) -> GroupResult[Any]:
    """Make a stopped bundle of a success and a failure, in a queue of its own."""
    result = group(echo.s(n).set(queue="half") for n in range(2)).apply(**about)
    first, second = worker.claim("half")
    worker.succeed(first)
    worker.fail(second)
    return result


async def test_a_bundle_is_looked_up_by_id(app, echo, worker, call):
    result = half_failed(echo, worker, type="import", origin="shop")

    bundle = await call(app, "bundle", result.id)

    assert (bundle.id, bundle.type, bundle.origin) == (result.id, "import", "shop")
    assert (bundle.total, bundle.remaining, bundle.failed, bundle.state) == (2, 0, 1, "failed")
    assert bundle.created_at <= bundle.stopped_at


async def test_bundles_are_listed_by_every_condition_newest_first(app, echo, worker, call):
    async def fit(**conditions: Any) -> list[str]:
        return [bundle.id for bundle in await call(app, "bundles", **conditions)]

    failed = half_failed(echo, worker, type="import", origin="shop").id
    succeeded = group([echo.s()]).apply(type="export").id
    worker.run_all()
    running = group([echo.s()]).apply(origin="shop").id
    now = datetime.now(UTC)

    assert await fit() == [running, succeeded, failed]
    assert await fit(type="import") == [failed]
    assert await fit(origin="shop") == [running, failed]
    assert await fit(stopped=True) == [succeeded, failed]
    assert await fit(stopped=False) == [running]
    assert await fit(failed=True) == [failed]
    assert await fit(stopped=True, failed=False) == [succeeded]
    assert await fit(created_before=now - timedelta(hours=1)) == []
    assert await fit(created_before=now + timedelta(hours=1), limit=1) == [running]
    assert await fit(before_id=running, limit=1) == [succeeded]
    assert await fit(id_prefix=failed) == [failed]


async def test_reset_bundle_starts_all_members_again_or_only_the_unsuccessful(
    app, echo, worker, call
):
    result = half_failed(echo, worker)
    both = [one.id for one in result]

    assert await call(app, "retry_failed", result.id) == [both[1]]
    some = result.bundle()
    worker.run_all("half")
    repaired = result.bundle()
    assert sorted(await call(app, "reset_bundle", result.id)) == both
    all_again = result.bundle()

    assert (some.remaining, some.failed, some.state) == (1, 0, "running")
    assert (repaired.remaining, repaired.failed, repaired.state) == (0, 0, "succeeded")
    assert (all_again.remaining, all_again.failed, all_again.stopped_at) == (2, 0, None)
    assert await call(app, "reset_bundle", new_id()) == []


async def test_cancel_bundle_cancels_what_waits_and_asks_what_runs(app, echo, worker, call):
    result = group(echo.s(n) for n in range(3)).apply()
    done, running, waiting = (one.id for one in result)
    worker.succeed(worker.claim_one())
    held = worker.claim_one()

    answer = await call(app, "cancel_bundle", result.id)
    between = result.bundle()
    worker.retry(held)

    assert answer == {running: "requested", waiting: "cancelled"}
    assert (between.remaining, between.failed) == (1, 1)
    assert (result.bundle().failed, result.bundle().state) == (2, "failed")
    assert app.job(done).state is JobState.SUCCEEDED
    assert app.job(running).state is JobState.CANCELLED
    assert await call(app, "cancel_bundle", result.id) == {}


async def test_revoke_of_a_group_result_cancels_its_members(echo, call):
    result = group(echo.s(n) for n in range(3)).apply()

    await call(result, "revoke")

    assert result.bundle().state == "failed"
    assert {one.state for one in result} == {"REVOKED"}


async def test_delete_bundle_takes_a_stopped_bundle_and_its_members_only(app, echo, worker, call):
    stopped = half_failed(echo, worker)
    running = group(echo.s(n) for n in range(2)).apply()
    worker.succeed(worker.claim_one())
    alone = echo.apply_async(queue="alone")
    worker.run_all("alone")

    assert await call(app, "delete_bundle", stopped.id) is True
    assert await call(app, "delete_bundle", stopped.id) is False
    assert await call(app, "delete_bundle", running.id) is False
    assert [bundle.id for bundle in app.bundles()] == [running.id]
    assert {job.id for job in app.jobs()} == {alone.id, *(one.id for one in running)}


async def test_delete_finished_bundles_by_type_origin_and_time(
    app, echo, worker, call, monkeypatch
):
    monkeypatch.setattr("pgtasks.db.operations.BATCH", 2)
    for about in ({"type": "import"}, {"origin": "shop"}, {}, {}, {}):
        half_failed(echo, worker, **about)
    running = group([echo.s()]).apply(type="import", origin="shop")
    early, late = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))

    assert await call(app, "delete_finished_bundles", stopped_before=early) == 0
    assert await call(app, "delete_finished_bundles", type="import") == 1
    assert await call(app, "delete_finished_bundles", origin="shop", stopped_before=late) == 1
    assert await call(app, "delete_finished_bundles") == 3
    assert [bundle.id for bundle in app.bundles()] == [running.id]
    assert [job.id for job in app.jobs()] == [running[0].id]


async def test_a_reset_member_whose_bundle_is_gone_runs_by_itself(app, echo, worker, call):
    result = half_failed(echo, worker)
    id = result[1].id
    worker.connection.execute("delete from pgtasks.job_bundle")

    await call(app, "reset", id)

    assert worker.run_all("half") == 1
    assert app.job(id).state is JobState.SUCCEEDED
