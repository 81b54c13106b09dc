"""What the ledger decides, one situation at a time; any order of events: test_ledger_machine."""

from __future__ import annotations

import pytest

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.ledger import (
    WAIT_LIMIT,
    Ledger,
    Phase,
)
from pgtasks.worker.outbox import FLUSH_BATCH, FLUSH_DELAY, OUTCOMES_LIMIT
from pgtasks.worker.pace import IN_PIPE
from tests.unit.lone_worker import Worker, only, released, sent, tasks
from tests.unit.worker_fakes import QUEUES, UNSTORABLE, claimed_row
from tests.unit.worker_model import TASKS, World, weight

# The start


def test_a_worker_starts_its_children_and_looks_once_it_is_connected():
    ledger = Ledger(WorkerOptions(concurrency=3), QUEUES, 0.0)
    assert list(ledger.commands(0.0)) == []

    ledger.handle(msg.Connected(), 0.0)

    commands = list(ledger.commands(0.0))
    assert [type(one) for one in commands] == [msg.ReleaseLost, *[msg.Spawn] * 3, msg.Look]
    assert commands[0] == msg.ReleaseLost(())


def test_nothing_is_claimed_before_a_child_is_there():
    ledger = Ledger(WorkerOptions(), QUEUES, 0.0)
    ledger.handle(msg.Connected(), 0.0)
    ledger.handle(msg.Woken(None), 0.0)

    assert only(msg.Claim, list(ledger.commands(0.0))) == []


def test_a_child_that_dies_is_replaced():
    worker = Worker(children=2)
    worker.claimed(claimed_row())

    commands = worker.tell(worker.death(1, 1, {}))

    assert only(msg.Spawn, commands) == [msg.Spawn()]


def test_children_that_die_before_their_first_job_are_replaced_calmly():
    worker = Worker(children=2)
    spawned = 0

    for number in range(10, 60):  # five seconds of an app whose start hook raises
        commands = worker.tell(worker.death(1 if number == 10 else number - 1, 0, {}))
        spawned += len(only(msg.Spawn, commands))
        if only(msg.Spawn, worker.later(0.1)):
            spawned += 1
        worker.ledger.handle(msg.ChildStarted(number), worker.now)

    assert spawned <= 8


def test_every_lane_looks_once_more_when_notifications_were_asked_for():
    worker = Worker(facts=TASKS)
    kinds = worker.ledger.kinds
    for number in range(len(kinds)):
        worker.tell(msg.Looked({}, number))

    commands = worker.tell(msg.IdleSet(True))

    assert [one.lane for one in only(msg.Look, commands)] == list(range(len(kinds)))
    assert len(kinds) > 1


# How many jobs a child gets


def test_unmeasured_tasks_are_claimed_one_for_each_child_and_nothing_behind():
    worker = Worker(children=4)

    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))
    commands = worker.tell(msg.Claimed(order, "token", tasks(order.limit), 0.001))

    assert order.limit == 4
    assert {child: len(jobs) for child, jobs in sent(commands).items()} == {1: 1, 2: 1, 3: 1, 4: 1}
    assert only(msg.Claim, worker.tell(msg.Woken(QUEUES[0]))) == []


def test_tasks_of_microseconds_are_claimed_and_sent_by_the_hundreds():
    worker = Worker(children=2)
    worker.measure(1e-5)

    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))
    commands = worker.tell(msg.Claimed(order, "token", tasks(order.limit), 0.001))

    assert order.limit == 500
    assert {child: len(jobs) for child, jobs in sent(commands).items()} == {1: 250, 2: 250}
    assert only(msg.Claim, commands), "no more is claimed while they run"


def test_tasks_of_a_second_are_claimed_one_for_each_child():
    worker = Worker(children=3)
    worker.measure(1.0)

    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))
    commands = worker.tell(msg.Claimed(order, "token", tasks(order.limit), 0.001))

    assert order.limit == 3
    assert [len(jobs) for jobs in sent(commands).values()] == [1, 1, 1]


