"""Starts a worker: in this process (`run_worker`), or beside it (`worker_process`)."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import setproctitle

from pgtasks import codec, events
from pgtasks.db import migrations, operations
from pgtasks.db.dsn import conninfo
from pgtasks.db.run import run
from pgtasks.errors import ConfigurationError, PgTasksError
from pgtasks.limits import published_gates
from pgtasks.options import WorkerOptions, check_label, worker_name
from pgtasks.version import VERSION
from pgtasks.worker import child
from pgtasks.worker.children import PreforkPool, SoloPool
from pgtasks.worker.host import Identity, identity
from pgtasks.worker.messages import TaskFacts
from pgtasks.worker.parent import Parent

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.task import Task
    from pgtasks.worker.slate import Slate


def served_queues(app: App, options: WorkerOptions) -> list[str]:
    """Return the queues that a worker with these options serves.

    Raises:
        ConfigurationError: none is left, or one that is not among them has a weight.
    """
    if options.pool == "beat":
        return []
    queues = list(options.queues) if options.queues is not None else app.queue_names()
    served = [queue for queue in dict.fromkeys(queues) if queue not in options.exclude_queues]
    if not served:
        raise ConfigurationError(f"no queue is left: {', '.join(queues)} are all excluded")
    strange = [queue for queue in options.weights if queue not in queues]
    if strange:
        raise ConfigurationError(
            f"queue {strange[0]!r} has a weight and is not served: expected one of {', '.join(queues)}"
        )
    return served


def prepare(app: App, options: WorkerOptions) -> Parent:
    """Check the app and the database, and build the parent; nothing runs yet.

    Raises:
        ConfigurationError: the app has no tasks.
        ConnectError: no database answers.
        SchemaError: the schema is missing or of another version.
    """
    began = time.monotonic()
    app.load()
    if not app.own_tasks() and options.pool != "beat":
        raise ConfigurationError(
            f"app {app.name!r} has no tasks: define some with @app.task, or name the module with them"
        )
    me = identity()
    name = worker_name(options.name, me.host)
    check_label("a worker's name", name)
    queues = served_queues(app, options)
    with app.pools.connect() as connection:
        migrations.check(connection)

    def run_child(inbox: int, outbox: int, slate: Slate) -> int:
        setproctitle.setproctitle(f"pgtasks: child of {name}")
        return child.main(app, options, name, inbox, outbox, slate, me.pid)

    def run_solo(inbox: int, outbox: int, slate: Slate) -> int:
        reporter = child.Reporter(outbox, slate)
        child.listen_to_parent(reporter)
        return child.run(app, options, name, inbox, reporter, slate)

    slots = options.threads + (options.async_concurrency if options.async_concurrency > 1 else 0)
    return Parent(
        options=options,
        name=name,
        me=me,
        conninfo=conninfo(app.dsn, application_name=f"pgtasks {name}"[:60]),
        queues=queues,
        tasks={}
        if options.pool == "beat"
        else {task.name: task_facts(task, options) for task in app.tasks.values()},
        register=lambda: register(app, options, name, me, queues, time.monotonic() - began),
        pool=SoloPool(run_solo, slots) if options.pool == "solo" else PreforkPool(run_child, slots),
    )


def task_facts(task: Task[..., Any], options: WorkerOptions) -> TaskFacts:
    """Return what the parent must know of a task; limits that it does not name are the worker's, then the app's."""
    said, app = task.options, task.app
    soft = first_said(said.soft_time_limit, options.soft_time_limit, app.soft_time_limit)
    hard = first_said(said.time_limit, options.time_limit, app.time_limit)
    return TaskFacts(
        keep_history=said.keep_history,
        at_most_once=said.at_most_once,
        asynchronous=options.async_concurrency > 1 and inspect.iscoroutinefunction(task.run),
        transactional=said.transactional,
        log_arguments=said.log_arguments,
        soft_time_limit=soft,
        time_limit=hard,
        rate=said.rate_limit,
    )


def first_said(*values: float | None) -> float | None:
    """Return the first that is not None."""
    return next((value for value in values if value is not None), None)


def register(
    app: App,
    options: WorkerOptions,
    name: str,
    me: Identity,
    queues: Sequence[str],
    age: float,
) -> int:
    """Add the worker and what it knows to the database, and return its id; blocking.

    Args:
        app: whose tasks and schedules these are.
        options: the worker's.
        name: the worker's full name.
        me: this process.
        queues: which it serves.
        age: seconds since this process read its code.
    """
    known = [] if options.pool == "beat" else app.own_tasks()
    description = {
        "name": name,
        "host": me.host,
        "boot_id": me.boot_id,
        "pid_namespace": me.pid_namespace,
        "pid": me.pid,
        "pid_started_at": me.pid_started_at,
        "version": VERSION,
        "pool": options.pool,
        "concurrency": options.concurrency if options.children else 0,
        "queues": list(queues),
        "tasks": sorted(app.tasks) if known else [],
    }
    published = [
        (task.name, app.queue_of(task), app.priority_of(task))
        for task in map(app.tasks.__getitem__, known)
    ]
    schedules = codec.encode(app.declared_schedules, "schedules", max_bytes=2**28)
    gates = published_gates(known, [one for name in known if (one := app.tasks[name].gates)])
    registering = operations.register_worker(
        description, published, app.declared_queues, app.name, schedules, age, gates
    )
    with app.pools.connect() as connection:
        worker_id, by_hand = run(connection, registering)
    for schedule in by_hand:
        events.emit(
            "schedule.hidden",
            schedule=schedule,
            why="somebody added one of this name by hand, and it goes before the one in code: remove it, or rename one",
        )
    return worker_id


def run_worker(parent: Parent) -> None:
    """Work in this process until told to stop."""
    setproctitle.setproctitle(f"pgtasks: {parent.name} ({','.join(parent.queues)})"[:200])
    # What was imported so far is shared with the children for as long as nobody touches it.
    gc.collect()
    gc.freeze()
    if isinstance(parent.pool, SoloPool):
        _run_solo(parent, parent.pool)
    else:
        parent.run()


def _run_solo(parent: Parent, pool: SoloPool) -> None:
    ended = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            parent.run()
        except BaseException as error:  # noqa: BLE001 (the top of a thread; raised again below)
            failure.append(error)
            for child in pool.children.values():
                child.close_inbox()
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="pgtasks-parent")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: parent.ask_to_stop(number))
    thread.start()
    pool.run(ended)
    thread.join()
    if failure:
        raise failure[0]


@dataclass(slots=True)
class WorkerProcess:
    """A worker that runs beside this process."""

    pid: int

    def stop(self, grace: float = 30.0) -> int:
        """Ask it to drain, wait, and return its exit code; kill it after ``grace`` seconds."""
        os.kill(self.pid, signal.SIGTERM)
        until = time.monotonic() + grace
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)


@contextmanager
def worker_process(app: App, options: WorkerOptions) -> Iterator[WorkerProcess]:
    """Fork a worker for a block; leaving it drains the worker.

    Raises:
        PgTasksError: it could not start; the message says why.
    """
    app.close()  # so that the fork inherits no connection
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        _be_worker(app, options, tell)
    os.close(tell)
    with os.fdopen(ready, "rb") as pipe:
        said = pipe.read().decode()
    process = WorkerProcess(pid)
    if said != "ready":
        os.waitpid(pid, 0)
        raise PgTasksError(f"the worker could not start: {said or 'it died'}")
    try:
        yield process
    finally:
        process.stop(options.grace + 10.0)


def _be_worker(app: App, options: WorkerOptions, tell: int) -> None:
    """Be the fork that works; never returns to what the caller's program does next."""
    code = 1
    try:
        try:
            parent = prepare(app, options)
        except PgTasksError as error:
            os.write(tell, str(error).encode())
            return
        os.write(tell, b"ready")
        os.close(tell)
        run_worker(parent)
        code = 0
    except BaseException:  # noqa: BLE001 (the top of a process)
        traceback.print_exc()
    finally:
        os._exit(code)
