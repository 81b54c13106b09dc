"""Effects of transactional tasks happen exactly once, whatever dies or breaks while they run."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look, Scale, through
from tests.fixtures import chaos_app
from tests.fixtures.checker import check, check_effects
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.proxy import Proxy
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, until, wait_until_finished

pytestmark = pytest.mark.chaos

CHAOS = "tests.fixtures.chaos_app"


class Effects:
    """Jobs of `book` that run while something is broken again and again."""

    def __init__(self, runs: Runs, look: Look, scale: Scale, rng: random.Random) -> None:
        self._runs, self._look, self._rng = runs, look, rng
        self._number = scale(150, most=3000)
        look.open().execute("drop table if exists public.effect")
        look.open().execute(chaos_app.EFFECTS)

    def book(
        self, break_something: Callable[[], None], crashes: set[str], most: int = 1_000_000
    ) -> int:
        """Run the jobs, break something every few moments, and check; returns how often."""
        results = chaos_app.app.enqueue_many(
            chaos_app.book.s(self._runs.path, 0.02) for _ in range(self._number)
        )
        times = 0
        deadline = time.monotonic() + 40 + self._number / 5
        while self._look.one("select exists (select from pgtasks.job)"):
            until(time.monotonic() + self._rng.uniform(0.05, 0.4))
            if times < most:
                break_something()
                times += 1
            assert time.monotonic() < deadline, self._runs.all()[-5:]
        wait_until_finished(self._look.open(), len(results))
        eventually(partial(_no_claims, self._look), 15.0)

        verdict = check(self._look.open(), self._runs, {result.id for result in results})
        verdict.assert_sound()
        assert verdict.finals.keys() <= {"succeeded", *crashes}, verdict.errors
        check_effects(self._look.open(), "effect")
        booked = self._look.one("select count(*) from public.effect")
        assert booked == verdict.finals["succeeded"]
        return times


@pytest.fixture
def effects(
    server: TemporaryServer, runs: Runs, look: Look, scale: Scale, rng: random.Random
) -> Effects:
    return Effects(runs, look, scale, rng)


def _no_claims(look: Look) -> None:
    """What ended in its own transaction leaves its claim to the next batch, or to a look for lost ones."""
    assert look.one("select count(*) from pgtasks.claim") == 0


def test_effects_happen_once_while_children_are_killed(
    workers: Workers, effects: Effects, rng: random.Random
) -> None:
    worker = workers.start(CHAOS, concurrency=4)

    def kill_a_child() -> None:
        children = worker.children()
        if children:
            os.kill(rng.choice(children), signal.SIGKILL)

    assert effects.book(kill_a_child, {"quarantined"})
    worker.has_children(4)
    assert worker.stop() == 0


@pytest.mark.long
def test_effects_happen_once_while_parents_are_killed(
    workers: Workers, effects: Effects, rng: random.Random
) -> None:
    alive = [workers.start(CHAOS, concurrency=2, beat=0.2) for _ in range(2)]

    def kill_a_parent() -> None:
        old = alive.pop(rng.randrange(2))
        old.kill()
        alive.append(workers.start(CHAOS, concurrency=2, beat=0.2))

    assert effects.book(kill_a_parent, {"quarantined"})
    assert [worker.stop() for worker in alive] == [0, 0]


def test_effects_happen_once_while_wires_are_cut(
    workers: Workers, effects: Effects, proxy: Proxy, rng: random.Random
) -> None:
    """Also those of children, on which the transactions are."""
    worker = workers.start(CHAOS, concurrency=4, environment=through(proxy))

    def cut_a_wire() -> None:
        wires = proxy.wires()
        if wires:
            rng.choice(wires).reset()

    assert effects.book(cut_a_wire, {"failed"})
    assert worker.stop() == 0


@pytest.mark.long
def test_effects_happen_once_while_the_server_is_restarted(
    server: TemporaryServer,
    workers: Workers,
    effects: Effects,
    look: Look,
    runs: Runs,
    scale: Scale,
    measured: Measured,
) -> None:
    worker = workers.start(CHAOS, concurrency=4)
    slowest = 0.0

    def restart() -> None:
        nonlocal slowest
        look.close()
        server.stop("immediate")
        server.start()
        up_at = time.monotonic()
        eventually(partial(_goes_on, runs, look, up_at))
        slowest = max(slowest, time.monotonic() - up_at)

    effects.book(restart, {"failed"}, most=scale(3, most=40))
    measured("server restarted under transactional jobs: they run again after", slowest)
    assert worker.stop() == 0


def _goes_on(runs: Runs, look: Look, moment: float) -> None:
    left = look.open().execute("select id::text, attempt, token::text, start_at from pgtasks.job")
    assert any(run.began > moment for run in runs.all()) or not left.fetchall()


def test_commit_whose_reply_is_lost_is_known_and_done_once(
    workers: Workers, runs: Runs, look: Look, proxy: Proxy, effects: Effects
) -> None:
    worker = workers.start(CHAOS, concurrency=1, environment=through(proxy))
    first = chaos_app.book.delay(runs.path)
    first.get(timeout=10)

    with proxy.lose_reply(b"COMMIT") as trap:
        second = chaos_app.book.delay(runs.path)
        assert trap.lost.wait(10)
    wait_until_finished(look.open(), 2)
    eventually(partial(_no_claims, look), 15.0)

    check(look.open(), runs, {first.id, second.id}).assert_sound()
    check_effects(look.open(), "effect")
    assert look.one("select count(*) from public.effect where job_id = %s", second.id) == 1
    assert (str(second.job().state), second.job().attempt) == ("succeeded", 1)
    assert worker.stop() == 0
