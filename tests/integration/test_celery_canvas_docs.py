"""Celery's canvas guide (docs/userguide/canvas.rst), from top to bottom: its examples run, with other imports.

Signatures, partials, callbacks and the overview of primitives are here; chains, groups, chords, map, starmap and
chunks in `test_celery_canvas_docs_primitives`.

What is not here, and why:

- ``sig.freeze()``: ids are given when a canvas is written; say ``task_id`` to choose one.
- Stamping (``stamp``, ``StampingVisitor``): labels for debugging; here every job has a ``root_id``, a ``parent_id``,
  an ``origin`` and its bundle a ``type``, and `App.graph` and ``pgtasks jobs graph`` show the whole.
- ``res.graph``, ``to_dot``: ``pgtasks jobs graph`` draws what the database knows, callbacks included.
- ``unlock_chord``: Celery's polling task is an implementation; here nothing polls, since the transaction that finishes
  the last member releases the body.
- The warnings about serializers and backends: there is one of each, and a job carries its own arguments only, so that
  nothing grows with the canvas.
- ``task_allow_error_cb_on_chord_header``: link an errback to the header's members instead.

Where a repr differs it names every task in full.
"""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks import App, GroupResult, chain, chord, group, signature
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    add,
    anywhere,
    create_user,
    import_contact,
    import_contacts,
    log_result,
    mul,
    noted,
    notify_complete,
    reset_buffers,
    send_welcome_email,
    settled,
    subtract,
    tsum,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "worker", "worker_of_proj"]


# Signatures


def test_a_signature_is_made_by_name(anywhere: App):
    made = signature("proj.tasks.add", args=(2, 2), countdown=10)

    assert repr(made) == "proj.tasks.add(2, 2)"
    assert made.options == {"countdown": 10}


def test_a_signature_by_name_is_called_as_one_of_a_task(anywhere: App):
    assert signature("proj.tasks.add", args=(2, 2), countdown=0).delay().get(timeout=10) == 4


def test_a_signature_is_made_by_the_tasks_method_or_its_shortcut():
    assert repr(add.signature((2, 2), countdown=10)) == "proj.tasks.add(2, 2)"
    assert repr(add.s(2, 2)) == "proj.tasks.add(2, 2)"
    assert repr(add.s(2, 2, debug=True)) == "proj.tasks.add(2, 2, debug=True)"


def test_its_fields_can_be_inspected():
    s = add.signature((2, 2), {"debug": True}, countdown=10)

    assert s.args == (2, 2)
    assert s.kwargs == {"debug": True}
    assert s.options == {"countdown": 10}


def test_calling_it_runs_it_in_the_process():
    assert add(2, 2) == 4
    assert add.s(2, 2)() == 4


def test_apply_async_takes_what_that_of_the_task_takes(anywhere: App):
    args, kwargs, options = (2, 2), {"debug": True}, {"countdown": 0.01}

    results = [
        add.apply_async(args, kwargs, **options),
        add.signature(args, kwargs, **options).apply_async(),
        add.apply_async((2, 2), countdown=0.01),
        add.signature((2, 2), countdown=0.01).apply_async(),
    ]

    assert [one.get(timeout=10) for one in results] == [4, 4, 4, 4]


def test_delay_takes_arguments_as_they_are(anywhere: App):
    args, kwargs, options = (2, 2), {"debug": True}, {"countdown": 0.01}

    results = [
        add.delay(*args, **kwargs),
        add.signature(args, kwargs, **options).delay(),
        add.delay(2, 2),
        add.signature((2, 2)).delay(),
        add.signature((2, 2), countdown=0.01).delay(),
        add.signature((2, 2)).set(countdown=0.01).delay(),
    ]

    assert [one.get(timeout=10) for one in results] == [4] * 6


def test_set_adds_options_and_gives_the_signature():
    made = add.s(2, 2).set(countdown=1)

    assert repr(made) == "proj.tasks.add(2, 2)"
    assert made.options == {"countdown": 1}


def test_a_countdown_is_stored_and_waited_for(worker: App):
    made = add.s(2, 2).set(countdown=3600).delay()

    job = made.job()
    made.revoke()

    assert job.state == "scheduled"
    assert job.start_at is not None
    assert 3590 < (job.start_at - job.created_at).total_seconds() < 3610


# Partials


def test_a_signature_runs_in_a_worker_or_here(anywhere: App):
    assert add.s(2, 2).delay().get(timeout=10) == 4
    assert add.s(2, 2).apply_async(countdown=0.01).get(timeout=10) == 4
    assert add.s(2, 2)() == 4


def test_added_arguments_go_before_its_own(anywhere: App):
    partial = add.s(2)

    assert partial.delay(4).get(timeout=10) == 6
    assert partial.apply_async((4,)).get(timeout=10) == 6
    assert subtract.s(10).delay(30).get(timeout=10) == 20


def test_added_keywords_are_merged_and_win(anywhere: App):
    s = add.s(2, 2, z=1)

    assert s.delay(debug=True).get(timeout=10) == 5
    assert s.apply_async(kwargs={"debug": True}).get(timeout=10) == 5
    assert s.delay(z=3).get(timeout=10) == 7


