"""mypy accepts good.py, with the types that it asserts, and refuses each marked line of bad.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MARK = re.compile(r"  # type: ignore\[([\w, -]+)\]$", re.MULTILINE)
ERROR = re.compile(r"^(?P<path>.+?):(?P<line>\d+): error: (?P<text>.*?)  \[(?P<code>[\w-]+)\]$")

Found = list[tuple[str, int, str, str]]  # file, line, code, text


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What mypy --strict says of good.py, and of bad.py without its marks; it runs once."""
    bare = tmp_path_factory.mktemp("typing") / "refused.py"
    bare.write_text(MARK.sub("", (HERE / "bad.py").read_text()))
    output, complaint, _ = api.run(
        [
            "--strict",
            "--no-error-summary",
            "--hide-error-context",
            "--no-pretty",
            f"--config-file={ROOT / 'pyproject.toml'}",
            f"--cache-dir={ROOT / '.mypy_cache'}",
            str(HERE / "good.py"),
            str(bare),
        ]
    )
    assert complaint == ""
    return list(errors(output.splitlines()))


def errors(lines: Sequence[str]) -> Found:
    matches = [ERROR.match(line) for line in lines if ": error: " in line]
    assert all(matches), lines
    return [
        (Path(match["path"]).name, int(match["line"]), match["code"], match["text"])
        for match in matches
        if match
    ]


def test_what_users_write_has_the_types_that_they_see(found: Found):
    assert [one for one in found if one[0] != "refused.py"] == []


def test_every_marked_line_is_refused_and_no_other(found: Found):
    text = (HERE / "bad.py").read_text().splitlines()
    marked = {
        (number, code.strip())
        for number, line in enumerate(text, 1)
        if (mark := MARK.search(line))
        for code in mark[1].split(",")
    }

    refused = {(line, code) for file, line, code, _ in found if file == "refused.py"}

    assert len(marked) > 25
    assert refused == marked
