"""A whole graph is found by any of its jobs: `App.graph`, and how the database looks for it."""

import inspect
from typing import Any

import pytest

from pgtasks import App, JobState, NotFoundError, chain, group
from pgtasks.context import having, request_var
from pgtasks.db import operations
from pgtasks.db.statements import Statement
from pgtasks.ids import new_id
from pgtasks.worker.eagerly import eager_request


@pytest.fixture(params=["sync", "async"])
def graph(request: pytest.FixtureRequest, async_app: App) -> Any:
    """Calls App.graph, or awaits its twin."""

    async def graph(id: Any) -> Any:
        value = async_app.graph(id) if request.param == "sync" else async_app.agraph(id)
        return await value if inspect.isawaitable(value) else value

    return graph


@pytest.fixture
def add(async_app: App) -> Any:
    @async_app.task(name="add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    return add


async def test_every_job_of_a_canvas_leads_to_all_of_it(add, graph):
    log = add.s()
    other = chain(add.s(1), add.s(2)).apply()
    result = (add.s(1) | group(add.s(2), add.s(3)) | add.s().on_error(log)).apply()

    found = await graph(result.id)

    assert len(found) == 5
    assert [job.id for job in found] == sorted(job.id for job in found)
    assert {job.root_id for job in found} == {found[0].id}
    for job in found:
        assert await graph(job.id) == found
    assert len(await graph(other)) == 2


async def test_what_is_finished_is_found_as_what_is_not(add, graph, worker):
    result = chain(add.s(1), add.s(2), add.s(3)).apply()
    worker.succeed(worker.claim_one(), 1)
    worker.fail(worker.claim_one())

    found = await graph(result.id)

    assert [job.state for job in found] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    ]
    assert [(job.after_on, job.takes) for job in found] == [
        (None, None),
        ("success", "result"),
        ("success", "result"),
    ]


async def test_what_no_longer_waits_and_is_in_no_bundle_is_found(add, graph, worker):
    result = chain(add.s(1), add.s(2)).apply()
    worker.succeed(worker.claim_one(), 1)
    ready = await graph(result.parent)
    held = worker.claim_one()
    running = await graph(result.parent)
    worker.succeed(held, 3)
    done = await graph(result.parent)

    states = [[str(job.state) for job in jobs] for jobs in (ready, running, done)]
    assert states == [["succeeded", one] for one in ("ready", "running", "succeeded")]


async def test_what_a_job_enqueues_is_in_its_graph_by_any_way(async_app, add, graph):
    alone = add.delay(1)
    new = add.s(1).new_job()
    new.id = alone.id
    with having(request_var, eager_request(async_app, new, 1)):
        children = [add.delay(2).id, chain(add.s(3), add.s(4)).apply().id]
    with having(request_var, eager_request(async_app, await_job(async_app, children[0]), 1)):
        grandchild = add.delay(5).id

    found = [job.id for job in await graph(grandchild)]

    assert found[0] == alone.id
    assert {*children, grandchild} < {*found}
    assert len(found) == 5
    assert [job.id for job in await graph(alone)] == found


def await_job(app: App, id: str) -> Any:
    """Return a job as one that is about to be written has it."""
    job = app.job(id)
    new = app.find_task(job.task).new_job(job.args, job.kwargs)
    new.id, new.root_id, new.parent_id = job.id, job.root_id, job.parent_id
    return new


async def test_a_job_alone_is_its_graph(add, graph):
    result = add.delay(1)

    assert [job.id for job in await graph(result)] == [result.id]


async def test_an_unknown_job_has_no_graph(graph):
    id = new_id()

    with pytest.raises(NotFoundError, match=f"no job has the id {id}"):
        await graph(id)


def test_bundles_tell_groups_from_steps(app, connection):
    @app.task(name="add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    (add.s(1) | group(add.s(2).on_error(add.s()), add.s(3)) | add.s()).apply()
    ids = [row[0] for row in connection.execute("select id::text from pgtasks.job_bundle")]

    steps = {one.id: one for one in app.bundles(ids=ids) if one.kind == "step"}
    [grouped] = app.bundles()

    assert (grouped.kind, grouped.parent_id, grouped.total) == ("group", None, 2)
    assert len(steps) == 2
    assert {one.parent_id for one in steps.values()} == {None, grouped.id}


def test_the_jobs_of_a_graph_are_looked_up_by_their_ids(connection):
    statement = operations.get_graph(new_id()).send(None)
    assert isinstance(statement, Statement)
    # An empty table is read whole whatever indexes it has.
    connection.execute("set enable_seqscan = off")

    told = connection.execute(f"explain {statement.sql}", statement.parameters)
    plan = "\n".join(line for (line,) in told)

    assert "Seq Scan on job" not in plan
    assert "id = ANY" in plan