def test_added_options_are_merged_and_win(worker: App):
    s = add.signature((2, 2), countdown=3600, priority=4)

    result = s.apply_async(countdown=0)

    assert result.get(timeout=10) == 4
    assert result.job().priority == 4


def test_a_clone_is_a_derivative():
    s = add.s(2)

    cloned = s.clone(args=(4,), kwargs={"debug": True})

    assert repr(s) == "proj.tasks.add(2)"
    assert repr(cloned) == "proj.tasks.add(4, 2, debug=True)"


# Immutability


@pytest.mark.parametrize("shortcut", [False, True])
def test_an_immutable_callback_takes_no_result(anywhere: App, shortcut: bool):
    key = new_id()
    callback = (
        reset_buffers.si(key) if shortcut else reset_buffers.signature((key,), immutable=True)
    )

    result = add.apply_async((2, 2), link=callback)

    assert result.get(timeout=10) == 4
    settled(result)
    assert noted(key) == ["ran"]


def test_of_an_immutable_signature_only_options_can_be_set():
    immutable = add.si(2, 2)

    assert immutable.clone((4,), {"debug": True}, countdown=1) == add.si(2, 2).set(countdown=1)


def test_the_prefix_operator_enqueues_and_waits(anywhere: App):
    sig = add.s(2, 2)

    assert ~sig == sig.apply_async().get(timeout=10) == 4


# Callbacks


def test_a_callback_takes_the_result_before_its_own_arguments(anywhere: App):
    key = new_id()

    result = add.apply_async((2, 2), link=add.s(8).set(link=log_result.s(key)))

    assert result.get(timeout=10) == 4
    settled(result)
    assert noted(key) == ["12"]


def test_a_callback_does_not_run_after_a_failure(anywhere: App):
    key = new_id()

    result = add.apply_async((2, "2"), link=log_result.s(key))

    assert isinstance(result.get(timeout=10, propagate=False), TypeError)
    settled(result)
    assert noted(key) == []


def test_a_signature_takes_a_result_as_a_callback_does(anywhere: App):
    sig = add.s(10)

    assert sig.delay(4).get(timeout=10) == add.apply_async(args=(4, 10)).get(timeout=10) == 14


# The primitives, in short


def test_map_starmap_and_chunks_in_short(anywhere: App):
    items = zip(range(1000), range(1000), strict=True)

    assert ~mul.s(2).task.starmap([(2, 2), (4, 4)]) == [4, 16]
    assert ~add.starmap([(2, 2), (4, 4)]) == [4, 8]
    assert ~tsum.map([[1], [2, 3]]) == [1, 5]
    assert len(add.chunks(items, 10)) == 100


def test_simple_chain(anywhere: App):
    res = chain(add.s(2, 2), add.s(4), add.s(8))()

    assert res.get(timeout=10) == 16
    assert (add.s(2, 2) | add.s(4) | add.s(8))().get(timeout=10) == 16


def test_chain_of_immutable_signatures_is_one_of_independent_tasks(anywhere: App):
    assert add.signature((2, 2), immutable=True) == add.si(2, 2)

    res: Any = (add.si(2, 2) | add.si(4, 4) | add.si(8, 8))()

    assert res.get(timeout=10) == 16
    assert res.parent.get(timeout=10) == 8
    assert res.parent.parent.get(timeout=10) == 4
    assert res.parent.parent.parent is None


def test_simple_group(anywhere: App):
    res: GroupResult[int] = group(add.s(i, i) for i in range(10))()

    assert res.get(timeout=10) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_simple_chord(anywhere: App):
    res: Any = chord((add.s(i, i) for i in range(10)), tsum.s())()

    assert res.get(timeout=10) == 90


def test_chord_whose_body_takes_no_results(anywhere: App):
    contacts, import_id = ["ann", "bob"], new_id()

    result = chord(
        (import_contact.s(c) for c in contacts), notify_complete.si(import_id)
    ).apply_async()

    assert result.get(timeout=10) == f"import {import_id} is complete"
    assert noted(import_id) == ["complete"]


def test_chains_can_be_partial(anywhere: App):
    c1 = add.s(4) | mul.s(8)

    assert c1(16).get(timeout=10) == 160


def test_chains_can_be_combined(anywhere: App):
    c2 = add.s(4, 16) | mul.s(2) | (add.s(4) | mul.s(8))

    assert c2().get(timeout=10) == 352


def test_a_group_and_a_task_become_a_chord(anywhere: App):
    c3 = group(add.s(i, i) for i in range(10)) | tsum.s()

    assert isinstance(c3, chord)
    assert c3().get(timeout=10) == 90


def test_a_group_takes_the_result_of_the_task_before_it(anywhere: App):
    new_user_workflow = create_user.s() | group(import_contacts.s(), send_welcome_email.s())

    res = new_user_workflow.delay(
        username="artv", first="Art", last="Vandelay", email="art@vandelay.com"
    )

    user = "Art Vandelay <art@vandelay.com>"
    assert res.get(timeout=10) == [f"contacts of {user}", f"welcome {user}"]


def test_an_immutable_group_takes_nothing(anywhere: App):
    res: Any = (add.s(4, 4) | group(add.si(i, i) for i in range(10)))()

    assert res.get(timeout=10) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert res.parent.get(timeout=10) == 8
