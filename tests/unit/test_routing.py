"""``task_routes`` in Celery's forms: by name, glob, regular expression and function; the call goes before it."""

import re
from types import SimpleNamespace

import pytest

from pgtasks import App, chain, group
from pgtasks.errors import ConfigurationError
from pgtasks.routing import Destination, Router


def where(routes, name, args=(), kwargs=None, options=None):
    return Router(routes).route(name, args, kwargs or {}, options or {}, None)


def by_shape(name, args, kwargs, options, task=None, **kw):
    if name == "video.compress":
        return {"queue": "video", "priority": 3, "routing_key": "video.compress"}
    if kwargs.get("big"):
        return "big"
    return None


class OldRouter:
    def route_for_task(self, name, args=None, kwargs=None):
        return {"queue": "old"} if name == "old.task" else None


@pytest.mark.parametrize(
    ("routes", "name", "queue"),
    [
        ({"mail.send": "mail"}, "mail.send", "mail"),
        ({"mail.send": {"queue": "mail"}}, "mail.send", "mail"),
        ({"mail.*": "mail"}, "mail.send.now", "mail"),
        ({"mail.*": "mail"}, "mails.send", None),
        ({"*.now": "quick"}, "mail.now.later", None),
        ({"mail.*": "mail", "mail.send": "exact"}, "mail.send", "exact"),
        ({"mail.urgent*": "urgent", "mail.*": "mail"}, "mail.urgent-one", "urgent"),
        ([("mail.*", "mail"), (re.compile(r"(video|image)\.tasks\..*"), {"queue": "media"})],
         "image.tasks.scale", "media"),
        (([("feed.*", {"queue": "feeds"}), ("web.*", {"queue": "web"})],), "web.get", "web"),
        ([{"a": "one"}, {"a": "two", "b": "two"}], "a", "one"),
        ([{"a": "one"}, {"a": "two", "b": "two"}], "b", "two"),
        (by_shape, "video.compress", "video"),
        ((by_shape, {"*": "rest"}), "other", "rest"),
        ([OldRouter(), {"*": "rest"}], "old.task", "old"),
        ([OldRouter(), {"*": "rest"}], "new.task", "rest"),
        (f"{__name__}.by_shape", "video.compress", "video"),
        ({"a": {"queue": SimpleNamespace(name="kombu")}}, "a", "kombu"),
        ({"a": {}}, "a", None),
        ({}, "a", None),
        ([], "a", None),
    ],
)  # fmt: skip
def test_celerys_forms_lead_where_they_lead_there(routes, name, queue, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(by_shape=by_shape))

    assert where(routes, name).queue == queue


def test_a_function_sees_the_whole_call():
    assert where(by_shape, "any", kwargs={"big": True}) == Destination("big")
    assert where(by_shape, "video.compress") == Destination("video", 3)


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (3, 'expected a dict such as {"mail.*": "mail"}, a list of pairs, a function of'),
        ({"a": 3}, "the route of 'a': expected the name of a queue or"),
        ({"a": "no name"}, "the route of 'a': queue 'no name' is not a name"),
        ({"a": {"queue": "b", "colour": "red"}}, "expected queue and priority, found 'colour'"),
        ({"a": {"priority": "high"}}, "the route of 'a': priority is a whole number"),
        ({3: "a"}, "expected a task's name, a glob or a compiled pattern, found 3"),
        ([("a",)], "found 'a'"),
        ([3], "found 3"),
        ("nowhere.router", "expected the path of a router, as in 'shop.routers.route', found"),
        ("router", "found 'router'"),
    ],
)
def test_what_is_no_route_is_refused_at_the_definition(routes, said):
    with pytest.raises(ConfigurationError) as refused:
        App("shop", task_routes=routes)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (lambda *call, **task: 3, "the route of 'a': expected the name of a queue or"),
        (lambda *call, **task: {"queue": "no name"}, "the route of 'a': queue 'no name'"),
        (lambda *call, **task: call[1][9], "for 'a' raised IndexError: tuple index out of range"),
        (lambda name: "mail", "for 'a' raised TypeError"),
    ],
)
def test_what_a_function_gives_is_checked_at_the_call(route, said):
    app = App("shop", eager=True, task_routes=route)

    with pytest.raises(ConfigurationError) as refused:
        app.send_task("a", ())

    assert said in str(refused.value)


@pytest.fixture
def routed() -> App:
    """An app whose routes know its task that names no queue, and the one that does."""
    app = App("shop", eager=True, task_routes={"shop.*": {"queue": "routed", "priority": 4}})

    @app.task(name="shop.plain")
    def plain(n: int = 0) -> str:
        return str(getattr(plain.request, "queue", None))

    @app.task(name="shop.own", queue="default", priority=1)
    def own(n: int = 0) -> None: ...

    return app


def test_the_call_goes_before_the_task_and_the_task_before_the_routes(routed):
    plain, own = routed.tasks["shop.plain"], routed.tasks["shop.own"]

    def place(job):
        return job.queue, job.priority

    assert place(plain.new_job((), {})) == ("routed", 4)
    assert place(plain.new_job((), {}, {"queue": "said", "priority": 9})) == ("said", 9)
    assert place(own.new_job((), {})) == ("default", 1)
    assert place(own.new_job((), {}, {"queue": "said"})) == ("said", 1)
    assert routed._named_job("shop.unknown", (), {}, {}).queue == "routed"
    assert routed._named_job("elsewhere", (), {}, {}).queue is None
    assert routed.queue_names() == ["default", "routed"]
    assert routed.queue_of(plain) == "routed"
    assert (routed.queue_of(own), routed.priority_of(own)) == ("default", 1)


def test_every_way_to_enqueue_is_routed(routed):
    plain = routed.tasks["shop.plain"]

    assert plain.delay().get() == "routed"
    assert routed.enqueue_many([plain.s()])[0].get() == "routed"
    assert group(plain.s(1), plain.s(2)).apply().get() == ["routed", "routed"]
    assert chain(plain.si(1), plain.si(2))().get() == "routed"
    assert chain(plain.si(1), plain.si(2).set(queue="said"))().get() == "said"
    assert plain.map([1]).new_job().queue == "routed"


def test_one_kind_of_routes_is_enough():
    with pytest.raises(ConfigurationError, match="expected routes or task_routes, found both"):
        App("shop", routes={"a": "b"}, task_routes={"a": "b"})
