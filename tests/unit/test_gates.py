"""What a worker does about pauses and limits of queues; in any order of events: test_ledger_machine."""

from __future__ import annotations

import pytest

from pgtasks.worker import messages as msg
from tests.unit.lone_worker import Worker, only, released, sent, tasks
from tests.unit.worker_fakes import QUEUES, claimed_row

QUEUE = QUEUES[0]
LIMITED = msg.GatesRead(limited_queues=frozenset([QUEUE]))


def busy_worker() -> tuple[Worker, msg.Held, list[msg.Held]]:
    """Return a worker whose child runs a long job, and what waits behind it."""
    worker = Worker()
    worker.measure(1.0, "long")
    worker.measure(1e-5, "short")
    commands = worker.claimed(
        claimed_row(seq=1, task="long"), *[claimed_row(seq=n, task="short") for n in (2, 3)]
    )
    [running] = sent(commands)[1]
    return worker, running, list(worker.ledger.lanes[0].waiting)


@pytest.mark.parametrize(
    "gates",
    [
        msg.GatesRead(paused_queues=frozenset([QUEUE])),
        msg.GatesRead(paused_tasks=frozenset(["short"])),
    ],
    ids=["queue", "task"],
)
def test_what_waits_is_given_back_when_it_is_paused_and_what_runs_is_left_alone(gates):
    worker, _, waiting = busy_worker()

    commands = worker.tell(gates)

    assert released(commands) == waiting
    assert only(msg.KillChild, commands) == only(msg.Interrupt, commands) == []


def test_a_paused_job_in_a_pipe_is_skipped_and_given_back_and_the_list_of_these_is_emptied_again():
    worker = Worker()
    worker.measure(1e-5)
    [running, *behind] = sent(worker.claimed(*tasks(3)))[1]

    [asked] = only(msg.Skip, worker.tell(msg.GatesRead(paused_queues=frozenset([QUEUE]))))
    worker.ended(1, running)
    commands = worker.ended(1, *behind, kind="skipped")

    assert asked.serials == [one.serial for one in (running, *behind)]
    assert released(commands) == behind
    assert only(msg.Skip, commands)[-1].serials == []


def test_a_pause_that_is_over_before_the_child_looked_is_as_if_it_had_not_been():
    worker = Worker()
    worker.measure(1e-5)
    worker.claimed(*tasks(3))
    worker.tell(msg.GatesRead(paused_queues=frozenset([QUEUE])))

    commands = worker.tell(msg.GatesRead())

    assert [one.serials for one in only(msg.Skip, commands)] == [[]]
    assert released(commands) == []


def test_what_a_claim_brings_after_the_pause_goes_back_at_once():
    worker = Worker()
    worker.tell(msg.GatesRead(paused_tasks=frozenset(["short"])))

    commands = worker.claimed(claimed_row(seq=1), claimed_row(seq=2, task="short"))

    assert [held.row.task for held in released(commands)] == ["short"]
    assert [held.row.task for held in sent(commands)[1]] == ["task"]


def test_when_something_goes_on_it_is_asked_for_at_once():
    worker = Worker()
    worker.tell(msg.GatesRead(paused_queues=frozenset([QUEUE])))

    assert QUEUE in [one.queue for one in only(msg.Claim, worker.tell(msg.GatesRead()))]


def test_of_a_limited_queue_no_more_is_held_than_can_begin_at_once():
    worker = Worker(children=4)
    worker.measure(1e-5)
    worker.tell(LIMITED)

    [order] = only(msg.Claim, worker.tell(msg.Woken(QUEUE)))
    commands = worker.tell(msg.Claimed(order, "token", tasks(4), 0.001))
    jobs = [held for one in sent(commands).values() for held in one]
    [batch] = [
        one.batch
        for one in only(msg.Finish, worker.ended(1, *sent(commands)[1]) + worker.later(0.01))
    ]
    [again] = only(
        msg.Claim,
        worker.tell(msg.Written(batch, frozenset(one.held.row.id for one in batch.ended))),
    )

    assert order.limit == 4
    assert len(jobs) == 4
    assert only(msg.Claim, commands) == [], "all that may be held is held"
    assert (again.queue, again.limit) == (QUEUE, len(batch.ended))


def test_an_unlimited_queue_beside_it_is_claimed_as_ever():
    worker = Worker(children=2)
    worker.measure(1e-5)
    worker.tell(LIMITED)

    claims = only(msg.Claim, worker.tell(msg.Woken(None)))

    assert {one.queue: one.limit for one in claims} == {QUEUE: 2, QUEUES[1]: 250}


def test_queues_are_claimed_by_their_weights():
    worker = Worker(children=2, weights={QUEUE: 4})
    worker.measure(1e-5)

    claims = only(msg.Claim, worker.tell(msg.Woken(None)))

    assert {one.queue: one.limit for one in claims} == {QUEUE: 400, QUEUES[1]: 100}


def test_paused_jobs_that_a_dead_child_had_not_begun_go_back_and_to_no_other_child():
    worker = Worker(children=2)
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(6)))
    worker.tell(msg.GatesRead(paused_queues=frozenset([QUEUE])))

    commands = worker.tell(worker.death(1, 1, {"signal": 9}))

    assert set(released(commands)) == set(jobs[1][1:])
    assert sent(commands) == {}


def test_paused_jobs_that_would_run_again_alone_go_back():
    worker = Worker(children=2)
    worker.measure(1e-5)
    worker.claimed(*tasks(6))
    suspect = next(worker.ledger.crew.members[1].jobs())
    worker.ledger.aftermath.suspects.append(suspect)

    commands = worker.tell(msg.GatesRead(paused_queues=frozenset([QUEUE])))

    assert released(commands) == [suspect]
