"""Two transactions in every order, each against its own small scene: none may end as no serial order does.

Also inside of the functions of the schema; see `tests/fixtures/stage.py`. A failure prints the
schedule: one column a session, and between its statements the gates of its functions, as ``(1)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgtasks.db import migrations, operations
from pgtasks.db.run import run
from pgtasks.db.statements import Statement
from tests.fixtures.database import RUN, WORKER, create, drop
from tests.fixtures.database_model import assert_sound, read_tables
from tests.fixtures.simulated_worker import EVERYTHING
from tests.fixtures.stage import Ending, Script, Stage

Connection = psycopg.Connection[Any]


def job_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


def token(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


A, B, C, D = map(job_id, range(1, 5))
INNER, OUTER, ANOTHER = map(job_id, range(101, 104))
RAN = ("succeeded", "failed")  # what only a worker can say of a job that it holds
OURS, THEIRS, NEXT = map(token, range(1, 4))


# What each row went through

SEEN = """
create table pgtasks.seen (n bigint generated always as identity, id uuid, what text);
create function pgtasks.see_job() returns trigger language plpgsql as $$
begin
    insert into pgtasks.seen (id, what) values (
        coalesce(new.id, old.id),
        case
            when tg_op = 'INSERT' then 'came'
            when tg_op = 'DELETE' and old.token is null then 'left unheld'
            when tg_op = 'DELETE' then 'left'
            when old.token is null and new.token is not null then 'claimed'
            when old.token is not null and new.token is null and exists (
                select from pgtasks.claim c where c.token = old.token and c.at_most_once
            ) then 'repeated'
            when old.token is not null and new.token is null then 'freed'
            when old.token <> new.token then 'stolen'
            when old.state = 'blocked' and new.state <> 'blocked' then 'unblocked'
            else 'changed'
        end
    );
    return null;
end
$$;
create trigger seen after insert or update or delete on pgtasks.job
    for each row execute function pgtasks.see_job();
