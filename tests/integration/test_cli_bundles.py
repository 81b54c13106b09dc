"""``pgtasks bundles`` and ``jobs`` on graphs: what waits for what, why it did not run, how it starts again."""

import json
from typing import Any

import pytest

from pgtasks import App, chain, chord, group
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture
def tasks(app: App) -> dict[str, Any]:
    def run(*args: Any) -> None: ...

    return {name: app.task(name=name)(run) for name in "abcde"}


class Broken:
    """A graph of which the second member of a group failed: ``a | group(b, c | d) | e, which on failure d``."""

    def __init__(self, tasks: dict[str, Any], worker: SimulatedWorker) -> None:
        a, b, c, d, e = tasks.values()
        self.result: Any = chain(a.s(), group(b.s(), c.s() | d.s()), e.s().on_error(d.s()), a.s()).apply(
            type="import", origin="nightly"
        )  # fmt: skip
        worker.succeed(worker.claim_one(), 1)
        [first, second] = worker.claim()
        worker.succeed(first, 1)
        worker.fail(second, message="boo")
        worker.run_all()  # the callback for failure
        self.failed = second.id
        body: Any = self.result.parent
        self.body: Any = body
        self.group: Any = body.parent


@pytest.fixture
def broken(tasks: dict[str, Any], worker: SimulatedWorker) -> Broken:
    return Broken(tasks, worker)


def test_groups_are_listed_and_steps_are_not(command: Command, broken: Broken):
    [found] = json.loads(command("bundles", "list", "--json").stdout)
    text = command("bundles", "list", "--failed", "--type", "import").stdout

    assert found["id"] == broken.group.id
    assert (found["total"], found["remaining"], found["failed"]) == (2, 0, 1)
    assert text.splitlines()[1].split()[:7] == [
        broken.group.id, "import", "nightly", "failed", "2", "2", "1",
    ]  # fmt: skip


def test_a_bundle_shows_members_in_steps_failures_and_what_waits_for_it(
    command: Command, broken: Broken
):
    shown = command("bundles", "show", broken.group.id)
    found = json.loads(command("bundles", "show", broken.group.id, "--json").stdout)

    members, failures, waiters = shown.stdout.split("\n\n")[1:]
    member, body = broken.group[1].id, broken.body.id
    assert members.split() == ["state", "jobs", "succeeded", "1", "cancelled", "1"]
    assert f"{member}  d     cancelled        0  did not run: {broken.failed} failed" in failures
    assert waiters.startswith("waiting for it\n")
    assert f"{body}  e     cancelled        0  did not run: {member} failed" in waiters
    assert shown.stderr == (
        f"start it again from what failed: pgtasks bundles retry-failed {broken.group.id}\n"
    )
    assert found["members"] == {"succeeded": 1, "cancelled": 1}
    assert [job["id"] for job in found["unsuccessful"]] == [member]
    assert [job["id"] for job in found["waiters"]] == [body]
    assert "args" not in found["waiters"][0]


def test_long_lists_of_failures_are_cut(command: Command, tasks, worker):
    result = group(tasks["a"].s() for _ in range(30)).apply()
    worker.fail(worker.claim())

    text = command("bundles", "show", result.id).stdout

    assert text.splitlines()[-1] == "… 20 more"
    assert text.count("ValueError: no") == 10


def test_what_waits_for_a_bundle_is_shown_whatever_it_does(command: Command, tasks, worker):
    a, b, c, _, _ = tasks.values()
    alone = chord([a.s()], b.s()).apply()
    linked = chord([a.s()], b.s().set(link=c.s())).apply()
    grouped = (group(a.s(), a.s()) | group(b.s(), c.s())).apply()

    def waiters(result: Any) -> list[str]:
        found = json.loads(command("bundles", "show", result.parent.id, "--json").stdout)
        return sorted(f"{job['task']} {job['state']}" for job in found["waiters"])

    def all_three() -> list[list[str]]:
        return [waiters(result) for result in (alone, linked, grouped)]

    seen = [all_three()]
    worker.succeed(worker.claim(tasks=["a"]), 1)
    seen.append(all_three())
    held = worker.claim()
    seen.append(all_three())
    worker.succeed(held)
    seen.append(all_three())

    states = ["blocked", "ready", "running", "succeeded"]
    assert seen == [
        [[f"b {state}"], [f"b {state}"], [f"b {state}", f"c {state}"]] for state in states
    ]


