"""Thumbnails of pictures, then a page of them: a chord with progress, told of a failure, and started again."""

import os
import tempfile
from pathlib import Path

from pgtasks import App, ChordError, GroupResult, chord, current_job

app = App("thumbnails", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))
folder = Path(tempfile.mkdtemp())

WIDTHS = (80, 160, 320)


@app.task
def shrink(name: str, width: int) -> str:
    job, lines = current_job(), (folder / name).read_text().splitlines()
    for at, _ in enumerate(lines):
        job.progress(at, len(lines), f"shrinking {name}")  # pgtasks bundles show --watch shows it
    return f"{name}-{width}"


@app.task
def publish(thumbnails: list[str]) -> str:
    return f"a page with {len(thumbnails)} thumbnails: {', '.join(thumbnails)}"


@app.task
def alert(id: str) -> None:
    """Run once, however many thumbnails failed, with the id of the job that does not run because of it."""
    print(f"no page from job {id}", flush=True)


def main() -> None:
    pictures = ["cat", "dog", "owl"]
    for name in pictures[:2]:
        (folder / name).write_text("a line\n" * 1000)
    header = [shrink.s(name, width) for name in pictures for width in WIDTHS]

    page = chord(header, publish.s().on_error(alert.s())).apply(type="thumbnails")
    thumbnails = page.parent
    assert isinstance(thumbnails, GroupResult)
    try:
        page.get(timeout=30)
    except ChordError as error:
        print(error)
        thumbnails.get(timeout=30, propagate=False)  # the other ones go on
        print(f"{thumbnails.completed_count()} of {len(thumbnails)} thumbnails")

    (folder / "owl").write_text("a line\n" * 1000)
    app.retry_failed(thumbnails.id)  # as pgtasks bundles retry-failed does
    print(page.get(timeout=30))


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=2):
        main()
