"""Random graphs on real workers, whose children are killed: each comes to what a plain interpreter says."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look, Scale
from tests.fixtures import graph_app
from tests.fixtures.graph_plans import random_plan
from tests.fixtures.graph_runs import GraphRun
from tests.fixtures.graphs import Plan, Story, compare, interpret
from tests.fixtures.workers import RunningWorker, Workers

pytestmark = pytest.mark.chaos


@pytest.fixture
def house(server: TemporaryServer, look: Look, rng: random.Random) -> Iterator[GraphRun]:
    """Writes graphs and reads what became of them; workers run them."""
    graph_app.app.dsn = server.dsn
    try:
        yield GraphRun([look.open()], rng, simulated=False)
    finally:
        graph_app.app.close()


def kill_children_until_all_is_done(house: GraphRun, worker: RunningWorker, timeout: float) -> int:
    """Kill a child every now and then, until no job is left; return how many.

    None is killed while a job has two crashes: a third would end in quarantine.
    """
    end = time.monotonic() + timeout
    kills = 0
    while house.connection.execute("select 1 from pgtasks.job limit 1").fetchone():
        assert time.monotonic() < end, house.connection.execute(
            "select state, count(*) from pgtasks.job group by 1"
        ).fetchall()
        twice = house.connection.execute("select 1 from pgtasks.job where crashes > 1 limit 1")
        if (children := worker.children()) and not twice.fetchone():
            try:
                os.kill(house.chance.choice(children), signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                pass  # it has just ended by itself
        pause = time.monotonic() + house.chance.uniform(0.05, 0.2)
        while time.monotonic() < pause and worker.process.poll() is None:
            house.connection.execute("select pg_sleep(0.02)")
    return kills


def test_random_graphs_come_to_what_the_interpreter_says_though_children_are_killed(
    house: GraphRun, workers: Workers, tmp_path: Path, scale: Scale
) -> None:
    healed = tmp_path / "healed"
    seeds = [house.chance.randrange(2**32) for _ in range(scale(60, most=1000))]
    graphs: list[tuple[Plan, str, str]] = []
    for plan in map(random_plan, seeds):
        house.enqueue(plan)
        if house.root is not None:
            graphs.append((plan, house.top, house.root))

    environment = {"GRAPH_HEALED": str(healed), "GRAPH_WORK": "0.004"}
    worker = workers.start("tests.fixtures.graph_app", environment, concurrency=3)

    kills = kill_children_until_all_is_done(house, worker, timeout=100 + len(graphs))

    assert kills > 2
    house.assert_at_rest()
    for plan, _, root in graphs:
        assert_came_to(house, plan, root, interpret(plan))

    healed.touch()
    for _ in range(
        100
    ):  # first the graphs, then their callbacks, of each graph one after the other
        failed = house.all_failed([top for _, top, _ in graphs])
        if not failed:
            break
        for id in failed:
            if house.is_bundle(id):
                graph_app.app.retry_failed(id)
            else:
                graph_app.app.reset(id)
        kill_children_until_all_is_done(house, worker, timeout=100 + len(graphs))

    house.assert_at_rest()
    for plan, _, root in graphs:
        assert_came_to(house, plan, root, interpret(plan, healed=[graph_app.ALL]))
    assert worker.stop() == 0


def assert_came_to(house: GraphRun, plan: Plan, root: str, story: Story) -> None:
    """Assert that each job of a graph ended as it had to."""
    wrong = compare(story, house.found(root))
    assert not wrong, "\n".join([str(plan), *wrong])
