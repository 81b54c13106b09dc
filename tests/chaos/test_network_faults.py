"""Wires are stopped up, slowed down and cut: every call ends in time, nothing is lost, work goes on."""

import faulthandler
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pgtasks import ConnectError, JobState, PgTasksError
from pgtasks.db.embedded import TemporaryServer
from pgtasks.ids import new_id
from tests.chaos.conftest import Look, Scale, through
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.producer import PoolProducer, Producer
from tests.fixtures.proxy import BOTH, WORKER, Direction, Proxy
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    RunningWorker,
    Workers,
    until,
    wait_until_begun,
    wait_until_finished,
    wait_until_idle,
)

pytestmark = pytest.mark.chaos

DIRECTIONS: dict[str, tuple[Direction, ...]] = {
    "both": BOTH,
    "to-server": ("to server",),
    "to-client": ("to client",),
}
# A worker gives a connection up after 15 s without a reply, or 10 s of connecting.
GIVES_UP_WITHIN = 20.0
# An app's own call: 10 s for a connection from the pool, and 10 s for one that says why there is none.
CALL_WITHIN = 25.0
BACK_WITHIN = 5.0


@pytest.fixture
def pooled(proxy: Proxy, server: TemporaryServer) -> Iterator[None]:
    """The sample app's own pool leads through the proxy."""
    sample_app.app.close()
    sample_app.app.dsn = proxy.dsn
    yield
    sample_app.app.close()
    sample_app.app.dsn = server.dsn


def has_finished(runs: Runs, more_than: int) -> None:
    assert len(runs.all()) > more_than


def back_at_full_rate(runs: Runs, producer: Producer) -> float:
    """Wait until what was enqueued is worked off but for what is new, and return how long it took."""
    began = time.monotonic()

    def caught_up() -> None:
        assert len(producer.committed) - len(runs.all()) < 60

    eventually(caught_up, BACK_WITHIN)
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["work", "watch"])
def test_worker_whose_wire_is_stopped_up_for_a_moment_goes_on_on_it(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, proxy: Proxy, kind: str
) -> None:
    worker = workers.start(concurrency=2, beat=0.5, environment=through(proxy))
    producer = Producer(server.dsn, runs.path)
    producer.start()
    eventually(partial(has_finished, runs, 50))

    with proxy.hold(kind) as fault:
        eventually(lambda: _is_met(fault))
        until(time.monotonic() + 0.5)
        before = len(runs.all())
    back_at_full_rate(runs, producer)
    eventually(partial(has_finished, runs, before + 50))
    producer.stop()
    wait_until_finished(look.open())

    verdict = check(look.open(), runs, producer.committed)
    verdict.assert_sound()
    assert not verdict.excess
    assert "worker.disconnected" not in worker.log()
    assert worker.stop() == 0


def _is_met(fault: Any) -> None:
    assert fault.met.is_set()


@pytest.mark.long
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kinds", [("work",), ("watch",), WORKER], ids=["work", "watch", "all"])
def test_black_hole_is_noticed_in_time_and_healed_at_full_rate(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    proxy: Proxy,
    measured: Measured,
    kinds: tuple[str, ...],
    direction: str,
) -> None:
    """The other worker, which comes by another way, is not hurt."""
    worker = workers.start(concurrency=1, environment=through(proxy), beat=1.0, lease=60.0)
    other = workers.start(concurrency=1, name="other", beat=1.0, lease=60.0)
    producer = Producer(server.dsn, runs.path)
    producer.start()
    eventually(lambda: _both_run(runs, worker, other))

    with proxy.hold(*kinds, directions=DIRECTIONS[direction]):
        began = time.monotonic()
        before = len(runs.all())
        worker.said("worker.disconnected", GIVES_UP_WITHIN)
        noticed = time.monotonic() - began
        assert len(runs.all()) - before > 100  # unhurt
    after_healing = back_at_full_rate(runs, producer)
    healed_at = time.monotonic()
    eventually(lambda: _runs_since(runs, worker, healed_at), BACK_WITHIN)
    after_healing += time.monotonic() - healed_at
    producer.stop()
    wait_until_finished(look.open())

    verdict = check(look.open(), runs, producer.committed)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    measured(f"black hole, {'+'.join(kinds)}, {direction}: noticed after", noticed)
    measured(
        f"black hole, {'+'.join(kinds)}, {direction}: at work after healing within", after_healing
    )
    assert [one.stop() for one in (worker, other)] == [0, 0]


def _both_run(runs: Runs, *workers: RunningWorker) -> None:
    pids = {run.pid for run in runs.all()}
    assert all(pids & set(worker.children()) for worker in workers)


def _runs_since(runs: Runs, worker: RunningWorker, moment: float) -> None:
    children = worker.children()
    assert any(run.began > moment and run.pid in children for run in runs.all())


