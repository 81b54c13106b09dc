"""Answers a probe's HTTP question, is this worker alive, from the parent's own loop: nothing here blocks.

Any path, GET or HEAD: 200 or 503 with a small JSON body. One request a connection. The owner puts
`descriptors` into its selector, calls `ready` for each that is, and `expire` now and then.

    READING ──blank line, or what is no request──► WRITING ──all written──► DRAINING ──end of file──► closed

Draining: what the client still sends is read and dropped for a while, since closing a socket with unread
data resets the connection, and the client would lose the answer. Who takes too long is dropped at any point.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pgtasks.errors import PgTasksError

MAX_CONNECTIONS = 16  # as many again wait in the listener's backlog
MAX_REQUEST = 2048  # bytes
MAX_DRAINED = 65_536  # bytes, after the answer
CONNECTION_SECONDS = 5.0
# When every place is taken, slow clients lose theirs after this time already, so that a probe, which is
# patient for 1 s as a rule, is answered behind a crowd, too.
CROWDED_SECONDS = 0.2
# After accept() was refused, out of descriptors for one, how long the listener rests, in seconds.
REST = 1.0

Check = Callable[[float], tuple[bool, Mapping[str, Any]]]


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    since: float
    request: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""
    answered: bool = False
    drained: int = 0

    @property
    def mask(self) -> int:
        return selectors.EVENT_WRITE if self.unsent else selectors.EVENT_READ


class HealthServer:
    """The listening socket of one worker, and its connections.

    Args:
        address: host and port; port 0 takes a free one, see `address`.
        check: called for each request with the monotonic moment; says whether the worker is healthy, and
            what to tell besides, as JSON.

    Raises:
        PgTasksError: the address cannot be had.
    """

    def __init__(self, address: tuple[str, int], check: Check) -> None:
        self._check = check
        self._rest_until = 0.0
        self._connections: dict[int, _Connection] = {}
        self._listener = _listen(*address)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def descriptors(self) -> dict[int, int]:
        """Return what to wait for: descriptor -> selectors' mask."""
        wanted = {fd: one.mask for fd, one in self._connections.items()}
        if len(wanted) < MAX_CONNECTIONS and not self._rest_until:
            wanted[self._listener.fileno()] = selectors.EVENT_READ
        return wanted

    def filenos(self) -> list[int]:
        """Return every descriptor: a forked child must keep none of them."""
        return [self._listener.fileno(), *self._connections]

    def ready(self, fd: int, now: float) -> bool:
        """Go on with a descriptor that is ready; True if one was closed: look at `descriptors` anew."""
        if fd == self._listener.fileno():
            self._accept(now)
            return False
        one = self._connections.get(fd)
        if one is None:
            return False
        try:
            goes_on = self._write(one) if one.unsent else self._read(one, now)
        except BlockingIOError:
            return False
        except OSError:  # reset by the client: nobody is left to answer
            goes_on = False
        if not goes_on:
            self._drop(fd)
        return not goes_on

    def expire(self, now: float) -> bool:
        """Drop who takes too long; True if a descriptor was closed: look at `descriptors` anew."""
        if now >= self._rest_until:
            self._rest_until = 0.0
        patience = self._patience
        slow = [fd for fd, one in self._connections.items() if now >= one.since + patience]
        for fd in slow:
            self._drop(fd)
        return bool(slow)

    def next_due(self) -> float:
        """Return the monotonic moment of the next `expire` that has something to do."""
        patience = self._patience
        moments = [one.since + patience for one in self._connections.values()]
        if self._rest_until:
            moments.append(self._rest_until)
        return min(moments, default=float("inf"))

    def close(self) -> None:
        """Close everything."""
        for fd in list(self._connections):
            self._drop(fd)
        self._listener.close()

    @property
    def _patience(self) -> float:
        full = len(self._connections) >= MAX_CONNECTIONS
        return CROWDED_SECONDS if full else CONNECTION_SECONDS

    def _accept(self, now: float) -> None:
        while len(self._connections) < MAX_CONNECTIONS:
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._rest_until = now + REST
                return
            accepted.setblocking(False)
            self._connections[accepted.fileno()] = _Connection(accepted, now)

    def _read(self, one: _Connection, now: float) -> bool:
        data = one.socket.recv(MAX_REQUEST)
        if one.answered:
            one.drained += len(data)
            return bool(data) and one.drained <= MAX_DRAINED
        one.request += data
        if not data and not one.request:
            return False  # it only tried whether somebody listens
        answer = self._answer(bytes(one.request), ended=not data, now=now)
        if answer is None:
            return True
        one.unsent, one.answered = answer, True
        one.request.clear()
        return self._write(one)

    def _write(self, one: _Connection) -> bool:
        sent = one.socket.send(one.unsent)
        one.unsent = one.unsent[sent:]
        if not one.unsent:
            one.socket.shutdown(socket.SHUT_WR)
        return True

    def _answer(self, request: bytes, *, ended: bool, now: float) -> bytes | None:
        """Return the response; None while the request goes on."""
        whole = b"\n\r\n" in request or b"\n\n" in request
        if not whole and not ended:
            if len(request) < MAX_REQUEST:
                return None
            return _response("431 Request Header Fields Too Large", {"status": "too large"})
        words = request.partition(b"\n")[0].split()
        if not whole or len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", {"status": "not an HTTP/1 request"})
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", {"status": "expected GET or HEAD"})
        healthy, details = self._check(now)
        body = {"status": "ok" if healthy else "unhealthy", **details}
        status = "200 OK" if healthy else "503 Service Unavailable"
        return _response(status, body, head_only=words[0] == b"HEAD")

    def _drop(self, fd: int) -> None:
        self._connections.pop(fd).socket.close()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket that does not block."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # So that a restarted worker need not wait for connections of its predecessor to time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise PgTasksError(
            f"cannot serve health at {host}:{port}: {(error.strerror or str(error)).lower()}; "
            "say another --health-port, or 0 for any that is free"
        ) from None
    listener.setblocking(False)
    return listener


def _response(status: str, body: Mapping[str, Any], *, head_only: bool = False) -> bytes:
    content = orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
    allow = "Allow: GET, HEAD\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else content)
