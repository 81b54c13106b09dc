"""A long job that says how far it is, and a caller who looks on."""

import os
import time

from pgtasks import App, current_job

app = App("progress", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))

ROWS = 30


@app.task
def import_rows(file: str) -> int:
    job = current_job()
    for row in range(ROWS):
        job.progress(row, ROWS, f"reading {file}")  # in every turn: it costs 2 µs
        time.sleep(0.1)
    return ROWS


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=1):
        result = import_rows.delay("orders.csv")
        seen = ""
        while not result.ready():
            said = result.job().progress.text()
            if said != seen:
                print(said)  # about once a second
                seen = said
            time.sleep(0.1)
        print(f"{result.get(timeout=10)} rows")
