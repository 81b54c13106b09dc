"""Tasks of every kind as steps of graphs: how they end is how the graph goes on, and callbacks run once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks import (
    App,
    ChordError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobLostError,
    JobState,
    TimeLimitExceeded,
    chain,
    chord,
    group,
)
from tests.fixtures import steps_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun

STEPS = "tests.fixtures.steps_app"
Connection = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def tables(connection: Connection) -> Iterator[None]:
    connection.execute("create table if not exists effect (number integer)")
    connection.execute(
        "create table if not exists deferred (number integer unique deferrable initially deferred)"
    )
    yield
    connection.execute("drop table effect, deferred")


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """What callbacks for failure write: the id of the job that failed, and its error's type."""
    return tmp_path / "told"


def settled(app: App, connection: Connection) -> None:
    """Wait until every job is finished, and assert that no bundle is open."""

    def empty() -> None:
        assert connection.execute("select id, task, state from pgtasks.job").fetchall() == []

    eventually(empty)
    left = connection.execute("select id from pgtasks.job_bundle where stopped_at is null")
    assert left.fetchall() == []


def effects(connection: Connection) -> list[int]:
    return [number for (number,) in connection.execute("select number from effect order by 1")]


one_more: Any = steps_app.one_more
total: Any = steps_app.total
caught: Any = steps_app.caught
KINDS: list[Any] = [
    steps_app.one_more_later,
    steps_app.one_more_once,
    steps_app.one_more_written,
    steps_app.one_more_written_later,
    steps_app.one_more_in_time,
]


@pytest.mark.parametrize("at_once", [1, 4])
def test_steps_of_every_kind_hand_on_their_results(
    app: App, workers: Workers, connection: Connection, at_once: int
) -> None:
    workers.start(STEPS, concurrency=2, async_concurrency=at_once)
    before: Any = chain(one_more.s(0), *(kind.s() for kind in KINDS))
    members = [chain(kind.s(10), one_more.s()) for kind in KINDS] + [kind.s(20) for kind in KINDS]

    last = chain(before, group(kind.s() for kind in KINDS), total.s()).delay()
    body = chord(members, total.s()).delay()

    assert last.get(timeout=10) == 7 * len(KINDS)
    assert body.get(timeout=10) == (12 + 21) * len(KINDS)
    assert effects(connection) == [3, 4, 6, 6, 10, 10, 20, 20]
    settled(app, connection)


