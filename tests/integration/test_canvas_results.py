"""The semantic cases of Celery's own integration tests of canvas (t/integration/test_canvas.py): what a canvas gives.

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
    GroupResult,
    Signature,
    chain,
    chord,
    group,
)
from pgtasks.ids import new_id
from tests.fixtures.proj import (
    add,
    add_replaced,
    add_to_all,
    anywhere,
    echo,
    fail,
    fails,
    identity,
    inner_replaced,
    nested,
    noted,
    priority_of,
    rebuild,
    replace_with_chain,
    settled,
    tsum,
    worker,
    worker_of_proj,
)

__all__ = ["anywhere", "inner_replaced", "worker", "worker_of_proj"]

Make = Callable[[], Any]


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


# Descriptions within descriptions


@pytest.mark.parametrize("outer", ["chain", "group", "chord"])
@pytest.mark.parametrize("inner", ["chain", "group", "chord"])
def test_a_nested_description_is_rebuilt_in_a_task(anywhere: App, outer: str, inner: str):
    res = chain(nested.s(f"{outer}-{inner}"), rebuild.s()).delay()

    assert "proj.tasks.add" in res.get(timeout=10)
