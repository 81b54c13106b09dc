"""Times in a running graph: when a step expires, what it waits for first, and from where both are counted."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, ChordError, JobExpiredError, JobState, chain, chord, group
from tests.fixtures.graph_steps import echo, only, sorry
from tests.fixtures.simulated_worker import SimulatedWorker

__all__ = ["echo", "sorry"]

Connection = psycopg.Connection[Any]

HOUR = 3600.0


def age(connection: Connection, seconds: float) -> None:
    """Let so much time pass for what waits for a time."""
    connection.execute(
        "update pgtasks.job set start_at = start_at - %(by)s * interval '1 second',"
        " expires_at = expires_at - %(by)s * interval '1 second'",
        {"by": seconds},
    )
    connection.execute("select pgtasks.promote_jobs('default', 100)")


def expire(worker: SimulatedWorker) -> list[str]:
    """Claim jobs that are all expired, and do what a worker does with them: they are not begun."""
    held = worker.claim()
    assert [one.expired for one in held] == [True] * len(held)
    return worker.finish(held, "expired", age=None)


def seconds_left(connection: Connection, column: str) -> float | None:
    """Return how far from now a time of the only job that is not blocked lies."""
    [(found,)] = connection.execute(
        f"select extract(epoch from {column} - now())::float from pgtasks.job where state <> 'blocked'"
    ).fetchall()
    return found


# Expiry


@pytest.mark.parametrize("said", ["call", "task"])
def test_the_expiry_of_a_step_counts_from_its_release(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection, said: str
):
    @app.task(name="brief", expires=60)
    def brief(*args: Any) -> None: ...

    step = brief.s() if said == "task" else echo.s().set(expires=60)
    chain(echo.s(1), step, echo.s()).delay()
    connection.execute("update pgtasks.job set created_at = now() - interval '1 hour'")

    worker.succeed(only(worker), 7)

    left = seconds_left(connection, "expires_at")
    assert left is not None
    assert 50 < left <= 60
    [held] = worker.claim()
    assert (held.expired, held.input) == (False, "7")


def test_an_expired_step_ends_the_chain_and_calls_back_once(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    steps = chain(echo.s(1), echo.s().set(expires=60), echo.s(), echo.s())
    last: Any = steps.apply_async(link_error=sorry.s())
    worker.succeed(only(worker), 7)
    age(connection, 61)

    [expired] = expire(worker)

    callback = only(worker, "sorry")
    assert callback.input == f'"{expired}"'
    worker.succeed(callback)
    assert worker.claim() == []
    middle = last.parent
    assert (app.job(expired).state, app.job(expired).attempt) == (JobState.EXPIRED, 0)
    for result in (middle, last):
        job = result.job()
        assert (job.state, job.reason) == (JobState.CANCELLED, "what it waited for failed")
        assert job.error is not None
        assert (job.error.type, job.error.dependency) == ("pgtasks.errors.JobExpiredError", expired)
    with pytest.raises(JobExpiredError, match=f"job {expired} ended expired"):
        last.get(timeout=5)


@pytest.mark.parametrize("alone", [True, False], ids=["call", "chain"])
def test_an_expired_member_of_a_header_is_the_chords_error(
    app: App,
    echo: Any,
    sorry: Any,
    worker: SimulatedWorker,
    connection: Connection,
    alone: bool,
):
    late = echo.s(1).set(expires=60) if alone else chain(echo.s(1).set(expires=60), echo.s())
    body: Any = chord([late, echo.s(2)], echo.s().on_error(sorry.s())).delay()
    age(connection, 61)
    first, second = worker.claim()
    assert (first.expired, second.expired) == (True, False)

    worker.finish(first, "expired", age=None)
    assert worker.claim() == []  # the other member is still running
    worker.succeed(second)

    assert only(worker, "sorry").input == f'"{body.id}"'
    member = body.parent[0].id
    with pytest.raises(ChordError, match=f"Dependency {member} raised JobExpiredError"):
        body.get(timeout=5)


def test_an_expired_member_leaves_the_others_of_a_group(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    result: Any = group(echo.s(1).set(expires=60), echo.s(2)).delay()
    age(connection, 61)

    first, second = worker.claim()

    worker.finish(first, "expired", age=None)
    worker.succeed(second, 2)

    assert result[0].job().state == JobState.EXPIRED
    assert (result.failed(), result[1].get(timeout=5)) == (True, 2)
    assert app.bundle(result.id).state == "failed"


def test_an_expired_step_runs_when_its_graph_is_started_again(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    callback = echo.si("done")
    steps = chain(echo.s(1), echo.s().set(expires=60, link_error=[sorry.s()]), echo.s())
    last: Any = group([steps]).apply_async(link=callback)
    worker.succeed(only(worker), 7)
    age(connection, 61)
    [expired] = expire(worker)
    worker.succeed(only(worker, "sorry"))

    ready = app.retry_failed(last.id)

    assert ready == [expired]
    held = only(worker)
    assert (held.id, held.input, held.expired) == (expired, "7", False)
    worker.succeed(held, 8)
    held = only(worker)
    assert (held.id, held.input) == (last[0].id, "8")
    worker.succeed(held)
    assert only(worker).args == '["done"]'


# Countdown


def test_a_countdown_in_the_middle_of_a_chain_begins_when_it_has_its_input(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    chain(echo.s(1), echo.s().set(countdown=HOUR), echo.s()).delay()
    age(connection, 2 * HOUR)

    worker.succeed(only(worker), 7)

    left = seconds_left(connection, "start_at")
    assert left is not None
    assert HOUR - 10 < left <= HOUR
    assert worker.claim() == []
    age(connection, HOUR)
    held = only(worker)
    assert held.input == "7"
    worker.succeed(held, 8)
    assert only(worker).input == "8"


def test_the_countdown_of_a_body_begins_after_its_header(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    chord([echo.s(1), echo.s(2)], echo.s().set(countdown=HOUR)).delay()
    age(connection, 2 * HOUR)

    worker.succeed(worker.claim(), 7)

    assert worker.claim() == []
    age(connection, HOUR + 10)
    assert only(worker).input == "[7,7]"


def test_what_follows_waits_for_a_member_with_a_countdown(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    header = [echo.s(1).set(countdown=HOUR), chain(echo.s(2), echo.s().set(countdown=HOUR))]
    chord(header, echo.s()).delay()

    worker.succeed(only(worker), 7)
    assert worker.claim() == []
    age(connection, HOUR + 10)

    held = worker.claim()
    assert [one.input for one in held] == [None, "7"]
    worker.succeed(held, 8)
    assert only(worker).input == "[8,8]"


def test_a_step_with_countdown_and_expiry_counts_both_from_its_release(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    chain(echo.s(1), echo.s().set(countdown=60, expires=90)).delay()
    connection.execute("update pgtasks.job set created_at = now() - interval '1 hour'")

    worker.succeed(only(worker), 7)

    start, end = seconds_left(connection, "start_at"), seconds_left(connection, "expires_at")
    assert start is not None
    assert end is not None
    assert 50 < start <= 60
    assert 80 < end <= 90
    age(connection, 65)
    assert only(worker).expired is False


def test_a_callback_with_a_countdown_waits_after_the_job(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    echo.s(1).apply_async(
        link=echo.s().set(countdown=HOUR), link_error=sorry.s().set(countdown=HOUR)
    )

    worker.fail(only(worker))

    assert worker.claim() == []
    age(connection, HOUR)
    assert only(worker, "sorry").task == "sorry"
