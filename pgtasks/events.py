"""What happened, told to whoever wants to know: log lines, metrics, tests.

An event is a name and fields, such as ``emit("job.finished", job_id=…, state="succeeded")``. The core
emits; subscribers turn events into something. A subscriber names the prefixes that it wants, and an
event that nobody wants costs one look-up, so that the hot path may ask before it builds the fields.

Names in use
    job.started, job.finished, job.retried, job.replaced, job.failed, job.cancelled, job.expired, job.late, job.crashed
    worker.ready, worker.draining, worker.stopped, worker.connected, worker.disconnected, worker.refused
    worker.rescued, worker.trust, worker.lease_lost, worker.gave_up
    child.started, child.ended, child.died, history.maintained, listener.failed
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

Subscriber = Callable[[str, dict[str, object]], None]

_subscribers: list[tuple[tuple[str, ...], Subscriber]] = []


def subscribe(subscriber: Subscriber, *prefixes: str) -> Callable[[], None]:
    """Call ``subscriber(name, fields)`` for events whose name begins with a prefix (none: for all).

    Returns a function that ends the subscription.
    """
    entry = (prefixes or ("",), subscriber)
    _subscribers.append(entry)
    wanted.cache_clear()

    def unsubscribe() -> None:
        if entry in _subscribers:
            _subscribers.remove(entry)
            wanted.cache_clear()

    return unsubscribe


@lru_cache(maxsize=256)
def wanted(name: str) -> bool:
    """Whether anybody listens to this event: ask before building costly fields."""
    return any(name.startswith(prefixes) for prefixes, _ in _subscribers)


def emit(name: str, **fields: object) -> None:
    """Tell the subscribers of this event."""
    if wanted(name):
        for prefixes, subscriber in tuple(_subscribers):
            if name.startswith(prefixes):
                subscriber(name, fields)
