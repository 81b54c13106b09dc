"""``jobs cancel`` and ``bundles cancel``: what they ask for, and what they say of each job."""

import json
from typing import Any

import pytest

from pgtasks import App, group
from pgtasks.db import operations
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


@pytest.fixture
def terminates(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Fills with what was asked of running jobs."""
    asked: list[bool] = []
    cancel_jobs = operations.cancel_jobs

    def recorded(ids: Any, reason: str = "cancelled", *, terminate: bool = True) -> Any:
        asked.append(terminate)
        return cancel_jobs(ids, reason, terminate=terminate)

    monkeypatch.setattr(operations, "cancel_jobs", recorded)
    return asked


def test_each_job_is_said_to_be_cancelled_or_asked_to_stop(
    command: Command, echo: Any, worker: SimulatedWorker, terminates: list[bool]
):
    running = echo.delay().id
    worker.claim_one()
    waiting = echo.delay().id

    said = command("jobs", "cancel", "-f", running, waiting).stdout

    assert f"{running}  asked to stop\n" in said
    assert f"{waiting}  cancelled\n" in said
    assert said.endswith("cancelled 1 job\n1 job running: asked to stop\n")
    assert terminates == [True]
    assert echo.app.job(running).cancel_requested
    assert echo.app.job(waiting).state == "cancelled"


def test_a_running_job_may_be_left_to_end(
    command: Command, echo: Any, worker: SimulatedWorker, terminates: list[bool]
):
    running = echo.delay().id
    held = worker.claim_one()

    said = command("jobs", "cancel", "-f", "--no-terminate", running).stdout
    worker.succeed(held)

    assert f"{running}  asked not to be retried\n" in said
    assert terminates == [False]
    assert echo.app.job(running).state == "succeeded"


def test_as_json_there_are_three_lists(command: Command, echo: Any, worker: SimulatedWorker):
    ended, running = echo.delay().id, echo.delay().id
    worker.succeed(worker.claim_one())
    worker.claim_one()
    waiting = echo.delay().id

    by_filter = json.loads(command("jobs", "cancel", "-f", "--task", "echo", "--json").stdout)
    by_id = command("jobs", "cancel", "-f", ended, "--json", code=1)

    assert by_filter == {"cancelled": [waiting], "requested": [running], "left": []}
    assert json.loads(by_id.stdout) == {"cancelled": [], "requested": [], "left": [ended]}
    assert f"job {ended} is succeeded: what is finished cannot be cancelled" in by_id.stderr


def test_of_many_jobs_only_the_number_is_said(command: Command, echo: Any):
    echo.app.enqueue_many([echo.s(n) for n in range(51)])

    assert command("jobs", "cancel", "-f", "-t", "echo").stdout == "cancelled 51 jobs\n"


@pytest.mark.parametrize(
    ("option", "words"), [([], "asked to stop"), (["--no-terminate"], "asked not to be retried")]
)
def test_members_of_a_bundle_are_cancelled_alike(
    command: Command,
    echo: Any,
    worker: SimulatedWorker,
    terminates: list[bool],
    option: list[str],
    words: str,
):
    bundle = group([echo.s(1), echo.s(2)]).apply()
    running = worker.claim_one().id
    [waiting] = {one.id for one in bundle} - {running}

    said = command("bundles", "cancel", "-f", *option, bundle.id).stdout

    assert f"{running}  {words}\n" in said
    assert f"{waiting}  cancelled\n" in said
    assert said.endswith(f"cancelled 1 job\n1 job running: {words}\n")
    assert terminates == [not option]
