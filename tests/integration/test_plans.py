"""Plans of the hot statements: the intended index on every kind of table, also as generic plans.

auto_explain shows the plans of the statements within the functions, with the functions' own settings.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from pgtasks.ids import new_id
from pgtasks.limits import RateLimit
from tests.fixtures.bundles import add_waiter, insert_bundle
from tests.fixtures.gates import publish
from tests.fixtures.simulated_worker import HIGHEST, LOWEST

# More than five, after which PostgreSQL may change to a generic plan.
EXECUTIONS = 7

# What a scan must look up in an index, so that it does not read all of it.
BOUND = {
    "job_claim": r"queue = ",
    "job_due": r"queue = ",
    "job_pkey": r"\bid = ",
    "job_waiting": r"after_bundle_id = ",
    "job_bundle_pkey": r"\bid = ",
    "job_bundle_parent": r"parent_id = ",
    "claim_pkey": r"token = ",
    "job_limited": r"limit_key",
    "job_rated": r"rate_key",
    "job_rated_queue": r"queue = ",
    "job_holding": r"limit_key",
    "job_admitted": r"queue = ",
    "job_turn": r"queue = ",
}
NEVER = r"$^"
TABLES = {"job", "job_bundle", "claim"}

FILL = """
insert into pgtasks.job (id, queue, task, priority, state, start_at)
select gen_random_uuid(), %(queue)s, 'echo', n %% 3, %(state)s,
    case when %(state)s = 'scheduled' then now() - n * interval '1 second' end
from generate_series(1, %(count)s) n
"""


class Scan(NamedTuple):
    """Which table is read by which index; None: all of it."""

    table: str
    by: str | None


class Plans:
    """The plans of everything that a connection executed, as auto_explain told."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.told: list[str] = []
        connection.add_notice_handler(lambda notice: self.told.append(notice.message_primary or ""))
        connection.prepare_threshold = 0
        connection.execute("load 'auto_explain'")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_format": "json",
            "log_level": "notice",
        }.items():
            connection.execute(f"set auto_explain.{name} = '{value}'")

    def of(self, step: Callable[[], object]) -> list[dict[str, Any]]:
        """Return every node of every plan of the last of several executions."""
        for _ in range(EXECUTIONS):
            self.told.clear()
            step()
        return [node for one in self.told if "plan:" in one for node in nodes(plan(one))]


def plan(message: str) -> dict[str, Any]:
    return json.loads(message[message.index("{") :])["Plan"]


def nodes(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield one
    for child in one.get("Plans", []):
        yield from nodes(child)


def scans(plan: list[dict[str, Any]]) -> set[Scan]:
    """Return who is read how; an index whose first column is not looked up counts as no index."""
    found = set()
    for node in plan:
        if node.get("Relation Name") in TABLES and node["Node Type"] != "ModifyTable":
            # A bitmap scan's indexes stand below it; so do subplans, which are of other tables.
            indexes = [
                one
                for one in nodes(node)
                if "Index Name" in one and (one is node or one["Node Type"] == "Bitmap Index Scan")
            ]
            names = [
                one["Index Name"]
                if re.search(BOUND.get(one["Index Name"], "^never"), one.get("Index Cond", ""))
                else "-"
                for one in indexes
            ]
            found.add(Scan(node["Relation Name"], ", ".join(names) or None))
    return found


def check(plan: list[dict[str, Any]], *expected: Scan) -> None:
    assert scans(plan) == set(expected)
    # A loop over a batch can as well go over the table, and then reads all of it for each batch.
    for node in plan:
        if node["Node Type"] in ("Nested Loop", "Merge Join"):
            assert "job" not in {one.get("Relation Name") for one in nodes(node)}


@pytest.fixture
def plans(connection: psycopg.Connection[Any]) -> Plans:
    return Plans(connection)


def empty(connection: psycopg.Connection[Any]) -> None:
    pass


def never_analysed(connection: psycopg.Connection[Any]) -> None:
    for state in ("ready", "scheduled"):
        connection.execute(FILL, {"queue": "default", "state": state, "count": 400})


def skewed(connection: psycopg.Connection[Any]) -> None:
    """Nearly everything lies in another queue; statistics know it."""
    for queue, count in {"large": 3000, "default": 100}.items():
        for state in ("ready", "scheduled"):
            connection.execute(FILL, {"queue": queue, "state": state, "count": count})
    connection.execute("analyze pgtasks.job")


def bloated(connection: psycopg.Connection[Any]) -> None:
    """What there was is gone, and its space is not; statistics are those of before."""
    for state in ("ready", "scheduled"):
        connection.execute(FILL, {"queue": "default", "state": state, "count": 3000})
    connection.execute("analyze pgtasks.job")
    connection.execute("delete from pgtasks.job where seq % 50 <> 0")


def analysed_early(connection: psycopg.Connection[Any]) -> None:
    """Statistics are those of a moment when a large insert was not committed yet: no rows, many pages."""
    with psycopg.connect(connection.info.dsn, password=connection.info.password) as other:
        for state in ("ready", "scheduled"):
            other.execute(FILL, {"queue": "default", "state": state, "count": 3000})
        connection.execute("analyze pgtasks.job")
        other.commit()


KINDS = [empty, never_analysed, skewed, bloated, analysed_early]


@pytest.fixture(params=KINDS, ids=lambda fill: fill.__name__)
def table(request: pytest.FixtureRequest, connection: psycopg.Connection[Any]) -> str:
    request.param(connection)
    return request.param.__name__


BY_CLAIM = Scan("job", "job_claim")
BY_DUE = Scan("job", "job_due")
BY_ID = Scan("job", "job_pkey")
BY_TOKEN = Scan("claim", "claim_pkey")
BY_TURN = Scan("job", "job_turn")
BY_RATE = Scan("job", "job_rated_queue")


@pytest.mark.usefixtures("table")
def test_a_claim_reads_the_claim_index_in_its_order_and_updates_by_id(connection, plans, worker):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 50})
    ranges = [(HIGHEST, 1, None), (0, 0, 0), (-1, LOWEST, None)]

    plan = plans.of(lambda: worker.claim(limit=5, ranges=ranges, tasks=["echo"]))

    check(plan, BY_CLAIM, BY_ID, BY_TURN)
    assert not {"Sort", "Incremental Sort"} & {node["Node Type"] for node in plan}


