"""Limits against a model, through any order of claims, finishes, kills, cancels and other limits, by two sessions.

The model is a ledger of its own: who was handed which job, and has not given it back. Whatever happens, no key has
more of them at once than its limit was when they were handed out; and in the end nothing waits for ever.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.ids import new_id
from tests.fixtures.gates import publish
from tests.fixtures.simulated_worker import Held, SimulatedWorker

QUEUES = ("default", "other")
TASKS = ("limited", "shared", "free")  # of the first two with a limit of the same name
KEYS = ("", "a", "b")
ALL_KEYS = ("shared", "shared a", "shared b")
ROOM = 25

queues = st.sampled_from(QUEUES)
anywhere = st.integers(0, 23)


class GateMachine(RuleBasedStateMachine):
    """Workers that claim, end, die and come too late; clients that enqueue and cancel."""

    def __init__(self, connection: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.connection, self.other = connection, other
        for table in ("job", "job_history", "claim", "worker", "job_limit", "task_gate"):
            connection.execute(f"delete from pgtasks.{table}")
        self.limit = 0
        self.most: dict[
            str, int
        ] = {}  # key -> its limit, or how many there were when that was lowered
        self.workers: list[SimulatedWorker] = []
        self.hands: dict[int, list[Held]] = {}
        self.undone: list[Held] | None = (
            None  # what an open transaction of the other session finished
        )
        self.ended: list[str] = []

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.set_limit(limit)
        self.start_worker()
        self.start_worker()

    # The two promises

    @invariant()
    def everybody_holds_a_place(self) -> None:
        """Also in the eyes of the database: nobody runs whom it does not count."""
        if self.undone is None:
            for key, count in self.held().items():
                assert self.holders(key) >= count, key
        for key, most in self.most.items():
            self.most[key] = max(self.limit, min(most, self.holders(key)))

    def held(self) -> Counter[str]:
        """Return how many of each key workers have, by what they were told."""
        keys = (key_of(one) for hand in self.hands.values() for one in hand)
        return Counter(key for key in keys if key)

    def holders(self, key: str) -> int:
        """Return how many have a place, by what the tables say."""
        row = self.connection.execute(
            "select count(*) from pgtasks.job"
            " where state = 'ready' and admitted = seq and options ->> 'limit_key' = %s",
            [key],
        ).fetchone()
        assert row is not None
        return int(row[0])

    def handed_out(self, worker: SimulatedWorker, jobs: Sequence[Held]) -> None:
        self.hands[worker.id] += jobs
        held = self.held()
        for key in {key_of(one) for one in jobs} - {""}:
            assert held[key] <= self.most[key], f"{held[key]} of {key}, most {self.most[key]}"

    def nobody_waits_for_what_is_free(self, keys: set[str]) -> None:
        for key in keys - {""}:
            row = self.connection.execute(
                "select count(*) from pgtasks.job"
                " where state = 'parked' and reason = 'limit' and options ->> 'limit_key' = %s",
                [key],
            ).fetchone()
            assert row is not None
            assert not row[0] or self.holders(key) >= self.limit, key

    # Workers

    def start_worker(self) -> None:
        worker = SimulatedWorker(self.connection, QUEUES, TASKS)
        self.workers.append(worker)
        self.hands[worker.id] = []

    @rule(which=anywhere, queue=queues, limit=st.integers(1, 8), lost=st.booleans())
    def claim(self, which: int, queue: str, limit: int, lost: bool) -> None:
        worker = self.workers[which % len(self.workers)]
        held = worker.claim(queue, limit=limit, tasks=TASKS)
        assert len(held) <= limit
        listed = self.connection.execute(
            "select i::text from pgtasks.claim c, unnest(c.job_ids) i where c.token = any(%s) order by i",
            [[one.token for one in held[:1]]],
        ).fetchall()
        assert listed == [(id,) for id in sorted(one.id for one in held)]
        if held and lost and self.undone is None:
            worker.lose_reply(held)
            worker.release_lost()
        else:
            self.handed_out(worker, held)

    def take(self, which: int, count: int) -> tuple[SimulatedWorker, list[Held]] | None:
        """Return some of what a worker has; of one queue."""
        worker = self.workers[which % len(self.workers)]
        hand = self.hands[worker.id]
        same = [one for one in hand if one.queue == hand[0].queue][:count]
        return (worker, same) if same else None

    def give_back(self, worker: SimulatedWorker, jobs: Sequence[Held]) -> None:
        self.hands[worker.id] = [one for one in self.hands[worker.id] if one not in jobs]

    @precondition(lambda self: self.undone is None)
    @rule(
        which=anywhere,
        count=st.integers(1, 4),
        how=st.sampled_from(["succeed", "fail", "retry", "again"]),
    )
    def finish(self, which: int, count: int, how: str) -> None:
        taken = self.take(which, count)
        if taken is None:
            return
        worker, jobs = taken
        if how in ("succeed", "fail"):
            self.ended += getattr(worker, how)(jobs)
        else:
            worker.retry(jobs, 0.0 if how == "again" else 3600.0)
        self.give_back(worker, jobs)
        self.nobody_waits_for_what_is_free({key_of(one) for one in jobs})

    @precondition(lambda self: self.undone is None)
    @rule(which=anywhere, count=st.integers(1, 4), crashed=st.booleans())
    def release(self, which: int, count: int, crashed: bool) -> None:
        taken = self.take(which, count)
        if taken is not None:
            worker, jobs = taken
            (worker.crash if crashed else worker.release)(jobs)
            self.give_back(worker, jobs)

    @precondition(lambda self: self.undone is None)
    @rule(which=anywhere)
    def kill(self, which: int) -> None:
        """A worker dies, and another takes its jobs; what it says later changes nothing."""
        dead = self.workers.pop(which % len(self.workers))
        self.start_worker()
        assert self.workers[-1].rescue(dead) is not None
        late = self.hands.pop(dead.id)
        if late:
            assert dead.succeed(late) == []

    @precondition(lambda self: self.undone is None)
    @rule(which=anywhere, count=st.integers(1, 4), commit=st.booleans(), claims=st.booleans())
    def begin_in_the_other_session(
        self, which: int, count: int, commit: bool, claims: bool
    ) -> None:
        """Finish, or claim, in a transaction that stays open for a while."""
        worker = self.workers[which % len(self.workers)]
        taken = None if claims else self.take(which, count)
        if taken is None and not claims:
            return
        self.other.execute("begin")
        worker.connection = self.other
        if taken is None:
            self.begun = (worker, worker.claim(QUEUES[count % 2], limit=count, tasks=TASKS))
        else:
            worker.succeed(taken[1])
            self.begun = taken
        worker.connection = self.connection
        self.commits, self.claims = commit, claims
        self.undone = [] if claims else self.begun[1]

    @precondition(lambda self: self.undone is not None)
    @rule()
    def end_in_the_other_session(self) -> None:
        self.other.execute("commit" if self.commits else "rollback")
        worker, jobs = self.begun
        self.undone = None
        if self.claims and self.commits:
            self.handed_out(worker, jobs)
        elif self.claims:
            worker.lose_reply(jobs) if jobs else None
        elif self.commits:
            self.ended += [one.id for one in jobs]
            self.give_back(worker, jobs)
        else:  # what it believes to have finished is rescued
            self.kill(self.workers.index(worker))

    # Clients and operators

    @rule(
        task=st.sampled_from(TASKS), key=st.sampled_from(KEYS), queue=queues, count=st.integers(1, 6),
        priority=st.sampled_from([0, 0, 5]),
    )  # fmt: skip
    def enqueue(self, task: str, key: str, queue: str, count: int, priority: int) -> None:
        row = self.connection.execute("select count(*) from pgtasks.job").fetchone()
        assert row is not None
        options = {"limit_key": f"shared {key}"} if key and task != "free" else None
        for _ in range(min(count, ROOM - row[0])):
            self.connection.execute(
                "insert into pgtasks.job (id, queue, task, priority, options) values (%s, %s, %s, %s, %s)",
                [new_id(), queue, task, priority, options and json.dumps(options)],
            )

    @precondition(lambda self: self.undone is None)
    @rule(positions=st.lists(anywhere, min_size=1, max_size=4))
    def cancel(self, positions: list[int]) -> None:
        rows = self.connection.execute("select id::text from pgtasks.job order by id").fetchall()
        if rows:
            ids = sorted({rows[at % len(rows)][0] for at in positions})
            run(self.connection, operations.cancel_jobs(ids))

    @precondition(lambda self: self.ended and self.undone is None)
    @rule(which=anywhere)
    def reset(self, which: int) -> None:
        run(self.connection, operations.reset_jobs([self.ended[which % len(self.ended)]]))

    @precondition(lambda self: self.undone is None)
    @rule(limit=st.integers(1, 4))
    def set_limit(self, limit: int) -> None:
        """Who has a place keeps it, also where there are fewer from now on."""
        self.limit = limit
        self.most = {key: max(limit, self.holders(key)) for key in ALL_KEYS}
        publish(
            self.connection,
            {"limited": "shared", "shared": "shared"},
            {"shared": limit},
            free=["free"],
        )

    @precondition(lambda self: self.undone is None)
    @rule()
    def sweep(self) -> None:
        self.connection.execute("select pgtasks.sweep_gates('', 100)")
        self.nobody_waits_for_what_is_free(set(ALL_KEYS))

    @precondition(lambda self: self.undone is None)
    @rule(queue=queues)
    def promote(self, queue: str) -> None:
        self.connection.execute("update pgtasks.job set start_at = now() where state = 'scheduled'")
        self.connection.execute("select pgtasks.promote_jobs(%s, 100)", [queue])

    @precondition(lambda self: self.undone is None)
    @rule(queue=queues)
    def park_and_unpark(self, queue: str) -> None:
        """As if no worker had known a task for a minute: what was admitted there is admitted no longer."""
        self.connection.execute(
            "update pgtasks.job set state = 'parked', reason = 'unknown task'"
            " where queue = %s and state = 'ready' and token is null",
            [queue],
        )
        self.connection.execute("select pgtasks.unpark_known(%s, %s, 100)", [queue, list(TASKS)])

    # The end

    def teardown(self) -> None:
        """Whatever happened, everything runs in the end: nothing is stuck."""
        try:
            self.drain()
        finally:
            self.other.rollback() if self.undone is None else self.other.execute("rollback")

    def drain(self) -> None:
        if not self.workers:
            return
        if self.undone is not None:
            self.end_in_the_other_session()
        for _ in range(60):
            if self.connection.execute("select from pgtasks.job limit 1").fetchone() is None:
                break
            self.sweep()
            for queue in QUEUES:
                self.promote(queue)
                self.claim(0, queue, 8, lost=False)
            for worker in self.workers:
                self.ended += worker.succeed(self.hands[worker.id]) if self.hands[worker.id] else []
                self.hands[worker.id] = []
        rows = self.connection.execute(
            "select state, reason, task, queue, options from pgtasks.job"
        ).fetchall()
        assert rows == [], "stuck"


def key_of(job: Held) -> str:
    if job.task == "free":
        return ""
    return json.loads(job.options)["limit_key"] if job.options else "shared"


def explore(dsn: str, examples: int, steps: int) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        psycopg.connect(dsn, autocommit=True) as other,
    ):
        run_state_machine_as_test(
            lambda: GateMachine(connection, other),  # type: ignore[arg-type]  # what makes one will do
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_no_key_ever_has_more_than_its_limit_and_nothing_is_stuck(dsn):
    explore(dsn, examples=15, steps=30)


@pytest.mark.slow
@pytest.mark.long
def test_no_key_ever_has_more_than_its_limit_for_long(dsn):
    scale = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)
    explore(dsn, examples=min(round(200 * scale), 1000), steps=60)
