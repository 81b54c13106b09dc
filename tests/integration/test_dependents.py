"""What a job that did not run for another's failure answers: that failure is its own."""

import json
from typing import Any

import psycopg
import pytest

from pgtasks import ChordError, JobCancelledError, JobExpiredError, TaskFailedError
from tests.fixtures.bundles import insert_job, insert_step


def did_not_run(connection: psycopg.Connection[Any], job: str, error: dict[str, Any]) -> None:
    """Move a job to the history as one that what it waited for failed, with any error."""
    connection.execute(
        "with gone as (delete from pgtasks.job where id = %s returning job)"
        " select pgtasks.archive(array(select job from gone), 'cancelled', 'what it waited for failed')",
        [job],
    )
    connection.execute(
        "update pgtasks.job_history set error = %s where id = %s", [json.dumps(error), job]
    )


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        ({"type": "ValueError", "message": "no", "args": ["no"]}, ValueError, "^no$"),
        ({"type": "shop.Gone", "message": "no", "args": None}, TaskFailedError, "shop.Gone: no"),
        (
            {
                "type": "pgtasks.errors.ChordError",
                "message": "Dependency 7 raised ValueError('no')",
                "args": ["Dependency 7 raised ValueError('no')"],
            },
            ChordError,
            "^Dependency 7 raised",
        ),
        (
            {"type": "pgtasks.errors.JobExpiredError", "message": "late", "args": ["late"]},
            JobExpiredError,
            "^late$",
        ),
    ],
    ids=["known", "unknown", "chord", "expired"],
)
def test_a_job_that_another_one_failed_for_raises_that_error(app, connection, error, raised, match):
    step, first = insert_step(connection)
    job = insert_job(connection, after=step, after_on="success")
    did_not_run(connection, job, {"dependency": first, "traceback": "there", **error})

    result = app.result(job)

    with pytest.raises(raised, match=match):
        result.get(timeout=5)
    assert (result.state, result.failed(), result.successful(), result.ready()) == (
        "FAILURE",
        True,
        False,
        True,
    )
    assert (result.traceback, type(result.result)) == ("there", raised)
    assert (result.job().state, result.job().error.dependency) == ("cancelled", first)
    with pytest.raises(raised):
        app.ResultSet([result]).get(timeout=5)


def test_a_job_that_was_cancelled_between_two_attempts_stays_revoked(app, connection):
    job = insert_job(connection)
    did_not_run(connection, job, {"type": "ValueError", "message": "again", "args": []})

    result = app.result(job)

    assert (result.state, result.failed()) == ("REVOKED", False)
    with pytest.raises(JobCancelledError):
        result.get(timeout=5)