ENDS: dict[str, tuple[Any, type[JobFailedError] | type[ValueError], str]] = {
    "at most once": (steps_app.dies_once, JobLostError, "JobLostError"),
    "quarantine": (steps_app.dies, JobFailedError, "TaskFailedError"),
    "time limit": (steps_app.hangs, TimeLimitExceeded, "TimeLimitExceeded"),
    "time limit in await": (steps_app.hangs_in_await, TimeLimitExceeded, "TimeLimitExceeded"),
    "transactional": (steps_app.fails_written, ValueError, "ValueError"),
    "at commit": (steps_app.fails_at_commit, JobFailedError, "TaskFailedError"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_step_that_ends_badly_ends_its_chain_and_is_called_back_for_once(
    app: App, workers: Workers, runs: Runs, told: Path, connection: Connection, how: str
) -> None:
    workers.start(STEPS, concurrency=2)
    task, error, name = ENDS[how]
    steps = chain(one_more.s(0), task.s(runs.path), one_more.s(), one_more.s())

    last: Any = steps.apply_async(link_error=caught.s(str(told)), link=one_more.s())

    with pytest.raises(error):
        last.get(timeout=10)
    settled(app, connection)
    broken = last.parent.parent
    assert told.read_text().split("\n") == [f"{broken.id} {name}", ""]
    assert [one.job().state for one in (last.parent, last)] == [JobState.CANCELLED] * 2
    assert last.job().error.dependency == broken.id
    assert effects(connection) == []
    assert len(runs.of(broken.id)) == (3 if how == "quarantine" else 1)


@pytest.mark.parametrize("how", ENDS)
def test_a_member_that_ends_badly_is_the_chords_error(
    app: App, workers: Workers, runs: Runs, told: Path, connection: Connection, how: str
) -> None:
    workers.start(STEPS, concurrency=2)
    task, _, _ = ENDS[how]
    header = [one_more.s(1), chain(task.s(0, runs.path), one_more.s()), one_more.s(2)]

    body: Any = chord(header, total.s().on_error(caught.s(str(told)))).delay()

    members = body.parent.results
    with pytest.raises(ChordError, match=f"Dependency {members[1].id} raised"):
        body.get(timeout=10)
    settled(app, connection)
    assert told.read_text().split("\n") == [f"{body.id} ChordError", ""]
    assert (members[0].get(timeout=5), members[2].get(timeout=5)) == (2, 3)


def test_a_quarantined_member_goes_on_when_its_graph_is_started_again(
    app: App,
    workers: Workers,
    runs: Runs,
    told: Path,
    gate: Gate,
    connection: Connection,
) -> None:
    workers.start(STEPS)
    member = chain(one_more.s(0), steps_app.dies.s(runs.path, healed=str(gate)), one_more.s())
    body: Any = chord([member, one_more.s(1)], total.s().on_error(caught.s(str(told)))).delay()
    with pytest.raises(ChordError, match="raised Crash"):
        body.get(timeout=10)
    settled(app, connection)
    gate.open()

    app.retry_failed(body.parent.id)

    eventually(partial(_is, body, 11))
    settled(app, connection)
    assert len(told.read_text().splitlines()) == 1


def _is(result: Any, value: object) -> None:
    assert result.state == "SUCCESS"
    assert result.get(timeout=5) == value


@pytest.mark.parametrize("place", ["step", "member"])
def test_a_running_job_that_is_revoked_ends_what_follows(
    app: App, workers: Workers, runs: Runs, told: Path, connection: Connection, place: str
) -> None:
    workers.start(STEPS, concurrency=2)
    waits = steps_app.waits.s(0, runs.path)
    body = one_more.s() if place == "step" else total.s()
    body.link_error(caught.s(str(told)))
    graph: Any = chain(waits, body) if place == "step" else chord([waits, one_more.s(1)], body)
    last: Any = graph.delay()
    running = last.parent if place == "step" else last.parent[0]
    wait_until_begun(runs, running.id)

    running.revoke(terminate=True)

    with pytest.raises(JobCancelledError if place == "step" else ChordError):
        last.get(timeout=10)
    settled(app, connection)
    assert running.state == "REVOKED"
    # What failed for a step is that step, whose callbacks these are not.
    assert told.exists() is (place == "member")


def test_a_whole_graph_is_cancelled_while_it_runs(
    app: App, workers: Workers, runs: Runs, told: Path, connection: Connection
) -> None:
    workers.start(STEPS, concurrency=2)
    members = [chain(steps_app.waits.s(n, runs.path), one_more.s()) for n in range(4)]
    body: Any = chord(members, total.s().on_error(caught.s(str(told)))).delay()
    firsts = [one.parent for one in body.parent]
    eventually(lambda: _two_run(runs, [one.id for one in firsts]))

    body.parent.revoke(terminate=True)

    with pytest.raises(ChordError):
        body.get(timeout=10)
    settled(app, connection)
    assert {one.state for one in firsts} == {"REVOKED"}
    assert told.read_text().split("\n") == [f"{body.id} ChordError", ""]


def _two_run(runs: Runs, ids: list[str]) -> None:
    assert sum(bool(runs.of(id)) for id in ids) == 2


def test_a_step_that_expires_before_a_worker_comes_is_never_begun(
    app: App, workers: Workers, runs: Runs, told: Path, connection: Connection
) -> None:
    workers.start(STEPS)
    late = steps_app.waits.s(runs.path).set(expires=0.05, queue="late")
    steps = chain(one_more.s(0), late, one_more.s())
    last: Any = steps.apply_async(link_error=caught.s(str(told)))
    eventually(lambda: _is_over(connection, last.parent.id))

    workers.start(STEPS, queues=["late"])

    with pytest.raises(JobExpiredError):
        last.get(timeout=10)
    settled(app, connection)
    assert runs.of(last.parent.id) == []
    assert told.read_text().split("\n") == [f"{last.parent.id} JobExpiredError", ""]


def _is_over(connection: Connection, id: str) -> None:
    over = connection.execute(
        "select from pgtasks.job where id = %s and expires_at < now()", [id]
    ).fetchall()
    assert len(over) == 1


def test_results_of_a_mebibyte_go_through_steps_and_chords(
    app: App, workers: Workers, connection: Connection
) -> None:
    workers.start(STEPS, concurrency=2)
    size = 2**20 - 2  # with the quotes it is the most that fits
    text = "x" * (size - 20)
    members = [chain(steps_app.large.s(text, size), steps_app.large.s(size)) for _ in range(12)]

    body = chord(members, steps_app.lengths.s()).delay()

    assert body.get(timeout=20) == [size] * 12
    settled(app, connection)
