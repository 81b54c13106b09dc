"""The ledger keeps its promises through any order of events; `worker_model` checks each command."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgtasks.worker import ledger
from tests.unit.worker_model import HELD, QUEUES, UNSTORABLE, FakeChild, Place, World, weight

# What a task takes, in seconds: short ones are sent many at a time, long ones alone.
SECONDS = {"short": 0.0001, "medium": 0.004, "long": 1.0}

chances = st.integers(0, 9)
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
    )
    def begin(self, concurrency: int, prefetch: int, claim_batch: int, listen: bool) -> None:
        self.world = World(
            concurrency=concurrency,
            prefetch=prefetch,
            claim_batch=claim_batch,
            listen=listen,
            grace=10.0,
        )
        self.world.connect()
        self.world.cycle()

    def cycle(self, later: int) -> None:
        """Let the parent go round now, or (one time in five) with what happens next."""
        if later < 8:
            self.world.cycle()

    # The database

    @rule(
        queue=st.sampled_from(QUEUES),
        count=st.integers(1, 6),
        task=st.sampled_from(sorted(SECONDS)),
        priority=st.sampled_from([0, 0, 5, -3]),
        crashes=st.sampled_from([0, 0, 0, 2, 3]),
        delay=st.sampled_from([None, None, None, 0.2, 20.0]),
        expired=chances,
        late=st.booleans(),
        wakes=st.booleans(),
        later=chances,
    )
    def enqueue(
        self,
        queue: str,
        count: int,
        task: str,
        priority: int,
        crashes: int,
        delay: float | None,
        expired: int,
        late: bool,
        wakes: bool,
        later: int,
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
                expired=expired == 0,
            )
        if wakes:
            self.world.wake(queue)
        self.cycle(later)

    @precondition(lambda self: self.world.units)
    @rule(
        count=st.integers(1, 6), how=chances, locked=st.sampled_from([0, 0, 0, 1, 3]), later=chances
    )
    def answer(self, count: int, how: int, locked: int, later: int) -> None:
        for _ in range(min(count, len(self.world.units))):
            self.world.answer("again" if how == 0 else "ok", locked)
        self.cycle(later)

    @precondition(lambda self: self.world.link_up)
    @rule(committed=st.integers(0, 6), later=chances)
    def break_link(self, committed: int, later: int) -> None:
        self.world.break_link(committed)
        self.cycle(later)

    @precondition(lambda self: not self.world.link_up)
    @rule(later=chances)
    def connect(self, later: int) -> None:
        self.world.connect()
        self.cycle(later)

    @rule(really=chances, later=chances)
    def lose_lease(self, really: int, later: int) -> None:
        if really == 0:
            self.world.lose_lease()
            self.cycle(later)

    # The children

    @precondition(lambda self: self.world.unborn)
    @rule(lives=chances, later=chances)
    def start_child(self, lives: int, later: int) -> None:
        if lives:
            self.world.start_child()
        else:
            self.world.fail_to_start()
        self.cycle(later)

    @precondition(lambda self: self.world.living())
    @rule(which=positions, count=st.integers(1, 3))
    def begin_jobs(self, which: int, count: int) -> None:
        child = pick(self.world.living(), which)
        for _ in range(count):
            child.begin()

    @precondition(lambda self: any(child.running for child in self.world.living()))
    @rule(
        which=positions,
        job=positions,
        kind=st.sampled_from(["succeeded", "succeeded", "failed", "retry", "unstorable"]),
        delay=st.sampled_from([0.0, 0.5]),
        slower=st.sampled_from([1, 1, 100]),
        reports=st.booleans(),
        twice=st.booleans(),
        later=chances,
    )
    def end_jobs(
        self,
        which: int,
        job: int,
        kind: str,
        delay: float,
        slower: int,
        reports: bool,
        twice: bool,
        later: int,
    ) -> None:
        child = pick([child for child in self.world.living() if child.running], which)
        while child.running:
            task = child.running[job % len(child.running)].row.task
            seconds = SECONDS[task] * slower
            if kind == "unstorable":
                child.end(job, self.world.now, seconds, result=UNSTORABLE)
            else:
                child.end(
                    job, self.world.now, seconds, kind, None, delay if kind == "retry" else None
                )
        if reports:
            self.world.report(child.number, twice)
        self.cycle(later)

    @precondition(lambda self: self.world.living())
    @rule(which=positions)
    def die(self, which: int) -> None:
        pick(self.world.living(), which).dead = True

    @precondition(lambda self: self.world.dying())
    @rule(which=positions, twice=st.booleans(), later=chances)
    def reap(self, which: int, twice: bool, later: int) -> None:
        self.world.reap(pick(self.world.dying(), which).number, twice)
        self.cycle(later)

    # Signals and time

    @rule(really=chances, at_once=st.booleans(), later=chances)
    def stop(self, really: int, at_once: bool, later: int) -> None:
        if really == 0:
            self.world.stop(at_once)
            self.cycle(later)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 1.0, 6.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.cycle()

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
        if not world.stop_asked:
            world.run_until(
                lambda: not world.database.jobs and not world.units and not world.events
            )
            assert world.ledger.short_in_pipes == 0
            assert all(child.load == 0 for child in world.ledger.children.values())
        world.stop_and_check()
        assert world.ledger.phase is ledger.Phase.STOPPED


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    # Shrinking takes minutes; to see a short example, add Phase.shrink and wait.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
