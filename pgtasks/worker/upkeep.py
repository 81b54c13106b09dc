"""Small duties of every parent, on its second connection: beat, watch the others, keep the history.

Each duty is due now and then, and correct if several workers do it at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from pgtasks import events
from pgtasks.worker.host import Identity
from pgtasks.worker.leases import LeaseWatch, OwnLease
from pgtasks.worker.link import Call, Failed, Link, Reply, State, plain_array, text_array
from pgtasks.worker.messages import GatesRead
from pgtasks.worker.milestones import Milestones, Reports
from pgtasks.worker.ticks import Ticks

if TYPE_CHECKING:
    from pgtasks.options import WorkerOptions

HISTORY_EVERY = 3600.0  # seconds
# How often the others' beats are looked at, at least; and how much longer than the time between two beats one
# may stand still before a lost session means death: a living parent is back within that.
WATCH_EVERY = 1.0
SESSION_GRACE = 2.0
PARK_EVERY = 10.0
PARK_AFTER = 60.0  # an unknown task waits so long for a worker that knows it
PARK_LIMIT = 1000
UNPARK_EVERY = 5.0
ORPHANS_EVERY = 10.0
# How often a worker looks what is paused and limited, if no notification tells; and how often it parks jobs of paused
# tasks, frees those of resumed ones, and raises priorities where queues age: only while there are any.
GATES_EVERY = 0.5
PARK_PAUSED_EVERY = 2.0
UNPARK_PAUSED_EVERY = 2.0
AGE_EVERY = 1.0
AGE_LIMIT = 2000
# How often those are looked for that wait for a limit or a rate although nobody told them; and how many keys at once.
SWEEP_GATES_EVERY = 1.0
SWEEP_GATES_LIMIT = 500
LISTENERS_EVERY = 60.0
# How often what running jobs say of their progress is written, if it changed; and how often that of jobs that
# have ended, or were given back, is removed: nobody sees it meanwhile.
PROGRESS_EVERY = 1.0
FORGET_PROGRESS_EVERY = 30.0
# How soon a schedule goes that was taken out of the code.
KEEP_SCHEDULES_EVERY = 10.0
# Unique keys whose time is over are in nobody's way: who wants one takes it.
FORGET_KEYS_EVERY = 30.0


class Upkeep:
    """The duties of one worker.

    Args:
        link: the connection for them.
        options: the worker's.
        me: this process.
        queues, tasks: what the worker serves and knows.
        state: returns what a beat says: the worker's state, the running ids, the statistics.
        reports: returns how far running jobs are, as they say: serial -> job and report.
        lease_lost: called when others declared this worker dead.
        cancelled: called with what was cancelled: token, ids, and those to interrupt; each time anew.
        gates: called when something else is paused or limited than before.
    """

    def __init__(
        self,
        link: Link,
        options: WorkerOptions,
        me: Identity,
        queues: Sequence[str],
        tasks: Sequence[str],
        state: Callable[[], tuple[str, Sequence[str], Mapping[str, Any]]],
        reports: Callable[[], Reports],
        lease_lost: Callable[[], None],
        cancelled: Callable[[Sequence[tuple[str, list[str], list[str]]]], None],
        gates: Callable[[GatesRead], None],
    ) -> None:
        self.worker_id = 0
        self._link = link
        self._options = options
        self._me = me
        self._queues = queues
        self._tasks = tasks
        self._state = state
        self._reports = reports
        self._milestones = Milestones()
        self._lease_lost = lease_lost
        self._cancelled = cancelled
        self._gates = gates
        self._gates_read: list[tuple[Any, ...]] = []
        self._paused_tasks: frozenset[str] = frozenset()
        self._resumed = False  # whether jobs of a task that is not paused any more may be parked
        self._ageing: list[str] = []  # queues
        self._watch_every = min(WATCH_EVERY, options.beat / 2)
        self._leases = LeaseWatch(options.lease, gap=2 * self._watch_every + 1.0)
        self.own_lease = OwnLease(options.lease, boot_time())
        self._swept_key = ""  # of limits, from where to go on
        self._locked = False  # whether this session holds the worker's advisory lock
        self._due: dict[Callable[[float], None], float] = dict.fromkeys(
            (
                self.beat,
                self.watch,
                self.look_for_cancels,
                self.look_for_gates,
                self.record_progress,
                self.maintain,
                self.park,
                self.unpark,
                self.park_paused,
                self.unpark_paused,
                self.age,
                self.release_orphans,
                self.sweep_gates,
                self.forget_listeners,
                self.forget_progress,
                self.keep_schedules,
                self.forget_keys,
            ),
            0.0,
        )
        self._ticks = Ticks(self._submit, self._wake_for_schedules, deaf=not options.listen)
        if options.schedules:
            self._due[self.look_at_schedules] = 0.0

    def next_due(self) -> float:
        """Return the monotonic moment of the next duty."""
        return min(self._due.values())

    def run(self, now: float) -> None:
        """Do what is due, while the connection is up."""
        if self._link.state is not State.UP:
            return
        for duty, due in self._due.items():
            if due <= now:
                duty(now)

    def registered(self, worker_id: int) -> None:
        """Go by this id from now on."""
        self.worker_id = worker_id
        self.own_lease.confirm(boot_time())
        self._locked = False

    def connected(self, now: float) -> None:
        """Begin anew on a new session: first of all say that this worker lives."""
        self._locked = False
        self._leases.missed()
        self._ticks.connected()
        for duty in (self.beat, self.watch, self.look_for_cancels, self.look_for_gates):
            self._due[duty] = now
        if self._options.schedules:
            self._due[self.look_at_schedules] = now

    def _again(self, duty: Callable[[float], None], now: float, seconds: float) -> None:
        # A little jitter, so that workers started together do not stay in step.
        self._due[duty] = now + seconds * random.uniform(0.9, 1.0)

    # Leases

    def beat(self, now: float) -> None:
        """Renew the lease, and say what runs."""
        state, running, stats = self._state()
        sent_at = boot_time()

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                if reply:
                    self.own_lease.confirm(sent_at)
                    self._locked = reply[0][1]
                else:
                    self._lease_lost()

        self._again(self.beat, now, self._options.beat)
        parameters = {
            "worker_id": self.worker_id,
            "state": state,
            "running": plain_array(running),
            "stats": orjson.dumps(stats),
            "lock": self._options.listen,  # not through a pooler, whose sessions are not ours
            "locked": self._locked,
        }
        self._submit("beat", parameters, done, now)

    def look_for_cancels(self, now: float) -> None:
        """Ask what was cancelled of the jobs that this worker holds."""
        self._again(self.look_for_cancels, now, self._options.beat)

        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply:
                self._cancelled(reply)

        self._submit("list_cancels", {"worker_id": self.worker_id}, done, now)

    def look_for_gates(self, now: float) -> None:
        """Ask what is paused and limited of what this worker serves and knows, and tell if that is news."""
        self._again(self.look_for_gates, now, GATES_EVERY)

        def done(reply: Reply) -> None:
            if not isinstance(reply, list) or reply == self._gates_read:
                return
            self._gates_read = reply
            queues = [row[1:] for row in reply if row[0] == "queue"]
            tasks = [row[1:] for row in reply if row[0] == "task"]
            self._paused_tasks = frozenset(name for name, paused, *_ in tasks if paused)
            self._resumed = len(self._paused_tasks) < len(tasks)
            self._ageing = [name for name, _, _, ages in queues if ages]
            for duty in (self.park_paused, self.unpark_paused):
                self._due[duty] = 0.0
            self._gates(
                GatesRead(
                    paused_queues=frozenset(name for name, paused, _, _ in queues if paused),
                    paused_tasks=self._paused_tasks,
                    limited_queues=frozenset(name for name, _, limited, _ in queues if limited),
                )
            )

        self._submit("list_gates", {"queues": list(self._queues)}, done, now)

    def watch(self, now: float) -> None:
        """Look whether other workers' beats move, and rescue the jobs of the dead."""
        self._again(self.watch, now, self._watch_every)

        def done(reply: Reply) -> None:
            if not isinstance(reply, list) or not reply:
                self._leases.missed()
                return
            dead, silent = self._verdicts(reply, now)
            for worker, beat in dead:
                self._rescue(worker, beat, now)
            for worker, beat in silent:
                self._rescue_if_session_is_gone(worker, beat, now)

        self._submit("watch_workers", {}, done, now)

    def _verdicts(
        self, rows: list[tuple[Any, ...]], now: float
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return who is dead, and who is if its session is gone, each with the beat that stood still."""
        others = [row for row in rows if row[0] != self.worker_id]
        dead = self._leases.observe({row[0]: row[1] for row in others}, rows[0][-1], now)
        locking = set()
        for worker, beat, locks, host, boot_id, pid_namespace, pid, pid_started_at, _ in others:
            other = Identity(
                host=host,
                boot_id=boot_id,
                pid_namespace=pid_namespace,
                pid=pid,
                pid_started_at=pid_started_at,
            )
            if other.is_gone(self._me) and (worker, beat) not in dead:
                dead.append((worker, beat))
            if locks:
                locking.add(worker)
        still = self._leases.silent(self._options.beat + SESSION_GRACE, now)
        return dead, [one for one in still if one[0] in locking and one not in dead]

    def _rescue_if_session_is_gone(self, worker: int, beat: int, now: float) -> None:
        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0][0]:
                self._rescue(worker, beat, now)

        if self._link.state is State.UP:
            self._submit("session_is_gone", {"worker_id": worker}, done, now)

    def _rescue(self, worker: int, beat: int, now: float) -> None:
        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0][0] is not None:
                events.emit("worker.rescued", worker_id=worker, jobs=reply[0][0])

        self._leases.forget([worker])
        if self._link.state is State.UP:
            self._submit("rescue_worker", {"worker_id": worker, "beat": beat}, done, now)

    # Progress

    def record_progress(self, now: float) -> None:
        """Write how far running jobs are, as far as that changed: one statement for all.

        One at a time. Without a connection nothing is written and nothing is kept: the slates hold the newest.
        """
        self._again(self.record_progress, now, PROGRESS_EVERY)
        due = self._milestones.due(self._reports())
        if not due:
            return

        def done(reply: Reply) -> None:
            # What cannot be stored would be refused again, and with it that of others.
            hopeless = isinstance(reply, Failed) and reply.sqlstate[:2] in ("22", "23", "54")
            self._milestones.answered(again=not isinstance(reply, list) and not hopeless)
            if isinstance(reply, Failed):
                events.emit(
                    "worker.refused",
                    statement="record_progress",
                    sqlstate=reply.sqlstate,
                    why=reply.message,
                )

        parameters = {
            "id": plain_array(held.row.id for held, _ in due),
            "token": plain_array(held.token for held, _ in due),
            "progress": text_array(report.progress.decode() for _, report in due),
            "age": plain_array(repr(max(0.0, now - report.at)) for _, report in due),
        }
        self._submit("record_progress", parameters, done, now)

    def forget_progress(self, now: float) -> None:
        """Remove what jobs said that have ended, or were given back."""
        self._again(self.forget_progress, now, FORGET_PROGRESS_EVERY)
        self._submit("forget_progress", {}, _nothing, now)

    # Schedules

    def look_at_schedules(self, now: float) -> None:
        """Enqueue what schedules have due."""
        self._ticks.look(now)

    def _wake_for_schedules(self, at: float) -> None:
        self._due[self.look_at_schedules] = at

    def keep_schedules(self, now: float) -> None:
        """Let schedules go that no live worker has in its code any more."""
        self._again(self.keep_schedules, now, KEEP_SCHEDULES_EVERY)

        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0][0]:
                events.emit("schedule.forgotten", schedules=reply[0][0])

        self._submit("keep_schedules", {}, done, now)

    def forget_keys(self, now: float) -> None:
        """Remove unique keys whose time is over."""
        self._again(self.forget_keys, now, FORGET_KEYS_EVERY)
        done = partial(self._soon_if_full, self.forget_keys, now)
        self._submit("forget_keys", {"limit": PARK_LIMIT}, done, now)

    # The tables

    def maintain(self, now: float) -> None:
        """Create the history's partitions ahead, and drop the expired ones."""
        self._again(self.maintain, now, HISTORY_EVERY)

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                if reply[0][0]:
                    events.emit("history.maintained", done=", ".join(reply[0][0]))
            else:  # busy, or locked by somebody: soon again
                self._again(self.maintain, now, HISTORY_EVERY / 60)

        self._submit("maintain_history", {"keep": self._options.keep_history_for}, done, now)

    def park(self, now: float) -> None:
        """Park jobs whose task no worker knows, so that they do not stand at the head of the line."""
        self._again(self.park, now, PARK_EVERY)
        done = partial(self._soon_if_full, self.park, now)
        for queue in self._queues:
            parameters = {"queue": queue, "limit": PARK_LIMIT, "after": PARK_AFTER}
            self._submit("park_unknown", parameters, done, now)

    def unpark(self, now: float) -> None:
        """Free parked jobs whose task this worker knows."""
        self._again(self.unpark, now, UNPARK_EVERY)
        done = partial(self._soon_if_full, self.unpark, now)
        for queue in self._queues:
            parameters = {"queue": queue, "tasks": list(self._tasks), "limit": PARK_LIMIT}
            self._submit("unpark_known", parameters, done, now)

    def park_paused(self, now: float) -> None:
        """Park jobs of paused tasks, so that they do not stand at the head of the line."""
        self._again(self.park_paused, now, PARK_PAUSED_EVERY)
        if self._paused_tasks:
            done = partial(self._soon_if_full, self.park_paused, now)
            for queue in self._queues:
                self._submit("park_paused", {"queue": queue, "limit": PARK_LIMIT}, done, now)

    def unpark_paused(self, now: float) -> None:
        """Free parked jobs of tasks that were resumed."""
        self._again(self.unpark_paused, now, UNPARK_PAUSED_EVERY)

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                self._resumed = reply[0][0] is not None
                if self._resumed:
                    self._due[self.unpark_paused] = now

        if self._resumed:
            self._submit("unpark_paused", {"limit": PARK_LIMIT}, done, now)

    def age(self, now: float) -> None:
        """Raise the priority of jobs that waited, in queues that are to age."""
        self._again(self.age, now, AGE_EVERY)

        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0][0] >= AGE_LIMIT:
                self._due[self.age] = now

        for queue in self._ageing:
            self._submit("age_queue", {"queue": queue, "limit": AGE_LIMIT}, done, now)

    def _soon_if_full(self, duty: Callable[[float], None], now: float, reply: Reply) -> None:
        """Let a duty be done again at once, if there was more than one round could take."""
        if isinstance(reply, list) and reply[0][0] >= PARK_LIMIT:
            self._due[duty] = now

    def release_orphans(self, now: float) -> None:
        """Give back what is claimed for workers that are no longer registered."""
        self._again(self.release_orphans, now, ORPHANS_EVERY)
        self._submit("release_orphaned_claims", {}, _nothing, now)

    def sweep_gates(self, now: float) -> None:
        """Admit what waits although nobody holds its place: a cancel or a raised limit tells nobody."""
        self._again(self.sweep_gates, now, SWEEP_GATES_EVERY)

        def done(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0][0] is not None:  # None: another worker is at it
                self._swept_key = reply[0][0]
                if self._swept_key:
                    self._due[self.sweep_gates] = now

        parameters = {"after": self._swept_key, "limit": SWEEP_GATES_LIMIT}
        self._submit("sweep_gates", parameters, done, now)

    def forget_listeners(self, now: float) -> None:
        """Remove the rows of processes that died while they waited for results."""
        self._again(self.forget_listeners, now, LISTENERS_EVERY)
        self._submit("forget_listeners", {}, _nothing, now)

    def _submit(
        self, name: str, parameters: Mapping[str, object], done: Callable[[Reply], None], now: float
    ) -> None:
        calls: Sequence[Call] = [(name, parameters)]
        self._link.submit(calls, done, now)


def _nothing(reply: Reply) -> None:
    """Take a reply that changes nothing here."""


def boot_time() -> float:
    """Return seconds of a clock that goes on while the machine sleeps, where there is one."""
    return (
        time.clock_gettime(time.CLOCK_BOOTTIME)
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic()
    )
