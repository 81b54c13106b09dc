"""Schedules in code: ``@app.schedule``, ``beat_schedule``, ``add_periodic_task``; no database is asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgtasks import App, ConfigurationError, chain, crontab, every, shared_task
from pgtasks.task import shared_tasks


@pytest.fixture
def app() -> App:
    return App("tests", timezone="Europe/Vienna")


def test_a_schedule_stands_above_or_below_the_task_and_more_than_once(app):
    @app.schedule("0 3 * * *", name="nightly", timezone="UTC", catch_up="all", queue="slow")
    @app.schedule("*/5 * * * *", args=(1,), expires=60, retries=2)
    @app.task(name="above", priority=4)
    def above(number: int = 0) -> None: ...

    @app.task(name="below")
    @app.schedule(every(30))
    @app.schedule(timedelta(hours=1), kwargs={"number": 2})
    def below(number: int = 0) -> None: ...

    plain = {"origin": None, "timezone": "Europe/Vienna", "catch_up": "one", "args": "[]"}
    assert above.name == "above"
    assert app.declared_schedules == {
        "above": {
            **plain, "task": "above", "args": "[1]", "kwargs": "{}", "queue": "default", "priority": 4,
            "expires": 60.0, "options": {"retries": 2}, "spec": "*/5 * * * *",
        },
        "nightly": {
            **plain, "task": "above", "kwargs": "{}", "queue": "slow", "priority": 4, "expires": None,
            "options": None, "spec": "0 3 * * *", "timezone": "UTC", "catch_up": "all",
        },
        "below": {
            **plain, "task": "below", "kwargs": '{"number":2}', "queue": "default", "priority": 0,
            "expires": None, "options": None, "spec": "every 3600s",
        },
        "below every 30s": {
            **plain, "task": "below", "kwargs": "{}", "queue": "default", "priority": 0, "expires": None,
            "options": None, "spec": "every 30s",
        },
    }  # fmt: skip


def test_a_shared_task_is_scheduled_in_the_app_that_says_so(app, monkeypatch):
    monkeypatch.setattr("pgtasks.registry.shared_tasks", shared_tasks[:])
    monkeypatch.setattr("pgtasks.task.shared_tasks", shared_tasks[:])
    other = App("other")

    @shared_task(name="shared")
    def shared() -> None: ...

    app.schedule("@daily")(shared)

    assert app.declared_schedules["shared"]["spec"] == "@daily"
    assert other.declared_schedules == {}


def test_celerys_ways_to_say_it_mean_the_same(app):
    @app.task(name="report")
    def report(number: int, of: str = "x") -> None: ...

    heard: list[Any] = []

    @app.on_after_configure.connect
    def set_up(sender: App, **kwargs: Any) -> None:
        heard.append(sender)
        sender.add_periodic_task(10, report.s(1), name="ten")
        sender.add_periodic_task(
            crontab(minute=0), report.s().set(queue="q"), args=(2,), priority=3
        )

    @app.on_after_finalize.connect()
    def later(sender: App, **kwargs: Any) -> None:
        sender.add_periodic_task(timedelta(days=1), report, (3,), {"of": "y"}, catch_up="skip")

    app.beat_schedule = {
        "monday": {
            "task": "report",
            "schedule": crontab(hour=7, minute=30, day_of_week=1),
            "args": (16,),
            "options": {"expires": 15.0, "exchange": "ignored"},
            "relative": True,
        },
        "elsewhere": {"task": "not.registered.here", "schedule": 30.0},
    }
    app.load()
    app.load()

    assert heard == [app]
    said = {
        name: (
            one["spec"],
            one["args"],
            one["kwargs"],
            one["queue"],
            one["priority"],
            one["catch_up"],
        )
        for name, one in app.declared_schedules.items()
    }
    assert said == {
        "ten": ("every 10s", "[1]", "{}", "default", 0, "one"),
        "report": ("0 * * * *", "[2]", "{}", "q", 3, "one"),
        "report every 86400s": ("every 86400s", "[3]", '{"of":"y"}', "default", 0, "skip"),
        "monday": ("30 7 * * 1", "[16]", "{}", "default", 0, "one"),
        "elsewhere": ("every 30s", "[]", "{}", None, None, "one"),
    }
    assert app.declared_schedules["monday"]["expires"] == 15.0


@pytest.mark.parametrize(
    ("spec", "said", "message"),
    [
        ("* * *", {}, "found 3"),
        ("0 0 30 2 *", {}, "never comes"),
        (0, {}, r"every\(\) takes"),
        ("@daily", {"timezone": "Mars/Base"}, "there is no time zone 'Mars/Base'"),
        ("@daily", {"catch_up": "some"}, "catch_up is 'skip' .* found 'some'"),
        ("@daily", {"name": ""}, "a schedule's name is for people to read"),
        ("@daily", {"name": "a\nb"}, "a schedule's name is for people to read"),
        ("@daily", {"countdown": 5}, "a schedule has no countdown, found 5"),
        ("@daily", {"eta": datetime(2026, 1, 1, tzinfo=UTC)}, "a schedule has no eta"),
        ("@daily", {"task_id": "x"}, "a schedule has no task_id"),
        ("@daily", {"expires": datetime(2026, 1, 1, tzinfo=UTC)}, "expires of a schedule is a number of seconds"),
        ("@daily", {"queue": "no queue"}, "queue 'no queue' is not a name"),
        ("@daily", {"priority": "high"}, "priority is a whole number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
def test_a_mistake_is_said_where_it_stands(app, spec, said, message, above):
    def function() -> None: ...

    def define() -> None:
        if above:
            app.schedule(spec, **said)(app.task(name="t")(function))
        else:
            app.task(name="t")(app.schedule(spec, **said)(function))

    with pytest.raises(ConfigurationError, match=message):
        define()
    assert app.declared_schedules == {}


def test_arguments_are_checked_against_the_task(app):
    @app.task(name="t")
    def function(number: int) -> None: ...

    with pytest.raises(TypeError, match="missing"):
        app.schedule("@daily")(function)
    with pytest.raises(TypeError, match="no option 'quue'"):
        app.schedule("@daily", args=(1,), quue="x")(function)
    with pytest.raises(TypeError):
        app.add_periodic_task(5, function.s())


def test_a_function_that_never_becomes_a_task_is_no_silent_schedule(app):
    @app.schedule("@daily")
    def lonely() -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"lonely has a schedule and is no task: write @app\.task"
    ):
        app.load()


def test_two_schedules_have_two_names(app):
    @app.task(name="t")
    def function(number: int = 0) -> None: ...

    for _ in range(2):  # the same once more, as when a module is loaded again
        app.schedule("@daily", name="one")(function)
    with pytest.raises(ConfigurationError, match="'one' is declared already, for '@daily'"):
        app.schedule("@weekly", name="one")(function)
    app.schedule("@daily")(function)
    app.schedule("@weekly")(function)
    with pytest.raises(ConfigurationError, match="'t @weekly' is declared already"):
        app.schedule("@weekly", args=(1,))(function)

    assert sorted(app.declared_schedules) == ["one", "t", "t @weekly"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"x": {"task": "t"}}, r"beat_schedule\['x'\] takes task and schedule"),
        ({"x": {"schedule": 5}}, "takes task and schedule"),
        ({"x": {"task": "t", "schedule": 5, "arg": 1}}, "takes task and schedule"),
        ({"x": 5}, "takes task and schedule"),
        ([], "a dict of schedules by name"),
        ({"x": {"task": "t", "schedule": "* *"}}, "found 2"),
        ({"x": {"task": "t", "schedule": object()}}, "a schedule is a cron line"),
        ({"x": {"task": "t", "schedule": 5, "timezone": "Mars"}}, "no time zone 'Mars'"),
        ({"x": {"task": "t", "schedule": 5, "options": {"eta": 1}}}, "has no eta"),
    ],
)
def test_a_wrong_beat_schedule_is_refused_as_a_whole(app, entries, message):
    with pytest.raises(ConfigurationError, match=message):
        app.beat_schedule = entries
    with pytest.raises(ConfigurationError, match=message):
        App("x", beat_schedule=entries)

    assert app.beat_schedule == {}


def test_what_is_no_single_task_is_not_scheduled(app):
    @app.task(name="t")
    def function() -> None: ...

    for wrong in (chain(function.si(), function.si()), "t", None):
        with pytest.raises(ConfigurationError, match="takes a signature of one task"):
            app.add_periodic_task(5, wrong)
    with pytest.raises(ConfigurationError, match="a schedule has no link"):
        app.add_periodic_task(5, function.si().set(link=function.si()))


def test_an_apps_time_zone_is_one():
    with pytest.raises(ConfigurationError, match="no time zone 'Wien'"):
        App("x", timezone="Wien")
