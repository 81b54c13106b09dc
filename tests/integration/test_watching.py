"""``pgtasks bundles show --watch``: follows a bundle and its running members until it stops."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from pgtasks import App, group
from pgtasks_cli.watching import MEMBERS_SHOWN, Pace, Watch, picture
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import Held, SimulatedWorker


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


class Fleet:
    """A bundle of which some members run."""

    def __init__(self, echo: Any, worker: SimulatedWorker, total: int, running: int) -> None:
        self.worker = worker
        self.result = group([echo.s(n) for n in range(total)]).apply()
        self.id = self.result.id
        self.held: list[Held] = worker.claim(limit=running)
        worker.beat(running=[one.id for one in self.held])

    def say(self, held: Held, **said: Any) -> None:
        self.worker.execute(
            "record_progress",
            id=[held.id],
            token=[held.token],
            progress=[json.dumps(said)],
            age=[0.0],
        )

    def end(self, *held: Held, outcome: str = "succeeded") -> None:
        """Finish these, and let all the others succeed that wait."""
        self.worker.finish(held, outcome)
        while more := self.worker.claim(limit=100):
            self.worker.succeed(more)


def shown(watch: Watch, lines: int = 20, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(picture(watch, lines))
    return console.export_text()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


# What is drawn


def test_the_picture_has_the_counters_and_each_running_member_with_its_own_progress(
    app: App, echo: Any, worker: SimulatedWorker
):
    fleet = Fleet(echo, worker, total=10, running=4)
    worker.succeed(fleet.held[0])
    worker.fail(fleet.held[1])
    fleet.say(fleet.held[2], done=12, total=40, message="reading\x1b[31m")
    clock = Clock()
    watch = Watch(app, fleet.result.bundle(), clock)

    clock.now += 1.0
    watch.look()
    text = shown(watch)

    top, *members = text.splitlines()
    assert "2/10 (20 %)" in top
    assert "1 failed" in top
    assert len(members) == 2
    assert re.search(rf"{fleet.held[2].id}.*echo.*━.*12/40 \(30 %\) reading\\x1b\[31m", members[0])
    assert re.search(rf"{fleet.held[3].id}.*echo.*running", members[1])
    assert "\x1b" not in text


def test_the_picture_fits_the_terminal(app: App, echo: Any, worker: SimulatedWorker):
    fleet = Fleet(echo, worker, total=30, running=20)
    watch = Watch(app, fleet.result.bundle())
    watch.look()

    assert len(watch.members) == MEMBERS_SHOWN + 1
    assert len(shown(watch).splitlines()) == 1 + MEMBERS_SHOWN + 1
    few = shown(watch, lines=3).splitlines()
    assert len(few) == 1 + 3 + 1
    assert few[-1].startswith("… and more")


def test_counters_are_looked_at_more_often_than_members(
    app: App, echo: Any, worker: SimulatedWorker
):
    fleet = Fleet(echo, worker, total=2, running=1)
    clock = Clock()
    watch = Watch(app, fleet.result.bundle(), clock)
    watch.look()
    worker.succeed(fleet.held)

    clock.now += 0.5
    watch.look()
    assert (watch.done, len(watch.members)) == (1, 1)
    clock.now += 0.5
    watch.look()
    assert (watch.done, len(watch.members)) == (1, 0)


# The rate


def test_the_rate_is_that_of_the_last_seconds():
    pace = Pace()
    assert pace.text(5) is None
    for second in range(60):
        pace.see(100 * min(second, 30), float(second))
    assert pace.rate == 0.0
    assert pace.text(5) is None

    pace.see(3050, 60.0)

    assert pace.rate == pytest.approx(5.0, rel=0.1)
    assert pace.text(50) == f"{pace.rate:.1f}/s, 10 s left"


def test_members_that_are_started_again_make_no_negative_rate():
    pace = Pace()
    pace.see(10, 0.0)
    pace.see(20, 1.0)
    pace.see(5, 2.0)

    assert pace.rate is None
    pace.see(6, 3.0)
    assert pace.rate == 1.0


# Following


Waits = Callable[..., None]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Lets things happen between two looks, instead of waiting: ``waits(first, second, …)``."""

    def waits(*happenings: Callable[[], object]) -> None:
        following = iter(happenings)
        monkeypatch.setattr(Watch, "wait", lambda watch: next(following)())

    return waits


