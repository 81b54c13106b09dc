"""Chords, and groups as far as they are put together: headers, bodies, and what ``|`` makes of them."""

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


@running.task(name="shop.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


ID = "0190a8d5-0000-7000-8000-000000000001"
MEMBERS = [add.s(1, 1), add.s(2, 2)]


@pytest.mark.parametrize(
    "made",
    [
        lambda: chord(MEMBERS, tsum.s()),
        lambda: chord(tuple(MEMBERS), body=tsum.s()),
        lambda: chord(iter(MEMBERS), tsum.s()),
        lambda: chord((add.s(n, n) for n in (1, 2)), tsum.s()),
        lambda: chord(group(MEMBERS), tsum.s()),
        lambda: chord([one.to_dict() for one in MEMBERS], tsum.s().to_dict()),  # type: ignore[call-overload]
        lambda: group(MEMBERS) | tsum.s(),
        lambda: chord(MEMBERS) | tsum.s(),
    ],
)
def test_a_chord_is_a_header_and_a_body_however_it_is_made(made: Any):
    one = made()

    assert isinstance(one, chord)
    assert one.header == group(MEMBERS)
    assert one.tasks == MEMBERS
    assert one.body == tsum.s()


def test_a_header_of_one_signature_is_a_group_of_it():
    assert chord(add.s(1, 1), tsum.s()).header == group(add.s(1, 1))
    steps = chain(add.s(1, 1), add.s(2))
    assert chord(steps, tsum.s()).header.tasks == [steps]


@pytest.mark.parametrize("header", [3, [3], add, [add.s(1, 1), None]])
def test_what_is_no_signature_is_no_header(header: Any):
    with pytest.raises(ConfigurationError, match=r"^a group is made of signatures, found"):
        chord(header, tsum.s())


@pytest.mark.parametrize("body", [3, tsum, "shop.tsum"])
def test_what_is_no_signature_is_no_body(body: Any):
    with pytest.raises(ConfigurationError, match=r"the body of a chord is made of signatures"):
        chord(MEMBERS, body)
    with pytest.raises(ConfigurationError, match=r"the body of a chord is made of signatures"):
        chord(MEMBERS)(body)


# What | makes


def test_a_group_before_anything_is_the_header_of_a_chord():
    header = group(MEMBERS)

    for body in (
        tsum.s(),
        group(tsum.s(), tsum.s()),
        chain(tsum.s(), add.s(1)),
        chord([], tsum.s()),
    ):
        one: Any = header | body
        assert isinstance(one, chord)
        assert (one.header, one.body) == (header, body)


def test_a_group_before_an_empty_group_is_that_group():
    header: Any = group(MEMBERS)

    assert header | group() is header


def test_a_group_of_one_before_a_bar_gives_a_list_and_in_a_chain_its_one_result():
    assert isinstance(group(add.s(1, 1)) | tsum.s(), chord)
    assert chain(group(add.s(1, 1)), add.s(2)).tasks == [  # type: ignore[misc]
        add.s(1, 1),
        add.s(2),
    ]


def test_what_follows_a_chord_is_added_to_its_body():
    one: Any = chord(MEMBERS, tsum.s())

    longer = one | add.s(1) | (add.s(2) | add.s(3)) | group(add.s(4))

    assert isinstance(longer, chord)
    assert longer.header == group(MEMBERS)
    assert longer.body == chain(tsum.s(), add.s(1), add.s(2), add.s(3), add.s(4))
    assert one.body == tsum.s()


def test_a_body_that_is_a_group_becomes_a_header_of_what_follows():
    one = chord(MEMBERS, group(tsum.s(), tsum.s())) | tsum.s()

    assert one.body == chord([tsum.s(), tsum.s()], tsum.s())


def test_the_options_of_a_chord_are_not_for_what_is_added():
    one: Any = chord(MEMBERS, tsum.s(), queue="sums", countdown=3, link=add.s(9), task_id=ID)

    longer = one | add.s(1)

    assert longer.options == {}
    assert longer.header.options == {"queue": "sums", "countdown": 3}
    assert longer.body.tasks[0].options == {"queue": "sums", "link": [add.s(9)], "task_id": ID}
    assert longer.body.tasks[1].options == {}
    assert (one.header.options, one.body.options) == ({}, {})


def test_a_bar_with_anything_else_is_refused():
    for left in (group(MEMBERS), chord(MEMBERS, tsum.s())):
        with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \|"):
            left | tsum  # type: ignore[operator]


# Its parts


def test_the_options_of_a_chord_are_passed_on_to_the_parts_that_they_are_for():
    one: Any = chord(MEMBERS, tsum.s(), queue="sums", eta=None, task_id=ID)
    one.link(add.s(9))
    one.link_error(tsum.s())

    header, body = one.parts()

    assert header == group(MEMBERS, queue="sums", eta=None)
    assert body.options == {
        "queue": "sums",
        "task_id": ID,
        "link": [add.s(9)],
        "link_error": [tsum.s()],
    }
    assert (one.header.options, one.body.options) == ({}, {})


def test_arguments_are_for_the_members_of_the_header():
    one = chord([add.s(1), add.si(2, 2)], tsum.s())

    clone = one.clone((5,), queue="sums")

    assert clone.header.tasks == [add.s(5, 1), add.si(2, 2)]
    assert clone.body == tsum.s()
    assert (clone.options, one.options) == ({"queue": "sums"}, {})


def test_immutability_is_that_of_the_header():
    one: Any = chord([add.s(1), add.s(2)], tsum.s())

    one.set_immutable(True)

    assert [member.immutable for member in one.tasks] == [True, True]
    assert not one.body.immutable


# Enqueueing it


def test_every_way_to_call_a_chord_hands_it_to_the_app():
    one: Any = chord([add.s(1)], tsum.s())

    assert one() == one.delay() == (one, (), {}, {}, None, None, None)
    assert one.delay(5) == one.apply_async((5,)) == (one, (5,), {}, {}, None, None, None)
    assert one(countdown=3).options == {"countdown": 3}
    assert one.apply(type="sums", origin="here")[4:6] == ("sums", "here")


async def test_the_twins_do_the_same():
    one: Any = chord([add.s(1)], tsum.s())

    assert await one.adelay(5) == one.delay(5)
    assert await one.aapply_async((5,), queue="q") == one.apply_async((5,), queue="q")
    assert await one.aapply(type="sums") == one.apply(type="sums")


def test_the_body_may_come_with_the_call():
    bodiless: Any = chord(MEMBERS, queue="sums")

    sent: Any = bodiless(tsum.s(), countdown=3)

    assert sent.node == chord(MEMBERS, tsum.s(), queue="sums")
    assert sent.options == {"countdown": 3}
    assert bodiless.body is None
    assert chord(MEMBERS, add.s(1, 1))(tsum.si([])).node.body == tsum.si([])  # type: ignore[attr-defined]


def test_a_chord_without_a_body_is_refused_when_it_is_called():
    with pytest.raises(ConfigurationError, match=r"found none in <chord without body: \[shop.plus"):
        chord([plus.s(1, 1)])()
    with pytest.raises(ConfigurationError, match=r"write chord\(header, body.s\(\)\)"):
        group(chord([plus.s(1, 1)]), plus.s(1, 1)).delay()


def test_a_chord_belongs_to_the_app_of_its_header_or_body():
    other = App("other")

    assert chord(MEMBERS, plus.s(1)).app is app  # type: ignore[arg-type]
    assert chord([signature("shop.unknown")], total.s()).app is running
    assert chord([], total.s()).app is running
    assert chord(MEMBERS, tsum.s(), app=other).app is other


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: chord(plus.s(n, n) for n in range(10))(total.s()), 90),
        (lambda: (group(plus.s(n, n) for n in range(10)) | total.s())(), 90),
        (lambda: chord([])(total.s()), 0),
        (lambda: chord([plus.s(1, 1)], total.si([7]))(), 7),
        (lambda: (group(plus.s(1, 1)) | total.s() | plus.s(1)).delay(), 3),
        (lambda: chord([plus.s(1), plus.s(2)], total.s()).delay(10), 23),
        (lambda: chord([chord([plus.s(1, 1)], total.s())], total.s())(), 2),
    ],
)
def test_a_chord_gives_the_result_of_its_body(made: Any, expected: int):
    assert made().get() == expected


