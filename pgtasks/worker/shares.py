"""How a claim is shared among queues that have jobs. Pure.

Without weights queues take turns and get equal shares. With weights a queue's share follows its weight: what it was
owed and did not get, because shares are whole jobs and rounds are short, it is owed in the next round; so no queue
waits longer than its weight says, however small that is. Who has nothing is owed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class Shares:
    """Divides what is wanted among queues.

    Args:
        weights: by queue; those that are not named have 1.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._weighted = len({1, *weights.values()}) > 1
        # queue -> how many jobs it is owed; below 0: it had more than its share. All together 0 while the same
        # queues have jobs.
        self._owed: dict[str, float] = {}

    def divide(self, queues: Sequence[str], want: int, most: int) -> Iterator[tuple[str, int]]:
        """Yield queues and how many jobs to claim of each.

        Args:
            queues: those that have jobs, in turn.
            want: how many jobs, in all; without weights each share is rounded up.
            most: how many queues may be asked at once.
        """
        if not queues:
            return
        if not self._weighted:
            asked = queues[:most]
            for queue in asked:
                yield queue, -(-want // len(asked))
            return
        weights = {queue: self._weights.get(queue, 1) for queue in queues}
        total = sum(weights.values())
        owed = {q: self._owed.get(q, 0.0) + want * weight / total for q, weight in weights.items()}
        asked = sorted(queues, key=lambda queue: -owed[queue])[:most]
        shares = {queue: max(0, int(owed[queue])) for queue in asked}
        # What rounding, or the queues that are not asked, leave over (or took): by turns to who is owed most.
        while (left := want - sum(shares.values())) > 0:
            shares[max(asked, key=lambda queue: owed[queue] - shares[queue])] += 1
        for _ in range(-left):
            served = [queue for queue in asked if shares[queue]]
            shares[min(served, key=lambda queue: owed[queue] - shares[queue])] -= 1
        self._owed = {queue: owed[queue] - shares.get(queue, 0) for queue in queues}
        for queue in asked:
            if shares[queue]:
                yield queue, shares[queue]
