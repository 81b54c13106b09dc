"""Calls that are described and put together, to be enqueued as a whole: what a canvas is made of.

`Signature` is one call; `group`, several side by side; `chain`, one after the other; `chord`, a group and what
follows it. ``group | task`` makes a chord, ``chord | task`` adds to its body, every other ``|`` makes a chain.

Where it is not as in Celery
    A whole canvas is written in one transaction, and what follows something waits in the database.
    Groups in a group, and a group at the end of a chain in a group, are one bundle: their results are one flat list.
    What does not run, since something before it failed, ends ``cancelled`` with the error of that.
    The options of a chain are those of each step, ``expires`` too; only ``countdown`` and ``eta`` are the first one's.
    ``link_error`` of a group is for its members; ``link_error`` of a chain calls back for the step that failed, once.
    ``add_to_chord`` has no ``lazy``; nothing is stamped: name an ``origin``.
    A chain has 5,000 steps at most, a list of results that is handed on 64 MiB, all of what a bundle hands on 128 MiB.
"""

from pgtasks.chains import chain
from pgtasks.chords import chord
from pgtasks.groups import chunks, group
from pgtasks.node import Node
from pgtasks.signatures import Partial, Signature, signature

__all__ = ["Node", "Partial", "Signature", "chain", "chord", "chunks", "group", "signature"]
