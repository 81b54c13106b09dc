"""Which queue is asked, when, and from where on; the times are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtasks.worker import messages as msg
from pgtasks.worker.intake import (
    BUSY_CLAIMS,
    FIRST_POLL,
    IDLE_POLL,
    LOOK_INTERVAL,
    MAX_CURSORS,
    MAX_SURVEYED,
    SWEEP_INTERVAL,
    Intake,
)
from tests.unit.worker_fakes import Database, check_ranges, claimed_row

priorities = st.integers(msg.LOWEST, msg.HIGHEST)
REPLY = 0.001  # seconds that the server takes for a simple answer


def make_intake(
    now: float = 0.0,
    listen: bool = True,
    poll_interval: float = 1.0,
    lane: int = 0,
    exact: bool = False,
) -> Intake:
    return Intake(("first", "second"), poll_interval, listen, now, lane, exact)


def rows(*places: tuple[int, int]) -> list[msg.ClaimedRow]:
    """Return rows of these (priority, seq)."""
    return [claimed_row(priority=priority, seq=seq) for priority, seq in places]


def claims(intake: Intake, now: float, want: int = 10) -> list[msg.Claim]:
    return [one for one in intake.questions(want, now) if isinstance(one, msg.Claim)]


def claim_once(
    intake: Intake, found: Sequence[msg.ClaimedRow], now: float, cost: float = REPLY
) -> msg.Claim:
    """Let the first queue be claimed, and answer."""
    intake.woken("first", now)
    (order,) = claims(intake, now, want=max(len(found), 1))
    intake.claimed(order, found, cost, now)
    return order


class Simulation:
    """An intake and a database, with time: answers take time, questions come when they are due."""

    kind = msg.LaneKind(("task",))

    def __init__(self, *, sweep_cost: float = REPLY, locked: int = 0) -> None:
        self.now = 0.0
        self.intake = make_intake()
        self.intake.connected(0.0)
        self.database = Database()
        self.sweep_cost = sweep_cost
        self.locked = locked  # how many rows at the head somebody else has locked
        self.asked: list[tuple[float, Any]] = []
        self.sweeping = 0.0
        self.taken: dict[str, float] = {}

    def run(self, until: float) -> None:
        while self.now < until:
            questions = list(self.intake.questions(100, self.now))
            if not questions:
                self.now = max(self.now + 0.0005, min(self.intake.next_wake(), until))
            for question in questions:
                self.asked.append((self.now, question))
                self._answer(question)

    def _answer(self, question: Any) -> None:
        cost = REPLY
        if isinstance(question, msg.Claim) and question.sweep:
            cost = self.sweep_cost
            self.sweeping += cost
        self.now += cost
        match question:
            case msg.Look():
                looks = self.database.look(self.now, self.kind.tasks, question.hot)
                self.intake.looked(looks, cost, self.now)
            case msg.Claim():
                if question.sweep:
                    self.intake.surveyed(question.queue, self.database.survey(question.queue))
                found = (
                    self.database.claim(question, str(len(self.asked)), 0, self.kind)
                    if not self.locked
                    else []
                )
                for row in found:
                    self.taken[row.id] = self.now
                    del self.database.jobs[row.id]
                self.database.claims.clear()
                self.intake.claimed(question, found, cost, self.now)
            case msg.Promote(queue):
                self.database.promote(queue, self.now)
                self.intake.promoted(queue, self.now)
            case msg.SetIdle(idle):
                self.intake.idle_set(idle, self.now)
            case _:
                raise AssertionError(f"no answer to {question}")

    def count(self, kind: type) -> int:
        return sum(isinstance(question, kind) for _, question in self.asked)


# Ranges


def test_the_first_claim_of_a_queue_is_a_sweep():
    intake = make_intake()

    order = claim_once(intake, [], 0.0)

    assert order.sweep
    assert (order.high, order.low, order.after) == ((msg.HIGHEST,), (msg.LOWEST,), (None,))


def test_a_claim_takes_cursors_and_the_gaps_between_them_from_above():
    intake = make_intake()
    claim_once(intake, rows((5, 70), (0, 30), (0, 20)), 0.0)

    order = claim_once(intake, [], 0.1)

    assert not order.sweep
    assert list(zip(order.high, order.low, order.after, strict=True)) == [
        (msg.HIGHEST, 6, None),
        (5, 5, 70),
        (4, 1, None),
        (0, 0, 30),
        (-1, msg.LOWEST, None),
    ]


def test_neighbours_and_ends_of_the_range_leave_no_empty_gap():
    intake = make_intake()
    claim_once(intake, rows((msg.HIGHEST, 1), (1, 2), (0, 3), (msg.LOWEST, 4)), 0.0)

    order = claim_once(intake, [], 0.1)

    assert list(zip(order.high, order.low, order.after, strict=True)) == [
        (msg.HIGHEST, msg.HIGHEST, 1),
        (msg.HIGHEST - 1, 2, None),
        (1, 1, 2),
        (0, 0, 3),
        (-1, msg.LOWEST + 1, None),
        (msg.LOWEST, msg.LOWEST, 4),
    ]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(priorities, st.integers(1, 2**62)), min_size=1, max_size=50))
def test_ranges_go_down_and_leave_no_priority_out(places: list[tuple[int, int]]):
    intake = make_intake()
    claim_once(intake, rows(*places), 0.0)

    order = claim_once(intake, [], 0.1)

    check_ranges(order)
    assert len(order.high) <= 2 * MAX_CURSORS + 1


def test_a_cursor_moves_forward_only():
    intake = make_intake()
    claim_once(intake, rows((0, 50)), 0.0)
    claim_once(intake, rows((0, 60)), 0.1)
    intake.woken("first", 0.2)
    (order,) = claims(intake, 0.2)

    intake.claimed(order, rows((0, 55)), REPLY, 0.2)

    assert intake.cursors["first"] == {0: 60}


def test_a_sweep_that_stopped_at_its_limit_sets_the_cursor_back():
    intake = make_intake()
    claim_once(intake, rows((0, 50)), 0.0)
    late = SWEEP_INTERVAL + 0.1

    order = claim_once(intake, rows((0, 10), (0, 12)), late)

    assert order.sweep
    assert intake.cursors["first"] == {0: 12}


def test_what_a_sweep_passed_and_left_is_not_read_again():
    """Unknown tasks, or running jobs: above where it stopped, and nothing below."""
    intake = make_intake()
    claim_once(intake, rows((0, 30)), 0.0)
    intake.surveyed("first", {9: 500, 5: 400, 0: 90, -3: 600})
    claim_once(intake, rows((5, 40), (0, 80)), 1.5)

    order = claim_once(intake, [], 1.6)

    assert not order.sweep
    assert list(zip(order.high, order.low, order.after, strict=True)) == [
        (msg.HIGHEST, 10, None),
        (9, 9, 500),
        (8, 6, None),
        (5, 5, 400),
        (4, 1, None),
        (0, 0, 80),
        (-1, msg.LOWEST, None),
    ]


def test_a_sweep_that_ran_out_passed_everything_that_was_surveyed():
    intake = make_intake()
    intake.surveyed("first", {0: 90, -3: 600})
    intake.woken("first", 0.0)
    (order,) = claims(intake, 0.0)
    intake.claimed(order, rows((0, 80)), REPLY, 0.0)

    assert intake.cursors["first"] == {0: 90, -3: 600}


def test_a_survey_drives_out_no_cursor_of_ours():
    intake = make_intake()
    intake.surveyed("first", dict.fromkeys(range(100, 100 + MAX_SURVEYED), 1))

    claim_once(intake, rows((0, 80)), 0.0)

    assert intake.cursors["first"][0] == 80


def test_a_look_does_not_ask_of_hot_queues_and_asks_again_if_one_cooled_meanwhile():
    intake = make_intake()
    intake.connected(0.0)
    intake.woken("first", 0.0)
    intake.woken("second", 0.0)
    (look,) = [one for one in intake.questions(0, 0.0) if isinstance(one, msg.Look)]
    assert look.hot == ("first", "second")
    order = next(one for one in claims(intake, 0.0) if one.queue == "first")
    intake.claimed(order, [], REPLY, 0.1)

    intake.looked({"first": (None, None), "second": (None, None)}, REPLY, 0.1)

    assert intake.next_wake() < 0.1 + LOOK_INTERVAL / 2


def test_a_dear_look_is_followed_by_a_pause():
    intake = make_intake(poll_interval=2.0)
    intake.woken("first", 0.0)

    for cost, pause in ((0.001, LOOK_INTERVAL), (0.06, 1.2), (5.0, 2.0)):
        intake.looked({"first": (None, None)}, cost, 10.0)
        assert intake.next_wake() - 10.0 == pytest.approx(pause)


def test_a_sweep_that_saw_everything_leaves_the_cursor():
    intake = make_intake()
    claim_once(intake, rows((0, 50)), 0.0)
    intake.woken("first", 2.0)
    (order,) = claims(intake, 2.0, want=10)

    intake.claimed(order, rows((0, 10)), REPLY, 2.0)

    assert order.sweep
    assert intake.cursors["first"] == {0: 50}


def test_a_new_connection_forgets_the_cursors():
    intake = make_intake()
    claim_once(intake, rows((0, 50)), 0.0)

    intake.connected(0.1)

    assert claim_once(intake, [], 0.2).sweep


def test_cursors_are_kept_for_the_highest_priorities_only():
    intake = make_intake()

    claim_once(intake, rows(*[(priority, 1) for priority in range(100)]), 0.0)

    assert sorted(intake.cursors["first"]) == list(range(100 - MAX_CURSORS, 100))


# Sweeps


def test_a_queue_that_looks_empty_is_swept_before_it_counts_as_empty():
    intake = make_intake()
    claim_once(intake, rows((0, 1)), 0.0)
    intake.woken("first", SWEEP_INTERVAL - 0.1)
    (by_cursor,) = claims(intake, SWEEP_INTERVAL - 0.1)
    assert not by_cursor.sweep

    intake.claimed(by_cursor, [], REPLY, SWEEP_INTERVAL + 0.1)
    (next_claim,) = claims(intake, SWEEP_INTERVAL + 0.1)

    assert next_claim.sweep
    intake.claimed(next_claim, [], REPLY, SWEEP_INTERVAL + 0.2)
    assert not intake.hot


def test_a_queue_that_never_empties_is_swept_once_a_second():
    intake = make_intake()
    sweeps = []

    for step in range(1, 5001):
        order = claim_once(intake, rows((0, step)), step / 1000)
        if order.sweep:
            sweeps.append(step / 1000)

    gaps = [later - sooner for sooner, later in pairwise(sweeps)]
    assert len(sweeps) == 5
    assert min(gaps) >= SWEEP_INTERVAL - 0.001


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("cost", [0.02, 0.3])
def test_dear_sweeps_take_no_more_than_a_twentieth_of_the_time(cost: float, notified: bool):
    simulation = Simulation(sweep_cost=cost)
    seconds = 40
    for tick in range(seconds * 20):  # a trickle: every claim finds the queue empty after it
        simulation.database.insert("first")
        if notified:
            simulation.intake.woken("first", simulation.now)
        simulation.run(max(tick / 20, simulation.now))

    assert simulation.sweeping <= 0.08 * simulation.now + cost


def test_a_job_behind_the_cursor_is_found_soon_while_sweeps_are_cheap():
    simulation = Simulation()
    for _ in range(10):
        simulation.database.insert("first")
    simulation.run(0.5)

    late = simulation.database.insert("first", late=True)
    simulation.run(2.5)

    assert simulation.taken[late.id] < 0.5 + 2 * SWEEP_INTERVAL


def test_a_ready_job_that_somebody_has_locked_does_not_make_the_worker_spin():
    simulation = Simulation(locked=1)
    simulation.database.insert("first")

    simulation.run(5.0)

    assert len(simulation.asked) < 5 * 50


# Polling


def test_polling_grows_to_the_interval_and_starts_anew_when_woken():
    intake = make_intake(poll_interval=0.5, listen=False)
    intake.connected(0.0)
    pauses = []
    now = 0.0
    for _ in range(30):
        assert [type(one) for one in intake.questions(10, now)] == [msg.Look]
        intake.looked({"first": (False, None), "second": (False, None)}, REPLY, now)
        pauses.append(intake.next_wake() - now)
        now = intake.next_wake()

    assert pauses == pytest.approx(sorted(pauses))
    assert pauses[0] <= 2 * FIRST_POLL
    assert pauses[-1] == pytest.approx(0.5)

    intake.woken("first", now)
    assert intake.next_wake() <= now


def test_an_idle_second_takes_a_handful_of_looks():
    simulation = Simulation()

    simulation.run(30.0)

    assert simulation.count(msg.Look) < 60
    assert simulation.count(msg.Claim) == 0


def test_while_busy_every_queue_is_looked_at_twice_a_second():
    simulation = Simulation()
    for tick in range(100):
        for _ in range(1000):
            simulation.database.insert("first")
        simulation.run(tick / 20)

    looks = [at for at, one in simulation.asked if isinstance(one, msg.Look)]
    gaps = [later - sooner for sooner, later in pairwise(looks)]
    assert max(gaps) < LOOK_INTERVAL + 0.2


def test_a_queue_that_nobody_serves_here_stays_cold():
    intake = make_intake()

    intake.woken("third", 0.0)

    assert not intake.hot


def test_woken_for_no_queue_in_particular_means_all():
    intake = make_intake()

    intake.woken(None, 0.0)

    assert [order.queue for order in claims(intake, 0.0)] == ["first", "second"]


def test_queues_take_turns():
    intake = make_intake()
    intake.woken(None, 0.0)
    for order in claims(intake, 0.0):
        intake.claimed(order, rows(*[(0, 1)] * order.limit), REPLY, 0.0)

    assert [order.queue for order in claims(intake, 0.1)] == ["first", "second"]
    assert sum(order.limit for order in claims(intake, 0.1)) == 0  # one round at a time


def test_where_it_must_be_exact_no_more_is_asked_for_than_is_wanted():
    intake = make_intake(exact=True)
    intake.woken(None, 0.0)

    (first,) = claims(intake, 0.0, want=1)
    intake.claimed(first, rows((0, 1)), REPLY, 0.0)
    (second,) = claims(intake, 0.1, want=1)
    intake.claimed(second, rows((0, 1)), REPLY, 0.1)
    both = claims(intake, 0.2, want=3)

    assert (first.queue, second.queue) == ("first", "second")
    assert sum(order.limit for order in both) == 3


def test_elsewhere_each_hot_queue_is_asked_for_one_at_least():
    intake = make_intake()
    intake.woken(None, 0.0)

    assert [order.limit for order in claims(intake, 0.0, want=1)] == [1, 1]


def test_only_the_first_lane_promotes_and_asks_for_notifications():
    intake = make_intake(lane=2)
    intake.poll = 1.0
    intake.looked({"first": (True, -5.0)}, REPLY, 0.0)

    questions = list(intake.questions(5, 1.0))

    assert {type(one) for one in questions} == {msg.Claim, msg.Look}
    assert {one.lane for one in questions if isinstance(one, msg.Claim | msg.Look)} == {2}


def test_a_refused_question_is_asked_again_after_a_pause():
    intake = make_intake(listen=False)
    intake.connected(0.0)
    (look,) = intake.questions(10, 0.0)

    intake.refused(look, 0.0)

    assert list(intake.questions(10, 0.0)) == []
    assert intake.next_wake() >= IDLE_POLL
    assert msg.Look() in list(intake.questions(10, intake.next_wake()))


# The wish for NOTIFY


def test_idle_flag_is_set_before_polling_gets_slow_and_followed_by_one_more_look():
    simulation = Simulation()

    simulation.run(1.0)

    order = [type(one) for _, one in simulation.asked]
    at = order.index(msg.SetIdle)
    assert order[at + 1] is msg.Look
    assert simulation.asked[at][0] < 0.2
    assert simulation.asked[at + 1][0] - simulation.asked[at][0] < 0.01
    assert simulation.count(msg.SetIdle) == 1


def test_idle_flag_is_not_set_without_listening():
    intake = make_intake(listen=False)
    intake.poll = 1.0

    assert not [one for one in intake.questions(10, 0.0) if isinstance(one, msg.SetIdle)]


def busy_for_a_while(simulation: Simulation) -> None:
    for _ in range(2 * BUSY_CLAIMS):
        simulation.database.insert("first")
        simulation.intake.woken("first", simulation.now)
        simulation.run(simulation.now + 0.002)


def test_idle_flag_is_cleared_when_claims_come_often():
    simulation = Simulation()
    simulation.run(1.0)

    busy_for_a_while(simulation)

    flags = [one.idle for _, one in simulation.asked if isinstance(one, msg.SetIdle)]
    assert flags == [True, False]


def test_idle_flag_stays_while_claims_come_now_and_then():
    simulation = Simulation()
    simulation.run(1.0)
    for _ in range(20):
        simulation.database.insert("first")
        simulation.intake.woken("first", simulation.now)
        simulation.run(simulation.now + 0.1)

    flags = [one.idle for _, one in simulation.asked if isinstance(one, msg.SetIdle)]
    assert flags == [True]


def test_idle_flag_is_not_set_while_the_last_second_was_busy():
    simulation = Simulation()
    simulation.run(1.0)
    busy_for_a_while(simulation)

    simulation.run(simulation.now + 5.0)

    flags = [one.idle for _, one in simulation.asked if isinstance(one, msg.SetIdle)]
    assert flags == [True, False, True]


def test_a_refused_flag_is_taken_back():
    intake = make_intake()
    intake.poll = IDLE_POLL
    (flag,) = [one for one in intake.questions(10, -1.0) if isinstance(one, msg.SetIdle)]

    intake.refused(flag, 0.0)

    assert not intake.idle


# What is due


def test_due_jobs_are_promoted_at_their_time():
    simulation = Simulation()
    job = simulation.database.insert("first", start_at=0.4)

    simulation.run(0.39)
    assert simulation.count(msg.Promote) == 0
    simulation.run(0.5)

    assert simulation.count(msg.Promote) == 1
    assert simulation.taken[job.id] < 0.42


def test_a_job_due_far_ahead_is_not_promoted_before():
    simulation = Simulation()
    simulation.database.insert("first", start_at=60.0)

    simulation.run(30.0)

    assert simulation.count(msg.Promote) == 0


def test_a_promotion_is_not_asked_for_twice_at_once():
    intake = make_intake()
    intake.looked({"first": (False, -1.0)}, REPLY, 0.0)

    first = [one for one in intake.questions(0, 0.0) if isinstance(one, msg.Promote)]
    second = [one for one in intake.questions(0, 0.001) if isinstance(one, msg.Promote)]

    assert (len(first), len(second)) == (1, 0)


def test_a_retry_of_ours_is_promoted_without_another_look():
    intake = make_intake()
    intake.looked({"first": (False, None)}, REPLY, 0.0)

    intake.scheduled("first", 0.001)

    assert msg.Promote("first") in list(intake.questions(0, 0.002))


def test_the_sooner_of_two_due_moments_counts():
    intake = make_intake()
    intake.scheduled("first", 5.0)
    intake.scheduled("first", 9.0)
    intake.scheduled("first", 3.0)

    assert intake.due["first"] == 3.0
