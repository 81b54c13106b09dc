"""What the ledger decides about limits, deaths, cancels and doubts, one situation at a time."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks.worker import messages as msg
from pgtasks.worker.limits import CANCEL_GRACE
from pgtasks.worker.messages import Order, Trust
from tests.unit.lone_worker import Worker, only, released, sent, tasks
from tests.unit.worker_fakes import QUEUES, claimed_row
from tests.unit.worker_model import TASKS, World, weight

# Time limits


LIMITED = msg.TaskFacts(soft_time_limit=2.0, time_limit=5.0)
FACTS = {
    "limited": LIMITED,
    "limited coroutine": LIMITED._replace(asynchronous=True),
    "once": msg.TaskFacts(at_most_once=True),
    "once limited": msg.TaskFacts(at_most_once=True, time_limit=5.0),
    "task": msg.TaskFacts(),
    "transactional": msg.TaskFacts(transactional=True),
}


def begun(worker: Worker, *children: int) -> msg.Seen:
    """Return what slates say if these children have begun all they have."""
    return msg.Seen({child: worker.slots(child, 10**6) for child in children})


def over_limit(worker: Worker, task: str = "limited") -> tuple[msg.Held, list[Any]]:
    """Let a job of the first child run over its limit, and its child die of that."""
    (job,) = sent(worker.claimed(claimed_row(task=task)))[1]
    worker.tell(begun(worker, 1))
    worker.now += 5.0
    slots = worker.slots(1, 1)
    assert only(msg.KillChild, worker.tell()) == [msg.KillChild(1)]
    return job, worker.tell(msg.ChildDied(1, slots, {}))


def decisions(commands: list[Any]) -> list[tuple[int, str, float]]:
    return [
        (one.child, one.jobs[0].row.id, one.over_limit)
        for one in only(msg.Send, commands)
        if one.over_limit is not None
    ]


def test_a_job_is_warned_at_its_soft_limit_and_its_child_killed_at_the_hard_one():
    worker = Worker(facts=FACTS)
    (job,) = sent(worker.claimed(claimed_row(task="limited")))[1]
    worker.tell(begun(worker, 1))

    assert worker.ledger.next_wake(worker.now + 1.5) == worker.now + 2.0
    assert only(msg.Interrupt, worker.later(2.0)) == [
        msg.Interrupt(1, job.serial, Order.SOFT_LIMIT)
    ]
    assert only(msg.KillChild, worker.later(2.9)) == []
    assert only(msg.KillChild, worker.later(0.1)) == [msg.KillChild(1)]
    assert only(msg.KillChild, worker.later(1.0)) == []


def test_a_call_may_have_limits_of_its_own():
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task="limited", options='{"soft_time_limit":0.5,"time_limit":1}'))
    worker.tell(begun(worker, 1))

    assert only(msg.Interrupt, worker.later(0.5))
    assert only(msg.KillChild, worker.later(0.5))


@pytest.mark.parametrize(
    "options", ['{"time_limit":"soon"}', '["time_limit"]', '"time_limit', "{}"]
)
def test_limits_that_are_none_do_not_disturb_the_parent(options: str):
    worker = Worker(facts=FACTS)

    worker.claimed(claimed_row(task="task", options=options))

    assert not worker.ledger.limits.active


def test_another_child_says_once_what_the_limit_of_a_killed_job_means():
    worker = Worker(children=2, facts=FACTS)
    job, commands = over_limit(worker)

    assert decisions(commands) == [(2, job.row.id, 5.0)]
    assert decisions(worker.later(1.0)) == []
    assert only(msg.Crash, commands) == []
    (decided,) = worker.ledger.crew.members[2].jobs()
    (finish,) = only(msg.Finish, worker.ended(2, decided, kind="failed"))
    assert [(one.held.row.id, one.kind) for one in finish.batch.ended] == [(job.row.id, "failed")]


def test_a_child_that_is_killed_for_one_reason_is_not_killed_for_the_next():
    worker = Worker(facts=FACTS, grace=2.0)
    (job,) = sent(worker.claimed(claimed_row(task="limited")))[1]
    worker.tell(cancel(job, interrupt=True))
    worker.tell(begun(worker, 1))

    assert only(msg.KillChild, worker.later(2.0)) == [msg.KillChild(1)]
    assert only(msg.KillChild, worker.later(3.0)) == []  # its hard limit


def test_a_job_that_was_being_decided_when_a_neighbour_may_have_killed_the_child_is_decided_again():
    facts = {name: FACTS[name] for name in ("limited", "limited coroutine", "task")}
    worker = Worker(children=2, async_concurrency=3, facts=facts)
    job, _ = over_limit(worker)
    (coroutine,) = sent(worker.claimed(claimed_row(task="limited coroutine"), lane=1))[2]

    commands = worker.tell(worker.death(2, 10, {"signal": 11}), msg.ChildStarted(3))

    assert only(msg.Crash, commands) == []
    assert decisions(commands) == [(3, job.row.id, 5.0)]
    assert worker.ledger.aftermath.suspects == [coroutine]


def test_after_a_lost_lease_others_decide():
    worker = Worker(children=2, facts=FACTS)
    over_limit(worker)
    (decided,) = worker.ledger.crew.members[2].jobs()
    worker.tell(msg.LeaseLost())

    record = (decided.serial, "skipped", None, None, None, None, None)
    commands = worker.tell(msg.Reported(2, [record]))

    assert decisions(commands) == []
    assert released(commands) == [decided]


def test_a_decision_does_not_make_a_task_a_short_one():
    worker = Worker(children=2, facts=FACTS)
    over_limit(worker)
    (decided,) = worker.ledger.crew.members[2].jobs()

    worker.ended(2, decided, kind="failed", seconds=0.0001)

    assert worker.ledger.lanes[0].pace.expect("limited") == 5.0


def test_a_decision_in_the_pipe_of_a_child_that_dies_is_made_by_the_next():
    worker = Worker(children=2, facts=FACTS)
    job, _ = over_limit(worker)

    commands = worker.tell(worker.death(2, 0, {"signal": 9}), msg.ChildStarted(3))

    assert decisions(commands) == [(3, job.row.id, 5.0)]


def test_a_job_whose_decision_takes_a_child_down_is_charged():
    worker = Worker(children=2, facts=FACTS)
    job, _ = over_limit(worker)

    commands = worker.tell(worker.death(2, 10, {"signal": 11}), msg.ChildStarted(3))

    assert decisions(commands) == []
    assert [one.row.id for one in only(msg.Crash, commands)[0].jobs] == [job.row.id]


def test_a_decision_is_made_though_the_lease_was_in_doubt_meanwhile():
    worker = Worker(children=2, facts=FACTS)
    job, _ = over_limit(worker, "once limited")
    (decided,) = worker.ledger.crew.members[2].jobs()
    worker.tell(msg.TrustChanged(Trust.LOST))
    # The child that shall decide is killed for it: its task must not run twice.
    worker.tell(worker.death(2, 0, {"signal": 9}), msg.ChildStarted(3))
    below = worker.ledger.skip_below

    commands = worker.tell(msg.TrustChanged(Trust.SURE))

    assert decisions(commands) == [(3, job.row.id, 5.0)]
    assert decided.serial < below <= only(msg.Send, commands)[0].jobs[0].serial


def test_while_draining_a_child_is_started_if_none_is_left_to_decide():
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task="limited"))
    worker.tell(begun(worker, 1), msg.StopAsked())
    worker.later(5.0)

    commands = worker.tell(worker.death(1, 1, {"signal": 9}))
    assert only(msg.Spawn, commands) == [msg.Spawn()]
    commands = worker.tell(msg.ChildStarted(2))
    assert len(decisions(commands)) == 1
    assert only(msg.CloseChild, commands) == []
    (decided,) = worker.ledger.crew.members[2].jobs()

    commands = worker.ended(2, decided, kind="failed")

    assert only(msg.CloseChild, commands) == [msg.CloseChild(2)]
    assert only(msg.Finish, commands)


def test_while_draining_children_that_die_at_once_do_not_follow_each_other_without_a_pause():
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task="limited"))
    worker.tell(begun(worker, 1), msg.StopAsked())
    worker.later(5.0)
    worker.tell(worker.death(1, 1, {"signal": 9}))
    worker.tell(msg.ChildStarted(2))

    at_once = worker.tell(worker.death(2, 0, {}))
    wake = worker.ledger.next_wake(worker.now)
    then = worker.later(wake - worker.now)

    assert only(msg.Spawn, at_once) == []
    assert wake > 105.5
    assert only(msg.Spawn, then) == [msg.Spawn()]


def test_while_draining_in_doubt_nothing_is_decided_before_the_lease_is_sure_again():
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task="limited"))
    worker.tell(begun(worker, 1), msg.StopAsked())
    worker.later(5.0)

    doubting = worker.tell(msg.TrustChanged(Trust.UNSURE), worker.death(1, 1, {"signal": 9}))
    sure = worker.tell(msg.TrustChanged(Trust.SURE))

    assert only(msg.Spawn, doubting) == []
    assert only(msg.Spawn, sure) == [msg.Spawn()]


@pytest.mark.parametrize(("task", "fate"), [("limited", "crash"), ("once limited", "failed")])
def test_if_the_worker_is_killed_before_a_decision_the_job_goes_back_or_is_lost(
    task: str, fate: str
):
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task=task))
    worker.tell(begun(worker, 1))
    worker.later(5.0)
    worker.tell(worker.death(1, 1, {"signal": 9}))

    commands = worker.tell(msg.StopAsked(True))

    crashed = [held for one in only(msg.Crash, commands) for held in one.jobs]
    failed = [one for finish in only(msg.Finish, commands) for one in finish.batch.ended]
    assert (len(crashed), len(failed)) == ((1, 0) if fate == "crash" else (0, 1))
    assert decisions(commands) == []


def test_neighbours_of_a_job_that_is_killed_for_its_limit_run_again_uncharged():
    facts = {name: FACTS[name] for name in ("limited coroutine", "task")}
    worker = Worker(async_concurrency=3, facts=facts)
    commands = worker.claimed(claimed_row(task="limited coroutine"), lane=1)
    commands += worker.claimed(claimed_row())
    jobs = {held.row.task: held for one in only(msg.Send, commands) for held in one.jobs}
    worker.tell(begun(worker, 1))
    assert only(msg.Interrupt, worker.later(5.0)) == [
        msg.Interrupt(1, jobs["limited coroutine"].serial, Order.HARD_LIMIT)
    ]
    assert only(msg.KillChild, worker.later(CANCEL_GRACE)) == [msg.KillChild(1)]

    commands = worker.tell(worker.death(1, 10, {"signal": 9}), msg.ChildStarted(2))

    assert only(msg.Crash, commands) == []
    assert [job for _, job, _ in decisions(commands)] == [jobs["limited coroutine"].row.id]
    plain = [one.jobs for one in only(msg.Send, commands) if one.over_limit is None]
    assert plain == [[jobs["task"]]]


# At most once


def test_an_at_most_once_job_that_was_running_when_its_child_died_is_lost():
    worker = Worker(facts=FACTS)
    (job,) = sent(worker.claimed(claimed_row(task="once"), lane=1))[1]

    commands = worker.tell(worker.death(1, 1, {"message": "was killed by signal 9"}))

    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.held, ended.kind) == (job, "failed")
    assert ended.error["type"] == "pgtasks.errors.JobLostError"
    assert "was killed by signal 9" in ended.error["message"]


def test_an_at_most_once_job_that_was_not_begun_runs_elsewhere():
    worker = Worker(children=2, facts=FACTS)
    (job,) = sent(worker.claimed(claimed_row(task="once"), lane=1))[1]

    commands = worker.tell(worker.death(1, 0, {}))

    assert sent(commands)[2] == [job]


def test_an_at_most_once_job_is_lost_if_the_worker_is_killed():
    worker = Worker(facts=FACTS)
    worker.claimed(claimed_row(task="once"), lane=1)
    worker.tell(msg.StopAsked(True))

    commands = worker.tell(worker.death(1, 1, {}))

    assert released(commands) == []
    assert [one.kind for one in only(msg.Finish, commands)[0].batch.ended] == ["failed"]


# Trust


def test_in_doubt_nothing_is_claimed_or_sent_and_then_work_goes_on():
    worker = Worker()
    worker.measure(1.0)
    (job,) = sent(worker.claimed(*tasks(2)))[1]
    worker.tell(msg.TrustChanged(Trust.UNSURE))

    doubting = [*worker.ended(1, job), *worker.tell(msg.Woken(None))]
    sure = worker.tell(msg.TrustChanged(Trust.SURE))

    assert {type(one) for one in doubting} == {msg.Finish}
    assert len(sent(sure)[1]) == 1


def test_without_trust_what_has_not_begun_goes_back_and_at_most_once_jobs_are_ended():
    worker = Worker(children=2, facts=FACTS)
    worker.measure(1e-4)
    worker.measure(1e-4, "once")
    (once,) = sent(worker.claimed(claimed_row(task="once"), lane=1)).values()
    jobs = sent(worker.claimed(*tasks(3)))

    commands = worker.tell(msg.TrustChanged(Trust.LOST))

    killed = [one.child for one in only(msg.KillChild, commands)]
    assert killed == [
        number for number, one in worker.ledger.crew.members.items() if one.killed_for
    ]
    assert len(killed) == 1
    skips = only(msg.Skip, commands)
    assert [one.child for one in skips] == [1, 2]
    most = max(held.serial for some in (*jobs.values(), once) for held in some)
    assert {one.below for one in skips} == {most + 1}


def test_a_child_that_is_started_after_a_lost_lease_skips_what_was_claimed_before_too():
    worker = Worker()
    worker.claimed(claimed_row())
    worker.tell(msg.LeaseLost())

    commands = worker.tell(msg.ChildStarted(2))

    assert only(msg.Skip, commands) == [msg.Skip(2, 2, [])]


def test_what_is_skipped_in_doubt_goes_back():
    worker = Worker()
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.tell(msg.TrustChanged(Trust.LOST))

    commands = worker.tell(msg.Reported(1, [(job.serial, "skipped", None, None, None, None, None)]))

    assert released(commands) == [job]


def test_a_claim_that_comes_without_trust_goes_back():
    worker = Worker()
    (order,) = only(msg.Claim, worker.tell(msg.Woken(QUEUES[0])))
    worker.tell(msg.TrustChanged(Trust.LOST))

    commands = worker.tell(msg.Claimed(order, "token", tasks(1), 0.001))

    assert len(released(commands)) == 1


# Cancel


def cancel(*jobs: msg.Held, interrupt: bool = False) -> msg.CancelAsked:
    asked = {job.token: frozenset(one.row.id for one in jobs) for job in jobs}
    return msg.CancelAsked(asked, asked if interrupt else {})


def test_a_job_that_waits_is_cancelled_at_once():
    worker = Worker()
    worker.measure(1.0)
    worker.claimed(*tasks(2))
    (waiting,) = worker.ledger.lanes[0].waiting

    commands = worker.tell(cancel(waiting))

    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.held, ended.kind, ended.started) == (waiting, "cancelled", None)


def test_a_cancelled_job_in_a_pipe_is_skipped_and_the_list_of_these_is_emptied_again():
    worker = Worker()
    worker.measure(1e-4)
    jobs = sent(worker.claimed(*tasks(3)))[1]

    asked = worker.tell(cancel(jobs[1]))
    again = worker.tell(cancel(jobs[1]))
    record = (jobs[1].serial, "skipped", None, None, None, None, None)
    commands = worker.tell(msg.Reported(1, [record]))

    assert only(msg.Skip, asked) == [msg.Skip(1, 0, [jobs[1].serial])]
    assert only(msg.Skip, again) == []
    assert only(msg.Skip, commands) == [msg.Skip(1, 0, [])]
    assert released(commands) == []
    assert [one.kind for one in worker.ledger.outbox.outcomes] == ["cancelled"]


def test_a_running_job_is_interrupted_only_if_that_was_asked_for_and_then_killed():
    worker = Worker(grace=10.0)
    (job,) = sent(worker.claimed(claimed_row()))[1]
    worker.tell(cancel(job))
    assert only(msg.Interrupt, worker.tell(begun(worker, 1))) == []

    worker.tell(cancel(job, interrupt=True))
    assert worker.ledger.next_wake(worker.now) == worker.now
    commands = worker.tell(begun(worker, 1))
    assert only(msg.Interrupt, commands) == [msg.Interrupt(1, job.serial, Order.CANCEL)]
    assert only(msg.KillChild, worker.later(9.9)) == []
    assert only(msg.KillChild, worker.later(0.1)) == [msg.KillChild(1)]
    commands = worker.tell(worker.death(1, 1, {"signal": 9}))

    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.held, ended.kind) == (job, "cancelled")


def test_a_cancelled_job_that_took_its_child_down_does_not_run_again():
    worker = Worker(children=2, pool="threads")
    jobs = sent(worker.claimed(*tasks(2)))[1]
    worker.tell(cancel(jobs[0]))

    commands = worker.tell(worker.death(1, 2, {}), msg.ChildStarted(2))

    assert sent(commands) == {2: [jobs[1]]}
    (ended,) = only(msg.Finish, commands)[0].batch.ended
    assert (ended.held, ended.kind) == (jobs[0], "cancelled")


# Transactional jobs


def dead_in_session(
    worker: Worker, cause: dict[str, Any], session: int = 4711
) -> tuple[msg.Held, list[Any]]:
    (job,) = sent(worker.claimed(claimed_row(task="transactional")))[1]
    running = [msg.Running(job.serial, worker.now, session)]
    return job, worker.tell(msg.ChildDied(1, running, cause))


@pytest.mark.parametrize("alive", [True, False])
def test_a_transactional_job_whose_child_died_is_charged_only_if_it_had_not_committed(alive: bool):
    worker = Worker(facts=FACTS)
    job, commands = dead_in_session(worker, {"message": "killed"})
    assert only(msg.Settle, commands) == [msg.Settle(job, 4711)]
    assert only(msg.Crash, commands) == []

    commands = worker.tell(msg.Settled(job, alive))

    crashed = [list(one.jobs) for one in only(msg.Crash, commands)]
    told = [(one.ended.held, one.ended.kind, one.late) for one in only(msg.Tell, commands)]
    assert (crashed, told) == (([[job]], []) if alive else ([], [(job, "succeeded", False)]))
    assert worker.ledger.finished == ({} if alive else {"transactional": 1})


def test_a_question_about_a_session_is_asked_until_it_is_answered():
    worker = Worker(facts=FACTS)
    _, commands = dead_in_session(worker, {})
    (settle,) = only(msg.Settle, commands)

    assert only(msg.Settle, worker.tell(msg.Unsettled(settle))) == []
    assert only(msg.Settle, worker.later(0.2)) == [settle]


def test_a_worker_does_not_end_before_it_knows_what_became_of_a_session():
    worker = Worker(facts=FACTS)
    job, _ = dead_in_session(worker, {})
    worker.tell(msg.StopAsked(), msg.ChildDied(2, (), {}))
    assert not worker.ledger.done

    (release,) = only(msg.Release, worker.tell(msg.Settled(job, alive=False)))
    worker.tell(msg.Released(release))
    assert release.claims == ["token-1"]
    assert worker.ledger.done


def test_a_job_that_was_rescued_while_its_session_was_asked_about_had_not_committed():
    worker = Worker(facts=FACTS)
    job, _ = dead_in_session(worker, {})
    worker.tell(msg.LeaseLost())

    commands = worker.tell(msg.Settled(job, alive=False))

    assert only(msg.Tell, commands) == []
    assert worker.ledger.finished == {}
    assert worker.ledger.outbox.claims == {}


@pytest.mark.parametrize("kind", ["committed", "late"])
def test_a_job_that_its_child_settled_by_itself_is_told_and_not_written(kind: str):
    worker = Worker(facts=FACTS)
    (job,) = sent(worker.claimed(claimed_row(task="transactional")))[1]

    commands = worker.ended(1, job, kind=kind)

    assert only(msg.Finish, commands) == []
    (told,) = only(msg.Tell, commands)
    assert (told.ended.kind, told.late) == ("succeeded", kind == "late")
    assert worker.ledger.late == (kind == "late")
    assert [one.claims for one in only(msg.Release, commands)] == [["token-1"]]


# Suspects


def test_a_suspect_whose_child_dies_before_it_began_is_still_one():
    worker = Worker(children=2, pool="threads")
    jobs = sent(worker.claimed(*tasks(2)))[1]
    worker.claimed(*tasks(1))
    commands = worker.tell(worker.death(1, 2, {"signal": 9}), msg.ChildStarted(2))
    assert sent(commands) == {2: [jobs[0]]}

    commands = worker.tell(worker.death(2, 0, {"signal": 9}), msg.ChildStarted(3))
    first = sent(commands)[3]
    second = sent(worker.ended(3, *first))[3]

    assert [first, second] == [jobs[1:], jobs[:1]]


def test_a_suspect_that_takes_its_child_down_again_is_charged():
    worker = Worker(children=2, pool="threads")
    jobs = sent(worker.claimed(*tasks(2)))[1]
    worker.tell(worker.death(1, 2, {"signal": 9}), msg.ChildStarted(2))

    commands = worker.tell(worker.death(2, 1, {"signal": 9}), msg.ChildStarted(3))

    assert [list(one.jobs) for one in only(msg.Crash, commands)] == [jobs[:1]]
    assert sent(commands) == {3: jobs[1:]}


def test_nothing_is_kept_of_jobs_that_ended_in_any_other_way():
    world = World(TASKS, concurrency=2, async_concurrency=2, grace=2.0)
    world.connect()
    weights = []

    for _ in range(12):
        jobs = [world.database.insert(QUEUES[0], task=task) for task in sorted(TASKS) * 2]
        for _ in range(8):
            world.cycle()
            while world.unborn:
                world.start_child()
            while world.units:
                world.answer()
        for child in world.living():
            while world.begin(child):
                pass
        held = [job.id for job in jobs if job.token is not None]
        world.cancel(held[::3], interrupt=True)
        world.now += 5.5  # some are over their limit
        world.cycle()
        world.living()[0].dead = True  # with several in hand
        world.run_until(lambda: not world.database.jobs and not world.units and not world.events)
        weights.append(weight(world.ledger))

    assert world.lost
    assert max(weights[1:]) <= weights[0] + 5