"""


@pytest.fixture(scope="module")
def stage(server_dsn: str) -> Iterator[Stage]:
    """A database of this module's own, with gates in its functions."""
    name = f"pgtasks_stage_{WORKER}_{RUN}"
    with psycopg.connect(server_dsn, autocommit=True) as server:
        create(server, name)
    dsn = make_conninfo(server_dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        migrations.migrate(connection)
        connection.execute(SEEN)
    stage = Stage(dsn)
    try:
        yield stage
    finally:
        stage.close()
        with psycopg.connect(server_dsn, autocommit=True) as server:
            drop(server, name)


def empty(connection: Connection) -> None:
    """Remove all rows, and register the workers 1 and 2."""
    for table in ("job", "job_history", "job_bundle", "claim", "worker", "seen"):
        connection.execute(f"delete from pgtasks.{table}")
    connection.execute(
        "insert into pgtasks.worker (id, name, host, pid, version, pool, concurrency, queues, tasks)"
        " overriding system value"
        " select n, 'simulated', 'test', 1, '0', 'solo', 1, '{default,other}', '{echo}'"
        " from generate_series(1, 2) n"
    )


# What is there before


def add_job(
    connection: Connection,
    id: str,
    bundle: str | None = None,
    *,
    state: str = "ready",
    after: str | None = None,
    after_on: str | None = None,
    takes: str | None = None,
    due: bool = False,
    task: str = "echo",
    queue: str = "default",
) -> None:
    connection.execute(
        "insert into pgtasks.job (id, queue, task, state, start_at, created_at, bundle_id, bundle_index,"
        " after_bundle_id, after_on, takes)"
        " values (%s, %s, %s, %s, case when %s then now() - interval '1 s' end, now() - interval '1 h',"
        " %s, 0, %s, %s, %s)",
        [id, queue, task, "blocked" if after else state, due, bundle, after, after_on, takes],
    )


def add_bundle(connection: Connection, id: str, total: int, parent: str | None = None) -> None:
    connection.execute(
        "insert into pgtasks.job_bundle (id, total, remaining, parent_id, depth) values (%s, %s, %s, %s, %s)",
        [id, total, total, parent, 0 if parent is None else 1],
    )


# What is done


def statement(name: str, **parameters: object) -> Statement[Any]:
    return Statement(name=name, parameters=parameters, read=lambda rows: [row[0] for row in rows])


def claim(
    worker: int,
    token: str,
    limit: int = 10,
    *,
    at_most_once: bool = False,
    queue: str = "default",
) -> Statement[Any]:
    return statement(
        "claim_jobs",
        queue=queue,
        tasks=["echo"],
        high=[high for high, _, _ in EVERYTHING],
        low=[low for _, low, _ in EVERYTHING],
        after=[after for _, _, after in EVERYTHING],
        limit=limit,
        token=token,
        worker_id=worker,
        at_most_once=at_most_once,
    )


def finish(
    ids: Sequence[str],
    token: str,
    outcome: str = "succeeded",
    *,
    result: str = "1",
    delay: float = 0.0,
    claims: Sequence[str] = (),
    queue: str = "default",
) -> Statement[Any]:
    n = len(ids)
    return statement(
        "finish_jobs",
        queue=[queue] * n,
        id=list(ids),
        token=[token] * n,
        outcome=[outcome] * n,
        result=[result] * n,
        error=[json.dumps({"type": "E", "message": "", "traceback": "", "args": None})] * n,
        delay=[delay] * n,
        age=[0.25] * n,
        keep=[True] * n,
        claims=list(claims),
    )


def give_back(ids: Sequence[str], token: str, name: str = "release_jobs") -> Statement[Any]:
    n = len(ids)
    return statement(name, queue="default", id=list(ids), token=[token] * n, error=["{}"] * n)


def rescue(worker: int, beat: int = 0) -> Statement[Any]:
    return statement("rescue_worker", worker_id=worker, beat=beat)


def release_lost(worker: int, known: Sequence[str] = ()) -> Statement[Any]:
    return statement("release_lost_claims", worker_id=worker, known=list(known))


def beat(worker: int, running: Sequence[str] = ()) -> Statement[Any]:
    return statement(
        "beat",
        worker_id=worker,
        running=list(running),
        state="running",
        stats="{}",
        lock=False,
        locked=False,
    )


PROMOTE = statement("promote_jobs", queue="default", limit=10)
PARK = statement("park_unknown", queue="default", limit=10, after=0.0)
UNPARK = statement("unpark_known", queue="default", tasks=["echo", "strange"], limit=1000)
ORPHANS = statement("release_orphaned_claims")


def deregister(worker: int) -> Statement[Any]:
    return statement("deregister_worker", worker_id=worker)


def wait_for(bundle: str, id: str) -> Generator[Any, Any, None]:
    """Add a waiter as `tests/fixtures/bundles.py` does, in steps."""
    [stopped] = yield _Sql(
        "lock bundle",
        "select stopped_at is not null from pgtasks.job_bundle where id = %(id)s for update",
        {"id": bundle},
    )
    yield _Sql(
        "insert waiter",
        "insert into pgtasks.job (id, queue, task, state, after_bundle_id, after_on, takes)"
        " values (%(id)s, 'default', 'echo', 'blocked', %(bundle)s, 'success', 'results')",
        {"id": id, "bundle": bundle},
    )
    if stopped:
        yield _Sql(
            "release waiters",
            "select pgtasks.release_waiters(%(ids)s::uuid[])",
            {"ids": [bundle]},
        )


class _Sql:
    """A statement that stands in no file."""

    def __init__(self, name: str, sql: str, parameters: dict[str, object]) -> None:
        self.name, self.sql, self.parameters = name, sql, parameters

    @staticmethod
    def read(rows: Sequence[Any]) -> list[Any]:
        return [row[0] for row in rows]


# The scenes


@dataclass(frozen=True)
class Scene:
    """What is there, and two lists of transactions."""

    prepare: Callable[[Connection], object]
    left: Sequence[Callable[[], Any]]
    right: Sequence[Callable[[], Any]]
    why: str = ""  # why it may also end otherwise, if only soundly


def held(*ids: str, worker: int = 1, at_most_once: bool = False) -> Callable[[Connection], None]:
    """Prepare jobs that a worker has claimed."""

    def prepare(connection: Connection) -> None:
        for id in ids:
            add_job(connection, id)
        run(connection, claim(worker, OURS, at_most_once=at_most_once))

    return prepare


def waiting(*ids: str, **columns: Any) -> Callable[[Connection], None]:
    """Prepare jobs that nobody has."""

    def prepare(connection: Connection) -> None:
        for id in ids:
            add_job(connection, id, **columns)

    return prepare


def orphaned(at_most_once: bool = False) -> Callable[[Connection], None]:
    """Prepare a claim whose worker is not registered any more."""

    def prepare(connection: Connection) -> None:
        held(A, B, at_most_once=at_most_once)(connection)
        run(connection, deregister(1))

    return prepare


def group(connection: Connection) -> None:
    """Prepare a bundle of two running members and its waiter."""
    add_bundle(connection, INNER, 2)
    add_job(connection, A, INNER)
    add_job(connection, B, INNER)
    run(connection, claim(1, OURS, limit=1))
    run(connection, claim(2, THEIRS, limit=1))
    add_job(connection, C, after=INNER, after_on="success", takes="results")


def nested(connection: Connection) -> None:
    """Prepare two bundles of one running member each, within a third, for which a job waits."""
    add_bundle(connection, OUTER, 2)
    add_bundle(connection, INNER, 1, parent=OUTER)
    add_bundle(connection, ANOTHER, 1, parent=OUTER)
    add_job(connection, A, INNER)
    add_job(connection, B, ANOTHER)
    run(connection, claim(1, OURS, limit=1))
    run(connection, claim(2, THEIRS, limit=1))
    add_job(connection, C, after=OUTER, after_on="success")
    add_job(connection, D, after=OUTER, after_on="failure")


def chain(connection: Connection) -> None:
    """Prepare a running job, and one that waits for it; both are members of bundles of their own."""
    add_bundle(connection, INNER, 1)
    add_bundle(connection, ANOTHER, 1)
    add_job(connection, A, INNER)
    run(connection, claim(1, OURS, limit=1))
    add_job(connection, C, ANOTHER, after=INNER, after_on="success")


def finished(connection: Connection) -> None:
    """Prepare a bundle with one success, one failure; it has stopped, and its waiter is ready."""
    add_bundle(connection, INNER, 2)
    add_job(connection, A, INNER)
    add_job(connection, B, INNER)
    add_job(connection, C, after=INNER, after_on="stop")
    run(connection, claim(1, OURS, limit=2))
    run(connection, finish([A], OURS))
    run(connection, finish([B], OURS, "failed", claims=[OURS]))


def half(connection: Connection) -> None:
    """Prepare a bundle with one finished and one running member."""
    group(connection)
    run(connection, finish([A], OURS, claims=[OURS]))


def mixed(connection: Connection) -> None:
    """Prepare a bundle of a running member and one that waits for a worker."""
    add_bundle(connection, INNER, 2)
    add_job(connection, A, INNER)
    run(connection, claim(1, OURS))
    add_job(connection, B, INNER)


def two_queues(connection: Connection) -> None:
    """Prepare running jobs in two queues, whose order is not that of their ids."""
    add_job(connection, A, queue="other")
    add_job(connection, B)
    run(connection, claim(1, OURS))
    run(connection, claim(1, NEXT, queue="other"))


def two_claims(connection: Connection) -> None:
    """Prepare running jobs in two claims, whose order is not that of their ids."""
    add_job(connection, B)
    run(connection, claim(1, OURS))
    add_job(connection, A)
    run(connection, claim(1, NEXT))


def inner_chain(connection: Connection) -> None:
    """Prepare a chain of two within a bundle: both steps are bundles of one."""
    add_bundle(connection, OUTER, 2)
    add_bundle(connection, ANOTHER, 1, parent=OUTER)
    add_bundle(connection, INNER, 1, parent=OUTER)
    add_job(connection, A, ANOTHER)
    run(connection, claim(1, OURS, limit=1))
    add_job(connection, C, INNER, after=ANOTHER, after_on="success")
    add_job(connection, D, after=OUTER, after_on="stop")


def finish_all(
    jobs: Sequence[tuple[str, str, str, str]], claims: Sequence[str] = ()
) -> Statement[Any]:
    """Finish jobs (id, queue, token, outcome) in one batch."""
    ids, queues, tokens, outcomes = map(list, zip(*sorted(jobs), strict=True))
    n = len(ids)
    return statement(
        "finish_jobs",
        queue=queues,
        id=ids,
        token=tokens,
        outcome=outcomes,
        result=["1"] * n,
        error=[None] * n,
        delay=[0.0] * n,
        age=[0.25] * n,
        keep=[True] * n,
        claims=list(claims),
    )


def both(*prepares: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def prepare(connection: Connection) -> None:
        for one in prepares:
            one(connection)

    return prepare


def cancel(*ids: str, terminate: bool = True) -> Callable[[], Any]:
    return lambda: operations.cancel_jobs(ids, terminate=terminate)


def delete(*ids: str) -> Callable[[], Any]:
    return lambda: operations.delete_jobs(ids)


def reset(*ids: str) -> Callable[[], Any]:
    return lambda: operations.reset_jobs(ids)


def do(one: Statement[Any]) -> Callable[[], Any]:
    return lambda: one


FINISH = do(finish([A, B], OURS, claims=[OURS]))
FAIL = do(finish([A, B], OURS, "failed", claims=[OURS]))
RETRY = do(finish([A, B], OURS, "retry", claims=[OURS]))
RETRY_LATER = do(finish([A, B], OURS, "retry", delay=60.0, claims=[OURS]))
FINISH_A = do(finish([A], OURS, claims=[OURS]))
FINISH_B = do(finish([B], THEIRS, claims=[THEIRS]))
FAIL_A = do(finish([A], OURS, "failed", claims=[OURS]))
FAIL_B = do(finish([B], THEIRS, "failed", claims=[THEIRS]))
# A then waits for D, in a step of its own.
REPLACE = do(
    finish(
        [A],
        OURS,
        "replace",
        result=json.dumps(
            {
                "bundles": [{"id": ANOTHER, "kind": "step", "depth": 0, "total": 1}],
                "jobs": [
                    {"id": D, "task": "echo", "args": "[]", "kwargs": "{}", "bundle_id": ANOTHER}
                ],
                "last": {
                    "task": "echo",
                    "args": "[]",
                    "kwargs": "{}",
                    "after_bundle_id": ANOTHER,
                    "after_on": "success",
                },
            }
        ),
        claims=[OURS],
    )
)
CLAIM = do(claim(2, NEXT))
FORGET = do(statement("delete_claims", claims=[OURS]))

SCENES = {
    # Claims
    "claim × claim": Scene(waiting(A, B, C), [do(claim(1, OURS, 2))], [do(claim(2, NEXT, 2))]),
    "claim × finish": Scene(both(held(A, B), waiting(C)), [CLAIM], [FINISH]),
    "claim × retry": Scene(held(A, B), [CLAIM], [RETRY]),
    "claim × release": Scene(held(A, B), [CLAIM], [do(give_back([A, B], OURS)), FORGET]),
    "claim × rescue": Scene(held(A, B), [CLAIM], [do(rescue(1))]),
    "claim × rescue of the claiming": Scene(waiting(A), [CLAIM], [do(rescue(2)), do(ORPHANS)]),
    "claim × cancel": Scene(waiting(A, B), [CLAIM], [cancel(A, B)]),
    "claim × delete": Scene(waiting(A, B), [CLAIM], [delete(B, A)]),
    "claim × park": Scene(waiting(A, task="echo"), [CLAIM], [do(deregister(1)), do(PARK)]),
    "claim × release lost": Scene(waiting(A), [do(claim(1, OURS))], [do(release_lost(1))]),
    "claim × promote": Scene(waiting(A, state="scheduled", due=True), [CLAIM], [do(PROMOTE)]),
    # The end of a worker
    "rescue × finish": Scene(held(A, B), [do(rescue(1))], [FINISH]),
    "rescue × retry": Scene(held(A, B), [do(rescue(1))], [RETRY]),
    "rescue × late retry": Scene(held(A, B), [do(rescue(1))], [RETRY_LATER]),
    "rescue × release": Scene(held(A, B), [do(rescue(1))], [do(give_back([A, B], OURS)), FORGET]),
    "rescue × crash": Scene(
        held(A, B), [do(rescue(1))], [do(give_back([A], OURS, "crash_jobs")), do(finish([B], OURS))]
    ),
    "rescue × rescue": Scene(held(A, B), [do(rescue(1))], [do(rescue(1))]),
    "rescue × beat": Scene(held(A), [do(rescue(1))], [do(beat(1, [A])), FINISH_A]),
    "rescue of once × finish": Scene(held(A, B, at_most_once=True), [do(rescue(1))], [FINISH]),
    "rescue of once × cancel": Scene(held(A, B, at_most_once=True), [do(rescue(1))], [cancel(A)]),
    "rescue × finish in a group": Scene(group, [do(rescue(1))], [FINISH_B]),
    "orphans × finish": Scene(orphaned(), [do(ORPHANS)], [FINISH]),
    "orphans of once × finish": Scene(orphaned(at_most_once=True), [do(ORPHANS)], [FINISH]),
    "orphans × orphans": Scene(orphaned(), [do(ORPHANS)], [do(ORPHANS)]),
    "orphans × cancel": Scene(orphaned(), [do(ORPHANS)], [cancel(A, B)]),
    "release lost × cancel": Scene(held(A, B), [do(release_lost(1))], [cancel(A, B)]),
    "release lost × finish": Scene(held(A, B), [do(release_lost(1))], [FINISH]),
    "release lost × rescue": Scene(held(A, B), [do(release_lost(1))], [do(rescue(1))]),
    # Cancel
    "cancel × finish": Scene(held(A, B), [cancel(A, B)], [FINISH]),
    "cancel × finish one": Scene(held(A, B), [cancel(A, B)], [do(finish([B], OURS)), FINISH_A]),
    "cancel × retry": Scene(held(A, B), [cancel(A, B)], [RETRY]),
    "cancel × release": Scene(held(A, B), [cancel(A, B)], [do(give_back([A, B], OURS)), FORGET]),
    "cancel × rescue": Scene(held(A, B), [cancel(A, terminate=False)], [do(rescue(1))]),
    "cancel × promote": Scene(
        waiting(A, B, state="scheduled", due=True), [cancel(A, B)], [do(PROMOTE)]
    ),
    "cancel × unpark": Scene(
        lambda c: c.execute(
            "insert into pgtasks.job (id, queue, task, state, reason)"
            " values (%s, 'default', 'echo', 'parked', 'unknown task')",
            [A],
        ),
        [cancel(A)],
        [do(UNPARK), CLAIM],
    ),
    "cancel × park": Scene(waiting(A, B, task="strange"), [cancel(B, A)], [do(PARK)]),
    "cancel × cancel": Scene(
        both(held(A, B), waiting(C, D)), [cancel(A, B, C, D)], [cancel(D, C, B, A)]
    ),
    "cancel × finish in a group": Scene(group, [cancel(A, B, C)], [FINISH_A]),
    "cancel × delete in a group": Scene(both(group, waiting(D)), [cancel(C, D)], [delete(D, C)]),
    "cancel of a waiter × finish": Scene(chain, [cancel(C)], [FINISH_A]),
    "cancel of a waiter × fail": Scene(chain, [cancel(C)], [FAIL_A]),
    "cancel × finish of two outcomes": Scene(
        held(A, B),
        [cancel(A, B)],
        [
            do(
                finish_all(
                    [(A, "default", OURS, "succeeded"), (B, "default", OURS, "retry")], [OURS]
                )
            )
        ],
    ),
    "cancel × finish of two queues": Scene(
        two_queues,
        [cancel(A, B)],
        [
            do(
                finish_all(
                    [(A, "other", NEXT, "succeeded"), (B, "default", OURS, "succeeded")],
                    [OURS, NEXT],
                )
            )
        ],
    ),
    "cancel of a member × finish of another": Scene(mixed, [cancel(A, B)], [FINISH_A]),
    "cancel of one, cancel of both × release": Scene(
        both(held(A, B), lambda c: run(c, operations.cancel_jobs([A]))),
        [cancel(A, B)],
        [do(give_back([A, B], OURS)), FORGET],
    ),
    "rescue of two claims × finish": Scene(
        two_claims,
        [do(rescue(1))],
        [
            do(
                finish_all(
                    [(A, "default", NEXT, "succeeded"), (B, "default", OURS, "succeeded")],
                    [OURS, NEXT],
                )
            )
        ],
    ),
    "rescue of two queues × finish": Scene(
        two_queues,
        [do(rescue(1))],
        [
            do(
                finish_all(
                    [(A, "other", NEXT, "succeeded"), (B, "default", OURS, "succeeded")],
                    [OURS, NEXT],
                )
            )
        ],
    ),
    "rescue of two claims × cancel": Scene(two_claims, [do(rescue(1))], [cancel(A, B)]),
    "cancel of an inner step × fail": Scene(inner_chain, [cancel(C)], [FAIL_A]),
    "cancel of an inner chain × fail": Scene(inner_chain, [cancel(A, C, D)], [FAIL_A]),
    # A graph in the place of a running job
    "replace × cancel": Scene(held(A), [REPLACE], [cancel(A)]),
    "replace × delete": Scene(held(A), [REPLACE], [delete(A)]),
    "replace × rescue": Scene(held(A), [REPLACE], [do(rescue(1))]),
    "replace × claim": Scene(held(A), [REPLACE], [CLAIM]),
    "replace in a group × finish": Scene(group, [REPLACE], [FINISH_B]),
    "replace in a group × cancel": Scene(group, [REPLACE], [cancel(A, B, C)]),
    # Bundles
    "finish × finish": Scene(group, [FINISH_A], [FINISH_B]),
    "finish × fail": Scene(group, [FINISH_A], [FAIL_B]),
    "fail × fail": Scene(group, [FAIL_A], [FAIL_B]),
    "finish × rescue and claim": Scene(
        group,
        [FINISH_A],
        [do(rescue(1)), do(rescue(2)), CLAIM],
        why="a claim steps over what a late finish looks at",
    ),
    "nested finish × finish": Scene(nested, [FINISH_A], [FINISH_B]),
    "nested finish × fail": Scene(nested, [FINISH_A], [FAIL_B]),
    "finish × wait": Scene(half, [FINISH_B], [lambda: wait_for(INNER, D)]),
    "reset × finish": Scene(half, [reset(A)], [FINISH_B]),
    "reset × cancel": Scene(finished, [reset(A, B)], [cancel(B, A, C)]),
    "reset × reset": Scene(finished, [reset(A, B)], [reset(B)]),
    "reset × delete": Scene(
        finished,
        [reset(A, B)],
        [delete(B, A)],
        why="what was reset when it should have been forgotten stays, and delete says so",
    ),
    "reset × delete bundle": Scene(
        finished, [reset(A)], [lambda: operations.delete_bundles([INNER])]
    ),
    "reset × delete history": Scene(finished, [reset(A, B)], [lambda: operations.delete_history()]),
    "reset × wait": Scene(finished, [reset(A)], [lambda: wait_for(INNER, D)]),
    "nested reset × finish": Scene(
        both(nested, lambda c: run(c, finish([A], OURS, "failed", claims=[OURS]))),
        [reset(A)],
        [FINISH_B],
    ),
    "reset and finish × finish": Scene(
        half, [reset(A), do(claim(1, NEXT, 1)), do(finish([A], NEXT, claims=[NEXT]))], [FAIL_B]
    ),
    "delete bundle × delete history": Scene(
        finished,
        [lambda: operations.delete_bundles([INNER])],
        [lambda: operations.delete_history()],
    ),
    "delete history × finish": Scene(half, [lambda: operations.delete_history()], [FINISH_B]),
}


def look(connection: Connection) -> tuple[str, str]:
    """Return what is there, comparable, after asserting that it can be."""
    tables = read_tables(connection).tables
    assert_sound(tables)
    seen = connection.execute("select id::text, what from pgtasks.seen order by n").fetchall()
    # These hold in any order, also in a serial one.
    assert not [id for id, what in seen if what in ("stolen", "repeated")], seen
    late = {id for id, what in seen if what == "left unheld"}
    assert not [id for id in late if id in tables.jobs and tables.jobs[id].state in RAN], seen
    held = {job.token for job in tables.jobs.values()}
    assert set(tables.claims) <= held, f"claims of nothing: {set(tables.claims) - held}"
    unblocked = [id for id, what in seen if what == "unblocked"]
    assert len(unblocked) == len(set(unblocked)), seen
    inputs = connection.execute(
        "select id::text, input from pgtasks.job where takes is not null order by id"
    ).fetchall()
    rows = [
        *(tables.jobs[key] for key in sorted(tables.jobs)),
        *(tables.bundles[key] for key in sorted(tables.bundles)),
        *(tables.workers[key] for key in sorted(tables.workers)),
    ]
    # As sets are printed in any order.
    claims = [
        (
            one.token,
            one.worker_id,
            sorted(one.job_ids),
            sorted(one.cancel_ids),
            sorted(one.interrupt_ids),
        )
        for one in sorted(tables.claims.values(), key=lambda one: one.token)
    ]
    return "\n".join(map(str, [*rows, *claims])), str(inputs)


def script(transactions: Sequence[Callable[[], Any]]) -> Script:
    def perform(run: Callable[[Any], Any]) -> None:
        for one in transactions:
            run(one())

    return perform


def explore(stage: Stage, scene: Scene, interruptions: int) -> list[Ending]:
    """Run a scene in all its schedules; none may fail, or end like no serial one."""

    def prepare(connection: Connection) -> None:
        empty(connection)
        scene.prepare(connection)
        connection.execute("delete from pgtasks.seen")

    endings = []
    for ending in stage.explore(
        prepare, [script(scene.left), script(scene.right)], look, interruptions
    ):
        if ending.errors:
            raise AssertionError(f"refused in this schedule:\n{ending}") from ending.errors[0]
        endings.append(ending)
    legal = {one.final for one in endings if one.serial}
    for ending in endings:
        serial = "\n\nor\n\n".join("\n".join(one) for one in legal)
        assert scene.why or ending.final in legal, (
            f"in this schedule:\n{ending}\n\nit ended so:\n\n"
            + "\n".join(ending.final)
            + f"\n\nnot so:\n\n{serial}"
        )
    return endings


# For every run, and what is asked for besides, or once failed.
QUICK = (
    "claim × finish",
    "rescue × retry",
    "cancel × finish of two outcomes",
    "replace × cancel",
    "finish × wait",
)
ASKED = (
    *QUICK,
    "claim × cancel",
    "claim × rescue of the claiming",
    "rescue × finish",
    "rescue × release",
    "rescue of once × finish",
    "rescue of two claims × finish",
    "orphans × finish",
    "release lost × rescue",
    "cancel × finish",
    "cancel × retry",
    "cancel × promote",
    "cancel of a member × finish of another",
    "cancel of a waiter × fail",
    "reset × cancel",
    "finish × finish",
)


def judge(stage: Stage, name: str, interruptions: int) -> None:
    endings = explore(stage, SCENES[name], interruptions)

    assert len(endings) > 2
    assert any(not one.serial for one in endings)


@pytest.mark.parametrize("name", QUICK)
def test_two_sessions_end_as_one_after_the_other_would(stage: Stage, name: str) -> None:
    judge(stage, name, interruptions=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ASKED if name not in QUICK])
def test_other_two_sessions_end_as_one_after_the_other_would(stage: Stage, name: str) -> None:
    judge(stage, name, interruptions=1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SCENES if name not in ASKED])
