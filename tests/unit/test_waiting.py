"""When a `Watch` lets its waiter look, and for which ids, without a database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgtasks import ResultTimeoutError, waiting
from pgtasks.waiting import Watch
from tests.fixtures.eventually import eventually

IDS = {"a", "b", "c"}
JOBS = "pgtasks_job_stopped"


class Ear:
    """Stands for an app and its listener: what a test says is heard."""

    def __init__(self) -> None:
        self.listener = self
        self.tell: Callable[[str, list[str] | None], None] | None = None
        self.subscribed = threading.Event()

    def subscribe(self, callback: Callable[[str, list[str] | None], None]) -> Callable[[], None]:
        self.tell = callback
        self.subscribed.set()

        def unsubscribe() -> None:
            self.tell = None

        return unsubscribe


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(waiting, "FIRST_POLL", 30.0)
    monkeypatch.setattr(waiting, "APART", 0.0)
    return Ear()


def told(ear: Any, watch: Watch, *stopped: list[str] | None, open: set[str] = IDS) -> Any:
    """Return what the next pause gives when this is heard in it, one after the other."""

    def tell() -> None:
        assert ear.subscribed.wait(10)
        for one in stopped:
            if ear.tell is not None:
                ear.tell(JOBS, one)
            eventually(considered)

    def considered() -> None:
        assert done.is_set() or not watch._heard.is_set()

    began = time.monotonic()
    done = threading.Event()
    thread = threading.Thread(target=tell)
    thread.start()
    try:
        return watch.pause(open, "they are")
    finally:
        done.set()
        thread.join()
        assert time.monotonic() - began < 20  # it was not the poll that woke it


def test_the_first_look_is_at_once_at_everything_and_needs_no_listener(ear: Any):
    with Watch(ear, IDS, None) as watch:
        assert watch.pause(IDS, "they are") == IDS
        assert ear.tell is None


def test_a_look_is_due_for_what_was_told(ear: Any):
    with Watch(ear, IDS, None) as watch:
        watch.pause(IDS, "they are")

        assert told(ear, watch, ["x", "b"]) == {"b"}
        assert told(ear, watch, ["a"], open={"a", "c"}) == {"a"}
    assert ear.tell is None


def test_a_retry_is_no_news_and_neither_is_what_is_known(ear: Any):
    with Watch(ear, IDS, None) as watch:
        watch.pause(IDS, "they are")

        assert told(ear, watch, ["b+"], ["a"], ["c"], open={"b", "c"}) == {"c"}


def test_a_look_at_everything_is_due_when_news_may_have_been_missed(ear: Any):
    with Watch(ear, IDS, None) as watch:
        watch.pause(IDS, "they are")

        assert told(ear, watch, None, open={"a", "b"}) == {"a", "b"}


def test_a_patient_one_waits_for_the_last(ear: Any):
    with Watch(ear, IDS, None, patient=True) as watch:
        watch.pause(IDS, "they are")

        assert told(ear, watch, ["a"], ["b"], ["c"]) == IDS


def test_news_in_a_stream_are_taken_in_gulps(ear: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "APART", 30.0)
    with Watch(ear, IDS, None) as watch:
        watch.pause(IDS, "they are")

        # The look for these is put off; the last one is worth it at once.
        assert told(ear, watch, ["a"], ["b"], ["c"]) == IDS


def test_everything_is_looked_at_now_and_then(ear: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "FIRST_POLL", 0.01)
    with Watch(ear, IDS, None) as watch:
        for _ in range(3):
            assert watch.pause(IDS, "they are") == IDS


def test_time_is_over_only_after_a_last_look(ear: Any):
    with Watch(ear, IDS, 0.01) as watch:
        assert watch.pause(IDS, "they are") == IDS
        assert watch.pause({"a"}, "they are") == {"a"}
        with pytest.raises(ResultTimeoutError, match=r"^they are not finished after 0\.01 s$"):
            watch.pause({"a"}, "they are")
    with Watch(ear, IDS, 0) as watch:
        assert watch.pause(IDS, "they are") == IDS
        with pytest.raises(ResultTimeoutError):
            watch.pause(IDS, "they are")
