"""What a worker makes of a job: results, failures, what is kept, and what a task knows of itself."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState, PgTasksError, TaskFailedError
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, wait_until_finished

Connection = psycopg.Connection[Any]


def test_results_of_sync_async_and_raw_tasks(app: App, workers: Workers) -> None:
    workers.start(concurrency=2)

    plain = [sample_app.add.delay(n, 1) for n in range(20)]
    later = [sample_app.add_later.delay(n, 2) for n in range(20)]
    raw = app.send_task("custom-job", [1, 2], {"a": 3})

    assert [result.get(timeout=10) for result in plain] == [n + 1 for n in range(20)]
    assert [result.get(timeout=10) for result in later] == [n + 2 for n in range(20)]
    assert raw.get(timeout=10) == [raw.id, [1, 2], 1]
    assert sample_app.noop.delay().get(timeout=10) is None


async def test_results_are_awaited(app: App, workers: Workers) -> None:
    workers.start()

    result = await sample_app.add_later.adelay(1, 2)

    assert await result.aget(timeout=10) == 3
    await app.aclose()


def test_failures_carry_type_message_and_traceback(app: App, workers: Workers) -> None:
    workers.start()

    known = sample_app.fail.delay("broken")

    with pytest.raises(sample_app.KnownError, match="broken"):
        known.get(timeout=10)
    assert known.state == "FAILURE"
    assert known.traceback is not None
    assert "raise KnownError(message)" in known.traceback
    assert known.job().attempt == 1


def test_ignore_and_reject(app: App, workers: Workers) -> None:
    workers.start()

    ignored, rejected = sample_app.ignore.delay(), sample_app.reject.delay()

    assert ignored.get(timeout=10) is None
    assert ignored.successful()
    with pytest.raises(TaskFailedError, match="no use"):
        rejected.get(timeout=10)
    assert rejected.job().attempt == 1


def test_what_is_not_to_be_kept_is_not(
    app: App, workers: Workers, runs: Runs, connection: Connection
) -> None:
    workers.start()

    nothing = sample_app.leave_nothing.delay(runs.path)
    failure = sample_app.leave_failure.delay()
    unwanted = sample_app.unwanted.delay()
    for_once = sample_app.add.apply_async((1, 2), ignore_result=True)

    def settled() -> None:
        rows = connection.execute("select id::text, state, result from pgtasks.jobs").fetchall()
        assert len(runs.of(nothing.id)) == 1
        assert sorted(rows) == sorted(
            [
                (failure.id, "failed", None),
                (unwanted.id, "succeeded", None),
                (for_once.id, "succeeded", None),
            ]
        )

    eventually(settled)


def test_arguments_that_cannot_be_read_fail_alone(
    app: App, workers: Workers, connection: Connection
) -> None:
    broken = ["{broken", '"text"', "[1, NaN]", "[1e999]", "[" * 2000 + "]" * 2000, "[1, 2", "null"]
    ids = [
        connection.execute(
            "insert into pgtasks.job (id, queue, task, args)"
            " values (pgtasks.new_id(), 'default', %s, %s) returning id::text",
            [sample_app.add.name, text],
        ).fetchone()
        for text in broken
    ]
    kwargs = connection.execute(
        "insert into pgtasks.job (id, queue, task, kwargs)"
        " values (pgtasks.new_id(), 'default', %s, '[1]') returning id::text",
        [sample_app.add.name],
    ).fetchone()
    wrong = connection.execute(
        "select pgtasks.enqueue(%s, '{\"c\": 1}')::text", [sample_app.add.name]
    ).fetchone()
    neighbours = [sample_app.add.delay(n, n) for n in range(10)]

    worker = workers.start(concurrency=2)

    assert [result.get(timeout=10) for result in neighbours] == [2 * n for n in range(10)]
    wait_until_finished(connection, len(broken) + 12)
    for row in [*ids, kwargs]:
        assert row is not None
        job = app.job(row[0])
        assert (job.state, job.attempt, job.crashes) == (JobState.FAILED, 1, 0)
        assert job.error is not None
        assert job.error.type == "pgtasks.errors.DecodingError"
    assert wrong is not None
    job = app.job(wrong[0])
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert job.error is not None
    assert job.error.type == "TypeError"
    assert "child.died" not in worker.log()


def test_results_that_cannot_be_encoded_fail_alone(
    app: App, workers: Workers, connection: Connection
) -> None:
    kinds = ["object", "nan", "surrogate", "large"]
    bad = [sample_app.bad_result.delay(kind) for kind in kinds]
    neighbours = [sample_app.add.delay(n, n) for n in range(10)]

    worker = workers.start(concurrency=1)

    assert [result.get(timeout=10) for result in neighbours] == [2 * n for n in range(10)]
    wait_until_finished(connection, 14)
    for result in bad:
        job = result.job()
        assert (job.state, job.attempt) == (JobState.FAILED, 1)
        assert job.error is not None
        assert job.error.type == "pgtasks.errors.EncodingError"
    assert "child.died" not in worker.log()


def test_errors_that_cannot_be_stored_as_they_are_fail_alone(
    app: App, workers: Workers, connection: Connection
) -> None:
    kinds = ["text", "nul", "long", "surrogate", "nul name", "surrogate name"]
    bad = {kind: sample_app.bad_error.delay(kind) for kind in kinds}
    neighbours = [sample_app.add.delay(n, n) for n in range(20)]

    worker = workers.start(concurrency=1)

    wait_until_finished(connection, 20 + len(kinds))
    assert [result.get() for result in neighbours] == [2 * n for n in range(20)]
    assert all(result.job().attempt == 1 for result in neighbours)
    for kind, result in bad.items():
        job = result.job()
        assert (job.state, job.attempt, job.crashes) == (JobState.FAILED, 1, 0), kind
        assert job.error is not None
    assert "child.died" not in worker.log()


def test_hooks_of_the_base_class_run_around_each_attempt(
    app: App, workers: Workers, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    workers.start()

    done = sample_app.hooked.delay(str(good), False)
    failed = sample_app.hooked.delay(str(bad), True)

    assert done.get(timeout=10) == "done"
    with pytest.raises(sample_app.KnownError, match="hooked"):
        failed.get(timeout=10)
    assert good.read_text().splitlines() == [
        f"before_start {done.id}",
        "on_success done",
        "after_return SUCCESS",
    ]
    assert bad.read_text().splitlines() == [
        f"before_start {failed.id}",
        "on_retry hooked",
        "after_return RETRY",
        f"before_start {failed.id}",
        "on_failure hooked True",
        "after_return FAILURE",
    ]


def test_children_call_the_start_and_stop_hooks(app: App, workers: Workers, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    worker = workers.start(environment={"SAMPLE_HOOKS": str(hooks)}, concurrency=2)
    sample_app.noop.delay().get(timeout=10)
    children = worker.has_children(2)

    def started() -> None:
        assert sorted(hooks.read_text().split()) == sorted(
            word for pid in children for word in ("start", str(pid))
        )

    eventually(started)
    assert worker.stop() == 0

    lines = hooks.read_text().splitlines()
    assert sorted(lines[2:]) == sorted(f"stop {pid}" for pid in children)


def test_task_knows_its_request(app: App, workers: Workers) -> None:
    worker = workers.start(name="here@%h")

    result = sample_app.describe.apply_async((1,), {"two": 2}, priority=7, origin="a test")
    found = result.get(timeout=10)

    assert found.pop("hostname").startswith("here@")
    assert found == {
        "id": result.id,
        "task": sample_app.describe.name,
        "attempt": 1,
        "retries": 0,
        "queue": "default",
        "args": [1],
        "kwargs": {"two": 2},
        "root_id": result.id,
        "parent_id": None,
        "origin": "a test",
        "group": None,
        "priority": 7,
        "called_directly": False,
        "is_eager": False,
        "state": "running",
    }
    line = next(line for line in worker.log().splitlines() if "describing" in line)
    assert f"id={result.id}" in line
    assert f"task={sample_app.describe.name}" in line
    assert "colour=red" in line


def test_jobs_that_a_task_enqueues_know_their_parent(app: App, workers: Workers) -> None:
    workers.start(concurrency=2)

    outer = sample_app.spawn.delay(4)
    inner = app.job(outer.get(timeout=10))

    assert (inner.parent_id, inner.root_id) == (outer.id, outer.id)
    assert app.result(inner.id).get(timeout=10) == 8


def test_logs_carry_no_arguments_and_no_results(
    app: App, workers: Workers, connection: Connection
) -> None:
    secret = "hunter2"
    worker = workers.start(concurrency=2)
    sample_app.describe.delay(secret, password=secret)
    sample_app.step.delay(f"/nowhere/{secret}")  # raises, and says the path
    sample_app.bad_result.delay(secret)
    for args in (f'["{secret}', f'{{"{secret}": 1}}', f'["{secret}", "{secret}"]'):
        connection.execute(
            "insert into pgtasks.job (id, queue, task, args)"
            " values (pgtasks.new_id(), 'default', %s, %s)",
            [sample_app.add.name, args],
        )
    connection.execute(
        "select pgtasks.enqueue(%s, %s)", [sample_app.add.name, json.dumps({secret: secret})]
    )
    wait_until_finished(connection, 7)
    assert worker.stop() == 0

    shown = [line for line in worker.log().splitlines() if secret in line]
    # What an exception says is the task's own business; everything else is ours.
    assert all("FileNotFoundError: " in line or "TypeError: " in line for line in shown), shown
    assert not any("Locals" in line or "args=" in line for line in shown), shown


def test_worker_that_cannot_start_says_why(app: App, dsn: str) -> None:
    empty = App("empty", dsn)
    nowhere = App("nowhere", "postgresql://nobody@127.0.0.1:1/nowhere")
    nowhere.task(name="anything")(print)

    with pytest.raises(PgTasksError, match="has no tasks"), empty.worker():
        pass
    with pytest.raises(PgTasksError, match=r"127\.0\.0\.1"), nowhere.worker():
        pass
