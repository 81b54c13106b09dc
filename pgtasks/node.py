"""What every part of a canvas can do: `Node`; its options, and its form as data.

A canvas is a tree of nodes: signatures (`pgtasks.signatures`), and the groups, chains and chords made of them
(`pgtasks.groups`, `pgtasks.canvas`). Nodes are descriptions: no I/O here.

As in Celery, `set`, `link` and `link_error` change the node; `clone` and ``|`` make a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, cast

from pgtasks import codec
from pgtasks.context import current_app
from pgtasks.errors import ConfigurationError
from pgtasks.options import BUILTIN
from pgtasks.parameters import read_as

if TYPE_CHECKING:
    from typing import Self

    from pgtasks.app import App
    from pgtasks.job import NewJob

A = TypeVar("A", contravariant=True)
"""What a node still needs as its first argument: Any, if it needs nothing that is known."""

R = TypeVar("R", covariant=True)
"""What its result is."""

T = TypeVar("T")

LINKS = ("link", "link_error")

# How much of a call or of a canvas its repr shows.
SHOWN_ITEMS = 10
SHOWN_CHARACTERS = 100


class Node(Generic[A, R]):
    """A part of a canvas: a signature, chain, group or chord.

    Attributes:
        options: as for ``apply_async``; ``link`` and ``link_error`` are lists of nodes, absent if there
            are none. Those of a chain, group or chord stay with it until it is written.
    """

    __slots__ = ("_app", "options")
    __hash__ = None  # type: ignore[assignment] # it can change

    kind: ClassVar[str] = ""  # Celery's subtask_type; none for a signature
    _app: App | None
    options: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls._read

    # What it belongs to

    @property
    def app(self) -> App:
        """The app that writes it: its own, that of its first task that has one, or the current one."""
        return self._known_app() or current_app()

    @property
    def has_callbacks(self) -> bool:
        """Whether something is linked to it."""
        return bool(self.options) and ("link" in self.options or "link_error" in self.options)

    def _known_app(self) -> App | None:
        raise NotImplementedError

    def _connection(self) -> Any:
        """Return the connection that its first task is to be written on, if one was named."""
        raise NotImplementedError

    def new_job(self) -> NewJob:
        """Raise ConfigurationError: only a signature without callbacks is one job."""
        raise ConfigurationError(
            f"expected a signature without callbacks, found {shown(self)}: enqueue it by its own delay(), "
            "or as a member of a group"
        )

    def _last(self) -> Node[Any, Any] | None:
        """Return the part that it ends with, if it has parts one after the other."""
        return None

    # Changing and copying

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Node[Any, R]:
        """Return a copy with these arguments before its own, and these keywords and options added."""
        raise NotImplementedError

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Add options to it, and return it."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options = merge_options(self.options, options, copies=False)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Let it take no more arguments, such as the result of what comes before it, or let it again."""
        raise NotImplementedError

    def link(self, callback: Node[R, T]) -> Node[R, T]:
        """Run a signature with its result once it has succeeded; return that signature."""
        self._append("link", callback)
        return callback

    def link_error(self, errback: Node[Any, T]) -> Node[Any, T]:
        """Run a signature once it has failed; return that signature."""
        self._append("link_error", errback)
        return errback

    def on_error(self, errback: Node[Any, Any]) -> Self:
        """Run a signature once it has failed; return this node, and not the signature."""
        self.link_error(errback)
        return self

    def stamp(self, *visitors: object, **headers: object) -> NoReturn:
        """Refuse: Celery's stamps are not there.

        Raises:
            ConfigurationError: always; it says what there is instead.
        """
        raise ConfigurationError(
            "a canvas cannot be stamped: give what belongs together an origin, as in apply_async(origin=…), "
            "or find it by its bundle, and cancel it by app.cancel_bundle(id)"
        )

    def _append(self, option: str, callback: object) -> None:
        linked = self.options.get(option, [])
        self.options[option] = linked + [
            one for one in nodes(option, callback) if one not in linked
        ]

    def __or__(self, other: Node[R, T], /) -> Node[Any, T]:
        raise NotImplementedError

    def __copy__(self) -> Node[Any, R]:
        return self.clone()

    def __deepcopy__(self, memo: object) -> Node[Any, R]:
        return self.clone()

    # As data

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments.

        A ``connection`` among its options is left out.
        """
        raise NotImplementedError

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: App | None = None) -> Node[Any, Any]:
        """Build the node that `to_dict` described, or Celery's own signature, of whatever kind it is.

        Args:
            d: the description.
            app: whose tasks are meant; the current app's, if not said.

        Raises:
            ConfigurationError: it describes no node.
        """
        return read(d, app)

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> Node[Any, Any]:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return read, (self.to_dict(),)


KINDS: dict[str, Callable[[Mapping[str, Any], Any], Node[Any, Any]]] = {}
"""How each kind is read; written when its class is defined."""


# Options


def merge_options(
    old: Mapping[str, Any], new: Mapping[str, Any], *, copies: bool = True
) -> dict[str, Any]:
    """Return both, the new ones winning; callbacks as lists of nodes, the old ones copied if asked for."""
    merged = {**old, **new}
    for option in LINKS:
        if option in new:
            merged[option] = nodes(option, new[option])
            if not merged[option]:
                del merged[option]
        elif option in merged and copies:
            merged[option] = [one.clone() for one in merged[option]]
    return merged


def nodes(option: str, said: object) -> list[Node[Any, Any]]:
    """Return callbacks as a list: given as one node, several, or their dicts; None is none.

    Raises:
        ConfigurationError: one of them is no node.
    """
    if said is None:
        return []
    found: list[Node[Any, Any]] = []
    for one in said if isinstance(said, list | tuple) else [said]:
        if not isinstance(one, Node | Mapping):
            raise ConfigurationError(
                f"{option} is a signature or a list of them, found {one!r}: write task.s(…)"
            )
        found.append(read(one) if isinstance(one, Mapping) else one)
    return found


def options_to_dict(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON can carry them."""
    plain: dict[str, Any] = {}
    for option, value in options.items():
        if option == "connection":
            continue
        if option in LINKS:
            plain[option] = [one.to_dict() for one in value]
        elif isinstance(value, datetime):
            plain[option] = value.isoformat()
        elif isinstance(value, timedelta):
            plain[option] = value.total_seconds()
        else:
            plain[option] = value
    return plain