@pytest.mark.usefixtures("table")
def test_a_claim_beyond_a_cursor_reads_the_claim_index_from_there(connection, plans, worker):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 50})

    plan = plans.of(lambda: worker.claim(limit=2, ranges=[(0, 0, 0)], tasks=["echo"]))

    check(plan, BY_CLAIM, BY_ID, BY_TURN)
    [scan] = [node for node in plan if node.get("Index Name") == "job_claim"]
    for part in ("queue = ", "priority = ", "seq > "):
        assert part in scan["Index Cond"]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("limit", [{"max_running": 9}, {"rate": "1000/s"}], ids=["running", "rate"])
def test_a_claim_and_a_look_of_a_limited_queue_go_the_same_ways_and_count_by_id(
    connection, plans, worker, app, limit
):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 50})
    app.limit_queue("default", **limit)

    claim = plans.of(lambda: worker.claim(limit=1, tasks=["echo"]))
    look = plans.of(lambda: worker.execute("look", queues=["default"], tasks=["echo"], hot=[]))

    claims = {one for one in scans(claim) | scans(look) if one.table == "claim"}
    assert scans(claim) - claims == {BY_CLAIM, BY_ID, BY_TURN}
    assert scans(look) - claims - {BY_ID} == {BY_CLAIM, BY_DUE, BY_TURN, BY_RATE}
    assert {"Seq Scan"} & {
        n["Node Type"] for n in claim if n.get("Relation Name") == "queue"
    } == set()


@pytest.mark.usefixtures("table")
def test_what_parks_ages_and_moves_jobs_finds_them_in_line_and_writes_them_by_id(
    connection, plans, worker, app
):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 50})
    connection.execute(
        "insert into pgtasks.job (id, queue, task, priority) values (gen_random_uuid(), 'default', 'echo', 1000)"
    )
    connection.execute(
        "update pgtasks.job set created_at = created_at - interval '1 h', start_at = null"
    )
    connection.execute("insert into pgtasks.task (name, queue) values ('echo', 'default')")
    app.limit_queue("default", ageing=1)
    app.pause_task("echo")

    for step, parameters in {
        "age_queue": {"limit": 5},
        "park_paused": {"limit": 2},
    }.items():
        again = (
            "update pgtasks.queue set aged_until = aged_until - interval '9 s', ageing_until = null"
        )
        plan = plans.of(
            lambda: (connection.execute(again), worker.execute(step, queue="default", **parameters))  # noqa: B023
        )
        check([node for node in plan if node.get("Relation Name") != "queue"], BY_CLAIM, BY_ID)


