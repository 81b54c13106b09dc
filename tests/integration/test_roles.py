"""Who may do what: every role with every function and table, and what an attacker may try."""

import re
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgtasks import App, ConfigurationError, DatabaseError
from pgtasks.db import migrations
from pgtasks_cli.root import cli
from tests.fixtures.roles import GROUPS, LOGINS, login

Connection = psycopg.Connection[Any]
Dsns = Mapping[str, str]

PRODUCER = {"producer", "worker"}  # a worker's tasks enqueue
WORKER = {"worker"}
ADMIN = {"admin"}
LOOK = {"inspector", "admin"}
NOBODY: set[str] = set()

# Who may call a function; it runs with the owner's rights, but for those below.
FUNCTIONS: dict[str, set[str]] = {
    "enqueue": PRODUCER,
    "gate_keys": PRODUCER,
    "new_id": PRODUCER,
    "register_listener": PRODUCER,
    "deregister_listener": PRODUCER,
    "get_outcomes": PRODUCER | ADMIN,
    "forget_results": PRODUCER | ADMIN,
    "wake_channel": PRODUCER,
    "may_notify": PRODUCER,
    "register_worker": WORKER,
    "publish_tasks": WORKER,
    "publish_queues": WORKER,
    "park_paused": WORKER,
    "unpark_paused": WORKER | ADMIN,
    "age_queue": WORKER,
    "publish_gates": WORKER,
    "show_gates": LOOK,
    "sweep_gates": WORKER,
    "beat": WORKER,
    "set_idle": WORKER,
    "deregister_worker": WORKER,
    "rescue_worker": WORKER,
    "claim_jobs": WORKER,
    "ready_priorities": WORKER,
    "grow_group": PRODUCER,
    "take_keys": PRODUCER,
    "replace_waiting": PRODUCER,
    "graph_jobs": PRODUCER | LOOK,
    "bundle_waiters": PRODUCER | LOOK,
    "look": WORKER,
    "promote_jobs": WORKER,
    "finish_jobs": WORKER,
    "finish_succeeded": WORKER,
    "release_jobs": WORKER,
    "lock_held": WORKER,
    "delete_claims": WORKER,
    "release_lost_claims": WORKER,
    "release_orphaned_claims": WORKER,
    "park_unknown": WORKER,
    "unpark_known": WORKER,
    "forget_listeners": WORKER,
    "record_progress": WORKER,
    "forget_progress": WORKER,
    "forget_keys": WORKER,
    "maintain_history": WORKER,
    "declare_schedules": WORKER,
    "due_schedules": WORKER,
    "tick_schedules": WORKER,
    "keep_schedules": WORKER,
    "add_schedule": ADMIN,
    "edit_schedule": ADMIN,
    "pause_schedules": ADMIN,
    "resume_schedules": ADMIN,
    "run_schedule": ADMIN,
    "remove_schedules": ADMIN,
    "cancel_waiting": ADMIN,
    "lock_unblocked": ADMIN,
    "request_cancel": ADMIN,
    "count_down": ADMIN,
    "count_up": ADMIN,
    "delete_finished": ADMIN,
    "delete_history": ADMIN,
    "reset_finished": ADMIN,
    "lock_bundles": ADMIN,
    "delete_bundles": ADMIN,
    "retry_failed": ADMIN,
    "reschedule_job": ADMIN,
    # Called by the others, or by a trigger.
    "define_schedules": NOBODY,
    "enqueue_scheduled": NOBODY,
    "redefine_schedules": NOBODY,
    "renew_schedule": NOBODY,
    "set_schedules": NOBODY,
    "tell_schedules": NOBODY,
    "pause_queue": ADMIN,
    "resume_queue": ADMIN,
    "limit_queue": ADMIN,
    "reset_limits": ADMIN,
    "pause_task": ADMIN,
    "resume_task": ADMIN,
    "move_jobs": ADMIN,
    # Called by the others, or by the trigger.
    "apply_declared": NOBODY,
    "count_held": NOBODY,
    "count_tokens": NOBODY,
    "gate_room": NOBODY,
    "next_token": NOBODY,
    "open_gate": NOBODY,
    "take_tokens": NOBODY,
    "tell_gates": NOBODY,
    "admit": NOBODY,
    "choose_turns": NOBODY,
    "gate_jobs": NOBODY,
    "has_turns": NOBODY,
    "limit_room": NOBODY,
    "lock_admitted": NOBODY,
    "lock_keys": NOBODY,
    "lock_next": NOBODY,
    "next_token_in": NOBODY,
    "next_turns": NOBODY,
    "pass_jobs": NOBODY,
    "rate_tokens": NOBODY,
    "served_queues": NOBODY,
    "take_rate_tokens": NOBODY,
    "waits_for": NOBODY,
    "archive": NOBODY,
    "first_failure": NOBODY,
    "forget_unneeded": NOBODY,
    "insert_bundles": NOBODY,
    "is_passed_by": NOBODY,
    "is_unreached": NOBODY,
    "option_number": NOBODY,
    "results_of": NOBODY,
    "was_refused": NOBODY,
    "replace_job": NOBODY,
    "retake_keys": NOBODY,
    "release_keys": NOBODY,
    "move_keys": NOBODY,
    "finish_queue": NOBODY,
    "lock_jobs": NOBODY,
    "reached_bundles": NOBODY,
    "lose_jobs": NOBODY,
    "release_waiters": NOBODY,
    "settle_claims": NOBODY,
    "take_back": NOBODY,
    "tell_stopped": NOBODY,
    "wake": NOBODY,
    "wake_workers": NOBODY,
}
# As whoever calls: they touch no table of ours, or are called by a function that is the owner's.
INVOKER = {
    "admit", "choose_turns", "gate_jobs", "limit_room", "lock_admitted", "lock_keys", "lock_next", "next_token_in",
    "has_turns", "next_turns", "pass_jobs", "rate_tokens", "served_queues", "take_rate_tokens", "waits_for",
    "new_id", "wake_channel", "may_notify", "archive", "finish_queue", "lose_jobs", "release_waiters", "take_back",
    "tell_stopped", "wake", "wake_workers", "lock_jobs", "settle_claims",
    "reached_bundles", "first_failure", "forget_unneeded", "insert_bundles", "is_passed_by", "is_unreached",
    "option_number", "replace_job", "results_of", "was_refused", "retake_keys", "release_keys", "move_keys",
    "define_schedules", "enqueue_scheduled", "redefine_schedules", "renew_schedule", "set_schedules", "tell_schedules",
    "apply_declared", "count_held", "count_tokens", "gate_room", "next_token", "open_gate", "take_tokens", "tell_gates",
}  # fmt: skip

