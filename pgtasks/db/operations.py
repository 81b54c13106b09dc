"""Every operation of the library, as data: a `Statement`, or a generator of several.

No I/O here, no clock and no psycopg: `pgtasks.db.run` drives these, synchronously or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from msgspec import structs

from pgtasks.db.statements import Copy, Row, Rows, Statement, Steps, no_rows, repeatable
from pgtasks.errors import DuplicateJobError, JobStateError, NotFoundError, ScheduleError
from pgtasks.ids import id_time
from pgtasks.job import (
    Bundle,
    ClaimedJob,
    Job,
    JobError,
    JobFilter,
    JobState,
    NewBundle,
    NewJob,
    QueueInfo,
    Status,
    TaskInfo,
    UniqueKey,
    WorkerInfo,
    members_of,
    place_members,
)
from pgtasks.progress import Progress
from pgtasks.schedule import Schedule
from pgtasks.unique import same_key

if TYPE_CHECKING:
    from pgtasks.options import Queue

# From how many jobs on COPY is used instead of one insert from arrays; see benchmarks/enqueue.py.
COPY_FROM = 10

# So many rows are sent at a time, so that the server reads some while the next are made.
COPY_PIECE = 500

# How many rows one statement deletes or resets at most, so that no transaction grows large.
BATCH = 1000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEW_JOB_FIELDS = tuple(name for name in NewJob.__struct_fields__ if name != "unique")
WAITING_FIELDS = ("after_bundle_id", "after_on", "takes", "input")
NEW_BUNDLE_FIELDS = NewBundle.__struct_fields__


class StoredOutcome(NamedTuple):
    """What is stored of a job's end, or of its way there."""

    state: JobState
    attempt: int
    result: str | None
    error: JobError | None
    progress: Progress | None = None  # while it runs, if it said anything


class ParentRow(NamedTuple):
    """What a job waits or waited for: a group, or the job of a step."""

    is_group: bool
    id: str
    task: str | None


class Gates(NamedTuple):
    """What may hold a job of a queue and a task back."""

    queue_paused_at: datetime | None
    queue_paused_by: str | None
    queue_reason: str | None
    max_running: int | None
    rate: float | None
    tokens: float | None
    running: int
    task_paused_at: datetime | None
    task_paused_by: str | None
    task_reason: str | None


class ChildRow(NamedTuple):
    """A job that another one enqueued, or that follows it; and its group, if it is a member of one."""

    parent_id: str
    id: str
    task: str
    group_id: str | None


class HeldKey(NamedTuple):
    """A unique key that a job has."""

    until: datetime | None
    release: str | None


def since(ids: Iterable[str]) -> datetime:
    """Return a moment before which none of these jobs can have stopped, for pruning partitions.

    An hour is allowed between the clock that made an id and the database's.
    """
    moments = [id_time(one) for one in ids]
    return min(
        (moment - timedelta(hours=1) if moment else EPOCH for moment in moments), default=EPOCH
    )


# Enqueue


def enqueue_job(job: NewJob) -> Statement[str | None]:
    """Write one job; of a unique one read the id of the job that has its key, if that is another.

    Raises:
        DuplicateJobError: another has it, and that is what ``on_conflict`` says.
    """
    if job.unique is not None:
        return _enqueue_unique(job)
    if job.is_plain():
        return Statement(
            name="enqueue_plain_job",
            parameters={
                "id": job.id,
                "queue": job.queue,
                "priority": job.priority,
                "task": job.task,
                "args": job.args,
                "kwargs": job.kwargs,
            },
            read=no_rows,
        )
    return Statement(name="enqueue_job", parameters=_one_job(job), read=no_rows)


def _one_job(job: NewJob) -> dict[str, object]:
    return {name: getattr(job, name) for name in NEW_JOB_FIELDS if name not in WAITING_FIELDS}


def _enqueue_unique(job: NewJob) -> Statement[str | None]:
    unique = job.unique
    assert unique is not None

    def read(rows: Rows) -> str | None:
        if not rows:
            return None
        if unique.on_conflict == "raise":
            raise _duplicate(job, rows[0][0])
        return cast("str", rows[0][0])

    return Statement(
        name="enqueue_unique_job",
        parameters={
            **_one_job(job),
            "key": unique.key,
            "seconds": unique.seconds,
            "release": unique.release,
            "replace": unique.on_conflict == "replace",
        },
        read=read,
    )


def _duplicate(job: NewJob, holder: str, because: str = "") -> DuplicateJobError:
    key = "" if job.unique is None else job.unique.key.removeprefix(f"{job.task}:")
    return DuplicateJobError(
        f"job {holder} of task {job.task!r} has the unique key {key!r} in queue {job.queue or 'default'!r}{because}",
        holder,
    )


