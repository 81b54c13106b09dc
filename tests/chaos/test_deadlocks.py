"""Everybody writes the same jobs and bundles at once, in any order: nobody sees a deadlock, and all stays sound.

Where graphs grow meanwhile there may be a few, of which one side is broken off: whoever it is begins again.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgtasks import App, chain, chord, group
from pgtasks.db import operations
from pgtasks.db.embedded import TemporaryServer
from pgtasks.db.run import run_alone as run
from pgtasks.errors import JobStateError
from pgtasks.graph import compile_graph, compile_members
from pgtasks.ids import new_id
from pgtasks.job import NewBundle, NewJob
from tests.fixtures.bundles import add_waiter, insert_bundle, insert_job
from tests.fixtures.database_model import assert_sound, read_tables
from tests.fixtures.simulated_worker import Held, SimulatedWorker, execute

pytestmark = pytest.mark.chaos

QUEUES = ["default", "other"]
WRITERS = 8
SECONDS = 5.0  # times PGTASKS_CHAOS_SCALE, up to MOST
MOST = 600.0
SELDOM = 5000  # acts, of which one may be broken off by a deadlock
LIVE = 60  # so few that the writers meet
# Jobs of this task may be deleted, the others must be there at the end.
MORTAL = "mortal"
# Callbacks that may vanish, and what may have replaced one or been added to it.
PERHAPS = "perhaps"

app = App("storm")


@app.task(name="echo")
def echo(value: Any = None) -> Any:
    return value


class Storm:
    """What the writers share: the ids of everything, and how things went."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.stop = threading.Event()
        self.workers: list[SimulatedWorker] = []
        self.jobs: dict[str, list[str]] = {"echo": [], MORTAL: [], PERHAPS: []}
        self.bundles: list[str] = []
        self.mortal_bundles: list[str] = []
        self.vanishing: set[str] = set()  # bundles that may go, and what is added to them
        self.done: Counter[str] = Counter()
        self.doing: dict[int, str] = {}  # pid of the session -> act
        self.deadlocks: list[str] = []  # the acts that were broken off
        self.errors: list[str] = []