# Who may select from a relation, whole or in part (columns).
SELECT: dict[str, set[str]] = {
    "job": ADMIN,
    "job_history": ADMIN,
    "jobs": PRODUCER | LOOK,
    "job_bundle": PRODUCER | LOOK,
    "unique_key": PRODUCER | LOOK,
    "task": PRODUCER | LOOK,
    "worker": PRODUCER | LOOK,
    "claim": WORKER | LOOK,
    "schedule": ADMIN,
    "schedules": PRODUCER | LOOK,
    "queue": WORKER | LOOK,
    "migrations": PRODUCER | LOOK,
}
SELECT_COLUMNS = {
    ("producer", "worker"): {"idle", "queues"},
    ("inspector", "claim"): {"worker_id", "queue", "job_ids", "claimed_at", "at_most_once"},
    ("admin", "claim"): {"worker_id", "queue", "job_ids", "claimed_at", "at_most_once"},
}
INSERT = {"job": PRODUCER, "job_bundle": PRODUCER}
# What a claim, a finish or a bundle's count decides is not the producer's to say.
NEVER_INSERTED = {
    "job": {"token", "worker_id", "attempt", "started_at", "seq", "crashes", "attempts", "cancel_requested"},
    "job_bundle": {"failed"},
}  # fmt: skip


