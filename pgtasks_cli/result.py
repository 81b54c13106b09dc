"""``pgtasks result``: what a job returned, or why it did not."""

from __future__ import annotations

import click

from pgtasks_cli.call import await_and_print, print_result
from pgtasks_cli.params import Duration
from pgtasks_cli.selection import find_job
from pgtasks_cli.session import Session, pass_session


@click.command()
@click.argument("id")
@click.option("-t", "--task", hidden=True, expose_value=False)  # Celery's, to find a backend
@click.option("--traceback", is_flag=True, help="Print the traceback of a failed job, too.")
@click.option("-w", "--wait", type=Duration(), help="Wait so long for it to finish.")
@pass_session
def result(session: Session, id: str, traceback: bool, wait: float | None) -> None:
    """Print what a job returned.

    The id may be cut short as long as one job fits. A job that failed or is not finished: exit code 1.

    \b
    Example:
      pgtasks result 0199c2b4-7d3c-7f31-9b5e-0f4f6a0b1c2d
      pgtasks result 0199c2b47d3c7f --traceback
    """
    app = session.connect()
    job = find_job(app, id)
    if wait is not None and not job.state.finished:
        await_and_print(session, app.result(job.id), wait)
    else:
        print_result(session, job, traceback=traceback)
