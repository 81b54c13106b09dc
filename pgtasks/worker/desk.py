"""What the ledger asks of the database: each command as a unit on the work connection.

Every command but ReleaseLost is answered by exactly one event, also when the connection breaks; so the
ledger always knows what is under way. A ReleaseLost is answered only if it was refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, assert_never

import orjson

from pgtasks import events
from pgtasks.worker import messages as msg
from pgtasks.worker.intake import MAX_SURVEYED
from pgtasks.worker.link import Call, Failed, Link, Reply, Rows, plain_array, text_array

# How many due jobs one statement makes ready at most.
PROMOTE_LIMIT = 1000

# The event by which an outcome is told; the others fail.
EVENTS = {
    "succeeded": "job.finished",
    "retry": "job.retried",
    "replace": "job.replaced",
    "cancelled": "job.cancelled",
    "expired": "job.expired",
}

DatabaseCommand = (
    msg.Look
    | msg.Claim
    | msg.Promote
    | msg.SetIdle
    | msg.Finish
    | msg.Release
    | msg.Crash
    | msg.ReleaseLost
    | msg.Settle
    | msg.Tell
)
Question = msg.Look | msg.Claim | msg.Promote | msg.SetIdle


class Desk:
    """Performs commands on the database and tells what came of them.

    Args:
        link: the work connection.
        queues: which queues the worker serves.
        tasks: what is known of every task that it can run.
        lanes: what is claimed together.
        tell: takes the events.
    """

    def __init__(
        self,
        link: Link,
        queues: Sequence[str],
        tasks: Mapping[str, msg.TaskFacts],
        lanes: Sequence[msg.LaneKind],
        tell: Callable[[msg.Event], None],
    ) -> None:
        self.worker_id = 0
        self.answered_at: float | None = None  # when a look or a claim was last answered
        self._link = link
        self._queues = list(queues)
        self._unkept = {name for name, facts in tasks.items() if not facts.keep_history}
        self._shown = {name for name, facts in tasks.items() if facts.log_arguments}
        self._kinds = lanes
        self._tell = tell
        self.leave_out(frozenset())

    def leave_out(self, tasks: frozenset[str]) -> None:
        """Ask for no jobs of these tasks, since they are paused; for those of all others again."""
        self._lanes = [
            (text_array(task for task in lane.tasks if task not in tasks), lane.at_most_once)
            for lane in self._kinds
        ]

    def perform(self, command: DatabaseCommand, now: float) -> None:
        """Send what the command needs; the answer comes as an event."""
        match command:
            case msg.Finish(batch):
                self._finish(batch, now)
            case msg.Claim():
                self._claim(command, now)
            case msg.Look():
                self._look(command, now)
            case msg.Promote(queue):
                parameters = {"queue": queue, "limit": PROMOTE_LIMIT}
                done = partial(self._on_reply, command, msg.Promoted(queue))
                self._link.submit([("promote_jobs", parameters)], done, now)
            case msg.SetIdle(idle):
                parameters = {"idle": idle, "worker_id": self.worker_id}
                done = partial(self._on_reply, command, msg.IdleSet(idle))
                self._link.submit([("set_idle", parameters)], done, now)
            case msg.Release(jobs, claims):
                self._release("release_jobs", command, jobs, claims, now)
            case msg.Crash(jobs, claims, causes):
                for held in jobs:
                    events.emit(
                        "job.crashed",
                        id=held.row.id,
                        task=held.row.task,
                        queue=held.row.queue,
                        attempt=held.row.attempt,
                        crashes=held.row.crashes + 1,
                    )
                self._release("crash_jobs", command, jobs, claims, now, causes)
            case msg.ReleaseLost(known):
                parameters = {"worker_id": self.worker_id, "known": plain_array(known)}
                self._link.submit(
                    [("release_lost_claims", parameters)], self._on_lost_released, now
                )
            case msg.Settle():
                self._settle(command, now)
            case msg.Tell(ended, late):
                self._tell_ended(ended, late=late)
            case _:
                assert_never(command)

    def _claim(self, order: msg.Claim, now: float) -> None:
        token = str(uuid.uuid4())
        tasks, at_most_once = self._lanes[order.lane]

        def surveyed(rows: Rows) -> None:
            self._tell(msg.Surveyed(order.queue, dict(rows), order.lane))

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                self.answered_at = time.monotonic()
                cost = self.answered_at - now
                self._tell(msg.Claimed(order, token, reply, cost))  # type: ignore[arg-type]
            else:
                self._refused(order, reply)

        claim = {
            "queue": order.queue,
            "tasks": tasks,
            "high": plain_array(map(str, order.high)),
            "low": plain_array(map(str, order.low)),
            "after": plain_array("NULL" if one is None else str(one) for one in order.after),
            "limit": order.limit,
            "token": token,
            "worker_id": self.worker_id,
            "at_most_once": at_most_once,
        }
        calls: list[Call] = [("claim_jobs", claim)]
        if order.sweep:
            calls.insert(0, ("ready_priorities", {"queue": order.queue, "limit": MAX_SURVEYED}))
        before = surveyed if order.sweep else None
        self._link.submit(calls, done, now, msg.ClaimedRow._make, before)

    def _look(self, command: msg.Look, now: float) -> None:
        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                self.answered_at = time.monotonic()
                found = {queue: (ready, due_in) for queue, ready, due_in in reply}
                self._tell(msg.Looked(found, command.lane, self.answered_at - now))
            else:
                self._refused(command, reply)

        parameters = {
            "tasks": self._lanes[command.lane][0],
            "queues": self._queues,
            "hot": text_array(command.hot),
        }
        self._link.submit([("look", parameters)], done, now)

    def _on_reply(
        self,
        command: Question,
        event: msg.Event,
        reply: Reply,
    ) -> None:
        if isinstance(reply, list):
            self._tell(event)
        else:
            self._refused(command, reply)

    def _on_lost_released(self, reply: Reply) -> None:
        if isinstance(reply, Failed):  # when it is lost, the next Connected asks again
            _tell_refused("ReleaseLost", reply)
            self._tell(msg.LostKept())

    def _refused(self, command: Question, reply: Reply) -> None:
        if isinstance(reply, Failed):
            _tell_refused(type(command).__name__, reply)
        self._tell(msg.Refused(command))

    def _finish(self, batch: msg.Batch, now: float) -> None:
        ended = batch.ended
        parameters = {
            "id": plain_array(one.held.row.id for one in ended),
            "token": plain_array(one.held.token for one in ended),
            "result": text_array(one.result for one in ended),
            "age": plain_array(
                "NULL" if one.started is None else repr(now - one.started) for one in ended
            ),
            "claims": plain_array(batch.claims),
        }
        plain = self._plain(ended)
        if plain is not None:
            queue, keep = plain
            call: Call = ("finish_succeeded", {**parameters, "queue": queue, "keep": keep})
        else:
            call = ("finish_jobs", {**parameters, **self._outcomes(ended)})

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                ids = frozenset(row[0] for row in reply)
                if plain is not None:  # which were refused, and not which were written
                    ids = frozenset(one.held.row.id for one in ended).difference(ids)
                self._tell(msg.Written(batch, ids))
                silent = {kind for kind, name in EVENTS.items() if not events.wanted(name)}
                for one in ended:
                    late = one.held.row.id not in ids and not batch.again
                    if late or one.kind not in silent:
                        self._tell_ended(one, late=late)
            elif isinstance(reply, Failed):
                _tell_refused("Finish", reply)
                self._tell(msg.Unwritten(batch, _reason_of(reply.sqlstate), reply.message))
            else:
                self._tell(msg.Unwritten(batch, "lost", reply.message))

        self._link.submit([call], done, now)

    def _plain(self, ended: Sequence[msg.Ended]) -> tuple[str, bool] | None:
        """Return the queue of a batch that is nothing but successes of plain jobs, and whether it keeps them."""
        queue, task = ended[0].held.row.queue, ended[0].held.row.task
        keep = task not in self._unkept
        for one in ended:
            row = one.held.row
            if (
                one.kind != "succeeded"
                or row.queue != queue
                or row.bundle_id is not None
                or row.options is not None
                or (row.task != task and (row.task not in self._unkept) is not keep)
            ):
                return None
        return queue, keep

    def _outcomes(self, ended: Sequence[msg.Ended]) -> dict[str, bytes]:
        """Return the parameters of finish_jobs that a batch of plain successes does not need."""
        keep = (
            "f" if one.kind == "succeeded" and one.held.row.task in self._unkept else "t"
            for one in ended
        )
        return {
            "queue": text_array(one.held.row.queue for one in ended),
            "outcome": plain_array(one.kind for one in ended),
            "error": text_array(None if one.error is None else _json(one.error) for one in ended),
            "delay": plain_array("NULL" if one.delay is None else repr(one.delay) for one in ended),
            "keep": plain_array(keep),
        }

    def _release(
        self,
        statement: str,
        command: msg.Release | msg.Crash,
        jobs: Sequence[msg.Held],
        claims: Sequence[str],
        now: float,
        causes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        cause_of = {held.serial: cause for held, cause in zip(jobs, causes, strict=False)}
        queues: dict[str, list[msg.Held]] = {}
        for held in sorted(jobs, key=lambda held: held.row.id):
            queues.setdefault(held.row.queue, []).append(held)
        calls: list[tuple[str, Mapping[str, object]]] = [
            (
                statement,
                {
                    "queue": queue,
                    "id": plain_array(held.row.id for held in rows),
                    "token": plain_array(held.token for held in rows),
                    "error": text_array(_json(cause_of.get(held.serial, {})) for held in rows),
                },
            )
            for queue, rows in sorted(queues.items())
        ]
        calls.append(("delete_claims", {"claims": plain_array(claims)}))

        def done(reply: Reply) -> None:
            known = isinstance(reply, list)
            self._tell(msg.Released(command) if known else msg.Unreleased(command))

        self._link.submit(calls, done, now)

    def _settle(self, command: msg.Settle, now: float) -> None:
        """End the session of a dead child; then a row that still has our token did not commit, and will not."""
        held = command.held

        def done(reply: Reply) -> None:
            if isinstance(reply, list):
                self._tell(msg.Settled(held, bool(reply)))
            else:
                self._tell(msg.Unsettled(command))

        self._link.submit([("terminate_session", {"pid": command.session})], _nothing, now)
        row = {"queue": held.row.queue, "id": held.row.id, "token": held.token}
        self._link.submit([("lock_held", row)], done, now)

    def _tell_ended(self, ended: msg.Ended, *, late: bool) -> None:
        """Tell what became of a job."""
        name = "job.late" if late else EVENTS.get(ended.kind, "job.failed")
        if not events.wanted(name):
            return
        row = ended.held.row
        error = ended.error or {}
        shown = row.task in self._shown
        events.emit(
            name,
            id=row.id,
            task=row.task,
            queue=row.queue,
            attempt=row.attempt,
            state=ended.kind,
            args=row.args if shown else None,
            kwargs=row.kwargs if shown else None,
            duration=None if ended.started is None else ended.stopped - ended.started,
            delay=ended.delay,
            error=f"{error['type']}: {error['message']}" if error else None,
            expected=error.get("expected"),
            traceback=_shown_traceback(name, error),
        )


def _reason_of(sqlstate: str) -> Literal["again", "slow", "value"]:
    """Say why a batch was refused: for its values, by the statement time-out, or by something that passes."""
    if sqlstate[:2] in ("22", "23", "54"):
        return "value"
    return "slow" if sqlstate == "57014" else "again"


def _nothing(reply: Reply) -> None:
    """Take a reply that changes nothing: a session that could not be ended goes by itself."""


def _tell_refused(what: str, reply: Failed) -> None:
    events.emit("worker.refused", statement=what, sqlstate=reply.sqlstate, why=reply.message)


def _shown_traceback(name: str, error: Mapping[str, Any]) -> str | None:
    if name != "job.failed" or error.get("expected"):
        return None
    return error.get("traceback") or None


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()
