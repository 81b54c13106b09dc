"""Jobs take their process down, in each way there is: they alone are charged, and nothing leaks."""

import time
from functools import partial

import psutil
import pytest

from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
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
    assert beside >= 0.8 * alone
    worker.has_children(4)
    assert worker.stop() == 0


def _has_run(runs: Runs, number: int) -> None:
    assert len(runs.all()) >= number


def test_descriptors_memory_and_sessions_stay_flat_over_many_dead_children(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=4)
    warm = 30
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
    kills = scale(60, most=10_000)
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
