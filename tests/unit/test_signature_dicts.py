"""Canvases as data: ``to_dict`` and back, in Celery's form; and signatures as arguments of tasks."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks import App, Signature, chain, chord, codec, group, signature
from pgtasks.errors import ConfigurationError, TaskFailedError
from pgtasks.node import Node

app = App("shop", eager=True)


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.tsum")
def tsum(numbers: list[int]) -> int:
    return sum(numbers)


# Round trips

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["mail", "sums"]),
        "priority": st.integers(-5, 5),
        "countdown": st.floats(0, 100),
        "eta": st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        "expires": st.floats(0, 100),
        "ignore_result": st.booleans(),
    },
)


def _linked(node: Any, callbacks: Any, errbacks: Any) -> Any:
    for one in callbacks:
        node.link(one)
    for one in errbacks:
        node.link_error(one)
    return node


signatures = st.builds(
    lambda task, args, kwargs, options, immutable: signature(
        task, args, kwargs, immutable=immutable, **options
    ),
    st.sampled_from([add, tsum, "shop.unknown"]),
    st.lists(values, max_size=2),
    st.dictionaries(st.text(max_size=3), values, max_size=2),
    options,
    st.booleans(),
)


def _wholes(inner: Any) -> Any:
    several = st.lists(inner, max_size=3)
    return (
        st.builds(lambda tasks, options: chain(tasks, **options), several, options)
        | st.builds(lambda tasks, options: group(tasks, **options), several, options)
        | st.builds(
            lambda header, body, options: chord(header, body, **options),
            several | several.map(lambda tasks: group(tasks, queue="other")),
            st.none() | inner,
            options,
        )
        | st.builds(
            _linked, inner.map(copy.copy), st.lists(inner, max_size=2), st.lists(inner, max_size=1)
        )
    )


nodes = st.recursive(signatures, _wholes, max_leaves=8)


@given(nodes)
def test_a_canvas_is_read_as_it_was_written(node: Any):
    text = json.dumps(node.to_dict())

    read = Node.from_dict(json.loads(text), app=app)

    assert type(read) is type(node)
    assert read == node
    assert read.to_dict() == node.to_dict()
    assert repr(read) == repr(node)


@given(nodes)
def test_a_clone_is_equal_and_shares_nothing_that_changes(node: Any):
    before = node.to_dict()

    for clone in (node.clone(), copy.copy(node), copy.deepcopy(node), signature(node)):
        assert clone == node
        clone.set(priority=99).link(add.s(99))
        clone.set_immutable(True)
        _set_everywhere(clone)

    assert node.to_dict() == before


def _set_everywhere(node: Any) -> None:
    node.set(queue="changed")
    getattr(node, "kwargs", {})["changed"] = True
    inner = [*getattr(node, "tasks", ()), getattr(node, "body", None)]
    inner += [*node.options.get("link", ()), *node.options.get("link_error", ())]
    for one in inner:
        if one is not None:
            _set_everywhere(one)


@given(nodes)
def test_a_canvas_survives_pickle_by_the_names_of_its_tasks(node: Any):
    assert pickle.loads(pickle.dumps(node)) == node


# The form


def test_a_signature_has_celerys_form():
    assert add.si(2, y=2).set(countdown=3).to_dict() == {
        "task": "shop.add",
        "args": [2],
        "kwargs": {"y": 2},
        "options": {"countdown": 3},
        "subtask_type": None,
        "immutable": True,
    }


@pytest.mark.parametrize(
    ("node", "kind", "kwargs"),
    [
        (
            chain(add.s(1, 2), add.s(3)),
            "chain",
            {"tasks": [add.s(1, 2).to_dict(), add.s(3).to_dict()]},
        ),
        (group(add.s(1, 2)), "group", {"tasks": [add.s(1, 2).to_dict()]}),
        (
            chord([add.s(1, 2)], tsum.s()),
            "chord",
            {"kwargs": {}, "header": [add.s(1, 2).to_dict()], "body": tsum.s().to_dict()},
        ),
        (chord([]), "chord", {"kwargs": {}, "header": [], "body": None}),
    ],
)
def test_what_is_put_together_has_celerys_form(node: Any, kind: str, kwargs: Any):
    node.set(queue="mail").link(add.s(1))

    assert node.to_dict() == {
        "task": f"pgtasks.{kind}",
        "args": [],
        "kwargs": kwargs,
        "options": {"queue": "mail", "link": [add.s(1).to_dict()]},
        "subtask_type": kind,
        "immutable": False,
    }


def test_moments_and_spans_are_written_as_text_and_seconds_and_connections_not():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    one = add.s(1, 2).set(
        eta=moment, expires=moment, countdown=timedelta(minutes=1), connection=object()
    )

    written = one.to_dict()["options"]

    text = "2026-01-01T00:00:00+00:00"
    assert written == {"eta": text, "expires": text, "countdown": 60.0}
    assert Signature.from_dict(one.to_dict()).options == {
        "eta": moment,
        "expires": moment,
        "countdown": 60.0,
    }


# Reading what Celery wrote

CELERY: dict[str, Any] = {
    "args": [],
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": False,
}
PARTS = [
    {**CELERY, "task": "shop.add", "args": [1, 2]},
    {**CELERY, "task": "shop.add", "args": [3]},
]


@pytest.mark.parametrize("prefix", ["celery.", "pgtasks."])
@pytest.mark.parametrize("typed", [True, False])
def test_celerys_names_and_types_are_understood(prefix: str, typed: bool):
    def written(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {
            **CELERY,
            "task": prefix + kind,
            "kwargs": kwargs,
            "subtask_type": kind if typed else None,
        }

    body = {**CELERY, "task": "shop.tsum"}

    assert signature(written("chain", tasks=PARTS)) == chain(add.s(1, 2), add.s(3))
    assert signature(written("group", tasks=tuple(PARTS))) == group(add.s(1, 2), add.s(3))
    assert signature(written("chord", header=PARTS, body=body)) == chord(
        [add.s(1, 2), add.s(3)],
        tsum.s(),
    )
    assert signature(
        written("chord", header=written("group", tasks=PARTS[:1]), body=None)
    ) == chord([add.s(1, 2)])


def test_what_celery_gives_to_a_whole_chain_is_its_first_steps():
    written = {
        **CELERY,
        "task": "celery.chain",
        "subtask_type": "chain",
        "args": [5],
        "immutable": True,
    }

    read: Any = signature({**written, "kwargs": {"tasks": PARTS}})

    assert read.tasks == [add.si(5, 1, 2), add.s(3)]  # type: ignore[call-arg]


def test_keys_may_be_missing_or_null():
    assert signature({"task": "shop.add"}) == add.s()
    assert signature({"task": "shop.add", "args": None, "kwargs": None, "options": None}) == add.s()
    assert signature({"task": "shop.add", "options": {"link": None}}) == add.s()
    assert signature({"task": "shop.add", "options": {"link": PARTS[1]}}).options == {
        "link": [add.s(3)]
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, r"a signature is read from a dict such as .*, found \{\}"),
        (3, r"a signature is read from a dict such as .*, found 3"),
        ({"task": 3}, r"a signature is read from a dict"),
        ({"task": "shop.add", "args": "ab"}, r"'args' of a signature is a list, found 'ab' in"),
        ({"task": "shop.add", "kwargs": [1]}, r"'kwargs' of a signature is a dict, found \[1\]"),
        ({"task": "shop.add", "options": 3}, r"'options' of a signature is a dict, found 3"),
        (
            {"task": "shop.add", "subtask_type": "xmap"},
            r"expected a signature, chain, chord, chunks,",
        ),
        ({"task": "not a name"}, r"task name 'not a name' is not a name"),
        ({"task": "celery.chain"}, r"'celery.chain' is read from .* kwargs\['tasks'\], found None"),
        (
            {"task": "celery.chain", "kwargs": {"tasks": [3]}},
            r"a signature is read from .* found 3",
        ),
        ({"task": "celery.chord", "kwargs": {"header": 3}}, r"kwargs\['header'\], found 3"),
        ({"task": "shop.add", "options": {"link": [3]}}, r"a signature is read from .* found 3"),
        (
            {"task": "shop.add", "options": {"eta": "soon"}},
            r"eta is a moment in ISO 8601, found 'soon'",
        ),
    ],
)
def test_what_describes_no_signature_is_refused(written: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        Signature.from_dict(written)


# By name


def test_a_signature_by_name_becomes_the_task_where_it_is_registered():
    by_name = signature("shop.add", (2,), {"y": 2}, app=app, queue="sums")

    assert by_name == add.signature((2,), {"y": 2}, queue="sums")
    assert by_name.task is add
    assert by_name() == by_name.delay().get() == by_name.apply().get() == 4
    assert signature(add, (2, 2)) == add.s(2, 2)
    assert app.signature("shop.add", (2, 2)).app is app


def test_a_name_that_is_not_registered_yet_is_found_when_it_is():
    late = App("late", eager=True)
    by_name = signature("shop.late", (1,), app=late)

    assert repr(by_name.task) == "<task shop.late, not registered in <App 'late'>>"
    late.task(name="shop.late")(lambda n: n + 1)

    assert ~by_name == 2


def test_a_name_without_an_app_is_that_of_the_current_one():
    other = App("other")

    with other.current():
        assert signature("shop.add").app is other
    with app.current():
        assert ~signature("shop.add", (1, 2)) == 3


def test_a_job_of_an_unregistered_task_is_made_by_its_name():
    job = signature("shop.elsewhere", (1,), {"a": 2}, app=app, countdown=3).new_job()

    assert (job.task, job.queue, job.args, job.kwargs) == ("shop.elsewhere", None, "[1]", '{"a":2}')
    assert job.delay == 3.0


def test_options_may_come_in_one_dict_as_in_celery():
    assert signature("shop.add", (1, 2), options={"queue": "a"}, priority=3).options == {
        "queue": "a",
        "priority": 3,
    }
    assert add.signature(args=(1, 2), kwargs={}, options={}).options == {}


@pytest.mark.parametrize("task", [3, None, object(), lambda: None])
def test_a_signature_is_made_of_a_task_or_a_name(task: Any):
    with pytest.raises(
        ConfigurationError, match=r"a signature is made of a task or its name, found"
    ):
        Signature(task)


# As arguments


def test_a_signature_may_be_an_argument_of_a_task():
    @app.task(name="shop.each")
    def each(numbers: list[int], callback: Any) -> list[int]:
        return (
            group(signature(callback).clone([n]) for n in numbers)
            .apply()
            .get(disable_sync_subtasks=False)
        )

    steps = tsum.map([[1, 2], [3]]) | each.s(add.s(10) | add.s(100))

    assert steps().get() == [113, 113]
    assert json.loads(codec.encode([add.s(1)])) == [add.s(1).to_dict()]
    assert json.loads(codec.encode({"a": group(add.s(1))})) == {"a": group(add.s(1)).to_dict()}


def test_a_parameter_that_says_so_gets_a_signature():
    @app.task(name="shop.apply_each")
    def apply_each(
        numbers: list[int],
        callback: Signature[int],
        others: list[Signature[int]],
        whole: group[int] | None = None,
        any_kind: Node[Any, Any] | None = None,
    ) -> list[Any]:
        assert isinstance(callback, Signature)
        assert isinstance(others[0], Signature)
        return [[callback(n) for n in numbers], len(others), repr(whole), repr(any_kind)]

    arguments: Any = (add.s(10), [add.s(1), add.s(2)], group(add.s(3)), chain(add.s(4)))

    assert (tsum.map([[1, 2], [3]]) | apply_each.s(*arguments))().get() == [
        [13, 13],
        2,
        "group([shop.add(3)])",
        "shop.add(4)",
    ]
    assert apply_each.delay([], *arguments[:2]).get()[2:] == ["None", "None"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (3, "argument 'callback': a signature is read from a dict such as"),
        (
            {"task": "celery.group", "kwargs": {"tasks": []}},
            "'callback': expected Signature, got group",
        ),
    ],
)
def test_what_is_no_signature_does_not_fit_such_a_parameter(argument: Any, message: str):
    @app.task(name="shop.wants_one")
    def wants_one(callback: Signature[int]) -> None: ...

    @app.task(name="shop.wants_many")
    def wants_many(callback: list[Signature[int]]) -> None: ...

    assert wants_one.delay(None).get() is None  # type: ignore[arg-type]
    with pytest.raises(TaskFailedError, match=message):
        wants_one.delay(argument).get()
    with pytest.raises(TaskFailedError, match=message.partition(": ")[2]):
        wants_many.delay([argument]).get()
