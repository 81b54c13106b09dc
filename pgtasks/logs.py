"""Log lines: one subscriber turns events into them, and a formatter writes key=value or JSON.

No line carries arguments or results. Records that a task logs carry its name and the job's id.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from pgtasks import events
from pgtasks.context import current_request

logger = logging.getLogger("pgtasks")

LEVELS = {
    "job.started": logging.DEBUG,
    "job.finished": logging.INFO,
    "job.retried": logging.INFO,
    "job.replaced": logging.INFO,
    "job.failed": logging.ERROR,
    "job.cancelled": logging.INFO,
    "job.expired": logging.WARNING,
    "job.late": logging.WARNING,
    "job.crashed": logging.ERROR,
    "job.parked": logging.WARNING,
    "worker.ready": logging.INFO,
    "worker.draining": logging.INFO,
    "worker.stopped": logging.INFO,
    "worker.connected": logging.INFO,
    "worker.disconnected": logging.WARNING,
    "worker.refused": logging.WARNING,
    "worker.rescued": logging.WARNING,
    "worker.lease_lost": logging.ERROR,
    "worker.trust": logging.WARNING,
    "worker.gates": logging.INFO,
    "worker.gave_up": logging.ERROR,
    "child.started": logging.DEBUG,
    "child.died": logging.ERROR,
    "history.maintained": logging.INFO,
    "schedule.ticked": logging.DEBUG,
    "schedule.missed": logging.WARNING,
    "schedule.refused": logging.ERROR,
    "schedule.hidden": logging.WARNING,
    "schedule.forgotten": logging.INFO,
    "listener.failed": logging.WARNING,
}

# What a record has anyway; the rest was given by ``extra=`` and belongs into the line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "event",
    "fields",
}


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for tasks; its lines carry the task's name and the job's id."""
    return logging.getLogger(name)


class JobFilter(logging.Filter):
    """Adds the task's name and the job's id to records that are made inside of a job."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``task`` and ``id``, and let every record through."""
        request = current_request()
        if request is not None and not hasattr(record, "id"):
            record.task = request.task
            record.id = request.id
        return True


class Formatter(logging.Formatter):
    """Writes a record as one line: time, level, logger, then key=value; or all of it as JSON."""

    def __init__(self, *, json: bool = False) -> None:
        super().__init__()
        self._json = json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(getattr(record, "fields", {}))
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._json:
            return _json(fields)
        head = f"{fields.pop('time')} {fields.pop('level'):<7} {fields.pop('logger')} {fields.pop('message')}"
        trace = fields.pop("traceback", None)
        line = " ".join(
            [
                head,
                *(f"{key}={_shown(value)}" for key, value in fields.items() if value is not None),
            ]
        )
        return f"{line}\n{trace}" if trace else line


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' ="'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _json(fields: dict[str, Any]) -> str:
    """Return the line as JSON, whatever a task's ``extra=`` holds."""
    try:
        return orjson.dumps(fields, default=str).decode()
    except TypeError:  # a lone surrogate, a huge number, a key that is no text
        return json.dumps(fields, default=str)


def log_event(name: str, fields: dict[str, object]) -> None:
    """Log one event."""
    # A task said with ``throws`` that this may happen.
    level = logging.INFO if fields.get("expected") else LEVELS.get(name, logging.INFO)
    if logger.isEnabledFor(level):
        shown = {key: value for key, value in fields.items() if value is not None}
        record = logger.makeRecord(
            logger.name, level, "", 0, name, (), None, extra={"fields": shown}
        )
        logger.handle(record)


def set_up(level: int | str = logging.WARNING, *, json: bool = False) -> None:
    """Send log lines of this process to stderr, and events to the log; for the worker."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(json=json))
    handler.addFilter(JobFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    subscribe_log()


def subscribe_log() -> None:
    """Turn events into log lines, those that the level lets through: the others stay unwanted."""
    names = [name for name, level in LEVELS.items() if logger.isEnabledFor(level)]
    if names:
        events.subscribe(log_event, *names)
