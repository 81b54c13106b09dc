"""How cancelling is asked for and told: of jobs, and of the members of a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import click

from pgtasks_cli import output

# How many jobs are told one by one; of more, only the counts.
LISTED = 50

no_terminate_option = click.option(
    "--no-terminate",
    is_flag=True,
    help="Let running jobs go on, and only keep them from being retried.",
)


def split(done: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the ids by what was done, as JSON has it."""
    return {
        what: [id for id, said in done.items() if said == what]
        for what in ("cancelled", "requested")
    }


def print_cancelled(done: Mapping[str, str], *, terminate: bool) -> None:
    """Say what was done, of each job and in all."""
    asked = "asked to stop" if terminate else "asked not to be retried"
    if len(done) <= LISTED:
        for id, what in done.items():
            click.echo(f"{id}  {'cancelled' if what == 'cancelled' else asked}")
    ids = split(done)
    click.echo(f"cancelled {output.plural(len(ids['cancelled']), 'job')}")
    if ids["requested"]:
        click.echo(f"{output.plural(len(ids['requested']), 'job')} running: {asked}")
