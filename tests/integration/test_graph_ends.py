"""How graphs end where it is not obvious: eagerly and in the database as the plain interpreter says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fixtures.eager_graphs import check_eagerly
from tests.fixtures.graph_plans import CAUGHT, call, chained, chorded, grouped
from tests.fixtures.graph_runs import graph_run
from tests.fixtures.graphs import Plan

Check = Callable[[Plan], None]


@pytest.fixture
def check(dsn: str) -> Iterator[Check]:
    """Run a plan both ways, a few times in the database."""

    def check(plan: Plan) -> None:
        check_eagerly(plan)
        for _ in range(3):
            house.check(plan)

    with graph_run(dsn) as house:
        yield check


def test_a_failure_in_a_chain_of_the_header_is_the_headers(check: Check):
    """Its callback for failure was never run before."""
    member = chained(call("a", "fail"), call("b"))

    check(chorded([member], call("body", errors=[CAUGHT])))
    check(chorded([member, call("other")], call("body", errors=[CAUGHT])))


def test_a_failure_before_a_group_is_told_as_it_is_and_once(check: Check):
    check(
        chained(
            call("a", "fail", errors=[CAUGHT]),
            grouped(call("b"), chained(call("c"), call("d"))),
            call("e", errors=[CAUGHT]),
        )
    )


def test_of_a_body_of_several_steps_one_calls_back_for_the_failed_header(check: Check):
    body = chained(call("b"), grouped(call("c"), call("d")), call("e"), errors=[CAUGHT])

    check(chorded([call("a", "fail")], body))


def test_a_callback_for_failure_that_begins_with_an_empty_header_waits_for_the_failure(
    check: Check,
):
    callback = chorded([], call("body"))

    check(call("a", errors=[callback]))
    check(call("a", "fail", errors=[callback]))


def test_a_chord_for_the_failure_of_a_job_that_did_not_run_does_not_run(check: Check):
    callback = chorded([call("h"), chained(call("i"), call("j"))], call("body", errors=[CAUGHT]))

    check(chained(call("a", "fail"), call("b", errors=[callback])))


def test_a_chord_that_runs_for_a_failure_can_fail_itself(check: Check):
    callback = chorded([call("h", "fail")], call("body", errors=[CAUGHT]))

    check(call("a", "fail", errors=[callback]))


def test_the_result_of_what_replaces_a_job_is_kept_for_who_takes_it(check: Check):
    replaced = call("a", "replace", plan=call("b", quiet=True))

    check(chorded([replaced], call("body")))
    check(chained(replaced, call("next")))
    check(chained(call("a", "replace", plan=replaced), call("next")))
    check(call("a", "replace", plan=call("b", quiet=True), link=[call("next")]))


def test_callbacks_for_failure_are_for_all_that_replaces_a_job(check: Check):
    fails = chained(call("x", "fail"), call("y"))

    check(call("a", "replace", plan=fails, errors=[CAUGHT]))
    check(chained(call("a", "replace", plan=fails, errors=[CAUGHT]), call("b", errors=[CAUGHT])))
    check(chorded([call("a", "replace", plan=fails)], call("body", errors=[CAUGHT])))


def test_those_of_one_step_of_what_replaces_a_job_are_for_that_step(check: Check):
    other = {**CAUGHT, "label": "caught2"}
    fails = chained(call("x", "fail"), call("y"), errors=[other])
    again = call("z", "replace", plan=fails, errors=[{**CAUGHT, "label": "caught3"}])

    check(call("a", "replace", plan=fails, errors=[CAUGHT]))
    check(call("a", "replace", plan=again, errors=[CAUGHT]))
    check(call("a", "replace", plan=chained(call("w"), again), errors=[CAUGHT]))
    check(chorded([call("a", "replace", plan=again)], call("body", errors=[CAUGHT])))


def test_an_empty_group_at_the_end_of_a_chain_is_not_there(check: Check):
    idle = chained(call("a"), grouped())

    check(chained(chorded([call("h")], idle), call("next")))
    check(call("b", "replace", plan=idle))


def test_what_follows_an_empty_body_waits_for_its_header(check: Check):
    check(chained(chorded([call("a", "fail")], grouped()), call("b")))
    check(chained(call("a"), chorded([call("b"), call("c")], grouped()), call("d")))
    check(call("a", "replace", plan=chorded([call("b", "fail")], grouped())))
