"""What is shown of a crash: how a child process ended while it ran a job, and what it said last."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pgtasks_cli import output

if TYPE_CHECKING:
    from pgtasks import JobError

CRASH = "pgtasks.Crash"


def is_crash(error: JobError) -> bool:
    """Whether an attempt ended because its process did."""
    return error.type == CRASH


def facts(error: JobError) -> dict[str, str]:
    """Return what is known of the process, by name."""
    known = {}
    if error.signal is not None:
        known["signal"] = signal_name(error.signal)
    if error.exit_code is not None:
        known["exit code"] = str(error.exit_code)
    if error.peak_memory is not None:
        known["peak memory"] = f"{error.peak_memory // 2**20:,} MB"
    return known


def signal_name(number: int) -> str:
    """Return a signal's number and name."""
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:  # this system has none of that number
        return str(number)


def summary(error: JobError) -> str:
    """Return a crash in one line: the facts, and what the process said last."""
    known = ", ".join(f"{name} {value}" for name, value in facts(error).items())
    last = error.stderr.strip().rpartition("\n")[2].strip()
    return ": ".join(
        part for part in (f"crashed, {known}" if known else error.message, last) if part
    )


def print_facts(error: JobError, indent: int) -> None:
    """Print what is known of the process below its error, with its last lines."""
    known = facts(error)
    width = max(map(len, known), default=0)
    for name, value in known.items():
        output.block(f"{name.ljust(width)}  {value}", indent=indent)
    if error.stderr:
        output.block("its last lines on stderr:", indent=indent)
        output.block(error.stderr, indent=indent + 2)
