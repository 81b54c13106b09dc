"""``pgtasks jobs graph``: a canvas as a tree, from what stands in the database."""

import json
import re
from typing import Any

import pytest

from pgtasks import App, chain, chord, group
from pgtasks.context import having, request_var
from pgtasks.ids import new_id
from pgtasks.worker.eagerly import eager_request
from pgtasks_cli import output
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import SimulatedWorker

ID = re.compile(r"(graph|  )(?: |\b)[0-9a-f-]{36}")


@pytest.fixture
def tasks(app: App) -> dict[str, Any]:
    def run(*args: Any) -> None: ...

    return {name: app.task(name=name)(run) for name in "abcde"}


def drawn(text: str) -> list[str]:
    """Return the lines without ids."""
    return [ID.sub(lambda found: found[1].strip(), line) for line in text.splitlines()]


def test_steps_stand_below_each_other(command: Command, tasks, worker):
    result = chain(tasks[name].s() for name in "abcd").apply()
    worker.succeed(worker.claim_one(), 1)
    worker.claim_one()

    assert drawn(command("jobs", "graph", result.id).stdout) == [
        "graph  4 jobs: 2 blocked, 1 running, 1 succeeded",
        "├── a  succeeded",
        "├── then b  running",
        "├── then c  blocked  waits for b, takes its result",
        "└── then d  blocked  waits for c, takes its result",
    ]


def test_members_hang_on_their_group_with_what_leads_to_them(command: Command, tasks):
    a, b, c, d, e = tasks.values()
    result = (a.s() | group(b.s(), c.s() | d.s(), chord([b.s(), c.s()], d.si())) | e.s()).apply(
        type="import"
    )

    assert drawn(command("jobs", "graph", result.id).stdout) == [
        "graph  8 jobs: 7 blocked, 1 ready",
        "├── a  ready",
        "├── then group of 3 (import)  running  0 done",
        "│   ├── 0 b  blocked  waits for a, takes its result",
        "│   ├── 1 c  blocked  waits for a, takes its result",
        "│   │   └── then d  blocked  waits for c, takes its result",
        "│   └── 2 group of 2  running  0 done",
        "│       ├── 0 b  blocked  waits for a, takes its result",
        "│       ├── 1 c  blocked  waits for a, takes its result",
        "│       └── then d  blocked  waits for the group",
        "└── then e  blocked  waits for the group, takes its results",
    ]


def test_a_group_at_the_end_of_a_chain_in_a_group_is_part_of_that(command: Command, tasks):
    a, b, c, d, _ = tasks.values()
    result = group(a.s(), b.s() | group(c.s(), d.s())).apply()

    assert drawn(command("jobs", "graph", result[0].id).stdout) == [
        "graph  4 jobs: 2 blocked, 2 ready",
        "└── group of 3  running  0 done",
        "    ├── 0 a  ready",
        "    └── 1 b  ready",
        "        ├── then c  blocked  waits for b, takes its result",
        "        └── then d  blocked  waits for b, takes its result",
    ]


def test_callbacks_are_aside_of_the_line(command: Command, tasks):
    a, b, c, d, e = tasks.values()
    result = chain(
        a.s().set(link=d.s()), b.s().on_error(e.s()), c.s().set(link=[d.s(), e.s()])
    ).apply()

    assert drawn(command("jobs", "graph", result.id).stdout) == [
        "graph  7 jobs: 6 blocked, 1 ready",
        "├── a  ready",
        "│   └── then d  blocked  waits for a, takes its result",
        "├── then b  blocked  waits for a, takes its result",
        "│   └── on failure e  blocked  waits for a failure of b",
        "└── then c  blocked  waits for b, takes its result",
        "    ├── then d  blocked  waits for c, takes its result",
        "    └── then e  blocked  waits for c, takes its result",
    ]  # fmt: skip


def test_what_did_not_run_names_the_job_that_failed(command: Command, tasks, worker):
    a, b, c, d, _ = tasks.values()
    result = chain(a.s(), group(b.s(), c.s()), d.s(), a.si()).apply()
    worker.succeed(worker.claim_one(), 1)
    first, second = worker.claim()
    worker.fail(second, message="boo")
    worker.succeed(first, 1)

    lines = command("jobs", "graph", result.id).stdout.splitlines()

    assert drawn("\n".join(lines[:4])) == [
        "graph  5 jobs: 2 succeeded, 1 failed, 2 cancelled",
        "├── a  succeeded",
        "├── then group of 2  failed  2 done, 1 failed",
        "│   ├── 0 b  succeeded",
    ]
    assert lines[4].endswith(f"1 c  failed  {second.id}  ValueError: boo")
    assert [line.rpartition("  ")[2] for line in lines[5:]] == [
        f"did not run: {second.id} failed"
    ] * 2


