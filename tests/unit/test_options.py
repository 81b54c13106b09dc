"""Each option's default and rule, its message, and what Celery's spellings mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.errors import ConfigurationError
from pgtasks.options import (
    FOREVER,
    MANUAL_RETRIES,
    TaskOptions,
    WorkerOptions,
    check_priority,
    check_queue_name,
    check_task_name,
    task_options,
    worker_name,
)
from pgtasks.retry import expo, fixed


def test_a_task_has_defaults():
    options = task_options("task", {})

    assert (options.queue, options.priority, options.retries) == ("default", 0, None)
    assert options.retry_for == (Exception,)
    assert options.schedule is expo
    assert options.stores_result


def test_a_worker_has_defaults():
    options = WorkerOptions()

    assert (options.concurrency, options.queues, options.pool) == (1, None, "prefork")
    assert (options.beat, options.lease, options.grace) == (5.0, 30.0, 25.0)


def test_options_cannot_be_changed():
    with pytest.raises(AttributeError):
        task_options("task", {}).queue = "other"  # type: ignore[misc]


@pytest.mark.parametrize("field", [{"ignore_result": True}, {"keep_history": False}])
def test_a_result_that_is_not_kept_is_not_encoded(field: dict[str, Any]):
    assert not task_options("task", field).stores_result


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"queue": "no spaces"}, "queue 'no spaces' is not a name: begin with a letter or _"),
        ({"queue": ""}, "queue '' is not a name"),
        ({"queue": None}, "queue None is not a name"),
        ({"priority": 1.5}, "priority is a whole number of 32 bits, found 1.5"),
        ({"priority": True}, "priority is a whole number of 32 bits, found True"),
        ({"priority": 2**31}, "priority is a whole number of 32 bits"),
        ({"retries": -1}, "retries is a whole number from 0, found -1"),
        ({"retries": 1.0}, "retries is a whole number from 0, found 1.0"),
        ({"retries": "3"}, "retries is a whole number from 0, found '3'"),
        ({"retry_schedule": "soon"}, "expected a retry_schedule that is expo"),
        ({"retry_schedule": []}, "retry_schedule is an empty list"),
        ({"retry_for": [1]}, r"retry_for is a tuple of exception classes, found \(1,\)"),
        ({"no_retry_for": int}, "no_retry_for is a tuple of exception classes"),
        ({"throws": "ValueError"}, "throws is a tuple of exception classes"),
        ({"expires": -1}, "expires is a number of seconds, at least 0, found -1"),
        ({"expires": float("nan")}, "expires is a number of seconds"),
        ({"expires": True}, "expires is a number of seconds"),
        ({"bind": True, "raw": True}, "task 'task' is both bind and raw"),
        (
            {"colour": "red"},
            "task 'task' has no option 'colour': the options are at_most_once, bind, ",
        ),
    ],
)
def test_a_task_option_has_its_rule_and_its_message(said: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        task_options("task", said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"pool": "gevent"},
            "expected pool 'prefork', 'threads', 'solo' or 'beat', found 'gevent'",
        ),
        ({"concurrency": 0}, "concurrency is a whole number from 1 to 1000, found 0"),
        ({"concurrency": 1001}, "concurrency is a whole number from 1 to 1000, found 1001"),
        ({"pool": "solo", "concurrency": 2}, "pool 'solo' runs one job at a time"),
        ({"queues": ()}, "expected at least one queue, found none"),
        ({"queues": ("a b",)}, "queue 'a b' is not a name"),
        ({"exclude_queues": ("a b",)}, "queue 'a b' is not a name"),
        ({"poll_interval": 0}, "poll_interval is a number of seconds, at least 0.01, found 0"),
        ({"grace": -1}, "grace is a number of seconds, at least 0"),
        ({"beat": 0.01}, "beat is a number of seconds, at least 0.1"),
        ({"lease": 9.9}, "lease is a number of seconds, at least 10, found 9.9"),
        ({"keep_history_for": -1}, "keep_history_for is a number of seconds"),
        ({"claim_batch": 0}, "claim_batch is a whole number from 1 to 10000, found 0"),
        ({"prefetch": 10_001}, "prefetch is a whole number from 1 to 10000, found 10001"),
        (
            {"health_port": "::1:80"},
            "health_port is a port or host:port, such as 8080, .*found '::1:80'",
        ),
        ({"health_port": ":80"}, "health_port is a port or host:port"),
        ({"health_port": "localhost"}, "health_port is a port or host:port"),
        ({"health_port": "65536"}, "health_port is a port or host:port"),
        ({"health_port": "80\n"}, "health_port is a port or host:port"),
        ({"health_port": 8080}, "health_port is a port or host:port"),
    ],
)
def test_a_worker_option_has_its_rule_and_its_message(said: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        WorkerOptions(**said)


@pytest.mark.parametrize(
    ("said", "address"),
    [
        (None, None),
        ("8080", ("127.0.0.1", 8080)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),
        ("probes.example.com:65535", ("probes.example.com", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_a_health_port_is_an_address(said: str | None, address: tuple[str, int] | None):
    assert WorkerOptions(health_port=said).health_address == address


@pytest.mark.parametrize("value", ["many", 2.5, None, True])
@pytest.mark.parametrize("option", ["concurrency", "claim_batch", "prefetch"])
def test_a_count_that_is_no_whole_number_is_refused_with_its_name(option: str, value: Any):
    with pytest.raises(ConfigurationError, match=option):
        WorkerOptions(**{option: value})


@pytest.mark.parametrize("name", ["shop.tasks.send", "a", "_x", "a:b", "f.<lambda>", "a-b/c"])
def test_task_names(name: str):
    check_task_name(name)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a" * 201, "é", None, "a\n"])
def test_what_is_no_task_name(name: object):
    with pytest.raises(ConfigurationError, match="task name"):
        check_task_name(name)


@given(st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,62}\Z"))
def test_queue_names(name: str):
    check_queue_name(name)


@pytest.mark.parametrize("name", ["a" * 64, "1a", "-a", "a b", "a\n", "ä", 3])
def test_what_is_no_queue_name(name: object):
    with pytest.raises(ConfigurationError, match="queue"):
        check_queue_name(name)


@given(st.integers(-(2**31), 2**31 - 1))
def test_priorities(priority: int):
    check_priority(priority)


# Celery's spellings


def test_max_retries_alone_retries_nothing_by_itself():
    options = task_options("task", {"max_retries": 5})

    assert (options.retries, options.retry_for) == (5, ())


def test_max_retries_none_is_no_limit():
    assert task_options("task", {"max_retries": None}).retries == FOREVER


def test_autoretry_for_brings_three_retries():
    options = task_options("task", {"autoretry_for": (OSError,)})

    assert (options.retries, options.retry_for) == (MANUAL_RETRIES, (OSError,))


def test_autoretry_for_with_a_maximum():
    options = task_options(
        "task",
        {"autoretry_for": [OSError], "max_retries": 7, "dont_autoretry_for": [FileNotFoundError]},
    )

    assert options.retries == 7
    assert options.retry_for == (OSError,)
    assert options.no_retry_for == (FileNotFoundError,)


def test_a_single_class_is_a_tuple_of_one():
    assert task_options("task", {"throws": KeyError}).throws == (KeyError,)


@pytest.mark.parametrize(
    ("said", "schedule"),
    [
        ({"default_retry_delay": 10}, fixed(10)),
        ({"retry_backoff": True}, expo(factor=1.0, cap=600, jitter=True)),
        ({"retry_backoff": 5, "retry_jitter": False}, expo(factor=5.0, cap=600, jitter=False)),
        ({"retry_backoff": True, "retry_backoff_max": 60}, expo(cap=60)),
        ({"retry_backoff": False}, fixed(180)),
    ],
)
def test_celerys_delays_become_a_schedule(said: dict[str, Any], schedule: object):
    assert task_options("task", said).retry_schedule == schedule


@pytest.mark.parametrize(
    "said",
    [
        {"serializer": "json"},
        {"track_started": True},
        {"reject_on_worker_lost": True},
        {"store_errors_even_if_ignored": False},
        {"pydantic": True},
    ],
)
def test_what_means_nothing_here_is_accepted(said: dict[str, Any]):
    assert task_options("task", said) == TaskOptions(name="task")


@pytest.mark.parametrize(
    "said",
    [{"serializer": "pickle"}, {"typing": False}, {"compression": "gzip"}],
)
def test_what_is_not_supported_is_refused_with_what_would_be(said: dict[str, Any]):
    with pytest.raises(
        ConfigurationError, match=f"{next(iter(said))}=.* is not supported: expected"
    ):
        task_options("task", said)


@pytest.mark.parametrize(
    ("pattern", "host", "name"),
    [
        ("worker@%h", "box.example.com", "worker@box.example.com"),
        ("%n-%d", "box.example.com", "box-example.com"),
        ("w@%n", "box", "w@box"),
        ("fixed", "box", "fixed"),
    ],
)
def test_worker_names_are_filled_in(pattern: str, host: str, name: str):
    assert worker_name(pattern, host) == name
