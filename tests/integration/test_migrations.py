"""Bringing a schema to this release's version: once, by whoever comes first, never backwards."""

import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pgtasks import App, SchemaError
from pgtasks.db import migrations
from tests.fixtures.simulated_worker import SimulatedWorker

VERSIONS = [migration.version for migration in migrations.known()]
LATEST = VERSIONS[-1]

MIGRATE = """
import sys, psycopg
from pgtasks.db import migrations
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print(connection.info.backend_pid, flush=True)
    sys.stdin.readline()
    print(*migrations.migrate(connection))
"""


@pytest.fixture
def fresh(fresh_dsn: str) -> Any:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield connection


def recorded(connection: psycopg.Connection[Any]) -> list[tuple[int, str, int]]:
    return connection.execute(
        "select version, name, min_code_version from pgtasks.migrations order by 1"
    ).fetchall()


def test_versions_are_numbered_without_gaps():
    assert list(range(1, len(VERSIONS) + 1)) == VERSIONS


def test_a_migration_is_applied_once_and_recorded(fresh):
    assert migrations.migrate(fresh) == VERSIONS
    assert migrations.migrate(fresh) == []

    assert recorded(fresh) == [
        (one.version, one.name, one.min_code_version) for one in migrations.known()
    ]
    assert migrations.installed_version(fresh) == LATEST
    migrations.check(fresh)


def test_what_is_there_already_is_not_applied_again(fresh, monkeypatch):
    everything = migrations.known()
    monkeypatch.setattr(migrations, "known", lambda: everything[:1])
    first = migrations.migrate(fresh)
    monkeypatch.setattr(migrations, "known", lambda: everything)

    assert first == [1]
    assert migrations.migrate(fresh) == VERSIONS[1:]


def test_four_processes_migrate_at_once_and_each_version_is_applied_by_one(fresh, fresh_dsn):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, fresh_dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit(), process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0] * 4, answers
    assert sorted(int(v) for out, _ in answers for v in out.split()) == VERSIONS
    assert [version for version, _, _ in recorded(fresh)] == VERSIONS


def test_a_migration_that_fails_leaves_the_version_before_it(fresh, monkeypatch):
    broken = migrations.Migration(
        version=LATEST + 1,
        name="break",
        sql="create table pgtasks.half (id int); select 1/0",
        min_code_version=1,
    )
    everything = (*migrations.known(), broken)
    monkeypatch.setattr(migrations, "known", lambda: everything)

    with pytest.raises(psycopg.errors.DivisionByZero):
        migrations.migrate(fresh)

    assert migrations.installed_version(fresh) == LATEST
    assert fresh.execute("select to_regclass('pgtasks.half')").fetchone() == (None,)


def test_a_newer_schema_is_never_changed(fresh):
    migrations.migrate(fresh)
    fresh.execute("insert into pgtasks.migrations values (%s, 'later', 1)", [LATEST + 5])

    with pytest.raises(SchemaError) as refused:
        migrations.migrate(fresh)

    assert str(refused.value) == (
        f"schema is at version {LATEST + 5}, this release knows only {LATEST}: "
        "run 'pip install --upgrade pgtasks', an older release never changes a newer schema"
    )


def test_older_code_may_run_on_a_newer_schema_that_allows_it(fresh):
    migrations.migrate(fresh)
    fresh.execute("insert into pgtasks.migrations values (%s, 'later', %s)", [LATEST + 1, LATEST])

    migrations.check(fresh)


def test_a_schema_that_needs_newer_code_is_refused_with_the_command(fresh):
    migrations.migrate(fresh)
    later = LATEST + 1
    fresh.execute("insert into pgtasks.migrations values (%s, 'later', %s)", [later, later])

    with pytest.raises(SchemaError) as refused:
        migrations.check(fresh)

    assert str(refused.value) == (
        f"schema is at version {later} and needs code that knows version {later}, this release knows "
        f"{LATEST}: run 'pip install --upgrade pgtasks'"
    )


def test_a_missing_and_an_older_schema_are_refused_with_the_command(fresh, monkeypatch):
    with pytest.raises(SchemaError) as missing:
        migrations.check(fresh)
    everything = migrations.known()
    monkeypatch.setattr(migrations, "known", lambda: everything[:1])
    migrations.migrate(fresh)
    monkeypatch.setattr(migrations, "known", lambda: everything)
    with pytest.raises(SchemaError) as older:
        migrations.check(fresh)

    assert str(missing.value) == (
        "the schema pgtasks is not installed in this database: run 'pgtasks migrate'"
    )
    assert str(older.value) == (
        f"schema is at version 1, this release needs {LATEST}: run 'pgtasks migrate'"
    )


async def test_an_app_migrates_its_database_both_ways(fresh_dsn):
    app = App("new", fresh_dsn)

    assert await app.amigrate() == VERSIONS
    assert app.migrate() == []
    assert (await app.astatus()).bundles == {"running": 0, "succeeded": 0, "failed": 0}
    await app.aclose()


def test_texts_that_are_too_long_today_do_not_block_what_was_enqueued_before(fresh, monkeypatch):
    everything = migrations.known()
    monkeypatch.setattr(migrations, "known", lambda: everything[:3])
    migrations.migrate(fresh)
    fresh.execute(
        "insert into pgtasks.job (id, queue, task, origin)"
        " values (gen_random_uuid(), 'default', 't', repeat('x', 201)), (gen_random_uuid(), 'default', 't', 'fine')"
    )
    fresh.execute(
        "insert into pgtasks.job_bundle (id, type, origin, total, remaining)"
        " values (gen_random_uuid(), repeat('x', 201), repeat('x', 201), 1, 1)"
    )
    monkeypatch.setattr(migrations, "known", lambda: everything)

    migrations.migrate(fresh)

    assert len(SimulatedWorker(fresh).claim()) == 2
    lengths = "select length(type), length(origin) from pgtasks.job_bundle"
    assert fresh.execute(lengths).fetchone() == (200, 200)