def test_nothing_is_put_behind_a_long_job():
    worker = Worker()
    worker.measure(1.0, "long")
    worker.measure(1e-5, "short")

    commands = worker.claimed(
        claimed_row(seq=1, task="long"), *[claimed_row(seq=n, task="short") for n in (2, 3)]
    )
    (long_job,) = sent(commands)[1]
    later = worker.later(1.0)

    assert long_job.row.task == "long"
    assert sent(later) == {}


def test_a_long_job_is_put_behind_nothing():
    worker = Worker()
    worker.measure(1.0, "long")
    worker.measure(1e-5, "short")

    commands = worker.claimed(
        *[claimed_row(seq=n, task="short") for n in (1, 2)], claimed_row(seq=3, task="long")
    )

    assert [held.row.task for held in sent(commands)[1]] == ["short", "short"]


def test_a_job_that_took_its_process_down_runs_alone():
    worker = Worker()
    worker.measure(1e-5)

    commands = worker.claimed(claimed_row(seq=1, crashes=1), *tasks(5))

    assert [held.row.crashes for held in sent(commands)[1]] == [1] or len(sent(commands)[1]) == 1


def test_a_pipe_holds_no_more_work_than_said_though_jobs_get_slower():
    worker = Worker(prefetch=500)
    worker.measure(2e-5)
    jobs = sent(worker.claimed(*tasks(400)))[1]
    worker.claimed(*tasks(400))

    for position in range(150):  # each takes a hundred times as long as before
        worker.now += 0.002
        jobs += sent(worker.ended(1, jobs[position], seconds=0.002)).get(1, [])

    assert len(worker.ledger.crew.members[1].tracks[0].pipe) * 0.002 < 1.0
    assert len(jobs) == 400, "more was sent, though hundreds of slow jobs lay in the pipe"


def test_the_idle_child_gets_its_share():
    worker = Worker(children=2)
    worker.measure(1e-4)
    first = sent(worker.claimed(*tasks(10)))

    assert {child: len(jobs) for child, jobs in first.items()} == {1: 5, 2: 5}


def test_jobs_are_sent_by_priority_then_by_age():
    worker = Worker()
    worker.measure(1e-5)

    commands = worker.claimed(
        claimed_row(seq=3), claimed_row(seq=9, priority=5), claimed_row(seq=1, priority=-1)
    )

    assert [(held.row.priority, held.row.seq) for held in sent(commands)[1]] == [
        (5, 9),
        (0, 3),
        (-1, 1),
    ]


def test_a_later_claim_of_higher_priority_goes_first():
    worker = Worker()
    worker.measure(1.0)
    worker.claimed(claimed_row(seq=1), claimed_row(seq=2))
    busy = next(iter(worker.ledger.crew.members[1].tracks[0].pipe.values()))[0]

    worker.claimed(claimed_row(seq=7, priority=9))
    commands = worker.ended(1, busy)

    assert [held.row.priority for held in sent(commands)[1]] == [9]


# Writing outcomes


def test_an_outcome_is_written_at_once_when_nothing_short_is_under_way():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]

    commands = worker.ended(1, job)

    (finish,) = only(msg.Finish, commands)
    assert [ended.held for ended in finish.batch.ended] == [job]
    assert finish.batch.claims == ["token-1"]


def test_outcomes_of_short_jobs_are_collected_for_a_moment():
    worker = Worker()
    worker.measure(1e-4)
    jobs = sent(worker.claimed(*tasks(5)))[1]

    at_once = worker.ended(1, jobs[0], seconds=1e-4)
    wake = worker.ledger.next_wake(worker.now)
    worker.now = wake
    then = worker.ended(1, jobs[1], seconds=1e-4)

    assert only(msg.Finish, at_once) == []
    assert wake == pytest.approx(100.0 + FLUSH_DELAY)
    (finish,) = only(msg.Finish, then)
    assert {ended.held for ended in finish.batch.ended} == set(jobs[:2])
    assert finish.batch.claims == []


def test_the_last_short_outcome_is_not_waited_for():
    worker = Worker()
    worker.measure(1e-4)
    jobs = sent(worker.claimed(*tasks(3)))[1]

    commands = worker.ended(1, *jobs, seconds=1e-4)

    assert len(only(msg.Finish, commands)) == 1