def test_large_groups_are_cut_and_say_what_is_left_out(command: Command, tasks, worker):
    result = group([*(tasks["a"].s() for _ in range(200)), tasks["b"].s() | tasks["c"].s()]).apply()
    held = worker.claim()
    worker.succeed(held[:100])
    worker.fail(held[150])

    cut = drawn(command("jobs", "graph", result[7].id).stdout)
    shorter = drawn(command("jobs", "graph", result[7].id, "-n", "3").stdout)
    whole = drawn(command("jobs", "graph", result[7].id, "--shown", "500").stdout)

    assert len(cut) == 1 + 1 + 10 + 1
    assert cut[-1] == "    └── … 191 more: 99 running, 90 succeeded, 1 failed, 1 blocked"
    assert shorter[-1] == "    └── … 198 more: 99 running, 97 succeeded, 1 failed, 1 blocked"
    assert len(whole) == 1 + 1 + 201 + 1
    assert whole[-2:] == [
        "    └── 200 b  running",
        "        └── then c  blocked  waits for b, takes its result",
    ]


def test_what_a_job_enqueued_hangs_on_it(
    command: Command, app: App, tasks, worker: SimulatedWorker
):
    a, b, c, d, _ = tasks.values()
    result: Any = chain(a.s(), b.s()).apply()
    new = a.s().new_job()
    new.id = result.parent.id
    with having(request_var, eager_request(app, new, 1)):
        c.delay()
        group(c.s(), d.s()).apply()

    assert drawn(command("jobs", "graph", result.id).stdout) == [
        "graph  5 jobs: 1 blocked, 4 ready",
        "├── a  ready",
        "│   ├── enqueued c  ready",
        "│   └── enqueued group of 2  running  0 done",
        "│       ├── 0 c  ready",
        "│       └── 1 d  ready",
        "└── then b  blocked  waits for a, takes its result",
    ]


def test_what_replaced_a_job_stands_in_its_line(command: Command, app: App, tasks, worker):
    a, b, c, d, e = tasks.values()
    result = chain(a.s(), b.s(), e.s()).apply()
    worker.succeed(worker.claim_one(), 1)
    held = worker.claim_one()
    new = b.s().new_job()
    new.id, new.root_id = held.id, held.root_id
    with having(request_var, eager_request(app, new, 1)):
        from pgtasks.graph import compile_graph

        graph = compile_graph(c.s() | d.s(), options={"task_id": held.id}).replacement()
    worker.finish(held, "replace", result=graph)

    assert drawn(command("jobs", "graph", result.id).stdout) == [
        "graph  4 jobs: 2 blocked, 1 ready, 1 succeeded",
        "├── a  succeeded",
        "├── then c  ready",
        "├── then d  blocked  waits for c, takes its result",
        "└── then e  blocked  waits for d, takes its result",
    ]


def test_a_long_chain_is_drawn(command: Command, tasks):
    result = chain(tasks["a"].s() for _ in range(2000)).apply()

    lines = drawn(command("jobs", "graph", result.id).stdout)

    assert len(lines) == 2001
    assert lines[-1] == "└── then a  blocked  waits for a, takes its result"


def test_a_job_alone_is_a_graph_by_an_abbreviated_id(command: Command, tasks):
    id = tasks["a"].delay().id

    assert command("jobs", "graph", id[:-2]).stdout.splitlines() == [
        f"graph {id}  1 job: 1 ready",
        f"└── a  ready  {id}",
    ]


def test_json_has_jobs_and_bundles(command: Command, tasks):
    result = (tasks["a"].s() | group(tasks["b"].s(), tasks["c"].s()) | tasks["d"].s()).apply()

    found = json.loads(command("jobs", "graph", result.id, "--json").stdout)

    root, *rest = found["jobs"]
    assert found["root"] == root["id"] == root["root_id"]
    assert [job["task"] for job in found["jobs"]] == ["a", "b", "c", "d"]
    assert "args" not in root
    assert {(job["after_on"], job["takes"]) for job in rest} == {
        ("success", "result"),
        ("success", "results"),
    }
    assert sorted(one["kind"] for one in found["bundles"]) == ["group", "step"]


def test_an_unknown_job_has_no_graph(command: Command, dsn: str):
    id = new_id()

    assert f"no job has the id {id}" in command("jobs", "graph", id, code=1).stderr


def test_a_terminal_gets_colours_and_short_ids(
    command: Command, tasks, worker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    result: Any = chain(tasks["a"].s(), group(tasks["b"].s(), tasks["c"].s())).apply()
    worker.fail(worker.claim_one())

    text = command("jobs", "graph", result[0].id).stdout

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b[31mfailed\x1b[0m" in text
    assert f"a  failed  {result.parent.id[:18]}" in plain
    assert result.parent.id not in plain
    assert max(map(len, plain.splitlines())) <= 60
