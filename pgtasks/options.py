"""Every option: its default, its unit and its rule, in one place.

`TaskOptions` is what ``@app.task(...)`` says, `WorkerOptions` what an operator says. A call may
override a few of the first, which travel with the job (`call_options`). Celery's spellings are
translated here, once, and are not known further inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from pgtasks.errors import ConfigurationError
from pgtasks.keys import Key, check_key
from pgtasks.limits import Gates, Limit, RateLimit, read_limit, read_rate
from pgtasks.rates import Rate, parse_rate
from pgtasks.retry import RetrySchedule, expo, fixed, schedule_from_celery, validate_schedule

FOREVER = 2**31 - 1
"""The number of retries that stands for no limit."""

MANUAL_RETRIES = 3
"""How often ``self.retry()`` works in a task that names no maximum (Celery's default)."""

MANUAL_SCHEDULE = fixed(180.0)
"""How long ``self.retry()`` waits in a task that names no schedule, in seconds (Celery's default)."""

MAX_CRASHES = 3
"""A job that took its process down this often is quarantined."""

# Characters of an origin, of a bundle's type, of a worker's name; the schema has the same limit.
MAX_LABEL = 200
QUEUE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
BUILTIN = "pgtasks."
"""What the names of the built-in tasks begin with, and no others."""
TASK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:<>/-]{0,199}")

HOST = r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
IPV6 = r"\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]"
ADDRESS = re.compile(rf"(?:(?:{HOST}|{IPV6}):)?(?P<port>[0-9]{{1,5}})")

