"""What mypy must accept, with the types that users see. Never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, assert_type

from pgtasks import (
    App,
    AsyncResult,
    EagerResult,
    GroupResult,
    Job,
    Partial,
    Progress,
    ResultSet,
    Schedule,
    Signature,
    Task,
    allow_join_result,
    chain,
    chord,
    chunks,
    crontab,
    current_job,
    every,
    expo,
    fixed,
    group,
    linear,
    shared_task,
    signature,
)

app = App("shop", soft_time_limit=60, time_limit=90)


@app.schedule("30 2 * * *", timezone="Europe/Vienna", catch_up="all", args=("ann@example.com",))
@app.schedule(every(timedelta(hours=6)), name="often", args=("ann@example.com",), queue="mail")
@app.task
def send_email(to: str, subject: str = "Welcome") -> str:
    return to + subject


@app.task(retries=3, retry_schedule=expo, queue="mail")
def with_options(to: str, *, copies: int = 1) -> list[int]:
    return [copies]


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(retries=3, retry_schedule=expo(base=3), time_limit=10)
async def fetch_with_options(url: str, timeout: float = 1.0) -> bytes:
    return url.encode()


@app.task(bind=True)
def bound(self: Task[..., Any], number: int) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=3)
    return number


@app.task(bind=True, retries=1)
async def bound_async(self: Task[..., Any], number: int) -> int:
    return number


@app.task(raw=True, name="custom-job")
def raw(job: Job) -> str:
    return job.id


@app.task
def nothing() -> None: ...


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def shown(number: int, prefix: str = "", *, width: int = 0) -> str:
    return f"{prefix}{number:{width}}"


@app.task
async def length(text: str) -> int:
    return len(text)


@app.task
def log_error(request: Any, exc: Any, traceback: Any) -> None: ...


@app.task
def create_user(username: str, first: str, last: str, email: str) -> int:
    return 1


@shared_task
def shared(number: int) -> int:
    return number


@shared_task(queue="other")
def shared_with_options(number: int) -> int:
    return number


def plain_calls() -> None:
    assert_type(send_email("ann"), str)
    assert_type(with_options("ann", copies=2), list[int])
    assert_type(bound(3), int)


def enqueueing() -> None:
    assert_type(send_email.delay(to="ann"), AsyncResult[str])
    assert_type(send_email.delay("ann", subject="Hello"), AsyncResult[str])
    assert_type(with_options.delay("ann", copies=2), AsyncResult[list[int]])
    assert_type(fetch.delay("url"), AsyncResult[bytes])
    assert_type(fetch_with_options.delay("url", timeout=2), AsyncResult[bytes])
    assert_type(bound.delay(3), AsyncResult[int])
    assert_type(bound_async.delay(number=3), AsyncResult[int])
    assert_type(raw.delay("anything", goes=1), AsyncResult[str])
    assert_type(nothing.delay(), AsyncResult[None])
    assert_type(shared.delay(1), AsyncResult[int])
    assert_type(shared_with_options.delay(number=1), AsyncResult[int])
    assert_type(send_email.apply_async(("ann",), {"subject": "x"}, countdown=10), AsyncResult[str])
    assert_type(send_email.apply_async(kwargs={"to": "ann"}, queue="mail"), AsyncResult[str])
    assert_type(send_email.apply(("ann",)), EagerResult[str])
    assert_type(app.send_task("shop.unknown", (1,)), AsyncResult[Any])


def at_a_moment(when: datetime, soon: timedelta) -> None:
    assert_type(send_email.apply_at(when, to="ann"), AsyncResult[str])
    assert_type(send_email.apply_at(soon, "ann", "Hello"), AsyncResult[str])
    assert_type(fetch.apply_at(when, "url"), AsyncResult[bytes])


async def twins(when: datetime) -> None:
    assert_type(await send_email.adelay(to="ann"), AsyncResult[str])
    assert_type(await fetch.adelay("url"), AsyncResult[bytes])
    assert_type(await send_email.aapply_async(("ann",)), AsyncResult[str])
    assert_type(await send_email.aapply_at(when, to="ann"), AsyncResult[str])
    result = await send_email.adelay("ann")
    assert_type(await result.aget(timeout=3), str)
    assert_type(await fetch("url"), bytes)
    coroutine: Coroutine[Any, Any, bytes] = fetch("url")
    await coroutine


def results(result: AsyncResult[str], members: GroupResult[int]) -> None:
    assert_type(result.get(timeout=3), str)
    assert_type(result.state, str)
    assert_type(result.ready(), bool)
    assert_type(result.job(), Job)
    assert_type(members.get(), list[int])
    result.revoke(terminate=True, signal="SIGTERM")
    members.revoke(terminate=True, wait=True, timeout=3.0)
    assert_type(
        app.cancel(result, "an id", terminate=False), dict[str, Literal["cancelled", "requested"]]
    )
    assert_type(members[0], AsyncResult[int])
    assert_type(members.completed_count(), int)
    assert_type([one.get() for one in members], list[int])


def several_results(
    text: AsyncResult[str], other: AsyncResult[str], number: AsyncResult[int]
) -> None:
    results = ResultSet([text, other])
    assert_type(results, ResultSet[str])
    assert_type(results.get(timeout=3), list[str])
    assert_type(results.join(callback=lambda id, value: id + value.upper()), list[str])
    assert_type(results.iterate(), Iterator[str])
    assert_type(results.aiterate(), AsyncIterator[str])
    assert_type(next(results.iter_native())[0], str)
    assert_type(results[0], AsyncResult[str])
    assert_type(results.maybe_throw(), None)
    mixed: ResultSet[object] = ResultSet([text, number])
    mixed.add(number)
    with allow_join_result():
        assert_type(mixed.get(), list[object])


def trees(result: AsyncResult[str], members: GroupResult[int]) -> None:
    assert_type(result.parent, AsyncResult[Any] | GroupResult[Any] | None)
    assert_type(result.children, list[AsyncResult[Any] | GroupResult[Any]])
    assert_type(members.children, list[AsyncResult[int]])
    assert_type(result.info, Any)
    assert_type(result.maybe_throw(), str)
    assert_type(result.get(3, True, 0.5, follow_parents=False, callback=print), str)
    assert_type(result.date_done, datetime | None)
    assert_type(next(result.collect())[1], Any)
    assert_type(app.AsyncResult("an id"), AsyncResult[Any])
    assert_type(app.GroupResult.restore("an id"), GroupResult[Any])
    assert_type(GroupResult.restore("an id", app), GroupResult[Any])


def covariance() -> None:
    signature: Signature[object] = send_email.s("ann")
    mixed: group[object] = group(send_email.s("ann"), bound.s(1))
    result: AsyncResult[object] = send_email.delay("ann")
    del signature, mixed, result


def signatures() -> None:
    assert_type(send_email.s("ann"), Signature[str])
    assert_type(send_email.si(to="ann"), Signature[str])
    assert_type(fetch.s("url"), Signature[bytes])
    assert_type(bound.s(3), Signature[int])
    assert_type(send_email.signature(("ann",), queue="mail"), Signature[str])
    assert_type(send_email.s("ann").set(queue="mail"), Signature[str])
    assert_type(send_email.s("ann").clone(("bob",)), Signature[str])
    assert_type(send_email.s("ann").delay(), AsyncResult[str])
    assert_type(send_email.s("ann")(), str)
    assert_type(~send_email.s("ann"), str)


def groups(people: Sequence[str]) -> None:
    assert_type(group(send_email.s(to) for to in people), group[str])
    assert_type(group(bound.s(1), bound.s(2)), group[int])
    assert_type(group([fetch.s("url")]), group[bytes])
    assert_type(group(bound.s(1)).apply(), GroupResult[int])
    assert_type(group(bound.s(1)).delay(), GroupResult[int])
    assert_type(group(bound.s(1)).apply().get(), list[int])


def partials() -> None:
    assert_type(add.s(1, 2), Signature[int])
    assert_type(add.s(2), Partial[int, int])
    assert_type(add.s(y=2), Partial[int, int])
    assert_type(add.s(), Partial[int, int])
    assert_type(shown.s(1), Signature[str])
    assert_type(shown.s(), Partial[int, str])
    assert_type(shown.s(width=3), Partial[int, str])
    assert_type(length.s(), Partial[str, int])
    assert_type(bound.s(), Partial[int, int])
    assert_type(create_user.s("Ann", "Lee", "ann@example.com"), Partial[str, int])
    assert_type(create_user.s("Lee", "ann@example.com"), Partial[str, int])
    assert_type(create_user.s(), Partial[str, int])
    assert_type(raw.s(), Signature[str])
    assert_type(nothing.s(), Signature[None])
    assert_type(add.s(2).delay(3), AsyncResult[int])
    assert_type(add.s(2)(3), int)
    assert_type(add.s(2).clone((3,)), Signature[int])
    assert_type(add.s(2).set(queue="sums"), Partial[int, int])
    assert_type(add.s(2).on_error(log_error.s()), Partial[int, int])
    needs_a_number: Partial[int, object] = add.s(1, 2)
    needs_a_number = shown.s()
    del needs_a_number


def chains() -> None:
    assert_type(chain(add.s(1, 2)), chain[int])
    assert_type(chain(add.s(1, 2), shown.s()), chain[str])
    assert_type(chain(add.s(1, 2), shown.s(), length.s()), chain[int])
    assert_type(chain(add.s(1, 2), add.s(1), add.s(1), add.s(1), shown.s()), chain[str])
    assert_type(chain(add.s(1, 2), nothing.si()), chain[None])
    assert_type(chain(add.s(n) for n in range(3)), chain[Any])
    assert_type(add.s(1, 2) | shown.s(), chain[str])
    assert_type(add.s(2) | shown.s() | length.s(), chain[int])
    assert_type(add.s(1, 2) | (add.s(2) | shown.s()), chain[str])
    assert_type(chain(add.s(1, 2), shown.s())(), AsyncResult[str])
    assert_type(chain(add.s(1, 2), shown.s()).delay().get(), str)
    assert_type(~(add.s(1, 2) | shown.s()), str)
    assert_type(add.s(1, 2) | group(shown.s(), shown.s()), chain[list[str]])
    assert_type(~(add.s(1, 2) | group(add.s(1), add.s(2)) | total.s()), int)
    chain(add.s(1, 2), add.s(3), app=app, queue="sums")
    mixed: chain[object] = chain(add.s(1, 2), shown.s())
    del mixed


def chords(numbers: Sequence[int]) -> None:
    assert_type(chord([add.s(1, 2), add.s(3, 4)], total.s()), chord[int])
    assert_type(chord((add.s(n, n) for n in numbers), total.s()), chord[int])
    assert_type(chord(group(add.s(1, 2)), total.s()), chord[int])
    assert_type(group(add.s(n, n) for n in numbers) | total.s(), chord[int])
    assert_type(group(add.s(1, 2)) | total.s() | shown.s(), chord[str])
    assert_type(chord([add.s(1, 2)])(total.s()), AsyncResult[int])
    assert_type(chord([add.s(1, 2)], total.s())(), AsyncResult[int])
    assert_type((group(add.s(1, 2)) | shown.si(3))(countdown=3), AsyncResult[str])
    assert_type(chord([add.s(1, 2)])(total.s()).get(), int)
    assert_type(chord([add.s(1, 2)], nothing.si()).delay(), AsyncResult[None])
    assert_type(~chord([add.s(1, 2)], total.s()), int)


def callbacks(result: AsyncResult[int]) -> None:
    one = add.s(1, 2)
    one.link(shown.s())
    one.link(nothing.si())
    one.link(chain(add.s(1), shown.s()))
    one.link_error(log_error.s())
    chord([one], total.s()).link(add.s(1))
    group(one, add.s(3, 4)).link(shown.s())
    assert_type(one.on_error(log_error.s()), Signature[int])
    assert_type(
        add.apply_async((1, 2), link=shown.s(), link_error=[log_error.s()]), AsyncResult[int]
    )


def loops() -> None:
    assert_type(add.map([1, 2]), Signature[list[int]])
    assert_type(~shown.starmap([(1, "a"), (2, "b")]), list[str])
    assert_type(add.chunks([(1, 2)], 3), chunks[int])
    assert_type(add.chunks([(1, 2)], 3).group(), group[list[int]])
    assert_type(~add.chunks([(1, 2)], 3), list[list[int]])
    assert_type(group(add.s(1, 2)).skew(start=1, stop=10), group[int])


def by_name() -> None:
    assert_type(signature("shop.unknown", (1,), countdown=3), Signature[Any])
    assert_type(signature(add, (1, 2)), Signature[int])
    chain(add.s(1, 2), signature("shop.unknown"), shown.s())


def schedules() -> None:
    app.task(retry_schedule=linear(step=5))(lambda: 1)
    app.task(retry_schedule=fixed(3))(lambda: 1)
    app.task(retry_schedule=[1, timedelta(minutes=5)])(lambda: 1)
    app.task(retry_schedule=lambda job, error: 5.0)(lambda: 1)


def on_a_connection(connection: object) -> None:
    assert_type(send_email.using(connection).delay("ann"), AsyncResult[str])
    with app.connection(connection), app.eager(), app.ignoring(send_email, "other") as discarded:
        assert_type(discarded[0].task, str)


def progress(job: Job) -> None:
    current_job().progress(12, 40, "reading")
    current_job().progress(0.5, total=1.0)
    bound.update_state(state="READING", meta={"page": 3})
    assert_type(job.progress, Progress)
    assert_type(job.progress.done, int | float | None)
    assert_type(job.progress.text(), str)


def listeners() -> None:
    @app.on_job_stopped
    def stopped(job: Job, will_retry: bool) -> None: ...

    @app.on_child_start
    def started() -> None: ...


async def ticking() -> None:
    name = app.add_periodic_task(crontab(minute=0, hour={1, 2}), send_email.s("ann@example.com"))
    assert_type(name, str)
    assert_type(app.schedules.list(), list[Schedule])
    assert_type(await app.schedules.aget(name), Schedule)
    assert_type(app.schedules.run_now(name), AsyncResult[Any])
    assert_type(send_email.delay("ann@example.com"), AsyncResult[str])  # as if it had no schedule
