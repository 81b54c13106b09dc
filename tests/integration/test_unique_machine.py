"""Unique keys against a model in plain Python, through kills, retries, expiry, replacing and a second session.

The second session enqueues in a transaction that stays open for a while: who wants a key that it took meanwhile has to
wait for it, and gets it if it is rolled back.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.errors import DatabaseError, DuplicateJobError, JobStateError
from pgtasks.ids import new_id
from pgtasks.job import NewBundle, NewJob, UniqueKey
from tests.fixtures.simulated_worker import Held, SimulatedWorker

QUEUES = ("default", "other")
ROOM = 12  # with so many live jobs, no more come
HELD_FOR = 1000.0  # seconds, where a key is held for a time
LATER = 3600.0
OUTCOMES = ("succeeded", "failed", "expired", "quarantined", "cancelled")

queues = st.sampled_from(QUEUES)
names = st.sampled_from("abc")
modes = st.sampled_from(["finish", "finish", "start", "time"])
conflicts = st.sampled_from(["skip", "skip", "replace", "raise"])
anyone = st.integers(0, 11)


@dataclasses.dataclass
class ModelJob:
    """A job as the model has it."""

    id: str
    queue: str
    key: str
    mode: str
    page: int
    state: str = "ready"  # scheduled, ready, running, or finished


@dataclasses.dataclass
class ModelKey:
    """A key as the model has it: who has it, and for how long."""

    job: str
    mode: str
    left: float | None  # seconds


class Model:
    """Who holds which key."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.keys: dict[tuple[str, str], ModelKey] = {}

    def live(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state != "finished"]

    def is_free(self, place: tuple[str, str]) -> bool:
        key = self.keys.get(place)
        return key is None or (key.left is not None and key.left <= 0)

    def take(self, job: ModelJob) -> str | None:
        """Give a job its key, or return who has it."""
        place = (job.queue, job.key)
        if not self.is_free(place):
            return self.keys[place].job
        left = HELD_FOR if job.mode == "time" else None
        self.keys[place] = ModelKey(job.id, job.mode, left)
        return None

    def release(self, job: ModelJob, *modes: str) -> None:
        """Take a job's key from it if it is held so."""
        for place, key in list(self.keys.items()):
            if key.job == job.id and key.mode in modes:
                del self.keys[place]

    def finish(self, id: str) -> None:
        job = self.jobs[id]
        job.state = "finished"
        self.release(job, "finish", "start")

    def count_ready(self, queue: str) -> int:
        """Return how many jobs of a queue a claim may take."""
        return sum(job.queue == queue and job.state == "ready" for job in self.jobs.values())


