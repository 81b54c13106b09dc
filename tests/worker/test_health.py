"""Probes of a real worker: over HTTP, and by ``pgtasks health``."""

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import psycopg
import pytest

from pgtasks import App
from tests.fixtures import sample_app
from tests.fixtures.commands import Command
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, RunningWorker, Workers, kill_and_wait, wait_until_begun

# Times that a test can wait for; claims are judged by the lease, since polls are more frequent.
QUICK: dict[str, Any] = {"beat": 0.2, "lease": 1.0, "poll_interval": 0.1}


def port_of(worker: RunningWorker) -> int:
    """Return the port that the worker took, as its log says."""
    found = re.search(r"worker\.ready .*health=127\.0\.0\.1:(\d+)", worker.log())
    assert found is not None, worker.log()
    return int(found[1])


def probe(port: int, method: str = "GET") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, "/health")
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else {}
    finally:
        connection.close()


@contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    """Keep everybody from a table for a block."""
    with psycopg.connect(dsn) as holding:
        holding.execute(f"lock table pgtasks.{table} in access exclusive mode")
        yield


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_answers_probes_also_while_its_jobs_run(
    app: App, workers: Workers, runs: Runs, gate: Gate, pool: str
):
    worker = workers.start(health_port="0", pool=pool)
    port = port_of(worker)
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    status, body = probe(port)
    head = probe(port, "HEAD")
    gate.open()

    assert (status, head) == (200, (200, {}))
    assert (body["status"], body["state"], body["lease"]) == ("ok", "running", 30.0)
    assert body["worker"].startswith("worker@")
    assert 0 <= body["claimed_ago"] < 30
    assert 0 <= body["beat_ago"] < 30
    assert result.get(timeout=10)


@pytest.mark.parametrize(("table", "age"), [("job", "claimed_ago"), ("worker", "beat_ago")])
def test_a_worker_whose_looks_or_beats_are_not_answered_is_sick_until_they_are(
    dsn: str, workers: Workers, table: str, age: str
):
    port = port_of(workers.start(health_port="127.0.0.1:0", **QUICK))
    assert probe(port)[0] == 200

    def sick() -> dict[str, Any]:
        status, body = probe(port)
        assert status == 503
        return body

    def well() -> None:
        assert probe(port)[0] == 200

    with locked(dsn, table):
        body = eventually(sick)
    eventually(well, 20.0)

    assert body["status"] == "unhealthy"
    assert body[age] > 1.0


def test_a_worker_that_drains_is_well(app: App, workers: Workers, runs: Runs, gate: Gate):
    worker = workers.start(health_port="0", **QUICK)
    port = port_of(worker)
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)
    worker.signal(signal.SIGTERM)
    worker.said("worker.draining")

    def long_since_a_claim() -> dict[str, Any]:
        status, body = probe(port)
        assert status == 200
        assert body["claimed_ago"] > QUICK["lease"]
        return body

    body = eventually(long_since_a_claim)
    gate.open()

    assert body["state"] == "draining"
    assert worker.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        probe(port)


def test_clients_that_are_slow_or_many_or_talk_nonsense_hold_up_neither_jobs_nor_probes(
    app: App, workers: Workers
):
    port = port_of(workers.start(health_port="0"))
    said = (b"", b"GET / HT", b"\x16\x03\x01" * 50, b"PUT / HTTP/1.1\r\n\r\n")
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(30)]
    for number, client in enumerate(slow):
        client.sendall(said[number % len(said)])

    began = time.monotonic()
    status = probe(port)[0]
    took = time.monotonic() - began
    results = [sample_app.add.delay(n, n) for n in range(200)]

    assert status == 200
    assert took < 3.0  # each of them may keep its place for 5 s where there is room
    assert [result.get(timeout=10) for result in results] == [2 * n for n in range(200)]
    for client in slow:
        client.close()


def test_children_keep_nothing_of_the_health_server(workers: Workers):
    worker = workers.start(health_port="0", concurrency=2)
    port = port_of(worker)
    children = worker.has_children(2)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")  # open on both sides when a child is forked

        def accepted() -> None:
            assert ports(worker.pid).count(port) == 2

        eventually(accepted)
        kill_and_wait(children[0])
        eventually(lambda: new_child(worker, children))

        for child in worker.has_children(2):
            eventually(partial(holds_none, child, port))
    assert probe(port)[0] == 200


def new_child(worker: RunningWorker, before: list[int]) -> None:
    assert set(worker.children()) - set(before)


def holds_none(child: int, port: int) -> None:
    assert port not in ports(child)


def ports(pid: int) -> list[int]:
    """Return the local port of every TCP socket of a process."""
    return [one.laddr.port for one in psutil.Process(pid).net_connections("tcp")]


def test_probes_by_command_follow_the_workers_own_beats(
    dsn: str, workers: Workers, command: Command
):
    worker = workers.start(**QUICK)

    def beaten() -> dict[str, Any]:
        [one] = json.loads(command("health", "--json").stdout)["workers"]
        assert one["claim_age"] is not None
        return one

    def is_sick() -> None:
        command("health", code=1)

    def is_well() -> None:
        command("health")

    one = eventually(beaten)
    with locked(dsn, "job"):
        eventually(is_sick)
    eventually(is_well, 20.0)
    worker.kill()
    eventually(is_sick)

    assert (one["beat_limit"], one["claim_limit"], one["pid"]) == (1.0, 1.0, worker.pid)
