"""Arguments, names and outcomes that nobody can read or store: each is refused, or fails alone."""

import math
import random
import string
from typing import Any

import orjson
import psycopg
import pytest

from pgtasks import EncodingError, JobState, PgTasksError
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.runs import Runs
from tests.fixtures.workers import RunningWorker, Workers, wait_until_finished

pytestmark = pytest.mark.chaos


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


REFUSED = {
    "NUL": "a\0b",
    "NUL in a key": {"a\0b": 1},
    "lone surrogate": "a\ud800b",
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": [{"deep": -math.inf}],
    "10,000 digits": 10**10_000,
    "65 bits": 2**64,
    "keys that are numbers": {1: "a", "1": "b"},
    "depth 65": nested(65),
    "depth 100,000": nested(100_000),
    "8 MB": "x" * 8_000_000,
    "set": {1, 2},
    "object": object(),
}
CARRIED = {
    "minus zero": -0.0,
    "smallest float": 5e-324,
    "largest float": 1.7976931348623157e308,
    "float of many digits": 0.1 + 0.2,
    "64 bits": 2**64 - 1,
    "minus 63 bits": -(2**63),
    "empty key": {"": [None, True, False]},
    "quotes": "'\"\\$$;--\u2028{}%s%(a)s",
    "escape of NUL": "\\u0000",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f",
    "astral": "\U0001f418\U0010ffff",
    "not normalised": "e\u0301\u00e9",
    "depth 60": nested(60),
    "nearly 1 MiB": "x" * 1_000_000,
    "order of keys": {"b": 1, "a": 2, "10": 3, "9": 4},
}


def test_api_refuses_what_it_cannot_carry_and_carries_the_rest_exactly(
    workers: Workers, look: Look
) -> None:
    worker = workers.start(concurrency=1)
    children = worker.has_children(1)

    for value in REFUSED.values():
        with pytest.raises(EncodingError, match=r"^args\[0\]|^args: [0-9,]+ bytes"):
            sample_app.echo.delay(value)
    results = {name: sample_app.echo.delay(value) for name, value in CARRIED.items()}

    for name, value in CARRIED.items():
        found = results[name].get(timeout=10)
        assert (type(found), repr(found)) == (type(value), repr(value)), name
    assert look.one("select count(*) from pgtasks.job_history") == len(CARRIED)
    assert worker.children() == children
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "name", ["it's", 'na"me', "a\0b", "", "x" * 201, "a b", "; drop table", "a\nb"]
)
def test_names_that_are_none_are_refused(look: Look, name: str) -> None:
    look.open()

    with pytest.raises(PgTasksError, match="is not a name"):
        sample_app.app.send_task(name)
    with pytest.raises(PgTasksError, match="is not a name"):
        sample_app.echo.apply_async((1,), queue=name)

    assert look.one("select count(*) from pgtasks.job") == 0


def test_chance_is_refused_or_carried_exactly(
    workers: Workers, look: Look, rng: random.Random, scale: Scale
) -> None:
    """Trees of chance, in a batch each, so that a bad one meets its neighbours."""
    worker = workers.start(concurrency=2)
    children = worker.has_children(2)
    carried: list[tuple[Any, Any]] = []
    refused = 0

    for _ in range(scale(150, most=5000)):
        value = tree(rng, 4)
        try:
            carried.append((value, sample_app.echo.delay(value)))
        except EncodingError:
            refused += 1
            assert not is_plain(value)

    assert refused
    assert len(carried) > 20
    for value, result in carried:
        assert repr(result.get(timeout=20)) == repr(value)
    assert worker.children() == children
    assert worker.stop() == 0


ALPHABET = string.ascii_letters + "'\"\\\u0000\ud800\udc00\u2028\U0001f418é"


