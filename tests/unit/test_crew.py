"""Who gets which jobs: places, load, what is kept free, and suspects."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks.options import WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.crew import Crew
from pgtasks.worker.lanes import Lane
from pgtasks.worker.messages import LaneKind, Report, Running
from pgtasks.worker.pace import IN_PIPE
from tests.unit.worker_fakes import QUEUES, claimed_row

ORDINARY = LaneKind(("task", "long"))
ONCE = LaneKind(("once",), at_most_once=True)
COROUTINES = LaneKind(("coroutine",), asynchronous=True)


class Team:
    """A crew of idle children, and lanes for it."""

    def __init__(self, children: int = 1, **options: Any) -> None:
        self.options = WorkerOptions(**options)
        self.crew = Crew(self.options)
        for number in range(1, children + 1):
            self.crew.add(number)
        self.serial = 0

    def lane(self, kind: LaneKind = ORDINARY, seconds: float | None = None) -> Lane:
        lane = Lane(0, kind, self.options, QUEUES, 0.0)
        for task in kind.tasks:
            if seconds is not None:
                lane.pace.measure(task, seconds)
        return lane

    def wait(self, lane: Lane, count: int, **fields: Any) -> list[msg.Held]:
        jobs = []
        for _ in range(count):
            self.serial += 1
            row = claimed_row(seq=self.serial, task=lane.kind.tasks[0], **fields)
            jobs.append(msg.Held(self.serial, row, "token"))
        lane.take(jobs, 0.0)
        return jobs

    def ended(self, number: int, serial: int) -> msg.Held | None:
        """Let a child report a job; returns it, unless it was out already."""
        found = self.crew.reported(number, [[serial]])
        return found[0][0] if found else None

    def place(self, lane: Lane) -> dict[int, int]:
        """Return how many jobs each child got."""
        return {number: len(jobs) for number, jobs in self.crew.place(lane)}


def test_each_child_gets_one_job_of_unknown_length():
    team = Team(children=3)
    lane = team.lane()
    team.wait(lane, 5)

    assert team.place(lane) == {1: 1, 2: 1, 3: 1}
    assert team.place(lane) == {}
    assert (len(lane.waiting), lane.in_pipes) == (2, 3)


def test_a_child_with_threads_gets_one_for_each():
    team = Team(pool="threads", concurrency=4)
    lane = team.lane(seconds=1.0)
    team.wait(lane, 6)

    assert team.place(lane) == {1: 4}


def test_coroutines_have_places_of_their_own():
    team = Team(async_concurrency=3)
    ordinary, coroutines = team.lane(), team.lane(COROUTINES)
    team.wait(ordinary, 2)
    team.wait(coroutines, 5)

    assert team.place(ordinary) == {1: 1}
    assert team.place(coroutines) == {1: 3}


def test_short_jobs_fill_a_moment_and_no_more():
    team = Team(prefetch=500)
    lane = team.lane(seconds=0.001)
    team.wait(lane, 100)

    (sent,) = team.place(lane).values()

    assert sent == pytest.approx(IN_PIPE / 0.001, abs=1)
    assert team.crew.short_in_pipes == sent


def test_no_more_is_sent_ahead_than_the_prefetch():
    team = Team(prefetch=3)
    lane = team.lane(seconds=1e-5)
    team.wait(lane, 100)

    assert team.place(lane) == {1: 3}


def test_nothing_lies_behind_a_job_that_crashed_before():
    team = Team()
    lane = team.lane(seconds=1e-5)
    team.wait(lane, 1, crashes=1)
    team.wait(lane, 5)

    assert team.place(lane) == {1: 1}
    assert team.place(lane) == {}


def test_loads_are_what_they_were_when_all_has_ended():
    team = Team(async_concurrency=3)
    lanes = [team.lane(seconds=0.0007), team.lane(COROUTINES)]
    for lane in lanes:
        team.wait(lane, 9)
        while lane.waiting:
            for number, jobs in list(team.crew.place(lane)):
                for job in jobs:
                    assert team.ended(number, job.serial) is job
                    assert team.ended(number, job.serial) is None

    member = team.crew.members[1]
    assert (member.load, team.crew.short_in_pipes, member.reported) == (0.0, 0, 18)


def test_a_child_that_is_gone_leaves_nothing_behind():
    team = Team()
    lane = team.lane(seconds=1e-4)
    team.wait(lane, 5)
    team.place(lane)

    member = team.crew.remove(1)

    assert member is not None
    assert len(list(member.jobs())) == 5
    assert team.crew.short_in_pipes == 0
    assert team.crew.remove(1) is None


def test_a_closing_child_gets_nothing():
    team = Team(children=2)
    team.crew.members[1].closing = True
    lane = team.lane()
    team.wait(lane, 2)

    assert team.crew.free(lane) == 1
    assert team.place(lane) == {2: 1}


# Jobs that must not wait behind another


def test_at_most_once_jobs_take_free_places_only_though_they_are_short():
    team = Team(children=2)
    lane = team.lane(ONCE, seconds=1e-5)
    team.wait(lane, 5)

    assert team.crew.free(lane) == 2
    assert team.place(lane) == {1: 1, 2: 1}
    assert team.place(lane) == {}
    assert team.crew.free(lane) == 0


def test_a_child_that_is_kept_free_gets_no_ordinary_jobs_but_coroutines():
    team = Team(async_concurrency=2)
    ordinary, once, coroutines = team.lane(), team.lane(ONCE), team.lane(COROUTINES)
    team.wait(ordinary, 1)
    team.wait(coroutines, 1)
    team.crew.keep_free(once)

    assert team.place(ordinary) == {}
    assert team.place(coroutines) == {1: 1}
    team.wait(once, 1)
    assert team.place(once) == {1: 1}

    team.crew.share_anew()
    team.ended(1, 3)
    assert team.place(ordinary) == {1: 1}


def test_the_least_loaded_child_is_kept_free():
    team = Team(children=2)
    ordinary, once = team.lane(), team.lane(ONCE)
    team.wait(ordinary, 1)
    team.place(ordinary)

    team.crew.keep_free(once)

    assert team.crew.kept == {0: 2}


def test_after_an_at_most_once_job_the_others_have_their_turn():
    team = Team()
    ordinary, once = team.lane(), team.lane(ONCE)
    (job,) = team.wait(once, 1)
    team.wait(ordinary, 2)
    team.place(once)
    team.ended(1, job.serial)

    team.crew.keep_free(once)
    assert team.place(ordinary) == {1: 1}

    team.crew.keep_free(once)
    team.ended(1, 2)
    assert team.place(ordinary) == {}


# Suspects


def test_a_suspect_waits_for_a_child_that_has_nothing_else():
    team = Team(pool="threads", concurrency=3)
    lane, once = team.lane(), team.lane(ONCE)
    jobs = team.wait(lane, 2)
    team.place(lane)
    (suspect,) = team.wait(team.lane(), 1)
    team.wait(lane, 2)
    team.wait(once, 1)

    assert team.crew.place_alone(suspect, lane) is None
    assert team.crew.free(once) == 0
    assert (team.place(lane), team.place(once)) == ({}, {})

    for job in jobs:
        team.crew.share_anew()
        team.ended(1, job.serial)
        number = team.crew.place_alone(suspect, lane)
    assert number == 1
    assert (team.place(lane), team.place(once)) == ({}, {})
    assert team.crew.place_first(jobs[0], lane) is None

    team.ended(1, suspect.serial)
    assert team.place(once) == {1: 1}
    assert team.place(lane) == {1: 2}


def test_no_child_is_kept_for_a_suspect_if_all_have_one():
    team = Team(children=1)
    lane = team.lane()
    first, second = team.wait(team.lane(), 2)
    assert team.crew.place_alone(first, lane) == 1

    assert team.crew.place_alone(second, lane) is None
    assert team.crew.kept_alone is None


def test_what_has_to_be_decided_goes_behind_whatever_the_least_loaded_child_has():
    team = Team(children=2)
    lane = team.lane()
    (job,) = team.wait(team.lane(), 1)
    team.wait(lane, 1)
    team.place(lane)

    assert team.crew.place_first(job, lane) == 2
    assert Crew(team.options).place_first(job, lane) is None


def test_running_says_what_slates_name_and_children_still_have():
    team = Team(children=2)
    lane = team.lane()
    jobs = team.wait(lane, 2)
    team.place(lane)

    running = team.crew.running({1: [Running(99, 0.0, 0), Running(1, 0.0, 0)], 7: [], 2: []})

    assert running == [jobs[0]]


def test_reports_are_of_jobs_that_their_child_has():
    team = Team(children=2, async_concurrency=2)
    ordinary, coroutines = team.lane(), team.lane(COROUTINES)
    team.wait(ordinary, 1)
    team.wait(coroutines, 1)
    assert sum(team.place(ordinary).values()) + sum(team.place(coroutines).values()) == 2
    place = {
        held.serial: number for number, one in team.crew.members.items() for held in one.jobs()
    }
    other = {number: 3 - number for number in (1, 2)}
    slates = {
        number: [
            Report(serial, 1.0, b"{}")
            for serial in (1, 2, 99)
            if place.get(serial, number) == number
        ]
        for number in (1, 2)
    }
    slates[3] = [Report(1, 2.0, b"{}")]  # a child that is gone

    found = team.crew.reports(slates)

    assert {serial: (held.serial, one.at) for serial, (held, one) in found.items()} == {
        1: (1, 1.0),
        2: (2, 1.0),
    }
    wrong = {other[place[1]]: [Report(1, 1.0, b"{}")]}
    assert team.crew.reports(wrong) == {}
    team.ended(place[1], 1)
    assert set(team.crew.reports(slates)) == {2}