def as_role(dsn: str) -> Connection:
    return psycopg.connect(dsn, autocommit=True)


def one(connection: Connection, statement: str) -> str:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def relations(owner: Connection) -> list[str]:
    rows = owner.execute(
        "select relname from pg_class where relnamespace = 'pgtasks'::regnamespace and relkind in ('r', 'p', 'v')"
    ).fetchall()
    return [name for (name,) in rows]


# The catalogue


def test_functions_with_the_owners_rights_pin_their_search_path_with_pg_temp_last(owner):
    rows = owner.execute(
        "select proname, prosecdef, proconfig, pg_get_userbyid(proowner)"
        " from pg_proc where pronamespace = 'pgtasks'::regnamespace"
    ).fetchall()

    assert {name for name, *_ in rows} == set(FUNCTIONS)
    for name, definer, config, owned_by in rows:
        assert definer == (name not in INVOKER), name
        assert owned_by == "pgtasks_owner", name
        if definer:
            assert "search_path=pgtasks, pg_catalog, pg_temp" in config, name


def test_names_in_functions_are_qualified(owner):
    """Belt and braces: even without its pinned search_path a function would find our tables."""
    tables = "|".join(sorted(relations(owner), key=len, reverse=True))

    for name, body in owner.execute(
        "select proname, prosrc from pg_proc where pronamespace = 'pgtasks'::regnamespace"
    ):
        code = re.sub(r"--.*", "", body)
        bare = re.findall(rf"\b(?:from|join|into|update|table)\s+({tables})\b(?!\.)", code)
        assert not bare, (name, bare)


def test_public_has_nothing(owner):
    rows = owner.execute(
        "select 'function', proname, a.privilege_type from pg_proc,"
        " aclexplode(coalesce(proacl, acldefault('f', proowner))) a"
        " where pronamespace = 'pgtasks'::regnamespace and a.grantee = 0"
        " union all"
        " select 'relation', relname, a.privilege_type from pg_class,"
        " aclexplode(coalesce(relacl, acldefault('r', relowner))) a"
        " where relnamespace = 'pgtasks'::regnamespace and a.grantee = 0"
        " union all"
        " select 'column', attname, a.privilege_type from pg_attribute join pg_class c on c.oid = attrelid,"
        " aclexplode(attacl) a where c.relnamespace = 'pgtasks'::regnamespace and a.grantee = 0"
        " union all"
        " select 'schema', nspname, a.privilege_type from pg_namespace,"
        " aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a where nspname = 'pgtasks' and a.grantee = 0"
    ).fetchall()

    assert rows == []


def test_functions_are_revoked_from_public_by_the_migrations_alone(connection):
    """Also where nobody ran migrate --roles."""
    rows = connection.execute(
        "select proname from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) a"
        " where pronamespace = 'pgtasks'::regnamespace and a.grantee = 0"
    ).fetchall()

    assert rows == []


def test_the_owner_does_not_log_in_and_is_no_superuser(owner):
    rows = owner.execute(
        "select rolname from pg_roles where rolname ~ '^pgtasks_(owner|producer|worker|inspector|admin)$'"
        " and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolbypassrls)"
    ).fetchall()
    others = owner.execute(
        "select relname from pg_class where relnamespace = 'pgtasks'::regnamespace"
        " and relowner <> 'pgtasks_owner'::regrole"
    ).fetchall()

    assert rows == []
    assert others == []


# The matrix


@pytest.mark.parametrize("group", LOGINS)
def test_each_function_may_be_called_by_those_who_need_it(owner, group):
    rows = owner.execute(
        "select proname, has_schema_privilege(%(role)s, 'pgtasks', 'usage')"
        " and has_function_privilege(%(role)s, oid, 'execute')"
        " from pg_proc where pronamespace = 'pgtasks'::regnamespace",
        {"role": login(group)},
    ).fetchall()

    assert dict(rows) == {name: group in may for name, may in FUNCTIONS.items()}