def tree(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 7)
    match kind:
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.randrange(-(2**66), 2**66) >> rng.randrange(66)
        case 2:
            return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-320, 308)
        case 3:
            return rng.choice([0.0, -0.0, math.nan, math.inf, 1e16, 1e-7])
        case 4 | 5 | 6:
            return "".join(rng.choices(ALPHABET[: rng.choice([20, 52, 60])], k=rng.randrange(8)))
        case 7:
            return [tree(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {str(tree(rng, 0)): tree(rng, depth - 1) for _ in range(rng.randrange(4))}


def is_plain(value: Any) -> bool:
    """Whether JSON and PostgreSQL can carry a value, by the book and not by our code."""
    try:
        text = orjson.dumps(value)
    except (TypeError, ValueError):
        return False
    return b"\\u0000" not in text and repr(orjson.loads(text)) == repr(value)


# What any client may write with SQL

RAW: dict[str, tuple[str, str, str]] = {
    # name -> args, kwargs, how it ends
    "not JSON": ("[1", "{}", "failed"),
    "empty": ("", "{}", "failed"),
    "NaN": ("[NaN]", "{}", "failed"),
    "infinity": ("[-Infinity]", "{}", "failed"),
    "1e400": ("[1e400]", "{}", "failed"),
    "1e5000": ("[1e5000]", "{}", "failed"),
    "10,000 digits": (f"[{'9' * 10_000}]", "{}", "failed"),
    "depth 100,000": ("[" * 100_000 + "]" * 100_000, "{}", "failed"),
    "depth 1,000": ("[" * 1000 + "]" * 1000, "{}", "failed"),
    "duplicate keys": ("[]", '{"value": 1, "value": 2}', "failed"),
    "deep duplicate keys": ('[{"a": {"b": 1, "b": 2}}]', "{}", "failed"),
    "lone surrogate": ('["\\ud800"]', "{}", "failed"),
    "args null": ("null", "{}", "failed"),
    "args a number": ("1", "{}", "failed"),
    "args a text": ('"abc"', "{}", "failed"),
    "args an object": ('{"value": 1}', "{}", "failed"),
    "kwargs a list": ("[]", '["value"]', "failed"),
    "kwargs null": ("[]", "null", "failed"),
    "too few": ("[]", "{}", "failed"),
    "too many": ("[1, 2, 3]", "{}", "failed"),
    "unknown keyword": ("[1]", '{"it\'s \\"odd\\"": 1}', "failed"),
    "escaped NUL": ('["a\\u0000b"]', "{}", "failed"),  # its result cannot be stored
    "minus zero": ("[-0.0]", "{}", "succeeded"),
    "spaces": (' [ 1.50 ,\n"x" ][0] '[:-4], "{}", "failed"),
    "white space": (" [ 1.50\n] ", "{ }", "succeeded"),
    "exponent": ("[1E2]", "{}", "succeeded"),
    "escaped pair": ('["\\ud83d\\udc18"]', "{}", "succeeded"),
}


def test_raw_rows_fail_alone(
    workers: Workers, runs: Runs, look: Look, rng: random.Random, scale: Scale
) -> None:
    connection = look.open()
    rows, neighbours = [], []
    for number in range(scale(1, most=20)):
        for name, (args, kwargs, _) in RAW.items():
            neighbours += [sample_app.step.s(runs.path) for _ in range(3)]
            rows.append((f"{name} {number}", args, kwargs))
    rng.shuffle(rows)
    healthy = sample_app.app.enqueue_many(neighbours)
    for origin, args, kwargs in rows:
        connection.execute(
            "insert into pgtasks.job (id, queue, task, args, kwargs, origin)"
            " values (gen_random_uuid(), 'default', %s, %s, %s, %s)",
            [sample_app.echo.name, args, kwargs, origin],
        )
    connection.execute("select setval('pgtasks.job_seq', 1)")  # the two kinds mix
    healthy += sample_app.app.enqueue_many(neighbours)

    worker = workers.start(concurrency=2)
    children = worker.has_children(2)
    wait_until_finished(connection, len(rows) + len(healthy))

    ends = connection.execute(
        "select origin, state, attempt, crashes, error->>'message' from pgtasks.job_history"
        " where task = %s",
        [sample_app.echo.name],
    ).fetchall()
    expected = {f"{name} {n}": RAW[name][2] for name in RAW for n in range(scale(1, most=20))}
    assert {origin: state for origin, state, *_ in ends} == expected
    assert {(attempt, crashes) for _, _, attempt, crashes, _ in ends} == {(1, 0)}
    assert all(message for _, state, _, _, message in ends if state == "failed")
    unhurt(worker, children, runs, look, [result.id for result in healthy])


def unhurt(
    worker: RunningWorker, children: list[int], runs: Runs, look: Look, ids: list[str]
) -> None:
    """Assert that the neighbours ran once, and the worker and its children go on."""
    ends = look.open().execute(
        "select state, attempt, crashes, count(*) from pgtasks.job_history where id = any(%s)"
        " group by 1, 2, 3",
        [ids],
    )
    assert ends.fetchall() == [("succeeded", 1, 0, len(ids))]
    assert len(runs.all()) == len(ids)
    assert worker.children() == children
    assert worker.log().count("worker.ready") == 1
    assert "worker.disconnected" not in worker.log()
    assert worker.stop() == 0


def test_database_refuses_what_is_too_large_or_no_name(look: Look) -> None:
    insert = (
        "insert into pgtasks.job (id, queue, task, args) values (gen_random_uuid(), %s, %s, %s)"
    )

    for queue, task, args in [
        ("default", "echo", "x" * 8_000_000),
        ("default", "", "[]"),
        ("default", "x" * 201, "[]"),
        ("", "echo", "[]"),
        ("x" * 64, "echo", "[]"),
    ]:
        with pytest.raises(psycopg.errors.CheckViolation):
            look.open().execute(insert, [queue, task, args])

    assert look.one("select count(*) from pgtasks.job") == 0


def test_raw_rows_with_odd_names_are_left_alone(workers: Workers, runs: Runs, look: Look) -> None:
    names = [
        "it's",
        'na"me',
        "a b",
        "; drop table pgtasks.job",
        "{a,b}",
        "NULL",
        "a\\b",
        "é\U0001f418",
    ]
    for name in names:
        look.open().execute(
            "insert into pgtasks.job (id, queue, task, priority)"
            " values (gen_random_uuid(), 'default', %s, 5)",
            [name],
        )
    worker = workers.start(concurrency=1)
    result = sample_app.step.delay(runs.path)
    result.get(timeout=10)

    left = "select task from pgtasks.job where state = 'ready' and token is null and attempt = 0"
    assert {task for (task,) in look.open().execute(left)} == set(names)
    assert worker.stop() == 0


# Outcomes

BAD_RESULTS = ("object", "nan", "surrogate", "large", "nul", "repr")
BAD_ERRORS = (
    "text",
    "nul",
    "long",
    "surrogate",
    "nul name",
    "surrogate name",
    "repr",
    "chain",
    "group",
)


def test_outcomes_that_cannot_be_stored_fail_alone(
    workers: Workers, runs: Runs, look: Look, scale: Scale
) -> None:
    signatures = []
    bad = 0
    for _ in range(scale(2, most=50)):
        for kind in BAD_RESULTS:
            signatures += [sample_app.step.s(runs.path)] * 3 + [sample_app.bad_result.s(kind)]
        for kind in BAD_ERRORS:
            signatures += [sample_app.step.s(runs.path)] * 3 + [sample_app.bad_error.s(kind)]
        bad += len(BAD_RESULTS) + len(BAD_ERRORS)
    results = sample_app.app.enqueue_many(signatures)
    healthy = [
        result.id
        for result, signature in zip(results, signatures, strict=True)
        if signature.task.name == sample_app.step.name
    ]
    worker = workers.start(concurrency=2)
    children = worker.has_children(2)
    wait_until_finished(look.open(), len(results))

    ends = look.open().execute(
        "select args, state, attempt, crashes, error from pgtasks.job_history where task <> %s",
        [sample_app.step.name],
    )
    found = ends.fetchall()
    assert len(found) == bad
    for args, state, attempt, crashes, error in found:
        assert (state, attempt, crashes) == (JobState.FAILED, 1, 0), args
        assert error["type"], args
        assert error["message"], args
        assert len(error["message"]) <= 10_000
        assert len(error.get("traceback", "")) <= 50_000
        assert "\0" not in str(error)
    check(look.open(), runs, {result.id for result in results}).assert_sound()
    unhurt(worker, children, runs, look, healthy)
