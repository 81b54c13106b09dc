"""Follows a bundle until it stops: on a terminal a picture that moves, elsewhere a line for each change."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgtasks_cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgtasks import App, Bundle, Job
    from pgtasks_cli.session import Session

# How often the counters are looked at, in seconds; and the members, whose progress is written once a second.
WATCH_EVERY = 0.25
MEMBERS_EVERY = 1.0
# How many running members are shown at most.
MEMBERS_SHOWN = 12
# Over how many seconds the rate is taken.
RATE_OVER = 10.0
BAR_WIDTH = 20


class Pace:
    """How many members end in a second, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, done: int, now: float) -> None:
        """Take note of how many had ended at a moment; fewer than before if some were started again."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Members a second; None: too early to say."""
        if len(self._seen) < 2:
            return None
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began) if now > began else None

    def text(self, remaining: int) -> str | None:
        """Return the rate, and how long the rest takes at it."""
        rate = self.rate
        if not rate:
            return None
        return f"{rate:,.{0 if rate >= 100 else 1}f}/s, {output.rough(remaining / rate)} left"


class Watch:
    """One look after another at a bundle.

    Args:
        app: whose database.
        bundle: as it was found.
        clock, sleep: for tests.
    """

    def __init__(
        self,
        app: App,
        bundle: Bundle,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bundle = bundle
        self.members: Sequence[Job] = ()
        self.pace = Pace()
        self._app = app
        self._clock = clock
        self._sleep = sleep
        self._members_at = 0.0
        self.pace.see(self.done, clock())

    @property
    def done(self) -> int:
        """How many members have ended."""
        return self.bundle.total - self.bundle.remaining

    def look(self) -> None:
        """Look once."""
        from pgtasks.db import operations

        now = self._clock()
        self.bundle = self._app.bundle(self.bundle.id)
        self.pace.see(self.done, now)
        if now >= self._members_at:
            self._members_at = now + MEMBERS_EVERY
            self.members = self._app.run(
                operations.list_running_members(self.bundle.id, MEMBERS_SHOWN + 1)
            )

    def wait(self) -> None:
        """Wait until the next look is due."""
        self._sleep(WATCH_EVERY)

    @property
    def over(self) -> bool:
        """Whether the bundle has stopped."""
        return self.bundle.stopped_at is not None


def follow(session: Session, app: App, bundle: Bundle) -> Bundle:
    """Show how a bundle goes on until it stops, and return its last row. Ctrl-C leaves."""
    watch = Watch(app, bundle)
    if output.is_terminal() and not session.json:
        draw(session, watch)
    else:
        tell(session, watch)
    return watch.bundle


def tell(session: Session, watch: Watch) -> None:
    """Say on stderr what changed, line by line."""
    counted: tuple[int, int] | None = None
    said: dict[str, str] = {}
    while True:
        watch.look()
        if watch.over:
            return
        if counted != (watch.done, watch.bundle.failed):
            counted = (watch.done, watch.bundle.failed)
            output.remark(session, counters(watch))
        texts = {job.id: job.progress.text() for job in watch.members if job.progress}
        for job in watch.members:
            if job.id in texts and texts[job.id] != said.get(job.id):
                output.remark(session, f"  {job.id} {job.task} {texts[job.id]}")
        said = texts
        watch.wait()


def counters(watch: Watch) -> str:
    """Return the counters in one line."""
    text = f"{watch.done} of {watch.bundle.total} done, {watch.bundle.failed} failed"
    pace = watch.pace.text(watch.bundle.remaining)
    return f"{text}, {pace}" if pace else text


def draw(session: Session, watch: Watch) -> None:
    """Draw a bar for the bundle, and a line for each running member."""
    from rich.live import Live

    console = output.console(session)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            watch.look()
            if watch.over:
                return
            live.update(picture(watch, max(1, console.height - 3)), refresh=True)
            watch.wait()


def picture(watch: Watch, lines: int) -> RenderableType:
    """Return what a terminal shows, with at most so many lines for members."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bundle = watch.bundle
    top = Table.grid(padding=(0, 2, 0, 0))
    share = 100 * watch.done / bundle.total if bundle.total else 100
    failed = f"{bundle.failed:,} failed"
    top.add_row(
        ProgressBar(bundle.total or 1, watch.done if bundle.total else 1, width=2 * BAR_WIDTH),
        Text(f"{watch.done:,}/{bundle.total:,} ({share:.0f} %)"),
        Text(failed, "red" if bundle.failed else "dim"),
        Text(watch.pace.text(bundle.remaining) or ""),
        Text(output.rough((datetime.now(UTC) - bundle.created_at).total_seconds()), "dim"),
    )
    shown = min(lines, MEMBERS_SHOWN)
    below = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        below.add_column(no_wrap=True, overflow="ellipsis")
    for job in watch.members[:shown]:
        progress = job.progress
        bar: RenderableType = Text("")
        if progress.done is not None and progress.total:
            bar = ProgressBar(progress.total, max(0, min(progress.done, progress.total)), BAR_WIDTH)
        below.add_row(
            Text(output.short_id(job.id), "dim"),
            Text(output.one_line(job.task)),
            bar,
            Text(output.one_line(progress.text()) if progress else "running"),
        )
    parts: list[RenderableType] = [top, below]
    if len(watch.members) > shown:
        parts.append(Text("… and more", "dim"))
    return Group(*parts)
