"""Arguments are strict JSON: what cannot be carried is refused in the caller, with its path."""

import math
from typing import Any

import pytest

from pgtasks import App, DatabaseError, DecodingError, EncodingError, JobState
from pgtasks.codec import MAX_BYTES, MAX_DEPTH
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture
def take(app: App) -> Any:
    @app.task(name="take")
    def take(*args: Any, **kwargs: Any) -> None: ...

    return take


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"when": math.nan}, r'^args\[0\]\["when"\]: NaN is not JSON'),
        ([1, [2, math.inf]], r"^args\[0\]\[1\]\[1\]: Infinity is not JSON"),
        ([-math.inf], r"^args\[0\]\[0\]: -Infinity is not JSON"),
        ("a\0b", r"^args\[0\]: '\\x00' cannot be stored by PostgreSQL"),
        ({"a\0b": 1}, r"^args\[0\], a key: '\\x00' cannot be stored"),
        (["\ud800"], r"^args\[0\]\[0\]: '\\ud800' is half of a surrogate pair"),
        ({1: 2}, r"^args\[0\]: keys must be str, found int"),
        ({1, 2}, r"^args\[0\]: set has no order"),
        (2**64, r"^args\[0\]: an integer beyond 64 bits"),
        (object(), r"^args\[0\]: object is not JSON"),
        (nested(MAX_DEPTH), r"nested deeper than 64 levels"),
        ("x" * 10_000_000, r"^args: 10,000,004 bytes of JSON, expected at most 1,048,576"),
    ],
    ids=[
        "nan",
        "infinity",
        "minus infinity",
        "nul",
        "nul in a key",
        "surrogate",
        "key that is no str",
        "set",
        "65 bits",
        "object",
        "nested",
        "10 MB",
    ],
)
def test_what_json_cannot_carry_is_refused_in_the_caller_with_its_path(app, take, value, message):
    with pytest.raises(EncodingError, match=message):
        take.delay(value)
    with pytest.raises(EncodingError):
        take.s(value).apply_async()
    with pytest.raises(EncodingError):
        app.send_task("elsewhere", [value])
    with pytest.raises(EncodingError):
        app.enqueue_many([take.s(1), take.s(value)])

    assert sum(app.status().jobs.values()) == 0


def test_the_path_of_a_keyword_argument_begins_with_its_name(app, take):
    with pytest.raises(EncodingError, match=r'^kwargs\["at"\]\[1\]: NaN is not JSON'):
        take.delay(at=[0, math.nan])


def test_a_circular_reference_is_refused(take):
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(EncodingError, match=r"args\[0\]\[0\]: a circular reference"):
        take.delay(circle)


def test_the_largest_and_the_deepest_that_is_allowed_arrives(app, take):
    largest = "x" * (MAX_BYTES - len('[""]'))
    deepest = nested(MAX_DEPTH - 1)

    ids = [take.delay(largest).id, take.delay(deepest).id]

    assert app.job(ids[0]).args == [largest]
    assert app.job(ids[1]).args == [deepest]


@pytest.mark.parametrize(
    "text",
    ["\\", "\\u0000", "\\x00", "\N{PILE OF POO}", "\x7f\x80\u2028", "'; drop table x; --", "\\N"],
)
def test_text_that_merely_looks_dangerous_arrives_as_it_is(app, take, text):
    id = take.delay(text, key={text: text}).id

    job = app.job(id)
    assert (job.args, job.kwargs) == ([text], {"key": {text: text}})


def test_text_beyond_the_cap_is_refused_by_the_database_for_any_client(app, connection):
    from psycopg.errors import CheckViolation

    too_large = '["' + "x" * MAX_BYTES + '"]'

    with pytest.raises(CheckViolation):
        connection.execute(
            "insert into pgtasks.job (id, queue, task, args) values (pgtasks.new_id(), 'default', 't', %s)",
            [too_large],
        )


def test_an_empty_or_endless_task_name_is_refused_by_the_database(app, take):
    job = take.s(1).new_job()
    job.task = "x" * 201

    with pytest.raises(DatabaseError, match="job_task_check"):
        app.send(job)


@pytest.mark.parametrize("number", ["1e5000", "NaN", "[1", "123456789012345678901234567890"])
def test_raw_sql_text_that_is_not_strict_json_fails_one_job_only(
    app, connection, worker: SimulatedWorker, number
):
    insert = "insert into pgtasks.job (id, queue, task, args) values (pgtasks.new_id(), 'default', 't', %s)"
    connection.execute(insert, [f"[{number}]"])
    connection.execute(insert, ["[1]"])

    bad, good = worker.claim()

    assert bad.args == f"[{number}]"
    rows = {job.id: job for job in app.jobs()}
    assert rows[bad.id].state is JobState.RUNNING
    with pytest.raises(DecodingError, match=r"^args"):
        _ = rows[bad.id].args
    assert rows[good.id].args == [1]
    assert set(worker.fail(bad) + worker.succeed(good)) == {bad.id, good.id}
    assert app.status().jobs[JobState.SUCCEEDED] == 1
