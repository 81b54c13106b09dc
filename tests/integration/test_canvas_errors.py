"""The semantic cases of Celery's integration tests of canvas: errors, and who is called back.

What is left out, and where pgtasks differs: see test_canvas_results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import (
    App,
    ChordError,
    JobState,
    chain,
    chord,
    group,
    signature,
)
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    ExpectedError,
    add,
    anywhere,
    count,
    echo,
    errback_by_id,
    errback_by_request,
    fail,
    fails,
    identity,
    inner_replaced,
    noted,
    retry_once,
    settled,
    tsum,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "inner_replaced", "worker", "worker_of_proj"]

Make = Callable[[], Any]


# Errors


FAILURES: dict[str, tuple[Make, type[BaseException]]] = {
    "step before a group": (lambda: add.s(1, 1) | fail.s() | group(add.s(1), add.s(1)), ExpectedError),
    "member of the last group": (lambda: add.s(1, 1) | add.s(1) | group(add.s(1), fail.s()), ExpectedError),
    "member of a header": (lambda: chord((fail.s(),), identity.s()), ChordError),
    "body": (lambda: chord((identity.si(42),), fail.s()), ExpectedError),
    "middle of a body": (
        lambda: chord((identity.si(42),), chain(identity.si(42), fail.s(), identity.si(42))),
        ExpectedError,
    ),
    "end of a chain in a header": (
        lambda: chord((chain(identity.si(42), fail.s()),), identity.s()),
        ChordError,
    ),
    "end of a body": (
        lambda: chord((identity.si(42),), chain(identity.si(42), fail.s())),
        ExpectedError,
    ),
    "member of a group in a header": (
        lambda: chord((group(identity.si(42), fail.s()),), identity.s()),
        ChordError,
    ),
    "member of a group as body": (
        lambda: chord((identity.si(42),), group(identity.si(42), fail.s())),
        ExpectedError,
    ),
    "header, before a group and a step": (
        lambda: chain(
            group(add.si(15, 7), fail.si()), group(identity.s(), identity.s()), identity.s()
        ),
        ChordError,
    ),
    "middle of a chain in a header": (
        lambda: chord((chain(identity.si(42), fail.s(), identity.si(42)),), identity.s()),
        ChordError,
    ),
    "first step before a chord in a header": (
        lambda: chain(
            group(
                identity.si(1),
                chain(fail.si(), group(identity.si(2), identity.si(3)), identity.si(4)),
            ),
            identity.s(),
        ),
        ChordError,
    ),
    "header, of a chain for a body": (
        lambda: chain(group(add.si(15, 7), fail.si()), chain(identity.s(), identity.s())),
        ChordError,
    ),
    "header in a chain in a chain": (
        lambda: chain(chain(group(add.si(1, 1), fail.si()), identity.s()), identity.s()),
        ChordError,
    ),
    "header, before a group of chains and a step": (
        lambda: chain(
            group(add.si(15, 7), fail.si()),
            group(chain(identity.s(), identity.s()), chain(identity.s(), identity.s())),
            identity.s(),
        ),
        ChordError,
    ),
    "header, of a group for a body": (
        lambda: chain(group(add.si(15, 7), fail.si()), group(identity.s(), identity.s())),
        ChordError,
    ),
    "header, of a chord for a body": (
        lambda: chain(
            group(add.si(15, 7), fail.si()), chord([identity.s(), identity.s()], identity.s())
        ),
        ChordError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_reaches_the_end_and_its_errback_runs_once(anywhere: App, case: str):
    key = new_id()
    make, error = FAILURES[case]
    canvas = make().on_error(count.si(key))

    result = canvas.apply_async()

    fails(result, error)
    settled(result)
    # A group has no end of its own: each of its members has the errback.
    assert len(noted(key)) == (2 if case == "header, of a group for a body" else 1)


def test_a_chain_stops_at_the_first_failure(anywhere: App):
    key = new_id()
    res: Any = chain(add.s(1, 2), fail.s(), echo.si("never", key))()

    fails(res)
    fails(res.parent)
    assert res.parent.parent.get(timeout=10) == 3
    settled(res)
    assert noted(key) == []


def test_what_did_not_run_says_what_it_is_for(worker: App):
    res: Any = chain(add.s(1, 2), fail.s(), add.s(3, 4), add.s(1))()

    fails(res)

    jobs = settled(res)
    assert [job.state for job in jobs] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.CANCELLED,
    ]
    assert {job.error.dependency for job in jobs[2:]} == {jobs[1].id}
    assert {job.reason for job in jobs[2:]} == {"what it waited for failed"}
    assert res.state == "FAILURE"


@pytest.mark.parametrize("errback", [errback_by_id, errback_by_request])
def test_an_errback_of_a_group_gets_the_member(anywhere: App, errback: Any):
    failing = fail.s()
    grouped = group(failing, identity.si(42))
    grouped.link_error(errback.s())

    res = grouped.delay()

    fails(res)
    settled(res)
    assert len(noted(res[0].id)) == 1
    assert noted(res[1].id) == []


@pytest.mark.parametrize("errback", [errback_by_id, errback_by_request])
@pytest.mark.parametrize("broken", ["header", "body"])
def test_an_errback_of_a_chord_gets_the_body(anywhere: App, errback: Any, broken: str):
    if broken == "header":
        c = chord((fail.s(), fail.s(), identity.si(1)), identity.s())
    else:
        c = chord((identity.si(42),), fail.s())
    c.link_error(errback.s())

    res = c.delay()

    fails(res, ChordError if broken == "header" else ExpectedError)
    settled(res)
    assert len(noted(res.id)) == 1


def test_an_errback_of_a_chord_runs_once_or_for_each_member_of_its_body(anywhere: App):
    members = [*(identity.si(42) for _ in range(4)), *(fail.s() for _ in range(6))]
    header, body = new_id(), new_id()
    failing_header = chord((group(members),), identity.s())
    failing_header.link_error(count.si(header))
    failing_body = chord((identity.si(42),), group(members))
    failing_body.link_error(count.si(body))

    results = [failing_header.delay(), failing_body.delay()]

    fails(results[0], ChordError)
    fails(results[1])
    for result in results:
        settled(result)
    assert (len(noted(header)), len(noted(body))) == (1, 6)


def test_an_errback_of_the_header_runs_for_each_failure_and_that_of_the_body_once(anywhere: App):
    """What Celery does with the flag ``task_allow_error_cb_on_chord_header``, and what is linked to members anyway."""
    header, body, ran = new_id(), new_id(), new_id()
    c = chord((fail.si(), identity.si(42), fail.si()), echo.si("body", ran))
    for member in c.tasks:
        member.link_error(count.si(header))
    assert c.body is not None
    c.body.link_error(count.si(body))

    res = c.delay()

    fails(res, ChordError)
    settled(res)
    assert (len(noted(header)), len(noted(body)), noted(ran)) == (2, 1, [])


def test_an_errback_of_an_outer_chord_runs_once_for_an_inner_one(anywhere: App):
    key, ran = new_id(), new_id()
    inner = chord([identity.si("t1"), fail.si()], identity.si("t2"))
    outer = chord(group([identity.si("t3"), inner]), echo.si("body", ran))
    outer.link_error(count.si(key))

    res = outer.delay()

    fails(res, ChordError)
    settled(res)
    assert (len(noted(key)), noted(ran)) == (1, [])


def test_an_errback_retries(worker: App):
    result = fail.apply_async(("test",), link_error=retry_once.s())

    error = fails(result)

    assert error.args == ("Task expected to fail", "test")
    errback = settled(result)[1]
    assert (errback.state, errback.result, errback.attempt) == (JobState.SUCCEEDED, 1, 2)


def test_an_errback_by_name_is_called_with_the_id(worker: App):
    failing = signature("proj.tasks.fail", args=("test",))
    failing.link_error(signature("proj.tasks.errback_by_id"))

    result = failing.delay()

    fails(result)
    settled(result)
    assert noted(result.id) == ["by id"]


def test_an_eager_call_runs_its_errback(worker: App):
    key = new_id()

    result = fail.s("test").on_error(count.si(key)).apply()

    assert fails(result).args == ("Task expected to fail", "test")
    assert noted(key) == ["ran"]


def test_a_countdown_of_a_chain_counts_for_its_first_step_and_leaves_errbacks_alone(worker: App):
    key = new_id()
    c = chain(group(add.s(1, 2), add.s(3, 4)), tsum.s()).on_error(count.si(key))

    result = c.apply_async(countdown=0.1)

    assert result.get(timeout=10) == 10
    settled(result)
    assert noted(key) == []
