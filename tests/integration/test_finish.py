"""Writing outcomes back: fenced by the token, complete in the history, one transaction a batch."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from pgtasks.ids import new_id
from tests.fixtures.simulated_worker import count_rows, heard


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def test_a_success_moves_the_whole_job_into_the_history(app, echo, worker, connection):
    result = echo.apply_async((7,), priority=3, retries=2, origin="shop", expires=3600, countdown=0)
    live = result.job()

    returned = worker.finish(worker.claim_one(), result="[1,2]", age=0.25)

    job = result.job()
    assert returned == [result.id]
    assert count_rows(connection, "job") == 0
    assert job.state is JobState.SUCCEEDED
    for same in (
        "id",
        "task",
        "queue",
        "priority",
        "args_json",
        "kwargs_json",
        "options",
        "origin",
    ):
        assert getattr(job, same) == getattr(live, same), same
    assert (job.created_at, job.start_at, job.expires_at) == (
        live.created_at,
        live.start_at,
        live.expires_at,
    )
    assert (job.result, job.error, job.attempt, job.attempts) == ([1, 2], None, 1, ())
    assert job.worker_id == worker.id
    assert job.started_at is not None
    assert job.stopped_at is not None
    assert job.stopped_at - job.started_at == timedelta(seconds=0.25)


def test_a_failure_keeps_type_message_traceback_and_args(app, echo, worker):
    result = echo.delay()

    worker.fail(worker.claim_one(), "shop.OutOfStock", "none left", args=["none left", 3])

    job = result.job()
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.type, job.error.message) == ("shop.OutOfStock", "none left")
    assert job.error.traceback == "Traceback of shop.OutOfStock"
    assert job.error.args == ["none left", 3]
    assert job.result is None


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "expired", "quarantined", "cancelled"])
def test_every_outcome_is_a_state_of_the_history(app, echo, worker, outcome):
    result = echo.delay()

    worker.finish(worker.claim_one(), outcome)

    assert result.job().state is JobState(outcome)


def test_a_job_that_was_never_begun_has_not_been_attempted(app, echo, worker):
    result = echo.delay()

    worker.finish(worker.claim_one(), "expired", age=None)

    job = result.job()
    assert (job.attempt, job.started_at) == (0, None)


def test_nothing_is_kept_of_a_job_that_keeps_no_history(app, echo, worker, connection):
    echo.delay()
    held = worker.claim_one()

    assert worker.finish(held, result="1", keep=False) == [held.id]

    assert (count_rows(connection, "job"), count_rows(connection, "job_history")) == (0, 0)


def test_a_late_finish_changes_nothing_and_is_not_among_the_returned(app, echo, worker):
    result = echo.delay()
    late = worker.claim_one()
    worker.release(late)
    current = worker.claim_one()

    late_finish = worker.succeed(late, "late")
    late_retry = worker.retry(late)
    worker.release(late)
    worker.crash(late)
    between = result.job()
    current_finish = worker.succeed(current, "current")
    second_finish = worker.fail(current)

    assert (late_finish, late_retry, second_finish) == ([], [], [])
    assert (between.state, between.attempt, between.crashes) == (JobState.RUNNING, 1, 0)
    assert current_finish == [result.id]
    assert result.job().result == "current"


def test_a_wrong_token_or_queue_finishes_nothing(app, echo, worker):
    result = echo.delay()
    held = worker.claim_one()

    assert worker.succeed(held._replace(token=new_id())) == []
    assert worker.succeed(held._replace(queue="other")) == []
    assert result.job().state is JobState.RUNNING


def test_a_late_finish_does_not_keep_the_others_of_its_batch(app, echo, worker):
    results = [echo.delay(n) for n in range(3)]
    held = worker.claim()
    worker.release(held[1])

    assert sorted(worker.succeed(held)) == [results[0].id, results[2].id]
    assert results[1].job().state is JobState.READY


def test_one_batch_may_hold_several_queues_and_outcomes(app, echo, worker):
    ids = {queue: echo.apply_async(queue=queue).id for queue in ("a", "b", "c")}
    held = {queue: worker.claim_one(queue) for queue in ids}

    rows = worker.execute(
        "finish_jobs",
        queue=list(held),
        id=[one.id for one in held.values()],
        token=[one.token for one in held.values()],
        outcome=["succeeded", "failed", "retry"],
        result=["1", None, None],
        error=[None, json.dumps({"type": "E", "message": "m"}), None],
        delay=[None, None, 0.0],
        age=[0.1, 0.1, 0.1],
        keep=[True, True, True],
        claims=[one.token for one in held.values()],
    )

    assert sorted(id for (id,) in rows) == sorted(ids.values())
    states = {queue: app.job(id).state for queue, id in ids.items()}
    assert states == {"a": JobState.SUCCEEDED, "b": JobState.FAILED, "c": JobState.READY}
    assert app.job(ids["a"]).error is None
    assert app.job(ids["b"]).result is None


def test_a_retry_is_the_same_job_scheduled_with_what_happened_before(app, echo, worker):
    result = echo.delay(7)
    before = worker.claim_one()

    returned = worker.retry(before, delay=60)

    job = result.job()
    assert returned == [result.id]
    assert (job.state, job.attempt, job.args) == (JobState.SCHEDULED, 1, [7])
    assert (job.started_at, job.worker_id) == (None, None)
    assert job.start_at is not None
    assert timedelta(seconds=55) < job.start_at - datetime.now(UTC) < timedelta(seconds=65)
    [attempt] = job.attempts
    assert (attempt.attempt, attempt.worker_id) == (1, worker.id)
    assert attempt.error is not None
    assert (attempt.error.type, attempt.error.message) == ("ValueError", "again")
    began, ended = (datetime.fromisoformat(one) for one in (attempt.started_at, attempt.stopped_at))
    assert ended - began == timedelta(seconds=0.25)


def test_a_retry_without_delay_is_ready_at_once_behind_the_others(app, echo, worker):
    first = echo.delay()
    second = echo.delay()
    held = worker.claim_one()

    worker.retry(held, delay=0)

    assert first.job().state is JobState.READY
    again = worker.claim()
    assert [one.id for one in again] == [second.id, first.id]
    assert again[1].attempt == 2
    assert again[1].seq > held.seq


def test_every_attempt_is_in_the_history_of_the_job(app, echo, worker):
    result = echo.delay()
    for _ in range(3):
        worker.retry(worker.claim_one(), delay=0)
    worker.succeed(worker.claim_one(), "done")

    job = result.job()
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 4, "done")
    assert [one.attempt for one in job.attempts] == [1, 2, 3]


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_requested_cancel_does_not_overrule_an_end(app, echo, worker, outcome):
    result = echo.delay()
    held = worker.claim_one()
    assert app.cancel(result.id) == {result.id: "requested"}

    worker.finish(held, outcome)

    assert result.job().state is JobState(outcome)


def test_a_requested_cancel_turns_a_retry_into_cancelled(app, echo, worker, connection):
    result = echo.delay()
    other = echo.delay()
    held = worker.claim()
    app.cancel(result.id)

    returned = worker.retry(held, delay=0)

    assert sorted(returned) == sorted([result.id, other.id])
    assert result.job().state is JobState.CANCELLED
    assert result.job().attempt == 1
    assert other.job().state is JobState.READY
    assert count_rows(connection, "job") == 1


def test_a_value_that_cannot_be_stored_leaves_the_whole_batch_undone(app, echo, worker):
    echo.delay()
    echo.delay()
    held = worker.claim()

    with pytest.raises(psycopg.DataError):
        worker.finish(held, result="a\0b")

    assert app.status().jobs[JobState.RUNNING] == 2
    assert len(worker.succeed(held)) == 2


def test_finished_jobs_are_told_to_listeners_and_to_nobody_else(app, echo, worker, connection):
    connection.execute("listen pgtasks_job_stopped")
    results = [echo.delay(n) for n in range(5)]
    first, second, third, *rest = worker.claim()

    worker.succeed(first)
    before = heard(connection)
    worker.execute("register_listener", id=new_id())
    worker.succeed([second])
    worker.retry(third)
    worker.succeed(rest)
    told = heard(connection)

    assert before == []
    ids = [result.id for result in results]
    assert [set(payload.split(",")) for _, payload in told] == [
        {ids[1]},
        {ids[2] + "+"},
        {ids[3], ids[4]},
    ]


def test_many_ids_are_told_in_several_payloads(app, worker, connection):
    connection.execute("listen pgtasks_job_stopped")
    worker.execute("register_listener", id=new_id())
    ids = {app.send_task("echo").id for _ in range(1)}
    ids |= {one.id for one in app.enqueue_many(_signatures(app, 450))}

    worker.succeed(worker.claim())

    told = [id for _, payload in heard(connection) for id in payload.split(",")]
    assert len(told) == 451
    assert set(told) == ids


def _signatures(app: App, n: int) -> list[Any]:
    @app.task(name="echo")
    def echo() -> None: ...

    return [echo.s()] * n