@pytest.mark.parametrize("group", LOGINS)
def test_each_relation_may_be_read_and_written_by_those_who_need_it(owner, group):
    for name in relations(owner):
        for privilege in (
            "select",
            "insert",
            "update",
            "delete",
            "truncate",
            "references",
            "trigger",
        ):
            asked = "has_table_privilege" if privilege in ("delete", "truncate", "trigger") else (
                "has_any_column_privilege"
            )  # fmt: skip
            row = owner.execute(
                f"select {asked}(%s, %s, %s)", [login(group), f"pgtasks.{name}", privilege]
            ).fetchone()
            may = {"select": SELECT, "insert": INSERT}.get(privilege, {}).get(name, NOBODY)
            assert row == (group in may,), (group, privilege, name)


@pytest.mark.parametrize(("group", "relation"), SELECT_COLUMNS)
def test_only_these_columns_are_read(owner, group, relation):
    rows = owner.execute(
        "select attname from pg_attribute where attrelid = %(relation)s::regclass and attnum > 0"
        " and not attisdropped and has_column_privilege(%(role)s, attrelid, attname, 'select')",
        {"relation": f"pgtasks.{relation}", "role": login(group)},
    ).fetchall()

    assert {name for (name,) in rows} == SELECT_COLUMNS[group, relation]


@pytest.mark.parametrize("relation", INSERT)
def test_producers_do_not_write_what_workers_decide(owner, relation):
    for column in NEVER_INSERTED[relation]:
        row = owner.execute(
            "select has_column_privilege(%s, %s, %s, 'insert')",
            [login("producer"), f"pgtasks.{relation}", column],
        ).fetchone()
        assert row == (False,), column


@pytest.mark.parametrize("group", LOGINS)
@pytest.mark.parametrize(
    "statement",
    [
        "delete from pgtasks.job",
        "update pgtasks.job set token = null",
        "update pgtasks.job_history set result = '1'",
        "delete from pgtasks.job_history",
        "update pgtasks.worker set beat = beat + 1",
        "delete from pgtasks.claim",
        "insert into pgtasks.job (id, queue, task, token) values (gen_random_uuid(), 'q', 't', gen_random_uuid())",
        "truncate pgtasks.job",
        "drop table pgtasks.job",
        "create table pgtasks.mine (id integer)",
        "create function pgtasks.mine() returns int language sql as 'select 1'",
        "alter table pgtasks.job disable trigger all",
        "select pgtasks.archive('{}', 'failed', 'x')",
        "select pgtasks.finish_queue('q', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
        "select pgtasks.wake('{q}')",
        "set role pgtasks_owner",
    ],
)
def test_what_nobody_may_is_refused(dsns, group, statement):
    with as_role(dsns[group]) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(statement)


# Masks


def test_inspectors_see_no_arguments_and_admins_do(dsns, owner):
    owner.execute("select pgtasks.enqueue('t', '{\"card\": \"4242\"}', '[\"pin\"]')")
    owner.execute(
        "insert into pgtasks.job_history (id, queue, state, priority, created_at, task, args, kwargs, input,"
        " crashes, attempts, attempt, result, error) values (gen_random_uuid(), 'q', 'failed', 0, now(), 't',"
        ' \'["4242"]\', \'{"card": "4242"}\', \'"4242"\', 0,'
        ' \'[{"attempt": 1, "error": {"type": "ValueError", "args": ["4242"]}}]\', 1, \'"4242"\','
        ' \'{"type": "ValueError", "message": "no", "args": ["4242"]}\')'
    )
    statement = "select to_jsonb(j)::text from pgtasks.jobs j"

    for group in ("inspector", "producer", "worker"):
        with as_role(dsns[group]) as session:
            seen = session.execute(statement).fetchall()
            hidden = session.execute(
                "select count(*) from pgtasks.jobs where args || kwargs || result ~ '4242|pin'"
            ).fetchone()
        assert len(seen) == 2
        assert not any("4242" in text or "pin" in text for (text,) in seen), group
        assert any("masked" in text and "ValueError" in text for (text,) in seen), group
        assert hidden == (0,), group
    with as_role(dsns["admin"]) as session:
        assert all("4242" in text for (text,) in session.execute(statement).fetchall())