@repeatable
def enqueue_jobs(
    jobs: Sequence[NewJob], bundles: Sequence[NewBundle] = (), *, strict: bool = False
) -> Steps[dict[str, str]]:
    """Write many jobs, and the bundles that they are members of or wait for, in one transaction.

    Returns those that were left out, since another job has their unique key, each with the id of that one. In a group
    they are no members.

    Args:
        jobs: what to write.
        bundles: their bundles.
        strict: none may be left out; so it is in any case where something waits for a job.

    Raises:
        DuplicateJobError: one may not be left out, or ``on_conflict`` says so.
    """
    held: dict[str, str] = {}
    unique = [job for job in jobs if job.unique is not None]
    if unique:
        strict = strict or not _is_flat(jobs, bundles)
        held = yield from _take_keys(unique, strict=strict)
    if held:
        jobs = [job for job in jobs if job.id not in held]
        bundles = [structs.replace(one, total=one.total - len(held)) for one in bundles]
    yield from _write_jobs(jobs, bundles)
    return held


def _is_flat(jobs: Sequence[NewJob], bundles: Sequence[NewBundle]) -> bool:
    """Whether nothing waits for any of these jobs: single ones, or the members of one group."""
    if any(job.waits() for job in jobs):
        return False
    if not bundles:
        return True
    return len(bundles) == 1 and bundles[0].kind == "group" and bundles[0].parent_id is None


def _take_keys(jobs: Sequence[NewJob], *, strict: bool) -> Steps[dict[str, str]]:
    """Take the keys of unique jobs; returns those that do not get theirs, each with the id of the job that has it."""
    yield from _place_unknown(jobs)
    firsts, others = same_key(list(jobs))
    unique = [cast("UniqueKey", job.unique) for job in firsts.values()]
    rows: Rows = yield Statement(
        name="take_keys",
        parameters={
            "queue": [job.queue for job in firsts.values()],
            "key": [one.key for one in unique],
            "id": list(firsts),
            "seconds": [one.seconds for one in unique],
            "release": [one.release for one in unique],
        },
        read=list,
    )
    held: dict[str, str] = dict(rows)
    replacing = [
        firsts[id] for id in held if cast("UniqueKey", firsts[id].unique).on_conflict == "replace"
    ]
    for job, first in others:
        held[job.id] = held.get(first.id, first.id)
        if job.unique is not None and job.unique.on_conflict == "replace":
            if first.id in held:
                replacing.append(job)
            else:  # not written yet
                first.args, first.kwargs, first.options = job.args, job.kwargs, job.options
                first.start_at, first.delay = job.start_at, job.delay
                first.expires_at, first.expires_in = job.expires_at, job.expires_in
    for job in jobs:
        if job.id in held and job.unique is not None:
            if strict:
                because = ", and something waits for this one: nothing was enqueued"
                raise _duplicate(job, held[job.id], because)
            if job.unique.on_conflict == "raise":
                raise _duplicate(job, held[job.id])
    if replacing:
        # Of several calls with one key the last one counts.
        last = {(job.queue, cast("UniqueKey", job.unique).key): job for job in replacing}
        names = (
            "queue",
            "args",
            "kwargs",
            "options",
            "start_at",
            "delay",
            "expires_at",
            "expires_in",
        )
        columns: dict[str, object] = {
            name: [getattr(job, name) for job in last.values()] for name in names
        }
        columns["key"] = [key for _, key in last]
        columns["seconds"] = [cast("UniqueKey", job.unique).seconds for job in last.values()]
        yield Statement(name="replace_waiting", parameters=columns, read=no_rows)
    return held


def _write_jobs(jobs: Sequence[NewJob], bundles: Sequence[NewBundle]) -> Steps[None]:
    if bundles:
        columns = {name: [getattr(one, name) for one in bundles] for name in NEW_BUNDLE_FIELDS}
        yield Statement(name="insert_bundles", parameters=columns, read=no_rows)
    if len(jobs) >= COPY_FROM:
        relative = any(
            job.delay is not None or job.expires_in is not None or job.start_at for job in jobs
        )
        now = (yield Statement(name="current_time", read=_only_value)) if relative else EPOCH
        yield from _place_unknown(jobs)
        if any(job.takes_turns() for job in jobs):
            name, also = "copy_turns", {"waiting": True, "turns": True}
        elif any(job.waits() for job in jobs):
            name, also = "copy_graph", {"waiting": True}
        else:
            name, also = "copy_jobs", {}
        pieces = (
            copy_lines(jobs[first : first + COPY_PIECE], now, **also)
            for first in range(0, len(jobs), COPY_PIECE)
        )
        yield Copy(name=name, pieces=pieces)
    elif jobs:
        columns = {name: [getattr(job, name) for job in jobs] for name in NEW_JOB_FIELDS}
        yield Statement(name="enqueue_jobs", parameters=columns, read=no_rows)


def _place_unknown(jobs: Sequence[NewJob]) -> Steps[None]:
    """Give jobs of tasks that are only known by name the queue and the priority that workers published."""
    names = {job.task for job in jobs if job.queue is None or job.priority is None}
    if not names:
        return
    rows: Rows = yield Statement(
        name="published_tasks", parameters={"names": sorted(names)}, read=list
    )
    published = {name: (queue, priority) for name, queue, priority in rows}
    for job in jobs:
        if job.task in names:
            queue, priority = published.get(job.task, ("default", 0))
            job.queue = queue if job.queue is None else job.queue
            job.priority = priority if job.priority is None else job.priority


