"""`import pgtasks` is cheap: a web process pays for what it uses."""

import json
import subprocess
import sys

import pytest

import pgtasks

LATER = ["asyncio", "click", "pgtasks.db", "pgtasks.worker", "pgtasks_cli", "psycopg", "rich"]


@pytest.fixture(scope="module")
def loaded_modules() -> set[str]:
    code = "import json, sys, pgtasks; print(json.dumps(list(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    return set(json.loads(output))


@pytest.mark.parametrize("name", LATER)
def test_importing_pgtasks_does_not_load(name: str, loaded_modules: set[str]):
    assert "pgtasks" in loaded_modules
    assert name not in loaded_modules


def test_every_public_name_resolves():
    missing = [name for name in pgtasks.__all__ if not hasattr(pgtasks, name)]

    assert missing == []


def test_no_public_name_is_said_twice():
    assert len(pgtasks.__all__) == len(set(pgtasks.__all__))
