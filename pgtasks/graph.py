"""Compiles a canvas into what is written: jobs, and the bundles that they are in or wait for. Pure.

Everything that waits, waits for a bundle (see schema/migrations/0006). A chain's step, and a job with callbacks, is
alone in a bundle of kind *step*; a group and a chord's header are bundles of kind *group*, and groups within
groups become one. What follows waits for that bundle and takes its result, or its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import orjson

from pgtasks import codec
from pgtasks.canvas import Node, chain, chord, group
from pgtasks.context import current_request
from pgtasks.errors import ConfigurationError, EncodingError
from pgtasks.groups import ends_as_group
from pgtasks.ids import new_id, parse_id
from pgtasks.job import NewBundle, NewJob
from pgtasks.options import check_label
from pgtasks.signatures import NamedTask, Partial, Signature
from pgtasks.unique import without_key

MAX_NESTING = 64
# Of a chain. If the first fails, all others are cancelled in the transaction that says so, which has 5 s; a step takes
# 0.3 ms, on a quiet machine.
MAX_STEPS = 5000
MAX_REPLACEMENT = 16 * 2**20  # bytes of JSON
# Of the options of a signature, those that make no part of its job.
NOT_THE_JOBS = frozenset(("link", "link_error", "connection"))


class Bundle(msgspec.Struct, eq=False):
    """A bundle in the making.

    Attributes:
        parent: the group that a step is in.
        taken: whether somebody takes its results, so that they must be kept.
        wait: of a group: what all of it waits for.
        settled: whether ``wait`` is known: groups in a group do not change it.
    """

    id: str
    kind: Literal["group", "step"]
    parent: Bundle | None = None
    taken: bool = False
    total: int = 0
    depth: int = 0
    type: str | None = None
    origin: str | None = None
    wait: Wait | None = None
    settled: bool = False

    @property
    def after(self) -> Bundle | None:
        """The bundle that decides whether any of a group runs."""
        return None if self.wait is None else self.wait.bundle


class Wait(NamedTuple):
    """What a job waits for, and what it takes from there."""

    bundle: Bundle | None
    on: Literal["success", "failure"]
    takes: Literal["result", "results", "error"] | None = None
    input: str | None = None  # instead, for what takes the results of nothing
    parent_id: str | None = None  # the job before, if it is one


class JobEnd(NamedTuple):
    """The last job of something: what its caller gets a result of."""

    job: NewJob
    parent: End | None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


class GroupEnd(NamedTuple):
    """The last group of something."""

    bundle: Bundle
    members: Sequence[JobEnd]
    parent: End | None

    @property
    def id(self) -> str:
        """The bundle's id."""
        return self.bundle.id


End = JobEnd | GroupEnd


class Graph(NamedTuple):
    """What is written for a canvas, in the order in which it is written.

    Attributes:
        jobs: every job; those that wait have an ``after_bundle_id``.
        bundles: every bundle, with the number of its members.
        end: what the caller gets a result of.
    """

    jobs: Sequence[NewJob]
    bundles: Sequence[NewBundle]
    end: End

    def without(self, ignores: Callable[[NewJob], bool]) -> Graph:
        """Return the graph without some jobs, and without what waits for nothing but these."""
        ignored = {job.id for job in self.jobs if ignores(job)}
        if not ignored:
            return self
        totals = {one.id: one.total for one in self.bundles}
        parents = {one.id: one.parent_id for one in self.bundles}
        waiting: dict[str, list[NewJob]] = {}
        for job in self.jobs:
            if job.after_bundle_id is not None:
                waiting.setdefault(job.after_bundle_id, []).append(job)
        gone = [job for job in self.jobs if job.id in ignored]
        empty: set[str] = set()
        while gone:
            bundle_id = gone.pop().bundle_id
            while bundle_id is not None:
                totals[bundle_id] -= 1
                if totals[bundle_id]:
                    break
                empty.add(bundle_id)
                follow = [job for job in waiting.get(bundle_id, ()) if job.id not in ignored]
                ignored.update(job.id for job in follow)
                gone.extend(follow)
                bundle_id = parents[bundle_id]
        return Graph(
            [job for job in self.jobs if job.id not in ignored],
            [
                msgspec.structs.replace(one, total=totals[one.id])
                for one in self.bundles
                if one.id not in empty
            ],
            self.end,
        )

    def replacement(self) -> str:
        """Return the graph as what takes the place of a running job: see pgtasks.replace_job in schema/.

        Raises:
            EncodingError: it is too large.
        """
        assert isinstance(self.end, JobEnd)
        last = self.end.job
        step = next((one for one in self.bundles if one.id == last.bundle_id), None)
        text = orjson.dumps(
            {
                "jobs": [_document(job) for job in self.jobs if job is not last],
                "bundles": [msgspec.structs.asdict(one) for one in self.bundles if one is not step],
                "last": _document(last),
                "step": None if step is None else step.id,
                "step_depth": 0 if step is None else step.depth,
            }
        )
        if len(text) > MAX_REPLACEMENT:
            raise EncodingError(
                f"a graph that replaces a job takes {MAX_REPLACEMENT} bytes at most, found {len(text)}: "
                "enqueue it beside the job instead"
            )
        return text.decode()


