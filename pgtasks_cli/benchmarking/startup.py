"""Start-up: from spawning a worker to its first job, what the idle tree keeps, what the import costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from pgtasks_cli.benchmarking.drain import CONCURRENCY
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.meters import family, proportional_memory
from pgtasks_cli.benchmarking.tasks import app, started

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

TIMEOUT = 30.0
TASKS = "pgtasks_cli.benchmarking.tasks"
# Until a tree that ran its first job has done what it puts off, such as its first upkeep.
SETTLED_AFTER = 2.0


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Start workers, and start Python with and without pgtasks."""
    with TemporaryDirectory(prefix="pgtasks-bench-") as cache:
        yield from measure_in(compiled_in(cache), scratch, plan)


def measure_in(environment: dict[str, str], scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Start them in an environment where everything is compiled already."""
    environment["PGTASKS_DSN"] = scratch.dsn
    with worker(environment):  # compiles what is not
        started.delay().get(timeout=TIMEOUT)
    run_python("import pgtasks", environment)
    first_jobs, memory = [], []
    for _ in range(plan.times(7)):
        plan.tell("startup: a worker, to its first job and to idleness")
        scratch.empty()
        job = started.delay()
        spawned = time.time_ns()
        with worker(environment) as process:
            first_jobs.append((job.get(timeout=TIMEOUT) - spawned) / 1e9)
            time.sleep(0.2 if plan.tiny else SETTLED_AFTER)
            memory.append(proportional_memory(family(process.pid)))
    app.close()
    yield median("startup.first_job", "worker start to first job", first_jobs, "s")
    yield median("startup.idle_memory", "idle tree at -c 4, PSS", memory, "MB")
    plan.tell("startup: import pgtasks")
    bare, imported = [], []
    for _ in range(plan.times(20, 2)):
        bare.append(run_python("pass", environment))
        imported.append(run_python("import pgtasks", environment))
    # The least: all that disturbs such a run makes it longer.
    yield Figure(
        key="startup.import",
        what="import pgtasks, beyond the bare interpreter",
        value=(min(imported) - min(bare)) * 1e3,
        unit="ms",
        runs=[seconds * 1e3 for seconds in imported],
    )
    yield Figure(
        key="startup.interpreter", what="the bare interpreter", value=min(bare) * 1e3, unit="ms"
    )


@contextmanager
def worker(environment: dict[str, str]) -> Iterator[psutil.Popen]:
    """Run a worker as an operator starts it, for a block."""
    command = [sys.executable, "-m", "pgtasks_cli", "worker", "-A", TASKS, "-c", str(CONCURRENCY)]
    process = psutil.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(TIMEOUT)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(TIMEOUT)


def compiled_in(cache: str) -> dict[str, str]:
    """Return an environment in which Python keeps byte code, as it does for an installed package.

    Some containers turn that off: then each start compiles all of pgtasks anew, and is measured with it.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def run_python(code: str, environment: dict[str, str]) -> float:
    """Return the seconds that a fresh interpreter takes for some code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return time.perf_counter() - began