def test_retry_failed_asks_and_starts_a_graph_again_from_where_it_broke(
    command: Command, app: App, broken: Broken, worker: SimulatedWorker
):
    declined = command("bundles", "retry-failed", broken.group.id, code=1, input="n\n")
    untouched = [job.state for job in app.graph(broken.result)]
    asked = command("bundles", "retry-failed", broken.group.id, input="y\n")
    ready = [job.id for job in app.jobs("ready")]
    again = command("bundles", "retry-failed", broken.group.id, "--force")

    assert "1 of 2 jobs without success" in declined.stderr
    assert "blocked" not in untouched
    assert asked.stdout == "retried 1 job; 4 jobs of the graph waiting\n"
    assert ready == [broken.failed]
    assert again.stdout == "nothing failed in this bundle\n"
    assert worker.run_all(result=1) == 4
    assert broken.result.get(timeout=5) == 1


def test_retry_failed_says_as_json_what_is_ready(command: Command, broken: Broken):
    found = json.loads(command("bundles", "retry-failed", "-f", broken.group.id, "--json").stdout)

    assert found == {"id": broken.group.id, "retried": [broken.failed], "waiting": 4}


def test_a_job_that_waits_shows_for_what(command: Command, tasks, worker):
    a, b, c, d, _ = tasks.values()
    result: Any = chain(a.s(), group(b.s(), c.s()), d.s().on_error(a.s())).apply(type="import")
    root, header = result.parent.parent, result.parent
    errback = next(job for job in tasks["a"].app.graph(result) if job.after_on == "failure")

    def line(id: str, name: str) -> str:
        lines = command("jobs", "show", id).stdout.splitlines()
        [found] = [line for line in lines if line.startswith(f"{name} ")]
        return found.removeprefix(name).strip()

    assert line(header[0].id, "waits for") == f"job {root.id} (a, ready), takes its result"
    assert line(result.id, "waits for") == (
        f"group {header.id} (import, 0 of 2 done), takes its results"
    )
    assert line(errback.id, "waits for") == (
        f"job {result.id} (d, blocked), takes its id, runs if that fails"
    )
    assert line(header[1].id, "bundle") == f"{header.id} (member 1)"
    worker.succeed(worker.claim_one(), 1)
    assert line(header[0].id, "waited for") == f"job {root.id} (a, succeeded), takes its result"


def test_a_job_in_a_step_is_shown_in_the_group_around_it(command: Command, tasks):
    a, b, c, _, _ = tasks.values()
    result = group(a.s().set(link=c.s()), b.s()).apply()

    assert f"bundle    {result.id} (member 0)" in command("jobs", "show", result[0].id).stdout
    assert "bundle" not in command("jobs", "show", chain(a.s(), b.s()).apply().parent.id).stdout  # type: ignore[union-attr]


def test_a_list_of_jobs_says_what_blocked_ones_wait_for(command: Command, tasks):
    a, b, c, d, e = tasks.values()
    (chain(a.s(), group(b.s(), c.si())) | d.s().on_error(e.s())).apply()

    text = command("jobs", "list", "--state", "blocked").stdout

    notes = {line.split()[1]: line.partition("+00:00")[2].strip() for line in text.splitlines()[1:]}
    assert notes == {
        "b": "waits for a result",
        "c": "waits",
        "d": "waits for results",
        "e": "waits for a failure",
    }


def test_members_in_steps_are_listed_as_members(command: Command, broken: Broken):
    found = json.loads(command("jobs", "list", "--bundle", broken.group.id, "--json").stdout)

    assert {job["id"] for job in found} == {one.id for one in broken.group}


