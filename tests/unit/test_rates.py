from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.errors import ConfigurationError
from pgtasks.rates import Rate, parse_rate, written_rate


@pytest.mark.parametrize(
    ("rate", "per_second", "burst"),
    [
        ("10/s", 10, 10),
        ("100/m", 100 / 60, 2),
        ("1000/h", 1000 / 3600, 1),
        ("5000/d", 5000 / 86400, 1),
        ("2.5/s", 2.5, 3),
        (" 3 / m ", 3 / 60, 1),
        ("7", 7, 7),
        (7, 7, 7),
        (0.5, 0.5, 1),
        (Rate(30, 60.0, burst=9), 0.5, 9),
    ],
)
def test_rate_is_written_as_celery_writes_it(
    rate: Rate | str | float, per_second: float, burst: int
) -> None:
    parsed = parse_rate(rate)

    assert parsed.per_second == pytest.approx(per_second)
    assert parsed.tokens == burst


@pytest.mark.parametrize(
    "rate",
    ["", "fast", "10/x", "10/min", "-1/s", "1e3/s", "10/", "/s", "10/s/s", None, True, [], b"1/s"],
)
def test_what_is_no_rate_is_refused_with_the_spellings(rate: object) -> None:
    with pytest.raises(ConfigurationError, match=r"a rate is written 10/s, 100/m, 1000/h"):
        parse_rate(rate)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, "0/m", "0", -3, 0.0])
def test_rate_of_nothing_is_refused_with_what_to_say_instead(rate: str | float) -> None:
    with pytest.raises(ConfigurationError, match="leave the rate out for no limit"):
        parse_rate(rate)


@pytest.mark.parametrize("rate", ["99999999999/s", "0.000000001/d"])
def test_rate_beyond_reason_is_refused(rate: str) -> None:
    with pytest.raises(ConfigurationError, match="between one in 366 days"):
        parse_rate(rate)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_no_rate(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="a rate is written"):
        parse_rate(rate)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), "60", True])
def test_time_of_a_rate_is_above_0(seconds: object) -> None:
    with pytest.raises(ConfigurationError, match="the seconds of a rate"):
        Rate(1, seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("burst", [0, -1, 1.5, True, 1_000_001, "3"])
def test_burst_is_a_whole_number_from_1(burst: object) -> None:
    with pytest.raises(ConfigurationError, match="burst is a whole number from 1"):
        parse_rate("10/s", burst=burst)  # type: ignore[arg-type]


def test_burst_that_is_said_replaces_the_one_of_the_rate() -> None:
    assert parse_rate(Rate(10, 1.0, 4), burst=6) == Rate(10, 1.0, 6)
    assert parse_rate("100/m", burst=100).tokens == 100


@given(st.integers(1, 10_000), st.sampled_from("smhd"))
def test_rate_that_is_shown_reads_back_as_the_same(count: int, unit: str) -> None:
    rate = parse_rate(f"{count}/{unit}")

    assert parse_rate(str(rate)).per_second == pytest.approx(rate.per_second)


def test_rate_is_shown_in_the_unit_that_makes_a_whole_number() -> None:
    assert [written_rate(rate) for rate in (10, 100 / 60, 1000 / 3600, 1 / 86400, 1 / 3)] == [
        "10/s",
        "100/m",
        "1000/h",
        "1/d",
        "20/m",
    ]
