"""``pgtasks schedules`` and ``pgtasks beat``, as an operator sees them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from pgtasks import App
from tests.fixtures.eventually import eventually

Command = Callable[..., Result]
ROOT = Path(__file__).parents[2]
SAMPLE = "tests.fixtures.schedule_app"


def test_a_schedule_from_its_beginning_to_its_end(command: Command, app: App) -> None:
    assert "there is no schedule" in command("schedules", "list").output
    added = command(
        "schedules", "add", "nightly", "30 2 * * *", "shop.clean", "--timezone", "Europe/Vienna",
        "-a", "[1]", "-k", '{"all": true}', "--queue", "slow", "--priority", "3", "--expires", "10m",
    )  # fmt: skip
    assert re.fullmatch(
        r"added nightly: 30 2 \* \* \* Europe/Vienna; next run \w{3} \d{4}-\d\d-\d\d 02:30:00 \+0[12]00\n",
        added.output,
    )
    changed = command(
        "schedules", "edit", "nightly", "--spec", "*/5 * * * * 30", "--unset", "queue,expires"
    )
    assert "changed nightly: */5 * * * * 30 Europe/Vienna" in changed.output

    listed = command("schedules", "list")
    shown = command("schedules", "show", "nightly")
    document = json.loads(command("schedules", "show", "nightly", "--json").output)

    assert "nothing ticks: no worker is alive" in listed.stderr
    header, row = listed.stdout.splitlines()
    assert header.split() == ["name", "task", "when", "from", "state", "last", "next", "note"]
    assert re.match(
        r"nightly +shop\.clean +\*/5 \* \* \* \* 30 Europe/Vienna +hand +active +- +\d{4}-", row
    )
    assert re.search(r"^Europe/Vienna +UTC$", shown.output, re.MULTILINE)
    runs = re.findall(
        r"\d\d:\d[05]:30 \+0[12]00 +\w{3} \d{4}-\d\d-\d\d \d\d:\d[05]:30 \+0000", shown.output
    )
    assert len(runs) == 5
    assert len(document.pop("next_runs")) == 5
    kept = {
        key: document[key]
        for key in ("args", "kwargs", "queue", "priority", "expires", "declared_by", "state")
    }
    assert kept == {
        "args": [1], "kwargs": {"all": True}, "queue": None, "priority": 3, "expires": None,
        "declared_by": "hand", "state": "active",
    }  # fmt: skip

    assert command("schedules", "pause", "nightly", "--by", "ann").output == "paused nightly\n"
    assert re.search(r"hand +paused +- +- +paused by ann", command("schedules", "list").output)
    assert "next runs if it were not paused" in command("schedules", "show", "nightly").output
    id = command("schedules", "run-now", "nightly").output.strip()
    assert app.job(id).origin == "schedule nightly"
    assert command("schedules", "resume", "nightly").output == "resumed nightly\n"
    command("schedules", "remove", "nightly", code=1, input="n\n")
    assert command("schedules", "remove", "nightly", "--force").output == "removed nightly\n"
    assert json.loads(command("schedules", "list", "--json").output) == []


def test_what_cannot_be_read_is_shown_and_what_is_odd_is_not_obeyed(
    command: Command, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(
        "insert into pgtasks.schedule (name, task, spec, args) values"
        " (e'a\\x1b[31m', 't', 'soon', 'no json'), ('good', 't', '@daily', '[]')"
    )

    listed = command("schedules", "list").output
    shown = command("schedules", "show", "a\x1b[31m").output
    document = json.loads(command("schedules", "list", "--json").output)

    assert re.search(r"a\\x1b\[31m +t +soon +hand +error .* found 1 in 'soon'", listed)
    assert "\x1b" not in listed + shown
    assert "next runs" not in shown
    assert [(one["name"], one["state"], one["args"]) for one in document] == [
        ("a\x1b[31m", "error", "no json"), ("good", "active", []),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "x"], 1, "there is no schedule 'x': see 'pgtasks schedules list'"),
        (["pause", "x"], 1, "there is no schedule 'x'"),
        (["resume", "x"], 1, "there is no schedule 'x'"),
        (["remove", "x", "--force"], 1, "there is no schedule 'x'"),
        (["run-now", "x"], 1, "there is no schedule 'x'"),
        (["edit", "x", "--priority", "1"], 1, "there is no schedule 'x'"),
        (["edit", "x"], 2, "nothing to change was said"),
        (["edit", "x", "--unset", "spec"], 2, "--unset takes queue, priority, expires"),
        (["edit", "x", "--queue", "q", "--unset", "queue"], 2, "not what is set at once"),
        (["edit", "x", "--spec", "a b"], 2, "five fields"),
        (["add", "x", "* * * *", "t"], 2, "found 4 in '* * * *'"),
        (["add", "x", "0 0 30 2 *", "t"], 2, "never comes"),
        (["add", "x", "every 0", "t"], 2, "every() takes a number of seconds"),
        (["add", "x", "@daily", "no task"], 2, "task name 'no task' is not a name"),
        (["add", "x", "@daily", "t", "--timezone", "Wien"], 2, "no time zone 'Wien'"),
        (["add", "x", "@daily", "t", "--catch-up", "some"], 2, "'some' is not one of"),
        (["add", "x", "@daily", "t", "-a", "1"], 2, "expected a JSON array"),
        (["add", "", "@daily", "t"], 2, "a schedule's name is for people to read"),
        (["add", "x", "@daily", f"{SAMPLE}.tick", "-A", SAMPLE, "-a", "[1, 2]"], 2, "but 2 were given"),
        (["add", "x", "@daily", "other", "-A", SAMPLE], 1, "no task is named 'other'"),
        (["pause"], 2, "Missing argument 'NAME…'"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(
    command: Command, arguments: list[str], code: int, message: str
) -> None:
    said = command("schedules", *arguments, code=code).stderr

    assert message in said
    assert len(said.splitlines()) == 1


def test_beat_runs_by_itself_and_marks_what_comes_from_code(
    command: Command, app: App, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    beat = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pgtasks_cli",
            "beat",
            "-A",
            SAMPLE,
            "-l",
            "info",
            "-s",
            "/dev/null",
        ],
        env={**os.environ, "PGTASKS_DSN": dsn, "SCHEDULES": "second,nightly"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:

        def ticked() -> None:
            assert any(one.last_at for one in app.schedules.list())

        eventually(ticked)
        listed = command("schedules", "list").output
        refused = command("schedules", "remove", "nightly", "--force", code=1)
        command("schedules", "edit", "nightly", "--priority", "9")
        edited = command("schedules", "list").output
        pinged = command("inspect", "ping").output
        healthy = command("health").output
    finally:
        beat.send_signal(signal.SIGTERM)
        out, err = beat.communicate(timeout=20)

    assert beat.returncode == 0, err
    assert "runs no jobs" in out
    assert re.search(r"schedules +2 in code", out)
    assert "nothing ticks" not in listed
    assert re.search(
        r"^nightly +\S+tick +0 3 \* \* \* Europe/Vienna +code +active +- +\d{4}-", listed, re.M
    )
    assert re.search(r"^second +\S+tick +\* \* \* \* \* \* +code +active +\d{4}-", listed, re.M)
    assert re.search(r"^nightly .* code\+edits +active", edited, re.M)
    assert "a live worker has schedule 'nightly' in its code" in refused.stderr
    assert "beat@" in pinged
    assert "alive" in healthy
    row = connection.execute("select count(*) from pgtasks.jobs where state = 'ready'").fetchone()
    assert row is not None
    assert row[0] >= 1


def test_worker_says_how_many_schedules_it_has_and_who_sees_to_them(command: Command) -> None:
    help = command("worker", "--help").output

    assert re.search(r"-B, --beat / --no-beat +Enqueue what schedules have due", help)
