"""What a claimed row is to a task: its request, its job, the options of its call."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from pgtasks import codec
from pgtasks.context import Request
from pgtasks.errors import DecodingError
from pgtasks.job import Job, JobState, attempts_from_json
from pgtasks.options import check_retries

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.worker.messages import ClaimedRow

NO_OPTIONS: dict[str, Any] = {}


def request_from_row(app: App, row: ClaimedRow, hostname: str) -> Request:
    """Build the request of a claimed job.

    Raises:
        DecodingError: its options are not an object.
        ConfigurationError: one of them has a value that it cannot have.
    """
    said = read_options(row.options) if row.options else NO_OPTIONS
    return Request(
        app,
        row.id,
        row.task,
        row.queue,
        row.attempt,
        row.crashes,
        row.parent_id,
        row.root_id,
        hostname,
        said,
        partial(job_from_row, row, said),
    )


def read_options(text: str) -> dict[str, Any]:
    """Decode the options of a call and check those that a worker reads; any client may have written them.

    They are jsonb, which knows no key twice, so that nothing is left to read strictly: that takes 20 times as long
    (measured, for text as jsonb prints it), and every unique job has some.
    """
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DecodingError(f"options: {error}") from None
    if not isinstance(said, dict):
        raise DecodingError(f"options: expected a JSON object, found {type(said).__name__}")
    if "retries" in said:
        check_retries(said["retries"])
    return said


def job_from_row(row: ClaimedRow, said: Mapping[str, Any]) -> Job:
    """Build the job of a claimed row, with the options of its call."""
    return Job(
        id=row.id,
        task=row.task,
        queue=row.queue,
        state=JobState.RUNNING,
        priority=row.priority,
        args_json=row.args,
        kwargs_json=row.kwargs,
        attempt=row.attempt,
        crashes=row.crashes,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        start_at=_moment(row.start_at),
        expires_at=_moment(row.expires_at),
        origin=row.origin,
        parent_id=row.parent_id,
        root_id=row.root_id,
        bundle_id=row.bundle_id,
        bundle_index=row.bundle_index,
        options=said,
        attempts=attempts_from_json(
            codec.decode(row.attempts, "attempts") if row.attempts else None
        ),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