def test_arguments_of_schedules_are_masked_and_admins_change_them(dsns, owner):
    said: dict[str, Any] = {"args": [4242], "kwargs": {"card": "4242"}}
    with_admin = App("admin", dsns["admin"])
    with_admin.schedules.add("s", "every 1h", "t", **said)
    with_admin.schedules.edit("s", kwargs={"pin": "4242"})
    owner.execute(
        'update pgtasks.schedule set declared_by = \'code\', overrides = \'{"kwargs": "4242", "queue": "q"}\''
    )

    for group in ("inspector", "producer", "worker"):
        app = App(group, dsns[group])
        one = app.schedules.get("s")
        assert (one.args_json, one.kwargs_json) == ('["(masked)"]', "{}")
        assert one.overrides == {"queue": "q"}
        for change in (app.schedules.pause, app.schedules.run_now, app.schedules.remove):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                change("s")
        app.close()
    assert with_admin.schedules.get("s").kwargs_json == '{"pin":"4242"}'
    with_admin.close()


# Attacks


HIJACKS = {
    "a table in a schema that is searched first": (
        "create schema evil; grant usage on schema evil to public;"
        "create table evil.worker (idle boolean, queues text[]); grant all on evil.worker to public;"
        "create table evil.job (id uuid, queue text, task text);"
        "set search_path = evil, pgtasks, pg_catalog"
    ),
    "a temporary table": (
        "create temporary table task (name text, queue text, priority integer);"
        "insert into task values ('t', 'stolen', 9);"
        "create temporary table job (id uuid);"
        "set search_path = pg_temp, pgtasks, pg_catalog"
    ),
    "functions and operators before those of pg_catalog": (
        "create schema evil; grant usage on schema evil to public;"
        "create function evil.steal() returns text language plpgsql as"
        " $$ begin raise exception 'hijacked as %', current_user; end $$;"
        "create function evil.now() returns timestamptz language plpgsql as"
        " $$ begin perform evil.steal(); return null; end $$;"
        "create function evil.json_typeof(json) returns text language plpgsql as"
        " $$ begin return evil.steal(); end $$;"
        "create function evil.quote_literal(text) returns text language plpgsql as"
        " $$ begin return evil.steal(); end $$;"
        "create function evil.matches(text, text) returns boolean language plpgsql as"
        " $$ begin perform evil.steal(); return true; end $$;"
        "create operator evil.!~ (leftarg = text, rightarg = text, function = evil.matches);"
        "create operator evil.= (leftarg = text, rightarg = text, function = evil.matches);"
        "set search_path = evil, pg_catalog"
    ),
}


@pytest.mark.parametrize("attack", HIJACKS)
def test_a_function_with_the_owners_rights_finds_only_what_is_ours(dsns, owner, attack):
    with as_role(dsns["worker"]) as session:
        try:
            session.execute(HIJACKS[attack].encode())

            id = one(session, "select pgtasks.enqueue('t')::text")
            session.execute("select pgtasks.look('{default}', '{t}')")
            session.execute("select pgtasks.promote_jobs('default', 5)")
            token = "6d0f2c2e-0000-4000-8000-000000000001"
            claimed = session.execute(
                "select id from pgtasks.claim_jobs('default', '{t}', '{2147483647}', '{-2147483648}', '{null}', 5,"
                " %s, 1)",
                [token],
            ).fetchall()
            finished = session.execute(
                "select pgtasks.finish_jobs('{default}', array[%s]::uuid[], array[%s]::uuid[], '{succeeded}',"
                " '{1}', '{null}', '{null}', '{0}', '{true}', array[%s]::uuid[])",
                [id, token, token],
            ).fetchall()
            session.execute("select pgtasks.maintain_history(interval '7 days')")
        finally:
            session.execute("drop schema if exists evil cascade")

    assert claimed == [(id,)]
    assert finished == [(id,)]
    assert owner.execute("select id::text, queue, state from pgtasks.jobs").fetchall() == [
        (id, "default", "succeeded")
    ]


