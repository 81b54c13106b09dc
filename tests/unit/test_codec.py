"""JSON carries it exactly, or the caller is told what it does not carry and where."""

import dataclasses
import json
import math
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.codec import MAX_BYTES, MAX_DEPTH, decode, encode
from pgtasks.errors import DecodingError, EncodingError

# What PostgreSQL's text holds: anything but NUL and halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=100
)
nasty_texts = st.text(st.sampled_from('\0\\u"0[]{}n,:\ud800\udc00é😀 nul'))
nasty_trees = st.recursive(
    scalars
    | nasty_texts
    | st.floats()
    | st.integers()
    | st.binary()
    | st.datetimes()
    | st.decimals()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(nasty_texts | st.integers(), inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=30,
)


def nested(depth: int, kind: object) -> object:
    value: object = 1
    for level in range(depth):
        value = [value] if kind is list or (kind == "mixed" and level % 2) else {"a": value}
    return value


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Odd(Enum):
    PRICE = Decimal("1.50")
    BOTH = (1, 2)
    NAN = math.nan


@dataclasses.dataclass
class Parcel:
    to: str
    _weight: float = 1.0
    tags: Any = dataclasses.field(default_factory=set)


@attrs.define
class Address:
    street: str
    since: Any = None


@attrs.define
class Secretive:
    _secret: str = "x"


class Point(msgspec.Struct, tag="point", rename="camel"):
    x_axis: float
    note: str | msgspec.UnsetType = msgspec.UNSET


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: float


class Order(pydantic.BaseModel):
    when: datetime
    total: float = pydantic.Field(alias="sum")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> float:
        return self.total * 2


Position = namedtuple("Position", "x y")


# ---- the round trip ----


@given(trees)
def test_what_json_carries_comes_back_exactly(value: object):
    assert repr(decode(encode(value))) == repr(value)


@given(trees)
def test_encoded_text_is_strict_json(value: object):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = encode(value)

    assert json.loads(text, parse_constant=refuse) == value
    assert "\0" not in text


@given(nasty_trees)
def test_any_value_is_refused_with_its_path_or_read_back_as_strict_json(value: object):
    try:
        text = encode(value, "args")
    except EncodingError as error:
        assert str(error).startswith("args")  # noqa: PT017 (most values pass)
        return

    assert encode(decode(text)) == text
    assert "\\u0000" not in text.replace("\\\\", "")


@given(st.text('[]{}",:0123456789.eE+-\\u truefalsnNaInity'))
def test_any_text_is_read_like_the_standard_library_reads_it_or_refused(text: str):
    try:
        value = decode(text)
    except DecodingError:
        return

    assert value == json.loads(text)


@pytest.mark.parametrize("value", [-0.0, 1e308, 5e-324, 0.1 + 0.2, 2**64 - 1, -(2**63), 1e16])
def test_numbers_at_the_edges_come_back_exactly(value: float):
    assert repr(decode(encode([value]))) == repr([value])


def test_text_that_looks_like_trouble_is_fine():
    value = {"null": "null", "a": "\\u0000", "b": '"[[[{{{' * 100, "c": None, "d": [1.5, None]}

    assert decode(encode(value)) == value


# ---- beyond JSON's own types ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, (2,)), "[1,[2]]"),
        (Position(1, 2), "[1,2]"),
        (OrderedDict(a=1), '{"a":1}'),
        (type("Ratio", (float,), {})(0.5), "0.5"),
        (Colour.RED, '"red"'),
        (Level.HIGH, "3"),
        (Odd.PRICE, '"1.50"'),
        (Odd.BOTH, "[1,2]"),
        (Decimal("1.50"), '"1.50"'),
        (b"\xff\0", '"/wA="'),
        (bytearray(b"abc"), '"YWJj"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (date(2024, 2, 29), '"2024-02-29"'),
        (datetime(2024, 2, 29, 1, 2, 3, 4), '"2024-02-29T01:02:03.000004"'),  # noqa: DTZ001
        (datetime(2024, 2, 29, tzinfo=UTC), '"2024-02-29T00:00:00+00:00"'),
        (time(1, 2, 3), '"01:02:03"'),
        (time(1, 2, tzinfo=UTC), '"01:02:00+00:00"'),
        (timedelta(days=1, seconds=1), '"P1DT1S"'),
        (Parcel("ann", 2.0, {"x"}), '{"to":"ann","_weight":2.0,"tags":["x"]}'),
        (Address("Main St", date(2020, 1, 1)), '{"street":"Main St","since":"2020-01-01"}'),
        (Point(1.0), '{"xAxis":1.0,"type":"point"}'),
        (Pair(1, 2.0), "[1,2.0]"),
        (
            Order(when=datetime(2024, 1, 1, tzinfo=UTC), sum=2),
            '{"when":"2024-01-01T00:00:00Z","sum":2.0}',
        ),
    ],
)
def test_a_type_beyond_json_has_its_form(value: object, text: str):
    assert encode(value) == text
    assert encode({"a": [value]}) == f'{{"a":[{text}]}}'


