"""Prints tables and documents: for eyes on a terminal, aligned text in a pipe, JSON on request.

rich takes 0.1 s to load, so it is imported where a terminal is drawn on, and nowhere else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console

    from pgtasks_cli.session import Session

Cell = str | int | float | datetime | None

STATE_STYLES = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "quarantined": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "parked": "yellow",
    "draining": "yellow",
    "paused": "yellow",
    "undeclared": "yellow",
    "error": "red",
    "silent": "red",
}

# Columns that are cut where a terminal is narrow.
FLEXIBLE = ("task", "note", "queues", "origin", "type", "when")

# What a terminal would act on. Text from a database is shown, not obeyed.
CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), *range(0x7F, 0xA0)]}
BLOCK_CONTROLS = {code: text for code, text in CONTROLS.items() if code not in (9, 10)}


def is_terminal() -> bool:
    """Whether stdout is one."""
    return sys.stdout.isatty()


def console(session: Session) -> Console:
    """Return what draws on the terminal."""
    from rich.console import Console

    return Console(highlight=False, no_color=not session.color or None)


def show(session: Session, value: object, text: Callable[[], None]) -> None:
    """Print a value as JSON if that was asked for, else by ``text``."""
    if session.json:
        document(value)
    else:
        text()


def document(value: object) -> None:
    """Print one JSON document."""
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=str)
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def remark(session: Session, text: str) -> None:
    """Say on stderr what the output does not: hints and summaries, not results."""
    if not session.quiet:
        click.echo(one_line(text), err=True)


def table(
    session: Session,
    headers: Sequence[str],
    rows: Collection[Sequence[Cell]],
    *,
    right: Collection[str] = (),
) -> None:
    """Print rows under headers.

    Args:
        headers: one word each.
        rows: cells; None is shown as -.
        right: headers of columns of numbers.
    """
    if is_terminal():
        _draw(session, headers, rows, right)
        return
    lines = [list(headers), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            text.rjust(width) if header in right else text.ljust(width)
            for header, text, width in zip(headers, line, widths, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def _draw(
    session: Session,
    headers: Sequence[str],
    rows: Collection[Sequence[Cell]],
    right: Collection[str],
) -> None:
    from rich.table import Table
    from rich.text import Text

    texts = [[cell(value) for value in row] for row in rows]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        width = max(len(header), *(len(row[index]) for row in texts), 0)
        drawn.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Where there is no room for all, the long texts give way: half a word is no state.
            min_width=None if header in FLEXIBLE else width,
        )
    for row, shown in zip(rows, texts, strict=True):
        nothing = not any(row[1:])  # a count of none is not alarming
        styles = [
            "" if header != "state" else "dim" if nothing else STATE_STYLES.get(text, "")
            for header, text in zip(headers, shown, strict=True)
        ]
        drawn.add_row(*map(Text, shown, styles))
    console(session).print(drawn)


def fields(session: Session, values: Mapping[str, Cell]) -> None:
    """Print names and values below each other; those without a value are left out."""
    shown = {name: cell(value) for name, value in values.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        label = click.style(name.ljust(width), bold=True) if is_terminal() else name.ljust(width)
        click.echo(f"{label}  {text}", color=None if session.color else False)


def heading(session: Session, text: str) -> None:
    """Print a heading, with an empty line before it."""
    click.echo()
    click.echo(click.style(text, bold=True), color=None if session.color else False)


def block(text: str, indent: int = 4) -> None:
    """Print text of several lines, indented."""
    for line in text.translate(BLOCK_CONTROLS).splitlines():
        click.echo(" " * indent + line)


def cell(value: Cell) -> str:
    """Return one value as text of one line."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, float):
        return seconds(value)
    return f"{value:,}" if isinstance(value, int) and is_terminal() else one_line(str(value))


def one_line(text: str) -> str:
    """Return text with nothing in it that a terminal obeys."""
    return " ".join(text.split("\n")).translate(CONTROLS)


def short_id(id: str) -> str:
    """Return an id for a table: on a terminal the part that tells its time, in 0.24 µs.

    That much is unique in practice, and all commands take it.
    """
    return id[:18] if is_terminal() else id


def when(moment: datetime) -> str:
    """Return a time: relative on a terminal, ISO 8601 in a pipe."""
    if not is_terminal():
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")
    ago = (datetime.now(UTC) - moment).total_seconds()
    return f"in {rough(-ago)}" if ago < -0.5 else f"{rough(max(0.0, ago))} ago"


def rough(duration: float) -> str:
    """Return seconds as people say them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if duration >= 2 * length:
            return f"{duration / length:.0f} {unit}"
    return f"{duration:.0f} s"


def seconds(duration: float) -> str:
    """Return a measured duration."""
    if duration >= 120:
        return rough(duration)
    return f"{duration * 1000:.1f} ms" if duration < 1 else f"{duration:.1f} s"


def plural(count: int, word: str) -> str:
    """Return a count and its word: 1 job, 2 jobs."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def json_text(value: object) -> str:
    """Return a value as JSON in one line."""
    return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=str), ensure_ascii=False)


def json_value(text: str | None, what: str) -> Any:
    """Decode stored JSON for display; what is none is shown as the text it is."""
    from pgtasks import codec
    from pgtasks.errors import DecodingError

    if text is None:
        return None
    try:
        return codec.decode(text, what)
    except DecodingError:
        return text
