"""The schedules in the database: those from code, which workers declare, and those added by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgtasks import codec
from pgtasks.errors import ConfigurationError
from pgtasks.options import BUILTIN, check_label
from pgtasks.result import AsyncResult
from pgtasks.schedule import Schedule, Spec, as_spec
from pgtasks.task import Task

if TYPE_CHECKING:
    from pgtasks.app import App

Found = list[Schedule]

EDITABLE = ("spec", "timezone", "catch_up", "args", "kwargs", "queue", "priority", "expires")


class Schedules:
    """The schedules in the database, by name: those from code, and those added by hand.

    Args:
        app: whose database.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def list(self) -> Found:
        """Return all schedules, by name."""
        from pgtasks.db import operations

        return self._app.run(operations.list_schedules())

    async def alist(self) -> Found:
        """Return all schedules, by name."""
        from pgtasks.db import operations

        return await self._app.arun(operations.list_schedules())

    def get(self, name: str) -> Schedule:
        """Return a schedule; NotFoundError if there is none of that name."""
        from pgtasks.db import operations

        return self._app.run(operations.get_schedule(name))

    async def aget(self, name: str) -> Schedule:
        """Return a schedule; NotFoundError if there is none of that name."""
        from pgtasks.db import operations

        return await self._app.arun(operations.get_schedule(name))

    def add(
        self,
        name: str,
        spec: str | float | timedelta | Spec,
        task: str | Task[..., Any],
        *,
        timezone: str | None = None,
        catch_up: str = "one",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Add a schedule by hand: it ticks until somebody removes it.

        Args:
            name: what it is called.
            spec: as for `App.schedule`, and so are the others.
            task: a task or its name, which need not be registered here.
            timezone: see there.
            catch_up: see there.
            args: see there.
            kwargs: see there.
            options: see there.

        Raises:
            ScheduleError: there is one of that name.
            ConfigurationError: spec, time zone or an option is not one.
        """
        from pgtasks.db import operations

        said = self._definition(name, spec, task, timezone, catch_up, args, kwargs, options)
        self._app.run(operations.add_schedule(name, said))

    async def aadd(
        self,
        name: str,
        spec: str | float | timedelta | Spec,
        task: str | Task[..., Any],
        *,
        timezone: str | None = None,
        catch_up: str = "one",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Add a schedule by hand; see `add`."""
        from pgtasks.db import operations

        said = self._definition(name, spec, task, timezone, catch_up, args, kwargs, options)
        await self._app.arun(operations.add_schedule(name, said))

    def edit(self, name: str, *, forget: bool = False, **changes: Any) -> None:
        """Change a schedule; of one from code this goes before what the code says, until it is forgotten.

        Args:
            name: which one.
            forget: first forget what was changed before, of one from code.
            changes: ``spec``, ``timezone``, ``catch_up``, ``args``, ``kwargs``, ``queue``, ``priority``, ``expires``;
                None for queue or priority: the task's, for expires: never.

        Raises:
            NotFoundError: there is none of that name.
            ConfigurationError: there is no such thing to change, or its value is not one.
            ScheduleError: it is unique or limited by a key that was made of the arguments to change.
        """
        from pgtasks.db import operations

        said = self._changes(name, changes)
        self._app.run(operations.edit_schedule(name, said, forget=forget))

    async def aedit(self, name: str, *, forget: bool = False, **changes: Any) -> None:
        """Change a schedule; see `edit`."""
        from pgtasks.db import operations

        said = self._changes(name, changes)
        await self._app.arun(operations.edit_schedule(name, said, forget=forget))

    def pause(self, *names: str, by: str | None = None) -> None:
        """Let schedules tick no more, also those from code, until they are resumed.

        Args:
            names: which.
            by: who does it, for people.

        Raises:
            NotFoundError: there is none of one of these names; nothing is done.
        """
        from pgtasks.db import operations

        self._app.run(operations.pause_schedules(names, _label(by)))

    async def apause(self, *names: str, by: str | None = None) -> None:
        """Let schedules tick no more; see `pause`."""
        from pgtasks.db import operations

        await self._app.arun(operations.pause_schedules(names, _label(by)))

    def resume(self, *names: str) -> None:
        """Let paused schedules tick again, from now on; what they missed is dropped.

        Raises:
            NotFoundError: there is none of one of these names; nothing is done.
        """
        from pgtasks.db import operations

        self._app.run(operations.resume_schedules(names))

    async def aresume(self, *names: str) -> None:
        """Let paused schedules tick again; see `resume`."""
        from pgtasks.db import operations

        await self._app.arun(operations.resume_schedules(names))

    def run_now(self, name: str) -> AsyncResult[Any]:
        """Enqueue a schedule's job now, also of a paused one; its ticks stay as they are.

        Raises:
            NotFoundError: there is none of that name.
        """
        from pgtasks.db import operations

        return AsyncResult(self._app.run(operations.run_schedule(name)), self._app)

    async def arun_now(self, name: str) -> AsyncResult[Any]:
        """Enqueue a schedule's job now; see `run_now`."""
        from pgtasks.db import operations

        return AsyncResult(await self._app.arun(operations.run_schedule(name)), self._app)

    def remove(self, *names: str) -> None:
        """Remove schedules that were added by hand, or that no live worker has in its code.

        Raises:
            NotFoundError: there is none of one of these names; nothing is done.
            ScheduleError: a live worker has one of them in its code; nothing is done.
        """
        from pgtasks.db import operations

        self._app.run(operations.remove_schedules(names))

    async def aremove(self, *names: str) -> None:
        """Remove schedules; see `remove`."""
        from pgtasks.db import operations

        await self._app.arun(operations.remove_schedules(names))

    def _definition(
        self,
        name: str,
        spec: str | float | timedelta | Spec,
        task: str | Task[..., Any],
        timezone: str | None,
        catch_up: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> str:
        check_label("a schedule's name", name)
        said = self._app.define_schedule(
            task.name if isinstance(task, Task) else task,
            as_spec(spec),
            timezone,
            catch_up,
            args,
            kwargs,
            options,
        )
        return codec.encode(said, "schedule")

    def _changes(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return changes as they are stored.

        Raises:
            ConfigurationError: one of them is not one.
        """
        stored: dict[str, Any] = {}
        # What is valid of itself is what a schedule of some task may have.
        said = {
            key: value
            for key, value in changes.items()
            if key in ("timezone", "catch_up", "args", "kwargs", "queue", "priority", "expires")
            and value is not None
        }
        spec = as_spec(changes.get("spec", "* * * * *"))
        defined = self._app.define_schedule(
            f"{BUILTIN}any", spec, said.pop("timezone", None), said.pop("catch_up", "one"),
            said.pop("args", ()), said.pop("kwargs", None), said,
        )  # fmt: skip
        for key, value in changes.items():
            if key not in EDITABLE or (
                value is None and key not in ("queue", "priority", "expires")
            ):
                raise ConfigurationError(
                    f"of schedule {name!r} one can change {', '.join(EDITABLE)}, found {key}={value!r:.200}"
                )
            stored[key] = None if value is None else defined[key]
        return stored


def _label(by: str | None) -> str | None:
    if by is not None:
        check_label("who pauses a schedule", by)
    return by
