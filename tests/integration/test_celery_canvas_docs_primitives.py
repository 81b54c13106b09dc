"""Celery's canvas guide, continued: chains, groups, chords, map, starmap and chunks.

What is not here, and why, stands in `test_celery_canvas_docs`. Where pgtasks differs on purpose, a test says so:

- What a canvas takes is checked when it is written: what cannot be called raises TypeError in the caller.
- An errback of the old style runs as a job, as every callback does: it is seen, retried and found by `App.graph`.
- A chord's errback gets what its body ended with: the `ChordError`, under the body's id.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pgtasks import App, AsyncResult, ChordError, GroupResult, IncompleteStream, chain, chord, group
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    ExpectedError,
    add,
    another_task,
    anywhere,
    fail,
    forgetful,
    kept_by_class,
    log_error,
    log_result,
    mul,
    noted,
    on_chord_error,
    on_chord_error_bound,
    on_chord_error_by_id,
    raising_task,
    settled,
    temp,
    tsum,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "worker", "worker_of_proj"]


# Chains


def test_a_linked_task_is_a_child_that_takes_the_result(worker: App):
    res = add.apply_async((2, 2), link=mul.s(16))

    assert res.get(timeout=10) == 4
    [child] = res.children
    assert isinstance(child, AsyncResult)
    assert child.get(timeout=10) == 64


def test_collect_goes_through_all_that_came_of_it(worker: App):
    res = add.apply_async((2, 2), link=mul.s(16))
    settled(res)

    assert list(res.collect()) == [(res, 4), (res.children[0], 64)]
    assert [value for _, value in res.collect(intermediate=True)] == [4, 64]


def test_collect_refuses_a_graph_that_is_not_fully_formed(worker: App):
    res = add.apply_async((2, 2), countdown=3600, link=mul.s(16))

    with pytest.raises(IncompleteStream):
        list(res.iterdeps())
    assert list(res.iterdeps(intermediate=True)) == [(None, res)]
    res.revoke()


def test_as_many_tasks_are_linked_as_you_like(anywhere: App):
    key = new_id()
    s = add.s(2, 2)
    s.link(mul.s(4).set(link=log_result.s(key)))
    s.link(log_result.s(key))

    result = s.delay()

    assert result.get(timeout=10) == 4
    settled(result)
    assert sorted(noted(key)) == ["16", "4"]


@pytest.mark.parametrize("spelling", ["on_error", "link_error"])
def test_an_errback_gets_request_exception_and_traceback(anywhere: App, spelling: str):
    if spelling == "on_error":
        result = add.s(2, "2").on_error(log_error.s()).delay()
    else:
        result = add.apply_async((2, "2"), link_error=log_error.s())

    error = result.get(timeout=10, propagate=False)

    assert isinstance(error, TypeError)
    settled(result)
    assert noted(result.id) == [f"{result.id} {error!r} TypeError: {error}"]


def test_an_errback_does_not_run_after_a_success(anywhere: App):
    result = add.s(2, 2).on_error(log_error.s()).delay()

    assert result.get(timeout=10) == 4
    settled(result)
    assert noted(result.id) == []


def test_a_chain_shows_its_steps_and_gives_the_last_result(anywhere: App):
    res = chain(add.s(4, 4), mul.s(8), mul.s(10))

    assert repr(res) == "proj.tasks.add(4, 4) | proj.tasks.mul(8) | proj.tasks.mul(10)"
    assert res().get(timeout=10) == 640


def test_parents_lead_up_the_chain(anywhere: App):
    res: Any = chain(add.s(4, 4), mul.s(8), mul.s(10))()

    assert res.get(timeout=10) == 640
    assert res.parent.get(timeout=10) == 64
    assert res.parent.parent.get(timeout=10) == 8
    assert res.parent.parent.parent is None


def test_a_chain_is_made_by_pipes(anywhere: App):
    assert (add.s(2, 2) | mul.s(8) | mul.s(10)).apply_async().get(timeout=10) == 320


def test_a_chain_has_the_task_id_of_its_last_task(worker: App):
    last, whole = new_id(), new_id()

    assert (add.s(2, 2) | mul.s(8).set(task_id=last)).delay().id == last
    assert (add.s(2, 2) | mul.s(8)).apply_async(task_id=whole).id == whole
    assert worker.result(whole).get(timeout=10) == 32


def test_the_graph_is_found_from_its_first_result(worker: App):
    """In place of ``res.parent.parent.graph``."""
    res: Any = chain(add.s(4, 4), mul.s(8), mul.s(10))()
    settled(res)

    ids = [res.parent.parent.id, res.parent.id, res.id]
    assert {job.id for job in worker.graph(res.parent.parent)} == {*ids}
    assert [node.id for _, node in res.parent.parent.iterdeps()] == ids


# Groups


def test_a_group_is_made_of_signatures():
    made = group(add.s(2, 2), add.s(4, 4))

    assert repr(made) == "group([proj.tasks.add(2, 2), proj.tasks.add(4, 4)])"


def test_calling_a_group_gives_a_group_result(anywhere: App):
    g = group(add.s(2, 2), add.s(4, 4))

    res = g()

    assert isinstance(res, GroupResult)
    assert res.get(timeout=10) == [4, 8]


def test_a_group_takes_an_iterator(anywhere: App):
    res = group(add.s(i, i) for i in range(100))()

    assert res.get(timeout=10) == [i + i for i in range(100)]


def test_a_callback_of_a_group_that_wants_all_its_results_is_refused(anywhere: App):
    """The guide's faulty example, which fails in Celery's worker: here the call says what is missing."""
    g = group(add.s(2, 2), add.s(4, 4))
    g.link(add.s())

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        g()


def test_a_callback_of_a_group_is_that_of_each_member(anywhere: App):
    key = new_id()
    g = group(add.s(2, 2), add.s(4, 4))
    g.link(log_result.s(key))

    res = g()

    assert res.get(timeout=10) == [4, 8]
    settled(res)
    assert sorted(noted(key)) == ["4", "8"]


def test_an_errback_of_a_group_runs_for_each_failure(anywhere: App):
    g = group(fail.s(), fail.s())
    g.link_error(log_error.s())

    res = g()

    with pytest.raises(ExpectedError):
        res.get(timeout=10)
    settled(res)
    assert [len(noted(member.id)) for member in res] == [1, 1]


def test_a_group_result_works_on_the_group_as_a_whole(anywhere: App):
    job = group([add.s(2, 2), add.s(4, 4), add.s(8, 8), add.s(16, 16), add.s(32, 32)])

    result = job.apply_async()

    assert result.get(timeout=10) == [4, 8, 16, 32, 64]
    assert result.join(timeout=10) == [4, 8, 16, 32, 64]
    assert result.ready()
    assert result.successful()
    assert not result.failed()
    assert not result.waiting()
    assert result.completed_count() == 5


def test_a_group_result_counts_successes(anywhere: App):
    result = group(add.s(2, 2), fail.s(), add.s(4, 4)).apply_async()

    values = result.get(timeout=10, propagate=False)

    assert (values[0], type(values[1]), values[2]) == (4, ExpectedError, 8)
    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert result.completed_count() == 2


def test_a_group_result_is_revoked(worker: App):
    result = group(add.s(i, i) for i in range(3)).apply_async(countdown=3600)

    assert result.waiting()
    result.revoke()

    assert [one.state for one in result] == ["REVOKED"] * 3
    assert result.ready()


def test_a_group_of_one_unrolls_in_a_chain(anywhere: App):
    one = chain(add.s(2, 2), group(add.s(1)), add.s(1))
    two = chain(add.s(2, 2), group(add.s(1), add.s(2)), tsum.s())

    assert repr(one) == "proj.tasks.add(2, 2) | proj.tasks.add(1) | proj.tasks.add(1)"
    assert repr(two) == (
        "proj.tasks.add(2, 2) | group([proj.tasks.add(1), proj.tasks.add(2)]) | proj.tasks.tsum()"
    )
    assert one().get(timeout=10) == 6
    assert two().get(timeout=10) == 11


def test_a_group_of_one_unrolls_at_the_beginning_of_a_chain(anywhere: App):
    made = chain(group(add.s(1, 1)), add.s(2))

    assert repr(made) == "proj.tasks.add(1, 1) | proj.tasks.add(2)"
    assert made().get(timeout=10) == 4


# Chords


def test_a_chord_sums_up_in_parallel(anywhere: App):
    assert chord(add.s(i, i) for i in range(100))(tsum.s()).get(timeout=20) == 9900


def test_a_chord_broken_down(anywhere: App):
    callback = tsum.s()
    header = [add.s(i, i) for i in range(100)]

    result = chord(header)(callback)

    assert result.get(timeout=20) == 9900


def test_the_id_of_a_chord_is_that_of_its_body(worker: App):
    id = new_id()

    result = chord([add.s(1, 1), add.s(2, 2)])(tsum.s().set(task_id=id))

    assert result.id == id
    assert result.get(timeout=10) == 6
    assert result.name == "proj.tasks.tsum"


def test_a_chord_whose_header_fails_names_the_failed_task(anywhere: App):
    c = chord([add.s(4, 4), raising_task.s(), add.s(8, 8)])

    result: Any = c(tsum.s())

    with pytest.raises(ChordError) as caught:
        result.get(timeout=10)
    header = result.parent
    assert (
        str(caught.value) == f"Dependency {header[1].id} raised ValueError('something something')"
    )
    assert "ValueError: something something" in result.traceback
    assert result.state == "FAILURE"
    assert [one.get(timeout=10, propagate=False) for one in (header[0], header[2])] == [8, 16]


def test_a_chord_names_what_failed_first_in_time(worker: App):
    result: Any = chord([raising_task.s().set(countdown=0.3), fail.s()])(tsum.s())

    with pytest.raises(ChordError, match=f"Dependency {result.parent[1].id} raised ExpectedError"):
        result.get(timeout=10)


def test_a_chord_without_a_body_says_so():
    with pytest.raises(Exception, match="a chord has a body"):
        chord([add.s(4, 4)])()


def test_an_errback_of_a_body_is_called_with_request_exception_and_traceback(anywhere: App):
    c = (
        group([*(add.s(i, i) for i in range(9)), raising_task.s()])
        | tsum.s().on_error(on_chord_error.s())
    ).delay()

    with pytest.raises(ChordError) as caught:
        c.get(timeout=10)
    settled(c)
    assert noted(c.id) == [f"Task {c.id!r} raised error: {caught.value!r}"]


@pytest.mark.parametrize("errback", [on_chord_error_by_id, on_chord_error_bound])
def test_an_errback_of_one_argument_or_bound_gets_the_bodys_id(anywhere: App, errback: Any):
    c = (group(add.s(1, 1), raising_task.s()) | tsum.s().on_error(errback.s())).delay()

    with pytest.raises(ChordError):
        c.get(timeout=10)
    settled(c)
    [line] = noted(c.id)
    assert line.startswith(f"Task {c.id!r} failed")


@pytest.mark.parametrize("broken", ["header", "body"])
def test_a_chord_calls_its_errback_once(anywhere: App, broken: str):
    key = new_id()
    header = [fail.s(), fail.s(), fail.s()] if broken == "header" else [add.s(1, 1)]
    c = chord(header, tsum.s() if broken == "header" else raising_task.si())
    c.link(log_result.s(key))
    c.link_error(log_error.s())

    result = c.delay()

    assert isinstance(
        result.get(timeout=10, propagate=False), ChordError if broken == "header" else ValueError
    )
    settled(result)
    assert len(noted(result.id)) == 1
    assert noted(key) == []


def test_a_chord_calls_its_callback_once(anywhere: App):
    key = new_id()
    c = chord([add.s(1, 1), add.s(2, 2)], tsum.s())
    c.link(log_result.s(key))
    c.link_error(log_error.s())

    result = c.delay()

    assert result.get(timeout=10) == 6
    settled(result)
    assert noted(key) == ["6"]
    assert noted(result.id) == []


def test_members_of_a_header_keep_their_results(anywhere: App):
    """Also those of a task with ``ignore_result``, which Celery forbids here."""
    header = [kept_by_class.s(1), another_task.s(2), forgetful.s(3)]

    assert chord(header, tsum.s())().get(timeout=10) == 6


# Map and starmap


def test_map_is_one_job_that_goes_through_a_sequence(worker: App):
    sig = tsum.map([list(range(10)), list(range(100))])

    result = sig.delay()

    assert result.get(timeout=10) == [45, 4950] == temp.delay().get(timeout=10)
    assert len(worker.graph(result)) == 1


def test_starmap_spreads_the_arguments(anywhere: App):
    assert ~add.starmap(zip(range(10), range(10), strict=True)) == [
        0, 2, 4, 6, 8, 10, 12, 14, 16, 18,
    ]  # fmt: skip


def test_map_and_starmap_are_signatures(anywhere: App):
    pairs = list(zip(range(10), range(10), strict=True))

    grouped = group(add.starmap(pairs), tsum.map([[1], [2]]))()
    chained = (add.starmap(pairs) | tsum.s())()

    assert grouped.get(timeout=10) == [[i + i for i in range(10)], [1, 2]]
    assert chained.get(timeout=10) == 90


def test_a_starmap_waits_for_its_countdown(worker: App):
    result = add.starmap(zip(range(10), range(10), strict=True)).apply_async(countdown=10)

    job = result.job()
    result.revoke()

    assert job.start_at is not None
    assert job.start_at > datetime.now(UTC)


# Chunks


def test_chunks_are_lists_of_results(anywhere: App):
    res = add.chunks(zip(range(100), range(100), strict=True), 10)()

    tens = [[2 * i for i in range(first, first + 10)] for first in range(0, 100, 10)]
    assert res.get(timeout=10) == tens


def test_chunks_are_a_group(worker: App):
    """Celery's ``apply_async`` is one task that enqueues the others; here both calls write the group."""
    chunked = add.chunks(zip(range(100), range(100), strict=True), 10)

    result = chunked.apply_async()
    made = chunked.group()

    assert isinstance(result, GroupResult)
    assert len(result.get(timeout=10)) == len(made) == 10


def test_the_group_of_chunks_is_skewed(worker: App):
    made = add.chunks(zip(range(100), range(100), strict=True), 10).group()

    result = made.skew(start=100, stop=109)()

    jobs = [one.job() for one in result]
    result.revoke()
    waits = [(job.start_at - job.created_at).total_seconds() for job in jobs if job.start_at]
    assert [round(wait) for wait in waits] == list(range(100, 110))