def test_a_job_that_did_not_run_shows_what_failed_and_how_to_start_it_again(
    command: Command, broken: Broken
):
    shown = command("jobs", "show", broken.group[1].id)

    lines = shown.stdout.splitlines()
    assert f"because     job {broken.failed} (c) ended failed: ValueError: boo" in lines
    assert f"waited for  job {broken.failed} (c, failed), takes its result" in lines
    command_said = shown.stderr.removeprefix("start it again from what failed: pgtasks ").split()
    retried = command(*command_said, "-f")
    assert "retried 1 job" in retried.stdout


def test_a_job_that_did_not_run_is_not_retried_alone_and_says_why(command: Command, broken: Broken):
    said = command("jobs", "retry", broken.result.id, code=1).stderr
    many = command("jobs", "retry", "-f", "--state", "cancelled")

    assert f"job {broken.result.id} did not run, since job " in said
    assert " failed: start it again from there by pgtasks bundles retry-failed " in said
    assert many.stdout == "retried 0 jobs\n"
    assert many.stderr.startswith("left 3 jobs as they are")
    command(*said.partition(" by pgtasks ")[2].split(), "-f")


def test_a_job_that_was_cancelled_while_it_waited_is_retried_with_its_graph(
    command: Command, app: App, tasks, worker
):
    result: Any = chain(tasks[name].s() for name in "abc").apply()
    cancelled = result.parent.id
    command("jobs", "cancel", "-f", cancelled)

    said = command("jobs", "retry", cancelled, code=1).stderr
    retried = command(*said.partition(" by pgtasks ")[2].split(), "-f")

    assert (
        f"job {cancelled} did not run, since it was cancelled before it had what it takes" in said
    )
    assert retried.stdout == "retried 0 jobs; 2 jobs of the graph waiting\n"
    assert worker.run_all(result=1) == 3
    assert app.job(result.id).state == "succeeded"


def test_the_last_job_of_a_graph_that_was_cancelled_while_it_waited_is_retried_by_what_the_refusal_says(
    command: Command, app: App, tasks, worker
):
    result: Any = chain(tasks[name].s() for name in "ab").apply()
    command("jobs", "cancel", "-f", result.id)

    said = command("jobs", "retry", result.id, code=1).stderr
    again = command(*said.partition(" by pgtasks ")[2].split(), "-f")

    assert again.stdout == "retried 0 jobs; 1 job of the graph waiting\n"
    assert worker.run_all(result=1) == 2
    assert app.job(result.id).state == "succeeded"


def test_what_a_job_was_before_it_was_replaced_is_shown(command: Command, app: App, tasks, worker):
    from pgtasks.graph import compile_graph

    a, b, c, _, _ = tasks.values()
    id = a.delay().id
    held = worker.claim_one()
    graph = compile_graph(b.s() | c.s(), options={"task_id": id}).replacement()
    worker.finish(held, "replace", result=graph)

    assert command("jobs", "show", id).stdout.endswith(
        "earlier attempts\n  a put this in its place\n"
    )


def test_cancelling_a_bundle_cancels_what_its_members_wait_for(command: Command, app: App, tasks):
    a, b, c, d, _ = tasks.values()
    result: Any = (group(a.s(), b.s() | c.s()) | d.s()).apply()

    said = command("bundles", "cancel", result.parent.id, input="y\n").stdout

    assert said.splitlines()[-1] == "cancelled 3 jobs"
    assert {job.task: f"{job.state}: {job.reason}" for job in app.graph(result)} == {
        "a": "cancelled: cancelled",
        "b": "cancelled: cancelled",
        "c": "cancelled: cancelled",
        "d": "cancelled: what it waited for failed",
    }


def test_deleting_a_bundle_takes_the_steps_in_it(
    command: Command, app: App, connection, tasks, worker
):
    a, b, c, d, _ = tasks.values()
    result: Any = (group(a.s().set(link=c.s()), b.s().set(link=c.s())) | d.s()).apply()
    command("bundles", "delete", "-f", result.parent.id, code=1)
    worker.run_all(result=1)

    command("bundles", "delete", result.parent.id, input="y\n")

    assert connection.execute("select from pgtasks.job_bundle").fetchall() == []
    assert sorted(job.task for job in app.jobs()) == ["c", "c", "d"]
