"""``pgtasks worker`` and ``pgtasks demo`` as an operator starts them: real processes, real signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgtasks import App, WorkerOptions
from pgtasks_cli.root import cli
from pgtasks_cli.worker import worker_options
from tests.fixtures.bundles import insert_job
from tests.fixtures.eventually import eventually

Start = Callable[..., subprocess.Popen[str]]

SHOP = """
import os
from pgtasks import App

app = App("shop", routes={"shop.mail*": "mail"})

@app.task(name="shop.add")
def add(a, b):
    return a + b

@app.task(name="shop.mail_ann")
def mail_ann():
    return os.getpid()
"""

LIMITED = """
from pgtasks import App

app = App("limited", time_limit=120)

@app.task(name="limited.hard", time_limit=60)
def hard(): ...

@app.task(name="limited.either")
def either(): ...
"""


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Starts ``pgtasks …`` in a folder with the module ``shop``; kills it at the end, if it must."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "limited.py").write_text(LIMITED)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").write_text("from pgtasks import App\napp = App('empty')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PGTASKS_APP"}
    environment["PGTASKS_DSN"] = dsn
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgtasks_cli", *args],
            cwd=tmp_path,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def until_registered(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Wait for a worker, and return its row."""

    def look() -> dict[str, Any]:
        cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
        row = cursor.execute("select * from pgtasks.worker").fetchone()
        assert row is not None
        return row

    return eventually(look)


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    """Ask it to stop, see that it stopped cleanly, and return what it printed."""
    process.send_signal(number)
    output = process.communicate(timeout=15)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("args", [["-A", "shop", "worker"], ["worker", "-A", "shop:app"]])
def test_worker_shows_its_banner_runs_jobs_and_stops_cleanly_on_term(
    start: Start, dsn: str, connection: psycopg.Connection[Any], args: list[str]
):
    process = start(*args, "-c", "2")
    until_registered(connection)

    app = App("client", dsn)
    result = app.send_task("shop.add", (2, 3)).get(timeout=10)
    app.close()
    banner, log = stop(process)

    assert result == 5
    assert re.search(r"app +shop\n", banner)
    assert re.search(r"pool +2 \(prefork\)\n", banner)
    assert re.search(r"queues +default, mail\n", banner)
    assert re.search(r"tasks +shop.add\n +shop.mail_ann\n", banner)
    assert log == ""
    assert connection.execute("select from pgtasks.worker").fetchone() is None


def test_no_password_is_shown_anywhere(start: Start, dsn: str, connection: psycopg.Connection[Any]):
    said: dict[str, Any] = {"password": "correct-horse", **conninfo_to_dict(dsn)}
    process = start(
        "worker", "-A", "shop", "-c", "1", "-l", "debug", PGTASKS_DSN=make_conninfo(**said)
    )
    row = until_registered(connection)
    arguments = Path(f"/proc/{row['pid']}/cmdline").read_text()

    banner, log = stop(process)

    assert "database  postgresql://" in banner
    assert said["password"] not in banner + log + arguments


def test_interrupt_stops_it_cleanly_too(start: Start, connection: psycopg.Connection[Any]):
    process = start("worker", "-A", "shop", "-c", "1", "--quiet")
    until_registered(connection)

    assert stop(process, signal.SIGINT) == ("", "")


def test_solo_pool_runs_jobs_in_the_worker_itself(
    start: Start, dsn: str, connection: psycopg.Connection[Any]
):
    process = start("worker", "-A", "shop", "-P", "solo")
    until_registered(connection)

    app = App("client", dsn)
    pid = app.send_task("shop.mail_ann", queue="mail").get(timeout=10)
    app.close()
    banner, _ = stop(process)

    assert pid == process.pid
    assert "1 (solo)" in banner


def test_queues_name_level_and_celerys_flags_are_taken(
    start: Start, connection: psycopg.Connection[Any]
):
    waiting = insert_job(connection, queue="mail")
    process = start(
        "worker", "-A", "shop", "-Q", "mail:2,other,more", "-X", "more", "-n", "me@%n", "-l", "info", "--log-json",
        "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair", "-E",
        "--heartbeat-interval", "3", "--prefetch-multiplier", "4", "--grace", "5s", "--poll-interval", "0.5",
        "--no-listen", "--lease", "20", "--beat-every", "2", "--purge",
    )  # fmt: skip
    row = until_registered(connection)

    banner, log = stop(process)

    state = connection.execute("select state from pgtasks.jobs where id = %s", [waiting]).fetchone()
    assert state == ("cancelled",)
    assert "Purged 1 job from mail, other\n" in banner
    assert "mail:2, other\n" in banner
    assert row["queues"] == ["mail", "other"]
    assert row["name"].startswith("me@")
    assert "worker.ready" in [json.loads(line)["message"] for line in log.splitlines()]


