"""Jobs of a running graph that somebody or something takes out: quarantine, cancels, tasks that no worker knows."""

from typing import Any

import psycopg
import pytest

from pgtasks import (
    App,
    ChordError,
    JobCancelledError,
    JobFailedError,
    JobState,
    chain,
    chord,
    group,
)
from pgtasks.errors import JobStateError
from tests.fixtures.graph_steps import assert_at_rest, echo, only, sorry
from tests.fixtures.simulated_worker import CRASH, Held, SimulatedWorker

__all__ = ["echo", "sorry"]

Connection = psycopg.Connection[Any]

# What a worker writes of a job that crashed too often elsewhere.
TOO_OFTEN = {"type": "pgtasks.Crash", "message": "took its process down 3 times"}


def crash_thrice(worker: SimulatedWorker, held: Held, error: dict[str, Any] = CRASH) -> None:
    """Let a job take its process down until it is quarantined."""
    for _ in range(2):
        worker.crash(held)
        [held] = [one for one in worker.claim(limit=1) if one.id == held.id]
    worker.finish(held, "quarantined", error=error)


# Quarantine


@pytest.mark.parametrize("error", [CRASH, TOO_OFTEN], ids=["here", "elsewhere"])
def test_a_quarantined_step_ends_the_chain_and_calls_back_once(
    app: App,
    echo: Any,
    sorry: Any,
    worker: SimulatedWorker,
    connection: Connection,
    error: dict[str, Any],
):
    last: Any = chain(echo.s(1), echo.s(), echo.s()).apply_async(link_error=sorry.s())
    worker.succeed(only(worker), 7)
    held = only(worker)

    crash_thrice(worker, held, error)

    callback = only(worker, "sorry")
    assert callback.input == f'"{held.id}"'
    worker.succeed(callback)
    assert_at_rest(connection)
    assert app.job(held.id).state == JobState.QUARANTINED
    job = last.job()
    assert (job.state, job.reason) == (JobState.CANCELLED, "what it waited for failed")
    with pytest.raises(JobFailedError, match=error["message"]):
        last.get(timeout=5)
    assert job.error is not None
    assert job.error.dependency == held.id


@pytest.mark.parametrize("error", [CRASH, TOO_OFTEN], ids=["here", "elsewhere"])
def test_a_quarantined_member_of_a_header_is_the_chords_error(
    app: App,
    echo: Any,
    sorry: Any,
    worker: SimulatedWorker,
    connection: Connection,
    error: dict[str, Any],
):
    body: Any = chord([echo.s(1), echo.s(2)], echo.s().on_error(sorry.s())).delay()
    first, second = worker.claim()
    worker.succeed(second, 2)

    crash_thrice(worker, first, error)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    with pytest.raises(ChordError, match=f"Dependency {first.id} raised Crash"):
        body.get(timeout=5)


