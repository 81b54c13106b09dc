"""Graphs that start again from where they broke: nothing runs before, or without, what it waited for."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import App, chain, chord, group
from pgtasks.errors import JobStateError
from tests.fixtures.graph_steps import echo
from tests.fixtures.simulated_worker import SimulatedWorker

__all__ = ["echo"]


def test_a_chain_that_was_cancelled_as_a_whole_starts_again_with_its_first_step(
    app: App, echo: Any, worker: SimulatedWorker
):
    chains = group(chain(echo.s(1), echo.s())).delay()
    app.cancel_bundle(chains.id)

    ready = app.retry_failed(chains.id)

    [held] = worker.claim()
    assert ready == [held.id]
    worker.succeed(held, 7)
    [held] = worker.claim()
    assert (held.id, held.input) == (chains[0].id, "7")
    worker.succeed(held)
    assert app.bundle(chains.id).state == "succeeded"


def test_a_step_whose_predecessor_succeeded_after_all_gets_its_result(
    app: App, echo: Any, worker: SimulatedWorker
):
    chains = group(chain(echo.s(1), echo.s())).delay()
    first = worker.claim_one()
    worker.fail(first)
    app.reset(first.id)
    worker.succeed(worker.claim(), 7)

    ready = app.retry_failed(chains.id)

    [held] = worker.claim()
    assert ready == [held.id] == [chains[0].id]
    assert held.input == "7"


def test_a_step_that_was_cancelled_before_it_had_its_input_is_not_reset(
    app: App, echo: Any, worker: SimulatedWorker
):
    last = chain(echo.s(1), echo.s()).delay()
    app.cancel(last.id)

    with pytest.raises(JobStateError, match="did not run"):
        app.reset(last.id)


def named_by_reset(app: App, id: str) -> str:
    """Return the bundle that the message of a refused reset names."""
    with pytest.raises(JobStateError) as refused:
        app.reset(id)
    return str(refused.value).rpartition(" ")[2]


def test_a_last_step_that_was_cancelled_while_it_waited_waits_again(
    app: App, echo: Any, worker: SimulatedWorker
):
    last = chain(echo.s(1), echo.s()).delay()
    app.cancel(last.id)

    ready = app.retry_failed(named_by_reset(app, last.id))

    assert ready == []
    assert app.job(last.id).state == "blocked"
    worker.succeed(worker.claim(), 7)
    assert worker.claim_one().input == "7"


def test_a_last_step_that_was_cancelled_gets_what_came_meanwhile(
    app: App, echo: Any, worker: SimulatedWorker
):
    last = chain(echo.s(1), echo.s()).delay()
    app.cancel(last.id)
    worker.succeed(worker.claim(), 7)

    ready = app.retry_failed(named_by_reset(app, last.id))

    assert ready == [last.id]
    assert worker.claim_one().input == "7"


def test_a_last_step_that_was_cancelled_before_a_step_failed_waits_again_for_that_step(
    app: App, echo: Any, worker: SimulatedWorker
):
    last: Any = chain(echo.s(1), echo.s(), echo.s()).delay()
    app.cancel(last.id)
    first = worker.claim_one()
    worker.fail(first)

    ready = app.retry_failed(named_by_reset(app, last.id))

    assert ready == [first.id]
    assert app.job(last.id).state == "blocked"
    assert worker.run_all(result=7) == 3
    assert app.job(last.id).state == "succeeded"


def test_a_body_that_was_cancelled_while_it_waited_gets_all_results(
    app: App, echo: Any, worker: SimulatedWorker
):
    body = chord([echo.s(1), echo.s(2)], echo.s()).delay()
    worker.succeed(worker.claim(limit=1), 7)
    app.cancel(body.id)

    ready = app.retry_failed(named_by_reset(app, body.id))

    assert ready == []
    worker.succeed(worker.claim(), 8)
    assert worker.claim_one().input == "[7,8]"


def test_a_callback_that_was_cancelled_waits_again_only_if_its_own_bundle_is_named(
    app: App, echo: Any, worker: SimulatedWorker
):
    """Somebody did not want it: what is said of the group that its job is in says nothing of it."""
    members = group(echo.s(1).set(link=echo.s()), echo.s(2)).delay()
    [callback] = [job for job in app.graph(members[0].id) if job.state == "blocked"]
    app.cancel(callback.id)
    worker.fail(worker.claim())

    ready = app.retry_failed(members.id)

    assert sorted(ready) == sorted(member.id for member in members)
    assert app.job(callback.id).state == "cancelled"


SHAPES: dict[str, Callable[[Any], Any]] = {
    "chain": lambda step: chain(step("a"), step("b"), step("c")),
    "member of a group": lambda step: group(chain(step("a"), step("b"), step("c")), step("d")),
    "group at the end": lambda step: chain(step("a"), step("b"), group(step("c"), step("d"))),
    "body": lambda step: chord([step("a"), step("d")], chain(step("b"), step("c"))),
    "body of a chain": lambda step: chain(step("b"), group(step("a"), step("d")), step("c")),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_did_not_run_calls_back_once_when_it_runs_and_fails_itself(
    app: App, worker: SimulatedWorker, shape: str
):
    """Its callback had not been needed: another's was called."""

    def call_back(*args: Any) -> None: ...

    app.task(name="sorry")(call_back)
    steps = {name: app.task(name=name)(call_back) for name in "abcd"}
    canvas = SHAPES[shape](lambda name: steps[name].si())
    canvas.link_error(app.find_task("sorry").s())
    result = canvas.delay()

    called = called_back(worker, failing="b")
    [broken] = app.jobs("failed")
    [last] = [job for job in app.graph(broken.id) if job.task == "c"]
    assert called == [broken.id]
    assert last.bundle_id is not None
    app.retry_failed(last.bundle_id)

    assert called_back(worker, failing="c") == [last.id]
    assert result.failed()


def called_back(worker: SimulatedWorker, failing: str) -> list[str]:
    """Run everything, with one task that fails; return for what the callbacks were called."""
    called = []
    while held := worker.claim(limit=1):
        [one] = held
        if one.task == "sorry":
            called.append(json.loads(one.input or ""))
        worker.finish(held, "failed" if one.task == failing else "succeeded", result="1")
    return called


def test_a_callback_for_failure_runs_once_for_a_body_and_what_follows_it(
    app: App, echo: Any, worker: SimulatedWorker
):
    errback = echo.si("sorry")
    body = chain(echo.s().on_error(errback), echo.s().on_error(errback))
    chord([echo.s(1), echo.s(2)], body).delay()

    worker.fail(worker.claim(limit=1))
    worker.succeed(worker.claim())

    assert len(worker.claim()) == 1
