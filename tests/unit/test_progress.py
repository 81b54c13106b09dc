"""How far a job is, as it says itself: what may be said, and where it goes."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
import pytest

from pgtasks import (
    App,
    ConfigurationError,
    EncodingError,
    Job,
    JobState,
    Progress,
    Retry,
    Task,
    current_job,
)
from pgtasks.context import Request, request_var
from pgtasks.guard import Guard, guard_var
from pgtasks.progress import MAX_PROGRESS

ID = "0199c2b4-7d3c-7000-8000-000000000001"
OTHER = "0199c2b4-7d3c-7000-8000-000000000002"


def job(id: str = ID) -> Job:
    return Job(id=id, task="t", queue="q", state=JobState.RUNNING, created_at=datetime.now(UTC))


class Posted:
    """A running job, and what reached the memory that its parent reads."""

    def __init__(self, app: App) -> None:
        self.entries: list[tuple[int, Any]] = []
        self.request = Request(app, ID, "t", "q", 1, 0, None, None, "host", {}, job)
        self.guard = Guard(serial=7)
        self.guard.post = self._take

    def _take(self, serial: int, data: bytes) -> None:
        self.entries.append((serial, orjson.loads(data)))


@pytest.fixture
def posted() -> Iterator[Posted]:
    posted = Posted(App("tests"))
    request, guard = request_var.set(posted.request), guard_var.set(posted.guard)
    yield posted
    request_var.reset(request)
    guard_var.reset(guard)


@pytest.fixture
def task() -> Task[..., Any]:
    return App("tests").task(name="t", bind=True)(lambda self: None)


def say(*args: Any, **kwargs: Any) -> None:
    current_job().progress(*args, **kwargs)


# What is said


def test_a_report_carries_the_serial_of_the_job_and_is_seen_by_the_job_itself(posted):
    say(12, 40, "reading")

    assert posted.entries == [(7, {"done": 12, "total": 40, "message": "reading"})]
    progress = current_job().progress
    assert (progress.done, progress.total, progress.message) == (12, 40, "reading")


def test_before_the_first_report_there_is_nothing(posted):
    progress = current_job().progress

    assert not progress
    assert progress.text() == ""
    assert progress.info is None


def test_a_report_of_nothing_done_yet_is_a_report(posted):
    say(0)

    assert current_job().progress
    assert current_job().progress.text() == "0"


def test_numbers_and_words_leave_each_other_alone(posted, task):
    say(1, 2, "first")
    task.update_state(state="READING", meta={"page": 3})
    say(2, 2)

    assert [entry for _, entry in posted.entries] == [
        {"done": 1, "total": 2, "message": "first"},
        {
            "done": 1,
            "total": 2,
            "message": "first",
            "state": "READING",
            "meta": {"page": 3},
        },
        {"done": 2, "total": 2, "message": None, "state": "READING", "meta": {"page": 3}},
    ]


def test_update_state_without_a_word_keeps_the_one_before(posted, task):
    task.update_state(state="READING", meta={"page": 3})
    task.update_state(meta={"page": 4})

    progress = current_job().progress
    assert (progress.state, progress.meta) == ("READING", {"page": 4})


def test_the_meta_is_a_copy_as_it_was(posted, task):
    meta = {"pages": [1]}
    task.update_state(meta=meta)
    meta["pages"].append(2)
    say(1)

    assert posted.entries[-1][1]["meta"] == {"pages": [1]}


def test_update_state_takes_the_id_of_its_own_job_in_celerys_order(posted, task):
    task.update_state(ID, "READING", {"page": 3})

    assert current_job().progress.meta == {"page": 3}


def test_update_state_refuses_the_id_of_another_job(posted, task):
    with pytest.raises(ConfigurationError, match=f"found '{OTHER}'.*a job can only say"):
        task.update_state(task_id=OTHER, state="READING")

    assert posted.entries == []


@pytest.mark.parametrize("word", ["SUCCESS", "FAILURE", "REVOKED"])
def test_no_word_means_the_end_of_a_job(posted, task, word):
    with pytest.raises(ConfigurationError, match="only its outcome says that"):
        task.update_state(state=word)


@pytest.mark.parametrize("word", ["", "x" * 101, "a\nb", 7])
def test_a_state_is_a_word(posted, task, word):
    with pytest.raises(ConfigurationError, match="a state is a word of 1 to 100 characters"):
        task.update_state(state=word)


def test_called_directly_update_state_does_nothing_and_progress_says_why_not(task):
    task.update_state(state="READING", meta={"page": 3})

    with pytest.raises(ConfigurationError, match="no job runs here"):
        current_job()
    with pytest.raises(ConfigurationError, match=f"job {ID} does not run here"):
        job().progress(1)


def test_a_job_speaks_for_itself_only(posted):
    with pytest.raises(ConfigurationError, match=f"job {OTHER} does not run here"):
        job(OTHER).progress(1)


# What cannot be said


class Number:
    """As numpy's: no int, and yet one."""

    def __index__(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, 1), (0.5, 0.5), (Number(), 5), (Decimal("1.5"), 1.5), (Fraction(1, 4), 0.25)],
)
def test_any_kind_of_number_may_be_said(posted, value, said):
    say(value, value)

    assert posted.entries[0][1]["done"] == posted.entries[0][1]["total"] == said


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"done": "12"}, "done: expected a number, found str"),
        ({"done": 1, "total": []}, "total: expected a number, found list"),
        ({"done": float("nan")}, "done: NaN is not JSON"),
        ({"done": 1, "total": float("inf")}, "total: Infinity is not JSON"),
        ({"done": 10**30}, "done: an integer beyond 64 bits"),
        ({"done": 1, "message": "a\0b"}, r"message: '\\x00' cannot be stored"),
        ({"done": 1, "message": "\ud800"}, "message: .* half of a surrogate pair"),
    ],
)
def test_what_json_cannot_carry_is_an_error_that_says_where(posted, call, why):
    with pytest.raises(EncodingError, match=why):
        say(**call)

    assert posted.entries == []
    assert not current_job().progress


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ({"when": [float("nan")]}, r'meta\["when"\]\[0\]: NaN is not JSON'),
        ({1: 2}, "meta: keys must be str"),
        ({"a": object()}, r'meta\["a"\]: object is not JSON'),
        ({"a": "x" * MAX_PROGRESS}, "meta: .* bytes of JSON, expected at most 10,000"),
    ],
)
def test_meta_that_json_cannot_carry_is_an_error_that_says_where(posted, task, meta, why):
    with pytest.raises(EncodingError, match=why):
        task.update_state(meta=meta)

    assert posted.entries == []


