"""Queues that are paused or limited: what a claim may take, and what a look says, whatever happened before."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pgtasks import App, DatabaseError, Queue, Rate
from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.ids import new_id
from tests.fixtures.bundles import insert_job
from tests.fixtures.simulated_worker import Held, SimulatedWorker, heard

Connection = psycopg.Connection[Any]

TASK = "echo"


def look(worker: SimulatedWorker, queue: str = "default") -> tuple[bool, float | None]:
    [(_, ready, due_in)] = worker.execute("look", queues=[queue], tasks=[TASK], hot=[])
    return ready, due_in


def let_pass(connection: Connection, seconds: float) -> None:
    """Let time pass for the buckets: what is injected is the moment of the last look into them."""
    connection.execute(
        "update pgtasks.queue set refilled_at = refilled_at - %s * interval '1 second'", [seconds]
    )


def fill(connection: Connection, count: int, queue: str = "default") -> list[str]:
    ids = [new_id() for _ in range(count)]
    connection.execute(
        "insert into pgtasks.job (id, queue, task) select u.id, %s, 'echo' from unnest(%s::uuid[]) with ordinality"
        " as u (id, n) order by u.n",
        [queue, ids],
    )
    return ids


# Against a model

# So slow that what the test itself takes never makes a token.
PER_SECOND = 0.0001
SOME = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)


class GateMachine(RuleBasedStateMachine):
    """Two workers, an operator, and time; the bucket's time is told by the test."""

    def __init__(self, connection: Connection, app: App) -> None:
        super().__init__()
        self.connection = connection
        self.app = app
        for table in ("job", "job_history", "claim", "worker", "queue"):
            connection.execute(f"delete from pgtasks.{table}")
        self.line: list[str] = []  # ready and free, in order of seq
        self.place: dict[str, float] = {}  # every live job -> its place in line
        self.hands: list[tuple[SimulatedWorker, list[Held]]] = []
        self.last = 0
        self.paused = False
        self.max_running: int | None = None
        self.burst: int | None = None
        self.tokens = 0.0

    @initialize(count=st.integers(0, 6), limit=st.none() | st.integers(1, 4))
    def begin(self, count: int, limit: int | None) -> None:
        self.hands = [(SimulatedWorker(self.connection), []) for _ in range(2)]
        self.enqueue(count)
        if limit:
            self.limit(limit)

    # What the model says

    @property
    def held(self) -> int:
        return sum(len(held) for _, held in self.hands)

    @property
    def room(self) -> int:
        if self.paused:
            return 0
        room = 1000
        if self.max_running is not None:
            room = min(room, self.max_running - self.held)
        if self.burst is not None:
            room = min(room, int(self.tokens))
        return max(room, 0)

    def stand(self, ids: list[str], *, anew: bool) -> None:
        for id in ids:
            if anew:
                self.last += 1
                self.place[id] = self.last
            self.line.append(id)
        self.line.sort(key=self.place.__getitem__)

    def take(self, who: int, positions: list[int]) -> tuple[SimulatedWorker, list[Held]]:
        worker, held = self.hands[who]
        chosen = sorted({at % len(held) for at in positions}) if held else []
        jobs = [held[at] for at in chosen]
        self.hands[who] = worker, [one for one in held if one not in jobs]
        return worker, jobs

    # Rules

    @rule(count=st.integers(1, 4))
    def enqueue(self, count: int) -> None:
        self.stand(fill(self.connection, count), anew=True)

    @rule(who=st.integers(0, 1), limit=st.sampled_from([1, 2, 3, 100]))
    def claim(self, who: int, limit: int) -> None:
        count = min(limit, self.room, len(self.line))
        worker, held = self.hands[who]

        jobs = worker.claim(limit=limit, tasks=[TASK])

        assert [job.id for job in jobs] == self.line[:count]
        del self.line[:count]
        held += jobs
        if self.burst is not None:
            self.tokens -= count

    @rule(who=st.integers(0, 1), positions=SOME, again=st.booleans())
    def finish(self, who: int, positions: list[int], again: bool) -> None:
        worker, jobs = self.take(who, positions)
        for (
            job
        ) in jobs:  # one by one, so that the places in line of those that come again are known
            worker.finish(job, "retry" if again else "succeeded", delay=0)
            if again:
                self.stand([job.id], anew=True)

    @rule(who=st.integers(0, 1), positions=SOME, crashed=st.booleans())
    def release(self, who: int, positions: list[int], crashed: bool) -> None:
        worker, jobs = self.take(who, positions)
        if jobs:
            (worker.crash if crashed else worker.release)(jobs)
            self.stand([job.id for job in jobs], anew=False)

    @rule(who=st.integers(0, 1), how=st.sampled_from(["rescued", "orphaned", "lost"]))
    def die(self, who: int, how: str) -> None:
        """A worker is gone, or the reply to its claim; whoever finds that gives its jobs back."""
        worker, held = self.hands[who]
        tokens = {job.token for job in held}
        match how:
            case "lost":
                for token in tokens:
                    worker.lose_reply([job for job in held if job.token == token])
                worker.release_lost()
            case "orphaned":
                worker.execute("deregister_worker", worker_id=worker.id)
                worker.execute("release_orphaned_claims")
            case _:
                self.hands[1 - who][0].rescue(worker)
        if how != "lost":
            worker = SimulatedWorker(self.connection)
        self.hands[who] = worker, []
        self.stand([job.id for job in held], anew=False)

    @rule()
    def pause(self) -> None:
        self.app.pause_queue("default", reason="a test")
        self.paused = True

    @rule()
    def resume(self) -> None:
        assert self.app.resume_queue("default") == self.paused
        self.paused = False

    @rule(limit=st.none() | st.integers(1, 5))
    def limit(self, limit: int | None) -> None:
        self.app.limit_queue("default", max_running=limit)
        self.max_running = limit

    @rule(burst=st.none() | st.integers(1, 5))
    def rate(self, burst: int | None) -> None:
        rate = None if burst is None else Rate(PER_SECOND, burst=burst)
        self.app.limit_queue("default", rate=rate)
        if burst is not None:
            self.tokens = float(burst) if self.burst is None else min(self.tokens, burst)
        self.burst = burst

    @rule(quarters=st.integers(1, 9))
    def wait(self, quarters: int) -> None:
        let_pass(self.connection, quarters / 4 / PER_SECOND)
        if self.burst is not None:
            self.tokens = min(self.burst, self.tokens + quarters / 4)

    @invariant()
    def a_look_says_what_a_claim_would_find(self) -> None:
        if not self.hands:
            return
        ready, due_in = look(self.hands[0][0])

        assert ready == bool(self.line and self.room)
        empty = self.burst is not None and self.tokens < 1 and not self.paused
        assert (due_in is not None) == empty
        if due_in is not None:
            assert due_in == pytest.approx((1 - self.tokens) / PER_SECOND, abs=60)

    @invariant()
    def the_claims_name_what_is_held(self) -> None:
        count = self.connection.execute("select pgtasks.count_held('default')").fetchone()
        assert count == (self.held,)