def test_new_connection_into_a_black_hole_is_given_up_after_ten_seconds(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy, measured: Measured
) -> None:
    """And the worker is back soon after: what was given up does no harm when it arrives at last."""
    worker = workers.start(concurrency=1, environment=through(proxy))
    wait_until_idle(look.open())

    with proxy.hold(*WORKER) as fault:
        assert proxy.reset(*WORKER) == 2
        began = time.monotonic()
        eventually(lambda: _is_met(fault))
        result = sample_app.step.delay(runs.path)
        worker.said("no connection within", 15.0)
        noticed = time.monotonic() - began
    healed_at = time.monotonic()
    eventually(lambda: _has_ended(look, result), BACK_WITHIN)
    took = time.monotonic() - healed_at

    assert result.job().attempt == 1
    measured("connecting into a black hole: given up after", noticed)
    measured("connecting into a black hole: at work after healing within", took)
    assert worker.stop() == 0


def _has_ended(look: Look, *results: Any) -> None:
    ids = [result.id for result in results]
    ended = look.one("select count(*) from pgtasks.job_history where id = any(%s)", ids)
    assert ended == len(ids)


@pytest.mark.usefixtures("pooled")
def test_slow_wires_slow_down_and_break_nothing(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy
) -> None:
    """100 ms each way, for workers and callers."""
    with proxy.delay(0.1):
        worker = workers.start(concurrency=2, environment=through(proxy))
        results = [sample_app.step.delay(runs.path) for _ in range(3)]
        assert all(result.get(timeout=15) for result in results)
        assert worker.stop() == 0

    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    assert not verdict.excess
    assert "worker.disconnected" not in worker.log()


