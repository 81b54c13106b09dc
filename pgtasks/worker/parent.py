"""The parent: waits for events, tells the ledger, performs its commands. Nothing is decided here.

Single-threaded; one selector over two connections, the children's pipes, and signals. The work
connection claims, finishes and gives back; the watch connection listens, beats and does upkeep, so that
a long finish delays no beat. Statements are sent without waiting, pipes are written without blocking.

Signals: TERM or INT drains; the second one, or QUIT, kills the children and gives back what they held.
USR1 dumps all stacks to stderr. Handlers do nothing but wake the selector.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import random
import selectors
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from pgtasks import events
from pgtasks.errors import PgTasksError
from pgtasks.worker import messages as msg
from pgtasks.worker.desk import Desk
from pgtasks.worker.health import HealthServer
from pgtasks.worker.ledger import Ledger, Phase
from pgtasks.worker.link import Call, Link, State
from pgtasks.worker.ticks import SCHEDULE_CHANNEL
from pgtasks.worker.upkeep import Upkeep, boot_time
from pgtasks.worker.wire import Note, pack_jobs

if TYPE_CHECKING:
    from pgtasks.options import WorkerOptions
    from pgtasks.worker.children import Child, Pool
    from pgtasks.worker.host import Identity

RECONNECT_FIRST = 0.1  # seconds, doubling with jitter up to…
RECONNECT_CAP = 2.0
# How long a dead child may stay unnoticed if no SIGCHLD says so, and other things do happen, in seconds. A look costs
# a system call for each child; one a cycle took 2 % of a worker's CPU.
REAP_EVERY = 0.1
# How often children are looked at that have something to report behind a long job, in seconds.
ASK_EVERY = 0.02
# When stderr takes no more, it is tried again after so many seconds.
ERRORS_AGAIN = 0.02
# A signal that comes just before its receiver goes to sleep in a system call is not seen before it wakes. So the
# signal for an order is sent again after so many seconds, so often; who has heard it does nothing.
ORDER_AGAIN = 0.1
ORDER_TIMES = 20
# After the grace period, how long a database that is away is waited for, in seconds.
GIVE_UP_AFTER = 5.0

# Where request_cancel notifies every worker.
CANCEL_CHANNEL = "pgtasks_cancel"
# Where every worker hears that something was paused, resumed or limited.
GATES_CHANNEL = "pgtasks_gates"

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)


class Parent:
    """One worker.

    Args:
        options: see `WorkerOptions`.
        name: the worker's full name.
        me: this process.
        conninfo: what to connect with.
        queues: which queues to serve.
        tasks: what is known of every task it can run.
        register: adds the worker to the database and returns its id; blocking.
        pool: what runs the jobs.
    """

    def __init__(
        self,
        *,
        options: WorkerOptions,
        name: str,
        me: Identity,
        conninfo: str,
        queues: Sequence[str],
        tasks: Mapping[str, msg.TaskFacts],
        register: Callable[[], int],
        pool: Pool,
    ) -> None:
        self.options = options
        self.name = name
        self.queues = tuple(queues)
        self.pool = pool
        self.worker_id = 0
        self.ledger = Ledger(options, queues, time.monotonic(), tasks)
        self._register = register
        self._events: list[msg.Event] = []
        self._selector = selectors.DefaultSelector()
        self._registered: dict[int, tuple[int, object]] = {}
        self._work = Link(conninfo)
        self._desk = Desk(self._work, queues, tasks, self.ledger.kinds, self._events.append)
        self._transactional = {name for name, facts in tasks.items() if facts.transactional}
        channels = [*_channels(queues), CANCEL_CHANNEL, GATES_CHANNEL] if options.listen else []
        if options.listen and options.schedules:
            channels.append(SCHEDULE_CHANNEL)
        self._watch = Link(conninfo, [f'listen "{channel}"' for channel in channels])
        self._queue_of = dict(zip(_channels(queues), queues, strict=True))
        self._retry_at = {self._work: 0.0, self._watch: 0.0}
        self._backoff = {self._work: RECONNECT_FIRST, self._watch: RECONNECT_FIRST}
        self._upkeep = Upkeep(
            self._watch,
            options,
            me,
            queues,
            sorted(tasks),
            self._describe,
            self._reports,
            self._on_lease_lost,
            self._on_cancelled,
            self._on_gates,
        )
        self._started_at = time.monotonic()
        address = options.health_address
        self._health = HealthServer(address, self._check_health) if address else None
        self._ask_at = 0.0
        # (child, serial) -> when its order is signalled again, and how often yet
        self._orders: dict[tuple[int, int], tuple[float, int]] = {}
        self._asked_about: dict[int, list[int]] = {}  # child -> what it ran at the last look
        self._wake_read, self._wake_write = os.pipe()
        self._reap_at = 0.0
        self._signals: list[int] = []

    def run(self) -> None:
        """Work until told to stop, and until then survive what can be survived."""
        self.start()
        while self.cycle():
            pass
        self.stop()

    def start(self) -> None:
        """Register, and take over the signals if this is the main thread."""
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.on_signal)
            signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1)
        self._set_worker_id(self._register())
        events.emit(
            "worker.ready",
            worker=self.name,
            worker_id=self.worker_id,
            pid=os.getpid(),
            health=self.health_address,
        )

    def cycle(self) -> bool:
        """Wait, tell the ledger what happened, perform what it asks for; False when done."""
        self.wait()
        now = time.monotonic()
        self._check_lease()
        if self.ledger.limits.active:
            self._events.append(msg.Seen(self._slates()))
        for event in self._events:
            self.ledger.handle(event, now)
        self._events.clear()
        for command in self.ledger.commands(now):
            self.perform(command, now)
        self._upkeep.run(now)
        self._ask_stuck(now)
        self._order_again(now)
        return not self._finished(now)

    def stop(self) -> None:
        """Deregister, and close what is open."""
        self._deregister()
        for link in (self._work, self._watch):
            link.close()
        if self._health:
            self._health.close()
        for child in self.pool.children.values():
            child.kill()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        events.emit("worker.stopped", worker=self.name, finished=sum(self.ledger.finished.values()))

    def ask_to_stop(self, number: int = signal.SIGTERM) -> None:
        """Act as if this signal had come; safe from any thread."""
        self._signals.append(number)
        os.write(self._wake_write, b"!")

    def on_signal(self, number: int, frame: object) -> None:
        """Take note of a signal; the selector was woken by its descriptor."""
        if number != signal.SIGCHLD:
            self._signals.append(number)

    # Waiting

    def wait(self) -> None:
        """Wait until something happens or is due, and turn it into events."""
        now = time.monotonic()
        for link in (self._work, self._watch):
            self._keep_up(link, now)
        self._watch_descriptors()
        until = min(
            self.ledger.next_wake(now),
            self._upkeep.next_due() if self._watch.state is State.UP else now + 1,
        )
        for link in (self._work, self._watch):
            if link.state is State.DOWN:
                until = min(until, self._retry_at[link])
        if self._orders:
            until = min(until, min(moment for moment, _ in self._orders.values()))
        if self._some_may_be_stuck():
            until = min(until, self._ask_at)
        if any(child.unwritten for child in self.pool.children.values()):
            until = min(until, now + ERRORS_AGAIN)
        if self._health:
            until = min(until, self._health.next_due())
        ready = self._selector.select(max(0.0, until - now))
        now = time.monotonic()
        for key, mask in ready:
            owner = key.data
            if owner is None:
                self._drain_wake_pipe()
                self._reap_at = now  # it may have been SIGCHLD
            elif isinstance(owner, Link):
                self._link_ready(owner, now)
            elif isinstance(owner, HealthServer):
                if owner.ready(key.fd, now):
                    self._refresh_selector()
            elif key.fd == owner.errors:
                owner.read_errors()
            elif mask & selectors.EVENT_WRITE:
                owner.write()
            else:
                self._child_ready(owner)
        for child in self.pool.children.values():
            if child.unwritten:
                child.write_errors()
        if self._health and self._health.expire(now):
            self._refresh_selector()
        if now >= self._reap_at:
            self._reap_at = now + REAP_EVERY
            self._reap()
        while self._signals:
            number = self._signals.pop(0)
            events.emit("worker.draining", worker=self.name, signal=signal.Signals(number).name)
            self._events.append(msg.StopAsked(now=number == signal.SIGQUIT))

    def _watch_descriptors(self) -> None:
        """Bring the selector in line with what is open and what waits to be written."""
        wanted: dict[int, tuple[int, object]] = {}
        for link in (self._work, self._watch):
            if link.state is not State.DOWN:
                mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_write else 0)
                wanted[link.fileno()] = (mask, link)
        for child in self.pool.children.values():
            if child.outbox >= 0:
                wanted[child.outbox] = (selectors.EVENT_READ, child)
            if child.unsent and child.inbox >= 0:
                wanted[child.inbox] = (selectors.EVENT_WRITE, child)
            if child.errors >= 0 and not child.unwritten:
                wanted[child.errors] = (selectors.EVENT_READ, child)
        if self._health:
            for fd, mask in self._health.descriptors().items():
                wanted[fd] = (mask, self._health)
        if wanted == self._registered:
            return
        # By closing, a descriptor may have come back as another's: take all out that changed.
        for fd, entry in self._registered.items():
            if wanted.get(fd) != entry:
                self._selector.unregister(fd)
        for fd, (mask, owner) in wanted.items():
            if self._registered.get(fd) != (mask, owner):
                self._selector.register(fd, mask, owner)
        self._registered = wanted

    def _drain_wake_pipe(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            return

    def _child_ready(self, child: Child) -> None:
        records = child.read()
        if records:
            self._events.append(msg.Reported(child.number, records))
        if child.outbox < 0:  # closed by the read
            self._reap_at = 0.0
            self._refresh_selector()

    def _refresh_selector(self) -> None:
        """Build the selector anew: after a descriptor was closed under it."""
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._registered = {}

    def _reap(self) -> None:
        gone = self.pool.reap()
        for child, records, cause in gone:
            if records:
                self._events.append(msg.Reported(child.number, records))
            self._events.append(msg.ChildDied(child.number, child.slate.running(), cause))
            clean = cause.get("exit_code") == 0 or self.ledger.phase is Phase.DRAINING
            events.emit(
                "child.ended" if clean else "child.died", pid=child.pid, how=cause["message"]
            )
            child.close()
        if gone:
            self._refresh_selector()

    # Connections

    def _keep_up(self, link: Link, now: float) -> None:
        """Notice that a link is dead; start to connect one that is down, once its back-off is over."""
        why = link.check(now)
        if why:
            self._link_broke(link, why, now)
        if link.state is State.DOWN and now >= self._retry_at[link]:
            why = link.start(now)
            if why:
                self._link_broke(link, why, now)

    def _link_ready(self, link: Link, now: float) -> None:
        before, fd = link.state, link.fileno()
        why = link.ready(now)
        if why is not None:
            self._link_broke(link, why, now)
            return
        if link.state is State.UP and before is not State.UP:
            self._backoff[link] = RECONNECT_FIRST
            self._link_up(link, now)
        if link.state is not State.UP and link.fileno() != fd:
            self._refresh_selector()
        for channel in link.notified:
            if channel == CANCEL_CHANNEL:
                self._upkeep.look_for_cancels(now)
            elif channel == SCHEDULE_CHANNEL:
                self._upkeep.look_at_schedules(now)
            elif channel == GATES_CHANNEL:
                self._upkeep.look_for_gates(now)
            else:
                self._events.append(msg.Woken(self._queue_of.get(channel)))
        link.notified.clear()

    def _link_up(self, link: Link, now: float) -> None:
        if link is self._work:
            self._events.append(msg.Connected())
            events.emit("worker.connected", worker=self.name)
        else:
            self._upkeep.connected(now)

    def _link_broke(self, link: Link, why: str, now: float) -> None:
        self._refresh_selector()
        self._retry_at[link] = now + self._backoff[link] * random.uniform(0.5, 1.0)
        self._backoff[link] = min(self._backoff[link] * 2, RECONNECT_CAP)
        events.emit(
            "worker.disconnected",
            worker=self.name,
            connection="work" if link is self._work else "watch",
            why=why,
        )
        if link is self._work:
            self._events.append(msg.Disconnected())

    # Commands

    def perform(self, command: msg.Command, now: float) -> None:
        """Do what the ledger asks for."""
        match command:
            case msg.Send(number, jobs, over_limit):
                if number in self.pool.children:
                    frame = pack_jobs(
                        [(held.serial, held.row, self._note(held, over_limit)) for held in jobs]
                    )
                    self.pool.children[number].send(frame)
            case msg.Interrupt(number, serial, order):
                child = self.pool.children.get(number)
                if child is not None and child.slate.interrupt(serial, order):
                    child.ask()
                    self._orders[number, serial] = (now + ORDER_AGAIN, ORDER_TIMES)
            case msg.Skip(number, below, serials):
                if number in self.pool.children:
                    self.pool.children[number].slate.skip_below(below)
                    self.pool.children[number].slate.skip(serials)
            case msg.Spawn():
                self._spawn()
            case msg.CloseChild(number):
                if number in self.pool.children:
                    self.pool.children[number].close_inbox()
                    self._refresh_selector()
            case msg.KillChild(number):
                if number in self.pool.children:
                    self.pool.children[number].kill()
            case _:
                self._desk.perform(command, now)

    def _note(self, held: msg.Held, over_limit: float | None) -> Note | None:
        if over_limit is not None:
            return Note(over_limit=over_limit)
        return Note(token=held.token) if held.row.task in self._transactional else None

    def _spawn(self) -> None:
        private = [
            link.fileno() for link in (self._work, self._watch) if link.state is not State.DOWN
        ]
        private += [self._wake_read, self._wake_write]
        if self._health:
            private += self._health.filenos()
        if isinstance(self._selector, selectors.EpollSelector):
            private.append(self._selector.fileno())
        child = self.pool.spawn(private)
        self._events.append(msg.ChildStarted(child.number))
        events.emit("child.started", pid=child.pid)

    # Beats and stuck children

    def _slates(self) -> dict[int, list[msg.Running]]:
        return {number: child.slate.running() for number, child in self.pool.children.items()}

    def _reports(self) -> dict[int, tuple[msg.Held, msg.Report]]:
        slates = {number: child.slate.progress() for number, child in self.pool.children.items()}
        return self.ledger.reports(slates)

    def _describe(self) -> tuple[str, list[str], dict[str, Any]]:
        running = [held.row.id for held in self.ledger.running(self._slates())]
        answered = self._desk.answered_at
        state = "draining" if self.ledger.phase is Phase.DRAINING else "running"
        stats = {
            "finished": self.ledger.finished,
            "outcomes": self.ledger.ended_by_kind,
            "late": self.ledger.late,
            "held": self.ledger.held_count(),
            "children": [child.pid for child in self.pool.children.values()],
            # Seconds since the database last answered a look or a claim; and what counts as dead.
            "claimed_ago": None if answered is None else round(time.monotonic() - answered, 3),
            "lease": self.options.lease,
            "poll_interval": self.options.poll_interval,
        }
        if not self.queues:  # it claims nothing, so that no age of a claim says anything
            del stats["claimed_ago"]
        return state, running, stats

    @property
    def health_address(self) -> str | None:
        """Where probes are answered, as host:port; None: nowhere."""
        return self._health.address if self._health else None

    def _check_health(self, now: float) -> tuple[bool, dict[str, Any]]:
        """Say whether the last beat, and the last look for jobs, were answered within the lease."""
        # Then it looks for none.
        draining = self.ledger.phase is Phase.DRAINING
        answered = self._desk.answered_at
        claimed_ago = now - (self._started_at if answered is None else answered)
        beat_ago = boot_time() - self._upkeep.own_lease.confirmed_at
        lease = self.options.lease
        healthy = beat_ago <= lease and (
            draining or not self.queues or claimed_ago <= max(lease, 2 * self.options.poll_interval)
        )
        return healthy, {
            "worker": self.name,
            "state": "draining" if draining else "running",
            "beat_ago": round(beat_ago, 3),
            "claimed_ago": round(claimed_ago, 3),
            "lease": lease,
        }

    def _set_worker_id(self, worker_id: int) -> None:
        self.worker_id = self._desk.worker_id = worker_id
        self._upkeep.registered(worker_id)

    def _on_lease_lost(self) -> None:
        events.emit("worker.lease_lost", worker=self.name, worker_id=self.worker_id)
        self._events.append(msg.LeaseLost())
        try:
            self._set_worker_id(self._register())
        except (PgTasksError, psycopg.Error) as error:  # the next beat finds out again
            events.emit("worker.refused", statement="register", sqlstate="", why=str(error))

    def _check_lease(self) -> None:
        """Tell the ledger how far the lease may be trusted: first of all after a long stop of this process."""
        trust = self._upkeep.own_lease.trust(boot_time())
        if trust is not self.ledger.trust:
            events.emit("worker.trust", worker=self.name, lease=trust.value)
            self._events.append(msg.TrustChanged(trust))

    def _on_cancelled(self, claims: Sequence[tuple[str, list[str], list[str]]]) -> None:
        self._events.append(
            msg.CancelAsked(
                {token: frozenset(ids) for token, ids, _ in claims},
                {token: frozenset(ids) for token, _, ids in claims},
            )
        )

    def _on_gates(self, gates: msg.GatesRead) -> None:
        events.emit(
            "worker.gates",
            worker=self.name,
            paused_queues=sorted(gates.paused_queues),
            paused_tasks=sorted(gates.paused_tasks),
        )
        self._desk.leave_out(gates.paused_tasks)
        self._events.append(gates)

    def _some_may_be_stuck(self) -> bool:
        return any(child.slate.has_unreported() for child in self.pool.children.values())

    def _ask_stuck(self, now: float) -> None:
        if now < self._ask_at:
            return
        self._ask_at = now + ASK_EVERY
        asked_about, self._asked_about = self._asked_about, {}
        for number, child in self.pool.children.items():
            if child.slate.has_unreported():
                running = [one.serial for one in child.slate.running()]
                if asked_about.get(number) == running:  # outcomes wait behind a job that runs on
                    child.ask()
                self._asked_about[number] = running

    def _order_again(self, now: float) -> None:
        for (number, serial), (moment, left) in list(self._orders.items()):
            child = self.pool.children.get(number)
            if (
                child is None
                or not left
                or all(one.serial != serial for one in child.slate.running())
            ):
                del self._orders[number, serial]
            elif now >= moment:
                child.ask()
                self._orders[number, serial] = (now + ORDER_AGAIN, left - 1)

    # The end

    def _finished(self, now: float) -> bool:
        if self.ledger.done:
            return self._work.state is not State.UP or not self._work.busy
        deadline = self.ledger.drain_deadline
        if (
            deadline is not None
            and now > deadline + GIVE_UP_AFTER
            and self._work.state is not State.UP
        ):
            events.emit(
                "worker.gave_up",
                worker=self.name,
                why="the database is away; others will rescue its jobs",
            )
            return True
        return False

    def _deregister(self) -> None:
        """Take this worker out of the database; if that fails, others will find it gone."""
        if self._work.state is not State.UP or not self.ledger.done:
            return
        now = time.monotonic()
        until = now + 2.0
        worker: dict[str, object] = {"worker_id": self.worker_id}
        # In one transaction: a claim without its worker's row would be an orphan.
        calls: list[Call] = [
            ("release_lost_claims", {**worker, "known": "{}"}),
            ("deregister_worker", worker),
        ]
        self._work.submit(calls, lambda reply: None, now)
        while self._work.busy and now < until and self._work.check(now) is None:
            with selectors.SelectSelector() as selector:
                selector.register(self._work.fileno(), selectors.EVENT_READ)
                selector.select(0.2)
            now = time.monotonic()
            if self._work.ready(now) is not None:
                break


def _channels(queues: Sequence[str]) -> list[str]:
    """Return the channels on which workers of these queues are woken; as pgtasks.wake_channel does."""
    return ["pgtasks_" + hashlib.sha256(queue.encode()).hexdigest()[:40] for queue in queues]
