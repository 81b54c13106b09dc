"""Faults while jobs say how far they are: the jobs go on, nothing piles up, and nobody speaks for another."""

import os
import signal
import time
from functools import partial
from typing import Any

import pytest

from pgtasks.db.embedded import TemporaryServer
from pgtasks.result import AsyncResult
from tests.chaos.conftest import Look, through
from tests.fixtures import progress_app
from tests.fixtures.eventually import eventually
from tests.fixtures.proxy import Proxy
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, RunningWorker, Workers, until, wait_until_begun

pytestmark = pytest.mark.chaos

PROGRESS = "tests.fixtures.progress_app"


def said(result: AsyncResult[Any], more_than: float, by: int) -> float:
    """Wait until the database knows that this process has done more than so much, and return how much."""

    def found() -> float:
        progress = result.job().progress
        assert progress.done is not None
        assert progress.done > more_than
        assert progress.message == str(by)
        return progress.done

    return eventually(found, 20.0)


def test_a_job_goes_on_while_the_database_is_away_and_the_newest_is_written_after_it(
    server: TemporaryServer, workers: Workers, runs: Runs, gate: Gate
) -> None:
    worker = workers.start(PROGRESS, concurrency=1)
    result = progress_app.count.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, result.id)
    before = said(result, 0, pid)

    server.stop("immediate")
    stopped_at = time.monotonic()
    until(stopped_at + 3.0)
    server.start()
    during = said(result, before + 300, pid)  # of 4 ms each, so it did not stand still

    gate.open()
    assert result.get(timeout=20) >= during
    [run] = runs.of(result.id)
    assert (run.attempt, run.pid) == (1, pid)
    assert "worker.refused" not in worker.log()


def test_what_was_lost_on_the_wire_is_written_again(
    workers: Workers, runs: Runs, gate: Gate, proxy: Proxy
) -> None:
    """Although the job has said nothing since."""
    workers.start(PROGRESS, concurrency=1, environment=through(proxy))
    with proxy.hold("watch", directions=("to server",)):
        result = progress_app.stand.delay(runs.path, str(gate))
        wait_until_begun(runs, result.id)
        until(time.monotonic() + 1.5)  # it was sent, and has not arrived
        assert not result.job().progress
        proxy.reset("watch")

    assert eventually(partial(_text, result)) == "12/40 (30 %) reading"
    gate.open()
    result.get(timeout=10)
    assert len(runs.of(result.id)) == 1


def _text(result: AsyncResult[Any]) -> str:
    text = result.job().progress.text()
    assert text
    return text


def test_a_worker_that_stood_still_beyond_its_lease_does_not_speak_for_the_next(
    workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    frozen = workers.start(PROGRESS, concurrency=1, beat=0.2, lease=1.0)
    result = progress_app.count.delay(runs.path, str(gate))
    first = wait_until_begun(runs, result.id)
    said(result, 0, first)

    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        other = workers.start(PROGRESS, concurrency=1, beat=0.2, lease=1.0, name="other")
        second = wait_until_begun(runs, result.id, times=2)
        said(result, 0, second)
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    frozen.said("worker.lease_lost")
    awake = said(result, 0, second)
    said(result, awake + 600, second)  # of 4 ms each: the frozen one has looked twice at its slates

    tokens = look.one("select count(distinct token) from pgtasks.job_progress")
    assert tokens <= 2
    gate.open()
    result.get(timeout=10)
    for worker in (frozen, other):
        assert "worker.refused" not in worker.log()
    assert [_stopped(worker) for worker in (frozen, other)] == [0, 0]


def _stopped(worker: RunningWorker) -> int:
    return worker.stop()
