"""``pgtasks jobs show`` says what a parked job waits for."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgtasks import App
from pgtasks_cli.root import cli
from tests.fixtures.gates import publish
from tests.fixtures.simulated_worker import SimulatedWorker

Show = Callable[[str], str]


@pytest.fixture
def show(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Returns what ``jobs show`` prints."""
    monkeypatch.setenv("PGTASKS_DSN", dsn)
    monkeypatch.delenv("PGTASKS_APP", raising=False)

    def show(id: str) -> str:
        result = CliRunner().invoke(cli, ["jobs", "show", id])
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    return show


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 1}, "held back limit pay is full: 1 of 1 places are taken"),
        ({"rate": "1/h"}, "held back rate pay is used up: the next token comes in 3"),
        ({"fair_by": "{who}"}, "held back waits for the turn of key 'ann' among the others of queue default"),
    ],
)  # fmt: skip
def test_show_says_what_a_parked_job_waits_for(
    app: App,
    connection: psycopg.Connection[Any],
    worker: SimulatedWorker,
    show: Show,
    options: dict[str, Any],
    said: str,
):
    pay = app.task(name="pay", **options)(lambda who: None)
    gates = pay.options
    publish(
        connection,
        {"pay": "pay"} if gates.limit else {},
        {"pay": 1},
        rates={"pay": gates.rate} if gates.rate else {},
        fair=["pay"] if gates.fair_by else [],
    )
    first, second = pay.delay("ann"), pay.delay("ann")

    held = worker.claim(limit=1, tasks=["pay"])
    worker.claim(limit=1 if not gates.fair_by else 0, tasks=["pay"])

    assert [job.id for job in held] == [first.id]
    assert said in show(second.id)