def test_short_jobs_do_not_delay_outcomes_once_their_task_is_measured_as_long():
    worker = Worker()
    worker.measure(0.009)
    jobs = sent(worker.claimed(claimed_row(), claimed_row(seq=2)))[1]

    worker.ended(1, *jobs, seconds=1.0)

    assert worker.ledger.lanes[0].pace.expect("task") > IN_PIPE
    assert worker.ledger.crew.short_in_pipes == 0


def test_many_outcomes_are_written_without_waiting():
    worker = Worker(prefetch=1000)
    worker.measure(1e-6)
    jobs = sent(worker.claimed(*tasks(1000)))[1]

    commands = worker.ended(1, *jobs[:FLUSH_BATCH], seconds=1e-6)

    (finish,) = only(msg.Finish, commands)
    assert len(finish.batch.ended) == FLUSH_BATCH


def test_one_batch_is_written_at_a_time():
    worker = Worker(children=2)
    jobs = sent(worker.claimed(*tasks(2)))
    (first,) = only(msg.Finish, worker.ended(1, *jobs[1]))

    second = worker.ended(2, *jobs[2])
    third = worker.tell(msg.Written(first.batch, frozenset([jobs[1][0].row.id])))

    assert only(msg.Finish, second) == []
    assert len(only(msg.Finish, third)) == 1


def test_a_batch_is_in_the_order_of_ids_so_that_writers_do_not_deadlock():
    worker = Worker()
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(50)))[1]

    (finish,) = only(msg.Finish, worker.ended(1, *jobs, seconds=1e-5))

    ids = [ended.held.row.id for ended in finish.batch.ended]
    assert ids == sorted(ids)


def test_a_batch_refused_for_a_passing_reason_is_written_again_after_a_pause():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    (finish,) = only(msg.Finish, worker.ended(1, job))

    at_once = worker.tell(msg.Unwritten(finish.batch, "again", "deadlock detected"))
    wake = worker.ledger.next_wake(worker.now)
    then = worker.later(wake - worker.now)

    assert only(msg.Finish, at_once) == []
    assert 0 < wake - 100.0 <= 0.2
    (again,) = only(msg.Finish, then)
    assert again.batch.ended == finish.batch.ended
    assert again.batch.claims == ["token-1"]


def test_a_batch_whose_reply_was_lost_is_written_first_after_reconnecting_and_counts_once():
    worker = Worker(children=2)
    jobs = sent(worker.claimed(*tasks(2)))
    (lost,) = only(msg.Finish, worker.ended(1, *jobs[1]))
    worker.tell(msg.Unwritten(lost.batch, "lost", "closed"), msg.Disconnected())
    worker.ended(2, *jobs[2])

    commands = worker.tell(msg.Connected())

    (again,) = only(msg.Finish, commands)
    assert again.batch.ended == lost.batch.ended
    worker.tell(msg.Written(again.batch, frozenset()))  # it had been committed
    assert worker.ledger.finished == {"task": 1}
    assert worker.ledger.late == 0


def test_a_late_outcome_is_counted_as_late():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    (finish,) = only(msg.Finish, worker.ended(1, job))

    worker.tell(msg.Written(finish.batch, frozenset()))

    assert worker.ledger.late == 1
    assert worker.ledger.finished == {}


def test_an_outcome_that_cannot_be_stored_fails_its_own_job_only():
    world = World()
    for _ in range(40):
        world.database.insert(QUEUES[0])
    world.ledger.lanes[0].pace.measure("task", 1e-5)
    world.connect()
    bad = world.database.jobs[sorted(world.database.jobs)[17]].id
    while not any(child.inbox for child in world.children.values()):
        world.cycle()
        while world.unborn:
            world.start_child()
        while world.units:
            world.answer()
    (child,) = world.children.values()
    while sent_one := world.begin(child):
        result = UNSTORABLE if sent_one.held.row.id == bad else None
        world.end(child, seconds=1e-5, result=result)

    world.run_until(lambda: not world.database.jobs)

    kinds = {id: kinds for id, kinds in world.database.ended.items() if kinds != ["succeeded"]}
    assert kinds == {bad: ["failed"]}


