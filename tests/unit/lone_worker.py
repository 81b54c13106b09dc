"""A ledger that is up and running, for tests of one situation at a time, and what to see in its commands."""

from __future__ import annotations

from typing import Any

from pgtasks.options import WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.ledger import Ledger
from tests.unit.worker_fakes import QUEUES, claimed_row


class Worker:
    """A ledger that is up and running, with as many idle children as it wants."""

    def __init__(
        self, children: int = 1, facts: dict[str, msg.TaskFacts] | None = None, **options: Any
    ) -> None:
        self.now = 100.0
        if facts is not None and options.get("async_concurrency", 1) == 1:
            facts = {name: one._replace(asynchronous=False) for name, one in facts.items()}
        options["concurrency"] = children
        self.ledger = Ledger(WorkerOptions(**options), QUEUES, self.now, facts)
        self.tokens = 0
        self.tell(msg.Connected())
        for number in range(1, self.ledger.options.children + 1):
            self.tell(msg.ChildStarted(number))
        self.tell(msg.Looked({}))

    def tell(self, *events: msg.Event) -> list[Any]:
        for event in events:
            self.ledger.handle(event, self.now)
        return list(self.ledger.commands(self.now))

    def later(self, seconds: float) -> list[Any]:
        self.now += seconds
        return list(self.ledger.commands(self.now))

    def claimed(self, *rows: msg.ClaimedRow, cost: float = 0.001, lane: int = 0) -> list[Any]:
        """Let the first queue be claimed, with these rows as the answer."""
        self.ledger.handle(msg.Woken(QUEUES[0]), self.now)
        commands = list(self.ledger.commands(self.now))
        orders = [one for one in only(msg.Claim, commands) if one.lane == lane]
        for other in only(msg.Claim, commands):
            if other.lane != lane:
                self.ledger.handle(msg.Claimed(other, "none", (), cost), self.now)
        order = orders[0] if orders else msg.Claim(QUEUES[0], len(rows), sweep=True, lane=lane)
        if not orders:
            self.ledger.lanes[lane].intake.claiming += 1
        self.tokens += 1
        return self.tell(msg.Claimed(order, f"token-{self.tokens}", rows, cost))

    def slots(self, child: int, begun: int) -> list[msg.Running]:
        """Return what a child's slate says if it ever began so many jobs."""
        member = self.ledger.crew.members[child]
        running = list(member.jobs())[: max(0, begun - member.reported)]
        return [msg.Running(held.serial, self.now, 0) for held in running]

    def death(self, child: int, begun: int, cause: dict[str, Any]) -> msg.ChildDied:
        return msg.ChildDied(child, self.slots(child, begun), cause)

    def ended(
        self, child: int, *jobs: msg.Held, kind: str = "succeeded", seconds: float = 0.001
    ) -> list[Any]:
        records = [
            (held.serial, kind, None, None, None, self.now - seconds, self.now) for held in jobs
        ]
        return self.tell(msg.Reported(child, records))

    def measure(self, seconds: float, task: str = "task") -> None:
        for _ in range(50):
            self.ledger.lanes[0].pace.measure(task, seconds)


def tasks(count: int, **fields: Any) -> list[msg.ClaimedRow]:
    return [claimed_row(seq=seq, **fields) for seq in range(1, count + 1)]


def only(kind: type, commands: list[Any]) -> list[Any]:
    return [one for one in commands if isinstance(one, kind)]


def sent(commands: list[Any]) -> dict[int, list[msg.Held]]:
    return {one.child: list(one.jobs) for one in only(msg.Send, commands)}


def released(commands: list[Any]) -> list[msg.Held]:
    return [held for one in only(msg.Release, commands) for held in one.jobs]
