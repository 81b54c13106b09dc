"""What ``get()`` raises for the errors that pgtasks itself stores: these classes, and no others by name."""

from __future__ import annotations

import pytest

from pgtasks import App
from pgtasks import errors as own
from pgtasks.errors import JobCancelledError, TaskFailedError
from pgtasks.failure import rebuild_error
from pgtasks.job import JobError, JobState

ID = "01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    "name",
    [
        "ChordError",
        "JobCancelledError",
        "JobExpiredError",
        "JobFailedError",
        "JobLostError",
        "SoftTimeLimitExceeded",
        "TimeLimitExceeded",
    ],
)
def test_what_pgtasks_stores_comes_back_as_itself(name: str):
    stored = JobError(type=f"pgtasks.errors.{name}", message="why", traceback="there", args=["why"])

    error = rebuild_error(App("tests"), ID, JobState.FAILED, stored)

    assert type(error) is getattr(own, name)
    assert str(error) == "why"
    assert isinstance(error.__cause__, TaskFailedError)


def test_a_cancelled_job_needs_no_stored_error():
    error = rebuild_error(App("tests"), ID, JobState.CANCELLED, None)

    assert isinstance(error, JobCancelledError)


@pytest.mark.parametrize(
    "name", ["pgtasks.errors.Cancelled", "pgtasks.worker.interrupts.SoftLimit", "os.system"]
)
def test_no_other_class_is_looked_up_by_its_name(name: str):
    stored = JobError(type=name, message="why", args=["why"])

    assert type(rebuild_error(App("tests"), ID, JobState.FAILED, stored)) is TaskFailedError


def test_what_another_job_failed_for_is_raised_though_this_one_is_cancelled():
    stored = JobError(type="ValueError", message="no", args=["no"], dependency=ID)

    error = rebuild_error(App("tests"), ID, JobState.CANCELLED, stored)

    assert type(error) is ValueError
    assert error.args == ("no",)


def test_an_error_of_an_attempt_before_the_cancellation_is_not_raised():
    stored = JobError(type="ValueError", message="no", args=["no"])

    assert type(rebuild_error(App("tests"), ID, JobState.CANCELLED, stored)) is JobCancelledError


@pytest.mark.parametrize("value", [None, "", 0, ID])
def test_only_a_job_is_a_dependency(value: object):
    stored = JobError.from_json({"type": "ValueError", "message": "no", "dependency": value})

    assert stored is not None
    assert stored.dependency == (ID if value == ID else None)
