"""Every public ``aX`` is the asynchronous twin of an ``X`` with the same parameters."""

import inspect

import pytest

from pgtasks import (
    App,
    AsyncResult,
    EagerResult,
    GroupResult,
    Partial,
    ResultSet,
    Signature,
    Task,
    chain,
    chord,
    chunks,
    group,
)
from pgtasks.eager import EagerGroupResult
from pgtasks.registry import Registry
from pgtasks.schedules import Schedules
from pgtasks.scheduling import Scheduling

CLASSES = [
    App,
    Task,
    AsyncResult,
    EagerResult,
    ResultSet,
    GroupResult,
    EagerGroupResult,
    Partial,
    Signature,
    chain,
    group,
    chord,
    chunks,
    Schedules,
]

# Public names that begin with an a, and are nobody's twin.
NO_TWINS = {
    "AsyncResult",
    "app",
    "after_return",
    "apply",
    "apply_async",
    "apply_at",
    "args",
    "autodiscover",
}

# What changes which results are in a set; no database is asked.
MEMBERSHIP = {"add", "clear", "discard", "remove", "update"}
# What a node of a canvas does without any I/O.
DESCRIBING = {
    "clone",
    "link",
    "link_error",
    "new_job",
    "on_error",
    "set",
    "set_immutable",
    "stamp",
    "to_dict",
}

# What does I/O in one step only, or is a block: without a twin, for a reason.
ALONE = {
    App: {
        # blocks, and what they give
        "connection",
        "current",
        "eager",
        "ignoring",
        "worker",
        # drivers of their own kind
        "run",
        # handles, which ask nothing
        "result",
        "group_result",
    }
    | {name for cls in (Registry, Scheduling) for name in vars(cls) if not name.startswith("_")},
    Task: {
        "apply",  # runs here and now, like the function itself
        "arguments",  # of a call, by name
        "AsyncResult",
        "chunks",
        "map",
        "new_job",
        "replace",  # raises, as retry does
        "retry",
        "s",
        "si",
        "signature",
        "update_state",  # writes into memory, and waits for nobody
        "starmap",
        "using",
        "run",
        "before_start",
        "on_success",
        "on_failure",
        "on_retry",
        "after_return",
    },
    AsyncResult: {"as_tuple"},
    EagerResult: {"as_tuple"},
    ResultSet: MEMBERSHIP,
    GroupResult: {"as_tuple"} | MEMBERSHIP,
    EagerGroupResult: {"as_tuple"} | MEMBERSHIP,
    Partial: {"apply", "shown_with"} | DESCRIBING,
    Signature: {"apply", "shown_with"} | DESCRIBING,
    chain: {"unchain_tasks"} | DESCRIBING,
    group: {"shown_tasks", "skew", "unroll"} | DESCRIBING,
    chord: {"parts"} | DESCRIBING,
    chunks: {"group", "shown_tasks", "skew", "unroll"} | DESCRIBING,
    Schedules: set(),
}


def twins(cls: type) -> list[str]:
    return [
        name
        for name in dir(cls)
        if name.startswith("a")
        and name not in NO_TWINS
        and (is_asynchronous(getattr(cls, name)) or hasattr(cls, name[1:]))
    ]


def is_asynchronous(function: object) -> bool:
    """Whether one awaits what it returns, or iterates over it with ``async for``."""
    return inspect.iscoroutinefunction(function) or (
        callable(function)
        and "AsyncIterator" in str(getattr(function, "__annotations__", {}).get("return"))
    )


PAIRS = [(cls, name) for cls in CLASSES for name in twins(cls)]


@pytest.mark.parametrize(
    ("cls", "name"), PAIRS, ids=[f"{cls.__name__}.{name}" for cls, name in PAIRS]
)
def test_a_twin_takes_the_same_parameters(cls, name):
    asynchronous = getattr(cls, name)
    synchronous = inspect.getattr_static(cls, name[1:])

    assert is_asynchronous(asynchronous)
    if isinstance(synchronous, property):
        assert list(inspect.signature(asynchronous).parameters) == ["self"]
        return
    assert not is_asynchronous(getattr(cls, name[1:]))
    one, other = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (asynchronous, getattr(cls, name[1:]))
    )
    assert one == other


@pytest.mark.parametrize(
    ("cls", "name"), PAIRS, ids=[f"{cls.__name__}.{name}" for cls, name in PAIRS]
)
def test_a_twin_returns_the_same_type(cls, name):
    synchronous = inspect.getattr_static(cls, name[1:])
    if isinstance(synchronous, property):
        assert synchronous.fget is not None
        synchronous = synchronous.fget
    if isinstance(synchronous, classmethod):
        synchronous = synchronous.__func__

    returned = inspect.signature(getattr(cls, name)).return_annotation
    assert (
        returned.replace("AsyncIterator", "Iterator")
        == inspect.signature(synchronous).return_annotation
    )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_public_method_has_a_twin_or_a_reason(cls):
    without = {
        name
        for name in dir(cls)
        if not name.startswith("_")
        and inspect.isfunction(inspect.getattr_static(cls, name))
        and not hasattr(cls, f"a{name}")
        and not (name.startswith("a") and hasattr(cls, name[1:]))
    }

    assert without <= ALONE[cls]


def test_the_walk_finds_the_twins():
    found = {f"{cls.__name__}.{name}" for cls, name in PAIRS}

    assert {"App.ajobs", "Task.adelay", "AsyncResult.aget", "GroupResult.arevoke"} <= found
    assert len(found) > 60
