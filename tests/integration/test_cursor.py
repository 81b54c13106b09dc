"""The cursor: a claim that starts behind what was claimed, and what only a sweep can find."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from tests.fixtures.simulated_worker import HIGHEST, LOWEST, Held, Range, SimulatedWorker


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def ranges_beyond(*held: Held) -> list[Range]:
    """What a parent asks for after it claimed these: beyond them, and every gap between."""
    newest: dict[int, int] = {}
    for one in held:
        newest[one.priority] = max(one.seq, newest.get(one.priority, 0))
    ranges: list[Range] = []
    top = HIGHEST
    for priority in sorted(newest, reverse=True):
        if priority < top:
            ranges.append((top, priority + 1, None))
        ranges.append((priority, priority, newest[priority]))
        top = priority - 1
    return [*ranges, (top, LOWEST, None)]


def ids(held: list[Held]) -> list[str]:
    return [one.id for one in held]


def test_a_claim_with_a_cursor_finds_only_what_lies_beyond_it(app, echo, worker):
    first, second = echo.delay(), echo.delay()
    held = {one.id: one for one in worker.claim()}
    worker.release(list(held.values()))

    beyond_first = worker.claim(ranges=[(0, 0, held[first.id].seq)])

    assert ids(beyond_first) == [second.id]
    assert worker.claim(ranges=[(0, 0, held[second.id].seq)]) == []


def test_gaps_between_known_priorities_are_seen_at_once(app, echo, worker):
    known = [echo.apply_async(priority=priority) for priority in (10, 0, -10)]
    held = worker.claim()
    assert ids(held) == [one.id for one in known]
    new = {
        priority: echo.apply_async(priority=priority).id
        for priority in (-20, -10, -5, 0, 5, 10, 20)
    }

    found = worker.claim(ranges=ranges_beyond(*held))

    assert ids(found) == [new[priority] for priority in (20, 10, 5, 0, -5, -10, -20)]


def test_a_range_is_bounded_on_both_sides(app, echo, worker):
    for priority in (4, 3, 2, 1):
        echo.apply_async(priority=priority)

    assert [one.priority for one in worker.claim(ranges=[(3, 2, None)])] == [3, 2]


def test_a_late_lower_seq_is_found_by_a_sweep_and_not_by_the_cursor(app, echo, worker, dsn):
    with psycopg.connect(dsn) as slow:
        late = echo.using(slow).delay()
        early = echo.delay()
        held = worker.claim()
        slow.commit()
    by_cursor = worker.claim(ranges=ranges_beyond(*held))
    by_sweep = worker.claim()

    assert ids(held) == [early.id]
    assert by_cursor == []
    assert ids(by_sweep) == [late.id]
    assert by_sweep[0].seq < held[0].seq


def test_a_released_job_keeps_its_place_behind_the_cursor(app, echo, worker):
    echo.delay()
    held = worker.claim()
    worker.release(held)

    assert worker.claim(ranges=ranges_beyond(*held)) == []
    assert worker.claim()[0].seq == held[0].seq


def made_ready_again_by_retry(app, worker: SimulatedWorker, held: Held) -> None:
    worker.retry(held, delay=0)


def made_ready_again_by_promotion(app, worker: SimulatedWorker, held: Held) -> None:
    worker.retry(held, delay=60)
    worker.connection.execute("update pgtasks.job set start_at = now() - interval '1 second'")
    worker.execute("promote_jobs", queue="default", limit=10)


def made_ready_again_by_unparking(app, worker: SimulatedWorker, held: Held) -> None:
    worker.release(held)
    # As if it had waited for longer than a worker waits for an unknown task.
    worker.execute("park_unknown", queue="default", limit=10, after=-1.0)
    assert app.job(held.id).state is JobState.PARKED
    assert app.job(held.id).reason == "unknown task"
    worker.execute("unpark_known", queue="default", tasks=["echo"], limit=10)


def made_ready_again_by_reset(app, worker: SimulatedWorker, held: Held) -> None:
    worker.succeed(held)
    app.reset(held.id)


@pytest.mark.parametrize(
    "made_ready_again",
    [
        made_ready_again_by_retry,
        made_ready_again_by_promotion,
        made_ready_again_by_unparking,
        made_ready_again_by_reset,
    ],
)
def test_a_job_that_becomes_ready_again_lies_beyond_every_cursor(
    app, echo, worker, made_ready_again
):
    echo.delay()
    newest = echo.delay()
    held = worker.claim()
    first = held[0]

    made_ready_again(app, worker, first)

    again = worker.claim(ranges=ranges_beyond(*held))
    assert ids(again) == [first.id]
    assert again[0].seq > held[1].seq
    assert app.job(newest.id).state is JobState.RUNNING


def test_jobs_that_are_due_are_promoted_earliest_first_and_the_others_wait(
    app, echo, worker, connection
):
    for n, moment in enumerate(["-1 hour", "-3 hours", "-2 hours", "1 hour"]):
        id = echo.apply_async((n,), countdown=60).id
        connection.execute(
            "update pgtasks.job set start_at = now() + %s::interval where id = %s", [moment, id]
        )

    worker.execute("promote_jobs", queue="default", limit=2)
    first = [one.args for one in worker.claim()]
    worker.execute("promote_jobs", queue="default", limit=2)
    second = [one.args for one in worker.claim()]

    assert sorted(first) == ["[1]", "[2]"]
    assert second == ["[0]"]
    assert app.status().jobs[JobState.SCHEDULED] == 1


def test_a_task_that_a_live_worker_knows_is_not_parked(app, echo, worker, connection):
    echo.delay()
    connection.execute("update pgtasks.worker set tasks = '{echo}'")

    worker.execute("park_unknown", queue="default", limit=10, after=-1.0)

    assert app.status().jobs[JobState.READY] == 1


def test_a_job_that_has_not_waited_long_enough_is_not_parked(app, echo, worker):
    echo.delay()

    worker.execute("park_unknown", queue="default", limit=10, after=60.0)

    assert app.status().jobs[JobState.READY] == 1
