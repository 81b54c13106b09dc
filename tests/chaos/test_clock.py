"""Workers whose clocks are wrong: nobody is condemned, and what is scheduled starts by the database's clock.

With libfaketime (Debian: ``apt-get install libfaketime``), which moves the wall clock of a process; the
monotonic clock is left alone, as it is by an operator or NTP that sets the time.
"""

import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.figures import Measured
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, RunningWorker, Workers, until, wait_until_finished

pytestmark = pytest.mark.chaos

LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")
SKEWS = {"ahead": "+1h", "behind": "-1h", "drifting": "+0 x1.2", "right": "+0"}
LEASE = 1.5


@pytest.fixture(scope="module")
def libfaketime() -> str:
    """The library; where it is not, nothing is proved, and the run says so."""
    for pattern in LIBRARIES:
        for path in Path("/").glob(pattern.removeprefix("/")):
            return str(path)
    pytest.skip("NOT TESTED: clock skew, as libfaketime is missing: apt-get install libfaketime")


@pytest.fixture
def skewed(workers: Workers, libfaketime: str) -> list[RunningWorker]:
    """One worker for each skew."""
    started = [
        workers.start(
            concurrency=1,
            name=name,
            beat=0.3,
            lease=LEASE,
            environment={
                "LD_PRELOAD": libfaketime,
                "FAKETIME": skew,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_NO_CACHE": "1",
            },
        )
        for name, skew in SKEWS.items()
    ]
    hours = [round(shown_clock(worker) / 3600) for worker in started]
    assert hours == [1, -1, 0, 0]  # else nothing would be proved
    return started


def shown_clock(worker: RunningWorker) -> float:
    """Return how many seconds a worker's clock is ahead of ours, as its log shows it."""
    stamp = datetime.fromisoformat(worker.log().split(maxsplit=1)[0])
    return stamp.timestamp() - time.time()


def test_workers_with_wrong_clocks_start_and_retry_jobs_on_time_and_condemn_nobody(
    skewed: list[RunningWorker],
    runs: Runs,
    look: Look,
    gate: Gate,
    scale: Scale,
    measured: Measured,
) -> None:
    connection = look.open()
    ids = "select array_agg(id order by id) from pgtasks.worker"
    registered = look.one(ids)
    assert len(registered) == len(SKEWS)
    long = sample_app.step.delay(runs.path, str(gate))  # somebody holds it all the time
    due: dict[str, float] = {}  # job -> monotonic moment
    for number in range(scale(60, most=1000)):
        seconds = 0.5 + number % 10 * 0.2
        result = sample_app.step.apply_async((runs.path,), countdown=seconds)
        due[result.id] = time.monotonic() + seconds
    until(time.monotonic() + 3 * LEASE)
    gate.open()
    wait_until_finished(connection, len(due) + 1)

    assert look.one(ids) == registered
    for worker in skewed:
        assert "worker.rescued" not in worker.log()
        assert "worker.lease_lost" not in worker.log()
    verdict = check(connection, runs, {*due, long.id})
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    # Every one of them took part, so each clock was tried.
    assert {run.pid for run in runs.all()} == {pid for one in skewed for pid in one.children()}
    errors = [runs.of(id)[0].began - moment for id, moment in due.items()]
    measured("clocks an hour off: start of a scheduled job, error at worst", max(errors))
    assert min(errors) >= -0.05
    assert max(errors) <= 1.0

    began = time.monotonic()
    retried = [sample_app.flaky_fixed.delay() for _ in range(20)]  # 3 retries, 0.15 s apart
    wait_until_finished(connection, len(due) + 1 + len(retried))
    took = time.monotonic() - began

    assert {result.job().attempt for result in retried} == {4}
    measured("clocks an hour off: three retries 0.15 s apart, in all", took)
    assert 0.45 <= took <= 3 * 0.15 + 2.0
    assert [worker.stop() for worker in skewed] == [0] * len(SKEWS)
