"""What the parent tells the ledger (events) and what the ledger asks for (commands). Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

# The ends of the range of priorities.
HIGHEST = 2**31 - 1
LOWEST = -(2**31)


class ClaimedRow(NamedTuple):
    """A job as the statement claim_jobs returns it: columns in its order, JSON and times as they are."""

    id: str
    seq: int
    priority: int
    task: str
    args: str
    kwargs: str
    input: str | None
    attempt: int
    crashes: int
    options: str | None
    bundle_id: str | None
    bundle_index: int | None
    parent_id: str | None
    root_id: str | None
    origin: str | None
    created_at: float  # seconds since 1970
    start_at: float | None
    expires_at: float | None
    expired: bool
    attempts: str | None
    queue: str


class Held(NamedTuple):
    """A job that this worker holds."""

    serial: int
    row: ClaimedRow
    token: str


class Ended(NamedTuple):
    """A held job with its outcome, on its way to the database."""

    held: Held
    kind: str
    result: str | None
    error: Mapping[str, Any] | None
    delay: float | None
    started: float | None  # monotonic; None: it was never begun
    stopped: float


@dataclass(slots=True)
class Batch:
    """Outcomes that are written in one transaction, and the claims that end with them."""

    ended: list[Ended]
    claims: list[str]
    again: bool = False  # written before, and the reply was lost


# Events


@dataclass(frozen=True, slots=True)
class Connected:
    """The work connection is up; nothing is known to be under way."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The work connection broke; the parent answers what was under way as lost."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look found: queue -> (something is ready, seconds until the next is due or None)."""

    queues: Mapping[str, tuple[bool, float | None]]


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a `Claim`, made under this token; cost in seconds."""

    order: Claim
    token: str
    rows: Sequence[ClaimedRow]
    cost: float


@dataclass(frozen=True, slots=True)
class Promoted:
    """The answer to a `Promote`."""

    queue: str


@dataclass(frozen=True, slots=True)
class IdleSet:
    """The idle flag was committed: time for one more look, for what was enqueued meanwhile."""

    idle: bool


@dataclass(frozen=True, slots=True)
class Released:
    """A Release or Crash was committed."""

    command: Release | Crash


@dataclass(frozen=True, slots=True)
class Unreleased:
    """A Release or Crash was not committed, as far as is known."""

    command: Release | Crash


@dataclass(frozen=True, slots=True)
class Refused:
    """A Look, Claim, Promote or SetIdle came to nothing."""

    command: Look | Claim | Promote | SetIdle


@dataclass(frozen=True, slots=True)
class LostKept:
    """A ReleaseLost was refused."""


@dataclass(frozen=True, slots=True)
class Written:
    """A batch was committed; these ids still carried their token."""

    batch: Batch
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A batch was not committed.

    Attributes:
        reason: lost (unknown whether it was), again (try the same), value (one of them cannot be
            stored).
    """

    batch: Batch
    reason: Literal["lost", "again", "value"]
    message: str


@dataclass(frozen=True, slots=True)
class Woken:
    """A notification: something was enqueued in this queue, or in some queue."""

    queue: str | None


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A child is ready for jobs."""

    child: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Outcomes from a child, as on the wire: serial, kind, result, error, delay, started, stopped."""

    child: int
    records: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ChildDied:
    """A child is gone; all its reports were handled. begun: how many jobs it ever began."""

    child: int
    begun: int
    cause: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A signal: the first asks to drain, the second to kill."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Others declared this worker dead: what it holds is no longer its own."""


Event = (
    Connected
    | Disconnected
    | Looked
    | Claimed
    | Promoted
    | IdleSet
    | Released
    | Unreleased
    | Refused
    | LostKept
    | Written
    | Unwritten
    | Woken
    | ChildStarted
    | Reported
    | ChildDied
    | StopAsked
    | LeaseLost
)


# Commands


@dataclass(frozen=True, slots=True)
class Look:
    """Ask which queues have something ready or due."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Take jobs of one queue, from these ranges (see schema/): a sweep has none but the whole."""

    queue: str
    limit: int
    high: tuple[int, ...] = (HIGHEST,)
    low: tuple[int, ...] = (LOWEST,)
    after: tuple[int | None, ...] = (None,)
    sweep: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Make due jobs of one queue ready."""

    queue: str


@dataclass(frozen=True, slots=True)
class SetIdle:
    """Ask enqueuers for NOTIFY, or no longer."""

    idle: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """Write a batch of outcomes."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Release:
    """Give jobs back unrun; the claims end with them."""

    jobs: Sequence[Held]
    claims: Sequence[str]


@dataclass(frozen=True, slots=True)
class Crash:
    """Make jobs ready again and charge each a crash; the claims end with them."""

    jobs: Sequence[Held]
    claims: Sequence[str]


@dataclass(frozen=True, slots=True)
class ReleaseLost:
    """Give back what was claimed for this worker under any other token than these."""

    known: Sequence[str]


@dataclass(frozen=True, slots=True)
class Send:
    """Hand jobs to a child, in this order."""

    child: int
    jobs: Sequence[Held]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child."""


@dataclass(frozen=True, slots=True)
class CloseChild:
    """Let a child end after what it has."""

    child: int


@dataclass(frozen=True, slots=True)
class KillChild:
    """Kill a child."""

    child: int


Command = (
    Look
    | Claim
    | Promote
    | SetIdle
    | Finish
    | Release
    | Crash
    | ReleaseLost
    | Send
    | Spawn
    | CloseChild
    | KillChild
)