def test_what_is_too_large_together_is_an_error_too(posted, task):
    task.update_state(meta="x" * 9_000)

    with pytest.raises(EncodingError, match=r"progress: .* bytes of JSON, expected at most 10,000"):
        say(1, 2, "y" * 2_000)

    assert current_job().progress.message is None


# Where it goes


def test_a_thread_with_the_context_speaks_for_its_job_and_not_after_its_end(posted):
    context = contextvars.copy_context()

    def in_thread() -> None:
        thread = threading.Thread(target=context.run, args=(say, 1))
        thread.start()
        thread.join()

    in_thread()
    posted.request.over = True
    posted.guard.serial = 8  # the next job is in its place
    in_thread()

    assert [serial for serial, _ in posted.entries] == [7]


def test_an_eager_job_within_a_job_does_not_speak_for_that_one(posted):
    app = App("inner", eager=True)

    @app.task(name="inner")
    def inner() -> None:
        say(1, 2)

    result = inner.delay()

    assert posted.entries == []
    assert result.progress.total == 2  # type: ignore[attr-defined]


def test_an_eager_job_keeps_what_it_said_last_and_begins_anew_with_each_attempt():
    app = App("shop", eager=True)
    seen: list[Progress] = []

    @app.task(name="shop.count", bind=True, retries=1)
    def count(self: Any) -> int:
        seen.append(current_job().progress)
        say(self.request.attempt, 2)
        if self.request.attempt == 1:
            self.update_state(state="READING", meta={"page": 1})
            raise Retry(after=0)
        return 7

    result = count.delay()

    assert [bool(one) for one in seen] == [False, False]
    assert (result.progress.done, result.progress.meta) == (2, None)  # type: ignore[attr-defined]
    assert (result.state, result.info) == ("SUCCESS", 7)


async def test_an_eager_coroutine_says_how_far_it_is():
    app = App("shop", eager=True)

    @app.task(name="shop.count")
    async def count() -> None:
        await asyncio.sleep(0)
        say(1, 2)

    result = await count.adelay()

    assert result.progress.done == 1  # type: ignore[attr-defined]


# How it reads


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(done=12, total=40, message="reading"), "12/40 (30 %) reading"),
        (Progress(done=0, total=3), "0/3 (0 %)"),
        (Progress(done=1200, total=0), "1,200"),
        (Progress(done=0.5, total=1.0), "0.5/1 (50 %)"),
        (Progress(done=3, message="rows"), "3 rows"),
        (Progress(state="READING", meta={"page": 3}), "READING"),
        (Progress(done=1, total=4, state="READING"), "READING 1/4 (25 %)"),
    ],
)
def test_it_reads_in_a_few_words(progress, text):
    assert progress.text() == text


def test_info_is_the_meta_and_without_one_the_progress():
    assert Progress(done=1, meta={"page": 3}).info == {"page": 3}
    assert Progress(meta=0).info == 0
    progress = Progress(done=1)
    assert progress.info is progress


def test_what_is_stored_is_read_with_its_time():
    text = '{"done": 1.5, "total": 3, "at": "2026-11-24T14:00:00.25+00:00", "new": 1}'

    progress = Progress.from_json(text, ID)

    assert progress == Progress(
        done=1.5, total=3, at=datetime(2026, 11, 24, 14, 0, 0, 250_000, tzinfo=UTC), job_id=ID
    )


@pytest.mark.parametrize("text", [None, "[]", '{"done": "x"}', "{"])
def test_anything_odd_that_is_stored_is_no_progress(text):
    assert not Progress.from_json(text, ID)
