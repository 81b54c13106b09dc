"""``pgtasks jobs`` on what real workers did: what is cancelled while it runs, and what crashed too often."""

import json

from pgtasks import App, JobState
from tests.fixtures import sample_app
from tests.fixtures.commands import Command
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun


def test_a_running_job_that_is_cancelled_stops(
    app: App, workers: Workers, runs: Runs, gate: Gate, command: Command
):
    workers.start()
    id = sample_app.step.delay(runs.path, str(gate)).id
    wait_until_begun(runs, id)

    said = command("jobs", "cancel", "-f", id).stdout

    def stopped() -> None:
        assert app.job(id).state is JobState.CANCELLED

    assert f"{id}  asked to stop\n" in said
    eventually(stopped)


def test_a_running_job_that_is_cancelled_without_terminate_goes_on(
    app: App, workers: Workers, runs: Runs, gate: Gate, command: Command
):
    workers.start()
    result = sample_app.step.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, result.id)

    said = command("jobs", "cancel", "-f", "--no-terminate", result.id).stdout
    gate.open()

    assert f"{result.id}  asked not to be retried\n" in said
    assert result.get(timeout=10) == pid


def test_a_job_that_kills_its_process_three_times_is_shown_with_each_cause_and_can_be_retried(
    app: App, workers: Workers, runs: Runs, command: Command
):
    workers.start()
    id = sample_app.step.delay(runs.path, die=True).id

    def quarantined() -> None:
        assert app.job(id).state is JobState.QUARANTINED

    eventually(quarantined, 20.0)
    listed = command("jobs", "list", "--state", "quarantined").stdout
    shown = command("jobs", "show", id).stdout
    document = json.loads(command("jobs", "show", id, "--json").stdout)
    retried = command("jobs", "retry", id).stdout

    assert "crashed, signal 9 (SIGKILL), peak memory " in listed
    assert shown.count("was killed by signal 9 (SIGKILL)") == 3
    causes = [*(one["error"] for one in document["attempts"]), document["error"]]
    assert [(one["type"], one["signal"], one["exit_code"]) for one in causes] == [
        ("pgtasks.Crash", 9, None)
    ] * 3
    assert all(one["peak_memory"] > 2**20 for one in causes)
    assert retried == "retried 1 job\n"
