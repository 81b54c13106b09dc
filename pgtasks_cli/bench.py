"""``pgtasks bench``: how fast it is on this machine, with this server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from pgtasks.errors import PgTasksError
from pgtasks_cli.session import without_password

NAMES = ("canvas", "claim", "drain", "enqueue", "flow", "latency", "schedules", "startup", "unique")


def _names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    if value is None:
        return NAMES
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise click.BadParameter(f"expected some of {','.join(NAMES)}, found {name!r}")
    if not names:
        raise click.BadParameter(f"expected some of {','.join(NAMES)}, found none")
    return tuple(dict.fromkeys(names))


@click.command("bench", epilog="Example: pgtasks bench --only drain,enqueue --against raw")
@click.option(
    "--dsn",
    callback=without_password,
    help="The server, without a password. [default: $PGTASKS_DSN, else embedded:]",
)
@click.option("--only", callback=_names, metavar="NAMES", help=f"Some of {','.join(NAMES)}.")
@click.option(
    "--jobs", type=click.IntRange(min=10), help="How many jobs to move. [default: 50,000]"
)
@click.option(
    "--against", type=click.Choice(["raw"]), help="Also measure the limit, in turns with the drain."
)
@click.option("--tiny", is_flag=True, help="Only see that it works, in seconds.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False),
    help="Write the report there; - is stdout.",
)
@click.pass_context
def command(
    context: click.Context,
    dsn: str | None,
    only: tuple[str, ...],
    jobs: int | None,
    against: str | None,
    tiny: bool,
    json_file: str | None,
) -> None:
    """Measure throughput, latency and start-up.

    Works in a database of its own, pgtasks_bench_PID, which it makes on the server and drops afterwards;
    nothing else there is touched. Let nothing else run meanwhile: all figures are noisy, and the ratios
    less so.
    """
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.suite import run_benchmarks
    from pgtasks_cli.benchmarking.table import show

    plan = Plan(jobs=jobs, tiny=tiny, against_raw=against == "raw", tell=_tell)
    try:
        report = run_benchmarks(dsn or _dsn_of(context.obj) or "embedded:", only, plan)
    except PgTasksError as error:
        raise click.ClickException(str(error)) from error
    text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
    if json_file == "-":
        print(text)
        return
    show(report)
    if json_file is not None:
        Path(json_file).write_text(text + "\n", encoding="utf-8")


def _dsn_of(parent: Any) -> str | None:
    """Return the DSN that was given before the subcommand, else the environment's."""
    said = getattr(parent, "dsn", None)
    return said if isinstance(said, str) and said else os.environ.get("PGTASKS_DSN")


def _tell(text: str) -> None:
    """Say what is done next, to whoever watches."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
