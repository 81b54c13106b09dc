"""Limits, rates and turns as options: what is accepted, what is refused and how, and what a worker keeps to itself."""

from typing import Any

import orjson
import pytest

from pgtasks import App, ConfigurationError, Limit, RateLimit
from pgtasks.limits import published_gates
from pgtasks.options import WorkerOptions, task_options
from pgtasks.rates import Rate
from pgtasks.worker.lanes import Lane, lane_kinds
from pgtasks.worker.messages import LaneKind, TaskFacts
from tests.unit.worker_fakes import QUEUES


@pytest.fixture
def app() -> App:
    return App("tests", "host=nowhere.invalid")


def pay(customer_id: int, tenant: str = "none") -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"limit": 5}, {"limit_key": "pay"}),
        ({"limit": Limit(5)}, {"limit_key": "pay"}),
        ({"limit": Limit(5, key=lambda customer_id: customer_id)}, {"limit_key": "pay 7"}),
        ({"limit": Limit(5, key="{customer_id}-{tenant}")}, {"limit_key": "pay 7-none"}),
        ({"limit": Limit(5, name="stripe")}, {"limit_key": "stripe"}),
        ({"limit": Limit(5, key="{tenant}", name="stripe")}, {"limit_key": "stripe none"}),
        ({"rate": "100/m"}, {"rate_key": "pay"}),
        ({"rate": 2}, {"rate_key": "pay"}),
        ({"rate": Rate(100, 60, burst=10)}, {"rate_key": "pay"}),
        ({"rate": RateLimit("100/m", burst=10, key="{tenant}")}, {"rate_key": "pay none"}),
        ({"fair_by": lambda tenant: tenant}, {"fair_key": "none"}),
        ({"fair_by": "{tenant}", "limit": 5}, {"limit_key": "pay", "fair_key": "none"}),
    ],
)
def test_a_call_computes_the_keys_of_its_job(app, options, keys):
    task = app.task(name="pay", **options)(pay)

    job = task.new_job((7,), {}, {"retries": 3})

    assert job.options is not None
    assert task.gates is not None
    assert job.takes_turns() == ("fair_key" in keys)
    assert app.tasks["pay"].new_job((), {"customer_id": 7}).options is not None
    assert orjson.loads(job.options) == {"retries": 3, **keys}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"limit": 0},
            "a limit is a whole number from 1 to 1000000, found 0: leave it out for no limit",
        ),
        ({"limit": True}, "a limit is a whole number from 1"),
        ({"limit": "5"}, "a limit is a whole number from 1"),
        ({"rate": "100/x"}, "a rate is written 10/s"),
        ({"rate": 0}, "the count of a rate is a number above 0"),
        ({"rate": [1]}, "a rate is written 10/s"),
        ({"fair_by": 5}, "fair_by is True, a function of the task's parameters, or a template"),
        ({"fair_by": "{nobody}"}, "but the task has no such parameter: found customer_id, tenant"),
        ({"fair_by": "{tenant}", "rate": "1/s"}, "has fair_by and rate, found both"),
        ({"rate_limit": "often"}, "a rate is written 10/s"),
    ],
)
def test_what_cannot_be_is_refused_at_the_definition(app, options, message):
    with pytest.raises(ConfigurationError, match=message):
        app.task(name="pay", **options)(pay)

    assert "pay" not in app.tasks


@pytest.mark.parametrize(
    "made", [lambda: Limit(5, key="{x}", name="two words"), lambda: RateLimit(1, name="")]
)
def test_a_name_with_a_space_could_not_be_told_from_a_key(made):
    with pytest.raises(ConfigurationError, match="begins with a letter or _"):
        made()


@pytest.mark.parametrize("value", [None, b"7", float("nan"), "x" * 201, object()])
def test_what_cannot_be_a_key_is_refused_at_the_call(app, value):
    task = app.task(name="pay", limit=Limit(5, key=lambda customer_id: value))(pay)

    with pytest.raises(ConfigurationError, match="task 'pay': limit: its key function"):
        task.delay(7)


def test_a_key_function_that_raises_says_so_at_the_call(app):
    task = app.task(name="pay", fair_by=lambda customer_id: 1 / 0)(pay)

    with pytest.raises(
        ConfigurationError, match="fair_by: its key function raised ZeroDivisionError"
    ):
        task.delay(7)