def test_an_offset_that_is_not_in_minutes_is_written_as_utc():
    amsterdam_1900 = timezone(timedelta(minutes=19, seconds=32))
    moment = datetime(1900, 1, 1, tzinfo=amsterdam_1900)

    text = decode(encode(moment))

    assert datetime.fromisoformat(text) == moment
    assert text.endswith("+00:00")


# ---- what is refused ----


class Mystery:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"when": math.nan}], 'args[0]["when"]: NaN is not JSON'),
        ([None, math.inf], "args[1]: Infinity is not JSON"),
        (-math.inf, "args: -Infinity is not JSON"),
        ([(1, [math.nan])], "args[0][1][0]: NaN is not JSON"),
        ([type("Ratio", (float,), {})("nan")], "args[0]: NaN is not JSON"),
        ([Parcel("ann", math.nan)], "args[0]._weight: NaN is not JSON"),
        ([Address("a", [math.nan])], "args[0].since[0]: NaN is not JSON"),
        ([Point(math.nan)], "args[0].xAxis: NaN is not JSON"),
        ([Pair(1, math.nan)], "args[0][1]: NaN is not JSON"),
        ([Odd.NAN], "args[0]: NaN is not JSON"),
        (
            [Order(when=datetime(2024, 1, 1, tzinfo=UTC), sum=math.nan)],
            "args[0].sum: NaN is not JSON",
        ),
        ({"to": "a\0b"}, r"""args["to"]: '\x00' cannot be stored by PostgreSQL: remove the NUL"""),
        ({"a\0": 1}, r"args, a key: '\x00' cannot be stored"),
        (["\ud800"], r"args[0]: '\ud800' is half of a surrogate pair"),
        ({"\udc00": 1}, r"args, a key: '\udc00' is half of a surrogate pair"),
        ([{1: 2}], "args[0]: keys must be str, found int"),
        ([{Colour.RED: 2}], "args[0]: keys must be str, found Colour"),
        ([2**64], "args[0]: an integer beyond 64 bits"),
        ([-(2**63) - 1], "args[0]: an integer beyond 64 bits"),
        ([10**5000], "args[0]: an integer beyond 64 bits"),
        ([{1, 2}], "args[0]: set has no order"),
        ([frozenset()], "args[0]: frozenset has no order"),
        ([Mystery()], "args[0]: Mystery is not JSON"),
        ([Mystery], "args[0]: type is not JSON"),
        ([Parcel], "args[0]: type is not JSON"),
        ([Fraction(1, 2)], "args[0]: Fraction is not JSON"),
        ([1j], "args[0]: complex is not JSON"),
        ([iter([])], "args[0]: list_iterator is not JSON"),
        ([Parcel("ann", tags=Mystery())], "args[0].tags: Mystery is not JSON"),
        ([Secretive()], "args[0]: Secretive._secret is a private attrs field"),
        (
            [time(1, tzinfo=timezone(timedelta(seconds=1)))],
            "args[0]: a time whose offset is not in whole minutes",
        ),
        (
            [datetime.min.replace(tzinfo=timezone(timedelta(seconds=1)))],
            "args[0]: date value out of range",
        ),
    ],
)
def test_what_json_cannot_carry_is_refused_with_its_path(value: object, message: str):
    with pytest.raises(EncodingError) as caught:
        encode(value, "args")

    assert str(caught.value).startswith(message)