@pytest.mark.usefixtures("table")
def test_a_finish_finds_its_jobs_by_id(connection, plans, worker):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 100})

    for outcome in ("succeeded", "failed", "retry"):
        batches = [worker.claim(limit=4, tasks=["echo"]) for _ in range(EXECUTIONS)]
        plan = plans.of(lambda: worker.finish(batches.pop(), outcome, delay=60))  # noqa: B023
        check(plan, BY_ID, BY_TOKEN)


def keys_read(plan: list[dict[str, Any]]) -> set[str]:
    """Return the indexes by which unique keys are found, each with what is looked up there."""
    nodes = [one for one in plan if one.get("Relation Name") == "unique_key"]
    found = {f"{one.get('Index Name')}: {one.get('Index Cond')}" for one in nodes}
    return {re.sub(r"=.*", "=", one) for one in found if not one.startswith("None: None")}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("full", [False, True])
def test_unique_keys_are_found_by_their_jobs_and_their_names(app, connection, plans, worker, full):
    if full:
        connection.execute(
            "insert into pgtasks.unique_key (queue, key, job_id, release)"
            " select 'default', 'echo:x' || n, gen_random_uuid(), 'finish' from generate_series(1, 3000) n"
        )
    numbers = iter(range(1000))

    def enqueue() -> None:
        with app.connection(connection):
            for until in ("started", "finished"):
                number = next(numbers)
                app.send_task("echo", (number,), unique=True, unique_until=until, priority=HIGHEST)

    assert keys_read(plans.of(enqueue)) <= {"unique_key_pkey: ((queue ="}
    batches: list[Any] = []
    read = keys_read(plans.of(lambda: batches.append(worker.claim(limit=1, tasks=["echo"]))))
    assert read in ({"unique_key_start: (job_id ="}, {"unique_key_job: (job_id ="})
    read = keys_read(plans.of(lambda: worker.finish(batches.pop())))
    assert read == {"unique_key_job: (job_id ="}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("known", [0, 1, 500])
@pytest.mark.parametrize("outcome", ["succeed", "fail"])
def test_a_finish_counts_bundles_by_id_and_finds_waiters_by_their_bundle(
    connection, plans, worker, known, outcome
):
    """Also where statistics are those of few bundles: of them all can be read as fast as one."""
    insert_bundles = (
        "insert into pgtasks.job_bundle (id, total, remaining)"
        " select gen_random_uuid(), 1, 1 from generate_series(1, %s)"
    )
    connection.execute(insert_bundles, [known])
    connection.execute("analyze pgtasks.job_bundle")
    connection.execute(insert_bundles, [50])
    batches = []
    for _ in range(EXECUTIONS):
        around = insert_bundle(connection, total=1)
        bundle = insert_bundle(connection, total=1, parent=around, depth=1)
        add_waiter(connection, bundle)
        connection.execute(
            "insert into pgtasks.job (id, queue, task, bundle_id, priority)"
            " values (%s, 'default', 'echo', %s, 1000)",
            [new_id(), bundle],
        )
        batches.append(worker.claim(limit=1, tasks=["echo"]))

    plan = plans.of(lambda: getattr(worker, outcome)(batches.pop()))

    used = scans(plan)
    assert None not in {scan.by for scan in used}
    assert Scan("job", "job_waiting") in used
    # By its parent: what waits takes the results of the steps inside, too.
    by = {scan.by for scan in used if scan.table == "job_bundle"}
    assert by == {"job_bundle_pkey", "job_bundle_parent"}


@pytest.mark.usefixtures("table")
def test_a_promotion_reads_the_index_of_what_is_due(connection, plans, worker):
    connection.execute(FILL, {"queue": "default", "state": "scheduled", "count": 50})

    plan = plans.of(lambda: worker.execute("promote_jobs", queue="default", limit=5))

    check(plan, BY_DUE, BY_ID, BY_RATE)


@pytest.mark.usefixtures("table")
def test_a_look_reads_the_two_indexes_of_waiting_jobs(plans, worker):
    look = {"queues": ["default", "large", "other"], "tasks": ["echo"], "hot": ["other"]}

    check(plans.of(lambda: worker.execute("look", **look)), BY_CLAIM, BY_DUE, BY_TURN, BY_RATE)


@pytest.mark.usefixtures("table")
def test_a_survey_reads_the_claim_index(plans, worker):
    check(plans.of(lambda: worker.execute("ready_priorities", queue="default", limit=5)), BY_CLAIM)


@pytest.mark.usefixtures("table")
def test_giving_jobs_back_finds_them_by_id(connection, plans, worker):
    connection.execute(FILL, {"queue": "default", "state": "ready", "count": 100})

    for release_jobs in (worker.release, worker.crash):
        batches = [worker.claim(limit=4, tasks=["echo"]) for _ in range(EXECUTIONS)]
        check(plans.of(lambda: release_jobs(batches.pop())), BY_ID, BY_TOKEN)  # noqa: B023


