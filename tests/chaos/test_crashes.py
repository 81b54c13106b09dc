"""Jobs take their process down, in each way there is: they alone are charged, and nothing leaks."""

import time
from collections import Counter
from functools import partial

import psutil
import pytest

from tests.chaos.conftest import Look, Scale
from tests.fixtures import chaos_app, sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Workers,
    kill_and_wait,
    until,
    wait_until_finished,
)

pytestmark = pytest.mark.chaos

WAYS = {"kill": "quarantined", "segv": "quarantined", "abort": "quarantined", "exit": "quarantined"}
WAYS |= {"memory": "failed"}  # a MemoryError is an error like any other


def test_poison_is_quarantined_and_leaves_its_neighbours_alone(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=4)
    seconds = scale.seconds(1.5, most=20.0)
    # They sleep, so what they need is children, not this machine's processor.
    neighbours = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.02) for _ in range(round(seconds * 2 * 250))
    )
    eventually(partial(_has_run, runs, 20))

    def finished_in_window() -> int:
        began = time.monotonic()
        until(began + seconds)
        ends = [run.ended for run in runs.all() if run.ended is not None]
        return sum(began <= end < began + seconds for end in ends)

    alone = finished_in_window()
    poison = {how: sample_app.crash.apply_async((runs.path, how), priority=5) for how in WAYS}
    beside = finished_in_window()
    wait_until_finished(look.open(), len(neighbours) + len(poison), timeout=60)

    verdict = check(look.open(), runs, {one.id for one in (*neighbours, *poison.values())})
    verdict.assert_sound()
    assert {how: result.job().state for how, result in poison.items()} == WAYS
    for how, result in poison.items():
        job = result.job()
        assert len(runs.of(job.id)) == job.attempt == (3 if WAYS[how] == "quarantined" else 1)
    ids = [one.id for one in neighbours]
    unlucky = "select count(*) from pgtasks.job_history where id = any(%s) and (attempt, crashes) <> (1, 0)"
    assert look.one(unlucky, ids) == 0
    measured("five kinds of poison: throughput of the others, of that without", beside / alone, "")
    assert beside >= scale.share(0.8) * alone
    worker.has_children(4)
    assert worker.stop() == 0


def _has_run(runs: Runs, number: int) -> None:
    assert len(runs.all()) >= number


def test_descriptors_memory_and_sessions_stay_flat_over_many_dead_children(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=4)
    warm = 15
    parent = psutil.Process(worker.pid)

    def kill_some(number: int) -> None:
        for _ in range(number):
            sample_app.noop.delay()
            kill_and_wait(worker.has_children(4)[0])

    def cost() -> tuple[int, int, int]:
        worker.has_children(4)
        wait_until_finished(look.open())
        sessions = look.one(
            "select count(*) from pg_stat_activity where application_name like 'pgtasks %%'"
        )
        return parent.num_fds(), sessions, parent.memory_info().rss

    kill_some(warm)
    fds, sessions, memory = cost()
    kills = scale(40, most=10_000)
    kill_some(kills)
    fds_after, sessions_after, memory_after = cost()

    assert fds_after == fds
    assert sessions_after == sessions == 2
    per_child = (memory_after - memory) / kills
    measured(f"{kills} dead children: the parent grew, each", per_child / 1024, "KiB")
    assert memory_after - memory < 4 * 2**20 + kills * 1024
    # Nobody but the parent holds a connection: a child that did would keep a dead parent's session.
    for child in worker.has_children(4):
        assert not psutil.Process(child).net_connections("all")
    assert worker.stop() == 0


def test_loops_in_c_are_ended_by_their_time_limit_and_hurt_nobody(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start("tests.fixtures.chaos_app", concurrency=3)
    hanging = [chaos_app.spin.delay(runs.path) for _ in range(scale(2, most=20))]
    neighbours = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.01) for _ in range(scale(150, most=3000))
    )
    wait_until_finished(look.open(), len(hanging) + len(neighbours), timeout=60)

    for result in hanging:
        job = result.job()
        assert (str(job.state), job.attempt, job.crashes) == ("failed", 1, 0)
        assert job.error is not None
        assert "time limit" in job.error.message
    verdict = check(look.open(), runs, {one.id for one in (*hanging, *neighbours)})
    verdict.assert_sound()
    assert verdict.finals == {"failed": len(hanging), "succeeded": len(neighbours)}
    assert not verdict.excess
    took = [ended_at(look, result.id) - runs.of(result.id)[0].began for result in hanging]
    measured("endless loop in C, limit 0.4 s: ended after, at worst", max(took))
    assert min(took) >= 0.4
    assert max(took) < 2.0
    worker.has_children(3)
    assert worker.stop() == 0


def ended_at(look: Look, id: str) -> float:
    """Return when a job ended, on the monotonic clock of this machine."""
    stopped_at = look.one(
        "select extract(epoch from stopped_at)::float8 from pgtasks.job_history where id = %s", id
    )
    return float(stopped_at) - time.time() + time.monotonic()


def test_children_that_are_replaced_after_a_few_jobs_leave_nothing_behind(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=2, max_tasks_per_child=3)
    parent = psutil.Process(worker.pid)

    def recycle(children: int) -> tuple[int, int]:
        results = sample_app.app.enqueue_many(
            sample_app.step.s(runs.path) for _ in range(3 * children)
        )
        eventually(lambda: _have_ended(look, [result.id for result in results]), 300.0)
        worker.has_children(2)
        return parent.num_fds(), parent.memory_info().rss

    fds, memory = recycle(20)
    number = scale(40, most=10_000)
    fds_after, memory_after = recycle(number)

    found = runs.by_job()
    assert {len(one) for one in found.values()} == {1}
    assert max(Counter(run.pid for run in runs.all()).values()) == 3
    assert look.one("select max(crashes) from pgtasks.job_history") == 0
    # A child may be on its way out, or a frame on its way in.
    assert abs(fds_after - fds) <= 8
    measured(
        f"{number} children replaced: the parent grew, each",
        (memory_after - memory) / number / 1024,
        "KiB",
    )
    assert memory_after - memory < 4 * 2**20 + number * 1024
    sessions = "select count(*) from pg_stat_activity where application_name like 'pgtasks %%'"
    assert look.one(sessions) == 2
    assert worker.stop() == 0


def _have_ended(look: Look, ids: list[str]) -> None:
    ended = look.one("select count(*) from pgtasks.job_history where id = any(%s::uuid[])", ids)
    assert ended == len(ids)