def grow_group(
    bundle_id: str, jobs: Sequence[NewJob], bundles: Sequence[NewBundle], place_id: str
) -> Steps[None]:
    """Write more members of an open group, and what they need.

    Args:
        bundle_id: the group, or a step that is in it.
        jobs: what to write.
        bundles: their bundles, without the group.
        place_id: the id that the group has in jobs and bundles; the indexes there begin with 0.

    Raises:
        JobStateError: the group has stopped, or there is none.
        DuplicateJobError: one of them is unique, and another job has its key.
    """
    members = len(members_of(jobs, bundles, place_id))
    grown: Rows = yield Statement(
        name="grow_group", parameters={"id": bundle_id, "members": members}, read=list
    )
    if not grown:
        raise JobStateError(f"bundle {bundle_id} is not an open group: nothing can be added to it")
    placed = place_members(jobs, bundles, place_id, *grown[0])
    yield from enqueue_jobs(jobs, placed, strict=True)


def copy_lines(
    jobs: Sequence[NewJob], now: datetime, *, waiting: bool = False, turns: bool = False
) -> str:
    r"""Return jobs as lines of COPY's text format: tab-separated, \N for null, backslash escapes.

    Args:
        jobs: what to write.
        now: the database's clock.
        waiting: say what each job waits for, too.
        turns: park those that take turns, and say why.
    """
    lines = []
    for job in jobs:
        start_at = job.start_at or (now + timedelta(seconds=job.delay) if job.delay else None)
        expires_at = job.expires_at
        if expires_at is None and job.expires_in is not None:
            expires_at = now + timedelta(seconds=job.expires_in)
        state = "scheduled" if start_at and start_at > now else "ready"
        if job.after_bundle_id:
            state = "blocked"
        end = "\n"
        if waiting:
            end = (
                f"\t{job.after_bundle_id or _NULL}\t{job.after_on or _NULL}\t{job.takes or _NULL}"
                f"\t{_escape(job.input)}\n"
            )
        if turns:
            parked = state == "ready" and job.takes_turns()
            state = "parked" if parked else state
            end = f"{end[:-1]}\t{'turn' if parked else _NULL}\n"
        lines.append(
            f"{job.id}\t{job.queue}\t{job.priority}\t{state}\t"
            f"{start_at.isoformat() if start_at else _NULL}\t"
            f"{expires_at.isoformat() if expires_at else _NULL}\t"
            f"{job.task}\t{_escape(job.args)}\t{_escape(job.kwargs)}\t{_escape(job.options)}\t"
            f"{_escape(job.origin)}\t{job.parent_id or _NULL}\t{job.root_id or _NULL}\t"
            f"{job.bundle_id or _NULL}\t{_NULL if job.bundle_index is None else job.bundle_index}{end}"
        )
    return "".join(lines)


_NULL = "\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _escape(text: str | None) -> str:
    if text is None:
        return _NULL
    # Encoded JSON has no raw control characters, so mostly there is nothing to do.
    return text if text.isalnum() or not _needs_escape(text) else text.translate(_ESCAPES)


def _needs_escape(text: str) -> bool:
    return "\\" in text or "\t" in text or "\n" in text or "\r" in text


# Results


def get_outcomes(ids: Sequence[str]) -> Statement[dict[str, StoredOutcome]]:
    """Read state, attempt, result, error and progress of jobs; unknown ids are absent."""

    def read(rows: Rows) -> dict[str, StoredOutcome]:
        return {
            id: StoredOutcome(
                JobState(state),
                attempt,
                result,
                JobError.from_json(error),
                None if progress is None else Progress.from_json(progress, id),
            )
            for id, state, attempt, result, error, progress in rows
        }

    return Statement(
        name="get_outcomes", parameters={"ids": list(ids), "since": since(ids)}, read=read
    )


def get_states(ids: Sequence[str]) -> Statement[dict[str, JobState]]:
    """Read where jobs are; unknown ids are absent."""
    return Statement(
        name="get_states",
        parameters={"ids": list(ids), "since": since(ids)},
        read=lambda rows: {id: JobState(state) for id, state in rows},
    )


def get_parent(id: str) -> Statement[ParentRow | None]:
    """Read what a job waits or waited for; None: nothing, or nothing is kept of it."""
    return Statement(
        name="get_parent",
        parameters={"id": id, "since": since([id])},
        read=lambda rows: ParentRow._make(rows[0]) if rows else None,
    )


def get_children(ids: Sequence[str]) -> Statement[dict[str, list[ChildRow]]]:
    """Read the jobs that these enqueued or that follow them, by what they follow, oldest first."""

    def read(rows: Rows) -> dict[str, list[ChildRow]]:
        children: dict[str, list[ChildRow]] = {id: [] for id in ids}
        for row in map(ChildRow._make, rows):
            children[row.parent_id].append(row)
        return children

    return Statement(
        name="get_children", parameters={"ids": list(ids), "since": since(ids)}, read=read
    )


def forget_results(ids: Sequence[str]) -> Statement[None]:
    """Drop the stored results of finished jobs."""
    return Statement(
        name="forget_results", parameters={"ids": list(ids), "since": since(ids)}, read=no_rows
    )


def get_bundle_members(bundle_id: str) -> Statement[list[str]]:
    """Read the ids of a bundle's members in their order."""
    return Statement(name="get_bundle_members", parameters={"id": bundle_id}, read=_first_column)


