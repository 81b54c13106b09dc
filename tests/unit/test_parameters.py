"""Arguments bind like a call's, and come to the function as the types that it names."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum, auto
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgtasks.codec import decode, encode
from pgtasks.errors import ConfigurationError, DecodingError
from pgtasks.parameters import Parameters


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Odd(Enum):
    PRICE = Decimal("1.50")
    BOTH = (1, 2)
    NOTHING = None


class Rights(Flag):
    READ = auto()
    WRITE = auto()


@dataclasses.dataclass(frozen=True)
class Address:
    street: str
    since: date | None = None


@dataclasses.dataclass
class Parcel:
    to: Address
    weight: float
    sent: datetime | None = None
    tags: set[str] = dataclasses.field(default_factory=set)
    labels: dict[str, Decimal] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Letter:
    to: Address
    weight: float
    pages: int


@attrs.define
class Person:
    name: str
    born: date


class Point(msgspec.Struct, tag=True, rename="camel"):
    x_axis: float
    seen_at: datetime | None = None


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: UUID


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    when: datetime
    price: Decimal
    lines: list[Address] = []

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def year(self) -> int:
        return self.when.year


class Ticket(TypedDict):
    seat: str
    at: typing.NotRequired[datetime]


class Note(TypedDict):
    text: str


class Span(NamedTuple):
    start: datetime
    length: timedelta = timedelta(0)


class Mystery:
    pass


UserId = NewType("UserId", UUID)


def plan_for(hint: Any) -> Parameters:
    def task(it): ...

    task.__annotations__ = {"it": hint, "return": hint}
    return Parameters(task)


def rebuilt(hint: Any, value: Any) -> Any:
    """Send the value as an argument of a task that annotates it so."""
    args, kwargs = plan_for(hint).convert(decode(encode([value])), {})
    assert kwargs == {}
    return args[0]


# ---- binding ----


def send_email(to: str, subject: str = "Welcome", *, urgent: bool = False) -> str:
    return to


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "send_email() missing 1 required positional argument: 'to'"),
        (
            ("a", "b", "c"),
            {},
            "send_email() takes from 1 to 2 positional arguments but 3 were given",
        ),
        (("a",), {"to": "b"}, "send_email() got multiple values for argument 'to'"),
        (("a",), {"too": "b"}, "send_email() got an unexpected keyword argument 'too'"),
    ],
)
def test_a_call_that_does_not_fit_raises_what_python_raises(args, kwargs, message):
    with pytest.raises(TypeError) as caught:
        Parameters(send_email).bind(args, kwargs)
    with pytest.raises(TypeError) as plain:
        send_email(*args, **kwargs)

    assert str(caught.value).startswith(message)
    assert str(caught.value) == str(plain.value)


def test_a_call_that_fits_binds():
    parameters = Parameters(send_email)

    parameters.bind(("a",), {})
    parameters.bind(["a", "b"], {"urgent": True})
    parameters.bind((), {"to": "a", "subject": "b"})


def test_the_task_itself_is_not_the_callers_to_give():
    def resize(self, image: str): ...

    parameters = Parameters(resize, bound=True)

    parameters.bind(("a.png",), {})
    with pytest.raises(TypeError, match=r"takes 1 positional argument but 2 were given"):
        parameters.bind(("task", "a.png"), {})
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'self'"):
        parameters.bind(("a.png",), {"self": 1})


def test_a_bound_task_must_take_itself():
    with pytest.raises(ConfigurationError, match=r"bind=True gives .*<lambda>\(\) the task"):
        Parameters(lambda: None, bound=True)

    Parameters(lambda *args: None, bound=True).bind((1, 2), {})


def test_other_callables_bind_too():
    class Greeter:
        def __call__(self, name: str, when: datetime): ...

        def greet(self, name: str, when: datetime): ...

    partial = functools.partial(send_email, subject="x")
    now = datetime(2024, 1, 1, tzinfo=UTC)

    for function in (Greeter(), Greeter().greet, functools.partial(Greeter().greet, when=now)):
        parameters = Parameters(function)
        parameters.bind(("ann",), {"when": now})
        with pytest.raises(TypeError):
            parameters.bind(("ann", now, 3), {})
        assert parameters.convert(["ann"], {"when": now.isoformat()}) == (["ann"], {"when": now})
    Parameters(partial).bind(("a",), {})
    with pytest.raises(TypeError, match=r"send_email|partial"):
        Parameters(partial).bind((), {})


def test_a_function_without_a_signature_takes_anything():
    def hidden(): ...

    hidden.__signature__ = "none"  # type: ignore[attr-defined]
    parameters = Parameters(hidden)

    parameters.bind((1, 2), {"x": 3})
    assert not parameters.converts
    assert not parameters.converts_result


KINDS = inspect.Parameter
names = ["a", "b", "c", "d", "e", "args", "kwargs", "self"]


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    order = draw(st.permutations(names))
    kinds = sorted(draw(st.lists(st.sampled_from(list(inspect._ParameterKind)), max_size=6)))
    parameters: list[inspect.Parameter] = []
    optional = False
    for name, kind in zip(order, kinds, strict=False):
        variadic = kind in (KINDS.VAR_POSITIONAL, KINDS.VAR_KEYWORD)
        if variadic and any(kind is p.kind for p in parameters):
            continue
        default: Any = KINDS.empty
        if not variadic and (draw(st.booleans()) or (optional and kind < KINDS.VAR_POSITIONAL)):
            default, optional = Mystery(), optional or kind < KINDS.VAR_POSITIONAL
        parameters.append(KINDS(name, kind, default=default, annotation=Mystery))
    return inspect.Signature(parameters)


@given(
    signatures(),
    st.lists(st.integers(), max_size=6),
    st.dictionaries(st.sampled_from([*names, "zz"]), st.integers(), max_size=5),
)
def test_binding_agrees_with_inspect(signature, args, kwargs):
    # Of `def f(a=0, /, **more)` and f(a=1) inspect says no (until Python 3.13), the interpreter yes.
    kwargs = {
        name: value
        for name, value in kwargs.items()
        if name not in signature.parameters
        or signature.parameters[name].kind is not KINDS.POSITIONAL_ONLY
    }

    def task(): ...

    task.__signature__ = signature  # type: ignore[attr-defined]

    def accepts(bind: Callable[[], object]) -> bool:
        try:
            bind()
        except TypeError:
            return False
        return True

    expected = accepts(lambda: signature.bind(*args, **kwargs))
    assert accepts(lambda: Parameters(task).bind(args, kwargs)) == expected


# ---- rebuilding ----

whole_minutes = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
moments = st.datetimes(timezones=st.none() | whole_minutes)
addresses = st.builds(Address, st.text("abc"), st.none() | st.dates())
finite = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False)
parcels = st.builds(
    Parcel,
    addresses,
    finite,
    st.none() | moments,
    st.sets(st.text("abc")),
    st.dictionaries(st.text("abc"), decimals),
)
letters = st.builds(Letter, addresses, finite, st.integers(0, 9))
orders = st.builds(
    Order,
    when=moments,
    price=decimals.filter(Decimal.is_finite),
    lines=st.lists(addresses, max_size=2),
)
annotated_values: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (datetime, moments),
    (datetime | None, st.none() | moments),
    (date, st.dates()),
    (time, st.times(timezones=st.none() | whole_minutes)),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (UserId, st.uuids()),
    (Decimal, decimals),
    (bytes, st.binary()),
    (bytearray, st.binary().map(bytearray)),
    (Colour, st.sampled_from(Colour)),
    (Level | None, st.none() | st.sampled_from(Level)),
    (Odd, st.sampled_from(Odd)),
    (list[Odd], st.lists(st.sampled_from(Odd))),
    (dict[str, Odd], st.dictionaries(st.text("ab"), st.sampled_from(Odd))),
    (Rights, st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE])),
    (Address, addresses),
    (Parcel, parcels),
    (Parcel | None, st.none() | parcels),
    (Parcel | Letter, parcels | letters),
    (Letter | Parcel | None, st.none() | parcels | letters),
    (list[Parcel | Letter], st.lists(parcels | letters, max_size=3)),
    (Person, st.builds(Person, st.text("abc"), st.dates())),
    (Point, st.builds(Point, finite, st.none() | moments)),
    (Pair, st.builds(Pair, st.integers(0, 9), st.uuids())),
    (Order, orders),
    (list[Order | None], st.lists(st.none() | orders)),
    (Ticket, st.fixed_dictionaries({"seat": st.text("ab")}, optional={"at": moments})),
    (Span, st.builds(Span, moments, st.timedeltas())),
    (tuple[datetime, ...], st.lists(moments).map(tuple)),
    (tuple[int, UUID], st.tuples(st.integers(0, 9), st.uuids())),
    (tuple, st.tuples(st.integers(0, 9))),
    (list[datetime], st.lists(moments)),
    (Sequence[date], st.lists(st.dates())),
    (dict[str, list[UUID]], st.dictionaries(st.text("ab"), st.lists(st.uuids()))),
    (Mapping[str, Address], st.dictionaries(st.text("ab"), addresses)),
    (Annotated[datetime, "when"], moments),
    (datetime | int, moments | st.integers(0, 9)),
    (datetime | str, moments | st.text("abc")),
    (str | UUID | float | None, st.none() | st.uuids() | st.text("xyz") | finite),
    (Address | str, addresses | st.text("{}abc")),
    (bytes | str, st.text("ABCD")),
    (Order | int, st.integers(0, 9) | orders),
]


@pytest.mark.parametrize(("hint", "values"), annotated_values, ids=lambda x: str(x)[:60])
@settings(
    max_examples=25,  # times as many types
    # Time zones without some moments are thrown away; how many is chance.
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_annotated_type_comes_back_equal(hint: Any, values: Any, data: st.DataObject):
    value = data.draw(values)

    again = rebuilt(hint, value)

    assert again == value
    assert type(again) is type(value)
    assert plan_for(hint).converts
    assert plan_for(hint).convert_result(decode(encode(value))) == value


@pytest.mark.parametrize(
    "hint",
    [
        inspect.Parameter.empty,
        None,
        Any,
        object,
        int,
        str,
        float,
        bool,
        list,
        dict,
        list[int],
        dict[str, Any],
        int | None,
        list[str | int] | dict[str, float],
        Literal["a", "b"],
        Annotated[int, msgspec.Meta(gt=100)],
        Callable[[datetime], None],
        type[datetime],
        typing.TypeVar("T"),
        Mystery,
        Note,
        "Nowhere",
        "list[Nowhere.Known]",
        "this is no annotation",
        5,
    ],
    ids=str,
)
def test_a_plain_or_unknown_annotation_is_neither_converted_nor_checked(hint: Any):
    parameters = plan_for(hint)

    assert not parameters.converts
    assert not parameters.converts_result
    assert parameters.convert(["7", 8], {"it": [9]}) == (["7", 8], {"it": [9]})
    assert parameters.convert_result({"a": 1}) == {"a": 1}


def test_each_kind_of_parameter_is_rebuilt():
    def task(
        self, first: date, /, second: date, *rest: date, by_name: date, plain=1, **more: date
    ): ...

    day, text = date(2024, 2, 29), "2024-02-29"
    parameters = Parameters(task, bound=True)

    assert parameters.convert([text] * 4, {"by_name": text, "plain": text, "other": text}) == (
        [day] * 4,
        {"by_name": day, "plain": text, "other": day},
    )
    assert parameters.convert([text], {"second": text, "first": text}) == (
        [day],
        {"second": day, "first": day},
    )


def test_the_given_arguments_are_left_alone():
    def task(day: date): ...

    args, kwargs = ["2024-02-29"], {"day": "2024-02-29"}

    Parameters(task).convert(args, kwargs)

    assert (args, kwargs) == (["2024-02-29"], {"day": "2024-02-29"})


def test_annotations_in_quotes_are_resolved_when_first_needed():
    module = types.ModuleType("later")
    source = "def task(it: 'list[Later]', other: 'Never', *rest: 'date') -> 'Later': ..."
    exec(source, module.__dict__)
    parameters = Parameters(module.task)
    parameters.bind((1, 2), {})

    module.__dict__.update(Later=Address, date=date)

    args = decode(encode([[Address("a")], Address("b"), date(2024, 1, 1)]))
    assert parameters.convert(args, {})[0] == [
        [Address("a")],
        {"street": "b", "since": None},
        date(2024, 1, 1),
    ]
    assert parameters.convert_result({"street": "b"}) == Address("b")


def test_a_decorated_function_keeps_its_annotations():
    @functools.wraps(send_email)
    def send_later(*args, **kwargs): ...

    @functools.wraps(rebuilt)
    def wrapped(*args, **kwargs): ...

    wrapped.__wrapped__ = quoted  # type: ignore[assignment]

    Parameters(send_later).bind((), {"to": "a"})
    assert Parameters(wrapped).convert(["2024-02-29"], {})[0] == [date(2024, 2, 29)]


def quoted(day: "date"): ...


def test_none_is_left_to_the_function():
    def task(when: datetime = None): ...  # type: ignore[assignment]  # noqa: RUF013

    assert Parameters(task).convert([None], {"when": None}) == ([None], {"when": None})


def test_a_class_whose_fields_cannot_be_resolved_is_left_alone():
    lost = dataclasses.make_dataclass("Lost", [("a", "Nowhere")])

    assert not plan_for(lost).converts


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (datetime, 5, "argument 'it': expected `datetime`, got `int`"),
        (datetime, "hunter2", "argument 'it': invalid RFC3339 encoded datetime"),
        (list[Address], [{"street": 5}], "expected `str`, got `int` - at `$[0].street`"),
        (Address, {"s": "hunter2"}, "missing required field `street`"),
        (Colour, "hunter2", "argument 'it': not a value of Colour"),
        (list[Colour], ["hunter2"], "argument 'it': not a value of the enum - at `$[0]`"),
        (list[Odd], "hunter2", "expected list, got str"),
        (dict[str, Odd], {"a": "hunter2"}, "not a value of Odd"),
        (Order, {"when": "hunter2", "price": "1"}, "argument 'it': order when: input should be"),
        (list[Order], [{"price": "hunter2"}], "order when: field required - at `$[0]`"),
        (
            Parcel | Letter,
            {"weight": "hunter2"},
            "expected `float`, got `str` - at `$.weight`; expected",
        ),
        (UUID | Mystery, "hunter2", None),
        (UUID | date, "hunter2", "invalid UUID; invalid RFC3339 encoded date"),
        (
            list[UUID | complex] | set[Address],
            "hunter2",
            "expected list, got str; expected `array`",
        ),
        (list[tuple[Mystery, date]], [[1, "2024-01-01"]], "mystery cannot be rebuilt from JSON"),
        (frozenset[Decimal | UUID], ["hunter2"], "its annotation cannot be rebuilt: type unions"),
    ],
)
def test_what_does_not_fit_is_refused_without_quoting_it(hint, value, message):
    parameters = plan_for(hint)

    if message is None:
        assert parameters.convert([value], {})[0] == [value]
        return
    with pytest.raises(DecodingError) as caught:
        parameters.convert([value], {})
    with pytest.raises(DecodingError, match=r"^result: "):
        parameters.convert_result(value)

    assert str(caught.value).startswith("argument 'it': ")
    assert message.lower() in str(caught.value).lower()
    assert "hunter2" not in str(caught.value)


def test_a_misfit_among_other_arguments_is_named():
    def task(*days: date, **more: date): ...

    with pytest.raises(DecodingError, match=r"^argument '\*1': expected `date`"):
        Parameters(task).convert(["2024-01-01", 5], {})
    with pytest.raises(DecodingError, match=r"^argument 'due': expected `date`"):
        Parameters(task).convert([], {"due": 5})