class KeyMachine(RuleBasedStateMachine):
    """Two sessions that enqueue, and workers that finish, retry, give back and die."""

    def __init__(
        self, connection: psycopg.Connection[Any], second: psycopg.Connection[Any]
    ) -> None:
        super().__init__()
        self.connection = connection
        self.second = second
        self.second.rollback()
        self.model = Model()
        self.pending: list[ModelJob] = []  # what the second session has written
        self.touched: set[tuple[str, str]] = set()  # the keys that it took
        self.is_open = False
        self.page = 0
        connection.execute(
            "truncate pgtasks.job, pgtasks.unique_key, pgtasks.claim, pgtasks.worker, pgtasks.schedule_declaration"
        )
        connection.execute("delete from pgtasks.job_history")
        self.workers = [SimulatedWorker(connection, QUEUES) for _ in range(2)]
        self.hands: list[list[Held]] = [[], []]

    # Comparing

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        rows = self.connection.execute(
            "select queue, key, job_id::text, coalesce(release, 'time'), extract(epoch from until - now())"
            " from pgtasks.unique_key"
        ).fetchall()
        keys = {(queue, key): (id, mode) for queue, key, id, mode, _ in rows}
        assert keys == {place: (key.job, key.mode) for place, key in self.model.keys.items()}
        for queue, key, _, _, left in rows:
            said = self.model.keys[queue, key].left
            assert (left is None) == (said is None)
            assert said is None or abs(float(left) - said) < 60
        found = self.connection.execute(
            "select id::text, queue, kwargs, case when token is null then state else 'running' end"
            " from pgtasks.job"
        ).fetchall()
        live = {
            id: (queue, json.loads(kwargs)["page"], state) for id, queue, kwargs, state in found
        }
        assert live == {job.id: (job.queue, job.page, job.state) for job in self.model.live()}
        # What it is all about, without the model.
        held = [(job.queue, job.key) for job in self.model.live() if job.mode == "finish"]
        assert len(held) == len(set(held))
        assert {(keys[place][0]) for place in held} == {
            job.id for job in self.model.live() if job.mode == "finish"
        }

    # Clients

    def new_job(self, queue: str, key: str, mode: str, on_conflict: str, delay: float) -> Any:
        """Return a job for the library, and one for the model."""
        self.page += 1
        stored: dict[str, Any] = {"unique_key": f"t:{key}"}
        if mode == "time":
            stored["unique_for"] = HELD_FOR
        elif mode == "start":
            stored["unique_until"] = "started"
        job = NewJob(
            id=new_id(),
            task="t",
            queue=queue,
            kwargs=json.dumps({"page": self.page}),
            delay=delay or None,
            options=json.dumps(stored),
            unique=UniqueKey(
                key=f"t:{key}",
                seconds=HELD_FOR if mode == "time" else None,
                release=None if mode == "time" else mode,  # type: ignore[arg-type]
                on_conflict=on_conflict,  # type: ignore[arg-type]
            ),
        )
        state = "scheduled" if delay else "ready"
        return job, ModelJob(job.id, queue, f"t:{key}", mode, self.page, state)

    def replace(self, holder: str, said: ModelJob) -> None:
        """Do what a call with on_conflict="replace" does to the job that has its key."""
        job = self.model.jobs.get(holder)
        if job is None or job.state not in ("ready", "scheduled"):
            return
        job.page, job.state = said.page, said.state
        key = self.model.keys[said.queue, said.key]
        if key.left is not None and said.mode == "time":
            key.left = HELD_FOR

    @contextmanager
    def may_have_to_wait(self, *places: tuple[str, str]) -> Iterator[Callable[[], bool]]:
        """Expect that the call waits for the second session if it wants a key that this one took."""
        waits = bool(self.touched.intersection(places))
        if not waits:
            yield lambda: True
            return
        with pytest.raises(DatabaseError, match="took too long"):
            yield lambda: False

    @precondition(lambda self: len(self.model.live()) < ROOM)
    @rule(queue=queues, key=names, mode=modes, on_conflict=conflicts, later=st.booleans())
    def enqueue(self, queue: str, key: str, mode: str, on_conflict: str, later: bool) -> None:
        job, entry = self.new_job(queue, key, mode, on_conflict, LATER if later else 0.0)
        place = (queue, f"t:{key}")
        if place in self.touched:
            with self.may_have_to_wait(place):
                run(self.connection, operations.enqueue_job(job))
            return
        holder = self.model.take(entry)
        if holder is not None and on_conflict == "raise":
            with pytest.raises(DuplicateJobError) as refused:
                run(self.connection, operations.enqueue_job(job))
            assert refused.value.id == holder
            return
        assert run(self.connection, operations.enqueue_job(job)) == holder
        if holder is None:
            self.model.jobs[job.id] = entry
        elif on_conflict == "replace":
            self.replace(holder, entry)

    @precondition(lambda self: len(self.model.live()) < ROOM)
    @rule(
        queue=queues,
        wanted=st.lists(st.tuples(names, modes), min_size=1, max_size=5),
        grouped=st.booleans(),
        copied=st.booleans(),
    )
    def enqueue_many(
        self, queue: str, wanted: Sequence[tuple[str, str]], grouped: bool, copied: bool
    ) -> None:
        if copied:  # so many that COPY is used
            wanted = [*wanted] * operations.COPY_FROM
        made = [self.new_job(queue, key, mode, "skip", 0.0) for key, mode in wanted]
        places = {(queue, f"t:{key}") for key, _ in wanted}
        bundle = NewBundle(id=new_id(), total=len(made))
        jobs = [job for job, _ in made]
        if grouped:
            for index, job in enumerate(jobs):
                job.bundle_id, job.bundle_index = bundle.id, index
        operation = operations.enqueue_jobs(jobs, [bundle] if grouped else [])
        if self.touched.intersection(places):
            with self.may_have_to_wait(*places):
                run(self.connection, operation)
            return
        held = {}
        for job, entry in made:
            holder = self.model.take(entry)
            if holder is None:
                self.model.jobs[job.id] = entry
            else:
                held[job.id] = holder
        assert run(self.connection, operation) == held
        if grouped:
            row = self.connection.execute(
                "select total from pgtasks.job_bundle where id = %s", [bundle.id]
            ).fetchone()
            assert row == (len(made) - len(held),)

    # The second session

    @precondition(lambda self: not self.is_open)
    @rule()
    def begin(self) -> None:
        self.second.execute("select")
        self.is_open = True

    @precondition(lambda self: self.is_open and len(self.model.live()) < ROOM)
    @rule(queue=queues, key=names, mode=modes)
    def enqueue_in_the_second(self, queue: str, key: str, mode: str) -> None:
        job, entry = self.new_job(queue, key, mode, "skip", 0.0)
        place = (queue, f"t:{key}")
        mine = [one.id for one in self.pending if (one.queue, one.key) == place]
        if place in self.touched:
            assert run(self.second, operations.enqueue_job(job)) == mine[0]
            return
        holder = None if self.model.is_free(place) else self.model.keys[place].job
        assert run(self.second, operations.enqueue_job(job)) == holder
        if holder is None:
            self.pending.append(entry)
            self.touched.add(place)

    @precondition(lambda self: self.is_open)
    @rule(commits=st.booleans())
    def end(self, commits: bool) -> None:
        if commits:
            self.second.commit()
            for entry in self.pending:
                assert self.model.take(entry) is None
                self.model.jobs[entry.id] = entry
        else:
            self.second.rollback()
        self.pending, self.touched, self.is_open = [], set(), False

    # Workers

    @rule(who=st.integers(0, 1), queue=queues, limit=st.integers(1, 3))
    def claim(self, who: int, queue: str, limit: int) -> None:
        held = self.workers[who].claim(queue, limit=limit)
        assert len(held) == min(limit, self.model.count_ready(queue))
        for one in held:
            job = self.model.jobs[one.id]
            assert job.state == "ready"
            job.state = "running"
            self.model.release(job, "start")
        self.hands[who] += held

    def pick(self, who: int, at: int) -> Held:
        return self.hands[who].pop(at % len(self.hands[who]))

    @precondition(lambda self: any(self.hands))
    @rule(
        at=anyone,
        how=st.sampled_from([*OUTCOMES, "retry", "later", "uncounted", "release", "crash"]),
    )
    def end_an_attempt(self, at: int, how: str) -> None:
        who = 0 if self.hands[0] else 1
        held, worker = self.pick(who, at), self.workers[who]
        job = self.model.jobs[held.id]
        if job.state == "finished":  # cannot be: who took it out would have had to have its token
            raise AssertionError(job)
        if how in OUTCOMES:
            assert worker.finish(held, how, keep=how != "succeeded") == [held.id]
            self.model.finish(held.id)
            if how == "succeeded":
                del self.model.jobs[held.id]
        elif how in ("retry", "later"):
            worker.retry(held, delay=LATER if how == "later" else 0)
            job.state = "scheduled" if how == "later" else "ready"
        elif how == "uncounted":
            worker.finish(held, "retry", error={"type": "Retry", "counted": False}, delay=0)
            job.state = "ready"
        else:
            (worker.release if how == "release" else worker.crash)(held)
            job.state = "ready"

    @rule(who=st.integers(0, 1))
    def kill(self, who: int) -> None:
        other = SimulatedWorker(self.connection, QUEUES)
        other.rescue(self.workers[who])
        for held in self.hands[who]:
            self.model.jobs[held.id].state = "ready"
        assert self.workers[who].succeed(self.hands[who]) == [] if self.hands[who] else True
        self.workers[who], self.hands[who] = other, []

    # Operators

    def choose(self, at: int, *states: str) -> ModelJob | None:
        jobs = [job for job in self.model.jobs.values() if job.state in states]
        return jobs[at % len(jobs)] if jobs else None

    @rule(at=anyone, deletes=st.booleans())
    def cancel(self, at: int, deletes: bool) -> None:
        job = self.choose(at, "ready", "scheduled")
        if job is None:
            return
        if deletes:
            run(self.connection, operations.delete_jobs([job.id]))
        else:
            run(self.connection, operations.cancel_jobs([job.id]))
        self.model.finish(job.id)
        if deletes:
            del self.model.jobs[job.id]

    @rule(at=anyone)
    def reset(self, at: int) -> None:
        job = self.choose(at, "finished")
        if job is None:
            return
        place = (job.queue, job.key)
        if place in self.touched:
            with self.may_have_to_wait(place):
                run(self.connection, operations.reset_jobs([job.id]))
            return
        mine = not self.model.is_free(place) and self.model.keys[place].job == job.id
        holder = None if mine else self.model.take(job)
        if holder is None:
            run(self.connection, operations.reset_job(job.id))
            job.state = "ready"
        else:
            with pytest.raises(JobStateError, match=f"job {holder} has its key"):
                run(self.connection, operations.reset_job(job.id))

    @rule(at=anyone, queue=queues)
    def move(self, at: int, queue: str) -> None:
        job = self.choose(at, "ready", "scheduled")
        if job is None or job.queue == queue:
            return
        before, after = (job.queue, job.key), (queue, job.key)
        has = before in self.model.keys and self.model.keys[before].job == job.id
        operation = operations.reschedule_job(
            job.id, start_at=None, delay=None, now=False, priority=None, queue=queue
        )
        if has and after in self.touched:
            with self.may_have_to_wait(after):
                run(self.connection, operation)
        elif has and not self.model.is_free(after):
            with pytest.raises(JobStateError, match=self.model.keys[after].job):
                run(self.connection, operation)
        elif has and before in self.touched:  # the second session took over what was over
            with self.may_have_to_wait(before):
                run(self.connection, operation)
        else:
            run(self.connection, operation)
            job.queue = queue
            if has:
                self.model.keys[after] = self.model.keys.pop(before)

    @precondition(lambda self: not self.is_open)
    @rule(seconds=st.sampled_from([HELD_FOR * 0.6, HELD_FOR * 1.2]))
    def time_goes_by(self, seconds: float) -> None:
        self.connection.execute(
            "update pgtasks.unique_key set until = until - %s * interval '1 second'", [seconds]
        )
        for key in self.model.keys.values():
            if key.left is not None:
                key.left -= seconds

    @rule()
    def sweep(self) -> None:
        over = [
            place
            for place, key in self.model.keys.items()
            if key.left is not None and key.left <= 0 and place not in self.touched
        ]
        assert self.workers[0].execute("forget_keys", limit=1000) == [(len(over),)]
        for place in over:
            del self.model.keys[place]

    def teardown(self) -> None:
        """Let all end: nothing but keys for a time is left."""
        if self.is_open:
            self.end(commits=True)
        self.kill(0)
        self.kill(1)
        self.connection.execute("update pgtasks.job set start_at = now()")
        for queue in QUEUES:
            self.workers[0].execute("promote_jobs", queue=queue, limit=1000)
            self.workers[0].run_all(queue)
        rows = self.connection.execute("select release from pgtasks.unique_key").fetchall()
        assert {release for (release,) in rows} <= {None}
        assert self.connection.execute("select count(*) from pgtasks.job").fetchone() == (0,)


def explore(connection: psycopg.Connection[Any], dsn: str, examples: int, steps: int) -> None:
    connection.execute("set lock_timeout = '30ms'")
    with psycopg.connect(dsn) as second:
        run_state_machine_as_test(
            lambda: KeyMachine(connection, second),  # type: ignore[arg-type]
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_keys_are_held_as_the_model_says(connection, dsn):
    explore(connection, dsn, examples=8, steps=20)


@pytest.mark.slow
def test_keys_are_held_as_the_model_says_through_many_more_orders(connection, dsn):
    scale = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)
    explore(connection, dsn, examples=min(round(40 * scale), 400), steps=40)