def count_bundle_members(bundle_id: str) -> Statement[dict[JobState, int]]:
    """Count a bundle's members by state."""
    return Statement(
        name="count_bundle_members",
        parameters={"id": bundle_id},
        read=lambda rows: {JobState(state): count for state, count in rows},
    )


# Look


def get_jobs(ids: Sequence[str]) -> Statement[list[Job]]:
    """Read jobs by id; unknown ids are absent."""
    return Statement(
        name="get_jobs",
        parameters={"ids": sorted(ids), "since": since(ids)},
        read=lambda rows: [Job.from_row(row) for row in rows],
    )


def get_job(id: str) -> Statement[Job]:
    """Read one job; NotFoundError if there is none."""
    return Statement(
        name="get_jobs",
        parameters={"ids": [id], "since": since([id])},
        read=lambda rows: Job.from_row(_one(rows, f"no job has the id {id}")),
    )


def get_graph(id: str) -> Steps[list[Job]]:
    """Read all jobs of the graph that a job belongs to, oldest first; NotFoundError if there is no such job."""
    jobs: list[Job] = yield Statement(
        name="get_graph",
        parameters={"id": id, "since": since([id])},
        read=lambda rows: [Job.from_row(row) for row in rows],
    )
    if not jobs:
        raise NotFoundError(f"no job has the id {id}")
    return jobs


def count_graph(id: str) -> Statement[dict[JobState, int]]:
    """Count by state the jobs of the graph that a job belongs to."""
    return Statement(
        name="count_graph",
        parameters={"id": id, "since": since([id])},
        read=lambda rows: {JobState(state): count for state, count in rows},
    )


def list_waiters(bundle_id: str, limit: int = 100) -> Statement[list[Job]]:
    """Read jobs that wait for a bundle, or waited for it, oldest first."""
    return Statement(
        name="list_waiters",
        parameters={"id": bundle_id, "limit": limit},
        read=lambda rows: [Job.from_row(row) for row in rows],
    )


def list_unsuccessful_members(bundle_id: str, limit: int = 100) -> Statement[list[Job]]:
    """Read members of a bundle that ended without success, in their order."""
    return Statement(
        name="list_unsuccessful_members",
        parameters={"id": bundle_id, "limit": limit},
        read=lambda rows: [Job.from_row(row) for row in rows],
    )


def list_jobs(filter: JobFilter) -> Statement[list[Job]]:
    """Read the jobs that fit, newest first."""
    parameters = {
        name: getattr(filter, name)
        for name in (
            "task",
            "queue",
            "origin",
            "bundle_id",
            "created_before",
            "created_after",
            "started_before",
            "stopped_before",
            "error",
            "before_id",
            "limit",
        )
    }
    parameters["states"] = (
        None if filter.states is None else [str(state) for state in filter.states]
    )
    parameters["low_id"], parameters["high_id"] = id_range(filter.id_prefix)
    return Statement(
        name="list_jobs",
        parameters=parameters,
        read=lambda rows: [Job.from_row(row) for row in rows],
    )


def id_range(prefix: str | None) -> tuple[str | None, str | None]:
    """Return the first and the last UUID that begin so; ValueError for what no UUID begins with."""
    if prefix is None:
        return None, None
    digits = prefix.replace("-", "").lower()
    if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
        raise ValueError(f"an id is made of hexadecimal digits, found {prefix!r}")
    return digits.ljust(32, "0"), digits.ljust(32, "f")


def get_status() -> Steps[Status]:
    """Count jobs and bundles by state."""
    rows = yield Statement(name="count_jobs", read=list)
    running, succeeded, failed = yield Statement(name="count_bundles", read=lambda rows: rows[0])
    jobs: dict[JobState, int] = dict.fromkeys(JobState, 0)
    queues: dict[str, dict[JobState, int]] = {}
    for queue, state, count in rows:
        jobs[JobState(state)] += count
        queues.setdefault(queue, {})[JobState(state)] = count
    return Status(
        jobs=jobs,
        queues=queues,
        bundles={"running": running, "succeeded": succeeded, "failed": failed},
    )


def list_bundles(
    *,
    ids: Sequence[str] | None = None,
    type: str | None = None,
    origin: str | None = None,
    stopped: bool | None = None,
    failed: bool | None = None,
    created_before: datetime | None = None,
    id_prefix: str | None = None,
    before_id: str | None = None,
    limit: int = 100,
) -> Statement[list[Bundle]]:
    """Read the bundles that fit, newest first."""
    low_id, high_id = id_range(id_prefix)
    return Statement(
        name="list_bundles",
        parameters={
            "ids": None if ids is None else list(ids),
            "type": type,
            "origin": origin,
            "stopped": stopped,
            "failed": failed,
            "created_before": created_before,
            "low_id": low_id,
            "high_id": high_id,
            "before_id": before_id,
            "limit": limit,
        },
        read=lambda rows: [Bundle.from_row(row) for row in rows],
    )


def get_bundle(id: str) -> Steps[Bundle]:
    """Read one bundle; NotFoundError if there is none."""
    found = yield list_bundles(ids=[id])
    if not found:
        raise NotFoundError(f"no bundle has the id {id}")
    return cast("Bundle", found[0])


def list_workers() -> Statement[list[WorkerInfo]]:
    """Read the registered workers."""
    return Statement(
        name="list_workers", read=lambda rows: [WorkerInfo.from_row(row) for row in rows]
    )


