"""A private PostgreSQL server, shared by the processes that name its folder.

``embedded:`` keeps it in ``./.pgtasks``, ``embedded:///absolute/folder`` there. In it are::

    lock      held (flock, exclusive) while one process starts, attaches or stops
    users     held (flock, shared) by every process that uses the server
    server/   data, log and socket; belongs to the account that runs the server, closed to others.
              As root a link to /var/tmp, if that account cannot enter the folder

The first user starts the server, the last one stops it. The kernel drops a lock with the last
process that has its descriptor open, so a killed user counts no more; but nobody stops the server
for it: the next user finds it running and adopts it, and is then the last.

A forked child has the descriptor of its parent: it keeps the server up as long as it lives, and
runs no exit handler of its parent. So a parent that ends before its children leaves the server up,
like one that was killed. A child that calls ``attach`` counts for itself.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from pgtasks.db.account import Account
from pgtasks.db.binaries import find_binaries
from pgtasks.db.cluster import Cluster
from pgtasks.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

if sys.platform != "win32":
    import fcntl

__all__ = [
    "EmbeddedServer",
    "TemporaryServer",
    "attach",
    "detach",
    "find_binaries",
    "is_embedded",
    "temporary_server",
]

# Where data goes that the server's account could not reach. Not /tmp: it survives a restart.
ELSEWHERE = "/var/tmp"  # noqa: S108 - made by mkdtemp

# Held while anything below changes; also across a fork, so that no child inherits half a change.
_mutex = threading.RLock()
# Of this process, inherited by its children. By the DSN's text: after a chdir, ``embedded:`` still
# means the folder that it meant at first.
_servers: dict[str, EmbeddedServer] = {}
# All that this process, or the one it was forked from, attached to.
_attached: set[EmbeddedServer] = set()


def is_embedded(dsn: str) -> bool:
    return dsn.startswith("embedded:")


def attach(dsn: str) -> str:
    """Start the server or find it running; return the ordinary DSN of its database ``postgres``.

    The process is a user of the server from then on, until ``detach`` or its end. To call it again
    is cheap, and starts the server again if it was killed.
    """
    with _mutex:
        if dsn not in _servers:
            _servers[dsn] = EmbeddedServer(_folder_of(dsn))
        return _servers[dsn].attach()


def detach(dsn: str) -> None:
    """Give up use of the server; the last user stops it. Without ``attach`` before, do nothing."""
    with _mutex:
        server = _servers.pop(dsn, None)
        if server is not None:
            server.detach()


def _folder_of(dsn: str) -> Path:
    rest = dsn.removeprefix("embedded:")
    if not rest:
        return Path.cwd() / ".pgtasks"
    if rest.startswith("///") and rest.strip("/"):
        return Path(unquote(rest.removeprefix("//")))
    raise EmbeddedError(f"expected 'embedded:' or 'embedded:///absolute/folder', found {dsn!r}")


def _check_platform() -> None:
    if sys.platform == "win32":
        raise EmbeddedError(
            "the embedded server does not run on Windows: name the DSN of another server"
        )


class EmbeddedServer:
    """One folder's server, as one process uses it.

    Args:
        home: the folder; it is made if it is not there.
        settings: of PostgreSQL, for the case that this process is the one that starts the server.
        durable: False spares initdb the sync of its files.
    """

    def __init__(
        self, home: Path, *, settings: Mapping[str, str] | None = None, durable: bool = True
    ) -> None:
        _check_platform()
        self.home = home
        self._settings = settings or {}
        self._durable = durable
        self._users: int | None = None  # descriptor of the lock that makes us a user
        self._pid = 0  # the process that has opened it

    def attach(self) -> str:
        """Start the server, or find it running; return its DSN."""
        with _mutex, self._locked():
            ours = self._users is not None and self._pid == os.getpid()
            users = None if ours else self._open("users", fcntl.LOCK_SH)
            try:
                cluster = self._cluster()
                cluster.start()
            except BaseException:
                if users is not None:
                    os.close(users)
                raise
            if users is not None:
                self._leave()  # our copy of what the parent has open, in a forked child
                self._users, self._pid = users, os.getpid()
                _attached.add(self)
            return cluster.dsn

    def detach(self, *, remove: bool = False) -> None:
        """Give up use of the server; the last user stops it, and removes its folder if told to."""
        with _mutex:
            if self._users is None:
                return
            if not self.home.is_dir():  # removed: the server has noticed, or will
                self._leave()
                return
            with self._locked():
                self._leave()
                if not self._is_unused():
                    return
                cluster = self._cluster()
                cluster.stop()
                if remove:
                    shutil.rmtree(cluster.folder)
                    shutil.rmtree(self.home)

    def _leave(self) -> None:
        """Close our descriptor; never unlock it, that would count for our forks as well."""
        if self._users is not None:
            os.close(self._users)
        self._users = None
        _attached.discard(self)

    def _is_unused(self) -> bool:
        """Tell whether nobody holds the users' lock; opened anew, as ours may be our children's."""
        try:
            os.close(self._open("users", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only process that starts, attaches to or stops this server."""
        try:
            while True:
                self._make_home()
                lock = self._open("lock", fcntl.LOCK_EX)
                # The last user may have removed the folder while we waited.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), os.stat(self.home / "lock")):
                        break
                os.close(lock)
        except OSError as error:
            raise EmbeddedError(
                f"expected a folder that uid {os.geteuid()} can write, found {error}: "
                "use another one, 'embedded:///absolute/folder'"
            ) from error
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _open(self, name: str, operation: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.home / name, flags, 0o600)
        try:
            fcntl.flock(descriptor, operation)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _make_home(self) -> None:
        try:
            self.home.mkdir(parents=True)
        except FileExistsError:
            return
        # The account that runs the server for root passes through it, but has no business in it.
        self.home.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _cluster(self) -> Cluster:
        link = self.home / "server"
        if not os.path.lexists(link):
            self._make_folder(link)
        try:
            folder = link.resolve(strict=True)
        except FileNotFoundError:
            raise EmbeddedError(
                f"expected the data in {str(link.readlink())!r}, found nothing: remove "
                f"{str(link)!r} to start with an empty database"
            ) from None
        return Cluster(
            folder=folder,
            account=Account.owner_of(folder),
            settings=self._settings,
            durable=self._durable,
        )

    def _make_folder(self, link: Path) -> None:
        account = Account.choose()
        if account.can_enter(self.home):
            link.mkdir(0o700)
            account.own(link)
            return
        # The path is in the name for people; what finds it again is the link.
        name = hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()[:8]
        folder = Path(tempfile.mkdtemp(prefix=f"pgtasks-{name}-", dir=ELSEWHERE))
        account.own(folder)
        link.symlink_to(folder)