def test_the_failure_that_replaces_an_unstorable_outcome_says_so():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    (finish,) = only(msg.Finish, worker.ended(1, job))

    commands = worker.tell(msg.Unwritten(finish.batch, "value", "invalid byte sequence"))

    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.kind, ended.result) == ("failed", None)
    assert "could not be stored: invalid byte sequence" in ended.error["message"]


def test_a_failure_that_cannot_be_stored_either_is_tried_again_calmly():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    (finish,) = only(msg.Finish, worker.ended(1, job))
    (failure,) = only(msg.Finish, worker.tell(msg.Unwritten(finish.batch, "value", "no")))

    at_once = worker.tell(msg.Unwritten(failure.batch, "value", "a check of the bundle"))
    then = worker.later(worker.ledger.next_wake(worker.now) - worker.now)

    assert only(msg.Finish, at_once) == []
    assert only(msg.Finish, then)


def test_halves_of_a_refused_batch_end_their_claim_with_the_last_one_written():
    worker = Worker()
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(4)))[1]
    (finish,) = only(msg.Finish, worker.ended(1, *jobs, seconds=1e-5))
    (first,) = only(msg.Finish, worker.tell(msg.Unwritten(finish.batch, "value", "no")))
    commands = worker.tell(msg.Unwritten(first.batch, "value", "no"))
    written = 0

    while finishes := only(msg.Finish, commands):
        batch = finishes[0].batch
        written += len(batch.ended)
        assert (batch.claims == ["token-1"]) == (written == 4)
        commands = worker.tell(
            msg.Written(batch, frozenset(ended.held.row.id for ended in batch.ended))
        )

    assert written == 4


def test_a_report_that_comes_twice_counts_once():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.ended(1, job)

    commands = worker.ended(1, job)

    assert only(msg.Finish, commands) == []
    assert worker.ledger.crew.members[1].reported == 1


# Jobs that end unrun


def test_an_expired_job_is_finished_unrun():
    worker = Worker()

    commands = worker.claimed(claimed_row(expired=True))

    assert sent(commands) == {}
    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.kind, ended.started) == ("expired", None)


def test_a_job_that_crashed_too_often_elsewhere_is_quarantined_unrun():
    worker = Worker()

    commands = worker.claimed(claimed_row(crashes=MAX_CRASHES))

    assert sent(commands) == {}
    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.kind, ended.started) == ("quarantined", None)


# Death of a child


def test_the_job_that_a_dead_child_had_begun_is_charged_and_the_rest_goes_to_another():
    worker = Worker(children=2)
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(6)))
    worker.ended(1, jobs[1][0])

    commands = worker.tell(worker.death(1, 2, {"message": "killed"}))

    (crash,) = only(msg.Crash, commands)
    assert list(crash.jobs) == [jobs[1][1]]
    assert sent(commands)[2] == [jobs[1][2]]


def test_nobody_is_charged_for_the_death_of_an_idle_child():
    worker = Worker()

    commands = worker.tell(worker.death(1, 0, {}))

    assert only(msg.Crash, commands) == []


def test_nobody_is_charged_if_a_dead_child_had_begun_several_and_each_runs_again_alone():
    worker = Worker(children=2, pool="threads")
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(3)))[1]

    commands = worker.tell(worker.death(1, 2, {}), msg.ChildStarted(2))
    first = sent(commands)[2]
    second = sent(worker.ended(2, *first))[2]
    rest = sent(worker.ended(2, *second))[2]

    assert only(msg.Crash, commands) == []
    assert [first, second, rest] == [jobs[:1], jobs[1:2], jobs[2:]]


def test_nobody_is_charged_if_the_worker_killed_the_child():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    assert only(msg.KillChild, worker.tell(msg.StopAsked(True)))

    commands = worker.tell(worker.death(1, 1, {}))

    assert only(msg.Crash, commands) == []
    assert released(commands) == [job]


def test_the_third_crash_quarantines_with_its_cause():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row(crashes=MAX_CRASHES - 1)))[1]
    cause = {"type": "pgtasks.Crash", "message": "was killed by signal 11"}

    commands = worker.tell(worker.death(1, 1, cause))

    assert only(msg.Crash, commands) == []
    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.held, ended.kind, ended.error) == (job, "quarantined", cause)


