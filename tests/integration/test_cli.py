"""The commands that look at tables and change them, on a database without a worker."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb

from pgtasks import App, group
from pgtasks_cli.root import COMMANDS, cli

Run = Callable[..., Result]

app = App("cli-tests")


@app.task(name="cli.add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="cli.mail", queue="mail", priority=3)
def mail(to: str) -> None: ...


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command against ``dsn``, and checks its exit code."""
    monkeypatch.setenv("PGTASKS_DSN", dsn)
    monkeypatch.delenv("PGTASKS_APP", raising=False)
    app.dsn = dsn

    def run(*args: str, code: int = 0, input: str | None = None) -> Result:
        result = CliRunner().invoke(cli, args, input=input)
        assert result.exit_code == code, result.output
        return result

    yield run
    app.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module into the current folder, a temporary one; what is imported then is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


def finish(connection: psycopg.Connection[Any], id: str, state: str, **columns: Any) -> None:
    """Let a job have ended in this state, as a worker would have left it."""
    app.cancel(id)
    columns = {"state": state, "attempt": 1, "reason": None, **columns}
    names = ", ".join(f"{name} = %({name})s" for name in columns)
    connection.execute(
        f"update pgtasks.job_history set {names} where id = %(id)s", {**columns, "id": id}
    )


def fail(connection: psycopg.Connection[Any], id: str, message: str = "boo") -> None:
    trace = f"Traceback (most recent call last):\n  somewhere\nValueError: {message}\n"
    error = Jsonb({"type": "ValueError", "message": message, "traceback": trace})
    finish(connection, id, "failed", error=error)


def register_worker(connection: psycopg.Connection[Any], name: str = "one@host") -> int:
    row = connection.execute(
        "insert into pgtasks.worker (name, host, pid, version, pool, concurrency, queues, tasks, stats)"
        " values (%s, 'host', 1, '0', 'prefork', 2, '{default}', '{cli.add,pgtasks.map}', '{\"held\": 1}')"
        " returning id",
        [name],
    ).fetchone()
    assert row is not None
    return int(row[0])


# Help


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), list(walk(cli, "pgtasks")))
def test_every_command_has_a_summary_and_an_example(path: str, command: click.Command):
    help = command.help or ""
    summary = help.strip().splitlines()[0]

    assert summary.endswith(".")
    assert len(summary) <= 90
    assert "Example:" in help or "Example:" in (command.epilog or "")


def test_the_list_of_commands_says_what_the_commands_say():
    context = click.Context(cli)

    for name, lazy in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        if name != "bench":  # its help is its own
            assert (command.help or "").startswith(lazy.summary)


