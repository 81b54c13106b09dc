"""A key over arguments is one text for one call, however it is written; what cannot be a key is refused."""

import functools
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.errors import ConfigurationError
from pgtasks.keys import LATER, MAX_KEY, check_key, make_key
from pgtasks.parameters import Parameters

SOME_ID = UUID("01890000-0000-7000-8000-000000000001")


class Colour(Enum):
    RED = "red"


def order(customer_id, lines=(), *, urgent=False):
    """Stand for a task."""


def named(*args, **kwargs):
    return Parameters(order).arguments(args, kwargs)


def test_all_arguments_make_one_key_however_the_call_is_written():
    ways = [
        named(7, [1, {"b": 1, "a": 2}]),
        named(customer_id=7, lines=[1, {"a": 2, "b": 1}]),
        named(7, lines=[1, {"b": 1, "a": 2}], urgent=False),
    ]

    keys = {make_key("shop.order", True, way) for way in ways}

    assert len(keys) == 1
    assert keys.isdisjoint(
        {make_key("shop.order", True, named(7)), make_key("shop.order", True, named(8, [1]))}
    )


@given(st.dictionaries(st.text("abcdé{", max_size=5), st.integers(0, 3), max_size=5), st.randoms())
def test_the_order_of_names_makes_no_difference(options, random):
    def takes(**options): ...

    items = list(options.items())
    random.shuffle(items)

    first = make_key("t", True, Parameters(takes).arguments((), options))
    second = make_key("t", True, Parameters(takes).arguments((), dict(items)))

    assert first == second
    assert 0 < len(first) <= MAX_KEY


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (lambda customer_id: customer_id, "7"),
        (lambda customer_id, urgent: f"{customer_id}:{urgent}", "7:False"),
        (lambda customer_id, absent="none": (customer_id, absent), '[7,"none"]'),
        (lambda **all: sorted(all), '["customer_id","lines","urgent"]'),
        (lambda: "one", "one"),
        (lambda: SOME_ID, str(SOME_ID)),
        (lambda: Decimal("1.50"), "1.50"),
        (lambda: date(2026, 1, 2), "2026-01-02"),
        (lambda: datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (lambda: Colour.RED, "red"),
        (lambda: 0.5, "0.5"),
        (lambda: "ü" * MAX_KEY, "ü" * MAX_KEY),
        (functools.partial(lambda customer_id, prefix: f"{prefix}{customer_id}", prefix="c"), "c7"),
        ("{customer_id}", "7"),
        ("c{customer_id:03}-{urgent}", "c007-False"),
        ("{lines[0]}{{}}", "1{}"),
        ("{customer_id!r}", "7"),
    ],
)
def test_functions_and_templates_take_arguments_by_name(key, text):
    check_key("shop.order", key, Parameters(order).names)

    assert make_key("shop.order", key, named(7, [1])) == text


def test_a_template_reaches_into_an_argument():
    assert make_key("t", "{order.id}", {"order": SimpleNamespace(id=3)}) == "3"


def fail(customer_id):
    raise LookupError("no such customer")


async def awaited(customer_id): ...


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (fail, "its key function raised LookupError: no such customer"),
        (lambda: None, "its key function gave None, which cannot be a key: expected a text"),
        (lambda: b"x", "its key function gave bytes, which cannot be a key"),
        (lambda: float("nan"), "its key function gave nan, which cannot be a key"),
        (lambda: Decimal("sNaN"), "its key function gave Decimal('sNaN'), which cannot be a key"),
        (lambda: {"a": 1}, "its key function gave dict, which cannot be a key"),
        (lambda: awaited(1), "its key function gave coroutine, which cannot be a key"),
        (lambda: [float("nan")], "NaN is not JSON"),
        (lambda: "x" * (MAX_KEY + 1), "gave 201 characters, expected 1 to 200: take an id, or a"),
        (lambda: "", "gave 0 characters, expected 1 to 200: an empty text cannot be a key"),
        (lambda: "a\0", "remove the NUL character"),
        (lambda: "\ud800", "half of a surrogate pair"),
        ("{lines}", "{lines} of its template gave list, which cannot be a key"),
        ("{customer_id:s}", "{customer_id} of its template raised ValueError"),
        ("{customer_id.name}", "{customer_id.name} of its template raised AttributeError"),
    ],
)
def test_what_cannot_be_a_key_is_refused_at_the_call(key, said):
    with pytest.raises(ConfigurationError) as refused:
        make_key("shop.order", key, named(7, [1]), option="unique")

    assert str(refused.value).startswith("task 'shop.order': unique")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (3, 'is True, a function of the task\'s parameters, or a template such as "{customer_id}"'),
        (False, "found False"),
        (lambda tenant: tenant, "takes 'tenant' into its key, but the task has no such parameter: "
         "found customer_id, lines, urgent"),
        ("{tenant}", "takes 'tenant' into its key, but the task has no such parameter"),
        ("customer", "is a template that names no parameter, found 'customer'"),
        ("{0}", "is a template that names no parameter"),
        ("{", "is no template: Single '{' encountered in format string"),
        (lambda *all: "x", "takes them by position"),
        (awaited, "write def, not async def"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused_at_the_definition(key, said):
    with pytest.raises(ConfigurationError) as refused:
        check_key("shop.order", key, Parameters(order).names, option="unique")

    assert said in str(refused.value)


@pytest.mark.parametrize("key", [True, lambda customer_id: customer_id, "{customer_id}"])
def test_an_argument_that_another_job_gives_is_not_known_yet(key):
    later = Parameters(order).arguments((), {"lines": [1]}, unknown=[LATER])

    with pytest.raises(ConfigurationError, match="another job gives that argument when it ends"):
        make_key("shop.order", key, later)
    assert make_key("shop.order", "{lines[0]}", later) == "1"
    assert make_key("shop.order", lambda **known: len(known), later) == "2"


def test_arguments_without_declared_names_are_found_by_their_own():
    def anything(*args, **kwargs): ...

    bound = Parameters(anything).arguments((1,), {"tenant": 2})

    check_key("t", lambda tenant: tenant, Parameters(anything).names)
    assert make_key("t", lambda tenant, args: f"{tenant}{args[0]}", bound) == "21"


def test_the_task_itself_is_none_of_the_arguments():
    def method(self, customer_id): ...

    parameters = Parameters(method, bound=True)

    assert parameters.names == frozenset({"customer_id"})
    assert parameters.arguments((5,), {}) == {"customer_id": 5}
