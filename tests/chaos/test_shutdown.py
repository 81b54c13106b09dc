"""Workers are told to stop, at any moment: what runs ends, the rest is given back, every job runs once."""

import random
import signal
import time

import pytest

from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.figures import Measured
from tests.fixtures.producer import Producer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    until,
    wait_until_begun,
    wait_until_finished,
)

pytestmark = pytest.mark.chaos


def test_term_at_any_moment_lets_what_runs_end_and_gives_the_rest_back(
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    grace, rounds = 10.0, scale(2, most=40)
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, rng.choice([0.0, 0.002, 0.05]))
        for _ in range(300 * rounds)
    )

    slowest = 0.0
    for _ in range(rounds):
        worker = workers.start(concurrency=4, grace=grace)
        until(time.monotonic() + rng.uniform(0.0, 0.4))
        asked_at = time.monotonic()
        assert worker.stop(grace) == 0
        slowest = max(slowest, time.monotonic() - asked_at)

        assert all(run.ended is not None for run in runs.all())
        # Neither held, nor charged, nor counted as an attempt.
        assert look.one("select count(*) from pgtasks.job where token is not null") == 0
        assert look.one("select coalesce(max(attempt + crashes), 0) from pgtasks.job") == 0
        assert look.one("select count(*) from pgtasks.claim") == 0
        assert look.one("select count(*) from pgtasks.worker") == 0
    last = workers.start(concurrency=4)
    wait_until_finished(look.open(), len(results), timeout=60 + len(results) / 50)

    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    assert not verdict.excess
    measured("TERM under load: exit after, at worst", slowest)
    assert last.stop() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGQUIT], ids=["term", "quit"])
def test_second_signal_kills_what_runs_and_it_runs_again_elsewhere(
    workers: Workers, runs: Runs, gate: Gate, look: Look, second: signal.Signals
) -> None:
    worker = workers.start(concurrency=2)
    results = [sample_app.step.delay(runs.path, str(gate)) for _ in range(6)]
    for result in results[:2]:
        wait_until_begun(runs, result.id)

    if second == signal.SIGTERM:
        worker.signal(signal.SIGTERM)
        worker.said("worker.draining")
    worker.signal(second)
    assert worker.wait(5) == 0
    assert look.one("select max(attempt + crashes) from pgtasks.job where token is null") == 0
    gate.open()
    other = workers.start(concurrency=2)
    wait_until_finished(look.open(), len(results))

    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    # The two that were killed on order, and nobody else.
    assert verdict.excess == {result.id: 1 for result in results[:2]}
    assert other.stop() == 0


def test_rolling_restart_of_three_workers_runs_every_job_once(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    alive = [workers.start(concurrency=2) for _ in range(3)]
    producers = [Producer(server.dsn, runs.path, pause=0.001, work=0.005) for _ in range(2)]
    for producer in producers:
        producer.start()

    slowest = 0.0
    for _ in range(scale(1, most=10)):
        for old in tuple(alive):
            until(time.monotonic() + rng.uniform(0.0, 0.3))
            alive.append(workers.start(concurrency=2))
            asked_at = time.monotonic()
            assert old.stop() == 0
            slowest = max(slowest, time.monotonic() - asked_at)
            alive.remove(old)
    for producer in producers:
        producer.stop()
    wait_until_finished(look.open())

    committed = producers[0].committed | producers[1].committed
    assert len(committed) > 300
    verdict = check(look.open(), runs, committed)
    verdict.assert_sound()
    assert verdict.finals == {"succeeded": len(committed)}
    assert {len(found) for found in runs.by_job().values()} == {1}
    measured("rolling restart under load: a worker stops within, at worst", slowest)
    assert [worker.stop() for worker in alive] == [0, 0, 0]
