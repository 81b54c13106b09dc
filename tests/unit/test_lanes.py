"""Jobs that are claimed together: which lanes there are, how much each asks for, and that none starves."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from pgtasks.options import WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.lanes import Lane, lane_kinds
from pgtasks.worker.messages import LaneKind, TaskFacts
from tests.unit.worker_fakes import QUEUES, claimed_row
from tests.unit.worker_model import World

ORDINARY = TaskFacts()
ONCE = TaskFacts(at_most_once=True)
COROUTINE = TaskFacts(asynchronous=True)
COROUTINE_ONCE = TaskFacts(asynchronous=True, at_most_once=True)


def make_lane(kind: LaneKind | None = None, **options: Any) -> Lane:
    return Lane(0, kind or LaneKind(()), WorkerOptions(**options), QUEUES, 0.0)


def held(serial: int, **fields: Any) -> msg.Held:
    return msg.Held(serial, claimed_row(seq=serial, **fields), "token")


# Which there are


def test_an_app_without_tasks_has_one_lane():
    assert lane_kinds({}) == [LaneKind(())]


def test_ordinary_tasks_share_a_lane():
    assert lane_kinds({"b": ORDINARY, "a": ORDINARY}) == [LaneKind(("a", "b"))]


def test_each_way_to_run_has_a_lane_of_its_own():
    tasks = {"a": COROUTINE_ONCE, "b": COROUTINE, "c": ONCE, "d": ORDINARY, "e": ONCE}

    assert lane_kinds(tasks) == [
        LaneKind(("d",)),
        LaneKind(("c", "e"), at_most_once=True),
        LaneKind(("b",), asynchronous=True),
        LaneKind(("a",), asynchronous=True, at_most_once=True),
    ]


def test_there_is_no_lane_for_ordinary_tasks_if_there_are_none():
    assert lane_kinds({"a": ONCE}) == [LaneKind(("a",), at_most_once=True)]


# In what order jobs wait


def test_what_waits_is_in_order_of_priority_and_age_across_claims():
    lane = make_lane()

    lane.take([held(5), held(7)], 1.0)
    lane.take([held(9, priority=1), held(6)], 2.0)

    assert [one.serial for one in lane.waiting] == [9, 5, 6, 7]
    assert lane.waiting_since == 1.0


def test_what_a_dead_child_had_not_begun_goes_first_again():
    lane = make_lane()
    lane.take([held(5)], 1.0)

    lane.take_back([held(1), held(2)], 2.0)

    assert [one.serial for one in lane.waiting] == [1, 2, 5]
    assert lane.waiting_since == 1.0


def test_what_is_taken_back_to_an_empty_lane_waits_from_then_on():
    lane = make_lane()

    lane.take_back([held(1)], 50.0)

    assert lane.waiting_since == 50.0


def test_what_is_given_up_waits_no_more():
    lane = make_lane()
    lane.take([held(5), held(6)], 1.0)

    given_up = lane.give_up()

    assert [one.serial for one in given_up] == [5, 6]
    assert lane.held() == 0


# How many to claim


def test_an_unmeasured_lane_wants_one_job_for_each_place():
    assert make_lane().want(4, 0) == 4
    assert make_lane(pool="threads", concurrency=3).want(1, 0) == 3
    coroutines = LaneKind((), asynchronous=True)
    assert make_lane(coroutines, async_concurrency=50).want(2, 0) == 100


def test_no_more_than_the_prefetch_is_held_ahead_of_each_child():
    lane = make_lane(LaneKind((), asynchronous=True), async_concurrency=1000, prefetch=20)
    lane.pace.measure("task", 0.001)

    assert lane.target(2) == 2 * (1000 + 20)


def test_less_than_half_a_batch_is_asked_for_only_if_nothing_waits():
    lane = make_lane(prefetch=100, claim_batch=100)
    lane.pace.measure("task", 0.0005)
    target = lane.target(1)
    jobs = [held(serial) for serial in range(target - 10)]
    lane.take(jobs, 0.0)

    assert lane.want(1, 0) == 0

    lane.give_up()
    lane.in_pipes = target - 10
    assert lane.want(1, 0) == 10


def test_at_most_once_jobs_are_wanted_as_far_as_places_are_free():
    lane = make_lane(LaneKind((), at_most_once=True), claim_batch=5)
    lane.pace.measure("task", 1e-6)

    assert lane.want(8, 0) == 0
    assert lane.want(8, 3) == 3
    assert lane.want(8, 7) == 5

    lane.take([held(1), held(2)], 0.0)
    assert lane.want(8, 3) == 1


# That none starves

# What its jobs take, in seconds.
DURATIONS = {
    "short": 0.002,
    "long": 0.2,
    "once": 0.05,
    "coroutine": 0.02,
    "coroutine once": 0.2,
}
TICK = 0.001
# Of two lanes.
PAIRS = [pair for pair in permutations(DURATIONS, 2) if set(pair) != {"short", "long"}]


class Rush:
    """A world in which jobs take their time, and some tasks have a backlog that never ends."""

    def __init__(self, backlogs: tuple[str, ...], **options: Any) -> None:
        facts = {"short": ORDINARY, "long": ORDINARY, "once": ONCE}
        facts |= {"coroutine": COROUTINE, "coroutine once": COROUTINE_ONCE}
        self.world = World(facts, **options)
        self.backlogs = backlogs
        self.world.connect()

    def run_until_ended(self, id: str | None, seconds: float) -> bool:
        world = self.world
        until = world.now + seconds
        while world.now < until:
            if id in world.database.ended:
                return True
            self._refill()
            world.cycle()
            while world.unborn:
                world.start_child()
            while world.units:
                world.answer()
            for child in world.living():
                for sent in [
                    one
                    for one in child.running
                    if world.now - one.began >= DURATIONS[one.task] - TICK / 2
                ]:
                    world.end(child, child.running.index(sent), DURATIONS[sent.task])
                while world.begin(child):
                    pass
                world.report(child.number)
            world.now += TICK
        return False

    def _refill(self) -> None:
        ready = [job for job in self.world.database.jobs.values() if job.ready]
        for task in self.backlogs:
            for queue in QUEUES:
                there = sum(job.task == task and job.queue == queue for job in ready)
                for _ in range(20 - there):
                    self.world.database.insert(queue, task=task)
                if there < 20:
                    self.world.wake(queue)


@pytest.mark.parametrize("children", [1, 2])
@pytest.mark.parametrize(("backlog", "task"), PAIRS)
def test_a_backlog_in_one_lane_does_not_keep_another_lane_waiting(
    backlog: str, task: str, children: int
):
    rush = Rush((backlog,), concurrency=children, async_concurrency=2, claim_batch=20)
    rush.run_until_ended(None, 0.5)

    job = rush.world.database.insert(QUEUES[0], task=task)
    rush.world.wake(QUEUES[0])

    assert rush.run_until_ended(job.id, 2.5)


@pytest.mark.parametrize("task", ["once", "coroutine", "coroutine once", "short"])
def test_backlogs_in_all_other_lanes_do_not_keep_a_lane_waiting(task: str):
    others = tuple(name for name in DURATIONS if name != task)
    rush = Rush(others, concurrency=1, async_concurrency=2, claim_batch=20)
    rush.run_until_ended(None, 0.5)

    job = rush.world.database.insert(QUEUES[0], task=task, priority=1)
    rush.world.wake(QUEUES[0])

    assert rush.run_until_ended(job.id, 2.5)


def test_coroutines_run_on_in_a_child_that_an_at_most_once_job_waits_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(DURATIONS, "long", 3600.0)
    rush = Rush((), concurrency=1, async_concurrency=2)
    rush.world.database.insert(QUEUES[0], task="long")
    rush.world.wake(QUEUES[0])
    rush.run_until_ended(None, 0.2)
    rush.world.database.insert(QUEUES[0], task="once")  # there is no place for it
    rush.world.wake(QUEUES[0])
    rush.run_until_ended(None, 0.2)

    job = rush.world.database.insert(QUEUES[0], task="coroutine")
    rush.world.wake(QUEUES[0])

    assert rush.run_until_ended(job.id, 1.0)
