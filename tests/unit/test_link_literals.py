"""Parameters in PostgreSQL's text form are read back by psycopg's own parser as they were."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import adapters, pq
from psycopg.adapt import Transformer

from pgtasks.worker.link import literal, plain_array, text_array

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(
    st.sampled_from('{}",\\ \n\tNULnul')
)


def parsed(value: bytes | None, type_name: str) -> Any:
    """Read a value of that type as psycopg reads one that the server sent."""
    if value is None:
        return None
    loader = Transformer(None).get_loader(adapters.types[type_name].oid, pq.Format.TEXT)
    return loader.load(value)


def parsed_array(value: bytes | None, type_name: str) -> Any:
    assert value is not None
    oid = adapters.types[type_name].array_oid
    return Transformer(None).get_loader(oid, pq.Format.TEXT).load(value)


@given(st.lists(texts | st.none()))
def test_an_array_of_any_texts_is_read_back(values: list[str | None]):
    assert parsed_array(text_array(values), "text") == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()))
def test_an_array_of_numbers_is_read_back(values: list[int | None]):
    assert parsed_array(literal(values), "int8") == values


@given(st.lists(st.booleans() | st.none()))
def test_an_array_of_booleans_is_read_back(values: list[bool | None]):
    assert parsed_array(literal(values), "bool") == values


@given(st.lists(st.floats(allow_nan=False)))
def test_an_array_of_floats_is_read_back(values: list[float]):
    assert parsed_array(literal(values), "float8") == values


@given(st.lists(st.uuids()))
def test_a_plain_array_of_ids_is_read_back(values: list[Any]):
    assert parsed_array(plain_array(map(str, values)), "uuid") == values


def test_a_plain_array_has_nulls():
    assert parsed_array(plain_array(["1", "NULL", "-3"]), "int8") == [1, None, -3]


@pytest.mark.parametrize("values", [[], [""], ["NULL"], ["null"], [None], ["{}"], ['"'], ["\\"]])
def test_odd_texts_are_read_back(values: list[str | None]):
    assert parsed_array(text_array(values), "text") == values


@given(texts)
def test_a_text_is_itself(value: str):
    assert parsed(literal(value), "text") == value


@given(st.floats())
def test_a_float_is_read_back(value: float):
    back = parsed(literal(value), "float8")

    assert back == value or (math.isnan(back) and math.isnan(value))


def test_null_booleans_and_bytes():
    assert literal(None) is None
    assert parsed(literal(True), "bool") is True
    assert parsed(literal(False), "bool") is False
    assert literal(b'{"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize("value", [object(), {"a": 1}, 1j])
def test_what_has_no_text_form_is_refused(value: object):
    with pytest.raises(TypeError, match="no text form is known for"):
        literal(value)
