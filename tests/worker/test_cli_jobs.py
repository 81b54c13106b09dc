"""``pgtasks jobs`` on what real workers did: what is cancelled while it runs, and what crashed too often."""

import json
import re

import pytest

from pgtasks import App, JobState
from tests.fixtures import crashing_app, sample_app
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


@pytest.mark.parametrize(
    ("code", "signal", "words"),
    [(None, 9, "was killed by signal 9 (SIGKILL)"), (3, None, "exited with code 3")],
)
def test_a_job_that_crashes_three_times_is_shown_with_each_cause_and_can_be_retried(
    dsn: str, workers: Workers, command: Command, code: int | None, signal: int | None, words: str
):
    crashing = crashing_app.app
    crashing.dsn = dsn
    workers.start("tests.fixtures.crashing_app")
    id = crashing_app.crash.delay(code).id

    def quarantined() -> None:
        assert crashing.job(id).state is JobState.QUARANTINED

    eventually(quarantined, 20.0)
    crashing.close()
    listed = command("jobs", "list", "--state", "quarantined").stdout
    shown = command("jobs", "show", id).stdout
    document = json.loads(command("jobs", "show", id, "--json").stdout)
    retried = command("jobs", "retry", id).stdout

    assert re.search(
        r"crashed, (signal 9 \(SIGKILL\)|exit code 3), peak memory \d+ MB: it is too large", listed
    )
    assert shown.count(words) == 3
    assert shown.endswith(
        "    its last lines on stderr:\n      opening the file\n      it is too large\n"
    )
    causes = [*(one["error"] for one in document["attempts"]), document["error"]]
    assert [(one["type"], one["signal"], one["exit_code"]) for one in causes] == [
        ("pgtasks.Crash", signal, code)
    ] * 3
    assert all(one["peak_memory"] > 2**20 for one in causes)
    assert all(one["stderr"].strip().endswith("it is too large") for one in causes)
    assert retried == "retried 1 job\n"