def list_claimed_jobs(limit: int = 1000) -> Statement[list[ClaimedJob]]:
    """Read the jobs that workers hold."""
    return Statement(
        name="list_claimed_jobs",
        parameters={"limit": limit},
        read=lambda rows: [ClaimedJob.from_row(row) for row in rows],
    )


def list_running_members(bundle_id: str, limit: int = 100) -> Steps[list[Job]]:
    """Read the jobs of a bundle that workers run, those that run longest first.

    For a role that may not see claims, as producers, there are none.
    """
    if not (yield Statement(name="may_see_claims", read=_only_value)):
        return []
    found: list[Job] = yield Statement(
        name="list_running_members",
        parameters={"id": bundle_id, "limit": limit},
        read=lambda rows: [Job.from_row(row) for row in rows],
    )
    return found


def list_queues() -> Statement[list[QueueInfo]]:
    """Read the depth of each queue."""
    return Statement(
        name="list_queues", read=lambda rows: [QueueInfo.from_row(row) for row in rows]
    )


def list_queue_names() -> Statement[list[str]]:
    """Read the name of every queue that is in use or configured."""
    return Statement(name="list_queue_names", read=_first_column)


def list_tasks() -> Statement[list[TaskInfo]]:
    """Read the tasks that workers have published."""
    return Statement(name="list_tasks", read=lambda rows: [TaskInfo.from_row(row) for row in rows])


class Place(NamedTuple):
    """What a job waits for that has a limit or a rate; see `pgtasks.limits`."""

    holding: int | None  # how many have a place
    jobs: int | None  # of how many
    token_in: float | None  # seconds


def get_place(job: Job) -> Statement[Place]:
    """Look how far the limit and the rate of a job's keys are used up."""
    return Statement(
        name="show_gates",
        parameters={name: job.options.get(name) for name in ("limit_key", "rate_key")},
        read=lambda rows: Place._make(next(iter(rows))),
    )


def get_gates(job: Job) -> Statement[Gates]:
    """Read what may hold a job back."""
    return Statement(
        name="get_gates",
        parameters={"queue": job.queue, "task": job.task},
        read=lambda rows: Gates._make(rows[0]),
    )


# Control


@repeatable
def cancel_jobs(
    ids: Sequence[str], reason: str = "cancelled", *, terminate: bool = True
) -> Steps[dict[str, Literal["cancelled", "requested"]]]:
    """Cancel what waits, and ask running jobs to stop; finished ones are left alone.

    Without ``terminate`` a running job goes on: a success still counts, a retry does not.
    """
    blocked = yield from _lock_unblocked(ids)
    # What runs comes first: it is locked before any bundle.
    requested: list[str] = yield Statement(
        name="request_cancel",
        parameters={"ids": sorted(ids), "terminate": terminate},
        read=_first_column,
    )
    cancelled = yield from _cancel_waiting(ids, blocked, reason)
    answer: dict[str, Literal["cancelled", "requested"]] = dict.fromkeys(requested, "requested")
    answer.update(dict.fromkeys(cancelled, "cancelled"))
    return answer


@repeatable
def delete_jobs(ids: Sequence[str]) -> Steps[list[str]]:
    """Delete jobs: waiting ones are cancelled first, finished ones forgotten; running ones stay."""
    yield from cancel_waiting_jobs(ids)
    deleted: list[str] = yield Statement(
        name="delete_finished",
        parameters={"ids": list(ids), "since": since(ids)},
        read=_first_column,
    )
    return deleted


@repeatable
def cancel_waiting_jobs(ids: Sequence[str], reason: str = "cancelled") -> Steps[list[str]]:
    """Cancel what waits among these, and return which."""
    blocked = yield from _lock_unblocked(ids)
    return (yield from _cancel_waiting(ids, blocked, reason))


def _lock_unblocked(ids: Sequence[str]) -> Steps[Rows]:
    """Lock these jobs but for those that wait for a bundle, and return those.

    Read before, so that one that is unblocked now is not missed, and after, since what was locked
    in the meantime may have been replaced by a graph, and wait for its end.
    """
    blocked: Rows = []
    parameters = {"ids": sorted(ids)}
    blocked += yield Statement(name="get_blocked", parameters=parameters, read=list)
    yield Statement(name="lock_unblocked", parameters=parameters, read=no_rows)
    blocked += yield Statement(name="get_blocked", parameters=parameters, read=list)
    return blocked


def _cancel_waiting(ids: Sequence[str], blocked: Rows, reason: str) -> Steps[list[str]]:
    """Lock in the order of every other writer: unblocked jobs, bundles deepest first, blocked jobs."""
    parameters = {"ids": sorted(ids), "reason": reason}
    rows: list[Row] = yield Statement(
        name="cancel_waiting", parameters={**parameters, "blocked": False}, read=list
    )
    if blocked:
        yield from _lock_bundles([row[1] for row in (*rows, *blocked)])
        # Only these: what was held before and is not now would be locked after the bundles.
        blocked_ids = sorted({row[0] for row in blocked})
        rows += yield Statement(
            name="cancel_waiting",
            parameters={**parameters, "ids": blocked_ids, "blocked": True},
            read=list,
        )
    yield from _count("count_down", [(row[1], True) for row in rows])
    return [row[0] for row in rows]


