"""Every example runs as it stands, on the tests' database; the README's program, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgtasks

ROOT = Path(__file__).parent.parent.parent
EXPECTED = {
    "hello": "Hello Ann",
    "thumbnails": "a page with 9 thumbnails: cat-80, cat-160",
    "retries": "order 1 printed at attempt 3",
    "groups": "1000 of 1000 succeeded",
    "progress": "/30 (",
    "schedules": "nightly: 30 2 * * *, active, next ",
    "transaction": "1 job was enqueued",
    "asynchronous": "'page 4'",
    "without_database": "Ann pays until 24 December",
}


def run(file: Path, dsn: str) -> str:
    environment = {**os.environ, "PGTASKS_DSN": dsn, "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        env=environment,
        cwd=file.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_example_is_expected_here():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


def test_examples_are_short():
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")
    }

    assert {name: length for name, length in lengths.items() if length > 60} == {}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example_prints_what_it_promises(name, dsn):
    assert EXPECTED[name] in run(ROOT / "examples" / f"{name}.py", dsn)


def test_readme_program_runs_with_a_worker(dsn, tmp_path):
    program = re.findall(
        r"```python\n(# shop\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(program) == 1
    shop = tmp_path / "shop.py"
    shop.write_text(program[0])
    worker = subprocess.Popen(
        [sys.executable, "-m", "pgtasks_cli", "worker", "-A", "shop", "-c", "2"],
        env={**os.environ, "PGTASKS_DSN": dsn},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        printed = run(shop, dsn)
    finally:
        worker.terminate()
        code = worker.wait(timeout=30)

    assert "sent 'Welcome' to ann@example.com" in printed
    assert code == 0


def test_readme_fits_its_length_and_names_every_task_option():
    from pgtasks.options import TaskOptions

    text = (ROOT / "README.md").read_text()

    assert len(text.splitlines()) <= 200
    missing = [
        name
        for name in TaskOptions.__struct_fields__
        if f"`{name}`" not in text and f"`{name}," not in text
    ]
    assert [name for name in missing if not re.search(rf"`[^`|]*\b{name}\b[^`|]*`", text)] == []


def test_readme_tasks_of_time_and_flow_are_tasks():
    text = (ROOT / "README.md").read_text()
    [block] = re.findall(r"```python\n(@app\.schedule.*?)```", text, re.DOTALL)
    app = pgtasks.App("readme")

    exec(block, {**vars(pgtasks), "__name__": "shop", "app": app})

    [schedule] = app.declared_schedules.values()
    assert schedule["spec"] == "0 6 * * mon-fri"
    remind, import_shop = app.tasks.values()
    assert str(remind.options.rate) == "100/m (burst 2)"
    job = import_shop.new_job([7, "north", "ann"], {})
    assert json.loads(job.options or "") == {
        "unique_key": f"{import_shop.name}:7",
        "limit_key": f"{import_shop.name} north",
        "fair_key": "ann",
    }
