"""What takes the results of others and cannot get them fails, and never runs without."""

import json
from typing import Any

import psycopg
import pytest

from pgtasks import App, ChordError, JobFailedError, JobState, chain, chord, group
from pgtasks.errors import JobStateError
from tests.fixtures.graph_steps import assert_at_rest, echo, only, sorry
from tests.fixtures.simulated_worker import SimulatedWorker

__all__ = ["echo", "sorry"]

Connection = psycopg.Connection[Any]


@pytest.fixture
def too_large(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
) -> Any:
    """The body of a chord whose results were too large for it; its callback for failure ran."""
    body = chord([echo.s(n) for n in range(65)], chain(echo.s(), echo.s()).on_error(sorry.s()))
    result: Any = body.delay()
    *first, last = worker.claim()
    worker.succeed(first)
    connection.execute(
        "update pgtasks.job_history set result = to_json(repeat('x', 1060000))::text"
    )
    worker.succeed(last)
    worker.succeed(only(worker, "sorry"))
    return result


def test_results_that_are_too_large_are_the_error_of_all_that_follows(
    app: App, too_large: Any, connection: Connection
):
    assert_at_rest(connection)
    assert too_large.parent.job().state == JobState.FAILED
    assert too_large.job().state == JobState.CANCELLED
    for result in (too_large, too_large.parent):
        with pytest.raises(JobFailedError, match="at most 67108864 can be handed on"):
            result.get(timeout=5)


def test_what_could_not_get_its_results_is_not_reset_alone(
    app: App, too_large: Any, worker: SimulatedWorker
):
    with pytest.raises(JobStateError, match="retry-failed"):
        app.reset(too_large.parent.id)


def test_what_could_not_get_its_results_tries_again_and_calls_back_again(
    app: App, too_large: Any, worker: SimulatedWorker, connection: Connection
):
    """It ran with no argument at all."""
    header = too_large.parent.parent

    app.retry_failed(header.id)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    assert too_large.parent.job().state == JobState.FAILED


@pytest.mark.parametrize("before", [True, False], ids=["then run", "run then"])
def test_what_could_not_get_its_results_gets_smaller_ones(
    app: App, too_large: Any, worker: SimulatedWorker, connection: Connection, before: bool
):
    header = too_large.parent.parent
    app.reset_bundle(header.id)
    if before:
        assert app.retry_failed(header.id) == []
    worker.succeed(worker.claim(), 1)
    if not before:
        assert app.retry_failed(header.id) == [too_large.parent.id]

    held = only(worker)

    assert held.input == json.dumps([1] * 65, separators=(",", ":"))
    worker.succeed(held, 2)
    assert only(worker).input == "2"


def test_a_list_that_is_too_large_for_so_many_is_refused(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    """The finish was over the worker's statement timeout, and was tried again for ever."""
    bodies = group(echo.s(), echo.s(), echo.s())
    last = chain(group(echo.s(n) for n in range(50)), bodies, echo.s().on_error(sorry.s())).delay()
    *first, latest = worker.claim()
    worker.succeed(first)
    connection.execute(
        "update pgtasks.job_history set result = to_json(repeat('x', 1000000))::text"
    )

    worker.succeed(latest)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    with pytest.raises(ChordError, match="134217728 can be handed on to all of 3 jobs"):
        last.get(timeout=5)


def test_a_result_that_is_too_large_for_so_many_is_refused(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    members = group(echo.s() for _ in range(150))
    last: Any = chain(echo.s(1), members, echo.s().on_error(sorry.s())).delay()
    first = only(worker)

    worker.succeed(first, "x" * 900_000)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    assert [one.state for one in last.parent] == ["FAILURE"] * 150
    with pytest.raises(ChordError, match=f"the result of job {first.id} takes 900002 bytes"):
        last.get(timeout=5)


def test_a_small_result_is_handed_on_to_any_number(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    chain(echo.s(1), group(echo.s() for _ in range(150))).delay()

    worker.succeed(only(worker), "x" * 1000)

    assert {one.input for one in worker.claim()} == {f'"{"x" * 1000}"'}


def test_a_body_never_gets_fewer_results_than_its_header_has_members(
    app: App, echo: Any, sorry: Any, worker: SimulatedWorker, connection: Connection
):
    """The list was shorter, and nobody heard of it."""
    body: Any = chord([echo.s(1), chain(echo.s(2), echo.s())], echo.s().on_error(sorry.s())).delay()
    header = body.parent
    first, second = worker.claim()
    worker.succeed(first, 1)
    app.delete(first.id)
    worker.succeed(second, 2)
    worker.succeed(only(worker), 3)

    worker.succeed(only(worker, "sorry"))
    assert_at_rest(connection)
    with pytest.raises(JobFailedError, match=f"1 of 2 results of bundle {header.id} are deleted"):
        body.get(timeout=5)


def test_a_graph_whose_results_are_deleted_is_not_started_again_without_them(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    body: Any = chord([echo.s(1), echo.s(2)], echo.s()).apply_async(link=echo.s())
    first, second = worker.claim()
    worker.succeed(first, 1)
    worker.fail(second)
    app.delete_finished_jobs("succeeded")
    app.retry_failed(body.parent.id)

    worker.succeed(only(worker), 2)

    assert_at_rest(connection)
    with pytest.raises(JobFailedError, match="1 of 2 results"):
        body.get(timeout=5)


def test_results_that_were_forgotten_are_null(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    """Whoever says forget() means it; the list keeps its length."""
    body: Any = chord([echo.s(1), echo.s(2)], echo.s()).delay()
    first, second = worker.claim()
    worker.succeed(first, 1)
    body.parent[0].forget()

    worker.succeed(second, 2)

    assert only(worker).input == "[null,2]"


def test_the_largest_results_go_from_step_to_step(
    app: App, echo: Any, worker: SimulatedWorker, connection: Connection
):
    largest = "x" * (2**20 - 2)
    last = chain(echo.s(largest[:-2]), group(echo.s(), echo.s()), echo.s()).delay()
    first = only(worker)
    worker.succeed(first, largest)
    members = worker.claim()
    worker.succeed(members, largest)

    held = only(worker)

    assert len(first.args) == 2**20
    assert [one.input for one in members] == [json.dumps(largest)] * 2
    assert held.input == f'["{largest}","{largest}"]'
    worker.succeed(held, 1)
    assert last.get(timeout=5) == 1
