"""Many jobs as one bundle, with its progress and its results in order."""

import os
from collections.abc import Iterator

from pgtasks import App, group

app = App("groups", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))


@app.task
def square(n: int) -> int:
    return n * n


def squares(numbers: range) -> Iterator[int]:
    """Compute squares on all workers."""
    result = group(square.s(n) for n in numbers).apply(type="squares", origin="example")
    yield from result.get(timeout=30)
    print(f"{result.completed_count()} of {len(result)} succeeded")


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=2):
        print(sum(squares(range(1000))))
