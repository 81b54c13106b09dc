"""What leaves the worker, and that a claim ends with the last of its jobs and not before."""

from __future__ import annotations

from typing import Any

from pgtasks.worker import messages as msg
from pgtasks.worker.outbox import (
    FLUSH_BATCH,
    FLUSH_DELAY,
    OUTCOMES_LIMIT,
    RELEASE_LOST_EVERY,
    WRITE_AGAIN,
    Outbox,
)
from tests.unit.worker_fakes import claimed_row

CAUSE = {"message": "was killed"}


class Post:
    """An outbox of a worker that has claimed a few jobs, each claim of so many."""

    def __init__(self, *claims: int) -> None:
        self.now = 100.0
        self.outbox = Outbox(self.now)
        self.jobs: list[msg.Held] = []
        for number, count in enumerate(claims, 1):
            self.outbox.claimed(f"claim-{number}", count)
            for _ in range(count):
                serial = len(self.jobs) + 1
                self.jobs.append(msg.Held(serial, claimed_row(seq=serial), f"claim-{number}"))
        self.returns()

    def ended(self, *jobs: msg.Held, kind: str = "succeeded") -> None:
        for held in jobs:
            self.outbox.add(
                msg.Ended(held, kind, None, None, None, self.now - 1, self.now), self.now
            )

    def finish(self, *, at_once: bool = True) -> msg.Batch | None:
        command = self.outbox.finish(at_once, self.now)
        return None if command is None else command.batch

    def returns(self, *, claiming: bool = False) -> list[Any]:
        return list(self.outbox.returns(claiming, self.now))

    def only(self, kind: type, commands: list[Any]) -> Any:
        (found,) = [one for one in commands if isinstance(one, kind)]
        return found

    def written(self, batch: msg.Batch) -> None:
        ids = frozenset(one.held.row.id for one in batch.ended)
        self.outbox.written(msg.Written(batch, ids))


def test_an_empty_outbox_has_nothing_to_do():
    post = Post()

    assert post.finish() is None
    assert post.returns() == []
    assert post.outbox.empty
    assert post.outbox.next_wake(post.now) == float("inf")


# Outcomes


def test_outcomes_wait_for_more_for_a_moment():
    post = Post(2)
    post.ended(post.jobs[0])

    assert post.finish(at_once=False) is None
    assert post.outbox.next_wake(post.now) == post.now + FLUSH_DELAY

    post.now += FLUSH_DELAY
    batch = post.finish(at_once=False)
    assert batch is not None
    assert [one.held for one in batch.ended] == [post.jobs[0]]


def test_a_full_batch_does_not_wait():
    post = Post(FLUSH_BATCH)
    post.ended(*post.jobs)

    assert post.finish(at_once=False) is not None


def test_so_many_outcomes_are_a_reason_to_claim_no_more():
    post = Post(OUTCOMES_LIMIT)
    post.ended(*post.jobs[1:])
    assert not post.outbox.full

    post.ended(post.jobs[0])
    assert post.outbox.full


def test_a_claim_ends_with_the_batch_that_holds_its_last_outcome():
    post = Post(2, 1)
    post.ended(post.jobs[0], post.jobs[2])
    first = post.finish()
    assert first is not None
    post.written(first)
    post.ended(post.jobs[1])
    second = post.finish()
    assert second is not None
    post.written(second)

    assert (first.claims, second.claims) == (["claim-2"], ["claim-1"])
    assert post.outbox.empty


def test_the_claims_of_a_batch_that_was_not_written_come_with_the_next_try():
    post = Post(1)
    post.ended(post.jobs[0])
    batch = post.finish()
    assert batch is not None

    post.outbox.unwritten(msg.Unwritten(batch, "again", "deadlock"), post.now)
    assert post.finish() is None
    assert post.outbox.next_wake(post.now) == post.now + WRITE_AGAIN
    post.now += WRITE_AGAIN

    again = post.finish()
    assert again is not None
    assert (again.ended, again.claims, again.again) == (batch.ended, ["claim-1"], False)


def test_a_batch_whose_answer_was_lost_is_marked_as_written_before():
    post = Post(1)
    post.ended(post.jobs[0])
    batch = post.finish()
    assert batch is not None

    post.outbox.unwritten(msg.Unwritten(batch, "lost", "closed"), post.now)

    again = post.finish()
    assert again is not None
    assert again.again


