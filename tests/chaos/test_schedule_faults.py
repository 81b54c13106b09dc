"""Schedulers that are killed, stopped and started at random, and clocks that step: each tick has exactly one job."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.chaos.conftest import Look, Scale
from tests.chaos.test_clock import SKEWS, libfaketime
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.workers import RunningWorker, Workers, until

__all__ = ["libfaketime"]

pytestmark = pytest.mark.chaos

MODULE = "tests.fixtures.schedule_app"
# In front of PostgreSQL's own, for all functions of ours: a clock that is so much ahead.
CLOCK = """
create table if not exists public.clock (ahead interval not null);
truncate public.clock;
insert into public.clock values ('0');
create or replace function pgtasks.now() returns timestamptz language sql stable as
    'select pg_catalog.now() + c.ahead from public.clock c';
"""


@pytest.fixture
def stepped(look: Look) -> Iterator[psycopg.Connection[Any]]:
    """A database whose clock a test sets: ``public.clock``."""
    connection = look.open()
    connection.execute(CLOCK)
    yield connection
    look.open().execute("drop function pgtasks.now()")


def ticks(connection: psycopg.Connection[Any], name: str) -> list[datetime]:
    """Return the ticks of which a schedule has jobs, each as often as it has."""
    rows = connection.execute(
        "select start_at from pgtasks.jobs where origin = %s order by start_at",
        [f"schedule {name}"],
    )
    return [tick for (tick,) in rows]


def start_beat(workers: Workers) -> RunningWorker:
    return workers.launch(MODULE, {"SCHEDULES": "second,nightly"}, pool="beat", beat=0.3, lease=2.0)


def test_every_tick_has_one_job_though_schedulers_are_killed_and_stopped_and_the_clock_steps(
    workers: Workers,
    stepped: psycopg.Connection[Any],
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    beats = [start_beat(workers) for _ in range(4)]
    for beat in beats:
        beat.registered()
    stopped: dict[int, float] = {}  # which beat -> when it goes on
    steps: list[float] = []
    end = time.monotonic() + scale.seconds(12, most=240)
    while time.monotonic() < end:
        number = rng.randrange(4)
        what = rng.choice(["kill", "stop", "stop", "clock", "wait", "wait"])
        if what == "kill" and number not in stopped:
            beats[number].kill()
            beats[number] = start_beat(workers)
        elif what == "stop" and number not in stopped and beats[number].process.poll() is None:
            beats[number].signal(signal.SIGSTOP)
            stopped[number] = time.monotonic() + rng.uniform(0.05, 2.0)
        elif what == "clock":
            steps.append(rng.choice([-3.0, -1.0, 0.5, 2.0, 5.0, 90.0, -60.0]))
            stepped.execute(
                "update public.clock set ahead = ahead + %s", [timedelta(seconds=steps[-1])]
            )
        until(time.monotonic() + rng.uniform(0.02, 0.4))
        for one, moment in list(stopped.items()):
            if time.monotonic() >= moment:
                beats[one].signal(signal.SIGCONT)
                del stopped[one]
    for one in stopped:
        beats[one].signal(signal.SIGCONT)
    # To an hour after all that was, and back again: what is ahead then stays ahead.
    stepped.execute("update public.clock set ahead = '1 hour'")
    target = stepped.execute("select pgtasks.now()").fetchone()
    assert target is not None

    def caught_up() -> None:
        row = stepped.execute(
            "select next_at > %s from pgtasks.schedule where name = 'second'", target
        ).fetchone()
        assert row == (True,)

    eventually(caught_up, 30.0)
    stepped.execute("update public.clock set ahead = '0'")
    before = len(ticks(stepped, "second"))
    until(time.monotonic() + 1.5)

    found = ticks(stepped, "second")
    gaps = {b - a for a, b in itertools.pairwise(found)}
    measured("each tick one job", len(found), "ticks")
    assert gaps == {timedelta(seconds=1)}, steps
    assert found[-1] >= target[0] - timedelta(seconds=1)
    assert len(found) == before  # an hour is to come that was
    assert len(found) >= 3600
    nightly = ticks(stepped, "nightly")
    assert len(nightly) == len(set(nightly)) <= 1


def test_a_tick_starts_on_time_in_workers_whose_clocks_are_wrong(
    workers: Workers, look: Look, libfaketime: str, measured: Measured
) -> None:
    for name, skew in SKEWS.items():
        workers.start(
            MODULE,
            {
                "SCHEDULES": "second",
                "LD_PRELOAD": libfaketime,
                "FAKETIME": skew,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_NO_CACHE": "1",
            },
            concurrency=1,
            name=name,
        )
    connection = look.open()

    def ran() -> None:
        row = connection.execute(
            "select count(*) from pgtasks.jobs where state = 'succeeded'"
        ).fetchone()
        assert row is not None
        assert row[0] >= 8

    eventually(ran, 30.0)

    found = ticks(connection, "second")
    late = look.one(
        "select extract(epoch from max(started_at - start_at))::float8 from pgtasks.jobs"
        " where state = 'succeeded' and start_at > (select min(start_at) from pgtasks.jobs)"
    )
    early = look.one(
        "select extract(epoch from min(created_at - start_at))::float8 from pgtasks.jobs"
    )
    measured("clocks an hour off: start of a tick, late at worst, s", late)
    assert {b - a for a, b in itertools.pairwise(found)} == {timedelta(seconds=1)}
    assert early >= 0
    assert late <= 1.0
    assert [worker.stop() for worker in workers.all] == [0] * len(SKEWS)