def _lock_bundles(ids: Iterable[str | None]) -> Steps[None]:
    bundle_ids = sorted({id for id in ids if id})
    if bundle_ids:
        yield Statement(name="lock_bundles", parameters={"ids": bundle_ids}, read=no_rows)


def delete_history(
    *,
    states: Sequence[JobState] | None = None,
    task: str | None = None,
    queue: str | None = None,
    origin: str | None = None,
    stopped_before: datetime | None = None,
) -> Statement[int]:
    """Forget up to `BATCH` finished jobs that fit; call again while the answer is `BATCH`."""
    return Statement(
        name="delete_history",
        parameters={
            "states": None if states is None else [str(state) for state in states],
            "task": task,
            "queue": queue,
            "origin": origin,
            "stopped_before": stopped_before,
            "limit": BATCH,
        },
        read=_only_value,
    )


@repeatable
def reset_jobs(ids: Sequence[str]) -> Steps[list[str]]:
    """Make finished jobs ready again from their first attempt; their bundles count them in again.

    Bundles are locked before the jobs are touched, as everywhere.
    """
    jobs: list[Job] = yield get_jobs(ids)
    yield from _lock_bundles([job.bundle_id for job in jobs])
    rows: Rows = yield Statement(
        name="reset_finished", parameters={"ids": sorted(ids), "since": since(ids)}, read=list
    )
    yield from _count("count_up", [(row[1], row[2]) for row in rows])
    return [row[0] for row in rows]


@repeatable
def reset_job(id: str) -> Steps[None]:
    """Make a finished job ready again; NotFoundError, or JobStateError if it is not finished."""
    if not (yield from reset_jobs([id])):
        job: Job = yield get_job(id)
        holder: str | None = yield key_holder(job)
        if job.state.finished and holder not in (None, id):
            raise JobStateError(
                f"job {id} is unique, and job {holder} has its key: it can be reset when that one is finished, "
                f"or say app.cancel({holder!r})"
            )
        if job.state.finished:
            raise JobStateError(
                f"job {id} did not run, since what it waited for failed or did not end: "
                f"say pgtasks bundles retry-failed {job.bundle_id or job.after_bundle_id}"
            )
        raise JobStateError(
            f"job {id} is {job.state}: only a finished job can be reset, cancel it first"
        )


def key_holder(job: Job) -> Statement[str | None]:
    """Read the id of the job that has a job's unique key; None: none has it, or it has no key."""
    return Statement(
        name="key_holder",
        parameters={"queue": job.queue, "key": job.options.get("unique_key")},
        read=lambda rows: rows[0][0] if rows else None,
    )


def held_key(job: Job) -> Statement[HeldKey | None]:
    """Read how long a job has its unique key; None: it has it no longer, or never had one."""
    return Statement(
        name="held_key",
        parameters={"queue": job.queue, "key": job.options.get("unique_key"), "id": job.id},
        read=lambda rows: HeldKey._make(rows[0]) if rows else None,
    )


@repeatable
def reschedule_job(
    id: str,
    *,
    start_at: datetime | None,
    delay: float | None,
    now: bool,
    priority: int | None,
    queue: str | None,
) -> Steps[JobState]:
    """Give a job that waits another time, priority or queue; NotFoundError, or JobStateError if it does not wait.

    Args:
        id: which job.
        start_at: when.
        delay: when, in seconds from the database's now.
        now: as soon as may be; without any of these three its time stays.
        priority: None: stays.
        queue: None: stays.
    """
    state: str | None = yield Statement(
        name="reschedule_job",
        parameters={
            "id": id,
            "start_at": start_at,
            "delay": delay,
            "now": now,
            "priority": priority,
            "queue": queue,
        },
        read=_only_value,
    )
    if state is None:
        job: Job = yield get_job(id)
        what = "reset it first" if job.state.finished else "a worker has it"
        raise JobStateError(
            f"job {id} is {job.state}, and only a job that waits can be rescheduled: {what}"
        )
    return JobState(state)


def retry_failed(ids: Sequence[str]) -> Statement[list[str]]:
    """Start failed graphs again from where they broke; reads which jobs are ready again."""
    return Statement(name="retry_failed", parameters={"ids": list(ids)}, read=_first_column)


@repeatable
def reset_bundles(ids: Sequence[str]) -> Steps[list[str]]:
    """Reset the finished members of bundles."""
    members: list[str] = yield Statement(
        name="get_finished_members", parameters={"ids": list(ids)}, read=_first_column
    )
    return (yield from reset_jobs(members)) if members else []


@repeatable
def cancel_bundles(
    ids: Sequence[str], *, terminate: bool = True
) -> Steps[dict[str, Literal["cancelled", "requested"]]]:
    """Cancel the live members of bundles; see `cancel_jobs`."""
    members: list[str] = yield Statement(
        name="get_live_members", parameters={"ids": list(ids)}, read=_first_column
    )
    return (yield from cancel_jobs(members, terminate=terminate)) if members else {}


def delete_bundles(ids: Sequence[str]) -> Statement[list[str]]:
    """Forget stopped bundles and their members; open ones stay."""
    return Statement(name="delete_bundles", parameters={"ids": list(ids)}, read=_first_column)


