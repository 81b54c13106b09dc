"""Chains: what they are made of, how they are put together, and what of their options is for which step."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks import App, chain, chord, group, signature
from pgtasks.errors import ConfigurationError
from tests.fixtures.recording import RecordingApp

app = RecordingApp()
running = App("running", eager=True)


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.tsum")
def tsum(numbers: list[int]) -> int:
    return sum(numbers)


@running.task(name="shop.plus")
def plus(x: int, y: int) -> int:
    return x + y


ID = "0190a8d5-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    "made",
    [
        lambda: chain(add.s(1, 2), add.s(3), add.s(4)),
        lambda: chain([add.s(1, 2), add.s(3), add.s(4)]),
        lambda: chain(one for one in (add.s(1, 2), add.s(3), add.s(4))),
        lambda: add.s(1, 2) | add.s(3) | add.s(4),
        lambda: add.s(1, 2) | (add.s(3) | add.s(4)),
        lambda: chain(chain(add.s(1, 2), add.s(3)), chain(add.s(4))),
        lambda: chain() | add.s(1, 2) | chain() | chain(add.s(3), add.s(4)),
        lambda: chain(group(add.s(1, 2)), group([group(add.s(3))]), group(chain(add.s(4)))),
        lambda: add.s(1, 2) | group(add.s(3)) | group([add.s(4)]),
        lambda: chain(add.s(1, 2).to_dict(), add.s(3), add.s(4)),  # type: ignore[call-overload]
    ],
)
def test_a_chain_is_flat_however_it_is_made(made: Any):
    assert made().tasks == [add.s(1, 2), add.s(3), add.s(4)]


def test_a_chain_of_one_is_a_chain():
    one = chain(add.s(1, 2))

    assert isinstance(one, chain)
    assert one.tasks == [add.s(1, 2)]


@pytest.mark.parametrize("steps", [(add,), ([1],), (add.s(1, 2), "shop.add"), (3,), ("ab",)])
def test_what_is_no_signature_is_no_step(steps: Any):
    with pytest.raises(ConfigurationError, match=r"^a chain is made of signatures, found"):
        chain(*steps)


def test_a_bar_leaves_both_sides_as_they_were():
    first, last = add.s(1, 2) | add.s(3), add.s(4) | add.s(5)

    both = first | last

    assert len(both.tasks) == 4
    assert (len(first.tasks), len(last.tasks)) == (2, 2)


def test_a_bar_with_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \|"):
        add.s(1, 2) | 3  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \|"):
        chain(add.s(1, 2)) | add  # type: ignore[operator]


def test_groups_and_chords_in_a_chain_stay_whole():
    header = group(add.s(1, 1), add.s(2, 2))
    body = chord([add.s(1, 2)], tsum.s())

    whole = chain(add.s(1, 2), header, tsum.s(), body, add.s(1))

    assert whole.tasks == [add.s(1, 2), header, tsum.s(), body, add.s(1)]


def test_an_empty_group_at_the_end_is_left_out_and_one_before_a_step_is_not():
    ending: Any = chain(add.s(1, 2), group(), group())
    going_on: Any = ending | tsum.s()

    assert ending.unchain_tasks() == [add.s(1, 2)]
    assert going_on.unchain_tasks() == [add.s(1, 2), group(), group(), tsum.s()]
    assert chain(group()).unchain_tasks() == [group()]


def test_arguments_are_for_the_first_step():
    partial: Any = add.s(4) | add.s(8)

    clone = partial.clone((16,), {"k": 1}, queue="other")

    assert clone.tasks == [add.s(16, 4, k=1), add.s(8)]  # type: ignore[call-overload]
    assert clone.options == {"queue": "other"}
    assert partial.tasks == [add.s(4), add.s(8)]
    assert partial.options == {}


def test_the_steps_of_a_clone_are_clones():
    first: Any = chain(add.s(1, 2), add.s(3))

    first.clone().tasks[1].set(queue="other")

    assert first.tasks[1].options == {}


def test_an_immutable_chain_is_one_whose_first_step_is():
    steps: Any = chain(add.s(1, 2), add.s(3)).set(immutable=True)

    assert [step.immutable for step in steps.tasks] == [True, False]
    assert steps.clone((9,)).tasks == steps.tasks
    steps.set_immutable(False)
    assert [step.immutable for step in steps.tasks] == [False, False]


def test_the_options_of_a_chain_are_passed_on_to_the_steps_that_they_are_for():
    times = {"countdown": 5, "eta": None}
    steps: Any = chain(add.s(1, 2), add.s(3), add.s(4), queue="sums", task_id=ID, **times)
    steps.link(add.s(5))
    steps.link_error(tsum.s())

    first, second, third = steps.unchain_tasks()

    errbacks = [tsum.s()]
    assert first.options == {**times, "queue": "sums", "link_error": errbacks}
    assert second.options == {"queue": "sums", "link_error": errbacks}
    assert third.options == {
        "queue": "sums",
        "task_id": ID,
        "link": [add.s(5)],
        "link_error": errbacks,
    }
    assert [step.options for step in steps.tasks] == [{}, {}, {}]


def test_a_callback_for_failure_is_not_for_a_group_that_is_followed_by_a_step():
    headed: Any = group(add.s(1), add.s(2)) | group(
        add.s(3), add.s(4)
    )  # a chord with a group for its body
    steps: Any = chain(
        add.s(1), group(add.s(1), add.s(2)), headed, tsum.s(), group(add.s(5), add.s(6))
    )
    steps.link_error(add.s(7, 8))

    passed_on = [step.options for step in steps.unchain_tasks()]

    errbacks = {"link_error": [add.s(7, 8)]}
    assert passed_on == [errbacks, {}, {}, errbacks, errbacks]


def test_the_callbacks_of_a_chain_come_after_those_of_its_steps_and_once():
    step: Any = add.s(3)
    step.link(add.s(4))
    steps: Any = chain(add.s(1, 2), step)
    for callback in (add.s(4), add.s(5)):
        steps.link(callback)

    assert steps.unchain_tasks()[1].options == {"link": [add.s(4), add.s(5)]}


def test_what_is_added_to_a_chain_is_not_under_its_options():
    steps: Any = chain(add.s(1, 2), add.s(3), queue="sums")
    steps.link(add.s(9))

    longer = steps | add.s(4)

    assert [step.options for step in longer.tasks] == [
        {"queue": "sums"},
        {"queue": "sums", "link": [add.s(9)]},
        {},
    ]
    assert longer.options == {}


def test_the_options_of_a_group_of_one_are_passed_on_to_its_member():
    one: Any = group([add.s(1, 2)], queue="sums", link_error=tsum.s(), task_id=ID)

    (step, _) = chain(one, add.s(3)).tasks

    assert step.options == {"queue": "sums", "link_error": [tsum.s()]}
    assert one.tasks[0].options == {}


# Enqueueing it


def test_every_way_to_call_a_chain_hands_it_to_the_app():
    steps: Any = chain(add.s(1), add.s(3))
    connection = object()

    called = steps(5, y=2)
    delayed = steps.delay(5, y=2)
    applied = steps.apply_async((5,), {"y": 2}, countdown=3, origin="here", connection=connection)
    bare = steps.apply(type="sums", origin="here", connection=connection)

    assert called == delayed == (steps, (5,), {"y": 2}, {}, None, None, None)
    options = {"countdown": 3, "origin": "here"}
    assert applied == (steps, (5,), {"y": 2}, options, None, "here", connection)
    assert bare == (steps, (), {}, {}, "sums", "here", connection)


async def test_the_twins_do_the_same():
    steps: Any = chain(add.s(1), add.s(3))

    assert await steps.adelay(5, y=2) == steps.delay(5, y=2)
    assert await steps.aapply_async((5,), queue="q") == steps.apply_async((5,), queue="q")
    assert await steps.aapply(type="sums") == steps.apply(type="sums")


def test_callbacks_at_the_call_are_lists_of_signatures():
    sent: Any = chain(add.s(1, 2), add.s(3)).apply_async(link=add.s(4), link_error=[tsum.s()])

    assert sent.options == {"link": [add.s(4)], "link_error": [tsum.s()]}


def test_a_chain_goes_on_the_connection_that_its_first_task_names():
    connection = object()

    assert chain(add.using(connection).s(1, 2), add.s(3))().connection is connection  # type: ignore[attr-defined]
    assert chain(add.s(1, 2).set(connection=connection))().connection is connection  # type: ignore[attr-defined]
    assert chain(add.s(1, 2), connection=connection)().connection is connection  # type: ignore[attr-defined]


def test_a_chain_belongs_to_the_app_of_its_first_task_that_has_one():
    other = App("other")

    assert chain(add.s(1, 2), plus.s(3)).app is app
    assert chain(signature("shop.unknown"), plus.s(3)).app is running
    assert chain(add.s(1, 2), app=other).app is other
    assert (chain(add.s(1, 2), app=other) | add.s(3)).app is other
    with other.current():
        assert chain(signature("shop.unknown")).app is other


def test_a_chain_without_steps_is_refused_when_it_is_called():
    with pytest.raises(ConfigurationError, match=r"at least one step, found none: write chain\("):
        chain(app=running)()


@pytest.mark.parametrize(
    "whole", [chain(plus.s(1, 2)), group(plus.s(1, 2)), chord([plus.s(1, 2)], plus.si(1, 2))]
)
def test_an_unknown_option_is_refused_when_it_is_called(whole: Any):
    with pytest.raises(TypeError, match="no option 'colour'"):
        whole.apply_async(colour="red")
    with pytest.raises(TypeError, match="no option 'colour'"):
        whole.clone(colour="red").delay()


def test_a_partial_chain_takes_what_it_needs_at_the_call():
    assert (plus.s(4) | plus.s(8))(16).get() == 28
    assert ~(plus.s(4, 16) | plus.s(2) | (plus.s(4) | plus.s(8))) == 34


# What it shows


def test_a_chain_shows_its_steps():
    steps: Any = chain(add.s(2, 2), group(add.s(1), add.s(2)), tsum.s())

    assert repr(steps) == "shop.add(2, 2) | group([shop.add(1), shop.add(2)]) | shop.tsum()"
    assert repr(chain()) == "chain()"


def test_a_long_chain_is_cut():
    text = repr(chain(add.s(n) for n in range(1000)))

    assert text.startswith("shop.add(0) | shop.add(1) | ")
    assert text.endswith(" | shop.add(9) | … 990 more")


def test_a_long_argument_is_cut():
    text = repr(add.s("x" * 1000, y=["y"] * 1000))  # type: ignore[call-overload]

    assert len(text) < 250
    assert text.startswith("shop.add('xxx")
    assert "…, y=['y', 'y'," in text


def test_equal_chains_are_equal():
    assert chain(add.s(1, 2), add.s(3)) == add.s(1, 2) | add.s(3)
    assert chain(add.s(1, 2), add.s(3)) != chain(add.s(1, 2), add.s(4))
    assert chain(add.s(1, 2), queue="q") != chain(add.s(1, 2))
    assert chain(add.s(1, 2)) != add.s(1, 2)
    assert chain(add.s(1, 2)) != group(add.s(1, 2))