ExceptionTypes = tuple[type[BaseException], ...]


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a task.

    Attributes:
        name: the task's name; its module and function, if not said.
        queue: where its jobs go, unless the call says otherwise.
        priority: higher runs first.
        retries: how many more attempts may follow the first; None: not said, which is none for
            an exception, and 3 for ``self.retry()``.
        retry_schedule: when; see `pgtasks.retry`. None: not said.
        retry_for: exceptions that are retried.
        no_retry_for: exceptions that are not, although they are of a class in retry_for.
        throws: exceptions that are expected: logged without traceback, and raised as themselves by
            ``get()``.
        expires: seconds after the call, after which an attempt is no longer begun.
        ignore_result: store no result.
        keep_history: False keeps nothing of a job that succeeded.
        soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in the task; None: the
            worker's, else the app's.
        time_limit: seconds after which the job is killed, and fails or is retried by its policy;
            None: the worker's, else the app's.
        at_most_once: never run a job again that may have run when its process died: it fails as lost.
        transactional: the task runs in a transaction of ``current_job().connection``, and its success
            commits with what it wrote there, or not at all.
        limit: how many of its jobs run at once, all workers together: a number, or a `Limit`, which may be for
            each key, or shared with other tasks.
        rate: how many of its attempts begin in which time, all workers together: "100/m", or a `RateLimit`, likewise.
        fair_by: of these keys the jobs take turns within their queue and priority: a function of some of
            the task's parameters, or a template such as "{tenant}".
        rate_limit: Celery's: how many of its attempts begin in which time in each worker.
        log_arguments: show the arguments in the log lines of its jobs.
        origin: where its jobs come from, for people.
        unique: at most one job for each key waits or runs in a queue: True: the key is all of its arguments; a
            function of some of its parameters, by their names; a template over them, "{customer_id}".
        unique_for: the key is held so many seconds (or a timedelta) from the call, whatever becomes of the job.
        unique_until: or until the job is "started" (a worker took it; it does not take the key again for a retry), or
            "finished", which is what holds if neither is said.
        on_conflict: what a call does whose key another job holds: "skip" returns that one's result, with
            ``created`` False; "replace" also gives it the arguments and the time of this call, if it still waits;
            "raise" raises DuplicateJobError. Of a group such a call makes no member, and in the list of `enqueue_many`
            it has the other's result. Where something waits for the job (chains, chords, callbacks, more members of
            a group), it raises in any case, before anything is written.
        bind: the function's first parameter is the task itself.
        raw: the function receives the `Job` and nothing else.
    """

    name: str
    queue: str = "default"
    priority: int = 0
    retries: int | None = None
    retry_schedule: RetrySchedule | None = None
    retry_for: ExceptionTypes = (Exception,)
    no_retry_for: ExceptionTypes = ()
    throws: ExceptionTypes = ()
    expires: float | None = None
    ignore_result: bool = False
    keep_history: bool = True
    soft_time_limit: float | None = None
    time_limit: float | None = None
    at_most_once: bool = False
    transactional: bool = False
    limit: Limit | None = None
    rate: RateLimit | None = None
    fair_by: Key | None = None
    rate_limit: Rate | None = None
    log_arguments: bool = False
    origin: str | None = None
    unique: Key = False
    unique_for: float | None = None
    unique_until: str | None = None
    on_conflict: str | None = None
    bind: bool = False
    raw: bool = False

    def __post_init__(self) -> None:
        check_task_name(self.name)
        check_queue_name(self.queue)
        check_priority(self.priority)
        if self.origin is not None:
            check_label("origin", self.origin)
        if self.retries is not None:
            check_retries(self.retries)
        if self.retry_schedule is not None:
            validate_schedule(self.retry_schedule)
        for option in ("retry_for", "no_retry_for", "throws"):
            check_exception_types(option, getattr(self, option))
        if self.expires is not None:
            check_seconds("expires", self.expires, least=0)
        check_limits(self.soft_time_limit, self.time_limit)
        for option in ("at_most_once", "transactional", "log_arguments"):
            check_flag(option, getattr(self, option))
        check_unique(self.name, self.unique, self.unique_for, self.unique_until, self.on_conflict)
        if self.bind and self.raw:
            raise ConfigurationError(
                f"task {self.name!r} is both bind and raw: a raw task receives the job only"
            )

        if self.fair_by is not None and self.rate is not None:
            raise ConfigurationError(
                f"task {self.name!r} has fair_by and rate, found both: a job that waits for a token would lose "
                'its turn; give the rate to the queue, or one to each key: rate=RateLimit("10/m", key=…)'
            )

    @property
    def gates(self) -> Gates | None:
        """What its jobs must pass; None: nothing."""
        if self.limit is None and self.rate is None and self.fair_by is None:
            return None
        return Gates(task=self.name, limit=self.limit, rate=self.rate, fair_by=self.fair_by)

    @property
    def schedule(self) -> RetrySchedule:
        """The schedule for an exception that is retried."""
        return expo if self.retry_schedule is None else self.retry_schedule

    @property
    def stores_result(self) -> bool:
        """Whether a result is worth encoding."""
        return not self.ignore_result and self.keep_history


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """What an app declares for a queue, for all workers together: ``App(queues={"mail": Queue(max_running=5)})``.

    Workers write it into the database when they start. Limits that an operator set by hand
    (``app.limit_queue``, ``pgtasks queues limit``) go before, and so does a pause. What code no longer declares
    holds on until it is taken away by hand.

    Attributes:
        max_running: how many of its jobs run at most. Jobs that a worker holds and has not begun count.
        rate: how many attempts begin: "10/s", "100/m", "1000/h", or a number in a second; a `Rate` says its
            burst, too.
        ageing: after so many seconds of waiting a job's priority rises by one, and again after so many, up to the
            highest priority that waits in the queue.
    """

    max_running: int | None = None
    rate: Rate | str | float | None = None
    ageing: float | None = None

    def __post_init__(self) -> None:
        check_max_running(self.max_running)
        check_ageing(self.ageing)
        self.bucket  # noqa: B018 (raises for what is no rate)

    @property
    def bucket(self) -> Rate | None:
        """The rate, read."""
        return None if self.rate is None else parse_rate(self.rate)


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a worker.

    Attributes:
        concurrency: how many jobs run at once: the number of children.
        queues: which queues to serve; None: all that the app's tasks and routes name, and "default".
        exclude_queues: which of these not to serve.
        weights: how many jobs are claimed of a queue in proportion to the others, while several have some;
            those that are not named have 1.
        name: what the worker is called; %h is the host, %n its first part, %d the rest.
        pool: "prefork" forks children; "threads" forks one that runs jobs in threads; "solo" runs
            jobs one by one in this very process; "beat" runs none, and is for the schedules alone.
        async_concurrency: how many jobs of ``async def`` tasks a child runs at once, on an event loop
            in a thread of its own; 1: they take their turn with the others.
        soft_time_limit: of tasks that name none, in seconds.
        time_limit: of tasks that name none, in seconds.
        max_tasks_per_child: after so many jobs a child is replaced.
        max_memory_per_child: a child that ever held so many bytes is replaced after its job.
        poll_interval: the longest time between two looks for work, in seconds. Notifications make
            a worker look earlier; polling is what it relies on.
        listen: whether to use notifications at all.
        grace: how long running jobs may go on after the worker was asked to stop, in seconds.
        beat: how often a worker renews its lease, in seconds.
        lease: how long its beat may stand still before others take its jobs, in seconds.
        claim_batch: how many jobs one claim may take.
        prefetch: how many jobs may wait for each child at most; how many do follows their measured
            duration.
        keep_history_for: how long finished jobs are kept, in seconds.
        schedules: whether it enqueues what schedules have due. Any number of workers may.
        health_port: answer HTTP probes here: "8080" on 127.0.0.1, "0.0.0.0:8080", "[::1]:8080"; port 0
            is any that is free. None: nowhere.
    """

    concurrency: int = 1
    queues: tuple[str, ...] | None = None
    exclude_queues: tuple[str, ...] = ()
    weights: Mapping[str, int] = {}  # msgspec copies it for each instance
    name: str = "worker@%h"
    pool: str = "prefork"
    async_concurrency: int = 1
    soft_time_limit: float | None = None
    time_limit: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    poll_interval: float = 1.0
    listen: bool = True
    grace: float = 25.0
    beat: float = 5.0
    lease: float = 30.0
    claim_batch: int = 500
    prefetch: int = 500
    keep_history_for: float = 7 * 86400.0
    schedules: bool = True
    health_port: str | None = None

    def __post_init__(self) -> None:
        if self.pool not in ("prefork", "threads", "solo", "beat"):
            raise ConfigurationError(
                f"expected pool 'prefork', 'threads', 'solo' or 'beat', found {self.pool!r}"
            )
        check_count("concurrency", self.concurrency, most=1000)
        if self.pool == "solo" and self.concurrency != 1:
            raise ConfigurationError(
                f"pool 'solo' runs one job at a time, found concurrency {self.concurrency}: "
                "leave it out, or use pool 'prefork'"
            )
        for queue in (*(self.queues or ()), *self.exclude_queues):
            check_queue_name(queue)
        if self.queues is not None and not self.queues:
            raise ConfigurationError("expected at least one queue, found none")
        for queue, weight in self.weights.items():
            check_queue_name(queue)
            check_count(f"the weight of queue {queue!r}", weight, most=1000)
            if self.queues is not None and queue not in self.queues:
                raise ConfigurationError(
                    f"queue {queue!r} has a weight and is not served: expected one of {', '.join(self.queues)}"
                )
        check_seconds("poll_interval", self.poll_interval, least=0.01)
        check_seconds("grace", self.grace, least=0)
        check_seconds("beat", self.beat, least=0.1)
        check_seconds("lease", self.lease, least=2 * self.beat)
        check_seconds("keep_history_for", self.keep_history_for, least=0)
        check_limits(self.soft_time_limit, self.time_limit)
        check_count("async_concurrency", self.async_concurrency, most=1000)
        for option in ("max_tasks_per_child", "max_memory_per_child"):
            if getattr(self, option) is not None:
                check_count(option, getattr(self, option), most=2**62)
        check_flag("schedules", self.schedules)
        check_count("claim_batch", self.claim_batch, most=10_000)
        check_count("prefetch", self.prefetch, most=10_000)
        if self.health_port is not None:
            parse_address("health_port", self.health_port)

    @property
    def health_address(self) -> tuple[str, int] | None:
        """Host and port of `health_port`."""
        return None if self.health_port is None else parse_address("health_port", self.health_port)

    @property
    def children(self) -> int:
        """How many processes run jobs."""
        if self.pool == "beat":
            return 0
        return 1 if self.pool == "threads" else self.concurrency

    @property
    def threads(self) -> int:
        """How many jobs each of them runs at once, beside those of ``async def`` tasks."""
        return self.concurrency if self.pool == "threads" else 1