def test_a_batch_that_took_too_long_is_written_by_halves_until_what_is_slow_is_alone():
    post = Post(4)
    post.ended(*post.jobs)
    batch = post.finish()
    assert batch is not None
    slow = post.jobs[2].serial

    written: list[int] = []
    tries = 0
    while batch is not None and tries < 8:
        tries += 1
        serials = [ended.held.serial for ended in batch.ended]
        if slow in serials:
            post.outbox.unwritten(msg.Unwritten(batch, "slow", "statement timeout"), post.now)
            assert post.finish() is None, "it waits a little"
            post.now += WRITE_AGAIN
        else:
            post.written(batch)
            written += serials
        batch = post.finish()

    assert sorted(written) == sorted(job.serial for job in post.jobs if job.serial != slow)
    assert not post.outbox.empty


# What goes back


def test_a_claim_ends_with_the_release_of_its_last_job():
    post = Post(2)
    post.outbox.release(post.jobs[:1])
    first = post.only(msg.Release, post.returns())
    post.outbox.released(first)
    post.outbox.release(post.jobs[1:])
    second = post.only(msg.Release, post.returns())
    post.outbox.released(second)

    assert (first.claims, second.claims) == ([], ["claim-1"])
    assert post.outbox.empty


def test_crashes_go_with_their_causes_and_come_back_with_them():
    post = Post(2)
    for held in post.jobs:
        post.outbox.crash(held, {"message": str(held.serial)})
    crash = post.only(msg.Crash, post.returns())
    assert [cause["message"] for cause in crash.causes] == ["1", "2"]

    post.outbox.unreleased(crash, post.now)
    assert post.returns() == []
    post.now += WRITE_AGAIN

    again = post.only(msg.Crash, post.returns())
    assert (again.jobs, again.causes, again.claims) == (crash.jobs, crash.causes, ["claim-1"])


def test_the_last_of_a_claim_to_leave_by_itself_leaves_its_row_to_a_release_of_nothing():
    post = Post(1)

    post.outbox.gone(post.jobs)

    release = post.only(msg.Release, post.returns())
    assert (release.jobs, release.claims) == ((), ["claim-1"])
    assert not post.outbox.empty
    post.outbox.released(release)
    assert post.outbox.empty


def test_a_claim_of_jobs_that_left_by_themselves_ends_with_whatever_is_written_next():
    post = Post(1, 1)
    post.outbox.gone(post.jobs[:1])
    assert post.returns() == []  # there will be something
    post.ended(post.jobs[1])

    batch = post.finish()

    assert batch is not None
    assert batch.claims == ["claim-1", "claim-2"]


def test_what_was_lost_is_looked_for_at_first_now_and_then_and_never_during_a_claim():
    post = Post(1)
    post.outbox.connected(post.now)

    assert post.returns(claiming=True) == []
    assert post.returns() == [msg.ReleaseLost(("claim-1",))]
    assert post.returns() == []

    post.now += RELEASE_LOST_EVERY
    assert post.returns() == [msg.ReleaseLost(("claim-1",))]


# Sessions of dead children


def test_a_session_is_settled_once_and_again_after_a_pause_if_that_fails():
    post = Post(1)
    post.outbox.settle(post.jobs[0], 4711)

    settle = post.only(msg.Settle, post.returns())
    assert (settle.held, settle.session) == (post.jobs[0], 4711)
    assert post.returns() == []
    assert not post.outbox.empty

    post.outbox.unsettled(settle, post.now, again=True)
    assert post.returns() == []
    assert post.outbox.next_wake(post.now) == post.now + WRITE_AGAIN
    post.now += WRITE_AGAIN
    assert post.returns() == [settle]


def test_a_session_that_no_longer_matters_is_not_asked_about_again():
    post = Post(1)
    post.outbox.settle(post.jobs[0], 4711)
    settle = post.only(msg.Settle, post.returns())
    post.outbox.lease_lost()
    post.outbox.gone(post.jobs)

    post.outbox.unsettled(settle, post.now, again=False)
    post.now += 1.0

    release = post.only(msg.Release, post.returns())
    post.outbox.released(release)
    assert post.outbox.empty


def test_a_lost_lease_forgets_what_was_to_go_back():
    post = Post(3)
    post.outbox.release(post.jobs[:1])
    post.outbox.crash(post.jobs[1], CAUSE)
    post.outbox.settle(post.jobs[2], 4711)

    post.outbox.lease_lost()

    assert post.returns() == []
    assert post.outbox.claims == {"claim-1": 1}  # whoever settles it says that it is gone
