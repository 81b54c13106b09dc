"""No class is looked up by a name from the database, and nothing from the database is imported.

There is a module that tells when it is imported, and rows that name it wherever a row has a name.
"""

import json
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks import App, TaskFailedError
from pgtasks.ids import new_id
from tests.fixtures.eventually import eventually
from tests.fixtures.workers import Workers, wait_until_finished

Connection = psycopg.Connection[Any]

EVIL_TYPES = [
    "evil_module.Boom",
    "evil_module:Boom",
    "antigravity.Boom",
    "os.system",
    "subprocess.Popen",
    "subprocess.CalledProcessError",
    "json.decoder.JSONDecodeError",
    "builtins.SystemExit",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "BaseException",
    "eval",
    "exec",
    "__import__",
    "open",
    "type",
    "ValueError.__class__",
    "pgtasks.errors.Retry",
    "pgtasks.app.App",
    "tests.fixtures.leaky_app.ShownError",
    "",
    "x" * 9000,
]
EVIL_MODULE = """
from pathlib import Path
Path(__file__).with_name("imported").write_text("yes")
class Boom(Exception): pass
def run(*args, **kwargs): Path(__file__).with_name("run").write_text("yes")
"""


class Watch(MetaPathFinder):
    """Stands before every other finder, and takes note of what is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        self.asked.append(fullname)


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    sys.meta_path.insert(0, watch)
    try:
        yield watch
    finally:
        sys.meta_path.remove(watch)


def plant(connection: Connection, error: dict[str, Any], *, state: str = "failed") -> str:
    """Write a finished job with that error, as a broken or malicious worker might."""
    id = new_id()
    connection.execute(
        "insert into pgtasks.job_history (id, queue, state, priority, created_at, task, args, kwargs, crashes, attempt,"
        " error) values (%s, 'default', %s, 0, now(), 'evil_module.run', '[]', '{}', 0, 1, %s)",
        [id, state, json.dumps(error)],
    )
    return id


@pytest.mark.parametrize("name", EVIL_TYPES)
def test_an_error_of_an_unknown_class_is_raised_as_what_it_is(
    app: App, connection: Connection, watch: Watch, name: str
):
    app.result(plant(connection, {"type": "ValueError", "args": ["1"]}))  # everything is loaded
    error = {"type": name, "message": "no", "traceback": "tb", "args": ["touch /tmp/owned"]}
    results = [app.result(plant(connection, error, state=one)) for one in ("failed", "quarantined")]
    with pytest.raises(TaskFailedError):
        results[0].get(timeout=5)
    before, watch.asked[:] = set(sys.modules), []

    for result in results:
        with pytest.raises(TaskFailedError) as raised:
            result.get(timeout=5)
        shown = repr(result.job())

    assert type(raised.value) is TaskFailedError
    assert (raised.value.type_name, raised.value.message) == (name, "no")
    assert shown
    assert set(sys.modules) == before
    assert watch.asked == []


@pytest.mark.parametrize(
    "error",
    [
        {"type": "ValueError", "args": {"a": 1}},
        {"type": "ValueError", "args": "abc"},
        {"type": ["ValueError"], "args": [1]},
        {"type": {"__class__": "os.system"}},
        {"type": "UnicodeDecodeError", "args": ["too", "few"]},
        {"type": "ValueError", "args": [{"__reduce__": ["os.system", "x"]}], "message": {"a": 1}},
    ],
)
def test_an_odd_error_is_an_error_and_no_crash(
    app: App, connection: Connection, error: dict[str, Any]
):
    result = app.result(plant(connection, error))

    with pytest.raises((TaskFailedError, ValueError)):
        result.get(timeout=5)


def test_a_worker_imports_no_name_of_a_row(
    workers: Workers, app: App, connection: Connection, tmp_path: Path
):
    (tmp_path / "evil_module.py").write_text(EVIL_MODULE)
    names = ["evil_module.run", "evil_module:run", "evil_module", "os.system", "__main__.main"]
    for name in names:
        connection.execute("select pgtasks.enqueue(%s)", [name])
    options = [
        {"retry_schedule": "evil_module.run", "retries": 3},
        {"base": "evil_module.Boom", "retry_for": ["evil_module.Boom"]},
        {"__class__": "evil_module.Boom", "time_limit": "evil_module.run"},
        {"retries": {"__import__": "evil_module"}},
        {"ignore_result": "evil_module.run", "soft_time_limit": [1]},
    ]
    for one in options:
        connection.execute(
            "select pgtasks.enqueue('tests.fixtures.sample_app.add', args => '[1, 2]', options => %s)",
            [json.dumps(one)],
        )
    connection.execute(
        "select pgtasks.enqueue('tests.fixtures.sample_app.add',"
        ' args => \'["evil_module.run", {"$type": "evil_module.Boom", "py/object": "evil_module.Boom"}]\')'
    )

    worker = workers.start(concurrency=1, environment={"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"})
    ended = app.send_task("tests.fixtures.sample_app.add", [2, 2]).get(timeout=30)

    def all_but_the_unknown() -> None:
        rows = connection.execute("select task from pgtasks.job").fetchall()
        assert sorted(task for (task,) in rows) == sorted(names)

    eventually(all_but_the_unknown, 20.0)
    connection.execute("delete from pgtasks.job")
    wait_until_finished(connection)
    code = worker.stop()

    assert ended == 4
    assert code == 0
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "run").exists()
