"""Calls that are described and put together, to be enqueued as a whole: what a canvas is made of.

`Signature` is one call; `group`, several side by side; `chain`, one after the other; `chord`, a group and what
follows it. ``group | task`` makes a chord, ``chord | task`` adds to its body, every other ``|`` makes a chain.
"""

from pgtasks.chains import chain
from pgtasks.chords import chord
from pgtasks.groups import chunks, group
from pgtasks.node import Node
from pgtasks.signatures import Partial, Signature, signature

__all__ = ["Node", "Partial", "Signature", "chain", "chord", "chunks", "group", "signature"]
