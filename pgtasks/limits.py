"""What a task's jobs must pass before they begin, for all workers together: limits, rates, turns.

``limit`` says how many may run at once, ``rate`` how many may begin in which time, ``fair_by`` whose jobs take
turns. Each may be said for the jobs of a key alone, which the caller computes when the job is made and which
travels in its options.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from pgtasks.errors import ConfigurationError
from pgtasks.keys import Key, check_key, make_key
from pgtasks.rates import Rate, parse_rate

MAX_LIMIT = 1_000_000

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:<>/-]{0,199}")
"""A name as tasks have it: without a space, which stands before the key in the database."""


class Limit(msgspec.Struct, frozen=True):
    """So many jobs at once, all workers together.

    A job holds its place from the moment that a worker claims it until it is finished or retried; while
    its worker dies, too. One over the limit waits parked, and holds up nobody behind it.

    Who has a place keeps it when the limit is lowered. Workers publish limits when they start: of a name that several
    deploys say differently the last one counts. A job whose producer does not know the task (``send_task`` from another
    code base, plain SQL without ``pgtasks.gate_keys``) has no key, and shares one limit with the others that have none.
    Calls of the task from inside of another job (``map``, ``starmap``, ``chunks``, a plain call) are not counted.

    Attributes:
        count: how many, from 1.
        key: of each key so many: a function of some of the task's parameters, or a template such as
            ``"{customer_id}"``. None: of the whole task.
        name: tasks whose limits have the same name share one, across queues; None: the task's name.
    """

    count: int
    key: Key | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        count: object = self.count
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_LIMIT:
            raise ConfigurationError(
                f"a limit is a whole number from 1 to {MAX_LIMIT}, found {count!r}: "
                "leave it out for no limit, pause the task for none at all"
            )
        _check_name("limit", self.name)

    def __str__(self) -> str:
        return str(self.count)


class RateLimit(msgspec.Struct, frozen=True):
    """So many that begin in a time, all workers together: a token bucket, see `Rate`.

    An attempt takes a token when it is claimed, and a retry takes another; a job whose worker died, or gave it back,
    does not. One without a token waits parked. Celery's ``rate_limit`` is something else: for each worker.

    Attributes:
        rate: "10/s", "100/m", "1000/h", a number of tokens a second, or a `Rate`.
        burst: how many may begin at once after a pause; None: what the Rate says, else what comes in one second,
            at least 1.
        key: each key has its own bucket; see `Limit`.
        name: tasks whose rates have the same name share one; None: the task's name.
    """

    rate: Rate | str | float
    burst: int | None = None
    key: Key | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "rate", parse_rate(self.rate, burst=self.burst))
        msgspec.structs.force_setattr(self, "burst", self.bucket.tokens)
        _check_name("rate", self.name)

    def __str__(self) -> str:
        return f"{self.bucket} (burst {self.burst})"

    @property
    def bucket(self) -> Rate:
        """The rate, read."""
        assert isinstance(self.rate, Rate)
        return self.rate


def read_limit(said: Limit | int) -> Limit:
    """Return what ``limit=`` was given, ConfigurationError if it is none."""
    return said if isinstance(said, Limit) else Limit(said)


def read_rate(said: RateLimit | Rate | str | float) -> RateLimit:
    """Return what ``rate=`` was given, ConfigurationError if it is none."""
    return said if isinstance(said, RateLimit) else RateLimit(said)


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """All that the jobs of one task must pass.

    Attributes:
        task: its name.
        limit, rate, fair_by: see `pgtasks.options.TaskOptions`.
    """

    task: str
    limit: Limit | None = None
    rate: RateLimit | None = None
    fair_by: Key | None = None

    @property
    def limit_name(self) -> str | None:
        """The name by which the limit is known in the database."""
        return None if self.limit is None else self.limit.name or self.task

    @property
    def rate_name(self) -> str | None:
        """The name by which the rate is known in the database."""
        return None if self.rate is None else self.rate.name or self.task

    def check(self, names: Collection[str] | None) -> None:
        """Raise ConfigurationError unless the keys can be computed.

        Args:
            names: of the task's parameters; None: it takes any.
        """
        for option, key in (
            ("limit", self.limit and self.limit.key),
            ("rate", self.rate and self.rate.key),
            ("fair_by", self.fair_by),
        ):
            if key is not None:
                check_key(self.task, key, names, option=option)

    def keys(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return what a job carries in its options.

        Args:
            arguments: by the names of the task's parameters.

        Raises:
            ConfigurationError: a key function raises, or returns what cannot be a key, or wants an argument that is
                not known yet.
        """
        keys: dict[str, str] = {}
        for option, name, said in (
            ("limit", self.limit_name, self.limit),
            ("rate", self.rate_name, self.rate),
        ):
            if name is not None and said is not None:
                # Without a key of its own the name alone: else a claim would have to add it.
                keys[f"{option}_key"] = (
                    name
                    if said.key is None
                    else f"{name} {make_key(self.task, said.key, arguments, option=option)}"
                )
        if self.fair_by is not None:
            keys["fair_key"] = make_key(self.task, self.fair_by, arguments, option="fair_by")
        return keys

    def check_shared(self, other: Gates) -> None:
        """Raise ConfigurationError if another task says something else of a limit or a rate of the same name."""
        if self.limit and other.limit and self.limit_name == other.limit_name:
            self._check_same("limit", str(self.limit), str(other.limit), other.task)
        if self.rate and other.rate and self.rate_name == other.rate_name:
            self._check_same("rate", str(self.rate), str(other.rate), other.task)

    def _check_same(self, what: str, here: str, there: str, other: str) -> None:
        if here != there:
            name = self.limit_name if what == "limit" else self.rate_name
            raise ConfigurationError(
                f"the {what} {name!r} is {there} in task {other!r}, and {here} in task {self.task!r}: "
                "give both the same, or one another name=…"
            )


def published_gates(tasks: Collection[str], gates: Collection[Gates]) -> dict[str, list[Any]]:
    """Return what a worker publishes at its start: the parameters of the statement publish_gates.

    Args:
        tasks: the names of all its tasks.
        gates: of those that have some.
    """
    limits = {one.limit_name: one.limit for one in gates if one.limit is not None}
    rates = {one.rate_name: one.rate.bucket for one in gates if one.rate is not None}
    return {
        "tasks": list(tasks),
        "task": [one.task for one in gates],
        "limit_name": [one.limit_name for one in gates],
        "rate_name": [one.rate_name for one in gates],
        "fair": [one.fair_by is not None for one in gates],
        "limits": list(limits),
        "jobs": [one.count for one in limits.values()],
        "rates": list(rates),
        "per_second": [one.per_second for one in rates.values()],
        "burst": [one.tokens for one in rates.values()],
    }


def _check_name(what: str, name: object) -> None:
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ConfigurationError(
            f"the name of a {what} begins with a letter or _, goes on with letters, digits, _ . - : / < >, "
            f"at most 200, found {name!r}"
        )