def compile_graph(
    node: Node[Any, Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    type: str | None = None,
    origin: str | None = None,
) -> Graph:
    """Compile a canvas.

    Args:
        node: what to compile.
        args: what is added at the call: positional arguments for what runs first.
        kwargs: keyword arguments for what runs first.
        options: as the ``clone`` and the ``apply_async`` of the node take them.
        type: of the group at the end, or of the chord's header: what kind of bundle it is, for people.
        origin: of that bundle, and of every job that names none.

    Raises:
        ConfigurationError: a chain has no step, or too many, or a chord no body, or the canvas is nested too deeply.
        TypeError: a function does not take these arguments.
        EncodingError: JSON cannot carry one of the arguments.
    """
    for what, text in (("a bundle's type", type), ("origin", origin)):
        if text is not None:
            check_label(what, text)
    if args or kwargs or options:
        node = node.clone(args, kwargs, **(options or {}))
    compiler = _Compiler(type, origin)
    end = compiler.add(node, None, None)
    return Graph(compiler.jobs, compiler.finished_bundles(), end)


def compile_members(node: Node[Any, Any], place_id: str) -> Graph:
    """Compile what is to be a member, or several, of a group that is there already, under a stand-in for its id."""
    compiler = _Compiler(None, None)
    place = Bundle(place_id, "group", taken=True, settled=True)
    end = compiler.add(node, None, place)
    compiler.bundles.append(place)
    bundles = [one for one in compiler.finished_bundles() if one.id != place_id]
    return Graph(compiler.jobs, bundles, end)


class _Compiler:
    def __init__(self, type: str | None, origin: str | None) -> None:
        self.jobs: list[NewJob] = []
        self.bundles: list[Bundle] = []
        self._type = type
        self._origin = origin
        # bundle id -> bundles of the jobs that wait for it
        self._followers: dict[str, list[Bundle]] = {}
        request = current_request()
        self._root_id = None if request is None else request.root_id
        self._nesting = 0

    def add(self, node: Node[Any, Any], wait: Wait | None, place: Bundle | None) -> End:
        """Add a node.

        Args:
            node: what to add.
            wait: what its first jobs wait for.
            place: the bundle that its last jobs are members of; None: none but what they need themselves.
        """
        if isinstance(node, Partial):
            return self._add_job(node, wait, place)
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise ConfigurationError(
                f"a canvas is nested {MAX_NESTING} deep at most: found chains, groups or chords deeper than that"
            )
        try:
            if isinstance(node, group):
                return self._add_group(node, wait, place)
            if isinstance(node, chord):
                return self._add_steps(node.parts(), wait, place, is_chord=True)
            assert isinstance(node, chain), node
            return self._add_steps(node.unchain_tasks(), wait, place)
        finally:
            self._nesting -= 1

    def _add_steps(
        self,
        nodes: Sequence[Node[Any, Any]],
        wait: Wait | None,
        place: Bundle | None,
        is_chord: bool = False,
    ) -> End:
        """Add one after the other; of a chord, the header and the body."""
        if len(nodes) > MAX_STEPS:
            raise ConfigurationError(
                f"a chain has {MAX_STEPS} steps at most, found {len(nodes)}: let its last step go on with another one, "
                "by self.replace(chain(…))"
            )
        parent: End | None = None
        for node in nodes[:-1]:
            grouped = is_chord or ends_as_group(node)
            bundle = self._open("group" if grouped else "step")
            bundle.taken = True
            if grouped:
                self._label(bundle)
            end = self.add(node, wait, bundle)
            parent = end if parent is None else with_parent(end, parent)
            if not bundle.total:  # an empty group: what follows waits for what came before it
                wait = (bundle.wait or Wait(None, "success"))._replace(takes=None, input="[]")
            elif isinstance(end, JobEnd) and not grouped:
                wait = Wait(bundle, "success", "result", parent_id=end.id)
            else:
                wait = Wait(bundle, "success", "results")
        end = self.add(nodes[-1], wait, place)
        return end if parent is None else with_parent(end, parent)

    def _add_group(self, node: group[Any], wait: Wait | None, place: Bundle | None) -> GroupEnd:
        bundle = place
        if bundle is None:
            id = node.options.get("task_id")
            bundle = self._open("group", id=None if id is None else parse_id(str(id)))
            self._label(bundle)
        if not bundle.settled:
            bundle.wait, bundle.settled = wait, True
        members: list[JobEnd] = []
        for member in node.unroll():
            if wait is None and type(member) is Signature and not member.options:
                # Most members of large groups: each call less is a percent.
                job = self._new_job(member, None, bundle)
                job.bundle_id, job.bundle_index = bundle.id, bundle.total
                bundle.total += 1
                self.jobs.append(job)
                members.append(JobEnd(job, None))
                continue
            end = self.add(member, wait, bundle)
            if isinstance(end, JobEnd):
                members.append(end)
            else:  # the group at the end of a chain
                members.extend(end.members)
        return GroupEnd(bundle, members, None)

    def _label(self, bundle: Bundle) -> None:
        """Give the first group its labels: a chord's header, or the group at the end."""
        bundle.type, bundle.origin = self._type, self._origin
        self._type = None

    def _add_job(
        self, signature: Partial[Any, Any], wait: Wait | None, place: Bundle | None
    ) -> JobEnd:
        options = signature.options
        link: Sequence[Node[Any, Any]] = options.get("link", ())
        link_error: Sequence[Node[Any, Any]] = options.get("link_error", ())
        bundle = place
        if (link or link_error) and (place is None or place.kind == "group"):
            bundle = self._open("step", place)
        if bundle is not None and any(not _is_immutable(one) for one in link):
            bundle.taken = True

        job = self._new_job(signature, wait, bundle)
        self.jobs.append(job)
        if bundle is not None:
            counted = place or bundle
            job.bundle_id, job.bundle_index = bundle.id, counted.total
            counted.total += 1
            if counted is not bundle:
                bundle.total = 1
        if wait is not None:
            self._let_wait(job, wait, signature.immutable, bundle)

        for callback in link:
            self.add(callback, Wait(bundle, "success", "result", parent_id=job.id), None)
        for errback in link_error:
            self.add(errback, Wait(bundle, "failure", "error", parent_id=job.id), None)
        return JobEnd(job, None)

    def _new_job(
        self, signature: Partial[Any, Any], wait: Wait | None, bundle: Bundle | None
    ) -> NewJob:
        task, options = signature.task, signature.options
        if options:
            options = {name: value for name, value in options.items() if name not in NOT_THE_JOBS}
        taken = bundle is not None and (
            bundle.taken or (bundle.parent is not None and bundle.parent.taken)
        )
        if taken and (may_ignore(task) or options.get("ignore_result")):
            options = {**options, "ignore_result": False}
        given: Sequence[int] = ()
        if wait is not None and not signature.immutable and (wait.takes or wait.input):
            # One that takes an error may be of the old style: with the job, its error and its traceback.
            given = (1, 3) if wait.takes == "error" else (1,)
        job = task.new_job(signature.args, signature.kwargs, options, given=given)
        job.origin = job.origin or self._origin
        if self._root_id is None:
            self._root_id = job.id
        job.root_id = self._root_id
        return job

    def _let_wait(self, job: NewJob, wait: Wait, immutable: bool, bundle: Bundle | None) -> None:
        if not immutable:
            job.takes, job.input = wait.takes, wait.input
        if wait.parent_id is not None:
            job.parent_id = wait.parent_id
        if wait.bundle is None:
            return
        job.after_bundle_id, job.after_on = wait.bundle.id, wait.on
        if bundle is not None:
            self._followers.setdefault(wait.bundle.id, []).append(bundle)
        # Times count from when it no longer waits, as if it were enqueued then.
        stored: dict[str, Any] = {}
        if job.delay is not None:
            stored["countdown"], job.delay = job.delay, None
        if job.expires_in is not None:
            stored["expires_in"], job.expires_in = job.expires_in, None
        if wait.takes == "error":
            stored["errback"] = True
        if stored:
            said = codec.decode(job.options, "options") if job.options else {}
            job.options = codec.encode({**said, **stored}, "options")

    def _open(
        self, kind: Literal["group", "step"], parent: Bundle | None = None, id: str | None = None
    ) -> Bundle:
        bundle = Bundle(id or new_id(), kind, parent)
        self.bundles.append(bundle)
        return bundle

    def finished_bundles(self) -> list[NewBundle]:
        """Return what is written for the bundles: each deeper than those that are counted because of it."""
        if len(self.bundles) > 1:
            self._measure_depths()
        return [
            NewBundle(
                id=one.id,
                kind=one.kind,
                type=one.type,
                origin=one.origin,
                parent_id=None if one.parent is None else one.parent.id,
                after_bundle_id=None if one.after is None else one.after.id,
                after_on=None if one.after is None or one.wait is None else one.wait.on,
                root_id=self._root_id,
                depth=one.depth,
                total=one.total,
            )
            for one in self.bundles
        ]

    def _measure_depths(self) -> None:
        measured: set[str] = set()
        for first in self.bundles:
            stack = [(first, False)]
            while stack:
                bundle, followed = stack.pop()
                if bundle.id in measured:
                    continue
                after = self._followers.get(bundle.id, [])
                if bundle.parent is not None:
                    after = [*after, bundle.parent]
                if followed:
                    bundle.depth = max((one.depth + 1 for one in after), default=0)
                    measured.add(bundle.id)
                else:
                    stack.append((bundle, True))
                    stack.extend((one, False) for one in after)


def may_ignore(task: Any) -> bool:
    """Whether a task's results may not be kept, unless the call says so; of one that is not known here, always."""
    return isinstance(task, NamedTask) or not task.options.stores_result


def with_parent(end: End, parent: End) -> End:
    """Return an end with this one before everything that is before it."""
    line: list[End] = []
    before: End | None = end
    while before is not None:
        line.append(before)
        before = before.parent
    for one in reversed(line):
        parent = one._replace(parent=parent)
    return parent


def _is_immutable(node: Node[Any, Any]) -> bool:
    return isinstance(node, Partial) and node.immutable


def _document(job: NewJob) -> dict[str, Any]:
    """Return a job as JSON can carry it; its options are JSON already.

    Without a unique key: in a job's place others go on, which has its own; and they are written when its attempt is
    over, where nobody is left who could be told of a conflict.
    """
    document = msgspec.structs.asdict(job)
    unique = document.pop("unique")
    if unique is not None:
        left = without_key(codec.decode(job.options or "{}", "options"))
        document["options"] = left or None
    elif job.options is not None:
        document["options"] = orjson.Fragment(job.options)
    return document


def read_replacement(text: str) -> Graph:
    """Read what `Graph.replacement` wrote, for an eager run."""
    document = orjson.loads(text)
    jobs = [_new_job(one) for one in (*document["jobs"], document["last"])]
    bundles = [NewBundle(**one) for one in document["bundles"]]
    last = jobs[-1]
    if document["step"] is not None:
        bundles.append(NewBundle(id=document["step"], total=1, kind="step"))
    return Graph(jobs, bundles, JobEnd(last, None))


def _new_job(document: dict[str, Any]) -> NewJob:
    if document["options"] is not None:
        document["options"] = orjson.dumps(document["options"]).decode()
    return NewJob(**document)
