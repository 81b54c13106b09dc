"""One connection to PostgreSQL that never blocks: units of statements, pipelined.

A unit is a few statements that are one transaction (what stands between two syncs of a pipeline is
one). Units are sent as they come, without waiting for the replies of earlier ones, and each is answered
in order: with the rows of its last statement, or with an error. Built on libpq's pipeline mode, which
psycopg exposes as ``psycopg.pq``; its cursors would wait.

    DOWN ──start──► CONNECTING ──► UP ──error──► DOWN      the owner starts it again

Every unit under way when the connection breaks is answered with `Lost`: whether it was committed is
unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from pgtasks.db.statements import positional

CONNECT_TIMEOUT = 10.0  # seconds
REPLY_TIMEOUT = 15.0  # seconds without a reply, then the connection counts as dead
STATEMENT_TIMEOUT = "5s"  # on the server

Rows = list[tuple[Any, ...]]


class State(Enum):
    """Where a link is."""

    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Failed:
    """The server refused a unit: nothing of it happened."""

    sqlstate: str
    message: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke before the reply: the unit may have happened, or not."""

    message: str


Reply = Rows | Failed | Lost
Call = tuple[str, Mapping[str, object]]


@dataclass(slots=True)
class _Unit:
    done: Callable[[Reply], None]
    make_row: Callable[[Sequence[Any]], Any]
    sent_at: float
    rows: Rows
    before: Callable[[Rows], None] | None = None
    failed: Failed | None = None


