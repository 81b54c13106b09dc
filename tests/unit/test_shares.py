"""How a claim is shared among queues."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtasks import App, ConfigurationError, Queue, WorkerOptions
from pgtasks.worker.process import served_queues
from pgtasks.worker.shares import Shares

QUEUES = [f"q{number}" for number in range(12)]


@given(st.integers(1, 12), st.integers(1, 500))
def test_without_weights_the_queues_in_turn_get_equal_shares(queues, want):
    divided = list(Shares({}).divide(QUEUES[:queues], want, 8))

    asked = QUEUES[:queues][:8]
    assert divided == [(queue, -(-want // len(asked))) for queue in asked]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
)
def test_shares_follow_the_weights_to_within_one_job_at_any_time(weights, wants):
    weight = dict(zip(QUEUES, weights, strict=False))
    queues, total = list(weight), sum(weight.values())
    shares = Shares(weight)
    given_to: Counter[str] = Counter()

    for round, want in enumerate(wants, 1):
        divided = dict(shares.divide(queues, want, 8))
        given_to.update(divided)

        assert all(share > 0 for share in divided.values())
        if set(weights) != {1}:
            assert sum(divided.values()) == want
            for queue in queues:
                exact = sum(wants[:round]) * weight[queue] / total
                assert abs(given_to[queue] - exact) <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=9, max_size=12), st.integers(1, 20), st.integers(1, 8))
def test_no_queue_starves_where_not_all_are_asked_at_once(weights, want, most):
    weight = dict(zip(QUEUES, weights, strict=False)) | {"q0": 21}  # not all equal
    queues, total = list(weight), sum(weight.values())
    shares = Shares(weight)
    rounds = 2 * total // want + 2 * len(queues)
    given_to: Counter[str] = Counter()

    for _ in range(rounds):
        divided = dict(shares.divide(queues, want, most))
        assert len(divided) <= most
        assert sum(divided.values()) == want
        given_to.update(divided)

    for queue in queues:
        exact = rounds * want * weight[queue] / total
        assert given_to[queue] >= exact - want - 1


def test_who_had_nothing_is_owed_nothing():
    shares = Shares({"mail": 3})

    for _ in range(10):
        assert list(shares.divide(["mail"], 100, 8)) == [("mail", 100)]

    assert dict(shares.divide(["mail", "default"], 100, 8)) == {"mail": 75, "default": 25}


@pytest.mark.parametrize("weights", [{"mail": 0}, {"mail": 1001}, {"mail": True}, {"a b": 2}])
def test_what_is_no_weight_is_refused(weights):
    with pytest.raises(ConfigurationError):
        WorkerOptions(weights=weights)


def test_a_weight_is_of_a_queue_that_is_served():
    with pytest.raises(ConfigurationError, match="'mial' has a weight and is not served"):
        WorkerOptions(queues=("mail",), weights={"mial": 2})
    with pytest.raises(ConfigurationError, match="expected one of default, mail"):
        served_queues(App(queues={"mail": Queue()}), WorkerOptions(weights={"mial": 2}))