def test_a_queue_lets_through_what_the_model_says(connection, app):
    run_state_machine_as_test(
        lambda: GateMachine(connection, app),  # type: ignore[arg-type]  # what makes one will do
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


# Rates


def test_tokens_come_by_the_databases_clock_and_no_more_than_the_burst_lie_there(
    connection, app, worker
):
    fill(connection, 300)
    app.limit_queue("default", rate=Rate(100, 60, burst=20))

    taken = [len(worker.claim(tasks=[TASK]))]
    for seconds in (6, 3, 0, 12, 3600):
        let_pass(connection, seconds)
        taken.append(len(worker.claim(tasks=[TASK])))

    assert taken == [20, 10, 5, 0, 20, 20]


def test_in_any_minute_no_more_begin_than_rate_and_burst_allow(connection, app, worker):
    fill(connection, 300)
    app.limit_queue("default", rate=Rate(100, 60, burst=5))

    taken = 0
    for _ in range(60):
        let_pass(connection, 1.0)
        taken += len(worker.claim(tasks=[TASK]))

    # What the test took itself counts, too: at this rate one token in 0.6 s.
    assert 100 <= taken <= 105 + 10


def test_a_clock_that_was_set_back_neither_gives_tokens_nor_stops_the_bucket(
    connection, app, worker
):
    fill(connection, 10)
    app.limit_queue("default", rate=Rate(10, burst=2))
    assert len(worker.claim(tasks=[TASK])) == 2

    let_pass(connection, -3600)
    _, due_in = look(worker)
    assert due_in is not None
    assert due_in < 0.2
    assert worker.claim(tasks=[TASK]) == []
    let_pass(connection, 3600)
    let_pass(connection, 0.1)

    assert len(worker.claim(tasks=[TASK])) >= 1


def test_a_queue_without_a_row_or_only_with_ageing_is_not_locked_by_a_claim(
    connection, app, worker, dsn
):
    fill(connection, 4)
    app.limit_queue("aged", ageing=60)
    insert_job(connection, queue="aged")

    with psycopg.connect(dsn) as other:
        other.execute("select from pgtasks.queue for update")

        assert len(worker.claim("aged", tasks=[TASK])) == 1
        assert len(worker.claim(tasks=[TASK])) == 4


def test_two_claims_of_a_limited_queue_go_one_after_the_other(connection, app, dsn, worker):
    fill(connection, 4)
    app.limit_queue("default", max_running=3)

    with psycopg.connect(dsn) as other:
        first = SimulatedWorker(other)
        assert len(first.claim(limit=2, tasks=[TASK])) == 2
        with pytest.raises(DatabaseError, match="took too long"):
            worker.claim(tasks=[TASK])

    assert len(worker.claim(tasks=[TASK])) == 1


@pytest.mark.parametrize("how", ["finish", "retry", "release", "crash", "rescue"])
def test_a_place_that_is_free_again_wakes_busy_workers_too(connection, app, worker, dsn, how):
    fill(connection, 2)
    app.limit_queue("default", max_running=1)
    held = worker.claim_one()
    with psycopg.connect(dsn, autocommit=True) as busy:
        SimulatedWorker(busy)
        [(channel,)] = busy.execute("select pgtasks.wake_channel('default')").fetchall()
        busy.execute(f"listen {channel}")
        assert heard(busy) == []

        match how:
            case "finish":
                worker.succeed(held)
            case "retry":
                worker.retry(held)
            case "release":
                worker.release(held)
            case "crash":
                worker.crash(held)
            case _:
                SimulatedWorker(busy).rescue(worker)

        assert (channel, "") in heard(busy)


# What code declares, and what operators say


def publish(connection: Connection, **queues: Queue) -> None:
    run(connection, operations.publish_queues(queues))


def limits(app: App, queue: str = "mail") -> tuple[int | None, float | None, int | None]:
    [one] = [one for one in app.queues() if one.name == queue]
    return one.max_running, one.rate, one.burst


def test_limits_by_hand_go_before_those_of_the_code_until_they_are_reset(connection, app):
    publish(connection, mail=Queue(max_running=5, rate="10/s"))
    assert limits(app) == (5, 10, 10)

    app.limit_queue("mail", max_running=2, by="ann")
    publish(connection, mail=Queue(max_running=7))
    [one] = app.queues()
    assert limits(app) == (2, 10, 10)
    assert (one.limited_by, one.declared) == ("ann", {"max_running": 7})

    assert app.reset_limits("mail")
    assert limits(app) == (7, None, None)
    assert not app.reset_limits("mail")


def test_a_pause_outlives_what_code_declares_and_keeps_its_time(connection, app, worker):
    app.pause_queue("mail", reason="down", by="ann")
    [before] = app.queues()[1:]
    publish(connection, mail=Queue(max_running=5))
    app.pause_queue("mail", reason="still down", by="bob")

    after = next(one for one in app.queues() if one.name == "mail")
    assert after.paused_at == before.paused_at
    assert (after.paused_by, after.pause_reason) == ("bob", "still down")
    insert_job(connection, queue="mail")
    assert worker.claim("mail", tasks=[TASK]) == []


async def test_the_asynchronous_twins_do_the_same(async_app, connection):
    await async_app.alimit_queue("mail", max_running=2, rate="5/s", ageing=10)
    await async_app.apause_queue("mail")
    insert_job(connection, queue="mail")
    moved = await async_app.amove_jobs("mail", "bulk")
    resumed = await async_app.aresume_queue("mail")
    names = [one.name for one in await async_app.aqueues()]
    reset = await async_app.areset_limits("mail")
    connection.execute("insert into pgtasks.task (name, queue) values ('shop.send', 'mail')")
    await async_app.apause_task("shop.send")
    [task] = await async_app.apublished_tasks()

    assert (moved, resumed, reset, names) == (1, True, True, ["bulk", "mail"])
    assert task.paused_at is not None
    assert await async_app.aresume_task("shop.send")


# Tasks


def test_jobs_of_a_paused_task_leave_the_head_of_the_line_and_come_back_in_their_order(
    connection, app, worker
):
    connection.execute("insert into pgtasks.task (name, queue) values ('echo', 'default')")
    ids = fill(connection, 5)
    held = worker.claim_one()
    app.pause_task("echo", reason="a test")

    assert worker.execute("park_paused", queue="default", limit=3) == [(2,)]
    assert worker.execute("park_paused", queue="default", limit=100) == [(2,)]
    states = connection.execute("select state, reason from pgtasks.job where token is null")
    assert set(states.fetchall()) == {("parked", "paused")}
    connection.execute("update pgtasks.job set reason = 'unknown task' where id = %s", [ids[4]])

    assert app.resume_task("echo")
    assert [job.id for job in worker.claim(tasks=[TASK])] == ids[1:4]
    assert held.id == ids[0]
    assert worker.execute("park_paused", queue="default", limit=100) == [(0,)]
    assert worker.execute("unpark_paused", limit=100) == [(None,)]


# Ageing


def age(connection: Connection, worker: SimulatedWorker, seconds: float, batch: int = 2) -> None:
    """Let time pass, and a pass be made in batches."""
    connection.execute(
        "update pgtasks.job set created_at = created_at - %(s)s * interval '1 second'",
        {"s": seconds},
    )
    connection.execute(
        "update pgtasks.queue set aged_until = aged_until - %(s)s * interval '1 second'",
        {"s": seconds},
    )
    while worker.execute("age_queue", queue="default", limit=batch) >= [(batch,)]:
        pass


def priorities(connection: Connection) -> list[int]:
    rows = connection.execute("select priority from pgtasks.job order by seq").fetchall()
    return [priority for (priority,) in rows]


def test_priority_rises_with_each_whole_period_of_waiting_up_to_the_highest_there(
    connection, app, worker
):
    fill(connection, 6)
    connection.execute("update pgtasks.job set priority = (seq % 2)::integer * -3")
    connection.execute(
        "update pgtasks.job set priority = 4 where seq = (select max(seq) from pgtasks.job)"
    )
    app.limit_queue("default", ageing=60)
    begun = priorities(connection)

    for periods, seconds in ((0, 54), (1, 6.5), (1, 53), (2, 7.5), (5, 180), (9, 240)):
        age(connection, worker, seconds)
        assert priorities(connection) == [min(4, one + periods) for one in begun]


def test_one_call_that_comes_late_pays_all_that_was_waited_for_and_the_running_rise_not(
    connection, app, worker
):
    fill(connection, 3)
    connection.execute(
        "update pgtasks.job set priority = 7 where seq = (select max(seq) from pgtasks.job)"
    )
    connection.execute(
        "update pgtasks.job set priority = 6 where seq = (select min(seq) from pgtasks.job)"
    )
    app.limit_queue("default", ageing=60)
    worker.claim(limit=2, tasks=[TASK])

    age(connection, worker, 200, batch=100)

    assert priorities(connection) == [6, 3, 7]


def test_queues_that_did_not_ask_for_it_do_not_age(connection, app, worker):
    fill(connection, 2)
    app.limit_queue("default", max_running=1)

    assert worker.execute("age_queue", queue="default", limit=10) == [(0,)]
    assert worker.execute("age_queue", queue="other", limit=10) == [(0,)]


# Moving


def test_jobs_that_nobody_has_taken_move_with_id_and_order_and_the_others_stay(
    connection, app, worker
):
    ids = fill(connection, 4)
    held = worker.claim_one()
    connection.execute(
        "update pgtasks.job set state = 'scheduled', start_at = now() + interval '1 h' where id = %s",
        [ids[3]],
    )
    there = insert_job(connection, queue="bulk")

    moved = app.move_jobs("default", "bulk")

    assert moved == 3
    assert [job.id for job in worker.claim("bulk", tasks=[TASK])] == [there, ids[1], ids[2]]
    assert worker.succeed(held) == [ids[0]]
    assert app.job(ids[3]).queue == "bulk"
    assert app.move_jobs("bulk", "default", task="another") == 0
