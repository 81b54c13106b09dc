"""Calls an app's listeners for jobs and bundles that stop: what `App.listen` does.

Best effort: the thread that hears puts ids into a queue, this one reads the rows and calls. A job of
which nothing is kept has no row, and is not told.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgtasks.errors import ConnectError
from pgtasks.logs import logger

if TYPE_CHECKING:
    from pgtasks.app import App

CHECK_STOP = 0.1  # seconds between two looks whether to stop


def listen(app: App, stop: Callable[[], bool]) -> None:
    """Call the app's listeners for what stops from now on, until ``stop()`` is true.

    A listener that raises is logged, and the others are called all the same.
    """
    from pgtasks.db.listener import JOB_CHANNEL

    heard: queue.SimpleQueue[tuple[str, list[str]]] = queue.SimpleQueue()

    def hear(channel: str, stopped: list[str] | None) -> None:
        if stopped:
            heard.put((channel, stopped))

    unsubscribe = app.listener.subscribe(hear)
    try:
        while not stop():
            try:
                channel, stopped = heard.get(timeout=CHECK_STOP)
            except queue.Empty:
                continue
            try:
                if channel == JOB_CHANNEL:
                    _tell_jobs(app, stopped)
                else:
                    _tell_bundles(app, stopped)
            except ConnectError as error:
                logger.warning("listeners were not told of %d ids: %s", len(stopped), error)
    finally:
        unsubscribe()


def _tell_jobs(app: App, stopped: list[str]) -> None:
    from pgtasks.db import operations

    if not app.job_listeners:
        return
    will_retry = {one.rstrip("+"): one.endswith("+") for one in stopped}
    jobs = {job.id: job for job in app.run(operations.get_jobs(list(will_retry)))}
    for id, retried in will_retry.items():
        if id in jobs:
            for listener in app.job_listeners:
                _call(listener, jobs[id], retried)


def _tell_bundles(app: App, stopped: list[str]) -> None:
    from pgtasks.db import operations

    if not app.bundle_listeners:
        return
    for bundle in app.run(operations.list_bundles(ids=stopped, limit=len(stopped))):
        for type, listener in app.bundle_listeners:
            if type is None or type == bundle.type:
                _call(listener, bundle)


def _call(listener: Callable[..., object], *args: object) -> None:
    try:
        listener(*args)
    except Exception:  # noqa: BLE001 (a user's listener)
        logger.exception("a listener raised")
