"""The smallest whole program: a task, a worker beside it, a result."""

import os

from pgtasks import App, expo

app = App("hello", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))


@app.task(retries=3, retry_schedule=expo)
def greet(name: str) -> str:
    return f"Hello {name}"


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=2):
        print(greet.delay("Ann").get(timeout=10))
