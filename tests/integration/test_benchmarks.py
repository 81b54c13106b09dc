"""The benchmarks run, and report what they promise; the figures themselves mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgtasks_cli.benchmarking.enqueue import faster_from
from pgtasks_cli.benchmarking.figures import TARGETS, Figure
from pgtasks_cli.benchmarking.table import cells

ROOT = Path(__file__).parents[2]

KEYS = {
    "claim": {"claim.rate_100", "claim.rate_500", "claim.wal_500", "claim.hot_ratio"},
    "canvas": {
        "canvas.chord_written",
        "canvas.group_rate",
        "canvas.chord_rate",
        "canvas.chord_of_group",
    },
    "drain": {
        "drain.rate",
        "drain.raw_rate",
        "drain.of_raw",
        "drain.worker_cpu",
        "drain.server_cpu",
        "drain.wal",
        "drain.commits",
        "drain.hot_ratio",
        "drain_forgotten.rate",
    },
    "enqueue": {
        "enqueue.delay_rate",
        "enqueue.delay_of_bare",
        "enqueue.transaction_rate",
        "enqueue.group_rate",
        "enqueue.many_rate",
        "enqueue.copy_rate",
        "enqueue.copy_10",
        "enqueue.arrays_10",
        "enqueue.copy_from",
    },
    "flow": {"flow.limited_rate", "flow.of_plain", "flow.tenant_start"},
    "latency": {"latency.start_p50", "latency.start_p99", "latency.round_trip_p50"},
    "schedules": {
        "schedules.worker_cpu",
        "schedules.server_cpu",
        "schedules.cpu",
        "schedules.late",
    },
    "startup": {"startup.first_job", "startup.idle_memory", "startup.import"},
    "unique": {
        "unique.drain_of_plain",
        "unique.wal",
        "unique.delay_of_plain",
        "unique.many_of_plain",
    },
}
# What a machine may be unable to tell: whose processes the server's are, what they share.
MAY_BE_ABSENT = {"drain.server_cpu", "drain_forgotten.server_cpu", "startup.idle_memory"}
MAY_BE_ABSENT |= {"schedules.server_cpu", "schedules.cpu"}
MAY_BE_ABSENT |= {"enqueue.copy_from"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_each_benchmark_reports_its_figures_and_drops_its_database(name, server_dsn, tmp_path):
    report_file = tmp_path / "report.json"
    arguments = ["--dsn", server_dsn, "--tiny", "--against", "raw", "--json", str(report_file)]

    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    table, complaints = process.communicate(timeout=60)

    assert process.returncode == 0, complaints
    report = json.loads(report_file.read_text(encoding="utf-8"))
    figures = {figure["key"]: figure for figure in report["figures"]}
    assert figures.keys() >= KEYS[name]
    assert all(one["value"] is not None for key, one in figures.items() if key not in MAY_BE_ABSENT)
    assert {"fsync", "synchronous_commit", "shared_buffers"} <= report["postgresql"][
        "settings"
    ].keys()
    assert report.keys() >= {"pgtasks", "date", "python", "cpus", "tiny"}
    assert all(one["what"] in table for one in figures.values())
    with psycopg.connect(server_dsn) as server:
        ours = f"pgtasks_bench_{process.pid}%"
        assert not server.execute(
            "select from pg_database where datname like %s", [ours]
        ).fetchall()


def test_every_target_belongs_to_a_figure():
    assert TARGETS.keys() <= set().union(*KEYS.values())


def test_figure_says_whether_it_meets_its_target():
    fast = Figure(key="drain.rate", what="drain", value=18_000, unit="jobs/s")
    slow = Figure(key="latency.start_p50", what="start", value=3.5, unit="ms")
    unknown = Figure(key="startup.idle_memory", what="memory", value=None, unit="MB")

    assert cells(fast) == ("drain", "18,000", "jobs/s", "at least 18,000", "met")
    assert cells(slow) == ("start", "3.5", "ms", "at most 3", "missed")
    assert cells(unknown) == ("memory", "–", "MB", "at most 70", "")


@pytest.mark.parametrize(
    ("taken", "least"),
    [
        ({10: (2.0, 1.0), 50: (1.0, 2.0), 100: (1.0, 2.0)}, 50),
        ({10: (1.0, 2.0), 50: (2.0, 1.0), 100: (1.0, 2.0)}, 100),
        ({10: (2.0, 1.0), 50: (2.0, 1.0)}, None),
    ],
)
def test_threshold_is_where_copy_stays_faster(taken, least):
    assert faster_from(taken) == least
