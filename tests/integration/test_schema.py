"""The schema is the same by every way to install it, and lies in ``pgtasks`` alone."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks.db import migrations
from pgtasks.db.statements import schema_folder

# Every object by its catalogue, as text that does not depend on object ids.
CATALOGUE = """
select 'column', format('%s.%s', c.relname, a.attname),
    format('%s %s %s %s %s', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, pg_get_expr(d.adbin, d.adrelid))
from pg_attribute a
join pg_class c on c.oid = a.attrelid
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where c.relnamespace = 'pgtasks'::regnamespace and a.attnum > 0 and not a.attisdropped
union all
select 'relation', c.relname, format('%s %s %s %s', c.relkind, c.reloptions, c.relpersistence,
    pg_get_expr(c.relpartbound, c.oid))
from pg_class c where c.relnamespace = 'pgtasks'::regnamespace
union all
select 'index', c.relname, pg_get_indexdef(c.oid)
from pg_class c where c.relnamespace = 'pgtasks'::regnamespace and c.relkind in ('i', 'I')
union all
select 'constraint', format('%s.%s', conrelid::regclass, conname), pg_get_constraintdef(oid)
from pg_constraint where connamespace = 'pgtasks'::regnamespace
union all
select 'view', c.relname, pg_get_viewdef(c.oid)
from pg_class c where c.relnamespace = 'pgtasks'::regnamespace and c.relkind = 'v'
union all
select 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid)
from pg_proc p where p.pronamespace = 'pgtasks'::regnamespace
union all
select 'trigger', tgname, pg_get_triggerdef(t.oid)
from pg_trigger t join pg_class c on c.oid = t.tgrelid
where c.relnamespace = 'pgtasks'::regnamespace and not tgisinternal
union all
select 'migration', version::text, format('%s %s', name, min_code_version) from pgtasks.migrations
order by 1, 2, 3
"""


@pytest.fixture
def fresh(fresh_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def migrated(database: str) -> list[tuple[str, str, str]]:
    """What the migrations make, as `database` was made by them."""
    with psycopg.connect(database, autocommit=True) as connection:
        return catalogue(connection)


def catalogue(connection: psycopg.Connection[Any]) -> list[tuple[str, str, str]]:
    rows = connection.execute(CATALOGUE).fetchall()
    # The partitions are those of the day; test_history looks after them.
    return [row for row in rows if not re.search(r"job_history_\d{8}", row[1])]


def without_psql(path: Path) -> str:
    """Return a script for psql as plain SQL: the little that ours ask of psql is done here."""
    lines = []
    for line in path.read_text().splitlines():
        include = re.fullmatch(r"\\ir (\S+)", line)
        if include:
            lines.append(without_psql(path.parent / include[1]))
        elif line.startswith("\\"):
            assert line == r"\set ON_ERROR_STOP on", line
        else:
            lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("program", ["psql", None], ids=["psql", "without psql"])
def test_the_script_for_psql_installs_what_the_migrations_install(
    fresh, fresh_dsn, migrated, program
):
    script = schema_folder() / "pgtasks.sql"
    psql = shutil.which(program) if program else None

    if psql:
        command = [psql, "-X", "-q", "-d", fresh_dsn, "-f", str(script)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        fresh.execute(without_psql(script).encode())

    assert catalogue(fresh) == migrated
    assert migrations.migrate(fresh) == []
    migrations.check(fresh)


def test_the_printed_script_installs_what_the_migrations_install(fresh, migrated):
    fresh.execute(migrations.script().encode())

    assert catalogue(fresh) == migrated
    assert migrations.migrate(fresh) == []


def test_a_script_that_is_run_again_changes_nothing(fresh, migrated):
    fresh.execute(migrations.script().encode())

    with pytest.raises(psycopg.errors.DuplicateTable):
        fresh.execute(migrations.script().encode())
    fresh.rollback()

    assert catalogue(fresh) == migrated


def test_everything_lies_in_the_schema_pgtasks(fresh):
    def objects() -> set[tuple[str, ...]]:
        rows = fresh.execute("""
            select c.relnamespace::regnamespace::text, c.relname from pg_class c
            where c.relnamespace::regnamespace::text !~ '^pg_'
            union all select p.pronamespace::regnamespace::text, p.proname from pg_proc p
            union all select t.typnamespace::regnamespace::text, t.typname from pg_type t
            where t.typnamespace::regnamespace::text !~ '^pg_toast'
            union all select 'namespace', nspname from pg_namespace where nspname !~ '^pg_toast'
        """).fetchall()
        return set(rows)

    before = objects()
    fresh.execute("set search_path to public")
    migrations.migrate(fresh)

    added = objects() - before
    assert ("pgtasks", "job") in added
    assert ("pgtasks", "jobs") in added
    assert {schema for schema, _ in added} == {"namespace", "pgtasks"}
    assert ("namespace", "pgtasks") in added


@pytest.mark.parametrize("search_path", ["public", "pg_catalog", "other, pgtasks"])
def test_functions_work_under_any_search_path(connection, worker, search_path):
    from psycopg import sql

    connection.execute(sql.SQL("set search_path to ") + sql.SQL(search_path))

    id = connection.execute("select pgtasks.enqueue('t')::text").fetchone()[0]
    held = worker.claim(tasks=["t"])
    finished = worker.succeed(held)
    done = worker.execute("maintain_history", keep=86400.0 * 365)

    assert [one.id for one in held] == [id]
    assert finished == [id]
    assert done == [([],)]


def test_no_index_and_no_predicate_names_what_a_claim_changes(connection):
    """What makes a claim a HOT update."""
    lease = {"token", "worker_id", "attempt", "started_at"}

    rows = connection.execute(
        "select pg_get_indexdef(indexrelid) from pg_index where indrelid = 'pgtasks.job'::regclass"
    ).fetchall()

    assert len(rows) >= 6
    for (definition,) in rows:
        assert not lease & set(re.findall(r"\w+", definition)), definition


def test_the_view_jobs_shows_one_row_a_job_in_both_places(app, worker, connection):
    live, finished = app.send_task("t", [1]), app.send_task("t", [2])
    held = {one.id: one for one in worker.claim()}
    worker.succeed(held[finished.id], "done")

    rows = connection.execute(
        "select id::text, state, args, result, stopped_at is null from pgtasks.jobs"
    ).fetchall()

    assert sorted(rows) == [
        (live.id, "running", "[1]", None, True),
        (finished.id, "succeeded", "[2]", '"done"', False),
    ]
