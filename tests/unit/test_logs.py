"""Log lines are key=value or JSON, carry no arguments, and know the job that wrote them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pgtasks import App, events, get_task_logger
from pgtasks.logs import LEVELS, Formatter, JobFilter, log_event, logger, set_up


def record(message: str = "hello", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("shop.mail", logging.WARNING, "", 0, message, args, None)
    vars(made).update(extra)
    return made


def line(made: logging.LogRecord, *, as_json: bool = False) -> str:
    return Formatter(json=as_json).format(made)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a worker with level INFO writes to stderr, in JSON lines."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(events, "_subscribers", [])
    monkeypatch.setattr(sys, "stderr", stream)
    events.wanted.cache_clear()
    set_up("INFO", json=True)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    events.wanted.cache_clear()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(text) for text in stream.getvalue().splitlines()]


def test_a_line_is_time_level_logger_message_then_keys():
    text = line(record("sent %s", "it", to="ann", size=3, empty="", none=None))

    time, rest = text.split(" ", 1)
    assert time.endswith("+00:00")
    assert rest == 'warning shop.mail sent it to=ann size=3 empty=""'


def test_values_are_quoted_where_they_must_be():
    text = line(record(a="two words", b='say "x"', c="a=b", d="two\nlines", e=0.25, f=1e-7))

    assert text.endswith(r'a="two words" b="say \"x\"" c="a=b" d="two\nlines" e=0.25 f=0')


def test_a_json_line_has_the_same_fields():
    found = json.loads(line(record("sent %s", "it", to="ann", when=object), as_json=True))

    assert found["message"] == "sent it"
    assert found["level"] == "warning"
    assert found["logger"] == "shop.mail"
    assert found["to"] == "ann"
    assert found["when"] == "<class 'object'>"  # what JSON does not know is shown as text


@pytest.mark.parametrize("note", ["a\nb", "a\r\nb", "a\rb"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_stays_one_line_whatever_a_value_holds(note: str, as_json: bool):
    text = line(record("message", note=note), as_json=as_json)

    assert not {"\n", "\r"} & set(text)


@pytest.mark.parametrize("note", ["half \ud800 pair", 2**70, {1: 2}, float("nan"), b"\xff"])
@pytest.mark.parametrize("as_json", [True, False])
def test_odd_values_do_not_break_a_line(note: object, as_json: bool):
    text = line(record("message", note=note), as_json=as_json)

    assert "message" in text


def test_a_traceback_follows_the_line():
    try:
        raise ValueError("no")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()

    plain, found = line(made), json.loads(line(made, as_json=True))

    assert plain.splitlines()[1] == "Traceback (most recent call last):"
    assert plain.endswith("ValueError: no")
    assert found["traceback"].endswith("ValueError: no")


def test_events_become_lines_with_their_level(logged: io.StringIO):
    events.emit("job.failed", id="1", task="shop.send", error="ValueError: no", delay=None)
    events.emit("job.finished", id="2", task="shop.send", duration=0.25)

    failed, finished = lines(logged)
    assert (failed["level"], failed["message"]) == ("error", "job.failed")
    assert failed["error"] == "ValueError: no"
    assert "delay" not in failed
    assert (finished["level"], finished["duration"]) == ("info", 0.25)


def test_events_below_the_level_are_not_wanted(logged: io.StringIO):
    assert LEVELS["job.started"] == logging.DEBUG

    assert not events.wanted("job.started")
    assert events.wanted("job.finished")


def test_an_expected_failure_is_no_error(logged: io.StringIO):
    log_event("job.failed", {"id": "1", "expected": True})

    assert lines(logged)[0]["level"] == "info"


def test_every_event_of_the_code_has_a_level():
    assert set(LEVELS) >= {"job.finished", "job.failed", "worker.ready", "child.died"}
    assert logger.name == "pgtasks"


def test_a_line_that_a_task_logs_has_its_name_and_id(logged: io.StringIO):
    app = App("shop", eager=True)

    @app.task(name="shop.send")
    def send(to: str) -> None:
        get_task_logger("shop.mail").info("sending")

    result = send.delay("secret@example.com")

    (found,) = lines(logged)
    assert (found["task"], found["id"]) == ("shop.send", result.id)
    assert "secret@example.com" not in logged.getvalue()


def test_a_line_outside_of_a_job_has_neither(logged: io.StringIO):
    get_task_logger("shop.mail").warning("alone")

    (found,) = lines(logged)
    assert not {"task", "id"} & found.keys()


def test_a_filter_leaves_an_id_that_was_given():
    made = record(id="mine")

    assert JobFilter().filter(made)
    assert made.id == "mine"  # type: ignore[attr-defined]


def test_no_event_about_a_job_carries_arguments_or_results(logged: io.StringIO):
    app = App("shop", eager=True)

    @app.task(name="shop.leak")
    def leak(secret: str) -> str:
        return secret

    leak.delay("hunter2")

    assert "hunter2" not in logged.getvalue()