def test_what_a_dead_child_had_reported_is_not_charged():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.ended(1, job)

    commands = worker.tell(worker.death(1, 1, {}))

    assert only(msg.Crash, commands) == []


# Waiting too long, and giving back


def test_jobs_that_wait_too_long_for_a_child_are_given_back():
    worker = Worker()
    worker.measure(1.0)
    worker.claimed(*tasks(3))

    before = worker.later(WAIT_LIMIT - 0.1)
    after = worker.later(0.2)

    assert released(before) == []
    assert [held.row.seq for held in released(after)] == [2, 3]


def test_jobs_of_a_steady_flow_are_not_given_back():
    worker = Worker()
    worker.measure(0.001)
    flow: list[msg.Held] = []
    given_back: list[msg.Held] = []

    for _ in range(int(3 * WAIT_LIMIT / 0.005)):
        commands = worker.later(0.005)
        done = flow[:5]
        commands += worker.ended(1, *done) if done else []
        flow = flow[5:]
        if len(worker.ledger.lanes[0].waiting) < 50:
            commands += worker.claimed(*tasks(60))
        flow += sent(commands).get(1, [])
        given_back += released(commands)
        for finish in only(msg.Finish, commands):
            ids = frozenset(ended.held.row.id for ended in finish.batch.ended)
            flow += sent(worker.tell(msg.Written(finish.batch, ids))).get(1, [])

    assert given_back == []


def test_a_refused_release_is_asked_for_again_after_a_pause():
    worker = Worker()
    worker.measure(1.0)
    worker.claimed(*tasks(3))
    (release,) = only(msg.Release, worker.later(WAIT_LIMIT + 1))

    at_once = worker.tell(msg.Unreleased(release))  # say, the server is read-only
    wake = worker.ledger.next_wake(worker.now)
    then = worker.later(wake - worker.now)

    assert only(msg.Release, at_once) == []
    assert 0 < wake - 106.0 <= 0.2
    assert only(msg.Release, then)[0].jobs == release.jobs


def test_a_claim_does_not_end_with_a_release_while_a_job_of_it_runs():
    worker = Worker()
    worker.measure(1.0)
    running = sent(worker.claimed(*tasks(3)))[1]

    (release,) = only(msg.Release, worker.later(WAIT_LIMIT + 1))
    (again,) = only(msg.Release, [*worker.tell(msg.Unreleased(release)), *worker.later(1.0)])
    (finish,) = only(msg.Finish, [*worker.tell(msg.Released(again)), *worker.ended(1, *running)])

    assert release.claims == []
    assert again.claims == []
    assert again.jobs == release.jobs
    assert finish.batch.claims == ["token-1"]


def test_a_claim_does_not_end_with_a_release_while_an_outcome_of_it_is_unwritten():
    worker = Worker()
    worker.measure(1.0)
    first = sent(worker.claimed(*tasks(2)))[1]
    (finish,) = only(msg.Finish, worker.ended(1, *first))  # the second is sent
    worker.tell(msg.StopAsked(True))

    (release,) = only(msg.Release, worker.tell(worker.death(1, 2, {})))
    commands = worker.tell(msg.Unwritten(finish.batch, "again", "deadlock"), msg.Released(release))
    commands += worker.later(1.0)

    assert [held.row.seq for held in release.jobs] == [2]
    assert release.claims == []
    assert only(msg.Finish, commands)[0].batch.claims == ["token-1"]


def test_what_a_claim_lost_is_given_back_and_what_is_held_is_not():
    worker = Worker(children=2)
    jobs = sent(worker.claimed(*tasks(2)))
    worker.tell(msg.Disconnected())

    commands = worker.tell(msg.Connected())

    (lost,) = only(msg.ReleaseLost, commands)
    assert list(lost.known) == ["token-1"]
    assert jobs.keys() == {1, 2}


def test_release_of_lost_claims_knows_unwritten_and_unreturned_jobs():
    worker = Worker()
    worker.measure(1.0)
    running = sent(worker.claimed(*tasks(1)))[1]
    worker.claimed(*tasks(1))
    (finish,) = only(msg.Finish, worker.ended(1, *running))
    worker.tell(msg.Unwritten(finish.batch, "lost", "closed"), msg.Disconnected())

    (lost,) = only(msg.ReleaseLost, worker.tell(msg.Connected()))

    assert set(lost.known) == {"token-1", "token-2"}