def test_lines_tell_of_each_change_and_a_success_is_exit_code_0(
    command: Command, echo: Any, worker: SimulatedWorker, waits: Waits, monkeypatch: Any
):
    monkeypatch.setattr("pgtasks_cli.watching.MEMBERS_EVERY", 0.0)
    fleet = Fleet(echo, worker, total=3, running=2)
    first, second = fleet.held
    fleet.say(first, done=1, total=2, message="half")
    waits(
        lambda: None,
        lambda: fleet.say(first, done=2, total=2, message="all"),
        lambda: worker.succeed(second),
        lambda: fleet.end(first),
    )

    result = command("bundles", "show", fleet.id, "--watch")

    counts, *rest = result.stderr.splitlines()
    assert counts == "0 of 3 done, 0 failed"
    assert rest[:2] == [f"  {first.id} echo 1/2 (50 %) half", f"  {first.id} echo 2/2 (100 %) all"]
    assert rest[2].startswith("1 of 3 done, 0 failed, ")
    assert len(rest) == 3
    assert "state     succeeded" in result.stdout


def test_a_failed_member_is_exit_code_1_and_json_stays_json(
    command: Command, echo: Any, worker: SimulatedWorker, waits: Waits
):
    fleet = Fleet(echo, worker, total=3, running=1)
    waits(lambda: fleet.end(*fleet.held, outcome="failed"))

    result = command("bundles", "show", fleet.id, "--watch", "--json", code=1)

    document = json.loads(result.stdout)
    assert (document["state"], document["failed"]) == ("failed", 1)
    assert "1 job of the bundle did not succeed" in result.stderr


# On a terminal


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, dsn: str, *arguments: str) -> None:
        self.text = ""
        self._end, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pgtasks_cli", *arguments],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**os.environ, "PGTASKS_DSN": dsn, "TERM": "xterm", "COLUMNS": "100"},
            start_new_session=True,
        )
        os.close(end)

    def read(self, until: Callable[[str], bool]) -> str:
        """Read until the text is as wanted, or the program ends."""
        deadline = time.monotonic() + 20.0
        while not until(self.text):
            assert time.monotonic() < deadline, self.text
            if not select.select([self._end], [], [], 0.2)[0]:
                continue
            try:
                self.text += os.read(self._end, 1 << 16).decode(errors="replace")
            except OSError:  # its other end is closed
                break
        return self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def terminal(dsn: str) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(dsn, *arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_a_terminal_shows_what_moves_and_then_the_outcome(
    echo: Any, worker: SimulatedWorker, terminal: Callable[..., Terminal]
):
    fleet = Fleet(echo, worker, total=3, running=1)
    fleet.say(fleet.held[0], done=1, total=2, message="half")
    screen = terminal("bundles", "show", fleet.id, "--watch")
    screen.read(lambda text: "1/2 (50 %) half" in text)

    fleet.say(fleet.held[0], done=2, total=2, message="all")
    screen.read(lambda text: "2/2 (100 %) all" in text)
    fleet.end(*fleet.held)

    screen.read(lambda text: "succeeded" in text)
    assert screen.process.wait(10) == 0


def test_control_c_leaves_quietly(
    echo: Any, worker: SimulatedWorker, terminal: Callable[..., Terminal]
):
    fleet = Fleet(echo, worker, total=3, running=1)
    screen = terminal("bundles", "show", fleet.id, "--watch")
    before = len(screen.read(lambda text: "0/3 (0 %)" in text))

    screen.process.send_signal(signal.SIGINT)
    text = screen.read(lambda text: False)[before:]

    assert screen.process.wait(10) == 130
    assert "Abort" not in text
    assert "Traceback" not in text
    assert "\x1b[?25h" in text  # the cursor is back
    assert fleet.result.bundle().stopped_at is None
