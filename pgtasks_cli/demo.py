"""``pgtasks demo``: the main job on real input: one job for each source file of Python's library.

A migrated database (a private one, unless another is named), one bundle of some 1,500 jobs, a worker of four
processes beside this one, the bundle's counters on the screen, and totals from the stored results.
"""

from __future__ import annotations

import keyword
import logging
import re
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import click

from pgtasks import App, Bundle, GroupResult, Job, NoDsnError, current_job, fixed, group
from pgtasks_cli import output
from pgtasks_cli.session import Session, pass_session

PROCESSES = 4
QUEUE = "pgtasks-demo"  # its own, so that no other worker of that database is bothered
# One file of so many is made to fail once.
FAILS_ONCE = 50
# How long it waits before it is tried again, in seconds.
RETRY_AFTER = 0.5
LOOK_EVERY = 0.1
# After how long without progress it gives up, in seconds.
STALLED_AFTER = 30.0
TOP = 10

# Strings and comments first, so that no identifier is found in them; group 1 is an identifier.
TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' + r"'''(?:[^\\]|\\.)*?'''|" + r'"(?:[^"\\\n]|\\.)*"|'
    r"'(?:[^'\\\n]|\\.)*'|#[^\n]*|([^\W\d]\w*)",
    re.DOTALL,
)
KEYWORDS = frozenset(keyword.kwlist)

app = App("pgtasks demo")


class Figures(TypedDict):
    """What is counted in one file."""

    lines: int
    words: int
    identifiers: dict[str, int]


class MadeToFailError(Exception):
    """Raised once by some files, to show a retry."""


@app.task(
    name="demo.count_file",
    queue=QUEUE,
    retries=3,
    retry_schedule=fixed(RETRY_AFTER),
    throws=(MadeToFailError,),
)
def count_file(path: str) -> Figures:
    """Count the lines, words and identifiers of a file."""
    if current_job().attempt == 1 and zlib.crc32(path.encode()) % FAILS_ONCE == 0:
        raise MadeToFailError("made to fail once")
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    names = Counter(match[1] for match in TOKEN.finditer(text) if match[1])
    for word in KEYWORDS:
        names.pop(word, None)
    return {"lines": text.count("\n"), "words": len(text.split()), "identifiers": dict(names)}


def source_files() -> list[str]:
    """Return the source files of Python's own library."""
    library = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(
        str(path)
        for path in library.rglob("*.py")
        if others.isdisjoint(path.relative_to(library).parts)
    )


@click.command()
@pass_session
def demo(session: Session) -> None:
    """See it work: 1,500 real jobs, 4 processes, a private PostgreSQL.

    One job for each source file of Python's own library counts its lines, words and identifiers. Some are made
    to fail once and are retried. The private server lives in ./.pgtasks, unless --dsn or PGTASKS_DSN names
    another database.

    \b
    Example:
      pgtasks demo
      pgtasks demo --dsn postgresql://localhost/mydb
    """
    from pgtasks import logs
    from pgtasks.db.dsn import describe

    app.dsn = session.dsn
    try:
        dsn = app.dsn
    except NoDsnError:
        app.dsn = dsn = "embedded:"
    logs.set_up(logging.WARNING)  # inherited by the worker: what goes wrong there is seen here
    files = source_files()
    if not session.json:
        click.echo(f"database  {describe(dsn)}")
    app.migrate()
    with app.worker(concurrency=PROCESSES, queues=(QUEUE,), grace=5.0) as worker:
        if not session.json:
            click.echo(f"worker    pid {worker.pid}, {PROCESSES} processes")
            click.echo(
                f"jobs      {len(files):,}, one for each .py file of Python's library, in one bundle\n"
            )
        bundle = group(count_file.s(path) for path in files).apply(
            type="demo", origin="pgtasks demo"
        )
        with cancelled_on_error(bundle):
            ended = follow(session, bundle)
    jobs = app.jobs(bundle_id=bundle.id, limit=len(files))
    app.close()
    report(session, ended, jobs)
    if ended.failed:
        raise click.ClickException(
            f"{output.plural(ended.failed, 'job')} did not succeed: pgtasks jobs list --bundle {ended.id}"
        )


@contextmanager
def cancelled_on_error(bundle: GroupResult[Figures]) -> Iterator[None]:
    """Leave no job behind for the next worker when Ctrl-C, or anything else, ends the block."""
    try:
        yield
    except BaseException:
        bundle.revoke()
        raise


def looks(bundle: GroupResult[Figures]) -> Iterator[Bundle]:
    """Yield the bundle's row again and again, the last time when it has stopped.

    Raises:
        ClickException: nothing is getting done.
    """
    remaining, since = -1, 0.0
    while True:
        row = bundle.bundle()
        yield row
        if row.stopped_at is not None:
            return
        if row.remaining != remaining:
            remaining, since = row.remaining, time.monotonic()
        elif time.monotonic() - since > STALLED_AFTER:
            raise click.ClickException(
                f"no job was finished for {STALLED_AFTER:g} s, {row.remaining:,} are left: the worker's warnings "
                "above may say why"
            )
        time.sleep(LOOK_EVERY)


def follow(session: Session, bundle: GroupResult[Figures]) -> Bundle:
    """Show the bundle's counters move, and return its last row."""
    if output.is_terminal() and not session.json:
        return draw(session, bundle)
    shown = -1
    for row in looks(bundle):
        done = row.total - row.remaining
        tenth = done * 10 // row.total if row.total else 10
        if tenth > shown and not session.json:
            shown = tenth
            click.echo(f"{done:>6,} of {row.total:,} done, {processes()} processes")
    return row


def draw(session: Session, bundle: GroupResult[Figures]) -> Bundle:
    """Draw a progress bar until the bundle stops, and return its last row."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} jobs/s  {task.fields[processes]} processes"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.console(session)) as progress:
        began = time.monotonic()
        bar = progress.add_task("", total=len(bundle), rate=0.0, processes=0)
        for row in looks(bundle):
            done = row.total - row.remaining
            rate = done / (time.monotonic() - began)
            progress.update(bar, completed=done, rate=rate, processes=processes())
        return row


def processes() -> int:
    """Return how many processes serve the queue, by the workers' own account."""
    return sum(one.concurrency for one in app.workers() if QUEUE in one.queues)


def report(session: Session, bundle: Bundle, jobs: Sequence[Job]) -> None:
    """Print totals, the most frequent identifiers, the retries, and the pace."""
    names: Counter[str] = Counter()
    lines = words = 0
    for job in jobs:
        figures = job.result or {"lines": 0, "words": 0, "identifiers": {}}
        lines += figures["lines"]
        words += figures["words"]
        names.update(figures["identifiers"])
    retried = [job for job in jobs if job.attempt > 1]
    took = (bundle.stopped_at - bundle.created_at).total_seconds() if bundle.stopped_at else 0.0
    totals = {
        "files": len(jobs),
        "lines": lines,
        "words": words,
        "retried": len(retried),
        "failed": bundle.failed,
        "seconds": round(took, 3),
        "jobs_per_second": round(len(jobs) / took, 1) if took else 0.0,
    }
    output.show(
        session,
        {**totals, "identifiers": dict(names.most_common(TOP)), "bundle": bundle.id},
        lambda: print_report(session, totals, names, retried),
    )


def print_report(
    session: Session, totals: dict[str, float], names: Counter[str], retried: Sequence[Job]
) -> None:
    """Print the report for people."""
    click.echo()
    output.table(
        session,
        ["total", "count"],
        [[name, f"{totals[name]:,.0f}"] for name in ("files", "lines", "words")],
        right=["count"],
    )
    click.echo()
    output.table(
        session,
        ["identifier", "times"],
        [[name, f"{count:,}"] for name, count in names.most_common(TOP)],
        right=["times"],
    )
    click.echo()
    click.echo(
        f"{output.plural(len(retried), 'job')} failed once and succeeded when retried {RETRY_AFTER:g} s later, for one:"
    )
    for job in retried[:1]:
        error = job.attempts[-1].error
        click.echo(
            f"  {job.id}  {Path(str(job.args[0])).name}  attempt {job.attempt - 1}: {error.message if error else ''}"
        )
    click.echo()
    click.echo(
        f"{totals['files']:,.0f} jobs in {totals['seconds']:.1f} s: {totals['jobs_per_second']:,.0f} jobs/s"
    )