def test_a_refused_release_of_lost_claims_is_asked_for_again():
    worker = Worker()
    worker.tell(msg.Disconnected())
    assert only(msg.ReleaseLost, worker.tell(msg.Connected()))

    commands = worker.tell(msg.LostKept()) + worker.later(2.0)

    assert len(only(msg.ReleaseLost, commands)) == 1


def test_lost_claims_are_not_released_while_a_claim_is_under_way():
    worker = Worker()
    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))

    during = worker.tell(msg.LostKept()) + worker.later(20.0)
    wake = worker.ledger.next_wake(worker.now)
    after = worker.tell(msg.Claimed(order, "token", tasks(1), 0.001))

    assert only(msg.ReleaseLost, during) == []
    assert wake > worker.now
    assert only(msg.ReleaseLost, after) == [msg.ReleaseLost(("token",))]


def test_lost_claims_are_looked_for_now_and_then():
    worker = Worker()

    found = [one for _ in range(60) for one in only(msg.ReleaseLost, worker.later(1.0))]

    assert 3 <= len(found) <= 10


def test_nothing_goes_to_the_database_while_it_is_away():
    worker = Worker(children=2)
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(6)))
    worker.tell(msg.Disconnected())

    commands = worker.ended(1, *jobs[1])
    commands += worker.tell(worker.death(2, 1, {}), msg.Woken(None))
    commands += worker.later(10.0)

    assert {type(one) for one in commands} <= {msg.Send, msg.Spawn}


def test_the_parent_sleeps_while_the_database_is_away_and_outcomes_wait():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.tell(msg.Disconnected())
    worker.ended(1, job)
    worker.later(5.0)

    assert worker.ledger.next_wake(worker.now) > worker.now + 0.5


def test_a_lost_lease_forgets_what_was_not_begun():
    worker = Worker()
    worker.measure(1.0)
    running = sent(worker.claimed(*tasks(3)))[1]

    commands = worker.tell(msg.LeaseLost())
    commands += worker.later(WAIT_LIMIT + 1)

    assert released(commands) == []
    assert not worker.ledger.lanes[0].waiting
    (finish,) = only(msg.Finish, worker.ended(1, *running))
    worker.tell(msg.Written(finish.batch, frozenset()))
    assert worker.ledger.late == 1


# The end


def test_a_drained_worker_claims_and_sends_nothing_and_gives_back_what_waits():
    worker = Worker(children=2)
    worker.measure(1.0)
    worker.claimed(*tasks(5))

    commands = worker.tell(msg.StopAsked(), msg.Woken(None))

    assert len(released(commands)) == 3
    assert {type(one) for one in commands} == {msg.Release}
    assert not worker.ledger.done


def test_children_are_closed_as_they_run_out_of_jobs():
    worker = Worker(children=2)
    worker.measure(1.0)
    (job,) = sent(worker.claimed(claimed_row())).popitem()[1]
    busy = next(number for number, one in worker.ledger.crew.members.items() if not one.empty)

    first = worker.tell(msg.StopAsked())
    second = worker.ended(busy, job)

    assert only(msg.CloseChild, first) == [msg.CloseChild(3 - busy)]
    assert only(msg.CloseChild, second) == [msg.CloseChild(busy)]


def test_a_worker_is_done_when_all_is_written_and_all_children_are_gone():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.tell(msg.StopAsked())
    (finish,) = only(msg.Finish, worker.ended(1, job))
    worker.tell(worker.death(1, 1, {}))
    assert not worker.ledger.done

    worker.tell(msg.Written(finish.batch, frozenset([job.row.id])))

    assert worker.ledger.done


def test_a_worker_is_not_done_before_its_release_is_committed():
    worker = Worker()
    worker.measure(1.0)
    (job,) = sent(worker.claimed(*tasks(2)))[1]
    (release,) = only(msg.Release, worker.tell(msg.StopAsked(True)))
    (second,) = only(msg.Release, worker.tell(worker.death(1, 1, {})))
    assert not worker.ledger.done

    commands = worker.tell(msg.Released(release), msg.Released(second))
    claims = [*release.claims, *second.claims]
    for last in only(msg.Release, commands):  # the claim, which ended by both
        claims += last.claims
        worker.tell(msg.Released(last))

    assert (*release.jobs, *second.jobs)[-1] == job
    assert claims == ["token-1"]
    assert worker.ledger.done