def test_options_are_those_that_were_said_and_else_the_defaults():
    nothing = worker_options({"grace": None, "pool": None})
    some = worker_options({"grace": 5.0, "prefetch": 0, "concurrency": 3, "listen": False})

    assert nothing == WorkerOptions(concurrency=len(os.sched_getaffinity(0)))
    assert some == WorkerOptions(grace=5.0, concurrency=3, listen=False)
    assert worker_options({"pool": "solo"}).concurrency == 1


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (
            ["--time-limit", "10m", "--soft-time-limit", "90"],
            {"time_limit": 600.0, "soft_time_limit": 90.0},
        ),
        (["--max-tasks-per-child", "1000"], {"max_tasks_per_child": 1000}),
        (
            ["--max-memory-per-child", "12000"],
            {"max_memory_per_child": 12000 * 1024},
        ),  # Celery's KiB
        (["--max-memory-per-child", "200MB"], {"max_memory_per_child": 200 * 2**20}),
        (["--max-memory-per-child", "1.5 GiB"], {"max_memory_per_child": 3 * 2**29}),
        (["--max-memory-per-child", "4096b"], {"max_memory_per_child": 4096}),
        (["-P", "threads"], {"pool": "threads"}),
        (["--pool", "Processes"], {"pool": "prefork"}),
        (["--async-concurrency", "50"], {"async_concurrency": 50}),
        (["--health-port", "0.0.0.0:8080"], {"health_port": "0.0.0.0:8080"}),
    ],
)
def test_celerys_limits_become_ours(args: list[str], options: dict[str, Any]):
    command = cli.get_command(click.Context(cli), "worker")
    assert command is not None

    said = command.make_context("worker", ["-c", "3", *args]).params
    mine = {name: said.get(name) for name in WorkerOptions.__struct_fields__}

    assert worker_options(mine) == WorkerOptions(concurrency=3, **options)


def test_the_banner_shows_the_limits_the_pool_and_where_probes_are_answered(
    start: Start, connection: psycopg.Connection[Any]
):
    process = start(
        "worker", "-A", "limited", "-c", "2", "--soft-time-limit", "1m", "--async-concurrency", "20",
        "--max-tasks-per-child", "5000", "--max-memory-per-child", "200MB", "--health-port", "0",
    )  # fmt: skip
    until_registered(connection)

    banner, log = stop(process)

    assert re.search(r"\n  pool      2 \(prefork\)\n", banner)
    assert "\n  async     20 more at once in each child, of async def tasks\n" in banner
    assert "\n  limits    soft 60 s, hard 120 s\n" in banner  # the second is the app's
    assert "\n  children  replaced after 5,000 tasks or 200 MiB\n" in banner
    assert re.search(r"\n  health    http://127\.0\.0\.1:[1-9]\d+/health\n", banner)
    assert log == ""


def test_without_options_the_banner_is_short(start: Start, connection: psycopg.Connection[Any]):
    process = start("worker", "-A", "shop", "-c", "1")
    until_registered(connection)

    banner, _ = stop(process)

    labels = [
        line.split()[0]
        for line in banner.splitlines()[1:]
        if line.startswith("  ") and line[2] != " "
    ]
    assert labels == ["app", "database", "pool", "queues", "tasks"]


@pytest.mark.parametrize(("pool", "count"), [("threads", 1), ("solo", 2)])
def test_a_pool_that_cannot_kill_says_once_which_limits_it_does_not_know(
    start: Start, connection: psycopg.Connection[Any], pool: str, count: int
):
    process = start("worker", "-A", "limited", "-P", pool, "--max-tasks-per-child", "5", "-q")
    until_registered(connection)

    _, log = stop(process)

    assert log.count("\n") == count
    assert log.count(f"pool {pool} knows soft time limits only") == 1
    assert "the time_limit of limited.either, limited.hard is not enforced" in log


