"""The SQL of schema/statements: each section promises something, and its parameters agree both ways."""

from __future__ import annotations

import re

import pytest

from pgtasks.db import operations
from pgtasks.db.statements import library, positional, schema_folder, sections, sql_of

FILES = sorted((schema_folder() / "statements").glob("*.sql"))
NAMES = sorted(library())


def test_there_are_statements():
    assert len(FILES) >= 5
    assert len(NAMES) >= 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_section_says_in_a_comment_what_it_promises(path):
    text = path.read_text()
    heads = re.findall(r"^-- name: (\w+)\n(-- .*\n)?", text, flags=re.MULTILINE)

    assert text.startswith("-- name: ")
    assert [name for name, promise in heads if not promise.strip("- \n")] == []
    assert [name for name, _ in heads] == [name for name, _ in sections(text)]


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_has_no_stray_percent_and_no_comment_left_at_its_head(name: str):
    text = sql_of(name)
    without = re.sub(r"%\(\w+\)s", "", text)

    assert text
    assert not text.startswith("--")
    assert not text.endswith(";")
    assert "%" not in without.replace("%%", "")


@pytest.mark.parametrize("name", NAMES)
def test_positional_agrees_with_named(name: str):
    text, names = positional(name)
    numbers = [int(number) for number in re.findall(rb"\$(\d+)", text)]
    named = re.findall(r"%\((\w+)\)s", sql_of(name))

    assert b"%(" not in text
    assert list(names) == list(dict.fromkeys(named))
    assert [names[number - 1] for number in numbers] == named
    assert set(numbers) == set(range(1, len(names) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_qualifies_what_it_names(name: str):
    text = re.sub(r"--.*", "", sql_of(name))
    tables = (
        r"job|job_history|job_bundle|claim|worker|queue|task|listener|unique_key|jobs|schedules?"
    )

    assert re.findall(rf"\b(?:from|join|into|update) ({tables})\b", text) == []


def test_sections_are_split_at_their_names():
    found = sections(
        "-- name: one\n-- Does this.\n-- And that.\nselect 1\n\n-- name: two\nselect 2\n"
    )

    assert found == [("one", "select 1"), ("two", "select 2")]


def test_an_unknown_statement_is_a_key_error():
    with pytest.raises(KeyError):
        sql_of("no_such_statement")


def test_enqueue_takes_every_field_of_a_new_job():
    fields = set(operations.NEW_JOB_FIELDS)
    # One job alone waits for nothing.
    for name, taken in (
        ("enqueue_job", fields - set(operations.WAITING_FIELDS)),
        ("enqueue_jobs", fields),
    ):
        _, names = positional(name)
        assert set(names) == taken
