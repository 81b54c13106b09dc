"""The schedules that stand in an app's code: ``@app.schedule``, and Celery's ways to say the same.

Workers declare them when they start; what is in the database is what ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pgtasks import codec
from pgtasks.errors import ConfigurationError
from pgtasks.options import check_label, check_seconds
from pgtasks.schedule import Spec, as_spec, check_catch_up, zone_of
from pgtasks.sending import Sending
from pgtasks.signatures import Partial
from pgtasks.task import SharedTask, Task

if TYPE_CHECKING:
    from pgtasks.schedules import Schedules

F = TypeVar("F", bound=Callable[..., Any])
Definition = dict[str, Any]

# What apply_async takes and a schedule cannot: it says itself when its jobs begin, and each has an id of its own.
NOT_SCHEDULED = ("task_id", "countdown", "eta", "connection", "link", "link_error", "chord")
BEAT_ENTRY = ("task", "schedule", "args", "kwargs", "options", "relative", "timezone", "catch_up")


class Hook:
    """Functions that are called with the app before its worker starts: ``@app.on_after_configure.connect``."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., object]] = []

    def connect(self, function: Any = None, **ignored: object) -> Any:
        """Call this function with the app as ``sender``; the options of Celery's signals mean nothing here."""
        if function is None:
            return self.connect
        self.functions.append(function)
        return function

    def send(self, sender: object) -> None:
        """Call the functions, each once."""
        functions, self.functions = self.functions, []
        for function in functions:
            function(sender=sender)


