"""The real database against a model, through any order of what clients, workers and operators do.

Every rule makes one call of the library and tells `tests/fixtures/database_model.py` what it has to do;
after each, all tables are compared. Two things are checked without the model: that what changed may
change so (states, tokens), and that what stands there is sound (claims name what is held, counts agree).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

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

from pgtasks import JobState
from pgtasks.canvas import Node
from pgtasks.db import operations
from pgtasks.db.run import Operation, run
from pgtasks.errors import JobStateError
from pgtasks.graph import compile_graph
from pgtasks.ids import new_id
from pgtasks.job import NewBundle, NewJob
from tests.fixtures.bundles import add_waiter, insert_bundle, insert_job
from tests.fixtures.canvases import canvases, members, numbered, replacing
from tests.fixtures.database_model import (
    FINAL,
    Model,
    ModelBundle,
    ModelJob,
    ModelWorker,
    assert_legal,
    assert_sound,
    differences,
    read_tables,
)
from tests.fixtures.simulated_worker import Held, SimulatedWorker, execute

T = TypeVar("T")

QUEUES = ("default", "other")
KNOWN = ("echo", "sum")  # what every worker knows
ONCE = "once"  # an at_most_once task, which every worker knows
STRANGE = "strange"  # known to some workers only
LATER = 3600.0
ROOM = 12  # with so many live jobs, no more come
OUTCOMES = ("succeeded", "failed", "expired", "quarantined", "cancelled")

queues = st.sampled_from(QUEUES)
tasks = st.sampled_from([*KNOWN, ONCE, STRANGE])
priorities = st.sampled_from([0, 0, 5, -5])
bodies = st.sampled_from([None, "success", "failure", "stop"])
# Positions in whatever there is to choose from, counted around.
one = st.integers(0, 5)
anywhere = st.integers(0, 23)
some = st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
graphs = canvases([*KNOWN, ONCE], QUEUES, LATER)


def pick(things: Sequence[T], positions: Sequence[int]) -> list[T]:
    """Return the things at these positions, each once, in their own order."""
    return [things[place] for place in sorted({at % len(things) for at in positions})]


class DatabaseMachine(RuleBasedStateMachine):
    """Clients, operators and workers that die, forget and come too late."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.connection = connection
        self.model = Model()
        self.before = self.model.tables()
        self.numbers = 0
        self.enqueued: set[str] = set()
        self.forgotten: set[str] = set()  # on purpose
        self.workers: list[SimulatedWorker] = []  # also those that were declared dead
        self.hands: dict[int, list[Held]] = {}  # what each believes to hold
        for table in ("job", "job_history", "job_bundle", "claim", "worker", "task", "listener"):
            connection.execute(f"delete from pgtasks.{table}")

    @initialize(
        count=st.integers(0, 3),
        body=bodies,
        canvas=st.none() | graphs,
        claimed=st.booleans(),
    )
    def begin(
        self, count: int, body: str | None, canvas: Node[Any, Any] | None, claimed: bool
    ) -> None:
        """Two workers, some jobs, and perhaps a claim: so that there is something to do at once."""
        self.start_worker(knows_all=False)
        self.start_worker(knows_all=True)
        for _ in range(count):
            self.enqueue(task="echo", queue="default", priority=0, when="now")
        if body:
            self.enqueue_nested_bundles(members=1, inner=1, body=body)
        if canvas is not None:
            self.enqueue_graph(canvas)
        self.the_tables_are_as_the_model_says()
        if claimed and self.lanes():
            self.claim(which=0, where=0, limit=2, lost=False)

    # Comparing

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        found = read_tables(self.connection)
        assert_legal(self.before, found.tables)
        lines = differences(self.model, found.tables)
        assert not lines, "\n".join(lines)
        self.model.learn(found)
        assert_sound(found.tables)
        assert self.enqueued - self.forgotten == set(found.tables.jobs), "lost"
        self.before = found.tables

    def note_gone(self) -> None:
        """Remember what the model says has left for good."""
        self.forgotten |= self.enqueued - set(self.model.jobs)

    def new_id(self) -> str:
        """Return the next id: of version 7, from the beginning of time."""
        self.numbers += 1
        return f"00000000-0000-7000-8000-{self.numbers:012x}"

    def run(self, operation: Any) -> Any:
        return run(self.connection, operation)

    def execute(self, name: str, **parameters: object) -> list[Any]:
        return execute(self.connection, name, **parameters)

    def registered(self, worker: SimulatedWorker) -> bool:
        return worker.id in self.model.workers

    # Clients

    def new_job(
        self,
        task: str,
        queue: str,
        priority: int,
        when: str,
        bundle: str | None = None,
        index: int | None = None,
    ) -> NewJob:
        """Return a job for the library, and enter it into the model."""
        job = NewJob(
            id=self.new_id(),
            task=task,
            queue=queue,
            priority=priority,
            delay={"later": LATER, "at once": 0.0}.get(when),
            expires_in=-1.0 if when == "expired" else None,
            bundle_id=bundle,
            bundle_index=index,
        )
        self.enqueued.add(job.id)
        self.model.enqueue(
            ModelJob(
                id=job.id,
                task=task,
                queue=queue,
                priority=priority,
                state="scheduled" if when == "later" else "ready",
                start_at={"later": "future", "at once": "past"}.get(when),
                expires=when == "expired",
                bundle=bundle,
            )
        )
        return job

    @precondition(lambda self: len(list(self.model.live())) < ROOM)
    @rule(
        task=tasks,
        queue=queues,
        priority=priorities,
        when=st.sampled_from(["now", "now", "at once", "later", "expired"]),
    )
    def enqueue(self, task: str, queue: str, priority: int, when: str) -> None:
        self.run(operations.enqueue_job(self.new_job(task, queue, priority, when)))

    @precondition(lambda self: len(list(self.model.live())) < ROOM)
    @rule(
        task=tasks,
        queue=queues,
        count=st.sampled_from([0, 1, 2, 3, 2, operations.COPY_FROM]),
        when=st.sampled_from(["now", "now", "later", "expired"]),
    )
    def enqueue_bundle(self, task: str, queue: str, count: int, when: str) -> None:
        bundle = NewBundle(id=self.new_id(), total=count)
        self.model.bundles[bundle.id] = ModelBundle(bundle.id, count, count, stopped=count == 0)
        jobs = [self.new_job(task, queue, 0, when, bundle.id, index) for index in range(count)]
        self.run(operations.enqueue_jobs(jobs, [bundle]))

    @precondition(lambda self: len(list(self.model.live())) < ROOM)
    @rule(
        members=st.integers(0, 1),
        inner=st.integers(1, 2),
        body=bodies,
    )
    def enqueue_nested_bundles(self, members: int, inner: int, body: str | None) -> None:
        """Write a bundle of jobs and bundles; its body waits for the first of these.

        A body that may not be needed is alone in a bundle of its own, with which it vanishes.
        """
        around, total = self.new_id(), members + inner + (body in ("success", "stop"))
        insert_bundle(self.connection, total=total, id=around)
        self.model.bundles[around] = ModelBundle(around, total, total)
        for index in range(members):
            self.insert_job(around, index=index)
        within = []
        for _ in range(inner):
            within.append(self.new_id())
            insert_bundle(self.connection, total=1, parent=around, depth=1, id=within[-1])
            self.model.bundles[within[-1]] = ModelBundle(within[-1], 1, 1, parent=around, depth=1)
            self.insert_job(within[-1], index=0)
        if body == "failure":
            alone = self.new_id()
            insert_bundle(self.connection, total=1, id=alone)
            self.model.bundles[alone] = ModelBundle(alone, 1, 1)
            self.insert_job(alone, index=0, after=within[0], after_on=body)
        elif body:
            self.insert_job(around, index=members, after=within[0], after_on=body)

    def insert_job(self, bundle: str, index: int, **waits: Any) -> None:
        job = ModelJob(self.new_id(), "echo", bundle=bundle, **waits)
        job.state = "blocked" if waits else "ready"
        self.enqueued.add(job.id)
        self.model.enqueue(job)
        insert_job(self.connection, bundle, id=job.id, index=index, **waits)

    @precondition(lambda self: len(list(self.model.live())) < ROOM)
    @rule(canvas=graphs)
    def enqueue_graph(self, canvas: Node[Any, Any]) -> None:
        graph = numbered(compile_graph(canvas), self.new_id, {})
        self.enqueued |= {job.id for job in graph.jobs}
        self.model.enqueue_graph(graph.jobs, graph.bundles)

        self.run(operations.enqueue_jobs(graph.jobs, graph.bundles))

    @precondition(lambda self: len(list(self.model.live())) < ROOM and self.hands_with_bundles())
    @rule(which=anywhere, canvas=graphs)
    def grow_group(self, which: int, canvas: Node[Any, Any]) -> None:
        """Add to the group of a job that a worker has, or believes to have."""
        [bundle] = pick(self.hands_with_bundles(), [which])
        group = self.model.group_of(bundle)
        place = new_id()  # is not written
        graph = members(canvas, place, self.new_id)
        added = operations.grow_group(bundle, graph.jobs, graph.bundles, place)
        if group is None or group.stopped:
            with pytest.raises(JobStateError):
                self.run(added)
            return

        self.run(added)

        self.enqueued |= {job.id for job in graph.jobs}
        self.model.grow(group, graph, place)

    def hands_with_bundles(self) -> list[str]:
        held = (held for hand in self.hands.values() for held in hand)
        return [one.bundle_id for one in held if one.bundle_id is not None]

    @precondition(lambda self: self.model.bundles)
    @rule(which=anywhere, after_on=st.sampled_from(["success", "failure", "stop"]))
    def wait_for_a_bundle(self, which: int, after_on: str) -> None:
        [bundle] = pick(list(self.model.bundles), [which])
        job = ModelJob(
            self.new_id(),
            "echo",
            state="blocked",
            after=bundle,
            after_on=after_on,
            takes="results",
        )
        self.enqueued.add(job.id)
        self.model.wait_for(bundle, job)
        self.note_gone()
        add_waiter(self.connection, bundle, after_on=after_on, id=job.id)

    @rule(task=tasks, queue=queues, positions=some)
    def roll_back(self, task: str, queue: str, positions: list[int]) -> None:
        """Enqueue, cancel and reset in a transaction that never happened."""
        ids = pick(sorted(self.enqueued), positions) if self.enqueued else []
        bundle = NewBundle(id=self.new_id(), total=1)
        job = NewJob(id=self.new_id(), task=task, queue=queue, bundle_id=bundle.id)
        with self.connection.transaction(force_rollback=True):
            self.run(operations.enqueue_jobs([job], [bundle]))
            self.run(operations.cancel_jobs([*ids, job.id]))
            self.run(operations.reset_jobs([*ids, job.id]))

    # Workers

    def start_worker(self, knows_all: bool) -> None:
        knows = [*KNOWN, ONCE, *([STRANGE] if knows_all else [])]
        worker = SimulatedWorker(self.connection, QUEUES, knows)
        self.workers.append(worker)
        self.hands[worker.id] = []
        self.model.workers[worker.id] = ModelWorker(worker.id, tuple(knows))

    def claim_for(
        self, worker: SimulatedWorker, queue: str, limit: int, at_most_once: bool
    ) -> list[Held]:
        knows = [ONCE] if at_most_once else [*KNOWN, STRANGE]
        expected = self.model.claimable(queue, knows, limit)

        held = worker.claim(queue, limit=limit, tasks=knows, at_most_once=at_most_once)

        assert [job.id for job in held] == [job.id for job in expected]
        if held:
            self.model.claim(worker.id, expected, held[0].token, at_most_once)
        for job, claimed in zip(expected, held, strict=True):
            assert claimed.attempt == job.attempt
            assert claimed.crashes == job.crashes
            assert claimed.expired == job.expires
        return held

    def lanes(self) -> list[tuple[str, bool]]:
        """Return where there is something to claim: the queues, and whether at most once."""
        free = [job for job in self.model.waiting() if job.state == "ready"]
        return sorted({(job.queue, job.task == ONCE) for job in free})

    @precondition(lambda self: self.lanes())
    @rule(
        which=one,
        where=one,
        limit=st.sampled_from([1, 2, 3, 100]),
        lost=st.sampled_from([False, False, False, True]),
    )
    def claim(self, which: int, where: int, limit: int, lost: bool) -> None:
        """Claim, also as a worker that was declared dead and does not know it; the reply may be lost."""
        [worker] = pick(self.workers, [which])
        [(queue, once)] = pick(self.lanes(), [where])
        held = self.claim_for(worker, queue, limit, once)
        if held and lost:
            worker.lose_reply(held)
        else:
            self.hands[worker.id] += held

    @precondition(lambda self: self.model.claims)
    @rule(which=one)
    def release_lost_claims(self, which: int) -> None:
        [worker] = pick(self.workers, [which])
        known = {held.token for held in self.hands[worker.id]}
        for claim in list(self.model.claims.values()):
            if claim.worker_id == worker.id and claim.token not in known:
                self.model.release_claim(claim.token)

        worker.release_lost()

    def take(
        self, which: int, positions: list[int], one_queue: bool = False
    ) -> tuple[SimulatedWorker, list[Held]]:
        """Take jobs out of a worker's hands, or none."""
        holding = [worker for worker in self.workers if self.hands[worker.id]]
        [worker] = pick(holding, [which])
        hand = self.hands[worker.id]
        chosen = pick(hand, positions)
        if one_queue:
            chosen = [held for held in chosen if held.queue == chosen[0].queue]
        self.hands[worker.id] = [held for held in hand if held not in chosen]
        return worker, chosen

    def settle(self, worker: SimulatedWorker, chosen: Sequence[Held]) -> None:
        """Let the model forget the claims of which the worker has nothing left."""
        left = {held.token for held in self.hands[worker.id]}
        for held in chosen:
            if held.token not in left:
                self.model.claims.pop(held.token, None)

    @precondition(lambda self: any(self.hands.values()))
    @rule(
        which=one,
        positions=some,
        outcome=st.sampled_from(["succeeded", "retry", "retry", *OUTCOMES]),
        delay=st.sampled_from([0.0, LATER]),
        begun=st.booleans(),
        keep=st.booleans(),
    )
    def finish(
        self,
        which: int,
        positions: list[int],
        outcome: str,
        delay: float,
        begun: bool,
        keep: bool,
    ) -> None:
        """Finish or retry jobs, and find out which of them were still this worker's."""
        worker, chosen = self.take(which, positions)
        begun = begun or outcome == "retry"
        keep = keep or outcome != "succeeded"
        expected = self.model.finish(
            [(held.id, held.token) for held in chosen],
            outcome,
            delay=delay,
            begun=begun,
            keep=keep,
        )
        self.settle(worker, chosen)
        self.note_gone()

        ids = worker.finish(
            chosen, outcome, result="1", delay=delay, age=0.25 if begun else None, keep=keep
        )

        assert sorted(ids) == sorted(expected)

    @precondition(lambda self: any(self.hands.values()) and len(list(self.model.live())) < ROOM)
    @rule(which=one, position=anywhere, canvas=graphs)
    def replace(self, which: int, position: int, canvas: Node[Any, Any]) -> None:
        """Let a canvas take the place of a job, if it is still this worker's."""
        worker, [held] = self.take(which, [position])
        graph = replacing(canvas, held.id, self.new_id)
        document = graph.replacement()
        before = set(self.model.jobs)
        expected = self.model.replace(held.id, held.token, graph)
        self.enqueued |= set(self.model.jobs) - before
        self.settle(worker, [held])
        self.note_gone()

        ids = worker.finish(held, "replace", result=document)

        assert set(ids) == expected

    @precondition(lambda self: any(self.hands.values()))
    @rule(which=one, positions=some, crashed=st.booleans())
    def give_back(self, which: int, positions: list[int], crashed: bool) -> None:
        """Release jobs, or those of a child that died."""
        worker, chosen = self.take(which, positions, one_queue=True)
        held = [(one.id, one.token) for one in chosen]
        expected = self.model.release(held, [one.id for one in chosen] if crashed else [])
        self.settle(worker, chosen)
        self.note_gone()

        count = worker.crash(chosen) if crashed else worker.release(chosen)

        assert count == expected

    @precondition(lambda self: any(self.hands.values()))
    @rule(which=one, positions=some)
    def beat(self, which: int, positions: list[int]) -> None:
        [worker] = pick(self.workers, [which])
        hand = self.hands[worker.id]
        running = [held.id for held in pick(hand, positions)] if hand else []
        known = self.model.workers.get(worker.id)
        if known is not None:
            known.beat += 1
            known.running = frozenset(running)

        assert worker.beat(running) == (known.beat if known else None)

    @precondition(lambda self: any(self.hands.values()))
    @rule(which=one, by=one, moved=st.sampled_from([False, False, True]))
    def rescue(self, which: int, by: int, moved: bool) -> None:
        """Rescue a worker; one whose beat moved after all stays, and so does one that is gone already."""
        [worker], [rescuer] = pick(self.workers, [which]), pick(self.workers, [by])
        known = self.model.workers.get(worker.id)
        expected = self.model.rescue(worker.id) if known and not moved else None
        self.note_gone()

        count = rescuer.rescue(worker, known.beat - 1 if known and moved else None)

        assert count == expected

    @precondition(lambda self: len(self.model.workers) < 2 and len(self.workers) < 6)
    @rule(which=one)
    def start_another_worker(self, which: int) -> None:
        self.start_worker(knows_all=which == 0)

    @precondition(lambda self: self.model.claims)
    @rule(which=one)
    def deregister(self, which: int) -> None:
        """Leave with whatever is in hand: its claims are orphans."""
        [worker] = pick(self.workers, [which])
        self.model.workers.pop(worker.id, None)
        self.execute("deregister_worker", worker_id=worker.id)

    @precondition(lambda self: self.model.claims)
    @rule(
        which=one,
        taken=st.booleans(),
        how=st.sampled_from(["succeeded", "failed", "retry", "release", "crash"]),
    )
    def come_too_late(self, which: int, taken: bool, how: str) -> None:
        """Lose a claim to a rescue, and say how its jobs went when they wait again or others have them."""
        holding = [one for one in self.workers if self.registered(one) and self.hands[one.id]]
        if not holding:
            return
        [worker] = pick(holding, [which])
        self.rescue(which=self.workers.index(worker), by=which, moved=False)
        self.the_tables_are_as_the_model_says()
        if taken and self.lanes():
            self.claim(which=self.workers.index(worker) + 1, where=which, limit=100, lost=False)
        at = [one for one in self.workers if self.hands[one.id]].index(worker)
        everything = list(range(len(self.hands[worker.id])))
        if how in ("release", "crash"):
            self.give_back(which=at, positions=everything, crashed=how == "crash")
        else:
            self.finish(
                which=at, positions=everything, outcome=how, delay=0.0, begun=True, keep=True
            )

    def orphans(self) -> list[str]:
        """Return the tokens of claims whose worker is not registered."""
        return [
            claim.token
            for claim in self.model.claims.values()
            if claim.worker_id not in self.model.workers
        ]

    @precondition(lambda self: self.orphans())
    @rule()
    def release_orphaned_claims(self) -> None:
        for token in self.orphans():
            self.model.take_back(token)
        self.note_gone()

        self.execute("release_orphaned_claims")

    # Upkeep

    def time_passes(self, positions: list[int]) -> None:
        ahead = [job for job in self.model.live() if job.state == "scheduled"]
        for job in pick(ahead, positions):
            job.start_at = "past"
            # One after the other, as promote_jobs has to take them.
            self.connection.execute(
                "update pgtasks.job set start_at = timestamptz '2020-01-01' + %s * interval '1 s'"
                " where id = %s",
                [int(job.id[-12:], 16), job.id],
            )

    @precondition(lambda self: any(job.state == "scheduled" for job in self.model.live()))
    @rule(positions=st.lists(one, max_size=3), queue=queues, limit=st.sampled_from([1, 2, 1000]))
    def promote(self, positions: list[int], queue: str, limit: int) -> None:
        """Let the time of some jobs come, and promote as many of a queue."""
        self.time_passes(positions)
        due = sorted(
            job.id
            for job in self.model.live()
            if (job.state, job.queue, job.start_at) == ("scheduled", queue, "past")
        )[:limit]
        self.model.make_ready(due)

        assert self.execute("promote_jobs", queue=queue, limit=limit) == [(len(due),)]

    @precondition(lambda self: any(job.task == STRANGE for job in self.model.waiting()))
    @rule(queue=queues, limit=st.sampled_from([1, 2, 1000]), patient=st.booleans())
    def park_unknown(self, queue: str, limit: int, patient: bool) -> None:
        known = {task for worker in self.model.workers.values() for task in worker.tasks}
        if not patient:
            for job in self.model.line(queue)[:limit]:
                if job.token is None and job.task not in known:
                    job.state = "parked"

        self.execute("park_unknown", queue=queue, limit=limit, after=LATER if patient else -1.0)

    @precondition(lambda self: any(job.state == "parked" for job in self.model.live()))
    @rule(queue=queues, knows=st.lists(tasks, unique=True))
    def unpark_known(self, queue: str, knows: list[str]) -> None:
        self.model.make_ready(
            job.id
            for job in self.model.live()
            if (job.state, job.queue) == ("parked", queue) and job.task in knows
        )
        self.execute("unpark_known", queue=queue, tasks=knows, limit=1000)

    # Operators

    @precondition(lambda self: self.enqueued)
    @rule(positions=some, terminate=st.booleans(), how=st.sampled_from(["jobs", "jobs", "bundle"]))
    def cancel(self, positions: list[int], terminate: bool, how: str) -> None:
        """Cancel jobs, or the members of a bundle."""
        ids = pick(sorted(self.enqueued), positions)
        if how == "bundle" and self.model.bundles:
            [bundle] = pick(list(self.model.bundles), positions[:1])
            ids = sorted(self.model.live_members([bundle]))
            operation = operations.cancel_bundles([bundle], terminate=terminate)
        else:
            operation = operations.cancel_jobs(ids, terminate=terminate)
        cancelled = self.model.cancel_waiting(ids)
        requested = self.model.request_cancel(ids, terminate)
        self.note_gone()

        answer = self.run(operation)

        expected = dict.fromkeys(requested, "requested") | dict.fromkeys(cancelled, "cancelled")
        assert answer == expected

    @precondition(lambda self: self.model.finished())
    @rule(
        positions=some,
        which=anywhere,
        how=st.sampled_from(["jobs", "bundle", "failed", "failed"]),
    )
    def reset(self, positions: list[int], which: int, how: str) -> None:
        """Reset jobs, or the members of a bundle; or start again what failed in it or before it."""
        ids = pick(sorted(job.id for job in self.model.finished()), positions)
        bundles = pick(list(self.model.bundles), [which]) if self.model.bundles else []
        operation: Operation[list[str]]
        if how == "failed" and bundles:
            expected = self.model.retry_failed(bundles)
            operation = operations.retry_failed(bundles)
        elif how == "bundle" and bundles:
            expected = self.model.reset(self.model.members(bundles))
            operation = operations.reset_bundles(bundles)
        else:
            expected = self.model.reset(ids)
            operation = operations.reset_jobs(ids)

        ready = self.run(operation)
        self.note_gone()

        assert set(ready) == expected

    @precondition(lambda self: self.model.waiting())
    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        waiting = sorted(job.id for job in self.model.waiting() if job.queue == queue)

        ids = self.run(operations.list_waiting_ids([queue]))

        assert ids == waiting
        self.model.cancel_waiting(ids)
        self.note_gone()
        self.run(operations.cancel_waiting_jobs(ids, "purged"))

    @precondition(lambda self: self.model.finished())
    @rule(
        positions=some,
        how=st.sampled_from(["jobs", "bundles", "history"]),
        state=st.sampled_from([None, *FINAL]),
        queue=st.sampled_from([None, *QUEUES]),
    )
    def delete(self, positions: list[int], how: str, state: str | None, queue: str | None) -> None:
        """Delete jobs (what waits is cancelled first), bundles, or what fits."""
        ids = pick(sorted(self.enqueued), positions)
        expected: object
        if how == "jobs":
            self.model.cancel_waiting(ids)
            expected = self.model.forget(ids)
            answer = set(self.run(operations.delete_jobs(ids)))
        elif how == "bundles":
            bundles = pick(list(self.model.bundles), positions) if self.model.bundles else []
            expected = self.model.forget_bundles(bundles)
            answer = set(self.run(operations.delete_bundles(bundles)))
        else:
            fit = [
                id
                for id in self.model.forgettable()
                if self.model.jobs[id].state in (state or self.model.jobs[id].state)
                and self.model.jobs[id].queue == (queue or self.model.jobs[id].queue)
            ]
            expected = len(self.model.forget(fit))
            states = None if state is None else [JobState(state)]
            answer = self.run(operations.delete_history(states=states, queue=queue))
        self.note_gone()

        assert answer == expected

    # The end

    def teardown(self) -> None:
        """Let everybody die, and one worker do what is left: each job comes to its end."""
        if not self.workers or differences(self.model, read_tables(self.connection).tables):
            return  # a step failed
        for worker in list(self.model.workers):
            self.model.rescue(worker)
        for one in self.workers:
            self.workers[0].rescue(one)
        self.release_orphaned_claims()
        self.the_tables_are_as_the_model_says()
        last = SimulatedWorker(self.connection, QUEUES)
        self.model.workers[last.id] = ModelWorker(last.id)
        for _ in range(100):
            if not self.model.waiting():
                break
            for queue in QUEUES:
                if any(job.state == "scheduled" for job in self.model.live()):
                    everything = list(range(len(self.enqueued)))
                    self.promote(positions=everything, queue=queue, limit=1000)
                self.unpark_known(queue=queue, knows=[*KNOWN, ONCE, STRANGE])
                self.the_tables_are_as_the_model_says()
                for once in (False, True):
                    held = self.claim_for(last, queue, 1000, once)
                    self.model.finish([(job.id, job.token) for job in held], "succeeded")
                    last.succeed(held)
                    for job in held:
                        self.model.claims.pop(job.token, None)
                    self.note_gone()
                    self.the_tables_are_as_the_model_says()
        assert not self.model.claims
        assert all(job.final for job in self.model.jobs.values())
        assert all(bundle.stopped for bundle in self.model.bundles.values())


def explore(connection: psycopg.Connection[Any], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: DatabaseMachine(connection),  # type: ignore[arg-type]  # what makes one will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_database_does_what_the_model_does(connection):
    explore(connection, examples=40, steps=40)


# 0.28 s an example on a machine that others use too: never more than 5 minutes, whatever the scale, since
# faulthandler_timeout ends a test that takes 15.
MOST_EXAMPLES = 1000


@pytest.mark.slow
@pytest.mark.long
def test_the_database_does_what_the_model_does_for_long(connection):
    scale = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)
    explore(connection, examples=min(round(300 * scale), MOST_EXAMPLES), steps=60)
