"""Failed graphs that are started again: what failed and what followed runs, callbacks too, and nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fixtures import graph_app
from tests.fixtures.graph_plans import CAUGHT, call, chained, chorded, grouped
from tests.fixtures.graph_runs import GraphRun, graph_run
from tests.fixtures.graphs import compare, interpret


@pytest.fixture
def house(dsn: str) -> Iterator[GraphRun]:
    with graph_run(dsn) as house:
        yield house


def test_what_follows_a_callback_for_failure_runs_again_with_it(house: GraphRun):
    callback = chained(CAUGHT, grouped(call("b"), call("c")), call("d"))
    plan = chained(call("a", "fail", errors=[callback]), call("e"))
    house.check(plan)

    house.start_again(house.failed() or "")

    house.assert_at_rest()
    assert compare(interpret(plan), house.found()) == []
    assert sorted(label for label, _ in graph_app.RAN) == sorted(["a", "caught", "b", "c", "d"] * 2)


def test_a_step_that_did_not_run_before_calls_back_for_its_own_failure(house: GraphRun):
    steps = chained(call("a", "fail"), call("b", "fail"), call("c"), errors=[CAUGHT])

    house.check_healed(steps, "a")
    house.check_healed(chorded([steps, call("d")], call("body", errors=[CAUGHT])), "a")


X_FAILS = chained(call("x", "fail"), call("y"))
STAND_INS = {
    "one job": call("b", "replace", plan=call("x", "fail")),
    "a chain": call("b", "replace", plan=X_FAILS),
    "a chord": call("b", "replace", plan=chorded([call("h"), call("x", "fail")], call("y"))),
    "a group": call("b", "replace", plan=grouped(call("h"), X_FAILS)),
    "one after the other": call("b", "replace", plan=call("c", "replace", plan=X_FAILS)),
    "of a second step": chained(CAUGHT, call("b", "replace", plan=X_FAILS), call("z")),
    "with a callback": call("b", "replace", plan={**X_FAILS, "link_error": [CAUGHT]}, errors=[CAUGHT]),
}  # fmt: skip


@pytest.mark.parametrize("callback", STAND_INS)
def test_what_a_callback_for_failure_put_in_its_place_is_called_again(
    house: GraphRun, callback: str
):
    plan = chained(call("a", "fail", errors=[STAND_INS[callback]]), call("end"))
    house.check(plan)

    house.start_again(house.failed() or "")

    house.assert_at_rest()
    assert compare(interpret(plan), house.found()) == []
    assert Counter(label for label, _ in graph_app.RAN)["x"] == 2


@pytest.mark.parametrize("callback", STAND_INS)
def test_nothing_is_left_of_what_a_callback_for_failure_put_in_its_place(
    house: GraphRun, callback: str
):
    plan = chained(call("a", "fail", errors=[STAND_INS[callback]]), call("end"))

    house.check_healed(plan, "a")


def test_nothing_is_left_of_callbacks_for_failures_that_came_to_no_more(house: GraphRun):
    callback = chorded([CAUGHT, chained(CAUGHT, call("b"))], call("c"))

    house.check_healed(chained(call("a", "fail"), call("d"), errors=[callback]))


def test_a_step_of_a_long_chain_reads_no_other_steps_bundles(house: GraphRun):
    """Each took a second and a half in a chain of 5,000: a function was called for every bundle in the table."""
    house.clear()
    house.enqueue(chained(*(call(f"n{number}") for number in range(300))))
    worker = house.workers[0]
    [held] = worker.claim(tasks=["work"])

    with house.connection.transaction():
        worker.succeed(held, 1)
        read = house.connection.execute(
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
            " where schemaname = 'pgtasks' and relname = 'job_bundle'"
        ).fetchone()

    assert read is not None
    assert read[0] < 50
