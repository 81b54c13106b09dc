"""The ledger keeps its promises through any order of events; `worker_model` checks each command."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgtasks.worker import ledger
from tests.unit.worker_model import HELD, QUEUES, UNSTORABLE, FakeChild, Place, World, weight

# What a task takes, in seconds: short ones are sent many at a time, long ones alone.
SECONDS = {"short": 0.0001, "medium": 0.004, "long": 1.0}

# How far things go on by themselves after each step: not at all (the next thing happens in the same
# cycle), one cycle, or so many answers, up to all.
LUCKS = [0, 1, 1, 1, 2, 3, 9, 9]
CALAMITIES = ["break link"] * 8 + ["refuse"] * 6 + ["die"] * 5 + ["lose lease", "stop"]
KINDS = ["succeeded", "succeeded", "failed", "retry", "unstorable"]
PRIORITIES = [0, 0, 5, -3]
CRASHES = [0, 0, 0, 2, 3]
DELAYS = [None, None, None, 0.2, 20.0]
PAUSES = [0.001, 0.01, 0.1, 1.0, 6.0, 30.0]

lucks = st.sampled_from(LUCKS)
positions = st.integers(0, 5)


def pick(children: list[FakeChild], which: int) -> FakeChild:
    return children[which % len(children)]


class LedgerMachine(RuleBasedStateMachine):
    """A worker that everything happens to; nothing here is cleverer than the parent."""

    @initialize(
        concurrency=st.integers(1, 3),
        prefetch=st.sampled_from([1, 3, 500]),
        claim_batch=st.sampled_from([1, 4, 500]),
        listen=st.booleans(),
        measured=st.booleans(),
        hurries=st.booleans(),
    )
    def begin(
        self,
        concurrency: int,
        prefetch: int,
        claim_batch: int,
        listen: bool,
        measured: bool,
        hurries: bool,
    ) -> None:
        self.hurries = hurries  # at the end: is stopped with work in hand
        self.world = World(
            concurrency=concurrency,
            prefetch=prefetch,
            claim_batch=claim_batch,
            listen=listen,
            grace=10.0,
        )
        if measured:
            for task, seconds in SECONDS.items():
                self.world.ledger.lanes[0].pace.measure(task, seconds)
                self.world.ledger.lanes[0].pace.measure("short", SECONDS["short"])
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
        task=st.sampled_from(sorted(SECONDS)),
        priority=st.sampled_from(PRIORITIES),
        crashes=st.sampled_from(CRASHES),
        delay=st.sampled_from(DELAYS),
        expired=st.sampled_from([False] * 9 + [True]),
        late=st.booleans(),
        luck=lucks,
    )
    def enqueue(
        self,
        queue: str,
        count: int,
        task: str,
        priority: int,
        crashes: int,
        delay: float | None,
        expired: bool,
        late: bool,
        luck: int,
    ) -> None:
        start_at = None if delay is None else self.world.now + delay
        for _ in range(count):
            self.world.database.insert(
                queue,
                late=late,
                task=task,
                priority=priority,
                crashes=crashes,
                start_at=start_at,
                expired=expired,
            )
        self.world.wake(queue)
        self.go_on(luck)

    @precondition(lambda self: self.world.living())
    @rule(
        which=positions,
        begun=st.sampled_from([1, 1, 1, 3, 10]),
        side_by_side=st.sampled_from([False, False, False, True]),
        job=positions,
        left=st.integers(0, 1),
        kind=st.sampled_from(KINDS),
        delay=st.sampled_from([0.0, 0.5]),
        slower=st.sampled_from([1, 1, 100]),
        reports=st.sampled_from([True, True, False]),
        twice=st.booleans(),
        dies=st.sampled_from([False] * 4 + [True]),
        luck=lucks,
    )
    def run_jobs(
        self,
        which: int,
        begun: int,
        side_by_side: bool,
        job: int,
        left: int,
        kind: str,
        delay: float,
        slower: int,
        reports: bool,
        twice: bool,
        dies: bool,
        luck: int,
    ) -> None:
        """Let a child go on: begin jobs, end all but some, perhaps report, perhaps die."""
        child = pick(self.world.living(), which)
        for _ in range(begun):
            if not side_by_side:
                self._end_jobs(child, 0, job, kind, delay, slower)
            child.begin()
        self._end_jobs(child, left, job, kind, delay, slower)
        if reports:
            self.world.report(child.number, twice)
        if dies:
            child.dead = True
        self.go_on(luck)

    def _end_jobs(
        self, child: FakeChild, left: int, job: int, kind: str, delay: float, slower: int
    ) -> None:
        while len(child.running) > left:
            seconds = SECONDS[child.running[job % len(child.running)].row.task] * slower
            if kind == "unstorable":
                child.end(job, self.world.now, seconds, result=UNSTORABLE)
            else:
                after = delay if kind == "retry" else None
                child.end(job, self.world.now, seconds, kind, None, after)

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
            case "lose lease":
                world.lose_lease()
            case "stop" if which > 3:
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
            live = [
                one for one in self.world.claimed.values() if one.place in (*HELD, Place.LEAVING)
            ]
            tokens = len(self.world.database.claims)
            assert weight(self.world.ledger) <= 120 + 12 * len(live) + 4 * tokens

    @invariant()
    def the_ledger_does_not_wake_at_once_for_nothing(self) -> None:
        if hasattr(self, "world") and not self.world.events and not self.world.ledger.done:
            self.world.cycle()
            wake = self.world.ledger.next_wake(self.world.now)
            assert wake > self.world.now, "the parent would spin"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.cycle()
        if not world.stop_asked and not self.hurries:
            world.run_until(
                lambda: not world.database.jobs and not world.units and not world.events
            )
            assert world.ledger.crew.short_in_pipes == 0
            assert all(child.load == 0 for child in world.ledger.crew.members.values())
        world.stop_and_check()
        assert world.ledger.phase is ledger.Phase.STOPPED


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
        concurrency=chance.randint(1, 3),
        prefetch=chance.choice([1, 3, 500]),
        claim_batch=chance.choice([1, 4, 500]),
        listen=chance.random() < 0.5,
        measured=chance.random() < 0.5,
        hurries=chance.random() < 0.5,
    )
    for _ in range(steps):
        what = chance.choices(["enqueue", "run", "answer", "suffer", "wait"], [3, 10, 4, 3, 2])[0]
        luck = chance.choice(LUCKS)
        if what == "enqueue" and len(machine.world.database.jobs) < 60:
            machine.enqueue(
                queue=chance.choice(QUEUES),
                count=chance.randint(1, 6),
                task=chance.choice(sorted(SECONDS)),
                priority=chance.choice(PRIORITIES),
                crashes=chance.choice(CRASHES),
                delay=chance.choice(DELAYS),
                expired=chance.random() < 0.1,
                late=chance.random() < 0.5,
                luck=luck,
            )
        elif what == "run" and machine.world.living():
            machine.run_jobs(
                which=chance.randrange(6),
                begun=chance.choice([1, 1, 3, 10]),
                side_by_side=chance.random() < 0.2,
                job=chance.randrange(6),
                left=chance.randint(0, 1),
                kind=chance.choice(KINDS),
                delay=chance.choice([0.0, 0.5]),
                slower=chance.choice([1, 1, 100]),
                reports=chance.random() < 0.7,
                twice=chance.random() < 0.5,
                dies=chance.random() < 0.1,
                luck=luck,
            )
        elif what == "answer":
            machine.answer(locked=chance.choice([0, 0, 1, 3]), luck=luck)
        elif what == "suffer":
            calamity = chance.choice(CALAMITIES)
            if calamity != "stop" or chance.random() < 0.1:
                machine.suffer(what=calamity, which=chance.randrange(6), luck=luck)
        else:
            machine.wait(seconds=chance.choice(PAUSES), luck=luck)
        machine.containers_hold_no_more_than_what_is_held()
        machine.the_ledger_does_not_wake_at_once_for_nothing()
        if machine.world.ledger.done:
            break
    machine.teardown()


@pytest.mark.parametrize("seed", range(40))
def test_a_long_way_through_all_that_can_happen(seed: int):
    walk(LedgerMachine(), Random(seed), steps=250)
