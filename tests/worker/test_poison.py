"""What a user's types, hooks and schedules raise, and what any client wrote: that job alone fails."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg
import pydantic
import pytest

from pgtasks import App, JobState, Task


class Unwritable(pydantic.BaseModel):
    x: int

    @pydantic.field_serializer("x")
    def write(self, value: int) -> int:
        raise RuntimeError("serializer")


@dataclasses.dataclass
class Unreadable:
    n: int

    def __post_init__(self) -> None:
        raise RuntimeError("post_init")


class Exiting(Task[Any, Any]):
    def on_success(self, *args: Any) -> None:
        raise SystemExit(3)


def exiting_schedule(job: Any, error: Any) -> float:
    raise SystemExit(4)


@pytest.fixture
def app(dsn: str):
    app = App("poison", dsn=dsn)
    app.task(name="fine")(lambda: "fine")
    app.task(name="unwritable")(lambda: Unwritable(x=1))
    app.task(name="unreadable")(takes_unreadable)
    app.task(name="hooked", base=Exiting)(lambda: 1)
    app.task(name="scheduled", retries=2, retry_schedule=exiting_schedule)(lambda: 1 / 0)
    app.task(name="failing")(lambda: 1 / 0)
    yield app
    app.close()


def takes_unreadable(value: Unreadable) -> None:
    raise AssertionError("never reached")


POISON = {
    "unwritable": "select pgtasks.enqueue('unwritable')",
    "unreadable": """select pgtasks.enqueue('unreadable', '{"value": {"n": 1}}')""",
    "hooked": "select pgtasks.enqueue('hooked')",
    "scheduled": "select pgtasks.enqueue('scheduled')",
    "retries": """select pgtasks.enqueue('failing', options => '{"retries": "many"}')""",
}


def test_poison_fails_alone_and_takes_no_child_down(app: App, connection: psycopg.Connection[Any]):
    ids = {}
    with app.worker(concurrency=1):
        for name, sql in POISON.items():
            row = connection.execute(sql).fetchone()
            assert row is not None
            ids[name] = str(row[0])
            app.send_task("fine")
        last = app.send_task("fine")
        assert last.get(timeout=30) == "fine"
        for id in ids.values():
            app.result(id).get(timeout=30, propagate=False)

    jobs = {name: app.job(id) for name, id in ids.items()}
    assert {name: (job.state, job.crashes) for name, job in jobs.items()} == dict.fromkeys(
        POISON, (JobState.FAILED, 0)
    )
    neighbours = app.jobs(task="fine")
    assert len(neighbours) == len(POISON) + 1
    assert {(job.state, job.attempt, job.crashes) for job in neighbours} == {
        (JobState.SUCCEEDED, 1, 0)
    }


@pytest.mark.parametrize("options", ["[1]", "1", '{"a": 1e5000}'])
def test_options_that_clients_could_not_read_are_refused_by_the_database(
    connection: psycopg.Connection[Any], options: str
):
    with pytest.raises(psycopg.errors.CheckViolation, match=r"job_options_check|options has 5008"):
        connection.execute("select pgtasks.enqueue('fine', options => %s::jsonb)", (options,))
