"""A task that fails at first: retried by a schedule, by its own wish, or not at all."""

import os

from pgtasks import App, Job, Reject, Retry, TaskFailedError, current_job

app = App("retries", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))


class OutOfPaperError(Exception):
    """Nobody but a human can help."""


def patient(job: Job, error: Exception) -> float:
    """Wait a tenth of a second more after each attempt."""
    return 0.1 * job.attempt


@app.task(
    retries=3, retry_schedule=patient, retry_for=(ConnectionError,), throws=(OutOfPaperError,)
)
def print_label(order: int) -> str:
    attempt = current_job().attempt
    if attempt < 3:
        raise ConnectionError("the printer does not answer")
    return f"order {order} printed at attempt {attempt}"


@app.task(retries=5)
def poll_carrier(order: int) -> str:
    if current_job().attempt < 2:
        raise Retry(after=0.1)  # not an error: ask again
    return f"order {order} was picked up"


@app.task(retries=5)
def refund(order: int) -> None:
    if order < 0:
        raise Reject("no such order")  # fail now, whatever retries are left


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=2):
        printed = print_label.delay(1)
        print(printed.get(timeout=10))
        print([attempt.error.message for attempt in printed.job().attempts if attempt.error])
        print(poll_carrier.delay(2).get(timeout=10))
        try:
            refund.delay(-1).get(timeout=10)
        except TaskFailedError as error:
            print("refund:", error.message)
