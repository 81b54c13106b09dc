"""The semantic cases of Celery's integration tests of canvas: what a job knows of its graph.

What is left out, and where pgtasks differs: see test_canvas_results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgtasks import (
    App,
    AsyncResult,
    GroupResult,
    chain,
    group,
)
from tests.fixtures.proj import (
    anywhere,
    collect_ids,
    describe,
    identity,
    ids,
    inner_replaced,
    parent_of_two,
    settled,
    spread,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "inner_replaced", "worker", "worker_of_proj"]

Make = Callable[[], Any]


# Ids: what a job knows of its graph


def test_a_chain_has_one_root_and_each_step_its_parent(worker: App):
    res: Any = chain(ids.si(i=i) for i in range(10))()

    res.get(timeout=10)

    line = [res]
    while line[-1].parent is not None:
        line.append(line[-1].parent)
    line.reverse()
    assert [one.get(timeout=10) for one in line] == [
        [line[0].id, line[i - 1].id if i else None, i] for i in range(10)
    ]


def test_members_of_a_group_have_the_step_before_it_for_their_parent(worker: App):
    g: Any = (ids.si(i=1) | ids.si(i=2) | group(ids.si(i=i) for i in range(3, 20)))()

    values = g.get(timeout=10)

    assert values == [[g.parent.parent.id, g.parent.id, i] for i in range(3, 20)]


def test_results_lead_from_the_end_of_a_chord_to_its_root(worker: App):
    res: Any = (
        ids.si(i=1)
        | ids.si(i=2)
        | group(ids.si(i=i) for i in range(3, 20))
        | collect_ids.s(i=20)
        | ids.si(i=21)
    )()

    last = res.get(timeout=10)

    body, header = res.parent, res.parent.parent
    second, root = header.parent, header.parent.parent
    assert isinstance(header, GroupResult)
    assert root.parent is None
    assert last == [root.id, body.id, 21]
    values, (root_id, _, value) = body.get(timeout=10)
    assert (root_id, value) == (root.id, 20)
    assert values == [[root.id, second.id, i] for i in range(3, 20)]
    assert second.get(timeout=10) == [root.id, root.id, 2]
    assert root.get(timeout=10) == [root.id, None, 1]


def test_a_result_looked_up_by_id_knows_its_parents(worker: App):
    res: Any = (ids.si(i=1) | group(ids.si(i=2), ids.si(i=3)) | collect_ids.s(i=4))()
    res.get(timeout=10)

    found: Any = worker.result(res.id)

    assert found.parent == res.parent
    assert found.parent.parent == res.parent.parent
    assert [one.id for one in found.parent] == [one.id for one in res.parent]


def test_a_request_knows_its_place(worker: App):
    res: Any = (describe.s(1) | group(describe.s(2), describe.s(3)))()

    first, second = res.get(timeout=10)
    root = res.parent.get(timeout=10)

    assert root["id"] == root["root_id"] == res.parent.id
    assert root["parent_id"] is None
    assert root["args"] == [1]
    assert (first["id"], second["id"]) == (res[0].id, res[1].id)
    assert first["group"] == second["group"] == res.id
    assert first["root_id"] == first["parent_id"] == root["id"]
    assert first["args"] == [root, 2]
    assert first["retries"] == 0


def test_a_request_knows_its_group_and_no_step(anywhere: App):
    linked = describe.s().set(link=identity.si(1))

    members: Any = group(describe.s(), linked, describe.s() | describe.si()).apply()
    steps: Any = (describe.s() | describe.si()).apply()

    assert [one["group"] for one in members.get(timeout=10)] == [members.id] * 3
    assert steps.get(timeout=10)["group"] is None
    assert steps.parent.get(timeout=10)["group"] is None


def test_a_request_knows_its_children(anywhere: App):
    assert parent_of_two.delay().get(timeout=10) == [0, 1, 3]


def test_what_a_job_enqueues_is_its_child_in_the_same_graph(worker: App):
    result = chain(identity.s([1, 2]), spread.s())()

    single_id = result.get(timeout=10)
    jobs = settled(result)

    root: Any = result.parent
    assert {job.root_id for job in jobs} == {root.id}
    assert len(jobs) == 2 + 1 + 3
    single = next(job for job in jobs if job.id == single_id)
    assert (single.parent_id, single.result) == (result.id, 2)
    assert [type(child) for child in result.children][:1] == [AsyncResult]
    assert sorted(job.result for job in jobs if job.parent_id == result.id)[:2] == [2, 2]
