"""Draws a graph of jobs as a tree: what follows below what it waits for, groups with what leads to their members.

The rows say what each job waits for: a bundle. So every job, and every group, has one place before it at most, and a
graph is a forest: what follows stands below; where several things follow, they are branches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgtasks import Bundle, Job, JobState
from pgtasks_cli import output, relations

if TYPE_CHECKING:
    from rich.tree import Tree

    from pgtasks import App
    from pgtasks_cli.session import Session

# How many branches are drawn of one place, members of a group among them.
SHOWN = 10

RELATIONS = {"success": "then", "failure": "on failure", "stop": "afterwards"}


class Place:
    """A job or a group in a graph.

    Attributes:
        before: what it waits for.
        around: the group whose members it leads to, or is one of.
        lanes: of a group: what leads to its members begins with these, in the members' order.
        after: what waits for it, and what it enqueued.
        members: of what begins a lane: those that it leads to.
        replaces: whether it stands where a job was that it replaced.
    """

    __slots__ = ("after", "around", "before", "bundle", "id", "job", "lanes", "members", "replaces")

    def __init__(self, id: str, job: Job | None = None, bundle: Bundle | None = None) -> None:
        self.id = id
        self.job = job
        self.bundle = bundle
        self.before: Place | None = None
        self.around: Place | None = None
        self.lanes: list[Place] = []
        self.after: list[Place] = []
        self.members: list[Place] = []
        self.replaces = False

    def back(self) -> Iterator[Place]:
        """Yield it, and what lies before it."""
        place: Place | None = self
        while place is not None:
            yield place
            place = place.before


class Branch(NamedTuple):
    """A line of the drawing, and what hangs on it."""

    text: str
    state: str
    below: list[Branch]


def read_bundles(app: App, jobs: Sequence[Job]) -> list[Bundle]:
    """Return the bundles that jobs are members of or wait for, and the groups that these are steps in."""
    wanted = {job.bundle_id for job in jobs} | {job.after_bundle_id for job in jobs}
    found: dict[str, Bundle] = {}
    while ids := [id for id in wanted if id is not None and id not in found]:
        rows = app.bundles(ids=ids, limit=len(ids))
        found |= {one.id: one for one in rows}
        wanted = {one.parent_id for one in rows}
    return sorted(found.values(), key=lambda one: one.id)


class Layout:
    """Which place every job and group of a graph has.

    Args:
        jobs: all of the graph, oldest first.
        bundles: those of `read_bundles`.
    """

    def __init__(self, jobs: Sequence[Job], bundles: Sequence[Bundle]) -> None:
        self._rows = {one.id: one for one in bundles}
        self._jobs = {job.id: Place(job.id, job) for job in jobs}
        self._groups: dict[str, Place] = {}
        self._members: dict[str, list[Place]] = {}
        self._alone: dict[str, Place] = {}  # step -> its job
        for place in self._jobs.values():
            self._enter(place)
        for members in self._members.values():
            members.sort(key=_index)
        self._go_back()
        self._surround()
        self.roots = self._hang()

    def _enter(self, place: Place) -> None:
        """Note which bundles a job is in."""
        job = place.job
        assert job is not None
        row = self._rows.get(job.bundle_id or "")
        if row is None:
            return
        if row.kind == "step":
            self._alone[row.id] = place
            row = self._rows.get(row.parent_id or "")
        if row is not None:
            self._groups.setdefault(row.id, Place(row.id, bundle=row))
            self._members.setdefault(row.id, []).append(place)

    def _after(self, job: Job) -> Place | None:
        id = job.after_bundle_id or ""
        row = self._rows.get(id)
        if row is not None and row.kind == "group":
            return self._groups.setdefault(id, Place(id, bundle=row))
        return self._alone.get(id)

    def _go_back(self) -> None:
        """Find what is before each place: of a group, the last that is before all of its members."""
        for place in self._jobs.values():
            assert place.job is not None
            place.before = self._after(place.job)
        # Outermost last: what is before an inner group is not yet known, when an outer one asks for it.
        known: set[str] = set()
        for id in self._groups:
            stack = [id]
            while stack:
                inner = [
                    one.id
                    for one in self._leading(stack[-1])
                    if one.job is None and one.id not in known and one.id not in stack
                ]
                if inner:
                    stack.append(inner[0])
                    continue
                done = stack.pop()
                self._groups[done].before = self._common(done)
                known.add(done)

    def _leading(self, group_id: str) -> Iterator[Place]:
        """Yield what is before the members of a group, each place once."""
        seen: set[str] = set()
        for member in self._members.get(group_id, ()):
            for place in member.back():
                if place is not member:
                    if place.id in seen:
                        break
                    seen.add(place.id)
                    yield place

    def _common(self, group_id: str) -> Place | None:
        befores = {
            None if one.before is None else one.before.id: one.before
            for one in self._members.get(group_id, ())
        }
        first, *others = befores.values() or [None]
        if first is None:
            return None
        shared = [place.id for place in first.back()]
        for other in others:
            line = set() if other is None else {place.id for place in other.back()}
            shared = [id for id in shared if id in line]
        return (self._jobs.get(shared[0]) or self._groups[shared[0]]) if shared else None

    def _surround(self) -> None:
        """Find what lies within each group: its members, and what is before these and not before the group."""
        for group in self._groups.values():
            for member in self._members.get(group.id, ()):
                head = member
                for place in member.back():
                    if place is group.before:
                        break
                    head = place
                    if place.around is None:
                        place.around = group
                if head.around is group:
                    if not head.members:
                        group.lanes.append(head)
                    head.members.append(member)

    def _hang(self) -> list[Place]:
        """Hang everything on what it follows, or on what enqueued it; return what is on nothing."""
        roots = []
        places = [*self._groups.values(), *self._jobs.values()]
        places.sort(key=self._first_id)
        for place in places:
            if place.members:  # it begins a lane
                continue
            on = place.before or self._starter(place)
            if on is None:
                roots.append(place)
            else:
                on.after.append(place)
        return roots

    def _starter(self, place: Place) -> Place | None:
        """Return the job that enqueued it; of what replaced a job, what that one followed."""
        first = place if place.job is not None else next(iter(place.lanes), None)
        while first is not None and first.job is None:
            first = next(iter(first.lanes), None)
        if first is None or first.job is None:
            return None
        seen = {place.id}
        parent = self._jobs.get(first.job.parent_id or "")
        while parent is not None and parent.id not in seen:
            if not any(one is place for one in self._upwards(parent)):
                return parent
            place.replaces = True
            seen.add(parent.id)
            parent = self._jobs.get(parent.job.parent_id or "") if parent.job else None
        return None

    def _upwards(self, place: Place) -> Iterator[Place]:
        """Yield a place, and all that it is after or in."""
        left, seen = [place], set()
        while left:
            one = left.pop()
            if one.id in seen:
                continue
            seen.add(one.id)
            yield one
            left += [other for other in (one.before, one.around) if other is not None]

    def _first_id(self, place: Place) -> str:
        """Return by what places are in order: ids are ordered by time."""
        members = self._members.get(place.id, ())
        return place.id if place.job else min((one.id for one in members), default=place.id)


def _index(place: Place) -> tuple[int, str]:
    return (place.job and place.job.bundle_index) or 0, place.id


# Drawing


def draw(session: Session, jobs: Sequence[Job], layout: Layout, shown: int = SHOWN) -> None:
    """Print a graph: with rich on a terminal, with the same lines elsewhere."""
    states = Counter(job.state for job in jobs)
    listed = ", ".join(f"{states[state]:,} {state}" for state in JobState if state in states)
    tops: list[Branch] = []
    for place in layout.roots:
        tops += _line(place, None, shown)
    id = output.short_id(jobs[0].root_id or jobs[0].id)
    root = Branch(f"graph {id}  {output.plural(len(jobs), 'job')}: {listed}", "", tops)
    if output.is_terminal():
        output.console(session).print(_tree(root))
    else:
        for text in _lines(root):
            print(text)


def _line(place: Place, on: Place | None, shown: int) -> list[Branch]:
    """Draw a place, and below it what follows, as long as that is one thing; callbacks are aside."""
    found = []
    while True:
        steps = [one for one in place.after if _relation(one, place) == "then"]
        if len(steps) > 1:
            steps = [one for one in steps if one.after or one.job is None]
        goes_on = steps[0] if len(steps) == 1 else None
        aside = [one for one in place.after if one is not goes_on]
        below = [_branch(one, place, shown) for one in place.lanes[:shown]]
        below += _left_out(place.lanes, shown)
        below += [_branch(one, place, shown) for one in aside[:shown]]
        below += _left_out(aside, shown)
        found.append(Branch(_text(place, on), _state(place), below))
        if goes_on is None:
            return found
        on, place = place, goes_on


def _branch(place: Place, on: Place, shown: int) -> Branch:
    """Draw a place as one branch, with what follows on it."""
    first, *rest = _line(place, on, shown)
    return first._replace(below=[*first.below, *rest])


def _left_out(places: Sequence[Place], shown: int) -> list[Branch]:
    left = [end for one in places[shown:] for end in one.members or [one]]
    if not left:
        return []
    states = Counter(_state(one) for one in left)
    listed = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    return [Branch(f"… {len(left):,} more: {listed}", "", [])]


def _relation(place: Place, on: Place | None) -> str:
    if on is None:
        return ""
    if place.members:
        return f"{_index(place.members[0])[0]}"
    if place.before is not on:
        return "then" if place.replaces else "enqueued"
    after_on = place.job.after_on if place.job else "success"
    return RELATIONS.get(after_on or "success", "then")


def _text(place: Place, on: Place | None) -> str:
    if place.job is None:
        said = _group_text(place)
    else:
        job = place.job
        said = f"{job.task}  {job.state}  {output.short_id(job.id)}"
        if remark := note_of(job, place.before):
            said = f"{said}  {remark}"
    return output.one_line(f"{_relation(place, on)} {said}".strip())


def _group_text(place: Place) -> str:
    bundle = place.bundle
    assert bundle is not None
    done = f"{bundle.total - bundle.remaining:,} done"
    failed = f", {bundle.failed:,} failed" if bundle.failed else ""
    type = f" ({bundle.type})" if bundle.type else ""
    id = output.short_id(bundle.id)
    return f"group of {bundle.total:,}{type}  {bundle.state}  {id}  {done}{failed}"


def note_of(job: Job, before: Place | None) -> str | None:
    """Return what a job waits for, or what is odd about it."""
    if job.state is not JobState.BLOCKED:
        return relations.note(job)
    if before is None:
        return "waits"
    what = "the group" if before.job is None else before.job.task
    if job.after_on == "failure":
        return f"waits for a failure of {what}"
    return f"waits for {what}{relations.TAKES.get(job.takes or '', '')}"


def _state(place: Place) -> str:
    if place.job is not None:
        return str(place.job.state)
    return place.bundle.state if place.bundle else ""


def _lines(branch: Branch) -> Iterator[str]:
    """Yield the drawing as text, line by line; deep ones without recursion."""
    yield branch.text
    left = [(one, "", at == len(branch.below) - 1) for at, one in enumerate(branch.below)][::-1]
    while left:
        one, indent, is_last = left.pop()
        yield f"{indent}{'└── ' if is_last else '├── '}{one.text}"
        further = indent + ("    " if is_last else "│   ")
        left += [(sub, further, at == len(one.below) - 1) for at, sub in enumerate(one.below)][::-1]


def _tree(branch: Branch) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    def styled(one: Branch) -> Text:
        text = Text(one.text, no_wrap=True, overflow="ellipsis")
        if one.state in output.STATE_STYLES:
            start = one.text.find(f"  {one.state}  ") + 2
            text.stylize(output.STATE_STYLES[one.state], start, start + len(one.state))
        return text

    tree = Tree(styled(branch), guide_style="dim")
    left = [(tree, one) for one in branch.below[::-1]]
    while left:
        on, one = left.pop()
        node = on.add(styled(one))
        left += [(node, sub) for sub in one.below[::-1]]
    return tree