# Reading


def read(d: object, app: App | None = None) -> Node[Any, Any]:
    """Build the node that `Node.to_dict`, or Celery, described; a node is returned as it is.

    Raises:
        ConfigurationError: it describes no node.
    """
    if isinstance(d, Node):
        return d
    if not isinstance(d, Mapping) or not isinstance(d.get("task"), str):
        raise ConfigurationError(
            f'a signature is read from a dict such as {{"task": "shop.add", "args": [1]}}, found {shown(d)}'
        )
    for key, types, expected in (
        ("args", (list, tuple), "a list"),
        ("kwargs", Mapping, "a dict"),
        ("options", Mapping, "a dict"),
    ):
        if not isinstance(d.get(key) or (), (types, tuple)):
            raise ConfigurationError(
                f"{key!r} of a signature is {expected}, found {shown(d[key])} in {shown(d)}"
            )
    import pgtasks.canvas  # noqa: F401 (defines the other kinds)

    said = d.get("subtask_type")
    name = d["task"].removeprefix("celery.").removeprefix(BUILTIN)
    kind = said if said is not None else name if name in KINDS and name != d["task"] else ""
    try:
        read_kind = KINDS[kind]
    except KeyError:
        raise ConfigurationError(
            f"expected a signature, {', '.join(sorted(filter(None, KINDS)))}, found {kind!r} in {shown(d)}"
        ) from None
    return read_kind(d, app)


