"""Management of jobs: look, reset, cancel, delete, purge; synchronously and asynchronously alike."""

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgtasks import App, JobState, JobStateError, NotFoundError, group
from pgtasks.ids import new_id
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    """Call a method of an app, or await its twin."""

    async def call(app: App, name: str, *args: Any, **kwargs: Any) -> Any:
        prefix = "a" if request.param == "async" else ""
        value = getattr(app, prefix + name)(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return call


@pytest.fixture
def echo(async_app: App) -> Any:
    @async_app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


@pytest.fixture
def app(async_app: App) -> App:
    return async_app


def one_of_each(echo: Any, worker: SimulatedWorker) -> dict[JobState, str]:
    """Make one job in each state that a job without a bundle can be in."""
    ids = {}
    for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED, JobState.QUARANTINED):
        ids[state] = echo.delay().id
        worker.finish(worker.claim_one(), state)
    ids[JobState.CANCELLED] = echo.delay().id
    echo.app.cancel(ids[JobState.CANCELLED])
    ids[JobState.PARKED] = echo.delay().id
    worker.execute("park_unknown", queue="default", limit=10, after=-1.0)
    ids[JobState.RUNNING] = echo.delay().id
    worker.claim_one()
    ids[JobState.READY] = echo.delay().id
    ids[JobState.SCHEDULED] = echo.apply_async(countdown=60).id
    return ids


async def test_status_counts_jobs_by_state_and_queue_and_bundles(app, echo, worker, call):
    one_of_each(echo, worker)
    echo.apply_async(queue="other")
    group([echo.s(), echo.s()]).apply()
    for finish in (worker.succeed, worker.fail):
        group([echo.s().set(queue="g")]).apply()
        finish(worker.claim("g"))

    status = await call(app, "status")

    expected = dict.fromkeys(JobState, 1) | {
        JobState.BLOCKED: 0,
        JobState.READY: 4,
        JobState.SUCCEEDED: 2,
        JobState.FAILED: 2,
    }
    assert status.jobs == expected
    assert status.queues["other"] == {JobState.READY: 1}
    assert status.queues["g"] == {JobState.SUCCEEDED: 1, JobState.FAILED: 1}
    assert status.bundles == {"running": 1, "succeeded": 1, "failed": 1}


