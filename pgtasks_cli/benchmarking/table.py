"""The report for people: a rich table on a terminal, plain text in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.figures import Figure, Report


def show(report: Report) -> None:
    """Print a report."""
    rows = [cells(figure) for figure in report.figures]
    if sys.stdout.isatty():
        table = Table("", "figure", "unit", "target", "", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for row in rows:
            style = {"missed": "bold red", "met": "green"}.get(row[-1])
            table.add_row(*row, style=style)
        Console().print(table)
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for what, value, *rest in rows:
            line = [what.ljust(widths[0]), value.rjust(widths[1])]
            line += [cell.ljust(width) for cell, width in zip(rest, widths[2:], strict=True)]
            print("  ".join(line).rstrip())
    print(surroundings(report))


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """Return one line of the table: what, figure, unit, target, whether it is met."""
    target = figure.target
    return (
        figure.what,
        "–" if figure.value is None else number(figure.value),
        figure.unit,
        "" if target is None else f"{target.sense} {number(target.value)}",
        {True: "met", False: "missed", None: ""}[figure.met],
    )


def number(value: float) -> str:
    """Return a number with three digits that count, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    if abs(value) < 0.1:
        digits = 4
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def surroundings(report: Report) -> str:
    """Return the lines that say where it was measured."""
    found = report.as_json()
    settings = ", ".join(f"{name}={value}" for name, value in report.server.settings.items())
    tiny = "\ntiny: to see that it works; the figures mean nothing" if report.tiny else ""
    return (
        f"\npgtasks {found['pgtasks']}, Python {found['python']}, {found['cpus']} CPUs, {found['date']}"
        f"\nPostgreSQL {report.server.version}: {settings}{tiny}"
    )