def read_options(d: Mapping[str, Any], app: App | None) -> dict[str, Any]:
    """Return the options in a dict, with its moments and callbacks rebuilt."""
    options = dict(d.get("options") or {})
    for option in LINKS:
        if option in options:
            said = options[option]
            several = said if isinstance(said, list | tuple) else [] if said is None else [said]
            options[option] = [read(one, app) for one in several]
    for option in ("eta", "expires"):
        if isinstance(options.get(option), str):
            try:
                options[option] = datetime.fromisoformat(options[option])
            except ValueError:
                raise ConfigurationError(
                    f"{option} is a moment in ISO 8601, found {options[option]!r}"
                ) from None
    return options


# A signature may be an argument of a task: it comes as one if the parameter says so, else as a dict.
codec.write_as(Node, lambda node: node.to_dict())
read_as(Node, read)


# Showing


def shown(value: object) -> str:
    """Return a value's repr, cut when it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def cut(texts: Sequence[str], separator: str) -> str:
    """Join texts, and say how many are left out."""
    left_out = len(texts) - SHOWN_ITEMS
    listed = [*texts[:SHOWN_ITEMS], f"… {left_out} more"] if left_out > 0 else texts
    return separator.join(listed)


# Parts of a whole


def several(tasks: Sequence[Any], whole: str) -> list[Node[Any, Any]]:
    """Return nodes, given as themselves or in one iterable.

    Raises:
        ConfigurationError: one of them is no node.
    """
    if len(tasks) == 1 and not isinstance(tasks[0], Node | Mapping | str):
        if not isinstance(tasks[0], Iterable):
            raise refused(whole, tasks[0])
        tasks = list(tasks[0])
    found = []
    for task in tasks:
        if isinstance(task, Node):
            found.append(task)
        elif isinstance(task, Mapping):
            found.append(read(task))
        else:
            raise refused(whole, task)
    return found


def refused(whole: str, found: object) -> ConfigurationError:
    """Return the error that says what a group, chain or chord is made of."""
    return ConfigurationError(f"{whole} is made of signatures, found {found!r}: write task.s(…)")


def pass_on(
    options: Mapping[str, Any],
    to: Mapping[str, Sequence[Node[Any, Any]]],
    others: Sequence[Node[Any, Any]],
) -> None:
    """Add the options of a chain, group or chord to its parts: callbacks after their own, the rest over theirs.

    Args:
        options: what to add.
        to: which parts some options are for.
        others: which parts the other options are for.
    """
    for option, value in options.items():
        for part in to.get(option, others):
            if option in LINKS:
                part._append(option, [one.clone() for one in value])
            else:
                part.set(**{option: value})


def first_app(tasks: Iterable[Node[Any, Any]]) -> App | None:
    """Return the app of the first that has one."""
    return next((app for task in tasks if (app := task._known_app()) is not None), None)


def as_dict(node: Node[Any, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a chain, group or chord in Celery's form, with its parts as the keyword arguments of a task."""
    return {
        "task": BUILTIN + node.kind,
        "args": [],
        "kwargs": kwargs,
        "options": options_to_dict(node.options),
        "subtask_type": node.kind,
        "immutable": False,
    }


def listed(d: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the parts that a dict lists; ConfigurationError if it does not."""
    found = (d.get("kwargs") or {}).get(key)
    if not isinstance(found, list | tuple):
        raise ConfigurationError(
            f"{d['task']!r} is read from a dict with a list of its parts in kwargs[{key!r}], found {found!r}"
        )
    return found


N = TypeVar("N", bound=Node[Any, Any])


def with_call(node: N, d: Mapping[str, Any]) -> N:
    """Return a node with the arguments that Celery gave to the whole, and with its immutability."""
    if d.get("args"):
        node = cast("N", node.clone(d["args"]))
    if d.get("immutable"):
        node.set_immutable(True)
    return node