def test_a_health_port_that_is_taken_is_said_in_one_line(start: Start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("worker", "-A", "shop", "--health-port", str(port))
        output, errors = process.communicate(timeout=10)

    assert process.returncode == 1
    assert output == ""
    assert errors.startswith(
        f"pgtasks: cannot serve health at 127.0.0.1:{port}: address already in use; "
    )
    assert errors.count("\n") == 1


def test_logfile_and_pidfile_are_written(
    start: Start, tmp_path: Path, connection: psycopg.Connection[Any]
):
    process = start(
        "worker", "-A", "shop", "-c", "1", "-l", "info", "-f", "w.log", "--pidfile", "w.pid"
    )
    until_registered(connection)

    written = (tmp_path / "w.pid").read_text()
    second = start("worker", "-A", "shop", "--pidfile", "w.pid")
    _, refusal = second.communicate(timeout=10)
    _, log = stop(process)

    assert written == f"{process.pid}\n"
    assert second.returncode == 1
    assert refusal == f"pgtasks: process {process.pid} runs already, says w.pid\n"
    assert log == ""
    assert "worker.ready" in (tmp_path / "w.log").read_text()
    assert not (tmp_path / "w.pid").exists()


def test_modules_that_are_included_are_imported(start: Start, tmp_path: Path):
    (tmp_path / "extra.py").write_text("print('extra is imported')\nraise SystemExit(9)\n")

    process = start("worker", "-A", "shop", "-I", "extra")
    output, errors = process.communicate(timeout=10)

    assert "extra is imported" in output
    assert "cannot import 'extra': SystemExit: 9" in errors
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-A", "broken"], 1, "cannot import 'broken': ZeroDivisionError"),
        (["-A", "empty"], 2, "app 'empty' has no tasks"),
        ([], 2, "no app was named"),
        (["-A", "shop", "-P", "gevent"], 2, "there is no pool 'gevent': expected prefork"),
        (["-A", "shop", "-X", "default,mail"], 2, "no queue is left"),
        (
            ["-A", "shop", "--time-limit", "9", "--soft-time-limit", "9"],
            2,
            "soft_time_limit is less than time_limit",
        ),
        (
            ["-A", "shop", "--max-memory-per-child", "1TB"],
            2,
            "expected a number of KiB, or one with its unit",
        ),
        (["-A", "shop", "--max-tasks-per-child", "0"], 2, "--max-tasks-per-child"),
        (
            ["-A", "shop", "--health-port", "::1:80"],
            2,
            "health_port is a port or host:port, such as 8080",
        ),
        (["-A", "shop", "--dsn", "postgresql://127.0.0.1:1/x"], 3, "no database answered"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    start: Start, args: list[str], code: int, message: str
):
    process = start("worker", *args)

    output, errors = process.communicate(timeout=10)

    assert process.returncode == code
    assert output == ""
    assert errors.startswith("pgtasks: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_worker_without_its_schema_exits_with_4(start: Start, fresh_dsn: str):
    process = start("worker", "-A", "shop", PGTASKS_DSN=fresh_dsn)

    _, errors = process.communicate(timeout=10)

    assert process.returncode == 4
    assert "run 'pgtasks migrate'" in errors


def test_a_job_that_is_called_is_waited_for(start: Start, connection: psycopg.Connection[Any]):
    process = start("worker", "-A", "shop", "-c", "1")
    until_registered(connection)

    call = start("call", "-w", "shop.add", "-a", "[2, 3]")
    output, id = call.communicate(timeout=10)
    stop(process)

    assert output == "5\n"
    assert connection.execute("select 1 from pgtasks.jobs where id = %s", [id.strip()]).fetchone()


def test_the_demo_counts_the_standard_library_and_shows_retries(start: Start, fresh_dsn: str):
    process = start("demo", "--json", PGTASKS_DSN=fresh_dsn)

    output, errors = process.communicate(timeout=60)
    totals = json.loads(output)

    assert process.returncode == 0, errors
    assert totals["files"] > 300
    assert totals["lines"] > 100_000
    assert totals["retried"] > 0
    assert totals["failed"] == 0
    assert "self" in totals["identifiers"]


def test_an_interrupted_demo_leaves_neither_worker_nor_jobs(start: Start, fresh_dsn: str):
    client = App("client", fresh_dsn)
    client.migrate()
    client.close()
    with psycopg.connect(fresh_dsn) as holding:
        holding.execute("lock table pgtasks.claim in share mode")  # so that nothing is claimed yet
        process = start("demo", PGTASKS_DSN=fresh_dsn)
        assert process.stdout is not None
        while " 0 of " not in process.stdout.readline():
            assert process.poll() is None

        process.send_signal(signal.SIGINT)
        holding.rollback()
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "Traceback" not in errors
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        assert connection.execute("select from pgtasks.worker").fetchone() is None
        assert connection.execute("select from pgtasks.job").fetchone() is None
