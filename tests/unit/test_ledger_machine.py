"""The ledger keeps its promises through any order of events; `worker_model` checks each command."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgtasks.worker import ledger
from pgtasks.worker.messages import Order, Trust
from tests.unit.worker_fakes import QUEUES, UNSTORABLE, FakeChild, Sent
from tests.unit.worker_model import HELD, TASKS, Place, World, weight

# What a task takes, in seconds: short ones are sent many at a time, long ones alone.
SECONDS = {"short": 0.0001, "medium": 0.004, "long": 1.0}
USUAL = 0.01

# How far things go on by themselves after each step: not at all (the next thing happens in the same
# cycle), one cycle, or so many answers, up to all.
LUCKS = [0, 1, 1, 1, 2, 3, 9, 9]
CALAMITIES = [
    *["break link"] * 8,
    *["refuse"] * 6,
    *["die"] * 5,
    *["doubt lease"] * 4,
    "lose lease",
    "stop",
]
NAMES = sorted([*TASKS, *SECONDS, *SECONDS])
KINDS = ["succeeded", "succeeded", "failed", "retry", "unstorable"]
OBEYS = ["end", "end", "ignore", "retry"]
PRIORITIES = [0, 0, 5, -3]
CRASHES = [0, 0, 0, 2, 3]
DELAYS = [None, None, None, 0.2, 20.0]
OPTIONS = [None, None, None, '{"time_limit":3.5}']
PAUSES = [0.001, 0.01, 0.1, 1.0, 2.0, 5.0, 6.0, 30.0]
POOLS = ["prefork"] * 4 + ["threads"] * 2 + ["solo"]

lucks = st.sampled_from(LUCKS)
positions = st.integers(0, 5)


def pick(children: list[FakeChild], which: int) -> FakeChild:
    return children[which % len(children)]


class LedgerMachine(RuleBasedStateMachine):
    """A worker that everything happens to; nothing here is cleverer than the parent."""

    @initialize(
        pool=st.sampled_from(POOLS),
        concurrency=st.integers(1, 3),
        async_concurrency=st.sampled_from([1, 2, 10]),
        prefetch=st.sampled_from([1, 3, 500]),
        claim_batch=st.sampled_from([1, 4, 500]),
        listen=st.booleans(),
        measured=st.booleans(),
        hurries=st.booleans(),
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    )
    def begin(
        self,
        pool: str,
        concurrency: int,
        async_concurrency: int,
        prefetch: int,
        claim_batch: int,
        listen: bool,
        measured: bool,
        hurries: bool,
        names: list[str],
    ) -> None:
        self.names = names  # of the tasks that are enqueued
        self.hurries = hurries  # at the end: is stopped with work in hand
        self.world = World(
            TASKS,
            pool=pool,
            concurrency=1 if pool == "solo" else concurrency,
            async_concurrency=1 if pool == "solo" else async_concurrency,
            prefetch=prefetch,
            claim_batch=claim_batch,
            listen=listen,
            grace=10.0,
        )
        if measured:
            for lane in self.world.ledger.lanes:
                for task in lane.kind.tasks:
                    lane.pace.measure(task, SECONDS.get(task, USUAL))
                    lane.pace.measure("short", SECONDS["short"])
        self.empty_weight = weight(self.world.ledger)
        self.world.connect()
        self.world.cycle()
        self.go_on(9)

    def go_on(self, luck: int) -> None:
        world = self.world
        if luck == 0:
            return
        world.cycle()
        if luck > 1:
            while world.unborn:
                world.start_child()
            for child in world.dying():
                world.reap(child.number)
            for _ in range(len(world.units) if luck == 9 else min(luck, len(world.units))):
                world.answer()
            if not world.link_up and luck > 2:
                world.connect()
            world.cycle()

    @rule(
        queue=st.sampled_from(QUEUES),
        count=st.integers(1, 6),
        task=positions,
        priority=st.sampled_from(PRIORITIES),
        crashes=st.sampled_from(CRASHES),
        delay=st.sampled_from(DELAYS),
        options=st.sampled_from(OPTIONS),
        expired=st.sampled_from([False] * 9 + [True]),
        late=st.booleans(),
        luck=lucks,
    )
    def enqueue(
        self,
        queue: str,
        count: int,
        task: int,
        priority: int,
        crashes: int,
        delay: float | None,
        options: str | None,
        expired: bool,
        late: bool,
        luck: int,
    ) -> None:
        start_at = None if delay is None else self.world.now + delay
        for _ in range(count):
            self.world.database.insert(
                queue,
                late=late,
                task=self.names[task % len(self.names)],
                priority=priority,
                crashes=crashes,
                start_at=start_at,
                options=options,
                expired=expired,
            )
        self.world.wake(queue)
        self.go_on(luck)

    @precondition(lambda self: self.world.living())
    @rule(
        which=positions,
        begun=st.sampled_from([1, 1, 1, 3, 10]),
        track=st.integers(0, 1),
        side_by_side=st.booleans(),
        job=positions,
        left=st.sampled_from([0, 1, 1, 2, 10, 10]),
        kind=st.sampled_from(KINDS),
        delay=st.sampled_from([0.0, 0.5]),
        slower=st.sampled_from([1, 1, 100]),
        obeys=st.sampled_from(OBEYS),
        session=st.sampled_from([True, True, False]),
        commits=st.booleans(),
        reports=st.sampled_from([True, True, False]),
        twice=st.booleans(),
        dies=st.sampled_from([False] * 4 + [True]),
        luck=lucks,
    )
    def run_jobs(
        self,
        which: int,
        begun: int,
        track: int,
        side_by_side: bool,
        job: int,
        left: int,
        kind: str,
        delay: float,
        slower: int,
        obeys: str,
        session: bool,
        commits: bool,
        reports: bool,
        twice: bool,
        dies: bool,
        luck: int,
    ) -> None:
        """Let a child go on: begin jobs, end all but some, perhaps commit, report, die."""
        child = pick(self.world.living(), which)
        for _ in range(begun):
            if not side_by_side:
                self._end_jobs(child, 0, job, kind, delay, slower, obeys)
            self.world.begin(child, track, session)
        self._end_jobs(child, left, job, kind, delay, slower, obeys)
        if commits:
            for sent in child.running:
                self.world.commit(sent)
        if reports:
            self.world.report(child.number, twice)
        if dies:
            child.dead = True
        self.go_on(luck)

    def _end_jobs(
        self,
        child: FakeChild,
        left: int,
        job: int,
        kind: str,
        delay: float,
        slower: int,
        obeys: str,
    ) -> None:
        while len(child.running) > left:
            sent = child.running[job % len(child.running)]
            seconds = SECONDS.get(sent.task, USUAL) * slower
            if sent.orders and obeys != "ignore":
                self.world.end(child, job, seconds, _obedient(sent, obeys), None, delay)
            elif kind == "unstorable":
                self.world.end(child, job, seconds, result=UNSTORABLE)
            else:
                after = delay if kind == "retry" else None
                self.world.end(child, job, seconds, kind, None, after)

    @rule(
        chosen=st.lists(positions, min_size=1, max_size=6),
        interrupt=st.booleans(),
        luck=lucks,
    )
    def cancel(self, chosen: list[int], interrupt: bool, luck: int) -> None:
        """Cancel jobs that this worker has, or had."""
        running = [job.id for job in self.world.database.jobs.values() if job.token is not None]
        if running:
            self.world.cancel({running[one % len(running)] for one in chosen}, interrupt)
        self.go_on(luck)

    @rule(
        queues=st.sampled_from([(), (), QUEUES[:1]]),
        tasks=st.lists(positions, max_size=2),
        luck=lucks,
    )
    def hold_back(self, queues: Sequence[str], tasks: list[int], luck: int) -> None:
        """Pause something, and let go what was paused before."""
        self.world.hold_back(queues, {self.names[one % len(self.names)] for one in tasks})
        self.go_on(luck)

    @rule(locked=st.sampled_from([0, 0, 1, 3]), luck=lucks)
    def answer(self, locked: int, luck: int) -> None:
        """Let the server answer one thing; others have locked some rows."""
        if self.world.units:
            self.world.answer(locked=locked)
        self.go_on(luck)

    @rule(what=st.sampled_from(CALAMITIES), which=positions, luck=lucks)
    def suffer(self, what: str, which: int, luck: int) -> None:
        world = self.world
        world.cycle()
        match what:
            case "break link" if world.link_up:
                world.break_link(committed=which)
            case "refuse":
                for _ in range(min(which + 1, len(world.units))):
                    world.answer("again")
            case "die" if world.unborn:
                world.fail_to_start()
            case "die" if world.living():
                pick(world.living(), which).dead = True
            case "doubt lease":
                world.change_trust([Trust.UNSURE, Trust.LOST, Trust.SURE][which % 3])
            case "lose lease":
                world.lose_lease()
            case "stop" if which > 3 or world.ledger.aftermath.over_limit:
                world.stop(at_once=which == 4)
            case _:
                pass
        self.go_on(luck)

    @rule(seconds=st.sampled_from(PAUSES), luck=lucks)
    def wait(self, seconds: float, luck: int) -> None:
        self.world.now += seconds
        self.go_on(max(luck, 1))

    # What always holds

    @invariant()
    def containers_hold_no_more_than_what_is_held(self) -> None:
        if hasattr(self, "world"):
            world = self.world
            live = [one for one in world.claimed.values() if one.place in (*HELD, Place.LEAVING)]
            tokens = len(world.database.claims)
            most = self.empty_weight + 60 * len(world.ledger.lanes)
            assert weight(world.ledger) <= most + 16 * len(live) + 4 * tokens

    @invariant()
    def what_is_due_is_done_and_the_ledger_does_not_wake_for_nothing(self) -> None:
        if hasattr(self, "world") and not self.world.events and not self.world.ledger.done:
            world = self.world
            world.cycle()
            if world.ledger.next_wake(world.now) <= world.now:  # to look at the slates
                world.cycle()
            assert world.ledger.next_wake(world.now) > world.now, "the parent would spin"
            world.check_duties()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.cycle()
        world.change_trust(Trust.SURE)
        world.hold_back()
        if not world.stop_asked and not self.hurries:
            world.run_until(
                lambda: not world.database.jobs and not world.units and not world.events
            )
            assert world.ledger.crew.short_in_pipes == 0
            assert all(child.load == 0 for child in world.ledger.crew.members.values())
            self._check_nothing_is_kept()
        world.stop_and_check()
        assert world.ledger.phase is ledger.Phase.STOPPED
        self._check_nothing_is_kept()

    def _check_nothing_is_kept(self) -> None:
        one = self.world.ledger
        after = one.aftermath
        kept = [
            after.suspects,
            after.over_limit,
            after.deciding,
            after.settling,
            one.cancelled,
            one.gates.held_back,
        ]
        assert not any(kept), kept
        assert not one.limits.active
        assert [lane.held() for lane in one.lanes] == [0] * len(one.lanes)
        assert not one.outbox.claims


def _obedient(sent: Sent, obeys: str) -> str:
    if Order.CANCEL in sent.orders:
        return "cancelled"
    return "retry" if obeys == "retry" else "failed"


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    # Shrinking takes minutes; to see a short example, add Phase.shrink and wait.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def walk(machine: LedgerMachine, chance: Random, steps: int) -> None:
    """Take random steps: deeper than hypothesis goes, which tries short ways first."""
    machine.begin(
        pool=chance.choice(POOLS),
        concurrency=chance.randint(1, 3),
        async_concurrency=chance.choice([1, 2, 2, 10]),
        prefetch=chance.choice([1, 3, 500]),
        claim_batch=chance.choice([1, 4, 500]),
        listen=chance.random() < 0.5,
        measured=chance.random() < 0.5,
        hurries=chance.random() < 0.5,
        names=[chance.choice(NAMES) for _ in range(chance.randint(1, 4))],
    )
    deadly = chance.choice([0.02, 0.1, 0.2])
    left = chance.choice([[0, 1, 1, 2], [10, 10, 10, 1]])
    weights = [3, 10, chance.choice([0, 1, 3]), 4, chance.choice([1, 3]), chance.choice([1, 2, 6])]
    for _ in range(steps):
        what = chance.choices(["enqueue", "run", "cancel", "answer", "suffer", "wait"], weights)[0]
        luck = chance.choice(LUCKS)
        if what == "enqueue" and len(machine.world.database.jobs) < 60:
            machine.enqueue(
                queue=chance.choice(QUEUES),
                count=chance.randint(1, 6),
                task=chance.randrange(6),
                priority=chance.choice(PRIORITIES),
                crashes=chance.choice(CRASHES),
                delay=chance.choice(DELAYS),
                options=chance.choice(OPTIONS),
                expired=chance.random() < 0.1,
                late=chance.random() < 0.5,
                luck=luck,
            )
        elif what == "run" and machine.world.living():
            machine.run_jobs(
                which=chance.randrange(6),
                begun=chance.choice([1, 1, 3, 10]),
                track=chance.randrange(2),
                side_by_side=chance.random() < 0.5,
                job=chance.randrange(6),
                left=chance.choice(left),
                kind=chance.choice(KINDS),
                delay=chance.choice([0.0, 0.5]),
                slower=chance.choice([1, 1, 100]),
                obeys=chance.choice(OBEYS),
                session=chance.random() < 0.7,
                commits=chance.random() < 0.3,
                reports=chance.random() < 0.7,
                twice=chance.random() < 0.5,
                dies=chance.random() < deadly,
                luck=luck,
            )
        elif what == "cancel":
            chosen = [chance.randrange(6) for _ in range(chance.choice([1, 1, 2, 6]))]
            machine.cancel(chosen=chosen, interrupt=chance.random() < 0.5, luck=luck)
        elif what == "answer":
            machine.answer(locked=chance.choice([0, 0, 1, 3]), luck=luck)
        elif what == "suffer":
            calamity = chance.choice(CALAMITIES)
            world = machine.world
            if world.ledger.aftermath.over_limit and chance.random() < 0.3:
                calamity = "stop"  # with something left to decide
            if calamity != "stop" or world.ledger.aftermath.over_limit or chance.random() < 0.1:
                machine.suffer(what=calamity, which=chance.randrange(6), luck=luck)
        else:
            machine.wait(seconds=chance.choice(PAUSES), luck=luck)
        machine.containers_hold_no_more_than_what_is_held()
        machine.what_is_due_is_done_and_the_ledger_does_not_wake_for_nothing()
        if machine.world.ledger.done:
            break
    machine.teardown()


@pytest.mark.parametrize("seed", range(40))
def test_a_long_way_through_all_that_can_happen(seed: int):
    walk(LedgerMachine(), Random(seed), steps=250)
