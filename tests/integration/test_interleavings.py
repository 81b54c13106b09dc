"""Two calls at once, in every order of their statements: no order may end in a state that none should.

After each order the tables are sound (`assert_sound`: no job held without a claim, no count that is
not that of its members, nobody who waits for a stopped bundle), no job is lost or there twice, and
things stand as after one call and then the other, whichever came first; but for what a pair says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pgtasks.db import operations
from tests.fixtures.bundles import add_waiter, insert_bundle, insert_job
from tests.fixtures.database_model import Tables, assert_sound, read_tables
from tests.fixtures.interleaving import Theatre, by_step, gated, interleave, play, theatre
from tests.fixtures.simulated_worker import EVERYTHING, Held, SimulatedWorker

Steps = Iterator[str]
Connection = psycopg.Connection[Any]


class Scene:
    """What all actions act on: something of everything, and two workers that hold most of it.

    An outer bundle has an inner one, whose end the body (a member of the outer) waits for. Worker 1 holds
    the members, in two claims whose jobs lie between each other, and in two queues; one of its jobs is
    to be cancelled. It has claimed another without having got the reply, and so has a worker that is gone.
    """

    def __init__(self, connection: Connection) -> None:
        for table in ("job", "job_history", "job_bundle", "claim", "worker"):
            connection.execute(f"delete from pgtasks.{table}")
        self.connection = connection
        self.names: dict[str, str] = {}
        self.outer = self.name("outer", insert_bundle(connection, total=4))
        self.inner = self.name(
            "inner", insert_bundle(connection, total=2, parent=self.outer, depth=1)
        )
        self.ended = self.name("ended", insert_bundle(connection, total=1))
        self.one = SimulatedWorker(connection, tasks=["echo"])
        self.two = SimulatedWorker(connection, tasks=["echo"])
        gone = SimulatedWorker(connection, tasks=["echo"])
        self.workers = {self.one.id: "one", self.two.id: "two", gone.id: "gone"}

        self.done = self.add("done", self.ended)
        self.one.fail(self.one.claim_one())
        inner = [self.add("inner0", self.inner), self.add("outer0", self.outer)]
        first = self.one.claim()
        inner += [self.add("inner1", self.inner)]
        other = self.add("outer1", self.outer, queue="another")
        second = self.one.claim() + self.one.claim("another")
        self.body = self.add(
            "body", self.outer, after=self.inner, after_on="success", takes="results"
        )
        self.after = self.add("after", after=self.outer, after_on="stop")
        self.held: dict[str, Held] = {self.names[one.id]: one for one in [*first, *second]}
        self.members = [*inner, other]
        self.lost = self.add("lost")
        self.one.lose_reply(self.one.claim())
        self.orphan = self.add("orphan")
        gone.claim()
        connection.execute("delete from pgtasks.worker where id = %s", [gone.id])
        self.free = self.add("free")
        self.due = self.add("due")
        self.strange = self.add("strange")
        connection.execute(
            "update pgtasks.job set state = 'scheduled', start_at = now() - interval '1 s'"
            " where id = %s",
            [self.due],
        )
        connection.execute("update pgtasks.job set task = 'strange' where id = %s", [self.strange])
        self.parked = self.add("parked")
        connection.execute(
            "update pgtasks.job set state = 'parked', reason = 'unknown task' where id = %s",
            [self.parked],
        )
        self.one.beat([inner[0]])
        connection.execute(
            "update pgtasks.job set cancel_requested = true where id = %s", [inner[2]]
        )
        self.everything = sorted(id for id, name in self.names.items() if name not in BUNDLES)

    def name(self, name: str, id: str) -> str:
        self.names[id] = name
        return id

    def add(self, name: str, bundle: str | None = None, **about: Any) -> str:
        return self.name(name, insert_job(self.connection, bundle, **about))

    def by(self, worker: SimulatedWorker, connection: Connection) -> SimulatedWorker:
        """Let a worker speak through the session whose turn it is."""
        worker.connection = connection
        return worker

    def hand(self, *names: str) -> list[Held]:
        return [self.held[name] for name in names]


BUNDLES = {"outer", "inner", "ended"}

# What can happen: each executes one statement at a step.


def claim(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).claim(limit=2, ranges=EVERYTHING, tasks=["echo"])
    yield "claim_jobs"


def finish(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).succeed(scene.hand("inner0", "inner1", "outer0", "outer1"), 1)
    yield "finish_jobs"


def finish_first(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).succeed(scene.hand("inner0"), 1)
    yield "finish_jobs inner0"


def fail_last(scene: Scene, connection: Connection) -> Steps:
    execute_finish(scene, connection, "inner1", "failed")
    yield "finish_jobs inner1"


def succeed_last(scene: Scene, connection: Connection) -> Steps:
    execute_finish(scene, connection, "inner1", "succeeded")
    yield "finish_jobs inner1"


def execute_finish(scene: Scene, connection: Connection, name: str, outcome: str) -> None:
    """Finish by statement, for what goes on beside another call of the same worker."""
    held = scene.held[name]
    connection.execute(
        "select pgtasks.finish_jobs(array[%s], array[%s]::uuid[], array[%s]::uuid[], array[%s],"
        " array['1'], array[null]::jsonb[], array[0]::float8[], array[0.25], array[true], '{}')",
        [held.queue, held.id, held.token, outcome],
    )


def retry(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).retry(scene.hand("inner0", "inner1", "outer1"), 0.0)
    yield "finish_jobs retry"


def release(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).release(scene.hand("inner0", "inner1", "outer0"))
    yield "release_jobs"


def crash(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).crash(scene.hand("inner0"))
    yield "crash_jobs"


def rescue(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).rescue(scene.one, beat=1)
    yield "rescue_worker"


def beat(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).beat([scene.members[0]])
    yield "beat"


def release_lost(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.one, connection).release_lost()
    yield "release_lost_claims"


def release_orphans(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).execute("release_orphaned_claims")
    yield "release_orphaned_claims"


def cancel(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.cancel_jobs(scene.everything))


def cancel_body(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.cancel_jobs([scene.body]))


def cancel_bundle(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.cancel_bundles([scene.outer, scene.inner]))


def reset(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.reset_jobs(scene.everything))


def retry_failed(scene: Scene, connection: Connection) -> Steps:
    bundles = [scene.ended, scene.inner, scene.outer]
    yield from by_step(connection, operations.retry_failed(bundles))


def delete(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.delete_jobs(scene.everything))


def delete_history(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.delete_history())


def delete_bundles(scene: Scene, connection: Connection) -> Steps:
    yield from by_step(connection, operations.delete_bundles([scene.ended, scene.inner]))


def promote(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).execute("promote_jobs", queue="default", limit=10)
    yield "promote_jobs"


def park(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).execute("park_unknown", queue="default", limit=99, after=-1.0)
    yield "park_unknown"


def unpark(scene: Scene, connection: Connection) -> Steps:
    scene.by(scene.two, connection).execute(
        "unpark_known", queue="default", tasks=["echo"], limit=1000
    )
    yield "unpark_known"


def wait_for_inner(scene: Scene, connection: Connection) -> Steps:
    scene.name("late waiter", add_waiter(connection, scene.inner, after_on="stop"))
    yield "add_waiter"


Action = Callable[[Scene, Connection], Steps]
ACTIONS: list[Action] = [
    claim, finish, retry, release, crash, rescue, beat, release_lost,
    release_orphans, cancel, cancel_body, cancel_bundle, reset, delete, delete_history,
    delete_bundles, promote, park, unpark, wait_for_inner, finish_first, fail_last, succeed_last,
    retry_failed,
]  # fmt: skip
PAIRS: list[tuple[Action, Action]] = [
    (claim, finish),
    (rescue, finish),
    (cancel, finish),
    (promote, cancel),
    (retry, rescue),
    (cancel, claim),
    (reset, cancel),
    (release, rescue),
    (finish_first, succeed_last),
    (finish_first, fail_last),
    (wait_for_inner, finish),
    (cancel_body, finish),
    (release_lost, rescue),
    (release_orphans, cancel),
    (reset, delete_bundles),
    (retry_failed, reset),
    (retry_failed, cancel_bundle),
    (retry_failed, delete_bundles),
    (retry_failed, fail_last),
]
# Two calls of one worker are one after the other: its connection is one.
OF_WORKER_ONE = {
    finish, retry, release, crash, beat, release_lost, finish_first,
}  # fmt: skip
OTHER_PAIRS = [
    pair
    for pair in itertools.combinations(ACTIONS, 2)
    if pair not in PAIRS and pair[::-1] not in PAIRS and not set(pair) <= OF_WORKER_ONE
]
# Those that pass over what somebody else has locked: they may do less than in either order.
SKIPPING = {claim, promote, unpark, rescue}
# For these the orders of whole calls are not all that is allowed; the tables are sound in any case.
# What is read before it is locked may be gone or have come: a cancel or a reset of what was listed.
LISTING = {
    cancel,
    cancel_body,
    cancel_bundle,
    reset,
    retry_failed,
    delete,
    park,
    delete_history,
    delete_bundles,
}


def summary(scene: Scene, tables: Tables) -> tuple[Any, ...]:
    """Return what stands there, by names instead of ids, without the tokens."""
    names = scene.names
    jobs = sorted(
        (
            names[job.id],
            replace(
                job,
                id="",
                token="held" if job.token else None,
                worker_id=None,
                bundle=None,
                after=None,
                unmet=job.unmet
                and replace(job.unmet, dependency=names.get(job.unmet.dependency or "")),
            ),
        )
        for job in tables.jobs.values()
    )
    bundles = sorted(
        (names[one.id], one.remaining, one.failed, one.stopped) for one in tables.bundles.values()
    )
    claims = sorted(
        (scene.workers.get(one.worker_id, "?"), sorted(names[id] for id in one.job_ids))
        for one in tables.claims.values()
    )
    return repr(jobs), tuple(bundles), repr(claims), len(tables.workers)


def assert_nothing_is_lost(scene: Scene, tables: Tables, *actions: Action) -> None:
    """Assert that each job is somewhere, unless one of the calls deletes jobs."""
    if not set(actions) & {delete, delete_history, delete_bundles}:
        assert set(tables.jobs) == set(names_of_jobs(scene))


def names_of_jobs(scene: Scene) -> list[str]:
    return [id for id, name in scene.names.items() if name not in BUNDLES]


def explore(house: Theatre, pair: tuple[Action, Action], most: int) -> int:
    """Play orders of two calls, and judge each; return how many."""
    left, right = pair

    def stage() -> Scene:
        return Scene(house.connection)

    serial = []
    for first in ("left", "right"):
        scene = stage()
        play(house, scene, left, right, [first] * 20)
        serial.append(summary(scene, read_tables(house.connection).tables))
    count = 0
    for scene, played in interleave(house, stage, left, right, most):
        count += 1
        tables = read_tables(house.connection).tables
        try:
            assert_sound(tables)
            assert_nothing_is_lost(scene, tables, left, right)
            if not {left, right} & (SKIPPING | LISTING):
                assert summary(scene, tables) in serial, "as after neither order of the calls"
        except AssertionError as error:
            raise AssertionError(f"{error} in this order:\n{played}") from error
    return count


def hold_each_row(house: Theatre, left: Action, right: Action) -> None:
    """Stop both calls at each row of the scene in turn, to see that they lock in one order."""
    gates = [
        ("select from pgtasks.job where id = %s for update", names_of_jobs),
        ("select from pgtasks.job_bundle where id = %s for update", lambda s: [s.outer, s.inner]),
        ("select from pgtasks.worker where id = %s for update", lambda s: [s.one.id]),
    ]
    for gate, rows in gates:
        for at in range(len(rows(Scene(house.connection)))):
            for first, second in ((left, right), (right, left)):
                scene = Scene(house.connection)
                held = rows(scene)[at]
                try:
                    went = gated(house, scene, first, second, gate, [held])
                    tables = read_tables(house.connection).tables
                    assert_sound(tables)
                    assert_nothing_is_lost(scene, tables, left, right)
                except AssertionError as error:
                    raise AssertionError(
                        f"{error}\n{first.__name__}, then {second.__name__}, while"
                        f" {scene.names.get(held, held)} was held"
                    ) from error
                assert went


def called(pair: tuple[Action, Action]) -> str:
    return " and ".join(action.__name__ for action in pair)


@pytest.mark.parametrize("pair", PAIRS, ids=called)
def test_no_order_of_two_calls_ends_in_an_illegal_state(dsn, pair):
    with theatre(dsn) as house:
        assert explore(house, pair, 40) >= 4


@pytest.mark.parametrize("pair", PAIRS[:13], ids=called)
def test_two_calls_that_are_stopped_halfway_do_not_deadlock(dsn, pair):
    with theatre(dsn) as house:
        hold_each_row(house, *pair)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("pair", [*PAIRS, *OTHER_PAIRS], ids=called)
def test_no_order_of_any_two_calls_ends_in_an_illegal_state(dsn, pair):
    with theatre(dsn) as house:
        assert explore(house, pair, 1000) >= 4
        hold_each_row(house, *pair)