def test_any_two_sessions_end_as_one_after_the_other_would(stage: Stage, name: str) -> None:
    judge(stage, name, interruptions=1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ASKED)
def test_two_sessions_that_interrupt_each_other_twice_end_so_too(stage: Stage, name: str) -> None:
    judge(stage, name, interruptions=2)


def raised(how: str) -> Scene:
    """Two transactions that read a row's priority and then write it, one higher."""

    def higher() -> Generator[Any, Any, None]:
        [priority] = yield _Sql("read", f"select priority from pgtasks.job {how}", {})
        yield _Sql("write", f"update pgtasks.job set priority = {priority} + 1", {})

    return Scene(waiting(A), [higher], [higher])


def test_a_lost_update_is_found(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="in this schedule"):
        explore(stage, raised(""), interruptions=1)
    explore(stage, raised("for update"), interruptions=1)


def test_a_deadlock_is_found(stage: Stage) -> None:
    def lock(*ids: str) -> Generator[Any, Any, None]:
        for id in ids:
            yield _Sql(
                "lock", "select id from pgtasks.job where id = %(id)s for update", {"id": id}
            )

    with pytest.raises(AssertionError, match="refused") as caught:
        explore(
            stage, Scene(waiting(A, B), [lambda: lock(A, B)], [lambda: lock(B, A)]), interruptions=1
        )
    assert isinstance(caught.value.__cause__, psycopg.errors.DeadlockDetected)


def test_gates_stand_within_functions(stage: Stage) -> None:
    endings = explore(stage, SCENES["rescue × finish"], interruptions=1)

    stops = {choice.statement for ending in endings for choice in ending.choices}
    assert {"(1)", "(2)", "(3)", "finish_jobs", "rescue_worker", "commit"} <= stops
