"""Data source names: how a database is named, with what it is connected, how it is shown to people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgtasks.db import embedded
from pgtasks.errors import ConfigurationError

# A connection that went dead is noticed after about 25 s idle, 15 s with data under way.
DEFAULTS: dict[str, Any] = {
    "application_name": "pgtasks",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}


def conninfo(dsn: str, **more: Any) -> str:
    """Return what to connect with; ``embedded:`` starts the private server or attaches to it.

    Raises:
        ConfigurationError: the DSN is not one.
        EmbeddedError: the private server cannot be started.
    """
    address = embedded.attach(dsn) if embedded.is_embedded(dsn) else dsn
    said = _parts(address)
    if said is None:
        # Not within the handler: libpq's message may quote the DSN, password and all, and those that collect
        # errors follow __context__, too.
        raise ConfigurationError(
            "the DSN is not one: expected postgresql://user@host:port/database, 'host=… dbname=…' or embedded:"
        )
    if _is_misread(address, said):
        raise ConfigurationError(
            "the DSN is not what it seems: in the user and the password of a URL write %40 for @, %2F for /, %3F for ?"
        )
    return make_conninfo(
        address, **{key: value for key, value in {**DEFAULTS, **more}.items() if key not in said}
    )


def describe(dsn: str) -> str:
    """Return the DSN for people: where it leads, never a password."""
    if embedded.is_embedded(dsn):
        return dsn
    said = _parts(dsn)
    if said is None or _is_misread(dsn, said):
        return "an unreadable DSN"
    if said.get("service"):
        return f"service={said['service']}"
    user = f"{said['user']}@" if said.get("user") else ""
    port = f":{said['port']}" if said.get("port") else ""
    return f"postgresql://{user}{said.get('host') or 'localhost'}{port}/{said.get('dbname') or ''}"


def has_password(dsn: str) -> bool:
    """Whether a password is in a DSN, as libpq reads it, or in part where libpq reads no password."""
    said = None if embedded.is_embedded(dsn) else _parts(dsn)
    if said is None:
        return False
    return bool(said.get("password") or said.get("sslpassword")) or _is_misread(dsn, said)


def _is_misread(dsn: str, said: Mapping[str, Any]) -> bool:
    """Whether part of a password stands where libpq reads, and quotes, a host, a port or a database.

    In ``postgresql://ann:se@cret@host/db`` the host would be ``cret@host``.
    """
    if "://" not in dsn:
        return False
    server, _, database = dsn.partition("://")[2].partition("?")[0].partition("/")
    ports = str(said.get("port") or "0").split(",")
    return server.count("@") > 1 or "@" in database or not all(map(str.isdecimal, ports))


def _parts(dsn: str) -> dict[str, Any] | None:
    try:
        return dict(conninfo_to_dict(dsn))
    except ProgrammingError:
        return None