class Writer(threading.Thread):
    """A worker, an operator and a client in one, who does whatever comes to mind."""

    def __init__(self, storm: Storm, seed: int) -> None:
        super().__init__(daemon=True)
        self.storm = storm
        self.chance = random.Random(seed)

    def run(self) -> None:
        try:
            with psycopg.connect(self.storm.dsn, autocommit=True) as connection:
                self.connection = connection
                self.begin()
                while not self.storm.stop.is_set():
                    act = self.chance.choice(self.acts)
                    self.storm.doing[connection.info.backend_pid] = act.__name__
                    try:
                        act()
                    except psycopg.errors.DeadlockDetected:
                        # A worker's own: what it held, and does not know any more, others rescue.
                        self.storm.deadlocks.append(act.__name__)
                    self.storm.done[act.__name__] += 1
        except BaseException as error:
            # With what the others did: a deadlock names their sessions.
            self.storm.errors.append(f"{error!r}, while {self.storm.doing}")
            self.storm.stop.set()

    def begin(self) -> None:
        self.register()
        self.acts: list[Callable[[], None]] = [
            *[self.claim] * 4,
            *[self.finish] * 4,
            *[self.retry] * 2,
            *[self.enqueue] * 2,
            *[self.enqueue_graph] * 2,
            self.replace,
            self.grow,
            self.release,
            self.crash,
            self.rescue,
            self.beat,
            self.lose_claim,
            self.release_orphans,
            self.cancel,
            self.cancel_bundle,
            self.reset,
            self.reset_bundle,
            self.delete,
            self.delete_history,
            self.delete_bundles,
            self.purge,
            self.promote,
            self.park,
            self.unpark,
            self.wait_for_a_bundle,
        ]

    def register(self) -> None:
        self.worker = SimulatedWorker(self.connection, QUEUES, ["echo"])
        self.storm.workers.append(self.worker)
        self.hand: list[Held] = []

    def execute(self, name: str, **parameters: object) -> list[Any]:
        return execute(self.connection, name, **parameters)

    def some(self, ids: list[str], most: int = 12) -> list[str]:
        """Pick among the newest of these, in no order."""
        newest = ids[-LIVE:]
        return self.chance.sample(newest, min(len(newest), self.chance.randint(1, most)))

    def some_jobs(self) -> list[str]:
        return self.some([*self.storm.jobs["echo"][-LIVE:], *self.storm.jobs[MORTAL][-LIVE:]])

    def take(self) -> list[Held]:
        self.chance.shuffle(self.hand)
        count = self.chance.randint(1, 8)
        taken, self.hand = self.hand[:count], self.hand[count:]
        return taken

    # What it does

    def enqueue(self) -> None:
        [(live,)] = self.connection.execute("select count(*) from pgtasks.job").fetchall()
        if live >= LIVE:
            return
        task = self.chance.choice(["echo", MORTAL])
        if self.chance.random() < 0.4:
            self.enqueue_nested()
            return
        bundle = NewBundle(id=new_id(), total=self.chance.randint(2, 12))
        jobs = [
            NewJob(
                id=new_id(),
                task=task,
                queue=self.chance.choice(QUEUES),
                priority=self.chance.choice([0, 5]),
                delay=self.chance.choice([None, None, 0.05]),
                bundle_id=bundle.id,
                bundle_index=index,
            )
            for index in range(bundle.total)
        ]
        run(self.connection, operations.enqueue_jobs(jobs, [bundle]))
        self.storm.jobs[task] += [job.id for job in jobs]
        if task == MORTAL:
            self.storm.mortal_bundles.append(bundle.id)
            self.storm.vanishing.add(bundle.id)
        self.storm.bundles.append(bundle.id)

    def enqueue_nested(self) -> None:
        """Write a bundle of two, whose second begins when the first succeeded."""
        with self.connection.transaction():
            around = insert_bundle(self.connection, total=3)
            within = [
                insert_bundle(self.connection, total=2, parent=around, depth=1) for _ in range(2)
            ]
            ids = [
                insert_job(self.connection, bundle, queue=self.chance.choice(QUEUES))
                for bundle in within * 2
            ]
            ids.append(insert_job(self.connection, around, after=within[0], after_on="success"))
        self.storm.jobs["echo"] += ids
        self.storm.bundles += [around, *within]

    def canvas(self) -> Any:
        """Make a chain, or a chord, with callbacks for failure."""
        some = self.chance.randint(1, 3)
        header = group(
            [
                chain(echo.s(), echo.s()) if self.chance.random() < 0.5 else echo.s()
                for _ in range(some)
            ]
        )
        made: Any = chord(header, chain(echo.s(), echo.s()))
        if self.chance.random() < 0.5:
            made = chain(echo.s(), header, echo.s(), echo.s())
        if self.chance.random() < 0.5:
            made.link_error(chain(echo.s(), echo.s()))
        made.link(echo.s())
        return made

    def enqueue_graph(self) -> None:
        [(live,)] = self.connection.execute("select count(*) from pgtasks.job").fetchall()
        if live >= LIVE:
            return
        graph = compile_graph(self.canvas())
        run(self.connection, operations.enqueue_jobs(graph.jobs, graph.bundles))
        self.note(graph)

    def note(self, graph: Any, name: str = "echo") -> None:
        """Remember a graph's jobs; callbacks for failure, and what follows them, may be gone."""
        gone: set[str | None] = set()
        for job in graph.jobs:
            mortal = name == PERHAPS or job.after_on == "failure" or job.after_bundle_id in gone
            if mortal and job.bundle_id is not None:
                gone.add(job.bundle_id)
            self.storm.jobs[PERHAPS if mortal else name].append(job.id)
        # Said before others find them: what is added there vanishes with them.
        self.storm.vanishing |= {one.id for one in graph.bundles if one.id in gone}
        self.storm.bundles += [one.id for one in graph.bundles]

    def replace(self) -> None:
        for held in self.take()[:2]:
            graph = compile_graph(self.canvas(), options={"task_id": held.id})
            self.worker.finish(held, "replace", result=graph.replacement())
            self.note(graph, PERHAPS)

    def grow(self) -> None:
        for bundle in self.some(self.storm.bundles, 1):
            place = new_id()
            graph = compile_members(chain(echo.s(), echo.s()), place)
            try:
                steps = operations.grow_group(bundle, graph.jobs, graph.bundles, place)
                with self.connection.transaction():
                    run(self.connection, steps)
            except JobStateError:
                continue  # it has stopped
            self.note(graph, PERHAPS if bundle in self.storm.vanishing else "echo")

    def wait_for_a_bundle(self) -> None:
        for bundle in self.some(self.storm.bundles, 1):
            with self.connection.transaction():
                there = self.connection.execute(
                    "select from pgtasks.job_bundle where id = %s for update", [bundle]
                )
                if there.fetchone() is not None:
                    on = self.chance.choice(["success", "stop"])
                    name = PERHAPS if bundle in self.storm.vanishing else "echo"
                    self.storm.jobs[name].append(add_waiter(self.connection, bundle, after_on=on))

    def claim(self) -> None:
        self.hand += self.worker.claim(
            self.chance.choice(QUEUES),
            limit=self.chance.randint(1, 12),
            tasks=["echo", MORTAL],
            at_most_once=self.chance.random() < 0.2,
        )

    def lose_claim(self) -> None:
        held = self.worker.claim(limit=3, tasks=["echo", MORTAL])
        if held:
            self.worker.lose_reply(held)
        self.worker.release_lost()

    def finish(self) -> None:
        if held := self.take():
            self.worker.finish(held, self.chance.choice(["succeeded", "succeeded", "failed"]))

    def retry(self) -> None:
        if held := self.take():
            self.worker.retry(held, self.chance.choice([0.0, 0.02]))

    def release(self) -> None:
        for queue in QUEUES:
            if held := [one for one in self.hand if one.queue == queue]:
                self.hand = [one for one in self.hand if one.queue != queue]
                self.worker.release(held)

    def crash(self) -> None:
        if held := [one for one in self.take() if one.queue == "default"]:
            self.worker.crash(held)

    def beat(self) -> None:
        if self.worker.beat([one.id for one in self.hand[:3]]) is None:
            for _ in range(3):
                self.finish()  # too late, which it does not know yet
            self.register()

    def rescue(self) -> None:
        self.worker.rescue(self.chance.choice(self.storm.workers[-WRITERS:]))

    def release_orphans(self) -> None:
        self.execute("release_orphaned_claims")

    def cancel(self) -> None:
        if ids := self.some_jobs():
            terminate = self.chance.random() < 0.5
            run(self.connection, operations.cancel_jobs(ids, terminate=terminate))

    def cancel_bundle(self) -> None:
        if ids := self.some(self.storm.bundles, 3):
            run(self.connection, operations.cancel_bundles(ids))

    def reset(self) -> None:
        if ids := self.some_jobs():
            run(self.connection, operations.reset_jobs(ids))

    def reset_bundle(self) -> None:
        if ids := self.some(self.storm.bundles, 3):
            if self.chance.random() < 0.5:
                run(self.connection, operations.retry_failed(ids))
            else:
                run(self.connection, operations.reset_bundles(ids))

    def delete(self) -> None:
        if ids := self.some(self.storm.jobs[MORTAL], 5):
            run(self.connection, operations.delete_jobs(ids))

    def delete_history(self) -> None:
        run(self.connection, operations.delete_history(task=MORTAL))

    def delete_bundles(self) -> None:
        if ids := self.some(self.storm.mortal_bundles, 3):
            run(self.connection, operations.delete_bundles(ids))

    def purge(self) -> None:
        if self.chance.random() < 0.2:
            queue = self.chance.choice(QUEUES)
            ids = run(self.connection, operations.list_waiting_ids([queue]))
            run(self.connection, operations.cancel_waiting_jobs(ids, "purged"))

    def promote(self) -> None:
        self.execute("promote_jobs", queue=self.chance.choice(QUEUES), limit=10)

    def park(self) -> None:
        self.execute("park_unknown", queue=self.chance.choice(QUEUES), limit=10, after=-1.0)

    def unpark(self) -> None:
        self.execute(
            "unpark_known", queue=self.chance.choice(QUEUES), tasks=["echo", MORTAL], limit=1000
        )


