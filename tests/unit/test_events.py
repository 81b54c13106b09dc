"""Events reach who asked for them, and cost nothing if nobody did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgtasks import events

Heard = list[tuple[str, dict[str, object]]]


@pytest.fixture(autouse=True)
def nobody_else_listens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(events, "_subscribers", [])
    events.wanted.cache_clear()
    yield
    events.wanted.cache_clear()


def listen(*prefixes: str) -> tuple[Heard, object]:
    heard: Heard = []
    return heard, events.subscribe(lambda name, fields: heard.append((name, fields)), *prefixes)


def test_a_subscriber_hears_name_and_fields():
    heard, _ = listen()

    events.emit("job.finished", id="1", duration=0.5)

    assert heard == [("job.finished", {"id": "1", "duration": 0.5})]


def test_a_subscriber_hears_what_begins_with_its_prefixes():
    heard, _ = listen("job.", "worker.ready")

    for name in ("job.finished", "job.late", "worker.ready", "worker.stopped", "jobs"):
        events.emit(name)

    assert [name for name, _ in heard] == ["job.finished", "job.late", "worker.ready"]


def test_all_subscribers_hear():
    first, _ = listen()
    second, _ = listen("job")

    events.emit("job.finished")

    assert len(first) == len(second) == 1


def test_a_subscription_can_be_ended_also_twice():
    heard: Heard = []
    end = events.subscribe(lambda name, fields: heard.append((name, fields)))

    end()
    end()
    events.emit("job.finished")

    assert heard == []


def test_two_subscriptions_of_one_function_end_one_by_one():
    heard: Heard = []

    def subscriber(name: str, fields: dict[str, object]) -> None:
        heard.append((name, fields))

    end = events.subscribe(subscriber)
    events.subscribe(subscriber)

    end()
    events.emit("job.finished")

    assert len(heard) == 1


def test_wanted_says_whether_anybody_listens():
    assert not events.wanted("job.finished")
    end = events.subscribe(lambda name, fields: None, "job.f")

    assert events.wanted("job.finished")
    assert not events.wanted("job.late")
    end()
    assert not events.wanted("job.finished")


def test_a_subscriber_may_unsubscribe_while_it_is_told():
    heard: list[str] = []

    def once(name: str, fields: dict[str, object]) -> None:
        heard.append(name)
        end()

    end = events.subscribe(once)
    events.subscribe(lambda name, fields: heard.append("other"))

    events.emit("a")
    events.emit("b")

    assert heard == ["a", "other", "other"]
