"""``pgtasks queues`` and ``pgtasks tasks``: what operators hold back, limit and move."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgtasks import App, ConfigurationError, Queue
from pgtasks.registry import Registry
from pgtasks_cli.root import cli
from pgtasks_cli.worker import worker

Run = Callable[..., Result]

app = App("cli-queues")


@app.task(name="cli.send", queue="mail")
def send(to: str) -> None: ...


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


def listed(run: Run) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(run("queues", "list", "--json").stdout)}


def test_pause_and_resume_say_who_when_and_why(run: Run):
    id = send.delay("ann").id

    run("queues", "pause", "mail", "--reason", "down")
    paused = listed(run)["mail"]
    text = run("queues").stdout
    shown = run("jobs", "show", id).stdout
    again = run("queues", "resume", "mail")

    assert paused["paused_at"]
    assert paused["paused_by"].startswith(getpass.getuser())
    assert paused["pause_reason"] == "down"
    assert "paused" in text
    assert "queue mail is paused" in shown
    assert "down" in shown
    assert again.stdout == "resumed mail\n"
    assert "was not paused" in run("queues", "resume", "mail").stderr
    assert listed(run)["mail"]["paused_at"] is None


def test_a_name_that_nobody_used_is_refused_with_the_one_that_was_meant(run: Run):
    send.delay("ann")

    for args in (
        ["pause", "mial"],
        ["resume", "mial"],
        ["limit", "mial", "--max-running", "2"],
        ["move", "mial", "default"],
        ["move", "mail", "mial"],
        ["purge", "mial"],
    ):
        said = run("queues", *args, code=1).stderr
        assert said == "pgtasks: queue 'mial' has never been used: did you mean 'mail'?\n"
    assert "is not a name" in run("queues", "pause", "a b", code=2).stderr
    run("queues", "pause", "mial", "--new")
    assert listed(run)["mial"]["paused_at"]


def test_limits_are_set_one_by_one_shown_and_reset(run: Run, connection: psycopg.Connection[Any]):
    send.delay("ann")

    run("queues", "limit", "mail", "--max-running", "5")
    said = run(
        "queues", "limit", "mail", "--rate", "100/m", "--burst", "3", "--ageing", "1m"
    ).stdout
    queue = listed(run)["mail"]

    assert said.startswith("mail: 5 running, 100/m (burst 3), ages each 60 s, by ")
    assert (queue["max_running"], queue["burst"], queue["ageing"]) == (5, 3, 60)
    assert queue["rate"] == pytest.approx(100 / 60)
    without = run("queues", "limit", "mail", "--rate", "none", "--ageing", "none").stdout
    assert without.startswith("mail: 5 running, by ")
    assert run("queues", "limit", "mail", "--reset").stdout == "mail: no limits\n"
    assert "nobody had set" in run("queues", "limit", "mail", "--reset").stderr


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--max-running", "0"], "a whole number from 1, or none, found '0'"),
        (["--max-running", "many"], "a whole number from 1, or none, found 'many'"),
        (["--rate", "5/x"], "a rate is written 10/s, 100/m"),
        (["--rate", "0/s"], "the count of a rate is a number above 0"),
        (["--ageing", "0.5"], "ageing is a number of seconds, at least 1"),
        (["--burst", "3"], "say --rate, too"),
        ([], "no limit was said"),
        (["--reset", "--max-running", "1"], "say it alone"),
    ],
)
def test_what_is_no_limit_is_refused_and_changes_nothing(run: Run, args: list[str], why: str):
    send.delay("ann")

    assert why in run("queues", "limit", "mail", *args, code=2).stderr
    assert listed(run)["mail"]["limited_at"] is None


def test_move_and_purge_ask_first(run: Run):
    ids = [send.delay("ann").id for _ in range(3)]

    refused = run("queues", "move", "mail", "bulk", "--new", input="n\n", code=1)
    moved = run("queues", "move", "mail", "bulk", "--new", input="y\n")

    assert "move 3 waiting jobs from queue mail to queue bulk?" in refused.stderr
    assert moved.stdout == "Moved 3 jobs from mail to bulk\n"
    assert {app.job(id).queue for id in ids} == {"bulk"}
    assert "are there already" in run("queues", "move", "bulk", "bulk", code=2).stderr
    run("queues", "purge", "bulk", input="n\n", code=1)
    assert run("queues", "purge", "bulk", "-f").stdout == "Purged 3 jobs from 1 queue\n"


def test_tasks_are_paused_only_if_a_worker_has_published_them(
    run: Run, connection: psycopg.Connection[Any]
):
    connection.execute("insert into pgtasks.task (name, queue) values ('cli.send', 'mail')")
    id = send.delay("ann").id

    unknown = run("tasks", "pause", "cli.sned", code=1).stderr
    run("tasks", "pause", "cli.send", "-r", "wrong text")
    text = run("tasks").stdout
    shown = run("jobs", "show", id).stdout

    assert unknown == (
        "pgtasks: no worker has published a task 'cli.sned': did you mean 'cli.send'?\n"
    )
    assert "wrong text" in text
    assert "task cli.send is paused" in shown
    assert run("tasks", "resume", "cli.send").stdout == "resumed cli.send\n"
    assert "did you mean" in run("tasks", "resume", "cli.sned", code=1).stderr


def test_what_is_full_or_has_no_token_is_said_of_the_job(run: Run, worker):
    ids = [send.delay("ann").id for _ in range(2)]
    app.limit_queue("mail", max_running=1, rate="1/h")
    worker.claim("mail")

    shown = run("jobs", "show", ids[1]).stdout
    note = run("queues").stdout

    assert "queue mail is full: 1 of 1 run; the rate of queue mail is used up for now" in shown
    assert "full, waits for its rate" in note


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mail:0", "the weight of queue 'mail' is a whole number from 1, found '0'"),
        ("mail:x", "the weight of queue 'mail' is a whole number from 1, found 'x'"),
        ("mail:2,mail", "queue 'mail' stands there twice"),
    ],
)
def test_what_is_no_weight_is_refused(run: Run, text: str, why: str):
    assert why in run("worker", "-A", "nothing", "-Q", text, code=2).stderr


def test_weights_are_read_with_the_queues():
    found = worker.make_context("worker", ["-Q", "mail:3,default"]).params["queues"]

    assert found == {"mail": 3, "default": 1}


# In code


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"max_running": 0}, "max_running is a whole number from 1"),
        ({"max_running": True}, "max_running is a whole number from 1"),
        ({"rate": "fast"}, "a rate is written"),
        ({"rate": 0}, "leave the rate out for no limit"),
        ({"ageing": 0}, "ageing is a number of seconds, at least 1"),
    ],
)
def test_a_queue_that_cannot_be_is_refused_where_it_is_declared(said: dict[str, Any], why: str):
    with pytest.raises(ConfigurationError, match=why):
        Queue(**said)
    with pytest.raises(ConfigurationError, match=why):
        app.limit_queue("mail", **said)


def test_queues_of_an_app_are_declared_by_queues():
    with pytest.raises(ConfigurationError, match=r"declared by a pgtasks.Queue"):
        App(queues={"mail": 5})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="is not a name"):
        App(queues={"a b": Queue()})
    assert Registry.queue_names(App(queues={"mail": Queue()})) == ["default", "mail"]
    with pytest.raises(ConfigurationError, match="no limit was said"):
        app.limit_queue("mail")
