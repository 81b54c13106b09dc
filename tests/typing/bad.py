"""What mypy must refuse. Never run.

Each refused line says so by a ``type: ignore[code]``, which mypy itself demands to be used; test_typing
takes them out and looks whether exactly these lines are errors, with these codes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pgtasks import (
    App,
    AsyncResult,
    Job,
    ResultSet,
    Signature,
    Task,
    WorkerOptions,
    chain,
    chord,
    group,
    signature,
)

app = App("shop")


@app.task
def send_email(to: str, subject: str = "Welcome") -> str:
    return to + subject


@app.task(retries=3)
def with_options(to: str, *, copies: int = 1) -> list[int]:
    return [copies]


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(retries=3)
async def fetch_with_options(url: str) -> bytes:
    return url.encode()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def shown(number: int) -> str:
    return str(number)


@app.task
def nothing() -> None: ...


@app.task(bind=True)
def bound(self: Task[..., Any], number: int) -> int:
    return number


def wrong_arguments(when: datetime) -> None:
    send_email.delay(too="x")  # type: ignore[call-arg]
    send_email.delay()  # type: ignore[call-arg]
    send_email.delay("ann", "hello", "more")  # type: ignore[call-arg]
    send_email.delay(to=3)  # type: ignore[arg-type]
    send_email(3)  # type: ignore[arg-type]
    with_options.delay("ann", 2)  # type: ignore[call-arg]
    with_options.delay("ann", copies="2")  # type: ignore[arg-type]
    fetch.delay(1)  # type: ignore[arg-type]
    fetch_with_options.delay(uri="url")  # type: ignore[call-arg]
    bound.delay("one")  # type: ignore[arg-type]
    bound.delay(bound, 1)  # type: ignore[call-arg, arg-type]
    send_email.apply_at(when, too="x")  # type: ignore[call-arg]
    send_email.apply_at("tomorrow", to="ann")  # type: ignore[arg-type]
    send_email.s(1)  # type: ignore[call-overload]
    send_email.si(too="x")  # type: ignore[call-arg]


async def wrong_twins(when: datetime) -> None:
    await send_email.adelay(too="x")  # type: ignore[call-arg]
    await send_email.aapply_at(when, to=1)  # type: ignore[arg-type]
    await send_email.delay("ann")  # type: ignore[misc]


def wrong_results() -> None:
    number: int = send_email.delay("ann").get()  # type: ignore[assignment]
    coroutine: AsyncResult[str] = fetch.delay("url")  # type: ignore[assignment]
    signature: Signature[int] = send_email.s("ann")  # type: ignore[assignment]
    members: list[int] = group(send_email.s("ann")).apply().get()  # type: ignore[assignment]
    length: int = fetch("url")  # type: ignore[assignment]
    del number, coroutine, signature, members, length


def wrong_sets(text: AsyncResult[str], number: AsyncResult[int]) -> None:
    texts = ResultSet([text])
    texts.add(number)  # type: ignore[arg-type]
    texts.update([number])  # type: ignore[list-item]
    lengths: list[int] = texts.get()  # type: ignore[assignment]
    texts.get(callback=lambda id: None)  # type: ignore[arg-type, misc]
    ResultSet([group([send_email.s("ann")]).apply()])  # type: ignore[arg-type]
    del lengths


def wrong_groups() -> None:
    group(send_email)  # type: ignore[call-overload]
    group([1, 2])  # type: ignore[arg-type]


def wrong_partials() -> None:
    add.s("2")  # type: ignore[call-overload]
    add.s(1, "2")  # type: ignore[call-overload]
    add.s(1, 2, 3)  # type: ignore[call-overload]
    add.s(z=2)  # type: ignore[call-overload]
    nothing.s(1)  # type: ignore[call-arg]
    add.si(1)  # type: ignore[call-arg]
    add.s(2).delay()  # type: ignore[call-arg]
    add.s(2).delay("3")  # type: ignore[arg-type]
    add.s(2)()  # type: ignore[call-arg]
    ~add.s(2)  # type: ignore[operator]
    complete: Signature[int] = add.s(2)  # type: ignore[assignment]
    del complete


def wrong_chains() -> None:
    add.s(1, 2) | shown.s() | add.s(3)  # type: ignore[operator]
    add.s(1, 2) | total.s()  # type: ignore[operator]
    chain(shown.s(1), add.s(2))  # type: ignore[misc]
    chain(add.s(1, 2), shown.s(), add.s(3))  # type: ignore[misc]
    chain(add.s(1, 2), add)  # type: ignore[call-overload]
    chain(1)  # type: ignore[call-overload]
    text: int = chain(add.s(1, 2), shown.s())().get()  # type: ignore[assignment]
    add.s(1, 2) | add  # type: ignore[operator]
    del text


def wrong_chords() -> None:
    group(shown.s(1)) | total.s()  # type: ignore[operator]
    group(add.s(1, 2)) | shown.s()  # type: ignore[operator]
    chord([shown.s(1)], total.s())  # type: ignore[misc]
    chord([add.s(1, 2)], total)  # type: ignore[call-overload]
    text: str = chord([add.s(1, 2)])(total.s()).get()  # type: ignore[assignment]
    del text


def wrong_callbacks() -> None:
    add.s(1, 2).link(total.s())  # type: ignore[arg-type]
    shown.s(1).link(add.s(1))  # type: ignore[arg-type]
    group(add.s(1, 2)).link(total.s())  # type: ignore[arg-type]
    add.s(1, 2).link_error(shown)  # type: ignore[arg-type]
    signature(3)  # type: ignore[call-overload]


def frozen(job: Job) -> None:
    job.queue = "other"  # type: ignore[misc]


def wrong_options() -> None:
    WorkerOptions(concurrencies=3)  # type: ignore[call-arg]
    WorkerOptions(concurrency="3")  # type: ignore[arg-type]
    App("shop", routes=3)  # type: ignore[arg-type]


def wrong_schedules() -> None:
    app.schedule(["* * * * *"])  # type: ignore[arg-type]
    app.add_periodic_task(5, send_email)  # type: ignore[arg-type]
    app.schedules.run_now(3)  # type: ignore[arg-type]
