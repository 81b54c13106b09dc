"""Real workers, producers and commands, each as its own role; and the password that nobody sees."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from pgtasks import App, AsyncResult, GroupResult, PgTasksError, TaskFailedError, group
from pgtasks.db.dsn import describe
from pgtasks.db.statements import library
from pgtasks_cli.root import cli
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.roles import PASSWORD
from tests.fixtures.runs import Runs
from tests.fixtures.workers import CHECKOUT, Gate, Workers, wait_until_begun

Connection = psycopg.Connection[Any]
Dsns = Mapping[str, str]

PRODUCER_PROGRAM = """
import sys
from tests.fixtures.sample_app import add, app
from pgtasks import group

print(add.delay(2, 3).get(timeout=20))
print(sum(group(add.s(n, 1) for n in range(20)).apply().get(timeout=20)))
result = add.delay(4, 5)
result.get(timeout=20)
result.forget()
print(result.job().state, result.job().args_json)
app.close()
"""


@pytest.fixture
def role_workers(dsns: Dsns, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers that log in as the worker's role."""
    workers = Workers(dsns["worker"], tmp_path)
    try:
        yield workers
    finally:
        workers.end()


@pytest.fixture
def producer(dsns: Dsns) -> Iterator[App]:
    """The app of `sample_app` as the producer's role."""
    sample_app.app.dsn = dsns["producer"]
    try:
        yield sample_app.app
    finally:
        sample_app.app.close()


def run_cli(dsn: str, *args: str) -> Any:
    return CliRunner(env={"PGTASKS_DSN": dsn, "PGTASKS_APP": ""}).invoke(cli, args)


def test_a_worker_runs_what_a_producer_enqueues_and_lacks_no_right(
    role_workers: Workers, producer: App, dsns: Dsns, runs: Runs
):
    worker = role_workers.start(concurrency=2)

    plain = sample_app.add.delay(1, 2).get(timeout=20)
    many = group(sample_app.add.s(n, 1) for n in range(30)).apply()
    spawned = sample_app.spawn.delay(4).get(timeout=20)  # enqueued by the child
    of_spawned = producer.result(spawned).get(timeout=20)
    retried = sample_app.flaky_fixed.delay().get(timeout=20)
    crashed = sample_app.step.delay(runs.path, None, True)
    with pytest.raises(PgTasksError):  # quarantined: written by crash, release and finish
        crashed.get(timeout=30)
    sums = sum(many.get(timeout=20))
    code = worker.stop()

    assert (plain, of_spawned, retried, sums) == (3, 8, 4, 465)
    assert isinstance(many, GroupResult)
    assert code == 0
    assert "permission denied" not in worker.log()
    assert "refused" not in worker.log()


def test_a_worker_rescues_another_with_its_role_alone(
    role_workers: Workers, producer: App, owner: Connection, runs: Runs, gate: Gate
):
    dead = role_workers.start(concurrency=1)
    job = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)

    dead.kill()
    gate.open()
    heir = role_workers.start(concurrency=1)
    job.get(timeout=30)

    assert len(runs.of(job.id)) == 2
    assert "permission denied" not in heir.log()
    assert heir.stop() == 0


def test_an_admin_cancels_a_running_job(
    role_workers: Workers, producer: App, dsns: Dsns, runs: Runs, gate: Gate
):
    worker = role_workers.start(concurrency=1)
    job = sample_app.retry_at_gate.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)

    result = run_cli(dsns["admin"], "jobs", "cancel", job.id, "--force")
    gate.open()

    assert result.exit_code == 0, result.output

    def cancelled() -> None:
        assert job.state == "REVOKED"

    eventually(cancelled, 20.0)
    assert worker.stop() == 0


