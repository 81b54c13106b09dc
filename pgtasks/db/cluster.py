"""One data folder and the server that runs on it.

Who may start and stop it, and when, is decided elsewhere (``pgtasks.db.embedded``). At any moment
only one process may be in ``start`` or ``stop`` of one folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pgtasks.db.account import PATIENCE, Account
from pgtasks.db.binaries import VARIABLE, executable_binaries
from pgtasks.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The children of a killed server hold its shared memory until they notice, a moment later.
RESTART_PATIENCE = 5.0
POLL = 0.02
# The kernel takes 107 bytes on Linux and 103 on macOS.
SOCKET_PATH_LIMIT = 100
# These go through a shell (pg_ctl quotes with "") and a comma-separated list.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
UNUSABLE = re.compile(r'["$`\\\n]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A folder that belongs to ``account`` alone and holds data, log and, if short, the socket."""

    folder: Path
    account: Account
    port: int = 5432  # part of the socket's name; of 127.0.0.1 too, with tcp
    tcp: bool = False
    durable: bool = True  # else what initdb writes is not synced: for servers that are thrown away
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def sockets(self) -> Path:
        length = len(os.fsencode(self.folder)) + len(f"/.s.PGSQL.{self.port}")
        if length < SOCKET_PATH_LIMIT and PLAIN_PATH.fullmatch(str(self.folder)):
            return self.folder
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        # Not gettempdir(): all processes must find it, whatever their TMPDIR.
        return Path("/tmp") / f"pgtasks-{name}"  # noqa: S108 - owner and mode are checked

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets))}&port={self.port}"

    @property
    def pid(self) -> int | None:
        """The process id in the server's lock file; the process may be gone."""
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n")[0])
        except (FileNotFoundError, ValueError):
            return None

    def start(self) -> None:
        """Come back when the server takes connections: at once if it does already."""
        from psycopg import pq

        self._check_sockets()
        began = time.monotonic()
        while True:
            answer = pq.PGconn.ping(f"{self.dsn}&connect_timeout=10".encode())
            if answer == pq.Ping.OK:
                return
            if answer == pq.Ping.REJECT:  # somebody's is starting, recovering or stopping
                if time.monotonic() > began + PATIENCE:
                    raise EmbeddedError(self._failure("still refuses connections", 0))
            else:
                remains = self.pid is not None
                size = self.log.stat().st_size if self.log.exists() else 0
                if self._launch():
                    return
                if not remains or time.monotonic() > began + RESTART_PATIENCE:
                    raise EmbeddedError(self._failure("did not start", size))
                self._remove_stale_locks()
            time.sleep(POLL)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Come back when no process of the server is left."""
        if self._listening() or not self._settle():
            binaries, _ = executable_binaries(self.account)
            command = (binaries / "pg_ctl", "stop", "-s", "-w", "-t", f"{PATIENCE:.0f}")
            done = self.account.run(*command, "-D", self.data, "-m", mode)
            if not self._settle():
                raise EmbeddedError(
                    f"the server in {str(self.folder)!r} did not stop: {done.stdout.strip()}"
                )
        if self.sockets != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def _settle(self) -> bool:
        """Wait until nothing of a killed server is left; tell whether it came to that."""
        deadline = time.monotonic() + RESTART_PATIENCE
        while not self._remove_stale_locks():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    def _launch(self) -> bool:
        binaries, version = executable_binaries(self.account)
        self._prepare_data(binaries, version)
        if not self.sockets.exists():
            self.sockets.mkdir(0o700)
            self.account.own(self.sockets)
        self._check_sockets()
        settings = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            **self.settings,
        }
        options = " ".join(f"-c {shlex.quote(f'{k}={v}')}" for k, v in settings.items())
        command = (binaries / "pg_ctl", "start", "-s", "-w", "-t", f"{PATIENCE:.0f}")
        done = self.account.run(*command, "-D", self.data, "-l", self.log, "-o", options)
        return done.returncode == 0

    def _prepare_data(self, binaries: Path, version: int) -> None:
        if UNUSABLE.search(f"{self.folder}{binaries}"):
            raise EmbeddedError(
                'expected paths without any of " $ ` \\ and line ends, which pg_ctl cannot take, '
                f"found {str(self.folder)!r} and {str(binaries)!r}: use another folder"
            )
        if not self.data.exists():
            self._initialise(binaries)
            return
        marker = self.data / "PG_VERSION"
        found = marker.read_text().strip() if marker.exists() else None
        if found is None:
            raise EmbeddedError(
                f"expected a data folder of PostgreSQL, found no PG_VERSION in {str(self.data)!r}: "
                "move it away"
            )
        if found != str(version):
            raise EmbeddedError(
                f"data folder {str(self.data)!r} was made by PostgreSQL {found}, the programs in "
                f"{str(binaries)!r} are version {version}: set ${VARIABLE} to the programs of "
                f"version {found}, or move the folder away"
            )

    def _initialise(self, binaries: Path) -> None:
        self.account.check_entry()
        # Under another name until it is complete: a killed initdb leaves half a folder.
        work = self.folder / "data.new"
        shutil.rmtree(work, ignore_errors=True)
        done = self.account.run(
            *(binaries / "initdb", "-D", work, "--username=postgres"),
            *("--encoding=UTF8", "--no-locale", "--data-checksums"),
            *("--auth-local=trust", f"--auth-host={'trust' if self.tcp else 'reject'}"),
            *(() if self.durable else ("--no-sync",)),
        )
        if done.returncode != 0:
            shutil.rmtree(work, ignore_errors=True)
            raise EmbeddedError(f"initdb made no data folder: {done.stdout.strip()}")
        work.rename(self.data)
        # Else the old name could be back after a power cut, and be taken for half a folder.
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_sockets(self) -> None:
        """Refuse a socket folder that another account has put in /tmp, in the server's name."""
        if os.path.lexists(self.sockets) and not self.account.owns_alone(self.sockets):
            raise EmbeddedError(
                f"expected folder {str(self.sockets)!r} to be open to uid {self.account.uid} only: "
                "remove it"
            )

    def _listening(self) -> bool:
        """Tell whether a process holds the socket, even one that is stopped or unreaped."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.sockets / f".s.PGSQL.{self.port}"))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:  # a full backlog
                return True
            return True

    def _remove_stale_locks(self) -> bool:
        """Remove the lock files of a killed server when nothing of it is left; tell whether so.

        PostgreSQL itself takes a process id that exists for a running server, also when that is a
        zombie, or after a restart of the machine an unrelated process of ours.
        """
        import psutil

        if self._listening():
            return False
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.data):
                    return False
            except psutil.Error:  # gone, a zombie, or another account's
                continue
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.sockets / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)
        return True

    def _failure(self, what: str, size: int) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(size)
                tail = log.read()[-2000:].decode(errors="replace").strip()
        except FileNotFoundError:
            tail = ""
        return f"the server in {str(self.folder)!r} {what}: {tail or 'its log is empty'}"
