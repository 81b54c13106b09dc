"""What the parent tells the ledger (events) and what the ledger asks for (commands). Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pgtasks.rates import Rate

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


class TaskFacts(NamedTuple):
    """What the parent knows of a task; limits in seconds, with the worker's and the app's defaults."""

    keep_history: bool = True
    at_most_once: bool = False
    asynchronous: bool = False  # its jobs run on a child's event loop, many at once
    transactional: bool = False
    log_arguments: bool = False
    soft_time_limit: float | None = None
    time_limit: float | None = None
    rate: Rate | None = None  # at which this worker begins its jobs at most


class LaneKind(NamedTuple):
    """Tasks whose jobs are claimed together."""

    tasks: tuple[str, ...]
    asynchronous: bool = False
    at_most_once: bool = False
    rate: Rate | None = None  # at which they are claimed at most; such a task has a lane of its own


class Order(IntEnum):
    """What a child shall do about a job that runs."""

    SOFT_LIMIT = 1  # raise SoftTimeLimitExceeded in it
    HARD_LIMIT = 2  # cancel the coroutine, and let it fail with TimeLimitExceeded
    CANCEL = 3  # raise Cancelled in it


class Running(NamedTuple):
    """A job that a child says it runs, or ran last in that slot."""

    serial: int
    began: float  # monotonic
    session: int  # pid of the database session of a transactional job; 0: none


class Report(NamedTuple):
    """How far a job is, as it said last."""

    serial: int
    at: float  # monotonic
    progress: bytes  # JSON


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
    """What a look found: queue -> (something is ready, seconds until the next is due), or None; cost in seconds."""

    queues: Mapping[str, tuple[bool | None, float | None]]
    lane: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a `Claim`, made under this token; cost in seconds."""

    order: Claim
    token: str
    rows: Sequence[ClaimedRow]
    cost: float


@dataclass(frozen=True, slots=True)
class Surveyed:
    """Of which priorities a queue has something ready just before a sweep, and the last seq of each."""

    queue: str
    priorities: Mapping[int, int]
    lane: int = 0


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
        reason: lost (unknown whether it was), again (try the same), slow (it took too long: try less), value
            (one of them cannot be stored).
    """

    batch: Batch
    reason: Literal["lost", "again", "slow", "value"]
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
class Seen:
    """What children run, as their slates say; told while a job has a time limit or was cancelled."""

    running: Mapping[int, Sequence[Running]]


@dataclass(frozen=True, slots=True)
class ChildDied:
    """A child is gone; all its reports were handled. running: what its slate says it ran."""

    child: int
    running: Sequence[Running]
    cause: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer to a `Settle`: the job is still this worker's, or it is finished."""

    held: Held
    alive: bool


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A `Settle` came to nothing."""

    command: Settle


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody cancelled jobs that this worker holds: token -> ids; those in ``interrupt`` at once."""

    cancel: Mapping[str, frozenset[str]]
    interrupt: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class GatesRead:
    """What operators hold back: queues and tasks that are paused, and queues of which only so much may be held."""

    paused_queues: frozenset[str] = frozenset()
    paused_tasks: frozenset[str] = frozenset()
    limited_queues: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A signal: the first asks to drain, the second to kill."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Others declared this worker dead: what it holds is no longer its own."""


class Trust(Enum):
    """How sure a worker is of its lease, by the time since its last beat that the database confirmed."""

    SURE = "sure"
    UNSURE = "unsure"  # half the lease: nothing more is claimed or handed out
    LOST = "lost"  # nearly all of it: others may take its jobs, so what has not begun is given up


@dataclass(frozen=True, slots=True)
class TrustChanged:
    """The lease is trusted more, or less, than before."""

    trust: Trust


Event = (
    Connected
    | Disconnected
    | Looked
    | Surveyed
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
    | Seen
    | ChildDied
    | Settled
    | Unsettled
    | CancelAsked
    | GatesRead
    | StopAsked
    | LeaseLost
    | TrustChanged
)


# Commands


@dataclass(frozen=True, slots=True)
class Look:
    """Ask which queues have something ready or due, of one lane; of the hot ones only what is due."""

    lane: int = 0
    hot: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """Take jobs of one queue, from these ranges (see schema/): a sweep has none but the whole."""

    queue: str
    limit: int
    high: tuple[int, ...] = (HIGHEST,)
    low: tuple[int, ...] = (LOWEST,)
    after: tuple[int | None, ...] = (None,)
    sweep: bool = False
    lane: int = 0


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
    """Make jobs ready again and charge each a crash, which its cause describes; the claims end with them."""

    jobs: Sequence[Held]
    claims: Sequence[str]
    causes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class ReleaseLost:
    """Give back what was claimed for this worker under any other token than these."""

    known: Sequence[str]


@dataclass(frozen=True, slots=True)
class Settle:
    """End the session in which a dead child ran a transactional job, and ask whether it had committed."""

    held: Held
    session: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Say what became of a job that its child settled with the database by itself."""

    ended: Ended
    late: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Hand jobs to a child, in this order; over_limit: it shall only say what that means for the job."""

    child: int
    jobs: Sequence[Held]
    over_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Leave an order for a job that a child runs."""

    child: int
    serial: int
    order: Order


@dataclass(frozen=True, slots=True)
class Skip:
    """Let a child not begin these jobs: all up to a serial, and these others."""

    child: int
    below: int
    serials: Sequence[int]


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
    | Settle
    | Tell
    | Send
    | Interrupt
    | Skip
    | Spawn
    | CloseChild
    | KillChild
)