def check_queue_name(name: object) -> None:
    """Raise ConfigurationError for what is no queue name."""
    if not isinstance(name, str) or not QUEUE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"queue {name!r} is not a name: begin with a letter or _, go on with letters, digits, _ . -, at most 63"
        )


def check_task_name(name: object) -> None:
    """Raise ConfigurationError for what is no task name."""
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ConfigurationError(
            f"task name {name!r} is not a name: begin with a letter or _, go on with letters, digits, "
            "_ . - : / < >, at most 200"
        )


def check_label(what: str, text: object) -> None:
    """Raise ConfigurationError for what is no text for people: an origin, a bundle's type, a worker's name."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_LABEL or not text.isprintable():
        shown = (
            f"{text[:MAX_LABEL]!r}…"
            if isinstance(text, str) and len(text) > MAX_LABEL
            else repr(text)
        )
        raise ConfigurationError(
            f"{what} is for people to read: expected 1 to {MAX_LABEL} printable characters, found {shown}"
        )


def check_priority(priority: object) -> None:
    """Raise ConfigurationError unless this is a whole number that fits PostgreSQL's integer."""
    if (
        not isinstance(priority, int)
        or isinstance(priority, bool)
        or not -(2**31) <= priority < 2**31
    ):
        raise ConfigurationError(f"priority is a whole number of 32 bits, found {priority!r}")