def _detach_all() -> None:
    # A forked child that exits must not stop its parent's.
    ours = [server for server in _attached if server._pid == os.getpid()]
    if ours and threading.current_thread() is threading.main_thread():
        # The process ends already: another Ctrl-C would leave the server up, and a traceback of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for server in ours:
        server.detach()


atexit.register(_detach_all)
if sys.platform != "win32":
    os.register_at_fork(
        before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_mutex.release
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporaryServer:
    """A server of one process, for tests; it may be stopped and started."""

    dsn: str
    tcp_dsn: str | None
    port: int | None  # of 127.0.0.1
    log: Path
    _cluster: Cluster

    @property
    def pid(self) -> int | None:
        return self._cluster.pid

    def start(self) -> None:
        self._cluster.start()

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._cluster.stop(mode)


@contextmanager
def temporary_server(
    settings: Mapping[str, str] | None = None, *, folder: Path | None = None, tcp: bool = False
) -> Iterator[TemporaryServer]:
    """Start a server in a new folder below ``folder``, or /tmp; stop and remove it at the end.

    Args:
        settings: of PostgreSQL.
        folder: must be one that the account which runs the server for root can enter.
        tcp: also listen on 127.0.0.1, for a proxy; everybody on this machine may then connect.
    """
    _check_platform()
    owner = os.getpid()
    account = Account.choose()
    # Not gettempdir(): TMPDIR is often long, and closed to other accounts.
    place = Path(tempfile.mkdtemp(prefix="pgtasks-", dir=folder or "/tmp"))  # noqa: S108
    try:
        account.own(place)
        if folder is not None and not account.can_enter(place):
            raise EmbeddedError(
                f"expected a folder that uid {account.uid} can enter, found {str(folder)!r}: "
                "use another one"
            )
        port = _free_port() if tcp else None
        cluster = Cluster(
            folder=place.resolve(),
            account=account,
            port=port or 5432,
            tcp=tcp,
            durable=False,
            settings=settings or {},
        )
        try:
            cluster.start()
            yield TemporaryServer(
                dsn=cluster.dsn,
                tcp_dsn=f"postgresql://postgres@127.0.0.1:{port}/postgres" if port else None,
                port=port,
                log=cluster.log,
                _cluster=cluster,
            )
        finally:
            if os.getpid() == owner:
                cluster.stop("immediate")
    finally:
        if os.getpid() == owner:
            shutil.rmtree(place)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