def test_a_claim_that_is_answered_while_draining_is_given_back():
    worker = Worker()
    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))
    worker.tell(msg.StopAsked())
    worker.tell(worker.death(1, 0, {}))
    assert not worker.ledger.done

    commands = worker.tell(msg.Claimed(order, "token", tasks(1), 0.001))

    (release,) = only(msg.Release, commands)
    assert len(release.jobs) == 1
    worker.tell(msg.Released(release))
    assert worker.ledger.done


def test_a_second_signal_kills_and_so_does_the_end_of_the_grace_period():
    for hurry in ("signal", "grace"):
        worker = Worker(grace=5.0)
        worker.claimed(claimed_row())
        assert only(msg.KillChild, worker.tell(msg.StopAsked())) == []
        assert only(msg.KillChild, worker.later(4.9)) == []
        assert worker.ledger.next_wake(worker.now) <= worker.now + 0.11

        commands = worker.tell(msg.StopAsked()) if hurry == "signal" else worker.later(0.2)

        assert only(msg.KillChild, commands) == [msg.KillChild(1)]


def test_a_child_that_hangs_after_its_last_job_is_killed_too():
    worker = Worker(grace=5.0)
    assert only(msg.CloseChild, worker.tell(msg.StopAsked())) == [msg.CloseChild(1)]

    commands = worker.later(6.0)  # say, a stop hook of the app that never returns

    assert only(msg.KillChild, commands) == [msg.KillChild(1)]


def test_the_parent_does_not_spin_after_the_grace_period():
    worker = Worker(grace=5.0)
    worker.claimed(claimed_row())
    worker.tell(msg.StopAsked())
    worker.later(6.0)

    assert worker.ledger.next_wake(worker.now) > worker.now + 0.1


def test_a_worker_that_never_connected_can_stop():
    ledger = Ledger(WorkerOptions(), QUEUES, 0.0)

    ledger.handle(msg.StopAsked(), 0.0)
    list(ledger.commands(0.0))

    assert ledger.done
    assert ledger.phase is Phase.STOPPED


# For the parent


def test_running_names_what_children_have_begun():
    worker = Worker(children=2)
    worker.measure(1e-5)
    jobs = sent(worker.claimed(*tasks(6)))
    worker.ended(1, jobs[1][0], seconds=1e-5)

    running = worker.ledger.running({1: worker.slots(1, 2), 2: []})

    assert running == [jobs[1][1]]


# Memory


def test_nothing_is_kept_of_jobs_that_are_gone():
    world = World(concurrency=2)
    weights = []

    for _ in range(20):
        for number in range(30):
            start_at = world.now + 0.5 if number % 7 == 0 else None
            world.database.insert(QUEUES[number % 2], priority=number % 4, start_at=start_at)
        world.run_until(lambda: not world.database.jobs and not world.units)
        weights.append(weight(world.ledger))

    assert max(weights) <= weights[0] + 5


@pytest.mark.parametrize("concurrency", [1, 4])
def test_everything_that_goes_well_is_done_once(concurrency: int):
    world = World(concurrency=concurrency)
    for number in range(300):
        world.database.insert(QUEUES[number % 2], priority=number % 3)

    world.run_until(lambda: not world.database.jobs and not world.units)

    assert [kinds for kinds in world.database.ended.values() if kinds != ["succeeded"]] == []
    world.stop_and_check()


def test_nothing_more_is_claimed_while_outcomes_pile_up():
    worker = Worker()
    ended = tasks(OUTCOMES_LIMIT + 2 * FLUSH_BATCH, expired=True)
    finish = only(msg.Finish, worker.claimed(*ended))[0]

    assert only(msg.Claim, worker.tell(msg.Woken(None))) == []

    written = frozenset(one.held.row.id for one in finish.batch.ended)
    assert only(msg.Claim, worker.tell(msg.Written(finish.batch, written))) != []
