"""The same from asyncio: every call that does I/O has an a-prefixed twin; tasks may be coroutines."""

import asyncio
import os

from pgtasks import App

app = App("asynchronous", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))


@app.task
async def fetch(page: int) -> str:
    await asyncio.sleep(0.01)
    return f"page {page}"


async def main() -> None:
    """Enqueue from a coroutine and wait without blocking the loop."""
    results = [await fetch.adelay(page) for page in range(5)]
    print(await asyncio.gather(*(result.aget(timeout=10) for result in results)))
    await app.aclose()


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=2):
        asyncio.run(main())
