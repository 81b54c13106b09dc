"""What a job waits for, why it did not run, and what else is odd about it: in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgtasks import JobState
from pgtasks.errors import NotFoundError
from pgtasks_cli import crash, output

if TYPE_CHECKING:
    from pgtasks import App, Bundle, Job, JobError

TAKES = {
    "result": ", takes its result",
    "results": ", takes its results",
    "error": ", takes its id",
}
RUNS_ON = {"failure": ", runs if that fails", "stop": ", runs in any case"}


def note(job: Job) -> str | None:
    """Return what is odd about a job, in a few words."""
    if did_not_run(job):
        assert job.error is not None
        return f"did not run: {output.short_id(job.error.dependency or '')} failed"
    if job.error:
        return cause(job.error)
    if job.cancel_requested:
        return "cancel requested"
    if job.progress:
        return job.progress.text()
    if job.reason:
        return job.reason
    if job.state is JobState.BLOCKED:
        return waits(job)
    if job.state is JobState.SCHEDULED and job.start_at:
        return f"starts {output.when(job.start_at)}"
    if job.attempts and (error := job.attempts[-1].error):
        return f"before: {cause(error)}"
    return None


def unique(app: App, job: Job) -> str | None:
    """Return whether a unique job holds its key, and until when; None: it is not unique."""
    from pgtasks.db import operations

    key = job.options.get("unique_key")
    if not isinstance(key, str):
        return None
    key = key.removeprefix(f"{job.task}:")
    held = app.run(operations.held_key(job))
    if held is not None:
        ends = {"start": "it is started", "finish": "it is finished"}.get(held.release or "")
        return f"unique, holds key {key} until {ends or (held.until and output.when(held.until))}"
    holder = app.run(operations.key_holder(job))
    return f"unique, key {key} " + ("is free" if holder is None else f"is held by job {holder}")


def cause(error: JobError) -> str:
    """Return in one line why an attempt failed."""
    if crash.is_crash(error):
        return crash.summary(error)
    return f"{error.type}: {error.message}".removesuffix(": ")


def did_not_run(job: Job) -> bool:
    """Whether it ended because something before it failed."""
    return job.state is JobState.CANCELLED and job.error is not None and bool(job.error.dependency)


def waits(job: Job) -> str:
    """Return for what a job waits, as far as its row says."""
    if job.after_on == "failure":
        return "waits for a failure"
    if job.takes is None:
        return "waits"
    return "waits for results" if job.takes == "results" else "waits for a result"


def waited_for(app: App, job: Job) -> str | None:
    """Return what a job waits or waited for, with its state now; None: nothing."""
    if job.after_bundle_id is None:
        return None
    said = f"{TAKES.get(job.takes or '', '')}{RUNS_ON.get(job.after_on or '', '')}"
    try:
        bundle = app.bundle(job.after_bundle_id)
    except NotFoundError:
        return f"bundle {job.after_bundle_id}, of which nothing is kept{said}"
    if bundle.kind == "group":
        return f"group {bundle.id} ({group_text(bundle)}){said}"
    for one in app.jobs(bundle_id=bundle.id, limit=1):
        return f"job {one.id} ({one.task}, {one.state}){said}"
    return f"a job of which nothing is kept{said}"


def member_of(app: App, job: Job) -> str | None:
    """Return the group that a job is in; a step is none, but it may be in one."""
    if job.bundle_id is None:
        return None
    try:
        bundle = app.bundle(job.bundle_id)
    except NotFoundError:
        return job.bundle_id
    id = bundle.id if bundle.kind == "group" else bundle.parent_id
    if id is None or job.bundle_index is None:
        return id
    return f"{id} (member {job.bundle_index})"


def group_text(bundle: Bundle) -> str:
    """Return how far a group is."""
    type = f"{bundle.type}, " if bundle.type else ""
    failed = f", {bundle.failed:,} failed" if bundle.failed else ""
    return f"{type}{bundle.total - bundle.remaining:,} of {bundle.total:,} done{failed}"


def failed_before(app: App, job: Job) -> str | None:
    """Return the job whose failure is why this one did not run; None: it is not so."""
    if not did_not_run(job):
        return None
    assert job.error is not None
    assert job.error.dependency is not None
    try:
        failed = app.job(job.error.dependency)
    except NotFoundError:
        return f"job {job.error.dependency} failed, of which nothing is kept"
    if not failed.state.finished or failed.state is JobState.SUCCEEDED:
        return f"job {failed.id} ({failed.task}) had failed, and is {failed.state} now"
    said = cause(failed.error) if failed.error else failed.state
    return f"job {failed.id} ({failed.task}) ended {failed.state}: {said}"


def to_retry(job: Job) -> str:
    """Return the command that starts a graph again for a job that did not run."""
    return f"pgtasks bundles retry-failed {job.bundle_id or job.after_bundle_id}"
