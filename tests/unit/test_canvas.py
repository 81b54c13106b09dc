"""Signatures describe calls: what is added goes in front, keywords merge, nothing changes in place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgtasks import App, Signature, chain, chord, group
from pgtasks.errors import ConfigurationError, EncodingError
from pgtasks.graph import compile_graph

app = App("shop", eager=True)


@app.task(name="shop.join")
def join(*parts: str, sep: str = "-", end: str = "") -> str:
    return sep.join(parts) + end


@app.task(name="shop.add", queue="sums", priority=3)
def add(a: int, b: int = 0) -> int:
    return a + b


def test_a_signature_describes_a_call():
    signature = join.s("a", "b", sep="+")

    assert (signature.task, signature.args, signature.kwargs) == (join, ("a", "b"), {"sep": "+"})
    assert not signature.immutable
    assert signature() == "a+b"


def test_given_arguments_go_in_front_and_keywords_win():
    signature = join.s("c", sep="+", end=".")

    assert signature("a", "b") == "a+b+c."
    assert signature("a", sep="/") == "a/c."
    assert signature.delay("a", end="!").get() == "a+c!"
    assert signature.apply_async(("a",), {"sep": ""}).get() == "ac."
    assert signature.apply(("a",)).get() == "a+c."


async def test_the_twins_do_the_same():
    signature = join.s("c", sep="+")

    assert await (await signature.adelay("a")).aget() == "a+c"
    assert await (await signature.aapply_async(("a",), {"sep": "/"})).aget() == "a/c"


def test_an_immutable_signature_takes_nothing_more():
    signature = join.si("c")

    assert signature.immutable
    assert signature("a", sep="+") == "c"
    assert signature.clone(("a",), {"end": "!"}).args == ("c",)
    assert signature.clone(queue="other").options == {"queue": "other"}


def test_a_clone_leaves_the_original_as_it_was():
    signature = join.s("c", sep="+")

    clone = signature.clone(("a",), {"end": "!"}, queue="other")

    assert (clone.args, clone.kwargs, clone.options) == (
        ("a", "c"),
        {"sep": "+", "end": "!"},
        {"queue": "other"},
    )
    assert (signature.args, signature.kwargs, signature.options) == (("c",), {"sep": "+"}, {})


def test_signatures_do_not_share_their_empty_defaults():
    first, second = Signature(add), Signature(add)

    assert first.kwargs == {}
    assert first.clone(kwargs={"b": 1}).kwargs == {"b": 1}
    assert second.kwargs == {}


def test_set_adds_options_and_may_change_immutability():
    signature = add.s(1).set(queue="other", immutable=True).set(priority=9)

    assert signature.options == {"queue": "other", "priority": 9}
    assert signature.immutable
    assert not signature.set(immutable=False).immutable


def test_equal_calls_are_equal():
    assert add.s(1, b=2) == add.s(1, b=2)
    assert add.s(1) != add.s(2)
    assert add.s(1) != add.si(1)


def test_a_signature_shows_its_call():
    assert repr(join.signature(("a", 1), {"sep": "+"})) == "shop.join('a', 1, sep='+')"
    assert repr(add.signature((1,), {"b": 2}, queue="q")) == "shop.add(1, b=2)"


def test_a_tilde_runs_and_waits():
    assert ~add.s(1, 2) == 3


def test_a_signature_becomes_a_job():
    job = add.signature((1,), {"b": 2}, priority=9, countdown=5, origin="here").new_job()

    assert (job.task, job.queue, job.priority) == ("shop.add", "sums", 9)
    assert json.loads(job.args) == [1]
    assert json.loads(job.kwargs) == {"b": 2}
    assert (job.delay, job.origin) == (5.0, "here")


@pytest.mark.parametrize(
    "node", [add.s(1).set(link=add.s(2)), add.s(1) | add.s(2), group(add.s(1)), chord([], add.s(1))]
)
def test_what_is_more_than_one_job_is_refused_where_one_is_expected(node: Any):
    with pytest.raises(ConfigurationError, match=r"expected a signature without callbacks, found"):
        node.new_job()
    with pytest.raises(ConfigurationError, match=r"expected a signature without callbacks, found"):
        app.enqueue_many([add.s(1), node])


def test_a_partial_signature_is_checked_when_it_becomes_a_job():
    partial = add.signature((), {"b": 2})

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        partial.new_job()
    assert partial.clone((1,)).new_job().args == "[1]"


def test_what_json_cannot_carry_is_refused_with_its_path():
    with pytest.raises(EncodingError, match=r"^args\[0\]: NaN is not JSON"):
        add.s(float("nan")).new_job()  # type: ignore[call-overload]


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="no option 'colour'"):
        add.s(1).set(colour="red").new_job()


def test_a_connection_is_no_option_of_the_row():
    assert add.s(1).set(connection=object()).new_job().args == "[1]"


# Groups


@pytest.mark.parametrize(
    "made",
    [
        lambda: group(add.s(1), add.s(2)),
        lambda: group([add.s(1), add.s(2)]),
        lambda: group(add.s(n) for n in (1, 2)),
        lambda: group(group(add.s(1), add.s(2))),
    ],
)
def test_a_group_is_made_of_signatures_or_of_one_iterable(made: Any):
    members = made()

    assert len(members) == 2
    assert list(members) == [add.s(1), add.s(2)]


def test_a_group_of_a_group_is_that_group():
    inner = group(add.s(1), add.s(2), queue="sums", priority=1)

    outer = group(inner, priority=2)

    assert outer.tasks == [add.s(1), add.s(2)]
    assert outer.options == {"queue": "sums", "priority": 2}
    assert inner.options == {"queue": "sums", "priority": 1}


def test_groups_in_a_group_are_unrolled_with_their_options():
    nested = group(add.s(1), group(add.s(2), group(add.s(3)), queue="sums"), priority=5)

    assert nested.unroll() == [
        add.s(1).set(priority=5),
        add.s(2).set(queue="sums", priority=5),
        add.s(3).set(queue="sums", priority=5),
    ]
    assert nested.tasks[0].options == {}


def test_a_group_of_one():
    assert list(group(add.s(1))) == [add.s(1)]


@pytest.mark.parametrize("members", [(add,), ([1],), (add.s(1), 2), (3,)])
def test_what_is_no_signature_is_refused(members: Any):
    with pytest.raises(ConfigurationError, match=r"a group is made of signatures, found"):
        group(*members)


def test_a_group_shows_its_first_members():
    assert repr(group(add.s(1))) == "group([shop.add(1)])"
    assert repr(group(add.s(n) for n in range(9))).endswith("shop.add(4), … 4 more])")


def test_the_members_of_a_group_become_rows_of_one_bundle():
    sums = group(add.s(1), add.s(2).set(origin="mine"))
    jobs, (bundle,), _ = compile_graph(sums, type="sum", origin="report")

    assert [job.bundle_id for job in jobs] == [bundle.id] * 2
    assert [job.bundle_index for job in jobs] == [0, 1]
    assert [job.origin for job in jobs] == ["report", "mine"]
    assert (bundle.total, bundle.type, bundle.origin) == (2, "sum", "report")


def test_a_group_takes_arguments_and_options_for_each():
    sums = group(add.s(1), add.s(2))

    assert sums.delay(10).get() == [11, 12]
    assert sums(10).get() == [11, 12]
    assert sums.apply_async((), {"b": 5}).get() == [6, 7]
    assert sums.apply().get() == [1, 2]


async def test_the_twins_of_a_group_do_the_same():
    sums = group(add.s(1), add.s(2))

    assert await (await sums.adelay(10)).aget() == [11, 12]
    assert await (await sums.aapply_async((), {"b": 5})).aget() == [6, 7]
    assert await (await sums.aapply()).aget() == [1, 2]


def test_an_empty_group_has_stopped_already():
    result: Any = group([]).apply(app=app)

    assert result.get() == []
    assert result.ready()
    assert result.successful()


def test_a_group_knows_how_its_members_ended():
    @app.task(name="shop.half")
    def half(n: int) -> float:
        return 1 / n

    result = group(half.s(1), half.s(0), half.s(2)).apply()

    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert result.completed_count() == 2
    found = result.get(propagate=False)
    assert (found[0], found[2]) == (1.0, 0.5)
    assert isinstance(found[1], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        result.get()


def test_an_ignored_member_is_left_out_of_the_bundle():
    with app.ignoring(add) as discarded:
        kept = compile_graph(group(add.s(1), add.s(2))).without(app._ignores)

    assert len(discarded) == 2
    assert list(kept.jobs) == []
    assert list(kept.bundles) == []


def test_a_chain_of_too_many_steps_is_refused_and_says_what_to_do_instead():
    assert compile_graph(chain([add.si(1, 1)] * 5000)).jobs
    with pytest.raises(
        ConfigurationError, match=r"5000 steps at most, found 5001: .*self\.replace"
    ):
        compile_graph(chain([add.si(1, 1)] * 5001))


@pytest.mark.parametrize("canvas", [add.s(1), add.s(1) | add.s(2), group(add.s(1, 2))])
def test_a_canvas_that_is_stamped_says_what_there_is_instead(canvas: Any):
    with pytest.raises(ConfigurationError, match="origin"):
        canvas.stamp(customer=7)
