"""The semantic cases of Celery's integration tests of canvas: callbacks, what replaces a job, groups that grow.

What is left out, and where pgtasks differs: see test_canvas_results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import (
    App,
    chain,
    chord,
    group,
)
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    add,
    add_chord_to_chord,
    add_replaced,
    add_to_all_to_chord,
    anywhere,
    becomes_growing,
    count,
    echo,
    fail,
    fail_replaced,
    fails,
    identity,
    inner_replaced,
    noted,
    outer_replaced,
    replace_with_chain,
    replace_with_chain_which_raises,
    replace_with_empty_chain,
    settled,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "inner_replaced", "worker", "worker_of_proj"]

Make = Callable[[], Any]


# Callbacks of what is replaced, and of what replaces it


@pytest.mark.parametrize("linked", ["chain", "step"])
def test_a_callback_runs_once_when_a_step_is_replaced(anywhere: App, linked: str):
    key = new_id()
    step = add_replaced.si(42, 1337)
    c = chain(step, identity.s())
    if linked == "step":
        step.link(count.si(key))
        c = chain(step, identity.s())
    else:
        c.link(count.si(key))

    result = c()

    assert result.get(timeout=10) == 42 + 1337
    settled(result)
    assert noted(key) == ["ran"]


@pytest.mark.parametrize("whole", [chain, group])
@pytest.mark.parametrize("linked", ["whole", "part"])
def test_an_errback_runs_once_when_a_part_is_replaced(anywhere: App, whole: Any, linked: str):
    key = new_id()
    if linked == "part":
        canvas = whole(fail_replaced.si().on_error(count.si(key)), identity.si(42))
    else:
        canvas = whole(add_replaced.si(42, 1337), fail.s())
        canvas.link_error(count.si(key))

    result = canvas()

    fails(result)
    settled(result)
    assert noted(key) == ["ran"]


def test_callbacks_of_a_group_run_once_for_each_member_also_if_one_is_replaced(anywhere: App):
    key = new_id()
    g = group(add_replaced.si(42, 1337), identity.si(31337))
    g.link(count.si(key))

    result = g()

    assert result.get(timeout=10) == [42 + 1337, 31337]
    settled(result)
    assert noted(key) == ["ran", "ran"]


def test_callbacks_within_and_without_a_replacement_both_run(anywhere: App):
    key = new_id()
    c = chain(identity.s("Hello "), replace_with_chain.s(key=key), add.s("world"))
    c.link(echo.s(key))

    res = c.delay()

    assert res.get(timeout=10) == "Hello world"
    settled(res)
    assert sorted(noted(key)) == ["Hello world", "inner callback"]


def test_errbacks_within_and_without_a_replacement_both_run(anywhere: App):
    key = new_id()
    c = chain(identity.s("Hello "), replace_with_chain_which_raises.s(key=key), add.s("world"))
    c.link_error(echo.si("outer errback", key))

    res = c.delay()

    fails(res)
    settled(res)
    assert sorted(noted(key)) == ["inner errback", "outer errback"]


def test_a_replacement_may_be_replaced(anywhere: App):
    key = new_id()

    result = outer_replaced.delay(key)

    assert result.get(timeout=10) is None
    settled(result)
    assert noted(key) == ["In A", "In B", "In/Out C", "Out B", "Out A"]


def test_an_empty_chain_replaces_nothing(anywhere: App):
    result = chain(identity.s(1), replace_with_empty_chain.s()).delay()

    error = fails(result, Exception)
    assert "a chain has at least one step" in str(error)


def test_a_chain_keeps_the_links_of_a_chain_in_it(anywhere: App):
    key = new_id()
    inner = chain(identity.s("a"), add.s("b"))
    inner.link(echo.si("inner", key))
    inner.link_error(count.si(key))

    res = chain(inner, add.s("c")).delay()

    assert res.get(timeout=10) == "abc"
    settled(res)
    assert noted(key) == ["inner"]


def test_every_step_and_every_member_calls_its_own_callback(anywhere: App):
    step, member = new_id(), new_id()

    steps = chain(identity.si(1337).on_error(count.si(step)) for _ in range(12))
    for one in steps.tasks:
        one.link(count.si(step))
    results: list[Any] = [
        steps(),
        group(identity.si(1).set(link=count.si(member)) for _ in range(12))(),
    ]

    assert results[0].get(timeout=20) == 1337
    assert results[1].get(timeout=20) == [1] * 12
    for result in results:
        settled(result)
    assert (len(noted(step)), len(noted(member))) == (12, 12)


def test_only_the_step_that_failed_calls_its_errback(anywhere: App):
    key = new_id()

    result = chain(fail.si().on_error(count.si(key)) for _ in range(12))()

    fails(result)
    settled(result)
    assert noted(key) == ["ran"]


# A group that grows


@pytest.mark.parametrize(
    ("growing", "expected"),
    [
        (add_to_all_to_chord, [0, 5, 6, 7]),
        (add_chord_to_chord, [0, 18]),
        (becomes_growing, [0, 18]),
    ],
)
def test_a_member_adds_members(anywhere: App, growing: Any, expected: list[int]):
    c = chord([growing.s([1, 2, 3], 4)], identity.s())

    assert c().get(timeout=10) == expected
