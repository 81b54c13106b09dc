"""The semantic cases of Celery's own integration tests of canvas (t/integration/test_canvas.py), rewritten.

Each runs with a worker, and eagerly where the outcome is the same without a database. Left out: what tests a broker or
a result backend (duplicated messages, leaking channels, chord_unlock), ``freeze``, stamping, and the flag
``task_allow_error_cb_on_chord_header``.

Where pgtasks differs on purpose:

- A group at the end of a chain in a group is flattened into that group, like a group in a group: ``[1, 2, 3, 4]`` where
  Celery has ``[1, 2, [3, 4]]``.
- What waited for a group gets a `ChordError`, and so do the steps after it; with some backends Celery raises the
  first failure itself. What waited for a single job gets that job's error.
- Every callback that a call could not satisfy is refused at the call.
- Keywords and arguments of a call are for what runs first, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import (
    App,
    AsyncResult,
    ChordError,
    GroupResult,
    JobState,
    Signature,
    chain,
    chord,
    group,
    signature,
)
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    ExpectedError,
    add,
    add_chord_to_chord,
    add_replaced,
    add_to_all,
    add_to_all_to_chord,
    anywhere,
    collect_ids,
    count,
    describe,
    echo,
    errback_by_id,
    errback_by_request,
    fail,
    fail_replaced,
    identity,
    ids,
    inner_replaced,
    nested,
    noted,
    outer_replaced,
    parent_of_two,
    priority_of,
    rebuild,
    replace_with_chain,
    replace_with_chain_which_raises,
    replace_with_empty_chain,
    retry_once,
    settled,
    spread,
    tsum,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "inner_replaced", "worker", "worker_of_proj"]

Make = Callable[[], Any]


def fails(result: Any, error: type[BaseException] = ExpectedError) -> BaseException:
    """Check that a result is a failure of this kind, and return the exception."""
    found = result.get(timeout=20, propagate=False)
    values = found if isinstance(found, list) else [found]
    [first] = [one for one in values if isinstance(one, BaseException)][:1]
    assert isinstance(first, error), first
    with pytest.raises(error):
        result.get(timeout=20)
    return first


# Results: what a canvas gives


def ten_chords() -> Any:
    def three(n: int, first: bool = False) -> Any:
        return chord(
            group((add.si if first else add.s)(n, *([0] if first else [])) for _ in range(3)),
            tsum.s(),
        )

    return chain(three(1, first=True), *(three(1) for _ in range(7)), three(0))


CASES: dict[str, tuple[Make, Any]] = {
    "simple chain": (lambda: add.s(4, 4) | add.s(8) | add.s(16), 32),
    "chain of one": (lambda: chain(add.s(3, 4)), 7),
    "chain of a chain of one": (lambda: chain([chain(identity.s(42))]), 42),
    "complex chain": (
        lambda: add.s(2, 2)
        | (add.s(4) | add_replaced.s(8) | add.s(16) | add.s(32))
        | group(add.s(i) for i in range(4)),
        [64, 65, 66, 67],
    ),
    "group at the end of a chain in a group": (
        lambda: group(add.s(1, 2) | group(add.s(1), add.s(2))),
        [4, 5],
    ),
    "chain in a group that takes an argument": (
        lambda: add.s(5, 6) | group((add.s(1) | add.s(2), add.s(3))),
        [14, 14],
    ),
    "group, jobs and a chain to a group": (
        lambda: group(
            identity.si(1),
            identity.si(2),
            chain(identity.si(5), group([identity.si(3), identity.si(4)])),
        ),
        [1, 2, 3, 4],  # Celery: [1, 2, [3, 4]]
    ),
    "chain of a job, a group and a chord": (
        lambda: add.si(1, 0)
        | group(add.s(1), add.s(1))
        | group(tsum.s(), tsum.s())
        | tsum.s(),
        8,
    ),
    "chain of groups with two jobs": (
        lambda: add.si(1, 0)
        | group(add.s(1), add.s(1))
        | tsum.s()
        | add.s(1)
        | group(add.s(1), add.s(1))
        | tsum.s(),
        12,
    ),
    "chain of chords with two jobs": (
        lambda: add.si(1, 0)
        | group(add.s(1), add.s(1))
        | tsum.s()
        | add.s(1)
        | chord(group(add.s(1), add.s(1)), tsum.s()),
        12,
    ),
    "chain of explicit chords": (
        lambda: chain(
            chord(group(add.si(1, 0), add.si(1, 0)), tsum.s()),
            chord(group(add.s(1), add.s(1)), tsum.s()),
            chord(group(add.s(0), add.s(0)), tsum.s()),
        )
        | chain(
            chord(group(add.s(10), add.s(10)), tsum.s()),
            chord(group(add.s(0), add.s(0)), tsum.s()),
            chord(group(add.s(1), add.s(1)), tsum.s()),
        ),
        178,
    ),
    "chain of nine chords": (ten_chords, 29520),
    "chain of a chord and a group with two jobs": (
        lambda: add.si(1, 0)
        | group(add.s(1), add.s(1))
        | tsum.s()
        | add.s(1)
        | group(add.s(1), add.s(1)),
        [6, 6],
    ),
    "chain of a chord, three jobs and a group": (
        lambda: group(add.s(1, 1), add.s(1, 1))
        | tsum.s()
        | add.s(1)
        | add.s(1)
        | add.s(1)
        | group(add.s(1), add.s(1)),
        [8, 8],
    ),
    "group alone in a chain": (lambda: chain(group(identity.s(42), identity.s(42))), [42, 42]),
    "group amid a chain": (
        lambda: chain(identity.s(42), group(identity.s(), identity.s()), identity.s()),
        [42, 42],
    ),
    "group at the end of a chain": (
        lambda: chain(identity.s(42), group(identity.s(), identity.s())),
        [42, 42],
    ),
    "group in the center of a chain in a body": (
        lambda: chord(
            [add.s(0, 1)],
            chord(
                [tsum.s(), tsum.s()],
                chain(tsum.s(), group(add.s(8), add.s(16)), tsum.s() | add.s(32)),
            ),
        ),
        60,
    ),
    "groups in a group": (
        lambda: group(
            add.si(1, 10),
            group(add.si(1, 100), group(add.si(1, 1000), add.si(1, 2000))),
        ),
        [11, 101, 1001, 2001],
    ),
    "group alone": (lambda: group(identity.s(42), identity.s(42)), [42, 42]),
    "group in a group": (lambda: group(group(identity.s(42), identity.s(42))), [42, 42]),
    "chord in a group": (lambda: group((chord((identity.si(42),), identity.s()),)), [[42]]),
    "chord of a chain in a group": (
        lambda: group((chord((chain((identity.si(1337),) * 12),), identity.s()),)),
        [[1337]],
    ),
    "chord of a group in a group": (
        lambda: group((chord((group((identity.si(1337),) * 12),), identity.s()),)),
        [[1337] * 12],
    ),
    "chord of a chord in a group": (
        lambda: group(
            (chord((chord((identity.si(1337),) * 12, identity.si(31337)),), identity.s()),)
        ),
        [[31337]],
    ),
    "chord of all kinds in a group": (
        lambda: group(
            (
                chord(
                    (
                        identity.si(42),
                        chain((identity.si(42),) * 6),
                        group((identity.si(42),) * 6),
                        chord((identity.si(42),) * 6, identity.si(1337)),
                    ),
                    identity.s(),
                ),
            )
        ),
        [[42, 42, *((42,) * 6), 1337]],
    ),
    "chord with a chain for a body, in a group": (
        lambda: group((chord(identity.si(42), chain((identity.s(),))),)),
        [[42]],
    ),
    "order of a chord": (
        lambda: chord((identity.si(i) for i in range(10)), identity.s()),
        list(range(10)),
    ),
    "replaced in chords in a chord": (
        lambda: chord(
            [
                chord([add.s(1, 2), add_replaced.s(3, 4)], add_to_all.s(5)) | tsum.s(),
                chord([add_replaced.s(6, 7), add.s(0, 0)], add_to_all.s(8)) | tsum.s(),
            ],
            add_to_all.s(9),
        ),
        [29, 38],
    ),
    "job, group and replaced by a group": (
        lambda: add.s(2, 2) | group(add.s(i) for i in range(4)) | add_to_all.s(8),
        [12, 13, 14, 15],
    ),
    "group in a chain in a group in a chain": (
        lambda: chain(
            add.si(1, 0),
            group(
                add.si(1, 100),
                chain(add.si(1, 200), group(add.si(1, 1000), add.si(1, 2000))),
            ),
            add.si(1, 10),
        ),
        11,
    ),
    "header of one": (lambda: chord([add.s(2, 5)], body=add_to_all.s(9)), [16]),
    "header of one by a pipe": (lambda: group([add.s(2, 5)]) | add_to_all.s(9), [16]),
    "empty header": (lambda: chord([], body=add_to_all.s(9)), []),
    "empty header by a pipe": (lambda: group([]) | add_to_all.s(9), []),
    "empty group": (lambda: group([], app=add.app), []),
    "empty group in a chain": (lambda: chain(add.s(1, 1), group([]), identity.s()), []),
    "chords in a chord": (
        lambda: chord(
            [
                chord([add.s(1, 2), add.s(3, 4)], add.s([5])),
                chord([add.s(6, 7)], add.s([10])),
            ],
            add_to_all.s(["A"]),
        ),
        [[3, 7, 5, "A"], [13, 10, "A"]],
    ),
    "chords in a chord by pipes": (
        lambda: group(
            [
                group([add.s(1, 2), add.s(3, 4)]) | add.s([5]),
                group([add.s(6, 7)]) | add.s([10]),
            ]
        )
        | add_to_all.s(["A"]),
        [[3, 7, 5, "A"], [13, 10, "A"]],
    ),
    "chords of one, four deep": (
        lambda: group(
            [group([group([group([add.s(1, 2)]) | add.s([3])]) | add.s([4])]) | add.s([5])]
        )
        | add.s([6]),
        [[[[3, 3], 4], 5], 6],
    ),
    "chords side by side": (
        lambda: group(
            chord(group(add.s(1, 2), add.s(3, 4)), tsum.s()),
            chord(group(add.s(1, 2), add.s(3, 4)), tsum.s()),
        ),
        [10, 10],
    ),
    "chords in chains in a chord": (
        lambda: chord(
            group(
                chain(
                    add.si(1, 2), chord(group([add.si(1, 2), add.si(1, 2)]), add.si(1, 2))
                )
                for _ in range(2)
            ),
            add.si(2, 2),
        ),
        4,
    ),
    "chain, chord, chain, chord": (
        lambda: chain(
            identity.si(1),
            chord(
                [
                    identity.si(2),
                    chain(
                        identity.si(3),
                        chord([identity.si(4), identity.si(5)], identity.si(6)),
                    ),
                ],
                identity.si(7),
            ),
        ),
        7,
    ),
    "group in a chord": (
        lambda: chord((group(identity.s(42), identity.s(42)),), identity.s()),
        [42, 42],
    ),
    "group at the end of a chain in a header": (
        lambda: chord(
            group(chain(identity.s(42), group(identity.s(), identity.s()))), identity.s()
        ),
        [42, 42],  # Celery: [[42, 42]]
    ),
    "soft limit": (lambda: chord([add.s(1, 2), identity.s(0)], tsum.s()), 3),
    "replaced by a chain": (lambda: replace_with_chain.si(42), 42),
    "first step replaced": (lambda: chain(replace_with_chain.si(42), identity.s()), 42),
    "middle step replaced": (
        lambda: chain(identity.s(42), replace_with_chain.s(), identity.s()),
        42,
    ),
    "last step replaced": (lambda: chain(identity.s(42), replace_with_chain.s()), 42),
    "first member replaced": (
        lambda: group(replace_with_chain.si(42), identity.s(1337)),
        [42, 1337],
    ),
    "middle member replaced": (
        lambda: group(identity.s(42), replace_with_chain.s(1337), identity.s(31337)),
        [42, 1337, 31337],
    ),
    "last member replaced": (
        lambda: group(identity.s(42), replace_with_chain.s(1337)),
        [42, 1337],
    ),
    "members replaced by groups": (
        lambda: group([add_to_all.s([2, 1], 1), add_to_all.s([4, 3], 1)] * 5),
        [[3, 2], [5, 4]] * 5,
    ),
    "only member of a header replaced": (
        lambda: chord(replace_with_chain.si(42), identity.s()),
        [42],
    ),
    "first member of a header replaced": (
        lambda: chord((replace_with_chain.si(42), identity.s(1337)), identity.s()),
        [42, 1337],
    ),
    "last member of a header replaced": (
        lambda: chord((identity.s(42), replace_with_chain.s(1337)), identity.s()),
        [42, 1337],
    ),
    "body replaced": (lambda: chord(identity.s(42), replace_with_chain.s()), [42]),
    "first step of a body replaced": (
        lambda: chord(identity.s(42), chain(replace_with_chain.s(), identity.s())),
        [42],
    ),
    "middle step of a body replaced": (
        lambda: chord(
            identity.s(42), chain(identity.s(), replace_with_chain.s(), identity.s())
        ),
        [42],
    ),
    "last step of a body replaced": (
        lambda: chord(identity.s(42), chain(identity.s(), replace_with_chain.s())),
        [42],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_canvas_gives(anywhere: App, case: str):
    make, expected = CASES[case]

    assert make().apply_async().get(timeout=20) == expected


@pytest.mark.parametrize("case", CASES)
def test_a_canvas_survives_json(worker: App, case: str):
    """What is read from a dict is the same canvas, and gives the same."""
    make, _ = CASES[case]

    described = make().to_dict()

    assert Signature.from_dict(described, worker).to_dict() == described


def test_arguments_go_to_what_runs_first(anywhere: App):
    chained = chain(chord([identity.s(), identity.s()], identity.s()), identity.s())
    grouped = group(add.s(i) for i in range(4)) | add_to_all.s(8)
    nested_chain = chain(chain(identity.s(), identity.s()))

    assert chained.apply_async(args=(1,)).get(timeout=10) == [1, 1]
    assert grouped.apply_async(args=(4,), kwargs={"z": 1}).get(timeout=10) == [13, 14, 15, 16]
    assert nested_chain.apply_async(args=(1,)).get(timeout=10) == 1


def test_keywords_go_to_what_runs_first(anywhere: App):
    """Celery gives them to the group, too."""
    c = add.s(2, 2) | group(add.s(i) for i in range(4)) | add_to_all.s(8)

    assert c.apply_async(kwargs={"z": 1}).get(timeout=10) == [13, 14, 15, 16]


def test_a_large_group_keeps_its_order(worker: App):
    assert group(identity.s(i) for i in range(1000))().get(timeout=30) == list(range(1000))


def test_a_large_header_is_summed_up(worker: App):
    res = (identity.si(1) | group(identity.s() for _ in range(1000)) | tsum.s()).delay()

    assert res.get(timeout=30) == 1000


def test_groups_in_a_row_each_run_once_and_one_after_the_other(anywhere: App):
    key = new_id()

    def echoes(*names: str) -> Any:
        return group(echo.si(name, key) for name in names)

    c = chain(
        echoes("a1", "a2", "a3"),
        echoes("b1", "b2"),
        echoes("c"),
        echoes("d"),
        echo.si("e", key),
        echoes("f1", "f2"),
    )
    res = c.delay()

    res.get(timeout=10)
    settled(res)
    ran = noted(key)
    assert sorted(ran) == ["a1", "a2", "a3", "b1", "b2", "c", "d", "e", "f1", "f2"]
    assert [one[0] for one in ran] == sorted(one[0] for one in ran)


def test_a_chord_in_a_chain_runs_its_members_once(anywhere: App):
    key = new_id()
    chord1 = group(echo.si("a", key), echo.si("a", key)) | group(
        echo.si("a", key), echo.si("a", key)
    )

    res = chain(chord1, (echo.si("a", key) | echo.si("b", key))).apply_async()

    res.get(timeout=10)
    settled(res)
    assert (noted(key).count("a"), noted(key)[-1:]) == (5, ["b"])


def test_a_generator_is_a_header(anywhere: App):
    def header() -> Any:
        for i in range(5):
            yield identity.si(i)

    assert chord(header(), tsum.s())().get(timeout=10) == 10


def test_priorities_are_those_of_the_steps(worker: App):
    c = priority_of.signature(priority=3) | priority_of.signature(priority=5)

    result: Any = c()
    assert result.get(timeout=10) == 5
    assert result.parent.get(timeout=10) == 3


def test_an_empty_group_is_a_group_result_that_is_restored(worker: App):
    result: Any = group([], app=worker).apply_async()

    assert GroupResult.restore(result.id, worker).results == []
    assert result.ready()


def test_a_group_with_a_failure_is_ready(worker: App):
    result = group([add.s(1, 2), fail.s()]).apply_async()

    fails(result)
    assert result.ready()


# Errors


FAILURES: dict[str, tuple[Make, type[BaseException]]] = {
    "step before a group": (lambda: add.s(1, 1) | fail.s() | group(add.s(1), add.s(1)), ExpectedError),
    "member of the last group": (lambda: add.s(1, 1) | add.s(1) | group(add.s(1), fail.s()), ExpectedError),
    "member of a header": (lambda: chord((fail.s(),), identity.s()), ChordError),
    "body": (lambda: chord((identity.si(42),), fail.s()), ExpectedError),
    "middle of a body": (
        lambda: chord((identity.si(42),), chain(identity.si(42), fail.s(), identity.si(42))),
        ExpectedError,
    ),
    "end of a chain in a header": (
        lambda: chord((chain(identity.si(42), fail.s()),), identity.s()),
        ChordError,
    ),
    "end of a body": (
        lambda: chord((identity.si(42),), chain(identity.si(42), fail.s())),
        ExpectedError,
    ),
    "member of a group in a header": (
        lambda: chord((group(identity.si(42), fail.s()),), identity.s()),
        ChordError,
    ),
    "member of a group as body": (
        lambda: chord((identity.si(42),), group(identity.si(42), fail.s())),
        ExpectedError,
    ),
    "header, before a group and a step": (
        lambda: chain(
            group(add.si(15, 7), fail.si()), group(identity.s(), identity.s()), identity.s()
        ),
        ChordError,
    ),
    "middle of a chain in a header": (
        lambda: chord((chain(identity.si(42), fail.s(), identity.si(42)),), identity.s()),
        ChordError,
    ),
    "first step before a chord in a header": (
        lambda: chain(
            group(
                identity.si(1),
                chain(fail.si(), group(identity.si(2), identity.si(3)), identity.si(4)),
            ),
            identity.s(),
        ),
        ChordError,
    ),
    "header, of a chain for a body": (
        lambda: chain(group(add.si(15, 7), fail.si()), chain(identity.s(), identity.s())),
        ChordError,
    ),
    "header in a chain in a chain": (
        lambda: chain(chain(group(add.si(1, 1), fail.si()), identity.s()), identity.s()),
        ChordError,
    ),
    "header, before a group of chains and a step": (
        lambda: chain(
            group(add.si(15, 7), fail.si()),
            group(chain(identity.s(), identity.s()), chain(identity.s(), identity.s())),
            identity.s(),
        ),
        ChordError,
    ),
    "header, of a group for a body": (
        lambda: chain(group(add.si(15, 7), fail.si()), group(identity.s(), identity.s())),
        ChordError,
    ),
    "header, of a chord for a body": (
        lambda: chain(
            group(add.si(15, 7), fail.si()), chord([identity.s(), identity.s()], identity.s())
        ),
        ChordError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_reaches_the_end_and_its_errback_runs_once(anywhere: App, case: str):
    key = new_id()
    make, error = FAILURES[case]
    canvas = make().on_error(count.si(key))

    result = canvas.apply_async()

    fails(result, error)
    settled(result)
    # A group has no end of its own: each of its members has the errback.
    assert len(noted(key)) == (2 if case == "header, of a group for a body" else 1)


def test_a_chain_stops_at_the_first_failure(anywhere: App):
    key = new_id()
    res: Any = chain(add.s(1, 2), fail.s(), echo.si("never", key))()

    fails(res)
    fails(res.parent)
    assert res.parent.parent.get(timeout=10) == 3
    settled(res)
    assert noted(key) == []


def test_what_did_not_run_says_what_it_is_for(worker: App):
    res: Any = chain(add.s(1, 2), fail.s(), add.s(3, 4), add.s(1))()

    fails(res)

    jobs = settled(res)
    assert [job.state for job in jobs] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.CANCELLED,
    ]
    assert {job.error.dependency for job in jobs[2:]} == {jobs[1].id}
    assert {job.reason for job in jobs[2:]} == {"what it waited for failed"}
    assert res.state == "FAILURE"


@pytest.mark.parametrize("errback", [errback_by_id, errback_by_request])
def test_an_errback_of_a_group_gets_the_member(anywhere: App, errback: Any):
    failing = fail.s()
    grouped = group(failing, identity.si(42))
    grouped.link_error(errback.s())

    res = grouped.delay()

    fails(res)
    settled(res)
    assert len(noted(res[0].id)) == 1
    assert noted(res[1].id) == []


@pytest.mark.parametrize("errback", [errback_by_id, errback_by_request])
@pytest.mark.parametrize("broken", ["header", "body"])
def test_an_errback_of_a_chord_gets_the_body(anywhere: App, errback: Any, broken: str):
    if broken == "header":
        c = chord((fail.s(), fail.s(), identity.si(1)), identity.s())
    else:
        c = chord((identity.si(42),), fail.s())
    c.link_error(errback.s())

    res = c.delay()

    fails(res, ChordError if broken == "header" else ExpectedError)
    settled(res)
    assert len(noted(res.id)) == 1


def test_an_errback_of_a_chord_runs_once_or_for_each_member_of_its_body(anywhere: App):
    members = [*(identity.si(42) for _ in range(4)), *(fail.s() for _ in range(6))]
    header, body = new_id(), new_id()
    failing_header = chord((group(members),), identity.s())
    failing_header.link_error(count.si(header))
    failing_body = chord((identity.si(42),), group(members))
    failing_body.link_error(count.si(body))

    results = [failing_header.delay(), failing_body.delay()]

    fails(results[0], ChordError)
    fails(results[1])
    for result in results:
        settled(result)
    assert (len(noted(header)), len(noted(body))) == (1, 6)


def test_an_errback_of_the_header_runs_for_each_failure_and_that_of_the_body_once(anywhere: App):
    """What Celery does with the flag ``task_allow_error_cb_on_chord_header``, and what is linked to members anyway."""
    header, body, ran = new_id(), new_id(), new_id()
    c = chord((fail.si(), identity.si(42), fail.si()), echo.si("body", ran))
    for member in c.tasks:
        member.link_error(count.si(header))
    assert c.body is not None
    c.body.link_error(count.si(body))

    res = c.delay()

    fails(res, ChordError)
    settled(res)
    assert (len(noted(header)), len(noted(body)), noted(ran)) == (2, 1, [])


def test_an_errback_of_an_outer_chord_runs_once_for_an_inner_one(anywhere: App):
    key, ran = new_id(), new_id()
    inner = chord([identity.si("t1"), fail.si()], identity.si("t2"))
    outer = chord(group([identity.si("t3"), inner]), echo.si("body", ran))
    outer.link_error(count.si(key))

    res = outer.delay()

    fails(res, ChordError)
    settled(res)
    assert (len(noted(key)), noted(ran)) == (1, [])


def test_an_errback_retries(worker: App):
    result = fail.apply_async(("test",), link_error=retry_once.s())

    error = fails(result)

    assert error.args == ("Task expected to fail", "test")
    errback = settled(result)[1]
    assert (errback.state, errback.result, errback.attempt) == (JobState.SUCCEEDED, 1, 2)


def test_an_errback_by_name_is_called_with_the_id(worker: App):
    failing = signature("proj.tasks.fail", args=("test",))
    failing.link_error(signature("proj.tasks.errback_by_id"))

    result = failing.delay()

    fails(result)
    settled(result)
    assert noted(result.id) == ["by id"]


def test_an_eager_call_runs_its_errback(worker: App):
    key = new_id()

    result = fail.s("test").on_error(count.si(key)).apply()

    assert fails(result).args == ("Task expected to fail", "test")
    assert noted(key) == ["ran"]


def test_a_countdown_of_a_chain_counts_for_its_first_step_and_leaves_errbacks_alone(worker: App):
    key = new_id()
    c = chain(group(add.s(1, 2), add.s(3, 4)), tsum.s()).on_error(count.si(key))

    result = c.apply_async(countdown=0.1)

    assert result.get(timeout=10) == 10
    settled(result)
    assert noted(key) == []


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
    ("growing", "expected"), [(add_to_all_to_chord, [0, 5, 6, 7]), (add_chord_to_chord, [0, 18])]
)
def test_a_member_adds_members(worker: App, growing: Any, expected: list[int]):
    c = chord([growing.s([1, 2, 3], 4)], identity.s())

    assert c().get(timeout=10) == expected


# Ids: what a job knows of its graph


def test_a_chain_has_one_root_and_each_step_its_parent(worker: App):
    res: Any = chain(ids.si(i=i) for i in range(10))()

    res.get(timeout=10)

    line = [res]
    while line[-1].parent is not None:
        line.append(line[-1].parent)
    line.reverse()
    assert [one.get(timeout=10) for one in line] == [
        [line[0].id, line[i - 1].id if i else None, i] for i in range(10)
    ]


def test_members_of_a_group_have_the_step_before_it_for_their_parent(worker: App):
    g: Any = (ids.si(i=1) | ids.si(i=2) | group(ids.si(i=i) for i in range(3, 20)))()

    values = g.get(timeout=10)

    assert values == [[g.parent.parent.id, g.parent.id, i] for i in range(3, 20)]


def test_results_lead_from_the_end_of_a_chord_to_its_root(worker: App):
    res: Any = (
        ids.si(i=1)
        | ids.si(i=2)
        | group(ids.si(i=i) for i in range(3, 20))
        | collect_ids.s(i=20)
        | ids.si(i=21)
    )()

    last = res.get(timeout=10)

    body, header = res.parent, res.parent.parent
    second, root = header.parent, header.parent.parent
    assert isinstance(header, GroupResult)
    assert root.parent is None
    assert last == [root.id, body.id, 21]
    values, (root_id, _, value) = body.get(timeout=10)
    assert (root_id, value) == (root.id, 20)
    assert values == [[root.id, second.id, i] for i in range(3, 20)]
    assert second.get(timeout=10) == [root.id, root.id, 2]
    assert root.get(timeout=10) == [root.id, None, 1]


def test_a_result_looked_up_by_id_knows_its_parents(worker: App):
    res: Any = (ids.si(i=1) | group(ids.si(i=2), ids.si(i=3)) | collect_ids.s(i=4))()
    res.get(timeout=10)

    found: Any = worker.result(res.id)

    assert found.parent == res.parent
    assert found.parent.parent == res.parent.parent
    assert [one.id for one in found.parent] == [one.id for one in res.parent]


def test_a_request_knows_its_place(worker: App):
    res: Any = (describe.s(1) | group(describe.s(2), describe.s(3)))()

    first, second = res.get(timeout=10)
    root = res.parent.get(timeout=10)

    assert root["id"] == root["root_id"] == res.parent.id
    assert root["parent_id"] is None
    assert root["args"] == [1]
    assert (first["id"], second["id"]) == (res[0].id, res[1].id)
    assert first["group"] == second["group"] == res.id
    assert first["root_id"] == first["parent_id"] == root["id"]
    assert first["args"] == [root, 2]
    assert first["retries"] == 0


def test_a_request_knows_its_group_and_no_step(anywhere: App):
    linked = describe.s().set(link=identity.si(1))

    members: Any = group(describe.s(), linked, describe.s() | describe.si()).apply()
    steps: Any = (describe.s() | describe.si()).apply()

    assert [one["group"] for one in members.get(timeout=10)] == [members.id] * 3
    assert steps.get(timeout=10)["group"] is None
    assert steps.parent.get(timeout=10)["group"] is None


def test_a_request_knows_its_children(anywhere: App):
    assert parent_of_two.delay().get(timeout=10) == [0, 1, 3]


def test_what_a_job_enqueues_is_its_child_in_the_same_graph(worker: App):
    result = chain(identity.s([1, 2]), spread.s())()

    single_id = result.get(timeout=10)
    jobs = settled(result)

    root: Any = result.parent
    assert {job.root_id for job in jobs} == {root.id}
    assert len(jobs) == 2 + 1 + 3
    single = next(job for job in jobs if job.id == single_id)
    assert (single.parent_id, single.result) == (result.id, 2)
    assert [type(child) for child in result.children][:1] == [AsyncResult]
    assert sorted(job.result for job in jobs if job.parent_id == result.id)[:2] == [2, 2]


# Descriptions within descriptions


@pytest.mark.parametrize("outer", ["chain", "group", "chord"])
@pytest.mark.parametrize("inner", ["chain", "group", "chord"])
def test_a_nested_description_is_rebuilt_in_a_task(anywhere: App, outer: str, inner: str):
    res = chain(nested.s(f"{outer}-{inner}"), rebuild.s()).delay()

    assert "proj.tasks.add" in res.get(timeout=10)