def list_stopped_bundles(
    *, type: str | None = None, origin: str | None = None, stopped_before: datetime | None = None
) -> Statement[list[str]]:
    """Read the ids of up to `BATCH` stopped bundles that fit."""
    return Statement(
        name="list_stopped_bundles",
        parameters={
            "type": type,
            "origin": origin,
            "stopped_before": stopped_before,
            "limit": BATCH,
        },
        read=_first_column,
    )


def list_waiting_ids(queues: Sequence[str]) -> Statement[list[str]]:
    """Read the ids of up to `BATCH` jobs that no worker has taken."""
    return Statement(
        name="list_waiting_ids",
        parameters={"queues": list(queues), "limit": BATCH},
        read=_first_column,
    )


def _count(statement: str, counted: Sequence[tuple[str | None, bool]]) -> Steps[None]:
    members = [(bundle_id, failed) for bundle_id, failed in counted if bundle_id]
    if members:
        bundle_ids, failed = zip(*members, strict=True)
        yield Statement(
            name=statement,
            parameters={"bundle_ids": list(bundle_ids), "failed": list(failed)},
            read=no_rows,
        )


# Queues and tasks


def publish_queues(limits: Mapping[str, Queue]) -> Statement[None]:
    """Write what an app declares for queues; what an operator set by hand goes on to hold."""
    buckets = [one.bucket for one in limits.values()]
    return Statement(
        name="publish_queues",
        parameters={
            "name": list(limits),
            "max_running": [one.max_running for one in limits.values()],
            "rate": [one and one.per_second for one in buckets],
            "burst": [one and one.tokens for one in buckets],
            "ageing": [one.ageing for one in limits.values()],
        },
        read=no_rows,
    )


def pause_queue(name: str, *, reason: str | None, by: str | None) -> Statement[None]:
    """Hold a queue; again to say another reason."""
    return Statement(
        name="pause_queue", parameters={"name": name, "by": by, "reason": reason}, read=no_rows
    )


def resume_queue(name: str) -> Statement[bool]:
    """Let a queue go on; reads whether it was paused."""
    return Statement(name="resume_queue", parameters={"name": name}, read=_only_value)


def limit_queue(
    name: str,
    limits: Mapping[str, int | float | None],
    *,
    burst: int | None,
    by: str | None,
) -> Statement[None]:
    """Set limits of a queue by hand.

    Args:
        name: which queue.
        limits: any of max_running, rate (in a second) and ageing; what is absent stays, None is none.
        burst: of the rate.
        by: who sets them.
    """
    return Statement(
        name="limit_queue",
        parameters={
            "name": name,
            "set": list(limits),
            "max_running": limits.get("max_running"),
            "rate": limits.get("rate"),
            "burst": burst,
            "ageing": limits.get("ageing"),
            "by": by,
        },
        read=no_rows,
    )


def reset_limits(name: str) -> Statement[bool]:
    """Let the limits of a queue be those that code declares; reads whether an operator had set any."""
    return Statement(name="reset_limits", parameters={"name": name}, read=_only_value)


def pause_task(name: str, *, reason: str | None, by: str | None) -> Steps[None]:
    """Hold a task; NotFoundError if no worker has published it."""
    known = yield Statement(
        name="pause_task", parameters={"name": name, "by": by, "reason": reason}, read=_only_value
    )
    if not known:
        names = [one.name for one in (yield list_tasks())]
        raise NotFoundError(f"no worker has published a task {name!r}{did_you_mean(name, names)}")


def resume_task(name: str) -> Statement[bool]:
    """Let a task go on; reads whether it was paused. What was parked is for `unpark_paused`."""
    return Statement(name="resume_task", parameters={"name": name}, read=_only_value)


def unpark_paused() -> Statement[int | None]:
    """Free up to `BATCH` parked jobs of a task that was resumed; None: there is no such task."""
    return Statement(name="unpark_paused", parameters={"limit": BATCH}, read=_only_value)


class Moved(NamedTuple):
    """What became of jobs that were to be moved: which did, and which stay, with the job that has their unique key."""

    ids: list[str]
    stay: dict[str, str]