def test_help_loads_no_subcommand_and_no_library():
    code = (
        "import sys\nfrom pgtasks_cli.root import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'pgtasks_cli.jobs', 'psycopg', 'rich', 'msgspec'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_missing_command_module_does_not_break_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(COMMANDS, "bench", COMMANDS["bench"]._replace(module="pgtasks_cli.absent"))

    assert "not part of this installation" in run("bench", code=2).stderr
    run("status")


def test_version_is_printed(run: Run):
    assert run("--version").stdout.startswith("pgtasks 0.")


# Which database, which app


def test_dsn_is_taken_before_and_after_the_command(
    run: Run, dsn: str, monkeypatch: pytest.MonkeyPatch
):
    said: dict[str, Any] = {"password": "", **conninfo_to_dict(dsn)}
    monkeypatch.setenv("PGTASKS_DSN", "postgresql://127.0.0.1:1/nowhere")
    monkeypatch.setenv("PGPASSWORD", said.pop("password"))
    bare = make_conninfo(**said)

    run("--dsn", bare, "queues", "list")
    run("queues", "--dsn", bare, "list")
    run("queues", "list", "--dsn", bare)


@pytest.mark.parametrize(
    "dsn_said",
    [
        "postgresql://ann:secret@host/db",
        "host=h password=secret",
        "postgresql://h/db?password=secret",
    ],
)
def test_a_password_among_the_arguments_is_refused(run: Run, dsn_said: str):
    result = run("status", "--dsn", dsn_said, code=2)

    assert "PGTASKS_DSN" in result.stderr
    assert "passfile" in result.stderr
    assert "secret" not in result.output


def test_no_dsn_at_all_names_both_ways(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PGTASKS_DSN")

    stderr = run("status", code=2).stderr

    assert "PGTASKS_DSN" in stderr
    assert "embedded:" in stderr


def test_no_database_is_exit_code_3_in_one_line(run: Run):
    stderr = run("--dsn", "postgresql://127.0.0.1:1/x", "status", code=3).stderr

    assert stderr.startswith("pgtasks: no database answered at postgresql://127.0.0.1:1/x")
    assert stderr.count("\n") == 1


def test_missing_schema_is_exit_code_4(run: Run, fresh_dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGTASKS_DSN", fresh_dsn)

    for command in ("status", "queues", "inspect", "purge"):
        assert "pgtasks migrate" in run(command, code=4).stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plain", "app = App('it')", "plain"),
        ("attribute", "shop = App('it'); other = App('no')", "attribute:shop"),
        ("celeryish", "other = App('no'); celery = App('it')", "celeryish"),
        ("alone", "whatever = App('it'); again = whatever", "alone"),
        ("package.celery", "app = App('it')", "package"),
        ("folder.tasks", "app = App('it')", "folder"),
    ],
)
def test_the_app_is_found(module: Callable[[str, str], None], name: str, text: str, said: str):
    from pgtasks_cli.loading import find_app

    module(name, f"from pgtasks import App\n{text}\n")

    assert find_app(said).name == "it"


@pytest.mark.parametrize(
    ("text", "said", "code", "message"),
    [
        ("x = 1", "shop", 2, "no app is in module 'shop'"),
        ("x = 1", "shop:y", 2, "no attribute 'y'"),
        ("x = 1", "shop:x", 2, "found int"),
        ("x = 1", "shop.py", 2, "say -A shop"),
        ("x = 1", "nowhere", 2, "no module is named 'nowhere'"),
        ("from pgtasks import App\na = App()\nb = App()", "shop", 2, "several apps (a, b)"),
        ("1 / 0", "shop", 1, "ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", "shop", 1, "No module named 'nowhere_at_all'"),
        ("def f(:", "shop", 1, "SyntaxError"),
    ],
)
def test_an_app_that_cannot_be_had_is_said_in_one_line(
    run: Run, module: Callable[[str, str], None], text: str, said: str, code: int, message: str
):
    module("shop", text)

    stderr = run("-A", said, "status", code=code).stderr

    assert message in stderr
    assert stderr.count("\n") == 1


# Migrate


def test_migrate_says_what_it_applied_and_then_nothing(
    run: Run, fresh_dsn: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PGTASKS_DSN", fresh_dsn)

    run("migrate", "--check", code=4)
    first = run("migrate")
    second = json.loads(run("migrate", "--json").stdout)

    assert "applied 0001_create_tables" in first.stdout
    assert second["applied"] == []
    run("migrate", "--check")


def test_migrate_sql_needs_no_database(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PGTASKS_DSN")

    script = run("migrate", "--sql").stdout

    assert script.startswith("begin;")
    assert "create table pgtasks.job " in script


# Call and result


def test_call_prints_the_id_of_a_job_with_what_was_said(run: Run):
    id = run(
        "call", "other.task", "-a", "[1]", "-k", '{"b": 2}', "--queue", "q", "--priority", "7",
        "--countdown", "10m", "--expires", "1h",
    ).stdout.strip()  # fmt: skip

    job = app.job(id)
    assert (job.task, job.queue, job.priority, job.state) == ("other.task", "q", 7, "scheduled")
    assert (job.args, job.kwargs) == ([1], {"b": 2})
    assert job.expires_at is not None


def test_call_with_an_app_uses_its_tasks(run: Run, module: Callable[[str, str], None]):
    module(
        "shop",
        "from pgtasks import App\napp = App('shop')\n"
        "@app.task(name='shop.mail', queue='mail')\ndef mail(to): ...\n",
    )

    id = json.loads(run("call", "-A", "shop", "shop.mail", "-a", '["x"]', "--json").stdout)["id"]

    assert app.job(id).queue == "mail"
    assert (
        "missing 1 required positional argument: 'to'"
        in run("-A", "shop", "call", "shop.mail", code=2).stderr
    )
    assert "no task is named 'nix'" in run("-A", "shop", "call", "nix", code=1).stderr


@pytest.mark.parametrize(
    "args",
    [
        ["-a", "{}"],
        ["-a", "[NaN]"],
        ["-k", "[]"],
        ["--eta", "tomorrow"],
        ["--task-id", "7"],
        ["--countdown", "soon"],
        ["--countdown", "1", "--eta", "2030-01-01"],
        ["--queue", "a b"],
    ],
)
def test_call_refuses_what_it_cannot_send(run: Run, args: list[str]):
    assert run("call", "some.task", *args, code=2).stderr.count("\n") == 1


def test_call_that_waits_in_vain_says_so(run: Run):
    stderr = run("call", "-w", "0.05", "some.task", code=1).stderr

    assert "is not finished after 0.05 s" in stderr


def test_result_is_printed_and_failure_is_exit_code_1(
    run: Run, connection: psycopg.Connection[Any]
):
    good, bad = add.delay(1, 2).id, add.delay(1, 2).id
    waiting = add.delay(1, 2).id
    finish(connection, good, "succeeded", result='{"sum": 3}')
    fail(connection, bad)

    assert json.loads(run("result", good).stdout) == {"sum": 3}
    assert "failed: ValueError: boo" in run("result", bad, code=1).stderr
    assert "Traceback" in run("result", bad, "--traceback", code=1).stdout
    assert "is ready" in run("result", waiting, code=1).stderr
    assert json.loads(run("result", bad, "--json", code=1).stdout)["error"]["message"] == "boo"


# Status, queues


def test_status_counts_jobs_bundles_and_workers(run: Run, connection: psycopg.Connection[Any]):
    group([add.s(1, 1), mail.s("ann")]).apply()
    register_worker(connection)

    document = json.loads(run("status", "--json").stdout)
    text = run("status").stdout

    assert document["jobs"]["ready"] == 2
    assert document["queues"] == {"default": {"ready": 1}, "mail": {"ready": 1}}
    assert document["bundles"]["running"] == 1
    assert document["workers"] == {"online": 1, "silent": 0}
    assert "1 worker online" in text


def test_queues_lists_depths_with_and_without_list(run: Run):
    mail.delay("ann")
    mail.apply_async(("ann",), countdown=60)

    bare, listed = run("queues").stdout, run("queues", "list").stdout
    document = json.loads(run("queues", "--json").stdout)

    assert bare.splitlines()[0].split() == listed.splitlines()[0].split()
    assert (document[0]["name"], document[0]["ready"], document[0]["scheduled"]) == ("mail", 1, 1)


# Jobs


def test_jobs_list_goes_by_every_filter(run: Run, connection: psycopg.Connection[Any]):
    failed = add.delay(1, 2).id
    fail(connection, failed, "no such host")
    nightly = mail.apply_async(("ann",), origin="nightly").id
    bundle = group([add.s(3, 4)]).apply()
    member = bundle[0].id

    def listed(*args: str) -> list[str]:
        return [job["id"] for job in json.loads(run("jobs", "list", "--json", *args).stdout)]

    assert listed() == [member, nightly, failed]
    assert listed("--state", "failed") == [failed]
    assert listed("--state", "failed", "--state", "ready") == [member, nightly, failed]
    assert listed("--task", "cli.mail") == [nightly]
    assert listed("--queue", "mail") == [nightly]
    assert listed("--origin", "nightly") == [nightly]
    assert listed("--error", "ValueError") == [failed]
    assert listed("--error", "no such") == [failed]
    assert listed("--bundle", bundle.id) == [member]
    assert listed("--since", "10m") == [member, nightly, failed]
    assert listed("--before", "10m") == []
    assert listed("--before", "2020-01-01T00:00Z") == []
    assert listed("--limit", "1") == [member]
    assert listed("--limit", "1", "--before-id", member) == [nightly]


def test_jobs_list_in_a_pipe_is_aligned_text(run: Run, connection: psycopg.Connection[Any]):
    id = add.delay(1, 2).id
    fail(connection, id, "red \x1b[31m\nand two lines")

    header, line = run("jobs", "list").stdout.splitlines()

    assert header.split() == ["id", "task", "queue", "state", "attempt", "enqueued", "note"]
    assert line.startswith(id)
    assert line.endswith(r"ValueError: red \x1b[31m and two lines")
    assert header.index("task") == line.index("cli.add")


def test_jobs_show_has_everything_but_shows_arguments_on_request_only(
    run: Run, connection: psycopg.Connection[Any]
):
    id = mail.delay("ann@example.com").id
    fail(connection, id)

    text = run("jobs", "show", id).stdout

    assert "cli.mail" in text
    assert "ValueError: boo" in text
    assert "ann@example.com" not in text
    assert "ann@example.com" not in run("jobs", "show", id, "--json").stdout
    assert "ann@example.com" in run("jobs", "show", id, "--args").stdout
    assert json.loads(run("jobs", "show", id, "--args", "--json").stdout)["args"] == [
        "ann@example.com"
    ]


def test_an_id_may_be_cut_short_while_it_is_unique(run: Run):
    first, second = (one.id for one in app.enqueue_many([add.s(1, 1), add.s(2, 2)]))
    shared = first[:8]

    assert first in run("jobs", "show", first[:-1]).stdout
    assert first in run("jobs", "show", first.replace("-", "").upper()).stdout
    stderr = run("jobs", "show", shared, code=1).stderr
    assert "is not unique, 2 jobs fit" in stderr
    assert first in stderr
    assert second in stderr


@pytest.mark.parametrize(
    ("id", "code"), [("0000", 1), (f"{0:08}-0000-0000-0000-{0:012}", 1), ("xyz", 2), ("0" * 33, 2)]
)
def test_an_id_that_nothing_has_is_said_so(run: Run, id: str, code: int):
    for command in (["jobs", "show"], ["result"], ["bundles", "show"], ["jobs", "cancel", "-f"]):
        assert id in run(*command, id, code=code).stderr


def test_finished_jobs_are_retried_by_id(run: Run, connection: psycopg.Connection[Any]):
    failed, waiting = add.delay(1, 2).id, add.delay(1, 2).id
    fail(connection, failed)

    assert "retried 1 job" in run("jobs", "retry", failed).stdout
    assert app.job(failed).state == "ready"
    assert "is ready: only a finished job" in run("jobs", "retry", waiting, code=1).stderr


def test_waiting_jobs_are_rescheduled(run: Run):
    id = add.apply_async((1, 2), countdown=60, unique=True).id

    said = run(
        "jobs", "reschedule", id, "--start-at", "2h", "--priority", "3", "-Q", "other"
    ).stdout
    assert f"rescheduled job {id}: scheduled, starts " in said
    assert said.endswith("queue other, priority 3\n")
    assert json.loads(run("jobs", "reschedule", id, "--now", "--json").stdout)["state"] == "ready"
    assert "expected --start-at, --now, --priority" in run("jobs", "reschedule", id, code=2).stderr
    both = run("jobs", "reschedule", id, "--now", "--start-at", "1h", code=2)
    assert "found both" in both.stderr
    assert "is not a name" in run("jobs", "reschedule", id, "-Q", "no name", code=2).stderr
    app.cancel(id)
    assert "only a job that waits" in run("jobs", "reschedule", id, "--now", code=1).stderr


def test_a_job_says_whether_it_has_its_unique_key(run: Run, connection: psycopg.Connection[Any]):
    first = add.apply_async((1, 2), unique="{a}").id
    assert "unique, holds key 1 until it is finished" in run("jobs", "show", first).stdout
    fail(connection, first)
    assert "unique, key 1 is free" in run("jobs", "show", first).stdout
    second = add.apply_async((1, 2), unique="{a}").id

    assert f"unique, key 1 is held by job {second}" in run("jobs", "show", first).stdout
    refused = run("jobs", "retry", first, code=1)
    assert f"is held by job {second}: it can be retried when that one is finished" in refused.stderr


def test_many_are_retried_after_a_question(run: Run, connection: psycopg.Connection[Any]):
    failed = [one.id for one in app.enqueue_many([add.s(1, 1) for _ in range(3)])]
    for id in failed:
        fail(connection, id)
    other = mail.delay("ann").id
    fail(connection, other)
    command = ["jobs", "retry", "--state", "failed", "--task", "cli.add"]

    refused = run(*command, input="n\n", code=1)
    unheard = run(*command, input="", code=1)
    done = run(*command, input="y\n")

    assert "retry 3 jobs?" in refused.stderr
    assert "nothing was done" in unheard.stderr
    assert "retried 3 jobs" in done.stdout
    assert app.job(other).state == "failed"
    assert json.loads(run("jobs", "retry", "--task", "cli.mail", "-f", "--json").stdout)[
        "retried"
    ] == [other]


def test_waiting_jobs_are_cancelled_after_a_question(run: Run):
    id = add.delay(1, 2).id

    run("jobs", "cancel", id, input="n\n", code=1)
    assert app.job(id).state == "ready"
    assert "cancelled 1 job" in run("jobs", "cancel", id, input="y\n").stdout
    assert app.job(id).state == "cancelled"
    assert "cannot be cancelled" in run("jobs", "cancel", id, "-f", code=1).stderr


def test_jobs_are_deleted_after_a_question(run: Run, connection: psycopg.Connection[Any]):
    finished, waiting = add.delay(1, 2).id, add.delay(1, 2).id
    finish(connection, finished, "succeeded")

    run("jobs", "delete", finished, input="n\n", code=1)
    assert "deleted 1 job" in run("jobs", "delete", "--task", "cli.add", input="y\n").stdout
    assert [job.id for job in app.jobs()] == [waiting]
    run("jobs", "delete", "-f", waiting)
    assert app.jobs() == []


def test_without_ids_and_filters_nothing_is_chosen(run: Run):
    id = add.delay(1, 2).id

    for verb in ("retry", "cancel", "delete"):
        assert "expected ids, or a filter" in run("jobs", verb, "-f", code=2).stderr
        assert "found both" in run("jobs", verb, "-f", id, "--task", "x", code=2).stderr


# Bundles


def test_bundles_are_listed_shown_retried_cancelled_and_deleted(
    run: Run, connection: psycopg.Connection[Any]
):
    bundle = group([add.s(1, 1), add.s(2, 2)]).apply(type="import", origin="nightly")
    fail(connection, bundle[0].id)

    listed = json.loads(run("bundles", "list", "--type", "import", "--running", "--json").stdout)
    shown = json.loads(run("bundles", "show", bundle.id[:-1], "--json").stdout)
    run("bundles", "delete", "-f", bundle.id, code=1)
    cancelled = run("bundles", "cancel", bundle.id, input="y\n")
    watched = run("bundles", "show", bundle.id, "--watch", code=1)
    retried = run("bundles", "retry-failed", bundle.id, "-f")
    run("bundles", "cancel", bundle.id, "-f")
    run("bundles", "delete", bundle.id, input="y\n")

    assert (listed[0]["total"], listed[0]["remaining"], listed[0]["state"]) == (2, 1, "running")
    assert shown["members"] == {"failed": 1, "ready": 1}
    assert "cancelled 1 job" in cancelled.stdout
    assert "2 jobs of the bundle did not succeed" in watched.stderr
    assert "retried 2 jobs" in retried.stdout
    assert app.bundles() == []
    assert "no bundle fits" in run("bundles", "list").stderr


# Inspect


def test_inspect_speaks_celerys_form_from_tables(run: Run, connection: psycopg.Connection[Any]):
    worker_id = register_worker(connection)
    begun, held = (one.id for one in app.enqueue_many([add.s(1, 99), add.s(2, 99)]))
    connection.execute(
        "with t as (select gen_random_uuid() as token), c as ("
        " insert into pgtasks.claim (token, worker_id, queue, job_ids)"
        " select t.token, %(worker)s, 'default', %(ids)s::uuid[] from t)"
        " update pgtasks.job set token = t.token, worker_id = %(worker)s, attempt = 1, started_at = now() from t",
        {"worker": worker_id, "ids": [begun, held]},
    )
    connection.execute("update pgtasks.worker set running = %s::uuid[]", [[begun]])
    later = mail.apply_async(("ann",), countdown=60).id

    active = json.loads(run("inspect", "active", "-j").stdout)
    reserved = json.loads(run("inspect", "reserved", "--json").stdout)
    scheduled = json.loads(run("inspect", "scheduled", "-j").stdout)

    assert [one["id"] for one in active["one@host"]] == [begun]
    assert [one["id"] for one in reserved["one@host"]] == [held]
    assert "args" not in active["one@host"][0]
    assert json.loads(run("inspect", "active", "--args", "-j").stdout)["one@host"][0]["args"] == [
        1,
        99,
    ]
    assert [one["request"]["id"] for one in scheduled["database"]] == [later]
    assert (
        run("inspect", "registered").stdout == "->  one@host: OK\n    * cli.add\n\n1 node online.\n"
    )
    assert run("inspect", "ping").stdout.startswith("->  one@host: OK\n    pong, last beat ")
    assert '    * {"name": "default"}\n' in run("inspect", "active_queues").stdout
    assert (
        json.loads(run("inspect", "stats", "-j").stdout)["one@host"]["pool"]["max-concurrency"] == 2
    )
    assert "one@host" in run("inspect").stdout


def test_inspect_asks_only_the_workers_named(run: Run, connection: psycopg.Connection[Any]):
    register_worker(connection, "one@host")
    register_worker(connection, "two@host")

    assert list(json.loads(run("inspect", "ping", "-j").stdout)) == ["one@host", "two@host"]
    assert list(json.loads(run("inspect", "ping", "-j", "-d", "two@host").stdout)) == ["two@host"]
    assert list(json.loads(run("inspect", "-d", "two@host", "ping", "-j").stdout)) == ["two@host"]
    run("inspect", "ping", "-d", "three@host", code=69)


def test_inspect_without_a_worker_says_so(run: Run):
    assert "no nodes replied" in run("inspect", "ping", "-t", "1", code=69).stderr
    for command in ("active", "reserved", "scheduled", "registered", "active_queues", "stats"):
        assert "no worker is registered" in run("inspect", command).stderr
        run("inspect", command, "-j")
    assert "no worker is registered" in run("inspect").stderr


def test_a_silent_worker_answers_no_ping(run: Run, connection: psycopg.Connection[Any]):
    register_worker(connection)
    connection.execute("update pgtasks.worker set beat_at = now() - interval '1 minute'")

    run("inspect", "ping", code=69)
    assert "silent" in run("inspect").stdout
    assert "0 workers online, 1 silent" in run("status").stdout


# Purge


def test_purge_asks_and_cancels_what_waits_in_the_queues_named(run: Run):
    app.enqueue_many([add.s(1, 1), add.s(2, 2), mail.s("ann")])

    refused = run("purge", input="n\n", code=1)
    some = run("purge", "-f", "-X", "mail")
    rest = run("purge", "-Q", "mail", input="y\n")

    assert "cancel 3 waiting jobs of 2 queues (default, mail)?" in refused.stderr
    assert some.stdout == "Purged 2 jobs from 1 queue\n"
    assert rest.stdout == "Purged 1 job from 1 queue\n"
    assert {job.state for job in app.jobs()} == {"cancelled"}
    assert json.loads(run("purge", "-f", "--json").stdout) == {"purged": 0, "queues": []}
