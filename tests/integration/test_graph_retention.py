"""Graphs that run longer than their history is kept: nothing is lost that is still needed, and nothing stays."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgtasks import App, NotFoundError, chain, chord, group
from pgtasks.db import migrations
from tests.fixtures.graph_steps import echo, only, sorry
from tests.fixtures.simulated_worker import SimulatedWorker, count_rows

__all__ = ["echo", "sorry"]

Connection = psycopg.Connection[Any]

DAY = 86400.0
TABLES = ("job", "job_history", "job_bundle", "job_progress", "claim")


@pytest.fixture
def history(fresh_dsn: str) -> Iterator[Connection]:
    """A database of its own, since partitions outlive the emptying of tables."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        migrations.migrate(connection)
        yield connection


@pytest.fixture
def app(fresh_dsn: str, history: Connection) -> Iterator[App]:
    app = App("tests", fresh_dsn)
    try:
        yield app
    finally:
        app.close()


@pytest.fixture
def worker(history: Connection) -> SimulatedWorker:
    return SimulatedWorker(history)


def outlive(worker: SimulatedWorker, days: float = 1) -> None:
    """Do what is done when all that has stopped until now is so many days older than is kept."""
    for _ in range(2):  # the first drops today's partition, the second makes it again
        worker.execute("maintain_history", keep=-days * DAY)
        worker.execute("forget_progress")


def pass_days(connection: Connection, days: float) -> None:
    """Make everything that there is older."""
    for table, columns in {
        "job_history": ("created_at", "started_at", "stopped_at"),
        "job_bundle": ("created_at", "stopped_at"),
    }.items():
        changed = ", ".join(f"{name} = {name} - {days} * interval '1 day'" for name in columns)
        connection.execute(f"update pgtasks.{table} set {changed}")


def test_the_results_of_a_header_outlive_their_retention(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection
):
    @app.task(name="fleeting", keep_history=False)
    def fleeting(*args: Any) -> None: ...

    @app.task(name="quiet", ignore_result=True)
    def quiet(*args: Any) -> None: ...

    header = group(
        chain(echo.s(1), echo.s().on_error(echo.s())), fleeting.s(), quiet.s(), echo.s(2)
    )
    chord(header, echo.s().on_error(echo.s())).delay()
    held = worker.claim()
    for number, one in enumerate(held[:3]):
        worker.succeed(one, number)
        outlive(worker)
    step = only(worker)
    worker.succeed(step, 7)
    outlive(worker)

    worker.succeed(held[3], 3)

    assert only(worker).input == "[7,1,2,3]"


def test_nothing_of_a_graph_stays_when_it_is_too_old(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, history: Connection
):
    @app.task(name="fleeting", keep_history=False)
    def fleeting(*args: Any) -> None: ...

    step = echo.s().on_error(sorry.s())
    chain(group(chain(fleeting.s(1), step), fleeting.s(2)), fleeting.s(), step).apply_async(
        link=fleeting.s()
    )
    failing: Any = chord([step.clone((1,)), echo.s(2)], chain(echo.s(), step)).delay()
    while held := worker.claim():
        worker.execute(
            "record_progress",
            id=[one.id for one in held],
            token=[one.token for one in held],
            progress=['{"done": 1}'] * len(held),
            age=[0.0] * len(held),
        )
        for one in held:
            (worker.fail if one.root_id == failing.parent.parent[0].id else worker.succeed)(one)
        outlive(worker)

    assert {table: count_rows(history, table) for table in TABLES} == dict.fromkeys(TABLES, 0)