def test_a_name_that_tasks_share_means_the_same_in_all(app):
    app.task(name="one", limit=Limit(5, name="stripe"), rate=RateLimit("1/s", name="calls"))(pay)
    app.task(name="two", limit=Limit(5, name="stripe"))(lambda: None)

    with pytest.raises(
        ConfigurationError, match="the limit 'stripe' is 5 in task 'one', and 6 in task 'three'"
    ):
        app.task(name="three", limit=Limit(6, name="stripe"))(lambda: 3)
    with pytest.raises(
        ConfigurationError, match=r"the rate 'calls' is 1/s .* in task 'one', and 2/s"
    ):
        app.task(name="four", rate=RateLimit("2/s", name="calls"))(lambda: 4)


def test_a_worker_publishes_each_name_once():
    gates = [
        one.gates
        for one in (
            task_options("a", {"limit": Limit(5, name="stripe")}),
            task_options(
                "b", {"limit": Limit(5, name="stripe"), "rate": RateLimit("60/m", burst=4)}
            ),
            task_options("c", {"fair_by": "{x}"}),
        )
        if one.gates is not None
    ]

    assert published_gates(["a", "b", "c", "d"], gates) == {
        "tasks": ["a", "b", "c", "d"],
        "task": ["a", "b", "c"],
        "limit_name": ["stripe", "stripe", None],
        "rate_name": [None, "b", None],
        "fair": [False, False, True],
        "limits": ["stripe"],
        "jobs": [5],
        "rates": ["b"],
        "per_second": [1.0],
        "burst": [4],
    }


# Celery's rate_limit, of each worker


@pytest.mark.parametrize(
    ("said", "per_second", "burst"),
    [("100/m", 100 / 60, 1), ("10/s", 10, 1), (200, 200, 20), ("1000/h", 1000 / 3600, 1)],
)
def test_rate_limit_is_read_as_celery_reads_it(said, per_second, burst):
    rate = task_options("a", {"rate_limit": said}).rate_limit

    assert rate is not None
    assert rate.per_second == pytest.approx(per_second)
    assert rate.burst == burst


@pytest.mark.parametrize("said", [None, 0, "0", ""])
def test_no_rate_limit_is_none(said):
    assert task_options("a", {"rate_limit": said}).rate_limit is None


def test_a_task_with_a_rate_limit_has_a_lane_of_its_own():
    rate = Rate(10)

    assert lane_kinds(
        {"a": TaskFacts(), "b": TaskFacts(rate=rate), "c": TaskFacts(at_most_once=True, rate=rate)}
    ) == [
        LaneKind(("a",)),
        LaneKind(("b",), rate=rate),
        LaneKind(("c",), at_most_once=True, rate=rate),
    ]
    assert lane_kinds({"b": TaskFacts(rate=rate)}) == [LaneKind(("b",), rate=rate)]


def test_a_lane_claims_no_more_than_its_rate_allows():
    lane = Lane(0, LaneKind(("b",), rate=Rate(10, 1.0, burst=2)), WorkerOptions(), QUEUES, 100.0)

    assert lane.allowed(50, 100.0) == 2
    lane.spend(2, 100.0)
    assert lane.allowed(50, 100.05) == 0
    assert lane.allowed(50, 100.1) == 1
    lane.spend(1, 100.1)
    assert lane.allowed(50, 99.0) == 0  # clocks do not go back, but if
    assert lane.allowed(50, 1000.0) == 2


def test_a_lane_wakes_the_worker_for_the_next_token_only_if_it_waits_for_one():
    lane = Lane(0, LaneKind(("b",), rate=Rate(10)), WorkerOptions(), QUEUES, 100.0)
    lane.spend(lane.allowed(99, 100.0), 100.0)

    assert lane.next_token(100.0) == float("inf")
    lane.intake.woken(None, 100.0)
    assert lane.next_token(100.0) == pytest.approx(100.1)
    assert lane.next_token(101.0) == float("inf")


def test_a_lane_without_a_rate_is_as_before():
    lane: Any = Lane(0, LaneKind(("a",)), WorkerOptions(), QUEUES, 0.0)

    assert lane.allowed(500, 0.0) == 500
    assert lane.next_token(0.0) == float("inf")
