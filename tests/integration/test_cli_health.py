"""``pgtasks health`` and ``inspect ping``, on rows as workers write them with their beats."""

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.commands import Command

HERE = socket.gethostname()

Register = Callable[..., int]


@pytest.fixture
def register(connection: psycopg.Connection[Any]) -> Register:
    """Writes a worker's row: its ages are seconds, its stats what the last beat said."""

    def register(
        name: str = "one@here",
        *,
        host: str = HERE,
        beat: float = 1.0,
        started: float = 3600.0,
        state: str = "running",
        **stats: Any,
    ) -> int:
        row = connection.execute(
            "insert into pgtasks.worker (name, host, pid, version, pool, concurrency, queues, tasks, state, stats,"
            " started_at, beat_at) values (%s, %s, 1, '0', 'prefork', 2, '{default}', '{}', %s, %s,"
            " now() - %s * interval '1 s', now() - %s * interval '1 s') returning id",
            [name, host, state, Jsonb(stats), started, beat],
        ).fetchone()
        assert row is not None
        return int(row[0])

    return register


def test_a_worker_that_beats_and_claims_is_alive(command: Command, register: Register):
    register(claimed_ago=0.5, lease=30.0)

    said = command("health").stdout

    assert said.startswith("one@here: alive, last beat 1.")
    assert "s ago, last claim 1." in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"beat": 31.0, "claimed_ago": 0.0, "lease": 30.0},
            r"beat 31\.\d s ago \(over 30 s\), last",
        ),
        ({"claimed_ago": 30.0, "lease": 30.0}, r"last claim 31\.\d s ago \(over 30 s\)"),
        (
            {"beat": 5.0, "claimed_ago": 6.0, "lease": 10.0},
            r"last claim 11\.\d s ago \(over 10 s\)",
        ),
        ({"claimed_ago": None, "lease": 30.0}, r"last claim 3600\.\d s ago \(over 30 s\)"),
        ({"beat": 31.0}, r"last beat 31\.\d s ago \(over 30 s\), last claim unknown"),
    ],
)
def test_a_worker_that_does_not_beat_or_not_claim_is_not_alive(
    command: Command, register: Register, row: dict[str, Any], words: str
):
    register(**row)

    said = command("health", code=1).stdout

    assert said.startswith("one@here: NOT alive, ")
    assert re.search(words, said)


@pytest.mark.parametrize(
    "row",
    [
        {},  # registered, and no beat yet
        {"beat": 29.0, "claimed_ago": None, "lease": 60.0, "started": 40.0},
        {"beat": 40.0, "claimed_ago": 1.0, "lease": 60.0},
        {"claimed_ago": 100.0, "lease": 30.0, "poll_interval": 60.0},  # it looks but once a minute
        {"claimed_ago": 900.0, "lease": 30.0, "state": "draining"},  # it takes no more jobs
        {"claimed_ago": "?", "lease": "?", "started": 5.0},  # not ours to judge
    ],
)
def test_a_worker_is_judged_by_its_own_lease_and_by_what_it_has_to_do(
    command: Command, register: Register, row: dict[str, Any]
):
    register(**row)

    command("health")


def test_the_age_that_is_allowed_may_be_said(command: Command, register: Register):
    register(beat=40.0, claimed_ago=5.0, lease=30.0)

    command("health", "--max-age", "1m")
    command("health", "--max-age", "44", code=1)
    command("health", code=1)


def test_only_the_workers_of_this_host_are_asked_unless_others_are_named(
    command: Command, register: Register
):
    register("mail@here")
    register("mail@there", host="there", beat=99.0)
    register("batch@there", host="there")

    assert command("health").stdout.startswith("mail@here: alive")
    assert command("health", "-n", "batch@*").stdout.startswith("batch@there: alive")
    assert command("health", "--name", "mail@there", code=1).stdout.count("\n") == 1
    assert command("health", "--all", code=1).stdout.count("\n") == 3


def test_a_name_may_have_the_host_in_it_as_where_it_was_given(command: Command, register: Register):
    register(f"mail@{HERE}")
    register(f"other@{HERE}", beat=99.0)

    command("health", "-n", "mail@%h")