async def test_a_job_is_looked_up_by_id_in_every_state(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    for state, id in ids.items():
        assert (await call(app, "job", id)).state is state
        assert (await call(app, "job", app.result(id))).id == id


async def test_an_unknown_id_is_an_error(app, call):
    id = new_id()

    with pytest.raises(NotFoundError, match=f"no job has the id {id}"):
        await call(app, "job", id)
    with pytest.raises(NotFoundError, match=id):
        await call(app, "reset", id)
    with pytest.raises(NotFoundError, match=f"no bundle has the id {id}"):
        await call(app, "bundle", id)
    with pytest.raises(ValueError, match="expected a UUID, found 'seven'"):
        await call(app, "job", "seven")


async def test_jobs_are_listed_by_state_newest_first(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    for state, id in ids.items():
        assert [job.id for job in await call(app, "jobs", state)] == [id]
        assert [job.id for job in await call(app, "jobs", str(state))] == [id]
    both = await call(app, "jobs", JobState.READY, JobState.FAILED)
    assert [job.id for job in both] == [ids[JobState.READY], ids[JobState.FAILED]]
    assert [job.id for job in await call(app, "jobs")] == sorted(ids.values(), reverse=True)
    with pytest.raises(ValueError, match="walking"):
        await call(app, "jobs", "walking")


async def test_jobs_are_listed_by_every_condition(app, echo, worker, connection, call):
    async def fit(**conditions: Any) -> set[str]:
        return {job.id for job in await call(app, "jobs", **conditions)}

    other = app.send_task("other", queue="q", origin="shop").id
    member = group([echo.s()]).apply()
    failed = echo.delay().id
    worker.succeed(worker.claim_one())
    worker.fail(worker.claim_one(), "shop.OutOfStock", "no more apples")
    running = echo.delay().id
    worker.claim_one()
    connection.execute(
        "update pgtasks.job set started_at = now() - interval '1 hour' where id = %s", [running]
    )
    connection.execute(
        "update pgtasks.job set created_at = now() - interval '1 day' where id = %s", [other]
    )
    now = datetime.now(UTC)
    everything = {other, member[0].id, failed, running}

    assert await fit(task="other") == {other}
    assert await fit(queue="q") == {other}
    assert await fit(origin="shop") == {other}
    assert await fit(bundle_id=member.id) == {member[0].id}
    assert await fit(created_before=now - timedelta(hours=23)) == {other}
    assert await fit(created_after=now - timedelta(hours=23)) == everything - {other}
    assert await fit(started_before=now - timedelta(minutes=59)) == {running}
    assert await fit(stopped_before=now + timedelta(minutes=1)) == {member[0].id, failed}
    assert await fit(stopped_before=now - timedelta(minutes=1)) == set()
    assert await fit(error="shop.OutOfStock") == {failed}
    assert await fit(error="more apples") == {failed}
    assert await fit(error="more % apples") == set()
    assert await fit(id_prefix=failed[:30].upper()) == {failed}
    assert await fit(id_prefix="f") == set()
    assert await fit(task="echo", queue="q") == set()
    assert await fit() == everything


async def test_jobs_are_listed_page_by_page(app, echo, call):
    ids = sorted((echo.delay(n).id for n in range(7)), reverse=True)

    pages, before = [], None
    while page := await call(app, "jobs", limit=3, before_id=before):
        pages.append([job.id for job in page])
        before = page[-1].id

    assert pages == [ids[:3], ids[3:6], ids[6:]]


@pytest.mark.parametrize("state", ["succeeded", "failed", "expired", "quarantined", "cancelled"])
async def test_a_reset_starts_a_finished_job_again_from_its_first_attempt(
    app, echo, worker, call, state
):
    result = echo.apply_async((7,), priority=3, origin="shop", retries=2)
    worker.retry(worker.claim_one(), delay=0)
    worker.crash(worker.claim_one())
    worker.finish(worker.claim_one(), state, error={"type": "E", "message": "m"})
    before = result.job()

    await call(app, "reset", result.id)

    job = result.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)
    assert (job.args, job.priority, job.origin, job.options) == ([7], 3, "shop", {"retries": 2})
    assert job.created_at == before.created_at
    assert (job.started_at, job.stopped_at, job.error, job.worker_id) == (None,) * 4
    assert [attempt.attempt for attempt in job.attempts] == [1, 2, 3]
    assert job.attempts[1].error is not None
    assert len(worker.claim()) == 1


async def test_a_job_that_is_not_finished_cannot_be_reset(app, echo, worker, call):
    ids = one_of_each(echo, worker)
    unfinished = {state: id for state, id in ids.items() if not state.finished}

    for state, id in unfinished.items():
        with pytest.raises(JobStateError, match=f"job {id} is {state}: only a finished job"):
            await call(app, "reset", id)
    assert {state: app.job(id).state for state, id in ids.items()} == {
        state: state for state in ids
    }


async def test_reset_many_resets_the_finished_and_says_which(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    reset = await call(app, "reset_many", [*ids.values(), new_id()])

    assert sorted(reset) == sorted(id for state, id in ids.items() if state.finished)
    assert app.status().jobs[JobState.READY] == 6


async def test_cancel_ends_what_waits_and_asks_what_runs(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    answer = await call(app, "cancel", *ids.values(), new_id())

    waiting = {
        ids[state]: "cancelled" for state in (JobState.PARKED, JobState.READY, JobState.SCHEDULED)
    }
    assert answer == {**waiting, ids[JobState.RUNNING]: "requested"}
    for id in waiting:
        job = app.job(id)
        assert (job.state, job.attempt, job.reason) == (JobState.CANCELLED, 0, "cancelled")
        assert job.stopped_at is not None
    assert app.job(ids[JobState.RUNNING]).cancel_requested
    assert app.job(ids[JobState.SUCCEEDED]).state is JobState.SUCCEEDED
    assert await call(app, "cancel") == {}


async def test_delete_forgets_all_but_what_runs(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    deleted = await call(app, "delete", *ids.values(), new_id())

    assert sorted(deleted) == sorted(
        id for state, id in ids.items() if state is not JobState.RUNNING
    )
    assert [job.id for job in app.jobs()] == [ids[JobState.RUNNING]]


async def test_delete_finished_jobs_leaves_the_live_ones(app, echo, worker, call):
    ids = one_of_each(echo, worker)

    assert await call(app, "delete_finished_jobs", JobState.FAILED, "expired") == 2
    assert await call(app, "delete_finished_jobs") == 3
    assert {job.id for job in app.jobs()} == {id for state, id in ids.items() if not state.finished}


async def test_delete_finished_jobs_by_task_queue_origin_and_time(app, echo, worker, call):
    for options in ({"task": "other"}, {"queue": "q"}, {"origin": "shop"}, {}):
        said = dict(options)
        app.send_task(said.pop("task", "echo"), **said)
    worker.run_all()
    worker.run_all("q")
    early, late = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))

    assert await call(app, "delete_finished_jobs", stopped_before=early) == 0
    assert await call(app, "delete_finished_jobs", task="other") == 1
    assert await call(app, "delete_finished_jobs", queue="q") == 1
    assert await call(app, "delete_finished_jobs", origin="shop", stopped_before=early) == 0
    assert await call(app, "delete_finished_jobs", origin="shop", stopped_before=late) == 1
    assert len(app.jobs()) == 1


async def test_delete_finished_jobs_goes_in_batches_and_leaves_members_of_open_bundles(
    app, echo, worker, call, monkeypatch
):
    monkeypatch.setattr("pgtasks.db.operations.BATCH", 3)
    open_bundle = group(echo.s(n) for n in range(2)).apply()
    app.enqueue_many([echo.s()] * 7)
    held = worker.claim()
    worker.succeed([one for one in held if one.id != open_bundle[1].id])

    assert await call(app, "delete_finished_jobs") == 7
    assert {job.id for job in app.jobs()} == {one.id for one in open_bundle}
    worker.succeed([one for one in held if one.id == open_bundle[1].id])
    assert await call(app, "delete_finished_jobs") == 2


async def test_purge_cancels_what_waits_in_these_queues(app, echo, worker, call, monkeypatch):
    monkeypatch.setattr("pgtasks.db.operations.BATCH", 3)
    running = echo.delay()
    worker.claim_one()
    bundle = group(echo.s(n) for n in range(2)).apply()
    app.enqueue_many([echo.s().set(countdown=60)] * 3 + [echo.s().set(queue="b")] * 3)
    other = echo.apply_async(queue="other")

    assert await call(app, "purge", "default", "b") == 8
    assert await call(app, "purge", "default", "b") == 0
    assert await call(app, "purge") == 0
    assert running.state == "STARTED"
    assert other.job().state is JobState.READY
    assert bundle.bundle().state == "failed"
    assert {job.reason for job in app.jobs(JobState.CANCELLED)} == {"purged"}


async def test_workers_are_listed_as_they_describe_themselves(app, worker, call):
    worker.beat(state="draining", stats='{"jobs": 3}')

    [info] = await call(app, "workers")

    assert (info.id, info.name, info.queues, info.state) == (
        worker.id,
        "simulated@test",
        ["default"],
        "draining",
    )
    assert info.stats == {"jobs": 3}
    assert 0 <= info.beat_age < 5
