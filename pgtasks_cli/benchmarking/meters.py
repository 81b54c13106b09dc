"""Meters: what the server counted and what processes used between two readings."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import psycopg

    from pgtasks_cli.benchmarking.scratch import Scratch

# A backend that ends tells what it counted; before 15 by way of a process that writes twice a second.
STATISTICS_LAG = 0.2
STATISTICS_LAG_BEFORE_15 = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the server counted for this database so far; for a difference, all of it since."""

    wal: int
    commits: int
    updates: int
    hot_updates: int

    def since(self, before: Counters) -> Counters:
        """Return what was added since an earlier reading."""
        return Counters(
            wal=self.wal - before.wal,
            commits=self.commits - before.commits,
            updates=self.updates - before.updates,
            hot_updates=self.hot_updates - before.hot_updates,
        )

    @property
    def hot_ratio(self) -> float | None:
        """Which part of the updates of live jobs wrote no index entry."""
        return self.hot_updates / self.updates if self.updates else None


def read_counters(scratch: Scratch) -> Counters:
    """Read what the server counted, once the backends that just ended had time to tell.

    WAL is the whole server's: nobody else may be writing. Commits and updates are this database's.
    """
    with scratch.connect() as connection:
        old = connection.info.server_version < 150_000
        time.sleep(STATISTICS_LAG_BEFORE_15 if old else STATISTICS_LAG)
        row = connection.execute(
            "select pg_current_wal_lsn() - '0/0', d.xact_commit, t.n_tup_upd, t.n_tup_hot_upd"
            " from pg_stat_database d, pg_stat_user_tables t"
            " where d.datname = current_database() and t.relid = 'pgtasks.job'::regclass"
        ).fetchone()
    assert row is not None
    return Counters(wal=int(row[0]), commits=row[1], updates=row[2], hot_updates=row[3])


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def server_processes(connection: psycopg.Connection[Any]) -> list[psutil.Process] | None:
    """Return the server's processes that work for this database; None if it is on another machine.

    Its backends without the one that asks, and those that write for all databases.
    """
    rows = connection.execute(
        "select pid from pg_stat_activity"
        " where pid <> pg_backend_pid() and (datname = current_database() or datname is null)"
    ).fetchall()
    found = []
    for (pid,) in rows:
        try:
            process = psutil.Process(pid)
            name = process.name()
        except psutil.NoSuchProcess:
            continue  # such as an autovacuum that just ended
        if "postgres" not in name:
            return None
        found.append(process)
    return found or None


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[int, float]:
    """Return what each process used of the CPU so far; those that are gone do not count."""
    used = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[process.pid] = times.user + times.system
    return used


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """Return the CPU seconds used between two readings; who came in between counts from 0."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def proportional_memory(processes: Iterable[psutil.Process]) -> float | None:
    """Return the PSS of processes in MB: pages of their own, and their share of those they share.

    None where the kernel does not tell (only Linux does).
    """
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return None
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6