def move_jobs(
    source: str,
    target: str,
    *,
    ids: Sequence[str] | None = None,
    task: str | None = None,
    without: Iterable[str] = (),
) -> Statement[Moved]:
    """Move up to `BATCH` jobs that no worker has taken to another queue; none of those ``without``."""

    def read(rows: Rows) -> Moved:
        return Moved(
            [id for id, holder in rows if holder is None],
            {id: holder for id, holder in rows if holder is not None},
        )

    return Statement(
        name="move_jobs",
        parameters={
            "from": source,
            "to": target,
            "ids": None if ids is None else list(ids),
            "task": task,
            "without": list(without),
            "limit": BATCH,
        },
        read=read,
    )


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return the end of a message about a name that is unknown: the one that was meant, if one is near."""
    near = get_close_matches(name, names, 1)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": found {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else ""


# Workers


def register_worker(
    description: Mapping[str, object],
    tasks: Sequence[tuple[str, str, int]],
    limits: Mapping[str, Queue],
    app: str,
    schedules: str,
    age: float,
    gates: Mapping[str, Sequence[object]] | None = None,
) -> Steps[tuple[int, list[str]]]:
    """Add a worker, publish its tasks and what its app declares for queues, and declare its schedules.

    Args:
        description: the columns of its row.
        tasks: name, queue and priority of each task that it knows.
        limits: what is declared for queues, by name.
        app: whose schedules these are.
        schedules: name -> definition, as JSON.
        age: seconds since its process began.
        gates: what jobs of these tasks must pass; see `pgtasks.limits.published_gates`.

    Returns its id, and the names of the schedules that somebody added by hand, which stay as they are.
    """
    if limits:
        yield publish_queues(limits)
    if tasks:
        names, queues, priorities = zip(*tasks, strict=True)
        yield Statement(
            name="publish_tasks",
            parameters={"name": list(names), "queue": list(queues), "priority": list(priorities)},
            read=no_rows,
        )
    if gates is not None:
        yield Statement(name="publish_gates", parameters=gates, read=no_rows)
    worker_id: int = yield Statement(
        name="register_worker", parameters=description, read=_only_value
    )
    by_hand: list[str] = yield Statement(
        name="declare_schedules",
        parameters={"worker_id": worker_id, "app": app, "age": age, "definitions": schedules},
        read=_only_value,
    )
    return worker_id, by_hand


# Schedules


def list_schedules(names: Sequence[str] | None = None) -> Statement[list[Schedule]]:
    """Read schedules by name, all or some."""
    return Statement(
        name="list_schedules",
        parameters={"names": None if names is None else list(names)},
        read=lambda rows: [Schedule.from_row(row) for row in rows],
    )


def get_schedule(name: str) -> Steps[Schedule]:
    """Read one schedule; NotFoundError if there is none."""
    found: list[Schedule] = yield list_schedules([name])
    _all_schedules([name], [one.name for one in found])
    return found[0]


def add_schedule(name: str, said: str) -> Steps[None]:
    """Add a schedule by hand; ScheduleError if there is one of that name."""
    added = yield Statement(
        name="add_schedule", parameters={"name": name, "said": said}, read=_only_value
    )
    if not added:
        raise ScheduleError(
            f"there is a schedule {name!r} already: edit it, or remove it first (pgtasks schedules show {name!r})"
        )


def edit_schedule(name: str, changes: str, *, forget: bool) -> Steps[None]:
    """Change a schedule; NotFoundError if there is none of that name."""
    found = yield Statement(
        name="edit_schedule",
        parameters={"name": name, "changes": changes, "forget": forget},
        read=_only_value,
    )
    _all_schedules([name], [name] if found else [])


def pause_schedules(names: Sequence[str], by: str | None) -> Steps[None]:
    """Let schedules tick no more; NotFoundError, and nothing done, if there is none of one of these names."""
    found: list[str] = yield Statement(
        name="pause_schedules", parameters={"names": list(names), "by": by}, read=_only_value
    )
    _all_schedules(names, found)


def resume_schedules(names: Sequence[str]) -> Steps[None]:
    """Let schedules tick again; NotFoundError, and nothing done, if there is none of one of these names."""
    found: list[str] = yield Statement(
        name="resume_schedules", parameters={"names": list(names)}, read=_only_value
    )
    _all_schedules(names, found)


def run_schedule(name: str) -> Statement[str]:
    """Enqueue a schedule's job now and read its id; NotFoundError if there is no such schedule."""

    def read(rows: Rows) -> str:
        _all_schedules([name], [name] if rows[0][0] else [])
        return str(rows[0][0])

    return Statement(name="run_schedule", parameters={"name": name}, read=read)


def remove_schedules(names: Sequence[str]) -> Steps[None]:
    """Remove schedules.

    Raises:
        NotFoundError: there is none of one of these names; nothing is removed.
        ScheduleError: a live worker has one of them in its code; nothing is removed.
    """
    known: list[Schedule] = yield list_schedules(names)
    _all_schedules(names, [one.name for one in known])
    removed: list[str] = yield Statement(
        name="remove_schedules", parameters={"names": list(names)}, read=_only_value
    )
    declared = sorted(set(names) - set(removed))
    if declared:
        raise ScheduleError(
            f"a live worker has schedule {', '.join(map(repr, declared))} in its code, and would bring it back: take "
            "it out there, or pause it"
        )


def _all_schedules(names: Iterable[str], found: Iterable[str]) -> None:
    missing = sorted(set(names) - set(found))
    if missing:
        raise NotFoundError(
            f"there is no schedule {', '.join(map(repr, missing))}: see 'pgtasks schedules list'"
        )


# Listeners


def register_listener(id: str) -> Statement[None]:
    """Ask workers to tell of stopped jobs; again to renew."""
    return Statement(name="register_listener", parameters={"id": id}, read=no_rows)


def deregister_listener(id: str) -> Statement[None]:
    """Ask workers no longer."""
    return Statement(name="deregister_listener", parameters={"id": id}, read=no_rows)


# Reading rows


def _one(rows: Rows, message: str) -> Row:
    if not rows:
        raise NotFoundError(message)
    return rows[0]


def _only_value(rows: Rows) -> Any:
    return rows[0][0]


def _first_column(rows: Rows) -> list[Any]:
    return [row[0] for row in rows]
