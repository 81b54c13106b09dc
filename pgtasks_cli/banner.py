"""What an operator sees when a worker starts: what it is, what it serves, and which limits hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgtasks import App, WorkerOptions
    from pgtasks.worker.parent import Parent

# How many tasks are listed by name.
LISTED = 30


def banner(app: App, parent: Parent) -> str:
    """Return what an operator wants to be sure of."""
    from pgtasks.db.dsn import describe
    from pgtasks.version import VERSION

    options = parent.options
    tasks = app.own_tasks()
    shown = tasks[:LISTED] + ([f"… and {len(tasks) - LISTED} more"] if len(tasks) > LISTED else [])
    lines = {
        "app": app.name,
        "database": describe(app.dsn),
        "pool": f"{options.concurrency} ({options.pool})",
        "async": asynchronous(options),
        "limits": limits(app, options),
        "children": replacement(options),
        "health": parent.health_address and f"http://{parent.health_address}/health",
        "queues": ", ".join(weighted(queue, options) for queue in parent.queues),
        "schedules": schedules(app, options),
        "tasks": "\n            ".join(shown),
    }
    said = "\n".join(f"  {label:<9} {text}" for label, text in lines.items() if text)
    return f"pgtasks {VERSION}: {parent.name} (pid {os.getpid()})\n{said}\n"


def beat_banner(app: App, parent: Parent, pid: int) -> str:
    """Return what an operator wants to be sure of, of a beat that runs no jobs."""
    from pgtasks.db.dsn import describe
    from pgtasks.version import VERSION

    lines = {
        "app": app.name,
        "database": describe(app.dsn),
        "health": parent.health_address and f"http://{parent.health_address}/health",
        "schedules": schedules(app, parent.options),
    }
    said = "\n".join(f"  {label:<9} {text}" for label, text in lines.items() if text)
    return f"pgtasks {VERSION}: {parent.name} (pid {pid}), runs no jobs\n{said}\n"


def schedules(app: App, options: WorkerOptions) -> str:
    """Return how many schedules stand in the app's code, and whether somebody else has to see to them."""
    count = len(app.declared_schedules)
    if not options.schedules:
        return f"{count} in code, left to other workers (--no-beat)"
    return f"{count} in code" if count or options.pool == "beat" else ""


def asynchronous(options: WorkerOptions) -> str:
    """Return how many jobs of coroutine functions a child runs at once, where that is more than one."""
    if options.async_concurrency == 1:
        return ""
    return f"{options.async_concurrency} more at once in each child, of async def tasks"


def weighted(queue: str, options: WorkerOptions) -> str:
    """Return a queue with its weight, if it has one."""
    weight = options.weights.get(queue, 1)
    return queue if weight == 1 else f"{queue}:{weight}"


def limits(app: App, options: WorkerOptions) -> str:
    """Return the time limits of tasks that name none."""
    soft = app.soft_time_limit if options.soft_time_limit is None else options.soft_time_limit
    hard = app.time_limit if options.time_limit is None else options.time_limit
    said = [f"{word} {limit:g} s" for word, limit in (("soft", soft), ("hard", hard)) if limit]
    return ", ".join(said)


def replacement(options: WorkerOptions) -> str:
    """Return when a child is replaced."""
    when = []
    if options.max_tasks_per_child is not None:
        when.append(f"{options.max_tasks_per_child:,} tasks")
    if options.max_memory_per_child is not None:
        when.append(memory(options.max_memory_per_child))
    return f"replaced after {' or '.join(when)}" if when else ""


def memory(size: int) -> str:
    """Return bytes in the largest unit that they fill."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.4g} {unit}"
    return f"{size} bytes"


def warnings(app: App, options: WorkerOptions) -> list[str]:
    """Return what was asked for and does not hold with this pool."""
    from pgtasks.worker.process import task_facts

    if options.pool == "prefork":
        return []
    facts = {name: task_facts(app.tasks[name], options) for name in app.own_tasks()}
    hard = [
        name for name, one in facts.items() if one.time_limit is not None and not one.asynchronous
    ]
    found = []
    if hard:
        names = ", ".join(hard[:5]) + (f" and {len(hard) - 5} more" if len(hard) > 5 else "")
        found.append(
            f"pool {options.pool} knows soft time limits only, since a thread cannot be killed: the time_limit "
            f"of {names} is not enforced"
        )
    if options.pool == "solo" and replacement(options):
        found.append(
            "pool solo has no child to replace: --max-tasks-per-child and --max-memory-per-child do nothing"
        )
    return found