def look(connection: psycopg.Connection[Any]) -> None:
    """Assert that what is committed right now is sound."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read read only")
        assert_sound(read_tables(connection).tables)


def bring_to_an_end(connection: psycopg.Connection[Any], storm: Storm) -> None:
    """Rescue every worker, and let one do what is left."""
    last = SimulatedWorker(connection, QUEUES)
    for worker in storm.workers:
        last.rescue(worker)
    last.execute("release_orphaned_claims")
    connection.execute(
        "update pgtasks.job set start_at = now() - interval '1 s' where state = 'scheduled'"
    )
    for _ in range(20):
        for queue in QUEUES:
            last.execute("promote_jobs", queue=queue, limit=1000)
            last.execute("unpark_known", queue=queue, tasks=["echo", MORTAL], limit=1000)
            last.run_all(queue)


def test_writers_of_the_same_jobs_do_not_deadlock(
    server: TemporaryServer, rng: random.Random
) -> None:
    scale = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)
    storm = Storm(server.dsn)
    writers = [Writer(storm, rng.randrange(2**32)) for _ in range(WRITERS)]
    end = time.monotonic() + min(MOST, SECONDS * scale)

    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for writer in writers:
            writer.start()
        try:
            while time.monotonic() < end and not storm.stop.wait(0.05):
                look(connection)
        finally:
            storm.stop.set()
            for writer in writers:
                writer.join(30)
        assert not storm.errors, "\n".join(storm.errors)
        look(connection)
        bring_to_an_end(connection, storm)
        tables = read_tables(connection).tables

    assert_sound(tables)
    assert not tables.claims
    assert [job for job in tables.jobs.values() if not job.final] == []
    assert set(storm.jobs["echo"]) <= set(tables.jobs)
    assert set(tables.jobs) <= {id for ids in storm.jobs.values() for id in ids}
    acts = {act.__name__ for act in writers[0].acts}
    assert set(storm.done) == acts, f"never came to mind: {acts - set(storm.done)}"
    assert len(storm.deadlocks) <= 1 + sum(storm.done.values()) / SELDOM, storm.deadlocks
    print(f"{sum(storm.done.values())} acts, broken off: {storm.deadlocks}: {dict(storm.done)}")  # noqa: T201 (for the long profile)
