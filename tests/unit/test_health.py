"""The health server over real sockets: a probe is answered, and nobody else can hold it up."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pgtasks.errors import PgTasksError
from pgtasks.worker.health import (
    CONNECTION_SECONDS,
    CROWDED_SECONDS,
    MAX_CONNECTIONS,
    MAX_DRAINED,
    MAX_REQUEST,
    HealthServer,
)
from tests.fixtures.eventually import eventually

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Loop:
    """What the parent does with a health server, in a thread; ``ahead`` lets its clock run on."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.healthy = True
        self.ahead = 0.0
        self.asked = 0
        self.server = HealthServer((host, 0), self.check)
        self.port = int(self.server.address.rpartition(":")[2])
        self._ending = False
        self._wake_read, self._wake = os.pipe()
        self._thread = threading.Thread(target=self.run)
        self._thread.start()

    def check(self, now: float) -> tuple[bool, dict[str, Any]]:
        self.asked += 1
        return self.healthy, {"worker": "one@host"}

    def run(self) -> None:
        while not self._ending:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake_read, selectors.EVENT_READ)
                for fd, mask in self.server.descriptors().items():
                    selector.register(fd, mask)
                due = self.server.next_due() - self.now()
                ready = selector.select(None if due == float("inf") else max(0.0, due))
            for key, _ in ready:
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 1)
                else:
                    self.server.ready(key.fd, self.now())
            self.server.expire(self.now())

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds
        os.write(self._wake, b"!")

    def end(self) -> None:
        self._ending = True
        os.write(self._wake, b"!")
        self._thread.join()
        self.server.close()
        os.close(self._wake_read)
        os.close(self._wake)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def request(self, method: str = "GET", path: str = "/health") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send(self, *parts: bytes) -> bytes:
        """Send raw bytes, and return all that comes back until the server closes."""
        with self.connect() as client:
            for part in parts:
                client.sendall(part)
            return self.read(client)

    def read(self, client: socket.socket) -> bytes:
        received = b""
        while data := client.recv(65536):
            received += data
        return received

    def connections(self, number: int) -> None:
        """Wait until so many are open."""

        def open_() -> None:
            assert len(self.server.filenos()) == number + 1

        eventually(open_)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.end()


def test_a_healthy_worker_answers_200_and_a_sick_one_503(loop: Loop):
    well = loop.request()
    loop.healthy = False
    sick = loop.request()

    assert (well[0], json.loads(well[1])) == (200, {"status": "ok", "worker": "one@host"})
    assert (sick[0], json.loads(sick[1])) == (503, {"status": "unhealthy", "worker": "one@host"})


def test_any_path_will_do_and_head_has_no_body(loop: Loop):
    assert loop.request(path="/")[0] == 200
    assert loop.request(path="/live?verbose=1")[0] == 200
    assert loop.send(b"HEAD / HTTP/1.1\r\n\r\n").endswith(b"Connection: close\r\n\r\n")


def test_the_head_of_an_answer_says_how_long_it_is_and_that_the_connection_ends(loop: Loop):
    head, _, body = loop.send(GET).partition(b"\r\n\r\n")

    assert b"Content-Type: application/json\r\n" in head
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert body.endswith(b"}\n")


def test_a_request_may_come_in_pieces_and_with_bare_line_feeds(loop: Loop):
    with loop.connect() as client:
        client.sendall(GET[:9])
        loop.connections(1)
        client.sendall(GET[9:])
        in_pieces = loop.read(client)

    assert in_pieces.startswith(b"HTTP/1.1 200 OK\r\n")
    assert loop.send(b"GET / HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405 Method Not Allowed"),
        (b"get / HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/2.0\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\n\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_REQUEST, b"431 Request Header Fields Too Large"),
        (b"\x00" * MAX_REQUEST, b"431 Request Header Fields Too Large"),
    ],
)
def test_what_is_no_probe_is_told_so_and_not_answered(loop: Loop, sent: bytes, status: bytes):
    answer = loop.send(sent)

    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert loop.asked == 0
    loop.connections(0)


def test_half_a_request_is_refused_when_its_client_has_nothing_more_to_say(loop: Loop):
    with loop.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = loop.read(client)

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_clients_that_go_away_at_any_point_leave_nothing_behind(loop: Loop):
    reset = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # linger 0: close sends a reset
    for sent in (b"", b"GET ", GET):
        client = loop.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        client.sendall(sent)
        client.close()

    assert loop.request()[0] == 200
    loop.connections(0)


