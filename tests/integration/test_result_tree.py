"""Where a result stands among others: its parent, its children, and the way through all of them."""

import json
from typing import Any

import psycopg
import pytest

from pgtasks import (
    App,
    AsyncResult,
    ChordError,
    GroupResult,
    IncompleteStream,
    NotFoundError,
    chain,
    chord,
    group,
)
from pgtasks.ids import new_id
from pgtasks.result import result_from_tuple
from tests.fixtures.bundles import insert_bundle, insert_job, insert_step
from tests.fixtures.waiting import inside_a_task


def follow(connection: psycopg.Connection[Any], root: str, *jobs: str) -> None:
    """Let jobs name the one that enqueued them or that they follow, which is the first of its graph."""
    connection.execute(
        "update pgtasks.job set parent_id = %(root)s, root_id = %(root)s where id = any(%(ids)s::uuid[])",
        {"root": root, "ids": list(jobs)},
    )
    connection.execute(
        "update pgtasks.job_bundle b set root_id = %s from pgtasks.job j"
        " where j.id = any(%s::uuid[]) and b.id in (j.bundle_id, j.after_bundle_id)",
        [root, list(jobs)],
    )


# Parents


def test_a_step_has_the_job_of_the_step_before_for_its_parent(app, connection):
    first_step, first = insert_step(connection)
    second_step, second = insert_step(connection, after=first_step)
    last = insert_job(connection, after=second_step, after_on="success")

    result = app.result(last)

    assert [one.id for one in (result.parent, result.parent.parent)] == [second, first]
    assert result.parent.task_name == "echo"
    assert result.parent.parent.parent is None


def test_what_waits_for_a_group_has_it_for_its_parent(app, connection):
    step, first = insert_step(connection)
    header = insert_bundle(connection, total=2)
    members = [
        insert_job(connection, header, index=n, after=step, after_on="success") for n in (0, 1)
    ]
    body = insert_job(connection, after=header, after_on="success", takes="results")

    parent = app.result(body).parent

    assert isinstance(parent, GroupResult)
    assert (parent.id, [one.id for one in parent.children]) == (header, members)
    assert parent.parent == app.result(first)
    assert GroupResult(new_id(), app).parent is None


def test_a_parent_is_known_after_all_is_finished(app, connection, worker):
    step, first = insert_step(connection)
    last = insert_job(connection, after=step, after_on="success", takes="result")
    while held := worker.claim():
        worker.succeed(held, 1)

    assert app.result(last).state == "SUCCESS"
    assert app.result(last).parent.get(timeout=5) == 1
    assert app.result(last).parent.id == first


def test_the_database_is_asked_once_and_never_if_the_parent_is_said(app, connection, statements):
    step, _ = insert_step(connection)
    job = insert_job(connection, after=step)
    parent = app.result(new_id())

    result = app.result(job)
    assert result.parent is result.parent
    assert [one.name for one in statements] == ["get_parent"]
    statements.clear()
    assert AsyncResult(job, app, parent=parent).parent is parent
    result.parent = parent
    assert (result.parent, app.AsyncResult(job, parent=parent).parent) == (parent, parent)
    assert statements == []


# Children


@pytest.fixture
def double(app: App) -> Any:
    @app.task(name="double")
    def double(n: int) -> int:
        return 2 * n

    return double


def test_children_are_what_a_job_enqueued_and_groups_are_one_child(app, double, worker, connection):
    parent = double.delay(1)
    with inside(app, parent):
        first = double.delay(2)
        members = group(double.s(n) for n in (3, 4)).apply()
        last = double.delay(5)
    double.delay(6)

    children = parent.children

    assert children == [first, members, last]
    assert [type(one) for one in children] == [AsyncResult, GroupResult, AsyncResult]
    worker.run_all()
    assert parent.children == children
    assert (first.children, app.result(new_id()).children) == ([], [])


def inside(app: App, job: AsyncResult[Any]) -> Any:
    return inside_a_task(app, id=job.id)


def test_a_grandchild_is_found_by_the_root_of_all(app, double):
    parent = double.delay(1)
    with inside(app, parent):
        child = double.delay(2)
    with inside_a_task(app, id=child.id, root_id=parent.id):
        grandchild = double.delay(3)

    assert (parent.children, child.children) == ([child], [grandchild])


def test_a_member_that_is_a_step_counts_for_its_group(app, connection):
    members = insert_bundle(connection, total=1)
    parent = insert_job(connection)
    _, in_group = insert_step(connection, within=members)
    _, alone = insert_step(connection)
    follow(connection, parent, in_group, alone)

    assert app.result(parent).children == [app.group_result(members), app.result(alone)]


def test_collect_waits_for_all_that_came_of_a_job(app, double, worker):
    parent = double.delay(1)
    with inside(app, parent):
        members = group(double.s(n) for n in (2, 3)).apply()
        child = double.delay(4)
    with inside_a_task(app, id=child.id, root_id=parent.id):
        grandchild = double.delay(5)
    for held in worker.claim():
        worker.succeed(held, json.loads(held.args)[0])

    collected = list(parent.collect(timeout=5))

    assert collected == [
        (parent, 1),
        (members, [2, 3]),
        (child, 4),
        (members[0], 2),
        (members[1], 3),
        (grandchild, 5),
    ]
    assert [before for before, _ in parent.iterdeps()] == [
        None,
        parent,
        parent,
        members,
        members,
        child,
    ]


