"""``pgtasks bundles``: look at bundles, and retry, cancel or delete them."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from pgtasks import Bundle, Job, JobState
from pgtasks_cli import output, relations
from pgtasks_cli.cancelling import no_terminate_option, print_cancelled, split
from pgtasks_cli.jobs import document as job_document
from pgtasks_cli.jobs import force_option
from pgtasks_cli.params import Ago
from pgtasks_cli.selection import confirm, find_bundle
from pgtasks_cli.session import Session, pass_session
from pgtasks_cli.watching import follow

# How many members without success, and how many jobs that wait for it, are shown of a bundle.
LISTED = 10


@click.group()
def bundles() -> None:
    """Look at bundles, and retry, cancel or delete them.

    A bundle is a number of jobs whose common end is tracked: a group makes one, and so does a chord's header. An
    id may be cut short as long as one bundle fits.

    \b
    Example:
      pgtasks bundles list --failed
      pgtasks bundles show 0199c2b47d3c7f --watch
    """


@bundles.command("list")
@click.option("--type", help="Of this type.")
@click.option("--origin", help="Of this origin.")
@click.option("--running", "stopped", flag_value=False, default=None, help="Not stopped yet.")
@click.option("--stopped", "stopped", flag_value=True, default=None, help="Stopped.")
@click.option(
    "--failed", flag_value=True, default=None, help="With members that ended without success."
)
@click.option("--before", type=Ago(), help="Enqueued before: 10m, 2h, 7d ago, or an ISO time.")
@click.option(
    "-n",
    "--limit",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many.",
)
@click.option(
    "--before-id",
    metavar="ID",
    help="The next page: only bundles before this one, the last of the page before.",
)
@pass_session
def list_(
    session: Session,
    type: str | None,
    origin: str | None,
    stopped: bool | None,
    failed: bool | None,
    before: object,
    limit: int,
    before_id: str | None,
) -> None:
    """List bundles, newest first.

    \b
    Example:
      pgtasks bundles list --running
      pgtasks bundles list --type import --failed --json
    """
    app = session.connect()
    found = app.bundles(
        type=type,
        origin=origin,
        stopped=stopped,
        failed=failed,
        created_before=before,
        before_id=find_bundle(app, before_id).id if before_id else None,
        limit=limit,
    )

    def text() -> None:
        if not found:
            output.remark(session, "no bundle fits")
            return
        output.table(
            session,
            ["id", "type", "origin", "state", "jobs", "done", "failed", "enqueued"],
            [
                [
                    output.short_id(one.id),
                    one.type,
                    one.origin,
                    one.state,
                    one.total,
                    one.total - one.remaining,
                    one.failed,
                    one.created_at,
                ]
                for one in found
            ],
            right=["jobs", "done", "failed"],
        )
        if len(found) == limit:
            output.remark(session, f"the next page: --before-id {found[-1].id}")

    output.show(session, [document(one) for one in found], text)


@bundles.command()
@click.argument("id")
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Follow it and its running members until it stops; exit with 1 if a member failed.",
)
@pass_session
def show(session: Session, id: str, watch: bool) -> None:
    """Show a bundle, its members by state, and what waits for it.

    \b
    Example:
      pgtasks bundles show 0199c2b47d3c7f
      pgtasks bundles show 0199c2b47d3c7f --watch
    """
    from pgtasks.db import operations

    app = session.connect()
    bundle = find_bundle(app, id)
    if watch and bundle.stopped_at is None:
        bundle = follow(session, app, bundle)
    members = app.run(operations.count_bundle_members(bundle.id))
    failed: list[Job] = []
    if bundle.failed:
        failed = app.run(operations.list_unsuccessful_members(bundle.id, LISTED))
    waiters = app.run(operations.list_waiters(bundle.id, LISTED))

    def text() -> None:
        output.fields(
            session,
            {
                "id": bundle.id,
                "type": bundle.type,
                "origin": bundle.origin,
                "state": bundle.state,
                "enqueued": bundle.created_at,
                "stopped": bundle.stopped_at,
                "took": (bundle.stopped_at - bundle.created_at).total_seconds()
                if bundle.stopped_at
                else None,
                "jobs": bundle.total,
                "done": bundle.total - bundle.remaining,
                "failed": bundle.failed,
            },
        )
        if members:
            click.echo()
            output.table(
                session,
                ["state", "jobs"],
                [[str(state), members[state]] for state in JobState if state in members],
                right=["jobs"],
            )
        list_members(session, "without success", failed, bundle.failed)
        list_members(session, "waiting for it", waiters)
        if bundle.failed:
            output.remark(
                session,
                f"start it again from what failed: pgtasks bundles retry-failed {bundle.id}",
            )

    listed = {
        "unsuccessful": [job_document(job) for job in failed],
        "waiters": [job_document(job) for job in waiters],
    }
    output.show(session, {**document(bundle), "members": members, **listed}, text)
    if watch and bundle.failed:
        raise click.ClickException(
            f"{output.plural(bundle.failed, 'job')} of the bundle did not succeed"
        )


@bundles.command()
@click.argument("id")
@force_option
@pass_session
def retry_failed(session: Session, id: str, force: bool) -> None:
    """Start a failed graph again from where it broke.

    What failed in the bundle, or before it, is ready again, from its first attempt; what did not run because of
    it waits again, in the bundle and in all that follows, callbacks included. What succeeded is left alone.

    \b
    Example:
      pgtasks bundles retry-failed 0199c2b47d3c7f
    """
    from pgtasks.db import operations

    app = session.connect()
    bundle = find_bundle(app, id)
    if bundle.failed:
        confirm(
            f"start again what failed in bundle {bundle.id} ({bundle.failed:,} of "
            f"{output.plural(bundle.total, 'job')} without success), and what did not run because of it?",
            force=force,
        )
    broken = app.run(operations.list_unsuccessful_members(bundle.id, 1)) or [
        job
        for job in app.run(operations.list_waiters(bundle.id))
        if job.state is JobState.CANCELLED
    ]
    done = app.retry_failed(bundle.id)
    waiting = 0
    if broken:
        waiting = app.run(operations.count_graph(broken[0].id)).get(JobState.BLOCKED, 0)

    def text() -> None:
        if not broken:
            click.echo("nothing failed in this bundle")
            return
        ready = f"retried {output.plural(len(done), 'job')}"
        click.echo(
            f"{ready}; {output.plural(waiting, 'job')} of the graph waiting" if waiting else ready
        )

    output.show(session, {"id": bundle.id, "retried": done, "waiting": waiting}, text)


@bundles.command()
@click.argument("id")
@force_option
@no_terminate_option
@pass_session
def cancel(session: Session, id: str, force: bool, no_terminate: bool) -> None:
    """Cancel the members that are not finished, with the jobs that they wait for.

    Waiting ones are cancelled at once. Running ones are asked to stop; see pgtasks jobs cancel --help. What
    waits for the bundle does not run then.

    \b
    Example:
      pgtasks bundles cancel 0199c2b47d3c7f
    """
    app = session.connect()
    bundle = find_bundle(app, id)
    if bundle.remaining:
        confirm(
            f"cancel {output.plural(bundle.remaining, 'job')} of bundle {bundle.id}?", force=force
        )
    done = app.cancel_bundle(bundle.id, terminate=not no_terminate)
    output.show(
        session,
        {"id": bundle.id, **split(done)},
        lambda: print_cancelled(done, terminate=not no_terminate),
    )


@bundles.command()
@click.argument("id")
@force_option
@pass_session
def delete(session: Session, id: str, force: bool) -> None:
    """Delete a stopped bundle and its members.

    What waited for it stays, and so do the jobs before it: see pgtasks jobs graph.

    \b
    Example:
      pgtasks bundles delete 0199c2b47d3c7f
    """
    app = session.connect()
    bundle = find_bundle(app, id)
    if bundle.stopped_at is None:
        raise click.ClickException(f"bundle {bundle.id} is running: cancel it first")
    confirm(
        f"delete bundle {bundle.id} and its {output.plural(bundle.total, 'job')} for good?",
        force=force,
    )
    if not app.delete_bundle(bundle.id):
        raise click.ClickException(f"bundle {bundle.id} was started again or deleted meanwhile")
    output.show(session, {"deleted": bundle.id}, lambda: click.echo(f"deleted bundle {bundle.id}"))


def list_members(session: Session, title: str, jobs: Sequence[Job], total: int = 0) -> None:
    """Print some jobs of a bundle, or what waits for it, under a heading."""
    if not jobs:
        return
    output.heading(session, title)
    output.table(
        session,
        ["id", "task", "state", "attempt", "note"],
        [
            [output.short_id(job.id), job.task, str(job.state), job.attempt, relations.note(job)]
            for job in jobs
        ],
        right=["attempt"],
    )
    if total > len(jobs):
        click.echo(f"… {total - len(jobs):,} more")


def document(bundle: Bundle) -> dict[str, object]:
    """Return a bundle as JSON has it."""
    return {**msgspec.structs.asdict(bundle), "state": bundle.state}