def test_wires_that_are_reset_again_and_again_lose_nothing(
    workers: Workers,
    runs: Runs,
    look: Look,
    proxy: Proxy,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    both = [
        workers.start(concurrency=2, environment=through(proxy), name=f"w{n}") for n in range(2)
    ]
    producer = Producer(proxy.dsn, runs.path)
    producer.start()

    end = time.monotonic() + scale.seconds(3.0, most=60.0)
    while time.monotonic() < end:
        until(time.monotonic() + rng.uniform(0.0, 0.2))
        wires = proxy.wires()
        if wires:
            rng.choice(wires).reset()
    measured("wires reset all the time: full rate again within", back_at_full_rate(runs, producer))
    producer.stop()
    wait_until_finished(look.open())

    verdict = check(look.open(), runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    assert [worker.stop() for worker in both] == [0, 0]


def test_wires_that_are_cut_after_any_number_of_bytes_lose_nothing(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy, rng: random.Random, scale: Scale
) -> None:
    worker = workers.start(concurrency=2, environment=through(proxy))
    producer = Producer(proxy.dsn, runs.path)
    producer.start()

    for _ in range(scale(12, most=300)):
        direction: tuple[Direction, ...] = (rng.choice(BOTH),)
        # Also within the start-up of a connection, and within a message.
        with proxy.cut_after(rng.choice([1, 60, 400, 3000, 20_000]), directions=direction) as cut:
            eventually(lambda cut=cut: _is_met(cut), 20.0)  # type: ignore[misc]
    back_at_full_rate(runs, producer)
    producer.stop()
    wait_until_finished(look.open())

    verdict = check(look.open(), runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    assert worker.stop() == 0


# The reply to a COMMIT is lost


@pytest.mark.usefixtures("pooled")
def test_enqueue_whose_reply_is_lost_is_settled_by_its_id(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy
) -> None:
    """The caller is told that the connection broke; to enqueue again under the same id is safe."""
    sample_app.noop.delay()  # opens the pool
    id = new_id()

    with proxy.lose_reply(id.encode(), "pgtasks") as trap:
        with pytest.raises((PgTasksError, OSError)) as caught:
            sample_app.step.apply_async((runs.path,), task_id=id)
        assert trap.lost.wait(5)
    assert isinstance(caught.value, ConnectError), repr(caught.value)
    assert look.one("select count(*) from pgtasks.job where id = %s", id) == 1  # it was committed
    with pytest.raises(PgTasksError, match="exists already"):
        sample_app.step.apply_async((runs.path,), task_id=id)
    worker = workers.start(concurrency=1)
    wait_until_finished(look.open(), 2)

    assert len(runs.of(id)) == 1
    assert worker.stop() == 0


def test_finish_whose_reply_is_lost_is_written_once(
    workers: Workers, runs: Runs, gate: Gate, look: Look, proxy: Proxy, measured: Measured
) -> None:
    worker = workers.start(concurrency=1, environment=through(proxy))
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    with proxy.lose_reply(b"finish_succeeded", "work") as trap:
        gate.open()
        assert trap.lost.wait(10)
        assert result.job().state is JobState.SUCCEEDED  # it was committed
        after = sample_app.step.delay(runs.path)
        began = time.monotonic()
        wait_until_finished(look.open(), 2)
        measured("reply to a finish lost: the next job is done after", time.monotonic() - began)

    check(look.open(), runs, {result.id, after.id}).assert_sound()
    assert [len(runs.of(one.id)) for one in (result, after)] == [1, 1]
    assert "job.late" not in worker.log()  # done is done, not an error
    assert worker.stop() == 0


def test_finish_that_never_arrived_is_written_again_and_the_job_does_not_run_again(
    workers: Workers, runs: Runs, gate: Gate, look: Look, proxy: Proxy, measured: Measured
) -> None:
    worker = workers.start(concurrency=1, environment=through(proxy))
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    with proxy.hold("work", directions=("to server",)) as fault:
        gate.open()
        eventually(lambda: _has_come_to_its_end(runs, result))
        eventually(lambda: _is_met(fault))
        until(time.monotonic() + 0.1)
        proxy.reset("work")
        assert result.job().state is JobState.RUNNING
        began = time.monotonic()
    wait_until_finished(look.open(), 1)
    measured("finish lost on its way: written after", time.monotonic() - began)

    check(look.open(), runs, {result.id}).assert_sound()
    assert len(runs.of(result.id)) == 1
    assert (result.job().state, result.job().attempt) == (JobState.SUCCEEDED, 1)
    assert worker.stop() == 0


def _has_come_to_its_end(runs: Runs, result: Any) -> None:
    assert runs.of(result.id)[0].ended


def test_claim_whose_reply_is_lost_comes_back(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy, measured: Measured
) -> None:
    worker = workers.start(concurrency=1, environment=through(proxy))
    wait_until_idle(look.open())

    with proxy.lose_reply(b"claim_jobs", "work") as trap:
        result = sample_app.step.delay(runs.path)
        assert trap.lost.wait(10)
        began = time.monotonic()
    wait_until_finished(look.open(), 1)
    measured("reply to a claim lost: the job is done after", time.monotonic() - began)

    check(look.open(), runs, {result.id}).assert_sound()
    assert len(runs.of(result.id)) == 1
    assert (result.job().attempt, result.job().crashes) == (1, 0)
    assert worker.stop() == 0


# Callers


@pytest.mark.usefixtures("pooled")
def test_calls_into_an_outage_of_seconds_succeed_or_say_what_is_wrong(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy
) -> None:
    worker = workers.start(concurrency=2)
    producers = [PoolProducer(runs.path) for _ in range(4)]
    for producer in producers:
        producer.start()
    eventually(partial(has_finished, runs, 50))

    for _ in range(3):
        with proxy.hold("pgtasks"):
            until(time.monotonic() + 0.7)
        proxy.reset("pgtasks")
        until(time.monotonic() + 0.3)
    for producer in producers:
        producer.stop()
    wait_until_finished(look.open())

    committed = {id for producer in producers for id in producer.committed}
    perhaps = {id for producer in producers for id in producer.perhaps}
    check(look.open(), runs, committed, perhaps).assert_sound()
    errors = [error for producer in producers for error in producer.errors]
    assert errors
    assert all(isinstance(error, ConnectError) for error in errors), errors
    assert worker.stop() == 0


@pytest.mark.long
@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_calls_into_a_black_hole_end_in_time(
    runs: Runs, proxy: Proxy, measured: Measured, tmp_path: Path, direction: str
) -> None:
    producers = [PoolProducer(runs.path) for _ in range(4)]
    for producer in producers:
        producer.start()
    eventually(lambda: _have_called(producers, 20))

    with proxy.hold("pgtasks", directions=DIRECTIONS[direction]):
        began = time.monotonic()
        try:
            eventually(lambda: _have_all_failed(producers), CALL_WITHIN)
        except AssertionError:
            with (tmp_path / "stacks").open("w+") as stacks:
                faulthandler.dump_traceback(stacks)
                stacks.seek(0)
                raise AssertionError(f"calls are stuck:\n{stacks.read()}") from None
        took = time.monotonic() - began
    calls = [len(producer.committed) for producer in producers]
    eventually(lambda: _go_on(producers, calls), BACK_WITHIN)
    for producer in producers:
        producer.stop()

    errors = [error for producer in producers for error in producer.errors]
    assert all(isinstance(error, ConnectError) for error in errors), errors
    measured(f"black hole, callers, {direction}: delay() fails within", took)


def _have_called(producers: list[PoolProducer], times: int) -> None:
    assert all(len(producer.committed) >= times for producer in producers)


def _have_all_failed(producers: list[PoolProducer]) -> None:
    assert all(producer.errors for producer in producers)


def _go_on(producers: list[PoolProducer], before: list[int]) -> None:
    assert all(
        len(producer.committed) > number for producer, number in zip(producers, before, strict=True)
    )