def test_a_quarantined_graph_goes_on_when_it_is_started_again(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    header = group(chain(echo.s(1), echo.s()), echo.s(2))
    body: Any = chord(header, echo.s().on_error(sorry.s())).apply_async(link=echo.si("done"))
    first, second = worker.claim()
    worker.succeed(second, 2)
    crash_thrice(worker, first)
    worker.succeed(only(worker, "sorry"))

    ready = app.retry_failed(body.parent.id)

    assert ready == [first.id]
    assert app.job(first.id).crashes == 0
    worker.succeed(only(worker), 7)
    worker.succeed(only(worker), 8)
    held = only(worker)
    assert (held.id, held.input) == (body.id, "[8,2]")
    worker.succeed(held)
    held = only(worker)
    assert held.args == '["done"]'
    worker.succeed(held)
    assert_at_rest(connection)
    assert len(app.jobs(task="sorry")) == 0  # it was armed again, and not needed


def test_a_quarantined_job_that_is_reset_alone_lets_its_graph_be_started_again(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    steps = chain(echo.s(1), echo.s(), echo.s())
    result: Any = group([steps]).apply_async(link=echo.si("done"), link_error=sorry.s())
    held = only(worker)
    crash_thrice(worker, held)
    worker.succeed(only(worker, "sorry"))

    app.reset(held.id)
    worker.succeed(only(worker), 7)

    # A reset is of one job: what was cancelled for it stays so, until all is started again.
    assert worker.claim() == []
    assert app.bundle(result.id).state == "failed"
    [ready] = app.retry_failed(result.id)
    second = only(worker)
    assert (second.id, second.input) == (ready, "7")
    worker.succeed(second, 8)
    worker.succeed(only(worker), 9)
    worker.succeed(only(worker))
    assert_at_rest(connection)
    assert app.bundle(result.id).state == "succeeded"
    assert result.get(timeout=5) == [9]


def test_a_reset_member_that_succeeds_lets_the_body_be_started_again(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    body: Any = chord([echo.s(1), echo.s(2)], echo.s().on_error(sorry.s())).delay()
    first, second = worker.claim()
    worker.succeed(second, 2)
    crash_thrice(worker, first)
    worker.succeed(only(worker, "sorry"))
    app.reset(first.id)
    worker.succeed(only(worker), 1)

    assert app.retry_failed(body.parent.id) == [body.id]
    assert only(worker).input == "[1,2]"


def test_a_step_that_is_quarantined_again_calls_back_again(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    last: Any = group([chain(echo.s(1), echo.s())]).apply_async(link_error=sorry.s())
    for _ in range(2):
        crash_thrice(worker, only(worker))
        worker.succeed(only(worker, "sorry"))
        assert_at_rest(connection)
        assert last[0].job().state == JobState.CANCELLED
        app.retry_failed(last.id)


# Workers that die


def test_a_step_is_lost_with_its_worker_and_calls_back_once(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection, dsn: str
):
    steps = chain(echo.s(1), echo.s(), echo.s()).on_error(sorry.s())
    body: Any = chord([steps, echo.s(2)], echo.s().on_error(sorry.s())).delay()
    first, second = worker.claim()
    worker.succeed([first, second], 7)
    with psycopg.connect(dsn, autocommit=True) as other:
        dead = SimulatedWorker(other)
        [lost] = dead.claim(at_most_once=True)
        dead.beat(running=[lost.id])

        assert worker.rescue(dead) == 1

    held = worker.claim()
    assert [one.task for one in held] == ["sorry", "sorry"]
    assert [one.input for one in held] == [f'"{lost.id}"', f'"{body.id}"']
    worker.succeed(held)
    assert_at_rest(connection)
    with pytest.raises(ChordError, match="raised JobLostError"):
        body.get(timeout=5)


def test_a_step_whose_worker_died_runs_again_with_its_input(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection, dsn: str
):
    chain(echo.s(1), echo.s(), echo.s()).delay()
    worker.succeed(only(worker), 7)
    with psycopg.connect(dsn, autocommit=True) as other:
        dead = SimulatedWorker(other)
        held = only(dead)
        dead.beat(running=[held.id])
        assert worker.rescue(dead) == 1
        again = only(worker)
        assert dead.succeed(held, 8) == []  # too late

    assert (again.id, again.input, again.crashes) == (held.id, "7", 1)
    worker.succeed(again, 9)
    assert only(worker).input == "9"


# Tasks that no worker knows


def test_a_parked_member_holds_the_header_back_until_a_worker_knows_it(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    unknown = app.signature("newer", args=(2,))
    body: Any = chord([echo.s(1), unknown, chain(echo.s(3), unknown.clone())], echo.s()).delay()
    for one in worker.claim(tasks=["echo"]):
        worker.succeed(one, 1)
    old = SimulatedWorker(connection, tasks=["echo"])
    connection.execute("delete from pgtasks.worker where id <> %s", [old.id])
    old.execute("park_unknown", queue="default", limit=100, after=-1.0)

    parked = app.jobs("parked")
    assert [one.task for one in parked] == ["newer", "newer"]
    assert {one.reason for one in parked} == {"unknown task"}
    assert old.claim(tasks=["echo"]) == []
    assert app.bundle(body.parent.id).remaining == 2

    new = SimulatedWorker(connection, tasks=["echo", "newer"])
    new.execute("unpark_known", queue="default", tasks=["newer"], limit=100)
    held = new.claim()
    assert [(one.task, one.input) for one in held] == [("newer", None), ("newer", "1")]
    new.succeed(held, 2)
    assert only(new).input == "[1,2,2]"


def test_a_parked_step_is_cancelled_with_the_rest(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    steps = chain(app.signature("newer"), echo.s())
    last: Any = steps.apply_async(link_error=sorry.s())
    worker.execute("park_unknown", queue="default", limit=100, after=-1.0)
    [parked] = app.jobs("parked")

    assert app.cancel(parked.id) == {parked.id: "cancelled"}

    assert last.job().reason == "what it waited for failed"
    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)


# Cancels


@pytest.mark.parametrize("running", [False, True], ids=["waits", "runs"])
def test_a_cancelled_step_ends_the_chain_and_calls_back_once(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection, running: bool
):
    last: Any = chain(echo.s(1), echo.s(), echo.s()).apply_async(link_error=sorry.s())
    first = last.parent.parent
    if running:
        held = only(worker)
        assert app.cancel(first.id) == {first.id: "requested"}
        worker.finish(held, "cancelled")
    else:
        assert app.cancel(first.id) == {first.id: "cancelled"}

    callback = only(worker, "sorry")
    assert callback.input == f'"{first.id}"'
    worker.succeed(callback)
    assert_at_rest(connection)
    assert (first.state, last.state) == ("REVOKED", "FAILURE")
    with pytest.raises(JobCancelledError, match=f"job {first.id} ended cancelled"):
        last.get(timeout=5)


def test_a_step_that_waits_is_cancelled_at_once_and_what_runs_before_it_goes_on(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    last: Any = chain(echo.s(1), echo.s(), echo.s()).apply_async(link_error=sorry.s())
    held = only(worker)

    assert app.cancel(last.parent.id) == {last.parent.id: "cancelled"}

    assert last.job().reason == "what it waited for failed"
    assert last.parent.job().reason == "cancelled"
    worker.succeed(held, 7)
    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)


@pytest.mark.parametrize("running", [False, True], ids=["waits", "runs"])
def test_a_cancelled_member_of_a_header_is_the_chords_error(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection, running: bool
):
    body: Any = chord([echo.s(1), echo.s(2)], echo.s().on_error(sorry.s())).delay()
    member = body.parent[0]
    if running:
        first, second = worker.claim()
        member.revoke(terminate=True)
        worker.finish(first, "cancelled")
    else:
        member.revoke()
        second = only(worker)

    worker.succeed(second, 2)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    with pytest.raises(ChordError, match=f"Dependency {member.id} raised JobCancelledError"):
        body.get(timeout=5)


def test_a_cancelled_member_of_a_group_leaves_the_others(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    result: Any = group(echo.s(1), echo.s(2), chain(echo.s(3), echo.s())).delay()

    app.cancel(result[0].id, result[2].id)

    held = worker.claim()
    assert [one.args for one in held] == ["[2]", "[3]"]
    worker.succeed(held, 2)
    assert_at_rest(connection)
    assert [one.state for one in result] == ["REVOKED", "SUCCESS", "REVOKED"]


def test_a_bundle_is_cancelled_with_all_that_is_in_it_and_all_that_follows(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    last = echo.s().set(link=[echo.s()])  # a step of its own, in the group
    header = group(chain(echo.s(1), echo.s(), last), echo.s(2), echo.s(3))
    body: Any = chord(header, chain(echo.s(), echo.s()).on_error(sorry.s())).delay()
    header_id = body.parent.parent.id
    running = worker.claim(limit=1)

    done = app.cancel_bundle(header_id)

    assert sorted(done.values()) == ["cancelled"] * 4 + ["requested"]
    worker.finish(running, "cancelled")
    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    assert {job.state for job in app.graph(body)} == {JobState.CANCELLED, JobState.SUCCEEDED}
    assert app.bundle(header_id).state == "failed"


def test_a_cancelled_graph_is_started_again_as_a_whole(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    header = group(chain(echo.s(1), echo.s(), echo.s()), echo.s(2))
    body: Any = chord(header, echo.s().on_error(sorry.s())).delay()
    [running] = worker.claim(limit=1)
    app.cancel_bundle(body.parent.id)
    worker.finish(running, "cancelled")
    worker.succeed(only(worker, "sorry"))

    app.retry_failed(body.parent.id)

    worker.succeed(worker.claim(), 1)
    worker.succeed(only(worker), 2)
    worker.succeed(only(worker), 3)
    held = only(worker)
    assert (held.id, held.input) == (body.id, "[3,1]")
    worker.succeed(held)
    assert_at_rest(connection)


def test_a_purged_queue_leaves_nothing_of_a_graph_open(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    elsewhere = echo.s().set(queue="other")
    body: Any = chord([echo.s(1), chain(echo.s(2), elsewhere)], elsewhere.clone()).delay()

    app.purge("default")

    assert_at_rest(connection)
    assert {job.state for job in app.graph(body)} == {JobState.CANCELLED}
    with pytest.raises(JobStateError, match="retry-failed"):
        app.reset(body.id)