def test_a_path_can_be_printed_whatever_the_key():
    with pytest.raises(EncodingError) as caught:
        encode({"\n\x1b" + "x" * 100: {1: 2}}, "kwargs")

    assert str(caught.value).startswith(r'kwargs["\n\u001bxxx')
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("kind", [list, dict, "mixed"])
def test_nesting_ends_at_64_levels(kind: object):
    assert decode(encode(nested(MAX_DEPTH, kind))) == nested(MAX_DEPTH, kind)

    for depth in (MAX_DEPTH + 1, 200, 300, 5000):
        with pytest.raises(EncodingError, match="nested deeper than 64 levels"):
            encode(nested(depth, kind))


def test_much_beside_each_other_is_not_deep():
    value = [[{"a": [']"']}] for _ in range(1000)]

    assert decode(encode(value)) == value


def test_a_circle_is_refused():
    circle: list[object] = []
    circle.append({"self": circle})
    parcel = Parcel("ann")
    parcel.tags = [parcel]

    with pytest.raises(EncodingError, match=r'^value\[0\]\["self"\]: a circular reference'):
        encode(circle)
    with pytest.raises(EncodingError, match=r"^value\.tags\[0\]: a circular reference"):
        encode(parcel)


def test_the_same_object_twice_is_no_circle():
    shared = [1.5, None]

    assert encode([shared, {"a": shared}]) == '[[1.5,null],{"a":[1.5,null]}]'


def test_size_is_capped_in_bytes_of_utf8():
    fits = "é" * (MAX_BYTES // 2 - 1)

    assert len(encode(fits).encode()) == MAX_BYTES
    with pytest.raises(EncodingError, match=r"^args: 1,048,577 bytes of JSON, .* 1,048,576: store"):
        encode(fits + "x", "args")
    with pytest.raises(EncodingError, match="expected at most 10"):
        encode("0123456789", max_bytes=10)


# ---- reading ----


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e400",
        "[-1e5000]",
        "1" * 10_000,
        str(2**64),
        f"[{-(2**63) - 1}]",
        '{"a": 1, "a": 2}',
        '[{"a":{"b":1,"\\u0062":2}}]',
        '"\\ud800"',
        "'a'",
        "\ufeff1",
        b"\xff",
        b'"\xed\xa0\x80"',
        "[" * 100_000,
        "[" * 65 + "]" * 65,
        "[" * 1025 + "]" * 1025,
        '{"a":' * 65 + "1" + "}" * 65,
    ],
)
def test_text_that_is_not_strict_json_is_refused(text: str | bytes):
    with pytest.raises(DecodingError, match=r"^kwargs: "):
        decode(text, "kwargs")


@given(st.integers(60, 70), st.lists(st.sampled_from(["list", "dict", "noise"]), min_size=1))
def test_depth_is_counted_exactly(depth: int, kinds: list[str]):
    forms = {
        "list": lambda inner: [inner],
        "dict": lambda inner: {"[": inner, "]": '"}'},
        "noise": lambda inner: ["]", inner, "{[", []],
    }
    value: object = []
    for level in range(depth - 1):
        value = forms[kinds[level % len(kinds)]](value)

    if depth > MAX_DEPTH:
        with pytest.raises(EncodingError, match="nested deeper"):
            encode(value)
        with pytest.raises(DecodingError, match="nested deeper"):
            decode(json.dumps(value))
    else:
        assert decode(encode(value)) == value


def test_a_refusal_does_not_quote_what_is_stored():
    for text in ['{"secret": hunter2}', '{"hunter2": 1, "hunter2": 2}', '["hunter2', "[" * 70]:
        with pytest.raises(DecodingError) as caught:
            decode(text)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{ "a" : [ 1, 2.50, -0 ] }', {"a": [1, 2.5, 0]}),
        ('"\\u00e9\\/"', "é/"),
        ("1E2", 100.0),
        (b'{"a":1}', {"a": 1}),
        (" [18446744073709551615] ", [2**64 - 1]),
        ('{"b":1,"a":{"b":2}}', {"b": 1, "a": {"b": 2}}),
    ],
)
def test_text_from_elsewhere_is_read_if_it_is_strict(text: str | bytes, value: object):
    assert decode(text) == value