def test_members_are_kept_as_long_as_the_group_that_they_are_in(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection
):
    """They went with their own age, at once when a group ended that had run for longer."""
    group(chain(echo.s(1), echo.s().on_error(echo.s())), echo.s(2), echo.s(3)).delay()
    first, second, third = worker.claim()
    worker.succeed(first, 1)
    worker.succeed(second, 2)
    worker.succeed(only(worker), 7)
    pass_days(history, 8)

    worker.succeed(third, 3)
    worker.execute("maintain_history", keep=7 * DAY)

    kept = history.execute(
        "select bundle_index, result from pgtasks.job_history order by bundle_index"
    )
    assert kept.fetchall() == [(0, "7"), (1, "2"), (2, "3")]
    pass_days(history, 8)
    worker.execute("maintain_history", keep=7 * DAY)
    assert count_rows(history, "job_history") == count_rows(history, "job_bundle") == 0


def test_a_graph_that_ran_for_longer_than_the_retention_starts_again_with_every_result(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection
):
    body: Any = chord(
        [chain(echo.s(1), echo.s().on_error(echo.s())), echo.s(2), echo.s(3)], echo.s()
    ).delay()
    first, second, third = worker.claim()
    worker.succeed(first, 1)
    worker.succeed(second, 2)
    worker.succeed(only(worker), 7)
    pass_days(history, 8)
    worker.fail(third)
    worker.execute("maintain_history", keep=7 * DAY)

    app.retry_failed(body.parent.id)

    worker.succeed(only(worker), 3)
    assert only(worker).input == "[7,2,3]"


@pytest.mark.parametrize("dropped", [False, True], ids=["default", "partition"])
def test_what_broke_long_ago_in_a_graph_that_still_runs_is_started_again(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection, dropped: bool
):
    """The step that had failed is no member: it was gone, and with it the way back."""
    broken = chain(echo.s(1), echo.s(), echo.s())
    body: Any = chord([broken, echo.s(2)], echo.s()).delay()
    first, second = worker.claim()
    worker.fail(first)
    if dropped:
        outlive(worker)
    pass_days(history, 8)
    worker.execute("maintain_history", keep=7 * DAY)
    worker.succeed(second, 2)
    worker.execute("maintain_history", keep=7 * DAY)

    assert app.retry_failed(body.parent.id) == [first.id]

    for number in (7, 8, 9):
        worker.succeed(only(worker), number)
    assert only(worker).input == "[9,2]"


def test_what_broke_goes_with_the_graph(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection
):
    group(chain(echo.s(1), echo.s(), echo.s()), echo.s(2)).delay()
    first, second = worker.claim()
    worker.fail(first)
    pass_days(history, 8)
    worker.succeed(second, 2)
    worker.execute("maintain_history", keep=7 * DAY)
    before = count_rows(history, "job_history")

    pass_days(history, 8)
    worker.execute("maintain_history", keep=7 * DAY)

    assert before == 4
    assert count_rows(history, "job_history") == count_rows(history, "job_bundle") == 0


def test_a_chain_outlives_its_steps(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, history: Connection
):
    steps = chain(echo.s(1), echo.s(), echo.s()).on_error(sorry.s())
    last: Any = steps.apply_async(link=echo.s())
    for number in range(3):
        worker.succeed(only(worker), number)
        outlive(worker)

    held = only(worker)

    assert held.input == "2"
    assert (count_rows(history, "job"), count_rows(history, "job_history")) == (1, 0)
    with pytest.raises(NotFoundError, match="its history is gone"):
        last.get(timeout=5)


def test_whoever_deletes_finished_jobs_leaves_what_a_header_still_needs(
    app: App, echo: Any, worker: SimulatedWorker, history: Connection
):
    chord([chain(echo.s(1), echo.s().on_error(echo.s())), echo.s(2), echo.s(3)], echo.s()).delay()
    first, second, third = worker.claim()
    worker.succeed(first, 1)
    worker.succeed(second, 2)
    worker.succeed(only(worker), 7)

    # Only the first step, which is not a member and whose result is taken.
    assert app.delete_finished_jobs() == 1
    assert app.delete_finished_bundles() == 0

    worker.succeed(third, 3)
    assert only(worker).input == "[7,2,3]"
