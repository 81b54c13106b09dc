"""A guarded section holds an interrupt back, for the job in whose own thread it stands."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

from pgtasks import guarded
from pgtasks.errors import Cancelled
from pgtasks.guard import Guard, guard_var


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard(serial=7)
    guard.open = True
    token = guard_var.set(guard)
    yield guard
    guard_var.reset(token)


def test_outside_of_a_job_a_section_does_nothing():
    with guarded(), guarded():
        pass

    assert guard_var.get() is None


def test_what_waits_is_raised_at_the_end_of_the_outer_section(guard: Guard):
    steps: list[str] = []

    def body() -> None:
        with guarded():
            with guarded():
                guard.pending = (7, Cancelled)
                steps.append("inner")
            steps.append("outer")

    with pytest.raises(Cancelled):
        body()
    assert steps == ["inner", "outer"]
    assert (guard.depth, guard.pending) == (0, None)


def test_what_waits_goes_before_what_the_section_raised(guard: Guard):
    def body() -> None:
        with guarded():
            guard.pending = (7, Cancelled)
            raise ValueError("of the section")

    with pytest.raises(Cancelled) as raised:
        body()
    assert isinstance(raised.value.__context__, ValueError)
    assert guard.depth == 0


def test_an_interrupt_for_an_earlier_job_is_dropped(guard: Guard):
    with guarded():
        guard.pending = (6, Cancelled)

    assert guard.pending is None


def test_nothing_is_raised_once_the_jobs_own_code_is_left(guard: Guard):
    guard.open = False

    with guarded():
        guard.pending = (7, Cancelled)

    assert guard.pending == (7, Cancelled)


def test_a_thread_of_the_job_is_not_in_its_section(guard: Guard):
    import contextvars

    depths: list[int] = []

    def work() -> None:
        with guarded():
            depths.append(guard.depth)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,))
    thread.start()
    thread.join()

    assert depths == [0]


def test_a_section_that_an_earlier_job_left_open_does_not_end_the_next_ones(guard: Guard):
    def generator() -> Generator[None, None, None]:
        with guarded():
            yield

    left = generator()
    next(left)
    guard.serial, guard.depth = 8, 0

    with guarded():
        left.close()
        assert guard.depth == 1
    assert guard.depth == 0
