"""map, starmap and chunks on a real worker, which has the built-in tasks without listing them."""

from __future__ import annotations

from typing import Any

import psycopg

from pgtasks import App
from tests.fixtures import sample_app
from tests.fixtures.workers import Workers

Connection = psycopg.Connection[Any]


def test_loops_run_on_a_worker(app: App, workers: Workers) -> None:
    workers.start(concurrency=2)

    starmap = sample_app.add.starmap([(n, 1) for n in range(20)]).delay()
    awaited = sample_app.add_later.starmap([(1, 2), (3, 4)]).delay()
    echoed = sample_app.echo.map(["a", [1], None]).delay()
    chunks = sample_app.add.chunks(zip(range(10), range(10), strict=True), 4)()

    assert starmap.get(timeout=10) == [n + 1 for n in range(20)]
    assert awaited.get(timeout=10) == [3, 7]
    assert echoed.get(timeout=10) == ["a", [1], None]
    assert chunks.get(timeout=10) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_built_in_tasks_are_claimed_and_published_nowhere(
    app: App, workers: Workers, connection: Connection
) -> None:
    workers.start()

    gathered = app.signature("pgtasks.accumulate", ([1, 2],), {"index": 0}).delay()

    assert gathered.get(timeout=10) == [1, 2]
    published = connection.execute("select name from pgtasks.task where name like 'pgtasks.%'")
    assert published.fetchall() == []
    (known,) = connection.execute("select tasks from pgtasks.worker").fetchone() or ([],)
    assert {"pgtasks.map", "pgtasks.starmap", "pgtasks.accumulate"} < set(known)