def test_a_look_up_by_id_reads_only_the_partitions_since_the_id_was_made(app, connection, plans):
    for days in range(1, 30):
        connection.execute(
            f"create table if not exists pgtasks.job_history_old_{days} partition of pgtasks.job_history"
            f" for values from ('2020-01-{days:02} 00:00+00') to ('2020-01-{days + 1:02} 00:00+00')"
        )
    try:
        id = app.send_task("echo").id

        with app.connection(connection):
            plan = plans.of(lambda: app.job(id))

        touched = {node["Relation Name"] for node in plan if "Relation Name" in node}
        assert "job" in touched
        assert not [name for name in touched if "old" in name]
        # job and its progress, the default partition, today and three days ahead
        assert len(touched) <= 7
        assert {node["Node Type"] for node in plan if "Relation Name" in node} <= {
            "Index Scan",
            "Bitmap Heap Scan",
        }
    finally:
        for days in range(1, 30):
            connection.execute(f"drop table pgtasks.job_history_old_{days}")


GATED = """
insert into pgtasks.job (id, queue, task, state, reason, options)
select gen_random_uuid(), %(queue)s, 'gated', 'parked', %(reason)s,
    jsonb_build_object('limit_key', 'gated ' || n %% 50, 'rate_key', 'gated ' || n %% 50, 'fair_key', n %% 50)
from generate_series(1, %(count)s) n
"""


@pytest.fixture
def gated(table: str, connection: psycopg.Connection[Any]) -> str:
    """On top of each kind of table: jobs that wait, here and in another queue, if it is not empty."""
    publish(connection, {"gated": "gated"}, {"gated": 5}, rates={"gated": RateLimit("1/s")})
    if table != "empty":
        for queue in ("default", "large"):
            for reason in ("limit", "rate", "turn"):
                connection.execute(GATED, {"queue": queue, "reason": reason, "count": 300})
    if table in ("skewed", "bloated"):
        connection.execute("analyze pgtasks.job")
    return table


@pytest.mark.usefixtures("gated")
def test_who_is_admitted_is_found_by_his_key(connection, plans, worker):
    keys = [f"gated {number}" for number in range(5)]

    plan = plans.of(lambda: connection.execute("select pgtasks.admit(%s, %s)", [keys, keys]))

    check_indexes(plan, "job_limited", "job_rated", "job_holding", "job_pkey")
    assert {"job_limited", "job_rated"} <= {scan.by for scan in scans(plan)}


@pytest.mark.usefixtures("gated")
def test_turns_are_found_in_the_order_of_keys(connection, plans):
    plan = plans.of(
        lambda: connection.execute("select * from pgtasks.next_turns('default', array['gated'], 5)")
    )

    check_indexes(plan, "job_turn")


@pytest.mark.usefixtures("gated")
def test_a_sweep_goes_from_key_to_key(connection, plans, worker):
    plan = plans.of(lambda: connection.execute("select pgtasks.sweep_gates('', 5)"))

    # What is admitted and nobody serves is looked for among all that is admitted: no more than what runs.
    others = [node for node in plan if node.get("Index Name") != "job_admitted"]
    check_indexes(others, "job_limited", "job_rated", "job_rated_queue", "job_holding", "job_pkey")
    # Each step is one descent: nothing is read to be sorted.
    steps = [node for node in plan if node["Node Type"] == "Recursive Union"]
    assert steps
    assert "Sort" not in {node["Node Type"] for step in steps for node in nodes(step)}


@pytest.mark.usefixtures("gated")
def test_a_claim_of_a_limited_task_goes_by_keys_and_ids(connection, plans, worker):
    connection.execute(
        FILL.replace("'echo'", "'gated'"), {"queue": "default", "state": "ready", "count": 80}
    )

    plan = plans.of(lambda: worker.claim(limit=5, tasks=["gated"]))

    check_indexes(
        plan,
        "job_claim",
        "job_pkey",
        "job_limited",
        "job_rated",
        "job_holding",
        "job_admitted",
        "job_turn",
    )


def check_indexes(plan: list[dict[str, Any]], *names: str) -> None:
    """Assert that jobs are read by these indexes only, each looked up by its first column."""
    others = [
        (node.get("Index Name"), node.get("Index Cond"), node.get("Filter"))
        for node in plan
        if any(scan.table == "job" and scan.by not in names for scan in scans([node]))
    ]
    assert others == []
