"""What cancel and revoke ask of the database: who is to be stopped, and how hard."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import App, AsyncResult, EagerResult, GroupResult, group
from pgtasks.ids import new_id

JOB, BUNDLE = new_id(), new_id()
# What each statement finds: nothing waits, JOB runs and is the bundle's only member.
FOUND = {
    "lock_unblocked": [],
    "cancel_waiting": [],
    "get_blocked": [],
    "request_cancel": [(JOB,)],
    "get_live_members": [(JOB,)],
}


class Recording(App):
    """An app that writes down what it would ask, and answers that one job is running."""

    def __init__(self) -> None:
        super().__init__("recording")
        self.asked: dict[str, Any] = {}

    def run(self, operation: Any, connection: Any = None) -> Any:
        steps = iter(operation)
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            self.asked[step.name] = step.parameters
            reply = step.read(FOUND[step.name])

    async def arun(self, operation: Any, connection: Any = None) -> Any:
        return self.run(operation)


async def result_of(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    value = call(*args, **options)
    return await value if inspect.isawaitable(value) else value


@pytest.fixture
def app() -> Recording:
    return Recording()


@pytest.mark.parametrize("twin", ["", "a"])
@pytest.mark.parametrize(
    ("said", "terminate"), [({}, True), ({"terminate": True}, True), ({"terminate": False}, False)]
)
async def test_cancel_stops_what_runs_unless_told_otherwise(
    app: Recording, twin: str, said: dict[str, bool], terminate: bool
):
    of_jobs = await result_of(getattr(app, f"{twin}cancel"), JOB, **said)
    asked = app.asked.pop("request_cancel")
    of_bundle = await result_of(getattr(app, f"{twin}cancel_bundle"), BUNDLE, **said)

    assert of_jobs == of_bundle == {JOB: "requested"}
    assert asked == {"ids": [JOB], "terminate": terminate}
    assert app.asked["request_cancel"] == asked


@pytest.mark.parametrize("twin", ["", "a"])
@pytest.mark.parametrize(
    ("said", "terminate"),
    [
        ({}, False),
        ({"terminate": True}, True),
        ({"terminate": True, "signal": "SIGKILL", "wait": True, "timeout": 1}, True),
    ],
)
async def test_revoke_stops_what_runs_only_when_told_to_as_in_celery(
    app: Recording, twin: str, said: dict[str, Any], terminate: bool
):
    for result in (AsyncResult[Any](JOB, app), GroupResult[Any](BUNDLE, app)):
        await result_of(getattr(result, f"{twin}revoke"), **said)

        assert app.asked.pop("request_cancel") == {"ids": [JOB], "terminate": terminate}


@pytest.mark.parametrize("twin", ["", "a"])
async def test_revoke_of_an_eager_result_does_nothing(app: Recording, twin: str):
    @app.task
    def double(number: int) -> int:
        return 2 * number

    with app.eager():
        one = double.delay(1)
        many = group(double.s(2)).apply()

    for result in (one, many):
        await result_of(getattr(result, f"{twin}revoke"), terminate=True, signal="SIGTERM")

    assert isinstance(one, EagerResult)
    assert one.get() == 2
    assert many.get() == [4]
    assert app.asked == {}
