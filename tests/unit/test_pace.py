"""How long a task takes is learned quickly when it grows, slowly when it shrinks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.worker.pace import AHEAD, IN_PIPE, Pace

durations = st.floats(1e-7, 1e4)


def paced(*seconds: float) -> Pace:
    pace = Pace()
    for one in seconds:
        pace.measure("task", one)
    return pace


def test_an_unmeasured_task_counts_as_long():
    assert Pace().expect("task") >= IN_PIPE
    assert paced(1e-5).expect("another") >= IN_PIPE
    assert Pace().ahead(500) == 0


def test_the_first_measurement_is_the_estimate():
    assert paced(0.002).expect("task") == 0.002


def test_an_estimate_rises_at_once():
    pace = paced(*[0.0001] * 100, 1.0)

    assert pace.expect("task") >= 0.5


def test_an_estimate_falls_slowly():
    pace = paced(1.0, *[0.0001] * 10)

    assert 0.5 < pace.expect("task") < 1.0


def test_an_estimate_falls_in_the_end():
    pace = paced(1.0, *[0.0001] * 1000)

    assert pace.expect("task") < IN_PIPE


def test_a_task_that_is_long_one_time_in_twenty_stays_long():
    pace = paced(*[0.0001, *[0.0001] * 18, 1.0] * 10, *[0.0001] * 19)

    assert pace.expect("task") >= IN_PIPE


@pytest.mark.parametrize(
    ("seconds", "ahead"), [(1e-5, 500), (0.0005, 100), (0.01, 5), (0.04, 1), (0.06, 0), (1.0, 0)]
)
def test_what_is_held_ahead_is_so_much_work(seconds: float, ahead: int):
    assert paced(*[seconds] * 50).ahead(500) == pytest.approx(ahead, abs=1)


def test_a_task_that_takes_no_time_at_all_is_measured_too():
    assert paced(0.0).ahead(500) == 500


@given(st.lists(durations, min_size=1))
def test_an_estimate_stays_within_what_was_measured(seconds: list[float]):
    pace = paced(*seconds)

    assert min(seconds) <= pace.expect("task") * (1 + 1e-9)
    assert pace.expect("task") <= max(seconds) * (1 + 1e-9)


@given(st.lists(durations, min_size=1), st.integers(1, 500))
def test_what_is_held_ahead_is_bounded(seconds: list[float], most: int):
    ahead = paced(*seconds).ahead(most)

    assert 0 <= ahead <= most
    assert ahead * min(seconds) <= AHEAD * (1 + 1e-9)