def test_a_producer_program_enqueues_and_gets_results(role_workers: Workers, dsns: Dsns):
    role_workers.start(concurrency=1)

    done = subprocess.run(
        [sys.executable, "-c", PRODUCER_PROGRAM],
        env={**os.environ, "PGTASKS_DSN": dsns["producer"]},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stderr == ""
    assert done.stdout.split("\n")[:3] == ["5", "210", 'succeeded ["(masked)"]']


def test_every_statement_of_a_worker_is_allowed_to_its_role(dsns: Dsns):
    """Prepared only: what a statement touches is looked up, what it may touch is asked by running it."""
    refused = []
    with psycopg.connect(dsns["worker"]) as session:
        for name, text in library().items():
            if name.startswith("copy"):
                continue
            try:
                # Null for each parameter: most find nothing, and nothing is kept.
                session.execute(text, _Nulls())
            except (
                psycopg.Error
            ) as error:  # also what null is not allowed for: rights were asked before
                if isinstance(error, psycopg.errors.InsufficientPrivilege):
                    refused.append(name)
            session.rollback()

    assert set(refused) == {
        # An admin's
        "lock_unblocked", "cancel_waiting", "request_cancel", "count_down", "count_up", "delete_finished",
        "delete_history", "reset_finished", "get_blocked", "lock_bundles", "get_finished_members", "get_live_members",
        "delete_bundles", "list_waiting_ids", "retry_failed", "add_schedule", "edit_schedule", "pause_schedules",
        "resume_schedules", "run_schedule", "remove_schedules", "reschedule_job", "move_jobs",
        "pause_queue", "resume_queue", "limit_queue", "reset_limits", "pause_task", "resume_task",
        # An inspector's
        "show_gates",
    }  # fmt: skip


class _Nulls(dict[str, None]):
    def __getitem__(self, name: str) -> None:
        return None


# The password


def test_the_password_is_in_no_title_log_row_or_traceback(
    role_workers: Workers, producer: App, owner: Connection, runs: Runs, gate: Gate
):
    worker = role_workers.start("tests.fixtures.leaky_app", concurrency=2)
    leaky = App("leaky")
    leaky.dsn = producer.dsn
    try:
        blocked = leaky.send_task("leaky.wait", [str(gate)])
        failed = [leaky.send_task("leaky.connect", [kind]) for kind in ("app", "pools", "nobody")]
        errors = [error_of(one) for one in failed]
        titles = [title(pid) for pid in (worker.pid, *worker.has_children(2))]
        rows = everything(owner)
        gate.open()
        blocked.get(timeout=20)
    finally:
        leaky.close()
    code = worker.stop()

    assert code == 0
    assert PASSWORD in producer.dsn  # so it could have been found
    assert len(errors) == 3
    for error in errors:
        assert "no database answered" in str(error) or "App" in str(error) or "Pools" in str(error)
    for text in (*titles, rows, worker.log(), *map(str, errors)):
        assert text
        assert PASSWORD not in text


def error_of(result: AsyncResult[Any]) -> TaskFailedError:
    with pytest.raises(TaskFailedError) as failed:
        result.get(timeout=30)
    return failed.value


def title(pid: int) -> str:
    """What ps, top and /proc show of a process to everybody."""
    proc = Path(f"/proc/{pid}")
    return " ".join(
        [
            proc.joinpath("cmdline").read_text(),
            proc.joinpath("comm").read_text(),
            *psutil.Process(pid).cmdline(),
            psutil.Process(pid).name(),
        ]
    )


def everything(connection: Connection) -> str:
    """Every row of every table."""
    tables = connection.execute(
        "select relname from pg_class where relnamespace = 'pgtasks'::regnamespace and relkind in ('r', 'p')"
    ).fetchall()
    rows = [
        text
        for (table,) in tables
        for (text,) in connection.execute(
            f'select to_jsonb(t)::text from pgtasks."{table}" t'.encode()
        )
    ]
    sessions = connection.execute(
        "select application_name || ' ' || query from pg_stat_activity where query is not null"
    ).fetchall()
    return "\n".join(rows + [text for (text,) in sessions if text])


UNUSABLE = [
    "postgresql://u:{}@nowhere.invalid/db",
    "postgresql://u:{}@127.0.0.1:1/db",
    "postgresql://u:{}@127.0.0.1:port/db",
    "postgresql://u:{}@[::1/db",
    "postgresql://u:{}@h/db?bogus=1",
    "postgresql://u:{} @h/db",
    "postgresql://u:%zz{}@h/db",
    "host=127.0.0.1 port=1 password={}",
    "host=h port=x password={}",
    "host=h password='{}",
    "password={} bogus=1",
    "u:{}@h/db",
    "postgresql+psycopg://u:{}@h/db",
    # Not escaped, so that libpq reads part of it as the host, the port or the database.
    "postgresql://u:x@{}@127.0.0.1/db",
    "postgresql://u:x/{}@127.0.0.1/db",
    "postgresql://u:12/{}@127.0.0.1/db",
    "postgresql://u:{}/x@127.0.0.1/db",
    "postgresql://u:x?{}@127.0.0.1/db",
]


@pytest.mark.parametrize("dsn", UNUSABLE)
def test_an_unusable_dsn_is_refused_without_its_password(dsn: str):
    secret = "sesame-4711"
    dsn = dsn.format(secret)
    app = App("unusable", dsn)

    with pytest.raises(PgTasksError) as refused:
        app.status()
    shown = [
        "".join(traceback.format_exception(refused.value)),
        repr(refused.value),
        repr(app),
        repr(app.pools),
        repr(vars(refused.value)),
        *(run_cli(dsn, *words).output for words in (["status"], ["-v", "status"], ["migrate", "--roles"])),
    ]  # fmt: skip
    link: BaseException | None = refused.value
    while link is not None:  # also what is not shown by default, for those that collect errors
        shown.append(repr(link) + str(link))
        link = link.__cause__ or link.__context__

    assert not [text for text in shown if secret in text]


def test_a_url_may_have_an_escaped_password_many_hosts_and_options():
    said = "postgresql://ann:a%40b%2Fc%3Fd@one:5432,two:5433/db?options=-csearch_path%3Dx@y"

    assert describe(said) == "postgresql://ann@one,two:5432,5433/db"
    assert describe("postgresql://ann@/db?host=@socket") == "postgresql://ann@@socket/db"
    assert describe("postgresql://[::1]:5432/db") == "postgresql://::1:5432/db"
    assert describe("postgresql:///db") == "postgresql://localhost/db"


@pytest.mark.parametrize(
    "words",
    [
        ["--dsn", "postgresql://u:sesame-4711@h/db", "status"],
        ["status", "--dsn", "host=h password=sesame-4711"],
        ["status", "--dsn", "postgresql://h/db?pass%77ord=sesame-4711"],
        ["status", "--dsn", "postgresql://h/db?sslpassword=sesame-4711"],
        ["worker", "--dsn", "postgresql://u:sesame-4711@h/db"],
        ["bench", "--dsn", "postgresql://u:sesame-4711@h/db"],
        ["demo", "--dsn", "postgresql://u:sesame-4711@h/db"],
        ["status", "--dsn", "postgresql://u:12/sesame-4711@h/db"],
    ],
)
def test_a_password_among_the_arguments_is_refused_by_every_command(words: list[str]):
    result = run_cli("", *words)

    assert result.exit_code == 2
    assert "set PGTASKS_DSN, or use a service file" in result.output
    assert "sesame" not in result.output


def test_arguments_and_results_are_in_no_log_line(role_workers: Workers, producer: App):
    worker = role_workers.start(concurrency=1)

    result = sample_app.describe.delay("card-4242", card="card-4243").get(timeout=20)
    with pytest.raises(PgTasksError):
        sample_app.bad_result.delay("card-4244").get(timeout=20)
    worker.stop()

    assert result["args"] == ["card-4242"]
    assert "describing" in worker.log()
    assert "card-42" not in worker.log()


def test_signals_dump_no_password(role_workers: Workers, producer: App):
    worker = role_workers.start(concurrency=1)

    worker.signal(signal.SIGUSR1)
    worker.said("most recent call first")

    assert PASSWORD not in worker.log()