def check_retries(retries: object) -> None:
    """Raise ConfigurationError unless this is a number of retries."""
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= FOREVER:
        raise ConfigurationError(f"retries is a whole number from 0, found {retries!r}")


def check_count(option: str, value: object, *, most: int) -> None:
    """Raise ConfigurationError unless this is a whole number from 1 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigurationError(f"{option} is a whole number from 1 to {most}, found {value!r}")


def check_max_running(value: object) -> None:
    """Raise ConfigurationError unless this is a number of jobs, or None."""
    if value is not None:
        check_count("max_running", value, most=1_000_000)


def check_ageing(value: object) -> None:
    """Raise ConfigurationError unless this is the time in which a priority rises, or None."""
    if value is not None:
        check_seconds("ageing", value, least=1)


def check_seconds(option: str, value: object, *, least: float) -> None:
    """Raise ConfigurationError unless this is a finite number of seconds, at least that many."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e10:
        raise ConfigurationError(
            f"{option} is a number of seconds, at least {least:g}, found {value!r}"
        )


def parse_address(option: str, text: object, host: str = "127.0.0.1") -> tuple[str, int]:
    """Return host and port of ``[host:]port``, an IPv6 address in brackets; ConfigurationError for anything else."""
    match = ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match["port"]) > 65535:
        raise ConfigurationError(
            f"{option} is a port or host:port, such as 8080, 0.0.0.0:8080 or [::1]:8080, found {text!r}"
        )
    return match["ipv6"] or match["host"] or host, int(match["port"])


def check_limits(soft: object, hard: object) -> None:
    """Raise ConfigurationError unless these are time limits, or None, and the soft one comes first."""
    for option, value in (("soft_time_limit", soft), ("time_limit", hard)):
        if value is not None:
            check_seconds(option, value, least=0.001)
    if isinstance(soft, int | float) and isinstance(hard, int | float) and soft >= hard:
        raise ConfigurationError(
            f"soft_time_limit is less than time_limit, found {soft!r} and {hard!r}: "
            "the soft one warns the task before it is killed"
        )