EVIL = [
    "q'; drop table pgtasks.job; --",
    'q"; drop table pgtasks.job; --',
    "pgtasks.job",
    "q\\'; select pg_sleep(9) --",
    "$$; drop schema pgtasks cascade; $$",
    "q\n; listen x",
    "%(id)s",
]


@pytest.mark.parametrize("name", EVIL)
def test_names_are_data_wherever_they_come_from(dsns, owner, name):
    app = App("evil", dsns["producer"])
    try:
        if "\n" in name:
            with pytest.raises(ConfigurationError, match="printable"):
                app.send_task("t", origin=name)
        else:
            app.send_task("t", origin=name)
        if name == "pgtasks.job":  # a name like any other
            app.send_task("t", queue=name)
        else:
            with pytest.raises(ConfigurationError, match="is not a name"):
                app.send_task("t", queue=name)
        with pytest.raises(ConfigurationError, match="is not a name"):
            app.send_task(f"{name};")
        with as_role(dsns["producer"]) as session:
            if name != "pgtasks.job":
                for said in ("'t', queue => %s", "task => %s"):
                    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is not a name"):
                        session.execute(f"select pgtasks.enqueue({said})".encode(), [name])
            # A table takes any name, and rows may come from anybody.
            session.execute(
                "insert into pgtasks.job (id, queue, task) values (gen_random_uuid(), %s, %s)",
                [name, name],
            )
            session.execute("select pgtasks.wake_channel(%s)", [name])
        with as_role(dsns["worker"]) as session:
            session.execute("select pgtasks.look(array[%s], array[%s])", [name, name])
            session.execute("select pgtasks.promote_jobs(%s, 5)", [name])
            session.execute("select pgtasks.park_unknown(%s, 5, 0)", [name])
    finally:
        app.close()
    shown = run_cli(
        dsns["admin"], "jobs", "list", "--queue", name, "--task", name, "--origin", name
    )

    assert shown.exit_code == 0
    assert owner.execute("select to_regclass('pgtasks.job') is not null").fetchone() == (True,)


# Each role's own work


def run_cli(dsn: str, *args: str, input: str | None = None) -> Any:
    return CliRunner(env={"PGTASKS_DSN": dsn, "PGTASKS_APP": ""}).invoke(cli, args, input=input)


@pytest.mark.parametrize("group", ["inspector", "admin"])
@pytest.mark.parametrize(
    "words", ["status", "jobs list", "queues", "inspect", "inspect reserved --args", "bundles list", "migrate --check"]
)  # fmt: skip
def test_inspectors_and_admins_look(dsns, owner, group, words):
    owner.execute("select pgtasks.enqueue('t', '{\"card\": \"4242\"}')")
    owner.execute(
        "select pgtasks.register_worker('w', 'h', null, null, 1, null, '1', 'solo', 1, '{default}', '{t}')"
    )
    owner.execute(
        "select pgtasks.claim_jobs('default', '{t}', '{2147483647}', '{-2147483648}', '{null}', 5, gen_random_uuid(),"
        " (select max(id) from pgtasks.worker))"
    )

    result = run_cli(dsns[group], *words.split(), "--json")

    assert result.exit_code == 0, result.output
    if words == "inspect reserved --args" and group == "admin":
        assert "4242" in result.output
    if group == "inspector":
        assert "4242" not in result.output
        assert words != "inspect reserved --args" or "masked" in result.output