def test_the_way_through_asks_once_a_level_and_once_a_group(app, double, worker, statements):
    parent = double.delay(1)
    with inside(app, parent):
        members = group(double.s(n) for n in range(50)).apply()
        for n in range(50):
            double.delay(n)
    worker.run_all()
    statements.clear()

    nodes = [node for _, node in parent.iterdeps()]

    assert len(nodes) == 1 + 1 + 50 + 50
    assert nodes[1] == members
    assert [one.name for one in statements] == [
        *("get_states", "get_children"),
        *("get_states", "list_bundles", "get_children", "get_bundle_members"),
        *("get_states", "get_children"),
    ]


def test_the_way_through_ends_at_what_is_not_finished(app, double, worker):
    parent = double.delay(1)
    with inside(app, parent):
        child = double.delay(2)
    worker.succeed(worker.claim_one(), 1)

    way = parent.iterdeps()
    seen = [node for _, node in (next(way), next(way))]

    assert seen == [parent, child]
    with pytest.raises(IncompleteStream, match=f"<AsyncResult {child.id}> is not finished"):
        next(way)
    assert [node for _, node in parent.iterdeps(intermediate=True)] == [parent, child]


async def test_the_a_twins_know_the_same_tree(async_app, connection, worker):
    step, first = insert_step(connection)
    last = insert_job(connection, after=step, after_on="success", takes="result")
    follow(connection, first, last)
    result = async_app.result(first)
    worker.run_all(result=1)

    assert (await async_app.result(last).aparent()).id == first
    assert [one.id for one in await result.achildren()] == [last]
    assert [one.id async for _, one in result.aiterdeps()] == [first, last]
    assert [value async for _, value in result.acollect(timeout=5)] == [1, 1]
    header = insert_bundle(connection, total=1)
    insert_job(connection, header, index=0, after=step, after_on="success")
    assert (await async_app.group_result(header).aparent()).id == first
    with pytest.raises(IncompleteStream):
        _ = [one async for one in async_app.result(insert_job(connection)).aiterdeps()]
    await async_app.result(last).aforget()
    assert await result.aget(timeout=5) is None


# Of a canvas


def test_a_canvas_is_found_from_the_ids_of_its_jobs(app, double, worker):
    total = app.task(name="total")(sum)
    result: Any = chain(double.s(1), group(double.s(), double.s()), total.s()).apply_async()
    header = result.parent
    first = header.parent

    assert app.result(result.id).parent == header
    assert app.group_result(header.id).parent == first
    assert list(app.group_result(header.id)) == list(header)
    assert app.result(first.id).children == [header]
    assert [node.id for _, node in first.iterdeps(intermediate=True)] == [first.id]
    while held := worker.claim():
        worker.succeed(held, 7)
    assert [value for _, value in app.result(first.id).collect(timeout=5)] == [7, [7, 7], 7, 7]


def test_the_end_of_a_broken_canvas_raises_what_broke_it(app, double, worker):
    following: Any = chain(double.s(1), double.s(), double.s()).apply_async()
    body: Any = chord([double.s(2), double.s(3)])(app.task(name="total")(sum).s())
    first, *header = worker.claim()
    worker.fail(first, "KeyError", "gone")
    worker.fail(header[0], "ValueError", "no")
    worker.succeed(header[1], 1)

    with pytest.raises(KeyError, match="gone"):
        following.get(timeout=5)
    with pytest.raises(
        ChordError, match=rf"^Dependency {body.parent[0].id} raised ValueError\('no'\)"
    ):
        body.get(timeout=5)
    states = (following.state, following.parent.state, body.state, body.failed())
    assert states == ("FAILURE", "FAILURE", "FAILURE", True)
    assert body.job().error.dependency == body.parent[0].id


# Forgetting


def test_forget_goes_back_through_what_is_finished(app, connection, worker):
    step, first = insert_step(connection)
    second_step, second = insert_step(connection, after=step)
    last = insert_job(connection, after=second_step, after_on="success", takes="result")
    worker.succeed(worker.claim(), 1)
    app.result(last).forget()
    app.result(second).forget()
    kept = app.result(first).get(timeout=5)
    worker.succeed(worker.claim(), 2)

    app.result(second).forget()

    assert kept == 1
    assert [app.result(one).get(timeout=5) for one in (first, second)] == [None, None]


# Its row


def test_a_handle_tells_its_row(app, double, worker):
    result = double.apply_async((3,), queue="mail", priority=2)
    other = app.result(result.id)
    waiting = (other.date_done, other.retries, other.worker, other.info)
    worker.retry(worker.claim_one("mail"), delay=0)
    worker.succeed(worker.claim_one("mail"), 6)

    assert waiting == (None, 0, None, None)
    assert (other.name, other.args, other.kwargs, other.queue) == ("double", [3], {}, "mail")
    assert (other.retries, other.worker, other.info) == (1, worker.id, 6)
    assert other.date_done == other.job().stopped_at is not None


async def test_a_handle_says_whether_its_job_exists(app, async_app, double):
    result = double.delay(1)
    gone = app.result(new_id())

    assert (result.exists(), gone.exists()) == (True, False)
    assert await async_app.result(result.id).aexists()
    assert not await async_app.result(gone.id).aexists()
    with pytest.raises(NotFoundError):
        gone.name  # noqa: B018 (a property that asks)


def test_a_saved_tree_of_ids_answers_again(app, double, worker):
    members = group(double.s(n) for n in (1, 2)).apply()
    saved = json.loads(json.dumps(AsyncResult(new_id(), app, parent=members).as_tuple()))
    worker.run_all(result=7)

    restored = result_from_tuple(saved, app).parent

    assert restored is not None
    assert restored.get(timeout=5) == [7, 7]
    assert json.loads(json.dumps(app.group_result(members.id).as_tuple())) == saved[0][1]
