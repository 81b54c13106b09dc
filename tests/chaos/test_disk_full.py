"""The disk is full: enqueue says so, workers hold what they could not write, and nothing is lost.

Needs root and a kernel that mounts tmpfs; elsewhere the run says that nothing was proved.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from pgtasks import PgTasksError
from pgtasks.db import migrations
from pgtasks.db.embedded import TemporaryServer, temporary_server
from tests.chaos.conftest import SETTINGS, Look
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.producer import PoolProducer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, is_alive, until, wait_until_finished

pytestmark = pytest.mark.chaos

SMALL = {
    **SETTINGS,
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "48MB",
    "shared_buffers": "16MB",
}


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a tmpfs of that size."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk, as none can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk to its last block, until the block ends."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue  # full, but for less than that
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture(params=["data", pytest.param("data and wal", marks=pytest.mark.long)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A small disk, and whether the write-ahead log is to be on it, too."""
    with small_disk(Path(f"/tmp/pgtasks-disk-{os.getpid()}"), 150) as folder:
        yield folder, request.param == "data and wal"
    Path(f"/tmp/pgtasks-disk-{os.getpid()}").rmdir()


@pytest.fixture
def server(disk: tuple[Path, bool]) -> Iterator[TemporaryServer]:
    """A server on the small disk; without its log there, an error is an error and no panic."""
    folder, with_wal = disk
    with temporary_server(SMALL, folder=folder) as server:
        if not with_wal:
            data = Path(server_folder(server)) / "data"
            server.stop("fast")
            move_wal(data)
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            migrations.migrate(connection)
        sample_app.app.dsn = server.dsn
        try:
            yield server
        finally:
            sample_app.app.close()
            wal = Path(server_folder(server)) / "data" / "pg_wal"
            if wal.is_symlink():
                server.stop("immediate")
                subprocess.run(["rm", "-r", str(wal.resolve())], check=True)


def server_folder(server: TemporaryServer) -> str:
    return str(server.log.parent)


def move_wal(data: Path) -> None:
    """Move the write-ahead log to another disk."""
    wal = data / "pg_wal"
    elsewhere = Path(f"/tmp/pgtasks-wal-{os.getpid()}")
    subprocess.run(["cp", "-a", str(wal), str(elsewhere)], check=True)
    subprocess.run(["rm", "-r", str(wal)], check=True)
    wal.symlink_to(elsewhere)
    owner = data.stat()
    os.chown(wal, owner.st_uid, owner.st_gid, follow_symlinks=False)


def test_full_disk_is_told_to_callers_and_loses_nothing(
    disk: tuple[Path, bool],
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    measured: Measured,
) -> None:
    folder, with_wal = disk
    worker = workers.start(concurrency=2)
    producer = PoolProducer(runs.path, pause=0.0)
    producer.start()
    eventually(lambda: _has_enqueued(producer, 100))

    with full(folder):
        if with_wal:
            break_it(server)
        eventually(lambda: _is_told(producer), 60.0)
        until(time.monotonic() + 2.0)
        memory = psutil.Process(worker.pid).memory_info().rss
        assert is_alive(worker.pid)
    freed_at = time.monotonic()
    look.close()
    server.start()  # what a supervisor does, if the server gave up
    before = len(producer.committed)
    eventually(lambda: _has_enqueued(producer, before + 20), 30.0)
    producer.stop()
    wait_until_finished(look.open())
    measured(
        f"disk full, {'with' if with_wal else 'without'} WAL: all done after it was freed",
        time.monotonic() - freed_at,
    )

    assert all(isinstance(one, psycopg.Error | PgTasksError) for one in producer.errors)
    verdict = check(look.open(), runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    assert memory < 200 * 2**20
    assert worker.process.poll() is None, worker.log()
    assert worker.stop() == 0


def break_it(server: TemporaryServer) -> None:
    """Use up the log's segments that were there; at the next one the server panics."""

    def panics() -> None:
        with pytest.raises(psycopg.OperationalError):
            switch_wal(server)

    eventually(panics, 30.0)


def switch_wal(server: TemporaryServer) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for _ in range(20):
            connection.execute("select pg_switch_wal(), pg_logical_emit_message(false, '', '')")


def _has_enqueued(producer: PoolProducer, number: int) -> None:
    assert len(producer.committed) >= number


def _is_told(producer: PoolProducer) -> None:
    assert len(producer.errors) >= 3
