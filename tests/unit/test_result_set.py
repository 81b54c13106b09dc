"""What is in a `ResultSet`, handles of an app, and what needs no database."""

from __future__ import annotations

from typing import Any

import pytest

from pgtasks import App, AsyncResult, ConfigurationError, GroupResult, ResultSet
from pgtasks.ids import new_id
from pgtasks.result import result_from_tuple

app = App("shop")
ONE, TWO, THREE = (AsyncResult[Any](new_id(), app) for _ in range(3))


def test_a_set_keeps_each_handle_once_and_in_order():
    results = ResultSet([ONE, TWO, ONE])
    results.add(TWO)
    results.update(iter([ONE, THREE]))

    assert list(results) == [ONE, TWO, THREE]
    assert (len(results), results[2], results.app) == (3, THREE, app)
    assert ONE in results
    assert ONE.id in results
    assert new_id() not in results


def test_handles_are_taken_out_by_themselves_or_by_id():
    results = ResultSet([ONE, TWO, THREE])
    handles = results.results
    results.remove(ONE)
    results.discard(TWO.id)
    results.discard(ONE)

    assert list(results) == [THREE]
    with pytest.raises(KeyError):
        results.remove(ONE)
    results.clear()
    assert (list(results), handles) == ([], [])
    assert not results


def test_sets_are_equal_if_they_hold_the_same_in_the_same_order():
    assert ResultSet([ONE, TWO]) == ResultSet([AsyncResult(ONE.id, app), TWO])
    assert ResultSet([ONE, TWO]) != ResultSet([TWO, ONE])
    assert ResultSet([ONE]) != [ONE]
    with pytest.raises(TypeError):
        hash(ResultSet([ONE]))


def test_a_set_is_shown_by_its_first_ids():
    assert repr(ResultSet([ONE, TWO])) == f"<ResultSet [{ONE.id}, {TWO.id}]>"
    assert repr(ResultSet(AsyncResult(new_id(), app) for _ in range(6))).endswith(", …]>")
    assert (str(ONE), str(GroupResult("id", app))) == (ONE.id, "id")


def test_a_set_is_made_of_handles_on_jobs():
    members = GroupResult("id", app, [ONE, TWO])

    with pytest.raises(
        ConfigurationError, match=r"made of handles on jobs, found <GroupResult id>"
    ):
        ResultSet([members])  # type: ignore[arg-type]
    assert list(ResultSet(members)) == [ONE, TWO]


def test_the_members_of_a_group_stand():
    members = GroupResult("id", app, [ONE])

    for change in (
        lambda: members.add(TWO),
        lambda: members.update([TWO]),
        lambda: members.remove(ONE),
        lambda: members.discard(ONE),
        members.clear,
    ):
        with pytest.raises(ConfigurationError, match="members of bundle id stand"):
            change()
    assert list(members) == [ONE]


def test_groups_are_equal_by_their_id_and_never_false():
    members = GroupResult[Any]("id", app, [])

    assert members == GroupResult("id", app)
    assert hash(members) == hash(GroupResult("id", app))
    assert members != GroupResult("other", app, [])
    assert members


def test_handles_belong_to_the_current_app_or_to_the_app_whose_class_is_used():
    other = App("other")

    assert other.AsyncResult(ONE.id).app is other
    assert other.ResultSet([]).app is other
    assert other.GroupResult("id").app is other
    assert isinstance(other.AsyncResult(ONE.id), AsyncResult)
    with app.current():
        assert AsyncResult(ONE.id).app is app
        assert GroupResult("id").app is app
        assert ResultSet([]).app is app
        assert result_from_tuple(ONE.as_tuple()).app is app


def test_a_tree_of_results_is_saved_as_ids_and_comes_back():
    first = AsyncResult[Any](new_id(), app)
    header = GroupResult("header", app, [ONE, TWO], parent=first)
    body = AsyncResult[Any](new_id(), app, parent=header)

    saved = body.as_tuple()
    restored = result_from_tuple(saved, app)

    assert saved == (
        (
            body.id,
            (
                ("header", ((first.id, None), None)),
                [((ONE.id, None), None), ((TWO.id, None), None)],
            ),
        ),
        None,
    )
    assert restored == body
    assert restored.parent == header
    assert isinstance(restored.parent, GroupResult)
    assert list(restored.parent) == [ONE, TWO]
    assert restored.parent.parent == first
    assert result_from_tuple(body) is body
