"""The tasks that every app has, under names that begin with ``pgtasks.``: what `Task.map` and the like run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgtasks.signatures import ACCUMULATE, MAP, STARMAP

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgtasks.task import Task


def map_elements(self: Task[..., Any], task: str, it: Sequence[Any]) -> Any:
    """Call a task for each element in turn."""
    return _call_each(self, task, ((one,) for one in it))


def starmap_elements(self: Task[..., Any], task: str, it: Sequence[Sequence[Any]]) -> Any:
    """Call a task with the arguments in each element in turn."""
    return _call_each(self, task, it)


def accumulate(self: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the arguments, or that of them which ``index`` says."""
    index = kwargs.get("index")
    return list(args) if index is None else args[index]


def _call_each(self: Task[..., Any], name: str, calls: Iterable[Sequence[Any]]) -> Any:
    task = self.app.find_task(name)
    if inspect.iscoroutinefunction(task.run):
        return _await_each(task, calls)
    return [task(*args) for args in _converted(task, calls)]


async def _await_each(task: Task[..., Any], calls: Iterable[Sequence[Any]]) -> list[Any]:
    return [await task(*args) for args in _converted(task, calls)]


def _converted(task: Task[..., Any], calls: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Rebuild the annotated types, as for a job of the task itself."""
    for args in calls:
        yield task.parameters.convert(args, {})[0] if task.parameters.converts else args


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    MAP: map_elements,
    STARMAP: starmap_elements,
    ACCUMULATE: accumulate,
}