def check_flag(option: str, value: object) -> None:
    """Raise ConfigurationError unless this is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{option} is True or False, found {value!r}")


def check_unique(
    task_name: str, key: object, seconds: object, until: object, on_conflict: object
) -> None:
    """Raise ConfigurationError unless this is how a job is unique, or is not."""
    said = {"unique_for": seconds, "unique_until": until, "on_conflict": on_conflict}
    if key is False:
        option = next((option for option, value in said.items() if value is not None), None)
        if option is not None:
            raise ConfigurationError(
                f"task {task_name!r}: {option} is about a unique key, and there is none: say unique=True, too"
            )
        return
    check_key(task_name, key, None, option="unique")
    if seconds is not None:
        check_seconds("unique_for", seconds, least=0.001)
    if until not in (None, "started", "finished"):
        raise ConfigurationError(f"unique_until is 'started' or 'finished', found {until!r}")
    if seconds is not None and until is not None:
        raise ConfigurationError(
            f"task {task_name!r}: expected unique_for or unique_until, found both: unique_for holds the key so long, "
            "whatever becomes of the job"
        )
    if on_conflict not in (None, "skip", "replace", "raise"):
        raise ConfigurationError(
            f"on_conflict is 'skip', 'replace' or 'raise', found {on_conflict!r}"
        )


def check_exception_types(option: str, value: object) -> None:
    """Raise ConfigurationError unless this is a tuple of exception classes."""
    if not isinstance(value, tuple) or not all(
        isinstance(one, type) and issubclass(one, BaseException) for one in value
    ):
        raise ConfigurationError(f"{option} is a tuple of exception classes, found {value!r}")


def task_options(name: str, said: Mapping[str, Any]) -> TaskOptions:
    """Build a task's options from what the decorator was given, in our words or in Celery's.

    Raises:
        ConfigurationError: an option is unknown, or its value is not one.
    """
    options = dict(said)
    _translate_celery(options)
    for option in ("retry_for", "no_retry_for", "throws"):
        if option in options:
            options[option] = _as_tuple(options[option])
    if isinstance(options.get("unique_for"), timedelta):
        options["unique_for"] = options["unique_for"].total_seconds()
    if options.get("unique", False) is None:
        options["unique"] = False
    for option, read in (("limit", read_limit), ("rate", read_rate), ("rate_limit", _each_worker)):
        if options.get(option) is not None:
            options[option] = read(options[option])
    known = set(TaskOptions.__struct_fields__)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigurationError(
            f"task {name!r} has no option {unknown[0]!r}: the options are {', '.join(sorted(known - {'name'}))}"
        )
    return TaskOptions(name=name, **options)


# Celery's options that change nothing here: results and states are always kept, errors always stored,
# JSON is the only serializer, and a task that its worker lost is always run again.
CELERY_IGNORED = {
    "track_started": (True, False),
    "store_errors_even_if_ignored": (True, False),
    "serializer": ("json", None),
    "compression": (None,),
    "typing": (True,),
    "pydantic": (True, False),
    "acks_on_failure_or_timeout": (True,),
    "reject_on_worker_lost": (True, None),
    "send_events": (True, False),
}


def _translate_celery(options: dict[str, Any]) -> None:
    """Replace Celery's spellings by ours; what has no meaning here is checked and dropped."""
    for option, accepted in CELERY_IGNORED.items():
        if option in options:
            value = options.pop(option)
            if value not in accepted:
                raise ConfigurationError(
                    f"{option}={value!r} is not supported: expected {' or '.join(map(repr, accepted))}, or leave it out"
                )
    if "acks_late" in options:  # True is what always holds; False takes the job off before it runs
        late = options.pop("acks_late")
        check_flag("acks_late", late)
        options.setdefault("at_most_once", not late)
    if "max_retries" in options:
        maximum = options.pop("max_retries")
        options["retries"] = FOREVER if maximum is None else maximum
        # In Celery a maximum alone retries nothing: self.retry() or autoretry_for does.
        options.setdefault("retry_for", ())
    if "autoretry_for" in options:
        options["retry_for"] = options.pop("autoretry_for")
        options.setdefault("retries", MANUAL_RETRIES)
    if "dont_autoretry_for" in options:
        options["no_retry_for"] = options.pop("dont_autoretry_for")
    spelled = ("default_retry_delay", "retry_backoff", "retry_backoff_max", "retry_jitter")
    schedule = {name: options.pop(name) for name in spelled if name in options}
    if schedule:
        options["retry_schedule"] = schedule_from_celery(**schedule)


def _each_worker(rate: Rate | str | float) -> Rate | None:
    """Read Celery's rate_limit, of which 0 means none; at once may begin what comes in a tenth of a second."""
    if rate == 0 or (isinstance(rate, str) and rate.strip() in ("", "0")):
        return None
    read = parse_rate(rate)
    return parse_rate(read, burst=max(1, int(read.per_second / 10)))


def _as_tuple(value: object) -> object:
    if isinstance(value, type):
        return (value,)
    return tuple(value) if isinstance(value, Sequence) else value


def worker_name(pattern: str, host: str) -> str:
    """Fill in %h (host), %n (its first part) and %d (the rest), as Celery does."""
    first, _, rest = host.partition(".")
    return pattern.replace("%h", host).replace("%n", first).replace("%d", rest)
