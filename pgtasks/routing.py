"""Which queue a job goes to, as ``App(task_routes=…)`` says it: Celery's forms.

A route is the name of a queue, or ``{"queue": …, "priority": …}``. What leads there is a dict or a list of pairs, by
the task's name, by a glob (``"mail.*"``) or by a compiled regular expression; or a function
``(name, args, kwargs, options, task=None, **kw)``, which returns a route or None; or a list of these, of which the
first that knows one decides.
"""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pgtasks.errors import ConfigurationError
from pgtasks.options import check_priority, check_queue_name

__all__ = ["Destination", "Router", "TaskRoutes"]

TaskRoutes = (
    Mapping[Any, Any] | Sequence[Any] | Callable[..., "Mapping[str, Any] | str | None"] | str
)
"""What ``App(task_routes=…)`` takes; see the module."""

# What Celery's routes say to its brokers, without meaning here.
FOR_BROKERS = frozenset(
    ("exchange", "exchange_type", "routing_key", "delivery_mode", "serializer", "compression")
)


class Destination(NamedTuple):
    """Where a route leads: what is None is left to others."""

    queue: str | None = None
    priority: int | None = None


NOWHERE = Destination()


class Router:
    """Decides by routes. What is no route is refused here, before any call.

    Raises:
        ConfigurationError: something among the routes is none.
    """

    def __init__(self, routes: object) -> None:
        self._steps = [_step(one) for one in _listed(routes)]
        self._known: dict[str, Destination] = {}  # by the maps alone

    def route(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        task: object,
    ) -> Destination:
        """Return where a call goes.

        Args:
            name: the task's.
            args: the positional arguments, for functions.
            kwargs: the keyword arguments, for functions.
            options: those of the call, for functions.
            task: the task, for functions; None if it is not known here.

        Raises:
            ConfigurationError: a function raises, or returns what is no route.
        """
        for step in self._steps:
            found = (
                step.find(name)
                if isinstance(step, _Map)
                else _ask(step, name, args, kwargs, options, task)
            )
            if found is not None:
                return found
        return NOWHERE

    def by_name(self, name: str) -> Destination:
        """Return where the calls of a task go by its name alone: functions are not asked."""
        if name not in self._known:
            maps = (step.find(name) for step in self._steps if isinstance(step, _Map))
            self._known[name] = next((one for one in maps if one is not None), NOWHERE)
        return self._known[name]

    def queues(self) -> set[str]:
        """Return the queues that are named; those that functions name are not known."""
        maps = (step for step in self._steps if isinstance(step, _Map))
        return {one.queue for step in maps for one in step.destinations() if one.queue is not None}


class _Map:
    """Routes by name; exact names go before patterns, as in Celery."""

    def __init__(self, pairs: Iterable[Any]) -> None:
        self._exact: dict[str, Destination] = {}
        self._patterns: list[tuple[re.Pattern[str], Destination]] = []
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise _no_routes(pair)
            pattern, route = pair
            if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
                self._patterns.append((pattern, read_route(pattern.pattern, route)))
            elif not isinstance(pattern, str):
                raise ConfigurationError(
                    f"task_routes: expected a task's name, a glob or a compiled pattern, found {pattern!r:.120}"
                )
            elif any(sign in pattern for sign in "*?["):
                glob = re.compile(fnmatch.translate(pattern))
                self._patterns.append((glob, read_route(pattern, route)))
            else:
                self._exact[pattern] = read_route(pattern, route)

    def find(self, name: str) -> Destination | None:
        found = self._exact.get(name)
        if found is not None:
            return found
        return next((where for pattern, where in self._patterns if pattern.match(name)), None)

    def destinations(self) -> list[Destination]:
        return [*self._exact.values(), *(where for _, where in self._patterns)]


def read_route(whose: str, route: object) -> Destination:
    """Return where a route leads.

    Args:
        whose: what the route is for, in messages.
        route: the name of a queue, or a dict.

    Raises:
        ConfigurationError: it is no route.
    """
    what = f"the route of {whose!r}"
    if isinstance(route, str):
        route = {"queue": route}
    if not isinstance(route, Mapping):
        raise ConfigurationError(
            f'{what}: expected the name of a queue or {{"queue": "…"}}, found {route!r:.120}'
        )
    unknown = sorted(map(str, set(route) - FOR_BROKERS - {"queue", "priority"}))
    if unknown:
        raise ConfigurationError(f"{what}: expected queue and priority, found {unknown[0]!r}")
    queue, priority = route.get("queue"), route.get("priority")
    try:
        if queue is not None:
            queue = getattr(queue, "name", queue)  # kombu's queues have one
            check_queue_name(queue)
        if priority is not None:
            check_priority(priority)
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from None
    return Destination(queue, priority)


def _listed(routes: object) -> list[Any]:
    """Return the routers among what was said, in order."""
    if isinstance(routes, Mapping | str) or callable(routes) or hasattr(routes, "route_for_task"):
        return [routes]
    if not isinstance(routes, list | tuple):
        raise _no_routes(routes)
    if routes and all(_is_pair(one) for one in routes):
        return [routes]
    return list(routes)


def _is_pair(one: object) -> bool:
    return isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str | re.Pattern)


def _step(router: Any) -> _Map | Callable[..., Any]:
    if isinstance(router, str):
        router = _load(router)
    if isinstance(router, Mapping):
        return _Map(router.items())
    if isinstance(router, list | tuple):
        return _Map(router)
    if hasattr(router, "route_for_task"):
        method = router.route_for_task
        return lambda name, args, kwargs, options, task=None: method(name, args, kwargs)
    if callable(router):
        return router  # type: ignore[no-any-return]
    raise _no_routes(router)


def _load(path: str) -> Any:
    """Return what a dotted path names: Celery takes its routers so, too."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"task_routes: expected the path of a router, as in 'shop.routers.route', found {path!r}: {error}"
        ) from error


def _ask(
    function: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    task: object,
) -> Destination | None:
    try:
        route = function(name, args, kwargs, options, task=task)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"task_routes: the function for {name!r} raised {type(error).__name__}: {error}"
        ) from error
    return None if route is None or route == {} else read_route(name, route)


def _no_routes(found: object) -> ConfigurationError:
    return ConfigurationError(
        'task_routes: expected a dict such as {"mail.*": "mail"}, a list of pairs, a function of '
        f"(name, args, kwargs, options, task=None, **kw), or a list of these, found {found!r:.120}"
    )
