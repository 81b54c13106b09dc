"""Names and sizes at every way in: the library, the command line, SQL. What does not fit is refused at once."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgtasks import App, ConfigurationError, EncodingError, WorkerOptions, group
from pgtasks.worker.outcome import MAX_MESSAGE, MAX_TRACEBACK, describe
from pgtasks.worker.process import prepare
from tests.fixtures.commands import Command

Connection = psycopg.Connection[Any]
LONG = "x" * 201
MEBIBYTE = 1_048_576


def count(connection: Connection) -> int:
    row = connection.execute("select count(*) from pgtasks.jobs").fetchone()
    assert row is not None
    return int(row[0])


API: dict[str, tuple[Callable[[App], object], type[Exception], str]] = {
    "arguments": (lambda app: app.send_task("t", ["x" * MEBIBYTE]), EncodingError, "args"),
    "keyword arguments": (
        lambda app: app.send_task("t", kwargs={"a": "x" * MEBIBYTE}),
        EncodingError,
        "kwargs",
    ),
    "task": (lambda app: app.send_task(LONG), ConfigurationError, "at most 200"),
    "task with a quote": (lambda app: app.send_task("t'"), ConfigurationError, "is not a name"),
    "queue": (lambda app: app.send_task("t", queue="q" * 64), ConfigurationError, "at most 63"),
    "empty queue": (lambda app: app.send_task("t", queue=""), ConfigurationError, "is not a name"),
    "queue of a task": (lambda app: app.task(queue="a b")(len), ConfigurationError, "is not a name"),
    "origin": (lambda app: app.send_task("t", origin=LONG), ConfigurationError, "origin is for people"),
    "origin with NUL": (lambda app: app.send_task("t", origin="a\0b"), ConfigurationError, "printable"),
    "origin that is no text": (lambda app: app.send_task("t", origin=5), ConfigurationError, "found 5"),
    "origin of a task": (
        lambda app: app.task(name="t", origin=LONG)(lambda: None),
        ConfigurationError,
        "origin is for people",
    ),
    "type of a bundle": (lambda app: group().apply(app=app, type=LONG), ConfigurationError, "a bundle's type"),
    "origin of a bundle": (
        lambda app: group().apply(app=app, origin=LONG),
        ConfigurationError,
        "origin is for people",
    ),
    "id": (lambda app: app.send_task("t", task_id="1; drop"), ValueError, "UUID"),
    "priority": (lambda app: app.send_task("t", priority=2**31), ConfigurationError, "priority"),
}  # fmt: skip


@pytest.mark.parametrize("what", API)
def test_the_library_refuses_what_does_not_fit(app: App, connection: Connection, what: str):
    call, error, text = API[what]

    with pytest.raises(error) as refused:
        call(app)

    assert text in str(refused.value)
    assert len(str(refused.value)) < 500  # it does not say all of what was too long
    assert count(connection) == 0


def test_the_largest_that_fits_is_taken(app: App, connection: Connection):
    app.send_task("t" * 200, ["x" * (MEBIBYTE - 4)], queue="q" * 63, origin="o" * 200)

    assert count(connection) == 1


def test_a_workers_name_is_short_and_printable(app: App):
    app.task(name="t")(lambda: None)

    for name in ("w" * 201, "w\n", ""):
        with pytest.raises(ConfigurationError, match="worker"):
            prepare(app, WorkerOptions(name=name))


@pytest.mark.parametrize(
    "statement",
    [
        "select pgtasks.enqueue(repeat('t', 201))",
        "select pgtasks.enqueue('')",
        "select pgtasks.enqueue('t', queue => repeat('q', 64))",
        "select pgtasks.enqueue('t', queue => 'a b')",
        "select pgtasks.enqueue('t', origin => repeat('o', 201))",
        "select pgtasks.enqueue('t', args => json_build_array(repeat('x', 1048576)))",
        "select pgtasks.enqueue('t', json_build_object('a', repeat('x', 1048576)))",
        "select pgtasks.enqueue('t', options => jsonb_build_object('a', repeat('x', 4000)))",
        "select pgtasks.enqueue('t', options => '[]')",
        "insert into pgtasks.job (id, queue, task, origin) values (gen_random_uuid(), 'q', 't', repeat('o', 201))",
        "insert into pgtasks.job (id, queue, task, args) values (gen_random_uuid(), 'q', 't', repeat('x', 1048577))",
        "insert into pgtasks.job (id, queue, task) values (gen_random_uuid(), repeat('q', 64), 't')",
        "insert into pgtasks.job_bundle (id, type, total, remaining) select gen_random_uuid(), repeat('t', 201), 0, 0",
    ],
)
def test_sql_refuses_what_does_not_fit(connection: Connection, statement: str):
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.InvalidParameterValue)):
        connection.execute(statement.encode())

    assert count(connection) == 0


@pytest.mark.parametrize(
    ("words", "text", "code"),
    [
        (["call", "t'; drop"], "is not a name", 2),
        (["call", "t", "--queue", "a b"], "is not a name", 2),
        (["call", "t", "--queue", "q" * 64], "at most 63", 2),
        (["call", "t", "-a", '["' + "x" * MEBIBYTE + '"]'], "1,048,576", 1),
        (["call", "t", "--task-id", "1; drop"], "UUID", 2),
        (["call", "t", "--priority", "99999999999"], "priority", 2),
    ],
)
def test_the_command_line_refuses_what_does_not_fit(
    command: Command, connection: Connection, words: list[str], text: str, code: int
):
    result = command(*words, code=code)

    assert text in result.output
    assert "Traceback" not in result.output
    assert count(connection) == 0


def test_what_is_stored_of_an_error_is_cut_and_has_no_locals():
    def fail(depth: int) -> None:
        secret = "local-4711"
        if depth:
            return fail(depth - 1)
        raise ValueError("\0" + "m" * 6 * MAX_MESSAGE, len(secret))

    caught: list[ValueError] = []
    try:
        fail(900)
    except ValueError as error:
        caught.append(error)
    stored = describe(caught[0])

    assert len(stored["message"]) == MAX_MESSAGE
    assert len(stored["traceback"]) == MAX_TRACEBACK
    assert "\0" not in stored["message"] + stored["traceback"]
    assert "local-4711" not in stored["traceback"]
    assert stored["args"] is None  # too long