def test_nobody_of_that_name_is_exit_code_69(command: Command, register: Register):
    nobody = command("health", code=69)
    register(host="elsewhere")

    assert f"no worker of this host ({HERE}) is registered" in nobody.stderr
    assert "no worker of this host" in command("health", code=69).stderr
    assert "of a name like 'x*' is registered" in command("health", "-n", "x*", code=69).stderr
    assert json.loads(command("health", "--json", code=69).stdout) == {
        "alive": False,
        "workers": [],
    }


def test_name_and_all_exclude_each_other(command: Command):
    assert "found both" in command("health", "--all", "-n", "x", code=2).stderr


def test_no_database_is_exit_code_3(command: Command):
    command("health", "--dsn", "postgresql://127.0.0.1:1/x", code=3)


def test_a_probe_ends_although_a_table_is_locked(
    command: Command, register: Register, dsn: str, monkeypatch: pytest.MonkeyPatch
):
    from pgtasks_cli import health

    register()
    monkeypatch.setattr(health, "PATIENCE", 0.2)

    with psycopg.connect(dsn) as holding:
        holding.execute("lock table pgtasks.worker in access exclusive mode")
        stderr = command("health", code=1).stderr

    assert (
        stderr
        == "pgtasks: the database took too long: canceling statement due to statement timeout\n"
    )


def test_a_dead_worker_that_was_started_again_under_its_name_does_not_count(
    command: Command, register: Register
):
    register(beat=35.0, started=900.0)
    register(beat=1.0, started=30.0)

    assert command("health").stdout.count("\n") == 1


def test_a_hung_worker_beside_another_of_its_name_does_count(command: Command, register: Register):
    register(beat=35.0, started=900.0)
    register(beat=1.0, started=890.0)

    assert command("health", code=1).stdout.count("NOT alive") == 1


def test_a_dead_worker_is_not_replaced_by_its_namesake_on_another_host(
    command: Command, register: Register
):
    register("worker", beat=35.0, started=900.0)
    register("worker", host="there", beat=1.0, started=30.0)

    assert command("health", "-n", "worker", code=1).stdout.count("NOT alive") == 1


def test_as_json_it_says_what_it_judged_by(command: Command, register: Register):
    id = register(claimed_ago=2.0, lease=20.0)

    found = json.loads(command("health", "--json").stdout)
    [one] = found["workers"]

    assert found["alive"] is True
    assert one["beat_age"] == pytest.approx(1.0, abs=0.9)
    assert one["claim_age"] == pytest.approx(one["beat_age"] + 2.0)
    del one["beat_age"], one["claim_age"]
    assert one == {
        "name": "one@here",
        "alive": True,
        "state": "running",
        "id": id,
        "host": HERE,
        "pid": 1,
        "beat_limit": 20.0,
        "claim_limit": 20.0,
    }


def test_ping_shows_both_ages(command: Command, register: Register):
    register("one@here", beat=2.0, claimed_ago=1.0, lease=30.0)
    register("two@here", beat=40.0, claimed_ago=90.0, lease=60.0)
    register("three@here", beat=40.0, claimed_ago=90.0, lease=30.0)

    said = command("inspect", "ping").stdout
    replies = json.loads(command("inspect", "ping", "--json").stdout)

    assert re.search(
        r"->  one@here: OK\n    pong, last beat 2\.\d s ago, last claim 3\.\d s ago\n", said
    )
    assert re.search(r"last claim 130\.\d s ago \(over 60 s\)\n\n2 nodes online\.\n", said)
    assert list(replies) == ["one@here", "two@here"]
    assert replies["one@here"]["ok"] == "pong"
    assert replies["one@here"]["claim_age"] == pytest.approx(3.0, abs=0.9)


def test_stats_show_the_late_finishes_and_the_age_of_the_last_claim(
    command: Command, register: Register
):
    register(claimed_ago=1.0, late=2)

    stats = json.loads(command("inspect", "stats", "--json").stdout)["one@here"]

    assert stats["late"] == 2
    assert stats["claim_age"] == pytest.approx(2.0, abs=0.9)
    assert '"late": 2' in command("inspect", "stats").stdout
