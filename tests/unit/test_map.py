"""map, starmap, chunks and the built-in tasks that they run."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from pgtasks import App, Signature, chain, chunks, group, signature
from pgtasks.errors import ConfigurationError, TaskFailedError, UnknownTaskError

app = App("shop", eager=True, routes={"shop.routed": "elsewhere"})


@app.task(name="shop.add", queue="sums", priority=3)
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(name="shop.tsum")
def tsum(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="shop.weekday")
def weekday(day: date, plus: int = 0) -> int:
    return day.weekday() + plus


@app.task(name="shop.double")
async def double(n: int) -> int:
    return 2 * n


@app.task(name="shop.who", bind=True)
def who(self: Any, n: int) -> list[Any]:
    return [self.name, self.request.task, n]


@app.task(name="shop.routed")
def routed(n: int) -> int:
    return n


@app.task(name="shop.raw", raw=True)
def raw(job: Any) -> None: ...


def test_map_is_one_job_that_calls_the_task_for_each_element():
    job = tsum.map([[1, 2], [3]]).new_job()

    assert (job.task, job.args) == ("pgtasks.map", "[]")
    assert json.loads(job.kwargs) == {"task": "shop.tsum", "it": [[1, 2], [3]]}
    assert ~tsum.map([list(range(10)), list(range(100))]) == [45, 4950]


def test_starmap_calls_the_task_with_the_arguments_in_each_element():
    job = add.starmap(zip(range(2), range(2), strict=True)).new_job()

    assert job.task == "pgtasks.starmap"
    assert json.loads(job.kwargs) == {"task": "shop.add", "it": [[0, 0], [1, 1]]}
    assert ~add.starmap(zip(range(4), range(4), strict=True)) == [0, 2, 4, 6]
    assert ~add.starmap([(1,), [2, 3]]) == [1, 5]


def test_a_map_of_nothing_gives_nothing():
    assert ~add.map([]) == []
    assert ~add.starmap(iter(())) == []


def test_elements_are_rebuilt_as_the_task_says():
    assert ~weekday.map([date(2026, 1, 5), date(2026, 1, 6)]) == [0, 1]
    assert ~weekday.starmap([(date(2026, 1, 5), 3)]) == [3]


def test_a_coroutine_function_is_awaited_for_each_element():
    assert ~double.map([1, 2]) == [2, 4]
    assert ~double.starmap([(3,)]) == [6]


def test_a_bound_task_finds_itself_in_the_job_of_the_map():
    assert ~who.map([1]) == [["shop.who", "pgtasks.map", 1]]


def test_a_map_goes_where_the_task_goes():
    jobs = [
        add.map([1]).new_job(),
        add.starmap([(1,)]).new_job(),
        routed.map([1]).new_job(),
        add.map([1]).set(queue="other", priority=9).new_job(),
    ]

    assert [(job.queue, job.priority) for job in jobs] == [
        ("sums", 3),
        ("sums", 3),
        ("elsewhere", 0),
        ("other", 9),
    ]


def test_a_map_goes_on_the_connection_that_the_task_names():
    connection = object()

    assert add.using(connection).map([1])._connection() is connection


def test_a_map_takes_no_further_arguments():
    assert chain(add.s(1, 2), add.map([5, 6]))().get() == [5, 6]
    assert add.map([5]).delay("more", of="it").get() == [5]


def test_what_the_task_does_not_take_is_refused_in_the_caller():
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        add.starmap([(1, 2), (1, 2, 3)])
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        add.starmap([()])
    with pytest.raises(ConfigurationError, match=r"task 'shop.raw' is raw"):
        raw.map([1])


def test_a_map_of_an_unknown_task_fails():
    result = signature("pgtasks.map", kwargs={"task": "shop.unknown", "it": [1]}, app=app).delay()

    with pytest.raises(TaskFailedError, match=r"no task is named 'shop.unknown' in this app"):
        result.get()


def test_one_bad_element_fails_the_map():
    with pytest.raises(TypeError):
        ~tsum.map([[1], [None]])


def test_a_map_shows_its_loop():
    assert repr(add.map([1, 2])) == "[shop.add(x) for x in [1, 2]]"
    assert repr(add.starmap([(1, 2)])) == "[shop.add(*x) for x in [[1, 2]]]"
    assert len(repr(add.map(range(1000)))) < 150


def test_a_map_is_read_from_what_celery_wrote():
    inner = {"task": "shop.add", "args": [], "kwargs": {}, "options": {}, "immutable": False}
    written = {"task": "celery.map", "args": [], "kwargs": {"task": inner, "it": [1, 2]}}

    read = Signature.from_dict({**written, "immutable": True}, app=app)

    assert read == signature("pgtasks.map", (), {"task": "shop.add", "it": [1, 2]}, immutable=True)
    assert ~read == [1, 2]  # type: ignore[operator]


# Chunks


def test_chunks_are_a_group_of_starmaps():
    parts = add.chunks(zip(range(10), range(10), strict=True), 3)

    assert isinstance(parts, chunks)
    assert isinstance(parts, group)
    assert [len(part.kwargs["it"]) for part in parts.tasks] == [3, 3, 3, 1]  # type: ignore[attr-defined]
    assert parts.tasks[0] == add.starmap([(0, 0), (1, 1), (2, 2)])
    assert parts().get() == [[0, 2, 4], [6, 8, 10], [12, 14, 16], [18]]
    assert parts.apply_async(queue="other").get() == parts.delay().get() == parts.apply().get()


def test_chunks_as_a_group_are_a_group():
    parts = add.chunks([(1,), (2,), (3,)], 2)

    assert type(parts.group()) is group
    assert parts.group() == parts == group(add.starmap([(1,), (2,)]), add.starmap([(3,)]))
    assert (parts | tsum.map([[1]])).header == parts


def test_chunks_are_made_of_a_signature_as_well():
    assert chunks(add.s(), [(1,), (2,)], 1) == add.chunks([(1,), (2,)], 1)
    with pytest.raises(UnknownTaskError):
        chunks(signature("shop.unknown", app=app), [(1,)], 1)


def test_chunks_of_nothing_are_an_empty_group():
    assert add.chunks([], 10)().get() == []


@pytest.mark.parametrize("n", [0, -1, 2.5, "3", True, None])
def test_a_chunk_has_a_whole_number_of_calls(n: Any):
    with pytest.raises(
        ConfigurationError, match=r"^n, how many calls a job makes, is a whole number"
    ):
        add.chunks([(1,)], n)


@pytest.mark.parametrize(
    ("skew", "countdowns"),
    [
        ({}, [1.0, 2.0, 3.0, 4.0]),
        ({"start": 1, "stop": 10}, [1.0, 2.0, 3.0, 4.0]),
        ({"start": 1, "stop": 3}, [1.0, 2.0, 3.0, 3.0]),
        ({"start": 0, "step": 0.5}, [0.0, 0.5, 1.0, 1.5]),
        ({"start": 2, "stop": 5, "step": 2}, [2.0, 4.0, 4.0, 4.0]),
    ],
)
def test_skew_lets_each_member_wait_longer(skew: dict[str, Any], countdowns: list[float]):
    parts = add.chunks([(n,) for n in range(4)], 1).group()

    skewed = parts.skew(**skew)

    assert skewed is parts
    assert [part.options["countdown"] for part in parts.tasks] == countdowns


def test_skew_does_not_change_a_signature_that_stands_elsewhere_too():
    one = add.s(1)

    skewed = group(one, one).skew()

    assert [task.options for task in skewed.tasks] == [{"countdown": 1.0}, {"countdown": 2.0}]
    assert one.options == {}


def test_chunks_are_read_from_what_celery_wrote():
    written = {"task": "celery.chunks", "args": [], "kwargs": {"task": "shop.add", "n": 2}}
    written["kwargs"]["it"] = [[1], [2], [3]]  # type: ignore[index]

    assert Signature.from_dict(written, app=app) == add.chunks([(1,), (2,), (3,)], 2)


# The built-in tasks


@pytest.mark.parametrize(
    ("args", "kwargs", "result"),
    [
        (([1, 2],), {"index": 0}, [1, 2]),
        ((1, 2), {}, [1, 2]),
        ((), {}, []),
        ((1, 2), {"index": 1}, 2),
        ((1,), {"index": None}, [1]),
    ],
)
def test_accumulate_gives_what_it_is_given(args: Any, kwargs: Any, result: Any):
    assert app.signature("pgtasks.accumulate", args, kwargs).delay().get() == result


def test_accumulate_gathers_a_group():
    gathering = group(add.s(1, 1), add.s(2, 2)) | app.signature(
        "pgtasks.accumulate", (), {"index": 0}
    )

    assert ~gathering == [2, 4]


def test_the_built_in_tasks_are_known_where_they_are_wanted_and_listed_nowhere():
    other = App("other")
    other.task(name="other.task")(lambda: None)

    assert other.own_tasks() == ["other.task"]
    assert list(other.tasks) == ["other.task"]
    assert other.find_task("pgtasks.map").app is other
    assert other.known_task("other.task") is other.tasks["other.task"]
    assert other.known_task("other.unknown") is None
    assert other.own_tasks() == ["other.task"]
    with pytest.raises(UnknownTaskError, match=r"found other\.task$"):
        other.find_task("other.unknown")


def test_a_worker_knows_the_built_in_tasks():
    other = App("other")

    other.load()

    assert sorted(other.tasks) == ["pgtasks.accumulate", "pgtasks.map", "pgtasks.starmap"]
    assert other.own_tasks() == []
    assert other.queue_names() == ["default"]


@pytest.mark.parametrize("name", ["pgtasks.map", "pgtasks.mine"])
def test_names_of_built_in_tasks_are_not_for_others(name: str):
    with pytest.raises(ConfigurationError, match=r"names that begin with 'pgtasks\.' are those of"):
        App("other").task(name=name)(lambda: None)
