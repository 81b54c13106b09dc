"""Which progress is written now: the newest of each job, once, one statement at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.worker.messages import Held, Report
from pgtasks.worker.milestones import BATCH_BYTES, Milestones


def reports(**at: float | tuple[float, int]) -> dict[int, tuple[Held, Report]]:
    """Build reports: ``_7=1.5`` is serial 7, said at 1.5; a second number is the size."""
    found = {}
    for name, said in at.items():
        moment, size = said if isinstance(said, tuple) else (said, 2)
        serial = int(name[1:])
        held: Any = Held(serial, (), "token")  # type: ignore[arg-type]
        found[serial] = (held, Report(serial, moment, b"x" * size))
    return found


def serials(batch: Any) -> list[int]:
    return [held.serial for held, _ in batch]


@pytest.fixture
def milestones() -> Milestones:
    return Milestones()


def test_each_report_is_written_once(milestones):
    assert serials(milestones.due(reports(_1=1.0, _2=1.0))) == [1, 2]
    milestones.answered()

    assert serials(milestones.due(reports(_1=1.0, _2=1.5))) == [2]
    milestones.answered()
    assert serials(milestones.due(reports(_1=1.0, _2=1.5))) == []


def test_one_write_is_under_way_at_a_time(milestones):
    milestones.due(reports(_1=1.0))

    assert serials(milestones.due(reports(_1=2.0))) == []
    milestones.answered()
    assert serials(milestones.due(reports(_1=2.0))) == [1]


def test_what_was_lost_is_written_again_as_it_is_then(milestones):
    milestones.due(reports(_1=1.0))
    milestones.answered(again=True)

    [(_, report)] = milestones.due(reports(_1=2.0))

    assert report.at == 2.0


def test_nothing_is_kept_of_jobs_that_ended(milestones):
    for serial in range(100):
        milestones.due(reports(**{f"_{serial}": 1.0}))
        milestones.answered()

    assert len(milestones._written) <= 1


def test_what_does_not_fit_into_one_statement_comes_next_and_nobody_is_forgotten(milestones):
    large = BATCH_BYTES // 2 + 1
    written: list[list[int]] = []
    for second in range(4):
        now = float(second)
        batch = milestones.due(reports(_1=(now, large), _2=(now, large), _3=(now, large)))
        written.append(serials(batch))
        milestones.answered()

    assert written == [[1], [2], [3], [1]]


def test_one_that_is_larger_than_a_statement_shall_be_goes_alone(milestones):
    assert serials(milestones.due(reports(_1=(1.0, 2 * BATCH_BYTES)))) == [1]


@given(
    st.lists(
        st.tuples(st.dictionaries(st.integers(1, 5), st.integers(0, 9)), st.booleans()),
        max_size=30,
    )
)
def test_in_the_end_the_newest_of_every_job_is_written_whatever_was_lost(rounds):
    milestones = Milestones()
    said: dict[int, float] = {}
    stored: dict[int, float] = {}

    def look(*, lost: bool) -> None:
        batch = milestones.due(reports(**{f"_{serial}": at for serial, at in said.items()}))
        if not batch:
            return
        if not lost:
            stored.update({held.serial: report.at for held, report in batch})
        milestones.answered(again=lost)

    clock = 0.0
    for spoke, lost in rounds:
        for serial in spoke:
            clock += 1.0
            said[serial] = clock
        look(lost=lost)
    look(lost=False)

    assert stored == said
    assert milestones.due(reports(**{f"_{serial}": at for serial, at in said.items()})) == []