class Link:
    """One pipelined connection.

    Args:
        conninfo: what to connect with.
        setup: SQL to run first on each new connection, such as LISTEN.
    """

    def __init__(self, conninfo: str, setup: Iterable[str] = ()) -> None:
        self._conninfo = conninfo
        self._setup = tuple(setup)
        self.state = State.DOWN
        self.notified: list[str] = []  # channels heard since the owner last emptied it
        self._pgconn: pq.abc.PGconn | None = None
        self._wants_write = False
        self._started_at = 0.0
        self._units: deque[_Unit] = deque()
        self._prepared: dict[str, bytes] = {}
        self._generation = 0
        self._transformer = Transformer(None)
        # What broke while sending. More may be submitted in the same cycle, so `check` tells it.
        self._failure: str | None = None

    @property
    def busy(self) -> int:
        """How many units have no reply yet."""
        return len(self._units)

    def start(self, now: float) -> str | None:
        """Begin to connect; returns why not, if that fails at once."""
        self._started_at = now
        self._prepared.clear()
        self._pgconn = pq.PGconn.connect_start(self._conninfo.encode())
        if self._pgconn.status == pq.ConnStatus.BAD:
            return self._break(now)
        self._pgconn.nonblocking = 1
        self.state = State.CONNECTING
        self._wants_write = True
        return None

    def fileno(self) -> int:
        """Return the socket, for a selector; it may change while the state is CONNECTING."""
        assert self._pgconn is not None
        return self._pgconn.socket

    @property
    def wants_write(self) -> bool:
        """Whether the selector shall wait for room to send, too."""
        return self._wants_write

    def submit(
        self,
        calls: Sequence[Call],
        done: Callable[[Reply], None],
        now: float,
        make_row: Callable[[Sequence[Any]], Any] = tuple,
        before: Callable[[Rows], None] | None = None,
    ) -> None:
        """Send a unit; ``done`` is called with its reply, from `ready` or `check`.

        Args:
            calls: statements by name, with their parameters.
            done: takes the rows of the last statement, or what went wrong.
            now: monotonic seconds.
            make_row: what to make of each row.
            before: takes the rows of the first statement, as soon as they are there.
        """
        assert self._pgconn is not None
        assert self.state is State.UP
        self._units.append(_Unit(done, make_row, now, [], before))
        if self._failure is not None:
            return  # `check` will answer it as lost
        try:
            for name, parameters in calls:
                self._send(name, parameters)
            self._pgconn.pipeline_sync()
            self._flush()
        except psycopg.Error as error:  # libpq may notice while sending that the server is gone
            self._failure = str(error)

    def _send(self, name: str, parameters: Mapping[str, object]) -> None:
        assert self._pgconn is not None
        sql, names = positional(name)
        prepared = self._prepared.get(name)
        if prepared is None:
            prepared = self._prepared[name] = f"{name}_{self._generation}".encode()
            self._pgconn.send_prepare(prepared, sql)
        self._pgconn.send_query_prepared(prepared, [literal(parameters[one]) for one in names])

    def ready(self, now: float) -> str | None:
        """Go on after the socket became readable or writable; returns why the connection broke, if so."""
        assert self._pgconn is not None
        if self.state is State.CONNECTING:
            return self._connect(now)
        try:
            self._pgconn.consume_input()
            self._flush()
            # A callback may submit, and find the connection broken: `check` goes on then.
            while self._failure is None and not self._pgconn.is_busy() and self._take_result():
                pass
            while (heard := self._pgconn.notifies()) is not None:
                self.notified.append(heard.relname.decode())
        except psycopg.Error as error:
            return self._break(now, str(error))
        if self._pgconn.status == pq.ConnStatus.BAD:
            return self._break(now)
        return None

    def check(self, now: float) -> str | None:
        """Break a connection that broke while sending or does not answer; returns why, if so."""
        if self._failure is not None:
            return self._break(now, self._failure)
        if self.state is State.CONNECTING and now - self._started_at > CONNECT_TIMEOUT:
            return self._break(now, f"no connection within {CONNECT_TIMEOUT:g} s")
        if self._units and now - self._units[0].sent_at > REPLY_TIMEOUT:
            return self._break(now, f"no reply within {REPLY_TIMEOUT:g} s")
        return None

    def close(self) -> None:
        """Close the connection; units under way are not answered."""
        self._units.clear()
        if self._pgconn is not None:
            self._pgconn.finish()
        self._pgconn = None
        self.state = State.DOWN

    # Connecting

    def _connect(self, now: float) -> str | None:
        assert self._pgconn is not None
        match self._pgconn.connect_poll():
            case pq.PollingStatus.OK:
                return self._set_up(now)
            case pq.PollingStatus.FAILED:
                return self._break(now)
            case pq.PollingStatus.WRITING:
                self._wants_write = True
            case _:
                self._wants_write = False
        return None

    def _set_up(self, now: float) -> str | None:
        assert self._pgconn is not None
        self.state = State.UP
        self._wants_write = False
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        unit = _Unit(_ignore, tuple, now, [])
        self._units.append(unit)
        try:
            for sql in (f"set statement_timeout = '{STATEMENT_TIMEOUT}'", *self._setup):
                self._pgconn.send_query_params(sql.encode(), None)
            self._pgconn.pipeline_sync()
            self._flush()
        except psycopg.Error as error:
            return self._break(now, str(error))
        return None

    # Replies

    def _take_result(self) -> bool:
        """Take one result; False when there is none now."""
        assert self._pgconn is not None
        if not self._units:
            return False
        result = self._pgconn.get_result()
        unit = self._units[0]
        if (
            result is None
        ):  # the end of one statement's results; for ever, if the connection is gone
            return self._pgconn.status == pq.ConnStatus.OK
        match result.status:
            case pq.ExecStatus.PIPELINE_SYNC:
                self._units.popleft()
                if unit.failed is not None:
                    # What was to be prepared after the error was not: prepare all under new names.
                    self._prepared.clear()
                    self._generation += 1
                unit.done(unit.rows if unit.failed is None else unit.failed)
            case pq.ExecStatus.TUPLES_OK:
                self._transformer.set_pgresult(result)
                if unit.before is not None:
                    before, unit.before = unit.before, None
                    before(self._transformer.load_rows(0, result.ntuples, tuple))
                else:
                    unit.rows = self._transformer.load_rows(0, result.ntuples, unit.make_row)
            case pq.ExecStatus.FATAL_ERROR if unit.failed is None:
                sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
                message = (
                    result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
                    or result.error_message
                    or b""
                )
                unit.failed = Failed(sqlstate.decode(), message.decode("utf-8", "replace"))
            case _:
                unit.rows = [] if result.status == pq.ExecStatus.COMMAND_OK else unit.rows
        return True

    def _flush(self) -> None:
        assert self._pgconn is not None
        self._wants_write = self._pgconn.flush() == 1

    def _break(self, now: float, why: str | None = None) -> str:
        if why is None and self._pgconn is not None:
            why = self._pgconn.get_error_message()
        lines = (why or "").strip().splitlines()
        message = lines[0] if lines else "the connection was closed"
        units, self._units = self._units, deque()
        self._failure = None
        if self._pgconn is not None:
            self._pgconn.finish()
        self._pgconn = None
        self._wants_write = False
        self.state = State.DOWN
        for unit in units:
            unit.done(Lost(message))
        return message


def _ignore(reply: Reply) -> None:
    """Take the reply of a unit whose result matters to nobody."""


def literal(value: object) -> bytes | None:
    """Return a parameter in PostgreSQL's text form."""
    match value:
        case None | bytes():
            return value
        case str():
            return value.encode()
        case bool():
            return b"t" if value else b"f"
        case int() | float():
            return repr(value).encode()
        case list() | tuple():
            return text_array(value)
        case _:
            raise TypeError(f"no text form is known for {type(value).__name__}")


def plain_array(values: Iterable[str]) -> bytes:
    """Return an array of values that need no quotes: ids, numbers, our own words; NULL is "NULL"."""
    return ("{" + ",".join(values) + "}").encode()


def text_array(values: Iterable[object]) -> bytes:
    """Return an array of any values, quoted where they are text."""
    parts = []
    for value in values:
        if value is None:
            parts.append("NULL")
        elif isinstance(value, str):
            parts.append('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
        else:
            parts.append((literal(value) or b"NULL").decode())
    return ("{" + ",".join(parts) + "}").encode()