class Scheduling(Sending):
    """What of an app declares schedules. Mixed into `App`.

    Args:
        timezone: of schedules that name none.
        beat_schedule: see `App`.
        settings: see `Registry`.
    """

    def __init__(
        self,
        *,
        timezone: str,
        beat_schedule: Mapping[str, Mapping[str, Any]] | None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        zone_of(timezone)
        self.timezone = timezone
        self.declared_schedules: dict[str, Definition] = {}
        self.on_after_configure = Hook()
        self.on_after_finalize = Hook()
        # Decorated with a schedule, and not yet with @app.task.
        self._to_schedule: dict[Callable[..., Any], list[Callable[[str], None]]] = {}
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._beat_schedule: dict[str, Mapping[str, Any]] = {}
        self.beat_schedule = {} if beat_schedule is None else beat_schedule

    def schedule(
        self,
        spec: str | float | timedelta | Spec,
        *,
        timezone: str | None = None,
        catch_up: str = "one",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Callable[[F], F]:
        """Let a task run at times: above or below ``@app.task``, and more than once if need be.

        Args:
            spec: a cron line (``*/5 * * * *``; a sixth field is the second), `every`, `crontab`, or seconds.
            timezone: an IANA name, in which a cron line is read; None: the app's.
            catch_up: what becomes of ticks that are missed, since no worker ran: "skip" drops them, "one" runs one
                job for all of them, "all" one for each. A tick that is less than 30 seconds late was not missed.
            args: positional arguments.
            kwargs: keyword arguments.
            name: what it is called; None: like the task, and a second one of a task like that and its spec.
            options: as for ``apply_async``: queue, priority, expires (in seconds), retries, …

        A tick in the hour that is skipped when the clock is set runs once, right after; one in the hour that is
        repeated runs once, the first time. In UTC, and for `every`, there are no such hours.

        The job's ``start_at`` is the tick. What operators do to a schedule (``pgtasks schedules``) goes before what is
        said here.

        Raises:
            ConfigurationError: spec, time zone or an option is not one; the task has no such schedule to add.
            TypeError: the function does not take these arguments.
        """
        when = as_spec(spec)  # at once, where the mistake stands

        def decorate(decorated: F) -> F:
            def declare(task: str) -> None:
                self._declare(name, task, when, timezone, catch_up, args, kwargs, options)

            found: Any = decorated
            if isinstance(found, SharedTask):
                declare(found.register(self._app).name)
            elif isinstance(found, Task):
                declare(found.name)
            else:
                self._check(name, when, timezone, catch_up, options)
                self._to_schedule.setdefault(decorated, []).append(declare)
            return decorated

        return decorate

    def add_periodic_task(
        self,
        schedule: str | float | timedelta | Spec,
        sig: Partial[Any, Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """Let a signature run at times, and return the schedule's name; Celery's way to say `schedule`.

        Args:
            schedule: seconds, a timedelta, `crontab`, or what `schedule` takes.
            sig: a signature of one task.
            args: before its own.
            kwargs: added to its own.
            name: like `schedule`.
            options: like `schedule`; ``timezone`` and ``catch_up`` as well.
        """
        found: Any = sig.s() if isinstance(sig, Task | SharedTask) else sig
        if not isinstance(found, Partial):
            raise ConfigurationError(
                f"add_periodic_task() takes a signature of one task, found {sig!r:.200}: for a chain or a group write "
                "a task that enqueues it"
            )
        call = found.clone(args, kwargs)
        timezone, catch_up = options.pop("timezone", None), options.pop("catch_up", "one")
        said = {**call.options, **options}
        when = as_spec(schedule)
        return self._declare(
            name, call.task_name, when, timezone, catch_up, call.args, call.kwargs, said
        )

    @property
    def beat_schedule(self) -> Mapping[str, Mapping[str, Any]]:
        """Celery's setting: ``{name: {"task": …, "schedule": …, "args": …, "kwargs": …, "options": …}}``.

        ``timezone`` and ``catch_up`` may stand in an entry, too. Set it before the worker starts.
        """
        return self._beat_schedule

    @beat_schedule.setter
    def beat_schedule(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        checked: dict[str, Mapping[str, Any]] = {}
        said: Any = entries  # people write what they write
        if not isinstance(said, Mapping):
            raise ConfigurationError(
                f"beat_schedule is a dict of schedules by name, found {said!r:.200}"
            )
        for name, entry in said.items():
            whole = isinstance(entry, Mapping) and {"task", "schedule"} <= set(entry)
            if not whole or not set(entry) <= set(BEAT_ENTRY):
                raise ConfigurationError(
                    f"beat_schedule[{name!r}] takes task and schedule, and may have "
                    f"{', '.join(BEAT_ENTRY[2:])}, found {entry!r:.200}"
                )
            options = entry.get("options") or {}
            when = as_spec(entry["schedule"])
            self._check(name, when, entry.get("timezone"), entry.get("catch_up", "one"), options)
            checked[name] = entry
        self._beat_schedule = checked
        self._entries = dict(checked)

    @cached_property
    def schedules(self) -> Schedules:
        """The schedules in the database: list, add, pause, resume, run, edit and remove them."""
        from pgtasks.schedules import Schedules

        return Schedules(self._app)

    def load(self) -> None:
        """Import what is to be discovered, and declare what stands in ``beat_schedule``; see `Registry.load`."""
        super().load()
        self.on_after_configure.send(self)
        self.on_after_finalize.send(self)
        while self._entries:
            name, entry = self._entries.popitem()
            self._declare(
                name,
                entry["task"],
                as_spec(entry["schedule"]),
                entry.get("timezone"),
                entry.get("catch_up", "one"),
                entry.get("args") or (),
                entry.get("kwargs") or {},
                entry.get("options") or {},
            )
        for function in self._to_schedule:
            raise ConfigurationError(
                f"{function.__module__}.{function.__qualname__} has a schedule and is no task: write @app.task "
                "above or below @app.schedule(…)"
            )

    def _register(self, function: Callable[..., Any], said: Mapping[str, Any]) -> Task[..., Any]:
        task = super()._register(function, said)
        for declare in self._to_schedule.pop(function, ()):
            declare(task.name)
        return task

    def _check(
        self,
        name: str | None,
        when: Spec,
        timezone: str | None,
        catch_up: str,
        options: Mapping[str, Any],
    ) -> None:
        """Raise ConfigurationError for what is wrong whatever the task is."""
        if name is not None:
            check_label("a schedule's name", name)
        zone_of(self.timezone if timezone is None else timezone)
        check_catch_up(catch_up)
        for option in NOT_SCHEDULED:
            if options.get(option) is not None:
                raise ConfigurationError(
                    f"a schedule has no {option}, found {options[option]!r:.200}: say when with the schedule itself, "
                    "and let the task enqueue what follows it"
                )
        expires = options.get("expires")
        if isinstance(expires, datetime):
            raise ConfigurationError(
                f"expires of a schedule is a number of seconds after each tick, found {expires!r}"
            )
        if expires is not None:
            seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
            check_seconds("expires", seconds, least=0)

    def _declare(
        self,
        name: str | None,
        task: str,
        when: Spec,
        timezone: str | None,
        catch_up: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> str:
        """Add a schedule to what workers declare, and return its name."""
        definition = self.define_schedule(
            task, when, timezone, catch_up, args, kwargs, options, name
        )
        known = self.declared_schedules
        if name is None:
            name = task
            if known.get(name, definition) != definition:
                name = f"{task} {when}"[:200]
        if known.setdefault(name, definition) != definition:
            raise ConfigurationError(
                f"a schedule {name!r} is declared already, for {known[name]['spec']!r:.80}: give this one "
                f"(for {str(when)!r:.80}) another name with name=…"
            )
        return name

    def define_schedule(
        self,
        task: str,
        when: Spec,
        timezone: str | None,
        catch_up: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
        name: str | None = None,
    ) -> Definition:
        """Return what is stored of a schedule; see `schedule` for the arguments, and what is raised."""
        self._check(name, when, timezone, catch_up, options)
        job = self._named_job(task, args, kwargs or {}, options)
        return {
            "task": job.task,
            "args": job.args,
            "kwargs": job.kwargs,
            "queue": job.queue,
            "priority": job.priority,
            "expires": job.expires_in,
            "options": codec.decode(job.options, "options") if job.options else None,
            "origin": job.origin,
            "spec": str(when),
            "timezone": self.timezone if timezone is None else timezone,
            "catch_up": catch_up,
        }