def test_a_client_that_says_nothing_is_dropped_in_time(loop: Loop):
    with loop.connect() as silent, loop.connect() as slow:
        slow.sendall(b"GET / HTTP")
        loop.connections(2)

        loop.advance(CONNECTION_SECONDS - 1.0)
        assert loop.request()[0] == 200
        loop.connections(2)
        loop.advance(1.5)

        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
    loop.connections(0)


def test_an_answer_that_nobody_fetches_is_dropped_in_time(loop: Loop):
    with loop.connect() as client:
        client.sendall(GET)
        loop.connections(1)
        assert client.recv(4) == b"HTTP"

        loop.advance(CONNECTION_SECONDS + 0.5)

        loop.connections(0)


def test_what_comes_after_the_answer_is_read_to_a_bound(loop: Loop):
    client = loop.connect()
    client.sendall(GET)

    def flooded() -> None:
        try:
            client.sendall(b"x" * MAX_DRAINED)
        except ConnectionError:
            return
        raise AssertionError("the server goes on reading")

    eventually(flooded, CONNECTION_SECONDS / 2)
    client.close()
    loop.connections(0)


@pytest.fixture
def still() -> Iterator[HealthServer]:
    # A server that nobody drives but the test.
    server = HealthServer(("127.0.0.1", 0), lambda now: (True, {}))
    yield server
    server.close()


def connect_to(server: HealthServer, number: int) -> list[socket.socket]:
    port = int(server.address.rpartition(":")[2])
    return [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(number)]


def test_more_connections_than_the_bound_wait_until_one_ends(still: HealthServer):
    [listener] = still.filenos()
    clients = connect_to(still, MAX_CONNECTIONS + 1)
    still.ready(listener, 100.0)
    full = still.descriptors()

    clients[0].close()
    closed = still.ready(still.filenos()[1], 100.0)
    still.ready(listener, 100.1)

    assert len(full) == MAX_CONNECTIONS
    assert listener not in full  # else it would spin
    assert closed
    assert len(still.filenos()) == MAX_CONNECTIONS + 1
    for client in clients:
        client.close()


def test_slow_clients_lose_their_places_sooner_when_all_are_taken(still: HealthServer):
    [listener] = still.filenos()
    clients = connect_to(still, 3)
    still.ready(listener, 100.0)
    alone = still.next_due()
    clients += connect_to(still, MAX_CONNECTIONS)
    still.ready(listener, 100.1)
    crowded = still.next_due()

    dropped = still.expire(crowded)

    assert (alone, crowded) == (100.0 + CONNECTION_SECONDS, 100.0 + CROWDED_SECONDS)
    assert dropped
    assert len(still.filenos()) == 1 + MAX_CONNECTIONS - 3
    assert still.next_due() == 100.1 + CONNECTION_SECONDS
    for client in clients:
        client.close()


def test_many_probes_at_once_are_all_answered(loop: Loop):
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(loop.request()[0])) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 50
    loop.connections(0)


def test_an_address_in_use_is_refused_in_one_line(loop: Loop):
    with pytest.raises(
        PgTasksError, match=r"cannot serve health at 127\.0\.0\.1:\d+: address al"
    ) as e:
        HealthServer(("127.0.0.1", loop.port), loop.check)

    assert "\n" not in str(e.value)


def test_an_address_that_is_none_is_refused():
    # Of a network that is for documentation: no machine has it.
    with pytest.raises(PgTasksError, match=r"cannot serve health at 192\.0\.2\.1:80: "):
        HealthServer(("192.0.2.1", 80), lambda now: (True, {}))


def test_a_port_is_free_again_at_once(loop: Loop):
    loop.request()
    other = Loop()
    other.request()
    port = other.port
    other.end()

    again = HealthServer(("127.0.0.1", port), loop.check)

    assert again.address == f"127.0.0.1:{port}"
    again.close()


def test_ipv6_is_served_and_shown_in_brackets():
    try:
        server = HealthServer(("::1", 0), lambda now: (True, {}))
    except PgTasksError as error:
        pytest.skip(f"NOT TESTED: this machine has no IPv6: {error}")

    assert server.address.startswith("[::1]:")
    server.close()


def test_descriptors_run_out_and_the_listener_rests(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    server = HealthServer(("127.0.0.1", 0), loop.check)
    listener = server.filenos()[0]

    class Refusing:
        def fileno(self) -> int:
            return listener

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

        def close(self) -> None: ...

    real = server._listener
    monkeypatch.setattr(server, "_listener", Refusing())
    server.ready(listener, 100.0)

    assert server.descriptors() == {}
    assert server.next_due() == 101.0
    server.expire(101.0)
    assert server.descriptors() == {listener: selectors.EVENT_READ}
    real.close()