def test_inspectors_are_told_in_one_line_that_they_change_nothing(dsns, owner):
    id = one(owner, "select pgtasks.enqueue('t')::text")

    for words in (f"jobs cancel {id} --force", f"jobs delete {id} --force", "purge -Q default -f"):
        result = run_cli(dsns["inspector"], *words.split())
        assert result.exit_code == 1, result.output
        assert "permission denied" in result.output
        assert "Traceback" not in result.output


def test_admins_cancel_retry_delete_and_purge(dsns, owner):
    app = App("admin", dsns["admin"])
    try:
        first, second, third = (one(owner, "select pgtasks.enqueue('t')::text") for _ in range(3))

        cancelled = app.cancel(first)
        app.reset(first)
        again = app.job(first).state
        app.cancel(second)
        deleted = app.delete(second)
        purged = app.purge("default")
        gone = app.delete_finished_jobs()
    finally:
        app.close()

    assert cancelled == {first: "cancelled"}
    assert (again, deleted, purged, gone) == ("ready", [second], 2, 2)
    assert third


def test_a_producer_takes_unique_keys(dsns, owner):
    app = App("tests", dsns["producer"])
    try:
        first = app.send_task("t", (1,), unique=lambda: "a")
        second = app.send_task("t", (2,), unique=lambda: "a", on_conflict="replace")
        results = app.enqueue_many(
            app.signature("t", (n,)).set(unique=lambda: "a", on_conflict="replace") for n in (3, 4)
        )
    finally:
        app.close()

    assert {first.id, second.id, *(one.id for one in results)} == {first.id}
    assert owner.execute("select args from pgtasks.job").fetchall() == [("[4]",)]


def test_a_producer_may_be_given_enqueue_alone(dsns, owner):
    role = login("outsider")
    owner.execute(f'grant usage on schema pgtasks to "{role}"')
    owner.execute(f'grant execute on function pgtasks.enqueue to "{role}"')
    try:
        with as_role(dsns["outsider"]) as session:
            session.execute("select pgtasks.enqueue('t', unique_key => 'a')")
            session.execute("select pgtasks.enqueue('t', unique_key => 'a')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(
                    "insert into pgtasks.job (id, queue, task) values (gen_random_uuid(), 'q', 't')"
                )
    finally:
        owner.execute(f'revoke all on all functions in schema pgtasks from "{role}"')
        owner.execute(f'revoke all on schema pgtasks from "{role}"')

    assert owner.execute("select count(*) from pgtasks.job").fetchone() == (1,)


# Migrations


def acls(connection: Connection) -> list[Any]:
    return connection.execute(
        "select relname, relacl::text from pg_class where relnamespace = 'pgtasks'::regnamespace union all"
        " select oid::regprocedure::text, proacl::text from pg_proc where pronamespace = 'pgtasks'::regnamespace"
        " order by 1, 2"
    ).fetchall()


def test_roles_are_granted_again_without_a_change(owner):
    before = acls(owner)

    migrations.grant_roles(owner)

    assert acls(owner) == before


def test_a_migration_that_makes_a_function_anew_grants_it_again(owner, monkeypatch):
    anew = migrations.Migration(
        version=migrations.code_version() + 1,
        name="make_anew",
        sql="drop function pgtasks.forget_listeners();"
        "create function pgtasks.forget_listeners() returns void language plpgsql security definer"
        " set search_path = pgtasks, pg_catalog, pg_temp as $$ begin"
        " delete from pgtasks.listener where seen_at < now() - interval '2 minutes'; end $$;"
        "revoke all on function pgtasks.forget_listeners() from public",
        min_code_version=1,
    )
    everything = (*migrations.known(), anew)
    before = acls(owner)
    try:
        monkeypatch.setattr(migrations, "known", lambda: everything)
        migrations.migrate(owner)

        assert acls(owner) == before
    finally:
        owner.execute("delete from pgtasks.migrations where name = 'make_anew'")


