"""``pgtasks worker`` and ``pgtasks demo`` as an operator starts them: real processes, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgtasks import App, WorkerOptions
from pgtasks_cli.worker import worker_options
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


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Starts ``pgtasks …`` in a folder with the module ``shop``; kills it at the end, if it must."""
    (tmp_path / "shop.py").write_text(SHOP)
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
    process = start(
        "worker", "-A", "shop", "-Q", "mail,other,more", "-X", "more", "-n", "me@%n", "-l", "info", "--log-json",
        "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair", "-E",
        "--heartbeat-interval", "3", "--prefetch-multiplier", "4", "--grace", "5s", "--poll-interval", "0.5",
        "--no-listen", "--lease", "20", "--beat-every", "2",
    )  # fmt: skip
    row = until_registered(connection)

    _, log = stop(process)

    assert row["queues"] == ["mail", "other"]
    assert row["name"].startswith("me@")
    assert "worker.ready" in [json.loads(line)["message"] for line in log.splitlines()]


def test_options_are_those_that_were_said_and_else_the_defaults():
    nothing = worker_options({"grace": None, "pool": None})
    some = worker_options({"grace": 5.0, "prefetch": 0, "concurrency": 3, "listen": False})

    assert nothing == WorkerOptions(concurrency=len(os.sched_getaffinity(0)))
    assert some == WorkerOptions(grace=5.0, concurrency=3, listen=False)
    assert worker_options({"pool": "solo"}).concurrency == 1


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
        (["-A", "shop", "-B"], 2, "schedules do not exist in this release"),
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
