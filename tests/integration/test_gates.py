"""Limits, rates and turns in the database: who is let through, who waits, and who tells whom."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgtasks import App, Limit, RateLimit, chain, group
from pgtasks.db import operations
from pgtasks.errors import ConfigurationError
from pgtasks.limits import Gates, published_gates
from tests.fixtures.gates import publish
from tests.fixtures.simulated_worker import Held, SimulatedWorker, execute, heard

Connection = psycopg.Connection[Any]


def add(
    connection: Connection, count: int = 1, *, task: str = "t", queue: str = "default", **keys: str
) -> None:
    connection.execute(
        "insert into pgtasks.job (id, queue, task, options)"
        " select pgtasks.new_id(), %s, %s, %s from generate_series(1, %s)",
        [queue, task, json.dumps(keys) if keys else None, count],
    )


def states(connection: Connection) -> Counter[str]:
    rows = connection.execute(
        "select coalesce(reason, case when token is null then state else 'running' end) from pgtasks.job"
    ).fetchall()
    return Counter(state for (state,) in rows)


def tenants(jobs: list[Held]) -> list[str]:
    return [json.loads(job.options or "{}").get("fair_key", job.task) for job in jobs]


def wait_longer(connection: Connection, seconds: float) -> None:
    connection.execute(
        "update pgtasks.rate_bucket set refilled_at = refilled_at - %(s)s * interval '1 second',"
        " next_at = next_at - %(s)s * interval '1 second'",
        {"s": seconds},
    )


# Limits


def test_over_the_limit_waits_and_holds_up_nobody_behind_it(connection, worker):
    publish(connection, {"t": "t"}, {"t": 2})
    add(connection, 50)
    add(connection, 3, task="plain")

    held = worker.claim(limit=5, tasks=["t", "plain"])

    assert Counter(job.task for job in held) == {"t": 2, "plain": 3}
    assert worker.claim(limit=5, tasks=["t", "plain"]) == []


def test_a_claim_steps_over_a_backlog_that_it_has_no_time_to_park(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 3000)
    add(connection, 1, task="plain")

    [limited, plain] = worker.claim(limit=2, tasks=["t", "plain"])

    assert (limited.task, plain.task) == ("t", "plain")
    assert states(connection)["ready"] > 0  # it is left for other claims


def test_the_finish_that_frees_a_place_admits_the_next_and_wakes_its_worker(
    connection, worker, dsn
):
    publish(connection, {"t": "t", "other": "t"}, {"t": 1})
    add(connection, 1)
    add(connection, 1, task="other", queue="other")
    idle = SimulatedWorker(connection, ["other"], ["other"])
    first = worker.claim(tasks=["t"])
    assert idle.claim("other", tasks=["other"]) == []
    worker.execute("set_idle", worker_id=idle.id, idle=True)
    [(channel,)] = connection.execute("select pgtasks.wake_channel('other')").fetchall()
    connection.execute(f'listen "{channel}"')

    worker.succeed(first)  # nothing else happens after this: the same transaction admitted it

    assert states(connection) == {"ready": 1}
    assert channel in [name for name, _ in heard(connection)]
    assert len(idle.claim("other", tasks=["other"])) == 1


def test_of_those_who_wait_the_highest_priority_is_next_then_the_oldest(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    for priority in (0, 5, 0, 5):
        connection.execute(
            "insert into pgtasks.job (id, queue, task, priority) values (pgtasks.new_id(), 'default', 't', %s)",
            [priority],
        )

    seen = []
    while held := worker.claim(tasks=["t"]):
        seen += [(job.priority, job.seq) for job in held]
        worker.succeed(held)

    assert seen == sorted(seen, key=lambda one: (-one[0], one[1]))
    assert len(seen) == 4


def test_an_admitted_job_keeps_its_place_in_line_behind_cursors_and_all(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 2)
    first = worker.claim(tasks=["t", "plain"])
    add(connection, 5, task="plain")
    [last] = connection.execute("select max(seq) from pgtasks.job").fetchall()

    worker.succeed(first)
    beyond = worker.claim(limit=1, ranges=[(0, 0, last[0])], tasks=["t", "plain"])

    assert [job.task for job in beyond] == ["t"]


def test_a_worker_that_dies_keeps_the_places_of_its_jobs_for_them(connection, worker):
    publish(connection, {"t": "t"}, {"t": 2})
    add(connection, 4)
    dead = SimulatedWorker(connection)
    held = dead.claim(tasks=["t"])
    dead.beat(running=[held[0].id])

    worker.rescue(dead)
    again = worker.claim(tasks=["t"])

    assert {job.id for job in again} == {job.id for job in held}
    assert states(connection) == {"running": 2, "limit": 2}


def test_a_retry_gives_its_place_to_others(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 2)
    [first] = worker.claim(tasks=["t"])

    worker.retry(first, delay=0.0)
    [second] = worker.claim(tasks=["t"])

    assert second.id != first.id


def test_without_a_worker_for_its_queue_a_job_takes_no_place(connection, worker):
    """Also one that was admitted when there was a worker."""
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 1)
    first = worker.claim(tasks=["t"])
    add(connection, 1, queue="forsaken")
    gone = SimulatedWorker(connection, ["forsaken"], ["t"])
    assert gone.claim("forsaken", tasks=["t"]) == []
    worker.succeed(first)
    assert states(connection) == {"ready": 1}
    add(connection, 1)
    assert worker.claim(tasks=["t"]) == []

    connection.execute("delete from pgtasks.worker where id = %s", [gone.id])
    worker.execute("sweep_gates", after="", limit=100)

    assert len(worker.claim(tasks=["t"])) == 1


def test_a_sweep_finds_the_place_of_a_cancelled_job_and_a_raised_limit(app, connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 5)
    worker.release(worker.claim(tasks=["t"]))
    [(admitted,)] = connection.execute(
        "select id::text from pgtasks.job where state = 'ready'"
    ).fetchall()
    app.cancel(admitted)
    assert states(connection) == {"limit": 4}

    worker.execute("sweep_gates", after="", limit=100)
    assert states(connection) == {"limit": 3, "ready": 1}

    publish(connection, {"t": "t"}, {"t": 3})
    worker.execute("sweep_gates", after="", limit=100)
    assert states(connection) == {"limit": 1, "ready": 3}


def test_a_limit_that_is_gone_from_the_code_frees_who_waits(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    add(connection, 3, limit_key="t 7")
    held = worker.claim(tasks=["t"])

    publish(connection, free=["t"])
    worker.execute("sweep_gates", after="", limit=100)

    assert len(worker.claim(tasks=["t"])) == 2
    worker.succeed(held)


def test_a_sweep_goes_on_where_it_stopped(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    for key in "abc":
        add(connection, 2, limit_key=f"t {key}")
    worker.claim(tasks=["t"])

    assert worker.execute("sweep_gates", after="", limit=2) == [("t b",)]
    assert worker.execute("sweep_gates", after="t b", limit=2) == [("",)]


def test_plain_sql_is_limited_too_and_names_its_key(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    for key in ("7", "7", "8", None):
        connection.execute(
            "select pgtasks.enqueue('t', options => pgtasks.gate_keys('t', limit_key => %s))", [key]
        )

    held = worker.claim(tasks=["t"])

    assert sorted(json.loads(job.options or "{}")["limit_key"] for job in held) == [
        "t",
        "t 7",
        "t 8",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("fair_key => '7'", "task 't' has no fair_by: leave its key out"),
        ("rate_key => '7'", "task 't' has no rate"),
        ("limit_key => repeat('x', 201)", "a key has 201 characters, expected at most 200"),
    ],
)
def test_a_key_that_cannot_be_is_refused_in_sql(connection, keys, message):
    publish(connection, {"t": "t"}, {"t": 1})

    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        connection.execute(f"select pgtasks.gate_keys('t', {keys})")


def test_whatever_stands_in_the_options_stops_no_claim(connection, worker):
    publish(connection, {"t": "t"}, {"t": 1})
    for options in (
        {"limit_key": "t " + "x" * 3000}, {"limit_key": 5}, {"limit_key": None}, {"limit_key": ["t"]},
        {"rate_key": {"a": 1}, "fair_key": "é" * 3000}, {"limit_key": ""},
    ):  # fmt: skip
        add(connection, 2, **options)
    done = 0

    for _ in range(20):
        held = worker.claim(tasks=["t"])
        done += len(worker.succeed(held)) if held else 0

    assert done == 12


def test_who_was_stopped_with_the_lock_of_a_key_holds_up_the_others_for_a_moment_only(
    connection, worker, dsn
):
    publish(connection, {"t": "t"}, {"t": 5})
    with psycopg.connect(dsn) as stopped:
        stopped.execute("select pgtasks.lock_keys(array['t'])")
        add(connection, 2)
        add(connection, 2, task="plain")

        assert [job.task for job in worker.claim(tasks=["t", "plain"])] == ["plain", "plain"]

    assert len(worker.claim(tasks=["t", "plain"])) == 2


def test_many_who_finish_and_claim_at_once_neither_deadlock_nor_overdraw(dsn, connection):
    """Batches over all keys, in no order: each locks those that it has."""
    keys, limit, jobs = 40, 2, 600
    publish(connection, {"t": "t"}, {"t": limit})
    for number in range(jobs):
        add(connection, limit_key=f"t {number * 7 % keys}")
    errors: list[Exception] = []
    ledger: Counter[str] = Counter()
    overdrawn: list[str] = []
    done = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal done
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                mine = SimulatedWorker(own)
                while done < jobs:
                    held = mine.claim(limit=30, tasks=["t"])
                    with guard:
                        ledger.update(str(job.options) for job in held)
                        overdrawn.extend(key for key, count in ledger.items() if count > limit)
                    for part in (held[::2], held[1::2]):
                        if part:
                            with guard:
                                ledger.subtract(str(job.options) for job in part)
                            mine.succeed(part)
                            done += len(part)
                    if not held:
                        own.execute("select pgtasks.sweep_gates('', 100)")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert overdrawn == []
    assert states(connection) == {}


# Rates


def test_a_rate_lets_its_burst_through_and_then_what_comes(connection, worker):
    publish(connection, rates={"t": RateLimit("60/m", burst=3)})
    add(connection, 10)

    assert len(worker.claim(tasks=["t"])) == 3
    assert worker.claim(tasks=["t"]) == []
    [(_, ready, due_in)] = worker.execute("look", queues=["default"], tasks=["t"], hot=[])
    assert not ready
    assert 0.5 < due_in <= 1.0  # so a worker neither spins nor sleeps past it

    wait_longer(connection, 2)
    worker.execute("promote_jobs", queue="default", limit=100)

    assert len(worker.claim(tasks=["t"])) == 2
    wait_longer(connection, 100)
    worker.execute("promote_jobs", queue="default", limit=100)
    assert len(worker.claim(tasks=["t"])) == 3


def test_each_key_has_a_bucket_and_a_full_one_is_forgotten(connection, worker):
    publish(connection, rates={"t": RateLimit("1/m")})
    for key in ("a", "a", "b"):
        add(connection, rate_key=f"t {key}")

    worker.succeed(worker.claim(tasks=["t"]))
    assert states(connection) == {"rate": 1}
    wait_longer(connection, 61)
    worker.execute("sweep_gates", after="", limit=100)
    worker.succeed(worker.claim(tasks=["t"]))
    wait_longer(connection, 61)
    worker.execute("sweep_gates", after="", limit=100)

    assert states(connection) == {}
    assert connection.execute("select count(*) from pgtasks.rate_bucket").fetchone() == (0,)


def test_who_has_no_token_takes_no_place_and_who_has_no_place_no_token(connection, worker):
    gates = Gates(task="t", limit=Limit(2, key="{a}"), rate=RateLimit("1/m", key="{b}"))
    execute(connection, "publish_gates", **published_gates(["t"], [gates]))
    add(connection, 2, limit_key="t 1", rate_key="t x")
    add(connection, 2, limit_key="t 1", rate_key="t y")

    held = worker.claim(tasks=["t"])

    assert [json.loads(job.options or "")["rate_key"] for job in held] == ["t x", "t y"]
    assert states(connection) == {"running": 2, "rate": 1, "limit": 1}
    wait_longer(connection, 61)
    worker.execute("sweep_gates", after="", limit=100)
    assert worker.claim(tasks=["t"]) == []
    assert connection.execute("select min(tokens) from pgtasks.rate_bucket").fetchone() == (
        pytest.approx(1, abs=0.1),
    )
    worker.succeed(held)
    assert len(worker.claim(tasks=["t"])) == 2


def test_a_clock_that_was_set_back_stops_no_rate_for_long(connection, worker):
    publish(connection, rates={"t": RateLimit("1/m")})
    add(connection, 2)
    worker.claim(tasks=["t"])

    wait_longer(connection, -3600)
    worker.execute("sweep_gates", after="", limit=100)
    connection.execute("update pgtasks.rate_bucket set next_at = now()")
    worker.execute("sweep_gates", after="", limit=100)
    wait_longer(connection, 61)
    worker.execute("sweep_gates", after="", limit=100)

    assert len(worker.claim(tasks=["t"])) == 1


# Turns


@pytest.fixture
def fair(app: App) -> Any:
    @app.task(name="t", fair_by="{tenant}")
    def serve(tenant: str) -> None:
        pass

    return serve


@pytest.mark.parametrize("count", [5, 300])
def test_a_tenant_with_one_job_comes_next_however_many_another_has(
    app, connection, worker, fair, count
):
    publish(connection, fair=["t"])
    app.enqueue_many([fair.s("large") for _ in range(count)])
    first = worker.claim(limit=4, tasks=["t"])

    fair.delay("small")
    second = worker.claim(limit=2, tasks=["t"])

    assert tenants(first) == ["large"] * 4
    assert (
        sorted(tenants(second)) == ["large", "small"] if count > 5 else "small" in tenants(second)
    )


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_keys_take_turns_in_a_circle(app, connection, worker, fair, limit):
    publish(connection, fair=["t"])
    for tenant in "abc":
        app.enqueue_many([fair.s(tenant) for _ in range(12)])

    seen: Counter[str] = Counter()
    while held := worker.claim(limit=limit, tasks=["t"]):
        seen.update(tenants(held))
        counts = [seen[tenant] for tenant in "abc"]
        assert max(counts) - min(counts) <= 1

    assert seen == {"a": 12, "b": 12, "c": 12}


def test_a_higher_priority_goes_first_whoever_it_belongs_to(app, connection, worker, fair):
    publish(connection, fair=["t"])
    fair.delay("a")
    fair.apply_async(args=["b"], priority=5)
    app.enqueue_many([fair.s("b").set(priority=5) for _ in range(2)])

    assert tenants(worker.claim(limit=3, tasks=["t"])) == ["b"] * 3
    assert tenants(worker.claim(limit=3, tasks=["t"])) == ["a"]


def test_others_of_the_queue_come_one_for_one(app, connection, worker, fair):
    publish(connection, fair=["t"])
    app.enqueue_many([fair.s("a") for _ in range(20)])
    add(connection, 20, task="plain")

    for limit, each in ((6, 3), (1, 0.5), (1, 0.5)):
        held = worker.claim(limit=limit, tasks=["t", "plain"])
        assert abs(tenants(held).count("a") - each) <= 0.5

    assert worker.execute("look", queues=["default"], tasks=["t"], hot=[])[0][1]


def test_turns_of_tasks_that_are_not_asked_for_are_left_alone(app, connection, worker, fair):
    publish(connection, fair=["t"], free=["plain"])
    fair.delay("a")
    add(connection, 1, task="plain")

    assert tenants(worker.claim(limit=5, tasks=["plain"])) == ["plain"]
    assert worker.claim(limit=5, tasks=["plain"]) == []
    assert tenants(worker.claim(limit=5, tasks=["t"])) == ["a"]


def test_jobs_without_a_key_take_turns_as_one_more_key(app, connection, worker, fair):
    publish(connection, fair=["t"])
    app.enqueue_many([fair.s("a") for _ in range(3)])
    add(connection, 3)  # plain SQL

    seen = [tenants(worker.claim(limit=1, tasks=["t"]))[0] for _ in range(6)]

    assert Counter(seen) == {"a": 3, "": 3}
    assert all(one != next for one, next in itertools.pairwise(seen[1:]))


def test_a_turn_and_a_limit_together(app, connection, worker):
    task = app.task(name="t", limit=Limit(1, key="{tenant}"), fair_by="{tenant}")(
        lambda tenant: None
    )
    execute(connection, "publish_gates", **published_gates(["t"], [task.gates]))
    app.enqueue_many([task.s(tenant) for tenant in "aaabbc"])

    seen = []
    while held := worker.claim(limit=10, tasks=["t"]):
        assert max(Counter(tenants(held)).values()) == 1
        seen += tenants(held)
        worker.succeed(held)

    assert Counter(seen) == {"a": 3, "b": 2, "c": 1}


def test_retries_and_what_was_scheduled_take_their_turns_again(app, connection, worker, fair):
    publish(connection, fair=["t"])
    fair.delay("a")
    fair.apply_async(args=["b"], countdown=60)
    [held] = worker.claim(tasks=["t"])
    worker.retry(held, delay=60)
    connection.execute("update pgtasks.job set start_at = now()")

    worker.execute("promote_jobs", queue="default", limit=10)

    assert sorted(tenants(worker.claim(tasks=["t"]))) == ["a", "b"]


# Keys travel with jobs, by every way in


def keys_of(connection: Connection) -> list[tuple[str, Any]]:
    return connection.execute(
        "select task, options ->> 'limit_key' from pgtasks.job order by id"
    ).fetchall()


def test_keys_are_in_the_options_by_every_way_in(app: App, connection: Connection) -> None:
    @app.task(name="by_key", limit=Limit(3, key=lambda customer_id: customer_id))
    def by_key(customer_id: int, note: str = "") -> None: ...

    ways: list[Callable[[int], object]] = [
        by_key.delay,
        lambda n: by_key.apply_async(kwargs={"customer_id": n}, countdown=5, retries=2),
        lambda n: group(by_key.s(n, note=str(i)) for i in range(operations.COPY_FROM)).apply(),
        lambda n: chain(by_key.si(n), by_key.si(n))(),
        lambda n: app.send_task("by_key", [n]),
        lambda n: app.enqueue_many([by_key.s(n)]),
    ]
    for number, way in enumerate(ways):
        connection.execute("delete from pgtasks.job")
        way(number)
        assert {key for _, key in keys_of(connection)} == {f"by_key {number}"}


def test_a_unique_job_that_is_replaced_takes_the_key_of_its_new_arguments(app, connection, worker):
    """And gives back the place that it had by its old ones."""

    @app.task(name="t", limit=Limit(1, key="{who}"), unique="{id}", on_conflict="replace")
    def serve(id: int, who: str) -> None: ...

    publish(connection, {"t": "t"}, {"t": 1})
    serve.delay(1, "ann")
    serve.delay(2, "bob")
    [ann, _] = worker.claim(tasks=["t"])
    worker.release(ann)  # it keeps its place

    serve.delay(1, "bob")
    assert [key for _, key in keys_of(connection)] == ["t bob", "t bob"]
    assert worker.claim(tasks=["t"]) == []
    app.enqueue_many([serve.s(1, "bob"), serve.s(1, "cleo")])

    assert [key for _, key in keys_of(connection)] == ["t cleo", "t bob"]
    worker.execute("sweep_gates", after="", limit=100)
    assert [job.id for job in worker.claim(tasks=["t"])] == [ann.id]


def test_a_step_whose_key_another_job_would_give_is_refused_before_anything_is_written(
    app, connection
):
    @app.task(limit=Limit(3, key=lambda customer_id: customer_id))
    def by_key(customer_id: int, note: str = "") -> None: ...

    with pytest.raises(
        ConfigurationError, match="here another job gives that argument when it ends"
    ):
        chain(by_key.si(1), by_key.s("note"))()

    assert keys_of(connection) == []