@pytest.mark.usefixtures("dsns")
def test_who_might_enqueue_by_sql_may_after_the_migration_of_enqueue(fresh_dsn, monkeypatch):
    everything = migrations.known()
    role = login("outsider")
    with psycopg.connect(fresh_dsn, autocommit=True) as owner:
        monkeypatch.setattr(migrations, "known", lambda: everything[:8])
        migrations.migrate(owner)
        owner.execute(f'grant usage on schema pgtasks to "{role}"')
        owner.execute(f'grant execute on function pgtasks.enqueue to "{role}" with grant option')
        monkeypatch.setattr(migrations, "known", lambda: everything)
        migrations.migrate(owner)
        try:
            owner.execute(f'set role "{role}"')
            first, second = (
                owner.execute("select pgtasks.enqueue('t', unique_key => 'a')").fetchone()
                for _ in range(2)
            )
        finally:
            owner.execute("reset role")
            owner.execute(f'drop owned by "{role}"')

    assert first == second


def test_a_role_that_is_no_superuser_migrates_and_grants(server_dsn, fresh_dsn):
    """It needs CREATEROLE and a database of its own; who lacks it is told what to type."""
    name = login("migrator")
    with psycopg.connect(server_dsn, autocommit=True) as server:
        database = psycopg.conninfo.conninfo_to_dict(fresh_dsn)["dbname"]
        taken = server.execute("select 1 from pg_roles where rolname = 'pgtasks_owner'").fetchone()
        server.execute(f"create role \"{name}\" login password 'x'")
        server.execute(f'alter database "{database}" owner to "{name}"')
        try:
            mine = psycopg.conninfo.make_conninfo(fresh_dsn, user=name, password="x")
            with psycopg.connect(mine, autocommit=True) as migrator:
                migrations.migrate(migrator)
                if taken is None:
                    with pytest.raises(DatabaseError, match=r"may not create roles: .*createrole"):
                        migrations.grant_roles(migrator)
                else:
                    with pytest.raises(DatabaseError, match="as a superuser"):
                        migrations.grant_roles(migrator)
                server.execute(f'alter role "{name}" createrole')
                if taken is not None:  # made by another: that one decides who is a member
                    server.execute(f'grant pgtasks_owner to "{name}"')
                    server.execute(
                        f'grant pgtasks_owner, pgtasks_producer, pgtasks_inspector to "{name}" with admin option'
                    )
                migrations.grant_roles(migrator)
                migrations.grant_roles(migrator)
                owned = migrator.execute(
                    "select count(*) from pg_class where relnamespace = 'pgtasks'::regnamespace"
                    " and relowner <> 'pgtasks_owner'::regrole"
                ).fetchone()
                done = migrator.execute(
                    "select pgtasks.maintain_history(interval '7 days')"
                ).fetchone()
        finally:
            with psycopg.connect(fresh_dsn, autocommit=True) as inside:
                inside.execute(f'drop owned by "{name}" cascade')
            server.execute(f'alter database "{database}" owner to current_user')
            server.execute(f'drop role "{name}"')

    assert owned == (0,)
    assert done == ([],)


def test_the_roles_are_printed_and_installed_by_the_command_line(dsns, database_with_roles):
    printed = run_cli(database_with_roles, "migrate", "--roles", "--sql")
    granted = run_cli(database_with_roles, "migrate", "--roles")
    refused = run_cli(dsns["worker"], "migrate", "--roles")

    assert printed.output == migrations.roles_script()
    assert granted.exit_code == 0, granted.output
    assert "pgtasks_producer" in granted.output
    assert refused.exit_code == 1
    assert "run 'pgtasks migrate --roles' as" in refused.output
    assert all(f"pgtasks_{group}" in printed.output for group in GROUPS)
