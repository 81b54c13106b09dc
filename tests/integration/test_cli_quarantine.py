"""A job that took its process down too often: how it is listed and shown, and how it comes back."""

import json
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgtasks import App, JobError
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import SimulatedWorker

KILLED = {
    "type": "pgtasks.Crash",
    "message": "the child process 42 was killed by signal 9 (SIGKILL); its peak memory was 31 MB",
    "traceback": "",
    "args": None,
    "signal": 9,
    "exit_code": None,
    "peak_memory": 32505856,
    "stderr": "loading the model\nnearly \x1b[31mthere\n",
}
EXITED = {
    **KILLED,
    "message": "the child process 43 exited with code 3; its peak memory was 30 MB",
    "signal": None,
    "exit_code": 3,
    "peak_memory": 31457280,
    "stderr": "",
}


@pytest.fixture
def quarantined(app: App, worker: SimulatedWorker, connection: psycopg.Connection[Any]) -> str:
    """The id of a job with two crashes before the last one."""

    @app.task(name="shop.render")
    def render() -> None: ...

    id = render.delay().id
    attempts = [
        {
            "attempt": n,
            "worker_id": worker.id,
            "started_at": None,
            "stopped_at": None,
            "error": error,
        }
        for n, error in ((1, EXITED), (2, KILLED))
    ]
    connection.execute(
        "update pgtasks.job set crashes = 2, attempt = 2, attempts = %s", [Jsonb(attempts)]
    )
    worker.finish(worker.claim_one(), "quarantined", error=KILLED)
    return id


def test_it_is_listed_with_what_killed_it_and_its_last_words(command: Command, quarantined: str):
    listed = command("jobs", "list", "--state", "quarantined").stdout

    assert quarantined in listed
    assert r"crashed, signal 9 (SIGKILL), peak memory 31 MB: nearly \x1b[31mthere" in listed


def test_it_is_shown_with_all_that_is_known_of_each_crash(command: Command, quarantined: str):
    shown = command("jobs", "show", quarantined).stdout
    before, _, last = shown.partition("\nerror\n")

    assert "state     quarantined" in before
    assert "pgtasks.Crash: the child process 43 exited with code 3" in before
    assert "       exit code    3\n       peak memory  30 MB\n" in before
    assert "pgtasks.Crash: the child process 42 was killed by signal 9 (SIGKILL)" in before
    assert last == (
        "  pgtasks.Crash: the child process 42 was killed by signal 9 (SIGKILL); its peak memory was 31 MB\n"
        "    signal       9 (SIGKILL)\n"
        "    peak memory  31 MB\n"
        "    its last lines on stderr:\n"
        "      loading the model\n"
        "      nearly \\x1b[31mthere\n"
    )


def test_as_json_it_has_the_facts_as_they_are_stored(command: Command, quarantined: str):
    [listed] = json.loads(command("jobs", "list", "-s", "quarantined", "--json").stdout)
    shown = json.loads(command("jobs", "show", quarantined, "--json").stdout)

    # Of a crash no job is to blame; what is not there is null, as an exit code is.
    killed, exited = {**KILLED, "dependency": None}, {**EXITED, "dependency": None}
    assert listed["error"] == shown["error"] == killed
    assert [one["error"] for one in shown["attempts"]] == [exited, killed]


def test_a_retry_brings_it_back_with_its_crashes_forgotten_but_not_their_record(
    command: Command, app: App, worker: SimulatedWorker, quarantined: str
):
    said = command("jobs", "retry", quarantined).stdout

    job = app.job(quarantined)
    assert said == "retried 1 job\n"
    assert (job.state, job.attempt, job.crashes) == ("ready", 0, 0)
    assert [one.error and one.error.exit_code for one in job.attempts] == [3, None, None]
    assert "before: crashed, signal 9 (SIGKILL)" in command("jobs", "list").stdout
    worker.succeed(worker.claim_one())
    assert app.job(quarantined).state == "succeeded"


def test_odd_facts_are_left_out_and_not_refused():
    error = JobError.from_json(
        {
            "type": "pgtasks.Crash",
            "signal": "9",
            "exit_code": True,
            "peak_memory": 1.5,
            "stderr": None,
        }
    )

    assert error == JobError(type="pgtasks.Crash", message="")


def test_an_unknown_signal_is_shown_by_its_number():
    from pgtasks_cli.crash import facts, summary

    error = JobError(type="pgtasks.Crash", message="it died", signal=255)

    assert facts(error) == {"signal": "255"}
    assert summary(error) == "crashed, signal 255"
    assert summary(JobError(type="pgtasks.Crash", message="it died")) == "it died"