# What it shows


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (chord(MEMBERS, tsum.s()), "%shop.tsum([shop.add(1, 1), shop.add(2, 2)])"),
        (chord(MEMBERS, add.signature((3,))), "%shop.add([shop.add(1, 1), shop.add(2, 2)], 3)"),
        (chord([add.s(1, 1)], tsum.s() | add.s(3)), "%(shop.tsum([shop.add(1, 1)]) | shop.add(3))"),
        (chord([add.s(1, 1)]), "<chord without body: [shop.add(1, 1)]>"),
        (
            chord([add.s(1, 1)], group(tsum.s(), tsum.s())),
            "chord([shop.add(1, 1)], group([shop.tsum(), shop.tsum()]))",
        ),
        (
            chord((add.s(n, n) for n in range(7)), tsum.s()),
            "%shop.tsum([shop.add(0, 0), shop.add(1, 1), shop.add(2, 2), shop.add(3, 3), shop.add(4, 4), … 2 more])",
        ),
    ],
)
def test_a_chord_shows_its_header_as_an_argument_of_its_body(one: Any, text: str):
    assert repr(one) == text


def test_equal_chords_are_equal():
    assert chord(MEMBERS, tsum.s()) == group(MEMBERS) | tsum.s()
    assert chord(MEMBERS, tsum.s()) != chord(MEMBERS, tsum.si([]))
    assert chord(MEMBERS, tsum.s()) != chord(MEMBERS)
    assert chord(MEMBERS, tsum.s()) != chord(MEMBERS, tsum.s(), queue="q")
    assert chord(MEMBERS) != group(MEMBERS)
