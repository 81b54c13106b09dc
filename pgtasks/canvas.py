"""Descriptions of calls: `Signature` for one, `group` for several that finish together. No I/O here.

Everything that waits, waits for a bundle (see schema/): a group makes one. chain, chord and callbacks
stand on the same rows, and have their place in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from pgtasks.errors import ConfigurationError
from pgtasks.ids import new_id
from pgtasks.job import NewBundle, NewJob
from pgtasks.options import check_label

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult
    from pgtasks.task import Task  # noqa: TC004 (only Signature's annotation, which nothing evaluates)

R = TypeVar("R", covariant=True)


class Signature(msgspec.Struct, Generic[R], frozen=True):
    """A call that is described and not made yet.

    Attributes:
        task: the task.
        args: positional arguments. Those given at the call go before them.
        kwargs: keyword arguments. Those given at the call win.
        options: as for ``apply_async``.
        immutable: take no arguments at the call.
    """

    task: Task[..., R]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    immutable: bool = False

    def __repr__(self) -> str:
        given = [repr(arg) for arg in self.args] + [
            f"{name}={value!r}" for name, value in self.kwargs.items()
        ]
        return f"{self.task.name}({', '.join(given)})"

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """Return the signature with these arguments before its own, and these keywords and options added."""
        merged = {**self.options, **options}
        if self.immutable:
            return Signature(self.task, self.args, self.kwargs, merged, immutable=True)
        return Signature(self.task, (*args, *self.args), {**self.kwargs, **(kwargs or {})}, merged)

    def set(self, *, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Return the signature with options added."""
        return Signature(
            self.task,
            self.args,
            self.kwargs,
            {**self.options, **options},
            immutable=self.immutable if immutable is None else immutable,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without a job."""
        call = self.clone(args, kwargs)
        return self.task(*call.args, **call.kwargs)

    def __invert__(self) -> R:
        """Enqueue it and wait for its result: ``~sig``."""
        return self.delay().get()

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue it, with arguments and options added."""
        call = self.clone(args, kwargs, **options)
        return self.task.apply_async(call.args, call.kwargs, **call.options)

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue it, with arguments and options added."""
        call = self.clone(args, kwargs, **options)
        return await self.task.aapply_async(call.args, call.kwargs, **call.options)

    def apply(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Run it here and now as a worker would, without a database."""
        call = self.clone(args, kwargs, **options)
        return self.task.apply(call.args, call.kwargs, **call.options)

    def new_job(self) -> NewJob:
        """Build the job that the call makes."""
        options = dict(self.options)
        options.pop("connection", None)
        return self.task.new_job(self.args, self.kwargs, options)


class group(Generic[R]):  # noqa: N801 (Celery's name, used like a function)
    """Calls that run side by side and finish together, as one bundle.

    ``group(a.s(1), a.s(2))``, or one iterable of signatures.
    """

    def __init__(self, *signatures: Signature[R] | Iterable[Signature[R]]) -> None:
        if len(signatures) == 1 and isinstance(signatures[0], Iterable):
            members = list(signatures[0])
        else:
            members = cast("list[Signature[R]]", list(signatures))
        for member in members:
            if not isinstance(member, Signature):
                raise ConfigurationError(
                    f"a group is made of signatures, found {member!r}: write task.s(…)"
                )
        self.signatures: Sequence[Signature[R]] = members

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.signatures[:5]))
        return f"group({shown}{', …' if len(self.signatures) > 5 else ''})"

    def __len__(self) -> int:
        return len(self.signatures)

    def __iter__(self) -> Iterator[Signature[R]]:
        return iter(self.signatures)

    def apply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> GroupResult[R]:
        """Enqueue all members as one bundle, in one transaction.

        Args:
            type: what kind of bundle it is, for people and for listeners.
            origin: where it comes from, for people; members that name none take it over.
            app: whose database; needed for an empty group only.
            connection: write on this connection, in its transaction.
        """
        app = self._app(app)
        return app.send_group(*self._rows(type, origin), connection)

    async def aapply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> GroupResult[R]:
        """Enqueue all members as one bundle, in one transaction; see `apply`."""
        app = self._app(app)
        return await app.asend_group(*self._rows(type, origin), connection)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        connection: Any = None,
        **options: Any,
    ) -> GroupResult[R]:
        """Enqueue all members with arguments and options added to each."""
        return group(self._with(args, kwargs, options)).apply(connection=connection)

    async def aapply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        connection: Any = None,
        **options: Any,
    ) -> GroupResult[R]:
        """Enqueue all members with arguments and options added to each."""
        return await group(self._with(args, kwargs, options)).aapply(connection=connection)

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments added to each."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments added to each."""
        return await self.aapply_async(args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments added to each."""
        return self.apply_async(args, kwargs)

    def _with(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> list[Signature[R]]:
        if not (args or kwargs or options):
            return list(self.signatures)
        return [member.clone(args, kwargs, **options) for member in self.signatures]

    def _app(self, app: App | None) -> App:
        from pgtasks.context import current_app

        return app or (self.signatures[0].task.app if self.signatures else current_app())

    def _rows(self, type: str | None, origin: str | None) -> tuple[list[NewJob], NewBundle]:
        for what, text in (("a bundle's type", type), ("origin", origin)):
            if text is not None:
                check_label(what, text)
        bundle = NewBundle(id=new_id(), type=type, origin=origin, total=len(self.signatures))
        jobs = []
        for index, member in enumerate(self.signatures):
            job = member.new_job()
            job.bundle_id = bundle.id
            job.bundle_index = index
            job.origin = job.origin or origin
            jobs.append(job)
        return jobs, bundle
