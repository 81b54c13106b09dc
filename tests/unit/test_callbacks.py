"""What is linked to a signature, group, chain or chord: how it gets there, and what then enqueues it."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks import App, chain, chord, group
from pgtasks.errors import ConfigurationError
from tests.fixtures.recording import RecordingApp

app = RecordingApp()
running = App("running", eager=True)
seen: list[Any] = []


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.log")
def log(request: Any, exc: Any, traceback: Any) -> None: ...


@running.task(name="shop.plus")
def plus(x: int, y: int) -> int:
    return x + y


@running.task(name="shop.see")
def see(value: int) -> None:
    seen.append(value)


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


WHOLES: list[Any] = [
    add.s(1, 2),
    add.s(1),
    chain(add.s(1, 2), add.s(3)),
    group(add.s(1, 2), add.s(3, 4)),
    chord([add.s(1, 2)], add.si(1, 2)),
]


@pytest.mark.parametrize("whole", WHOLES, ids=repr)
def test_linking_changes_what_it_is_called_on_and_gives_back_the_callback(whole: Any):
    one, callback, errback = whole.clone(), add.s(8), log.s()

    assert one.link(callback) is callback
    assert one.link_error(errback) is errback

    assert one.options == {"link": [callback], "link_error": [errback]}
    assert one.has_callbacks
    assert not whole.has_callbacks


@pytest.mark.parametrize("whole", WHOLES, ids=repr)
def test_on_error_gives_back_what_it_is_called_on(whole: Any):
    one = whole.clone()

    assert one.on_error(log.s()) is one
    assert one.options == {"link_error": [log.s()]}


def test_callbacks_keep_their_order_and_come_once():
    one = add.s(1, 2)

    for callback in (add.s(8), add.s(9), add.s(8)):
        one.link(callback)

    assert one.options == {"link": [add.s(8), add.s(9)]}


@pytest.mark.parametrize(
    "callbacks", [add.s(8), [add.s(8)], (add.s(8),), add.s(8).to_dict(), [add.s(8).to_dict()]]
)
def test_callbacks_may_be_given_as_an_option_in_any_form(callbacks: Any):
    linked = {"link": [add.s(8)], "link_error": [add.s(8)]}

    assert add.signature((1, 2), link=callbacks, link_error=callbacks).options == linked
    assert add.s(1, 2).set(link=callbacks, link_error=callbacks).options == linked
    assert add.s(1, 2).clone(link=callbacks, link_error=callbacks).options == linked
    assert chain(add.s(1, 2), link=callbacks, link_error=callbacks).options == linked
    assert group(add.s(1, 2), link=callbacks, link_error=callbacks).options == linked
    assert chord([], link=callbacks, link_error=callbacks).options == linked


def test_given_callbacks_take_the_place_of_those_that_were_there():
    one = add.s(1, 2).set(link=add.s(8), link_error=log.s())

    assert one.clone(link=add.s(9)).options == {"link": [add.s(9)], "link_error": [log.s()]}
    assert one.clone(link=None, link_error=[]).options == {}
    assert one.set(link=None).options == {"link_error": [log.s()]}


@pytest.mark.parametrize("callback", [add, 3, "shop.add", [add.s(8), None]])
def test_what_is_no_signature_cannot_be_linked(callback: Any):
    for link in (
        add.s(1, 2).link,
        lambda one: add.s(1, 2).set(link=one),
        lambda one: add.apply_async((1, 2), link=one),
        lambda one: chain(add.s(1, 2)).apply_async(link=one),
    ):
        with pytest.raises(ConfigurationError, match=r"^link is a signature or a list of them"):
            link(callback)
    with pytest.raises(ConfigurationError, match=r"^link_error is a signature or a list of them"):
        add.s(1, 2).on_error(callback)


def test_a_clone_has_callbacks_of_its_own():
    one = add.s(1, 2).set(link=add.s(8))

    clone = one.clone()
    clone.link(add.s(9))
    clone.options["link"][0].set(queue="other")

    assert one.options == {"link": [add.s(8)]}


def test_setting_options_keeps_the_very_callbacks_that_were_linked():
    one, callback = add.s(1, 2), add.s(8)
    one.link(callback)

    one.set(queue="other")
    callback.set(priority=3)

    assert one.options["link"][0].options == {"priority": 3}


def test_the_callbacks_of_a_group_are_for_each_member():
    member = add.s(1, 2).set(link=add.s(7))
    members: Any = group(member, group(add.s(3, 4)), chain(add.s(5, 6)))
    members.link(add.s(8))
    members.link_error(log.s())

    first, second, third = members.unroll()

    assert first.options == {"link": [add.s(7), add.s(8)], "link_error": [log.s()]}
    assert second == add.signature((3, 4), link=add.s(8), link_error=log.s())
    assert third.options == {"link": [add.s(8)], "link_error": [log.s()]}
    assert member.options == {"link": [add.s(7)]}


def test_the_callbacks_that_members_get_are_not_one_object():
    members: Any = group(add.s(1, 2), add.s(3, 4), link=add.s(8))

    first, second = members.unroll()
    first.options["link"][0].set(queue="other")

    assert second.options["link"][0].options == {}


# Enqueueing


def test_a_call_with_callbacks_is_handed_to_the_app_as_a_graph():
    sent: Any = add.apply_async((1, 2), link=add.s(8), queue="sums")

    assert sent.node == add.s(1, 2).set(link=add.s(8), queue="sums")
    assert sent[1:] == ((), {}, {}, None, None, None)
    assert add.s(1, 2).set(link=add.s(8)).apply_async((), queue="sums") == sent
    assert add.s(2).set(link=add.s(8), queue="sums").delay(1) == sent


async def test_the_twins_do_the_same():
    sent = add.apply_async((1, 2), link=add.s(8))

    assert await add.aapply_async((1, 2), link=add.s(8)) == sent
    assert await add.s(1, 2).set(link=add.s(8)).adelay() == sent
    assert await add.s(2).set(link=add.s(8)).aapply_async((1,)) == sent


def test_a_call_with_callbacks_goes_on_the_connection_that_was_named():
    connection = object()

    for one in (
        add.using(connection).apply_async((1, 2), link=add.s(8)),
        add.using(connection).s(1, 2).set(link=add.s(8)).delay(),
        add.apply_async((1, 2), link=add.s(8), connection=connection),
    ):
        assert one.connection is connection  # type: ignore[attr-defined]


def test_no_callbacks_are_none():
    assert plus.apply_async((1, 2), link=None, link_error=[]).get() == 3
    assert plus.apply((1, 2), link=None).get() == 3


def test_a_linked_signature_runs_with_the_result():
    result = plus.apply_async((2, 2), link=[see.s(), plus.s(8).set(link=see.s())])

    assert result.get() == 4
    assert seen == [4, 12]


def test_apply_runs_here_what_is_linked_without_a_database():
    lazy = App("lazy")

    @lazy.task(name="shop.twice")
    def twice(n: int) -> int:
        seen.append(n)
        return 2 * n

    signature = twice.s(1).set(link=twice.s())

    assert signature.apply().get() == 2
    assert twice.apply((5,), link=twice.s()).get() == 10
    assert seen == [1, 2, 5, 10]
    with pytest.raises(TypeError, match=r"can't multiply|unsupported operand"):
        twice.apply(({},), link=twice.s(), throw=True)
