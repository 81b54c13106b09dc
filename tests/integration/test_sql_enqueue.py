"""``pgtasks.enqueue`` in SQL: what triggers, psql and other languages call."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import errors

from pgtasks import JobState
from pgtasks.ids import id_time, new_id


def enqueue(connection, arguments, *parameters):
    query = f"select pgtasks.enqueue({arguments})::text"
    return connection.execute(query, parameters).fetchone()[0]


def test_a_task_and_its_keyword_arguments_are_enough(app, connection):
    id = enqueue(connection, """'shop.send_email', '{"to": "ann@example.com"}'""")

    job = app.job(id)
    assert (job.task, job.args, job.kwargs) == ("shop.send_email", [], {"to": "ann@example.com"})
    assert (job.queue, job.priority, job.state) == ("default", 0, JobState.READY)
    assert (job.options, job.origin, job.start_at, job.expires_at) == ({}, None, None, None)


def test_the_id_is_a_uuid_of_version_7_made_now(connection):
    ids = [enqueue(connection, "'t'") for _ in range(20)]

    assert len(set(ids)) == 20
    for id in ids:
        made = id_time(id)
        assert made is not None
        assert abs(datetime.now(UTC) - made) < timedelta(seconds=5)


def test_everything_else_is_said_by_name(app, connection):
    id = new_id()

    said = enqueue(
        connection,
        """task => 't', args => '[1, "x"]', queue => 'mail', priority => 7, origin => 'trigger',
        start_at => '2999-01-01 00:00+00', expires_at => '2999-01-02 00:00+00', id => %s,
        options => '{"retries": 2}'""",
        id,
    )

    job = app.job(id)
    assert said == id
    assert (job.args, job.kwargs) == ([1, "x"], {})
    assert (job.queue, job.priority, job.origin) == ("mail", 7, "trigger")
    assert job.state is JobState.SCHEDULED
    assert job.start_at == datetime(2999, 1, 1, tzinfo=UTC)
    assert job.expires_at == datetime(2999, 1, 2, tzinfo=UTC)
    assert job.options == {"retries": 2}


def test_a_start_in_the_past_is_ready_at_once(app, connection):
    id = enqueue(connection, "'t', start_at => now() - interval '1 second'")

    assert app.job(id).state is JobState.READY


def test_queue_and_priority_come_from_what_workers_published(app, connection, worker):
    worker.execute("publish_tasks", name=["mail"], queue=["letters"], priority=[4])

    published = app.job(enqueue(connection, "'mail'"))
    said = app.job(enqueue(connection, "'mail', queue => 'other', priority => 0"))

    assert (published.queue, published.priority) == ("letters", 4)
    assert (said.queue, said.priority) == ("other", 0)


def test_what_is_published_again_replaces_what_was(connection, worker):
    worker.execute("publish_tasks", name=["a", "b"], queue=["q", "q"], priority=[1, 1])
    worker.execute("publish_tasks", name=["b", "c"], queue=["r", "r"], priority=[2, 2])

    rows = connection.execute("select name, queue, priority from pgtasks.task order by 1")
    assert rows.fetchall() == [("a", "q", 1), ("b", "r", 2), ("c", "r", 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'t', '[]'", "kwargs is a JSON object, not array"),
        ("'t', '1'", "kwargs is a JSON object, not number"),
        ("'t', 'null'", "kwargs is a JSON object, not null"),
        ("'t', null", "kwargs is a JSON object, not null"),
        ("'t', args => '{}'", "args is a JSON array, not object"),
        ("'t', args => '\"x\"'", "args is a JSON array, not string"),
        ("'t', args => null", "args is a JSON array, not null"),
        ("'t', queue => 'no spaces'", "queue 'no spaces' is not a name"),
        ("'t', queue => ''", "queue '' is not a name"),
        ("'t', queue => repeat('q', 64)", "is not a name"),
        ("'t', queue => E'a\\n'", "is not a name"),
        ("''", "task '' is not a name"),
        ("repeat('t', 201)", "task 't+' is not a name"),
        ("'no spaces'", "task 'no spaces' is not a name"),
        ("E't\\n'", "is not a name"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_with_words(app, connection, arguments, message):
    with pytest.raises(errors.InvalidParameterValue, match=message):
        enqueue(connection, arguments)

    assert app.jobs() == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("'t', '{'", errors.InvalidTextRepresentation),
        ("'t', '{\"a\": NaN}'", errors.InvalidTextRepresentation),
        ("null", errors.NotNullViolation),
        ("'t', id => 'seven'", errors.InvalidTextRepresentation),
        ("'t', '{}', '[\"' || repeat('x', 1048576) || '\"]'", errors.UndefinedFunction),
        ("'t', '{}', ('[\"' || repeat('x', 1048576) || '\"]')::json", errors.CheckViolation),
    ],
)
def test_what_is_no_job_at_all_is_refused_too(app, connection, arguments, error):
    with pytest.raises(error):
        enqueue(connection, arguments)

    assert app.jobs() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "'t', '{}', ('[\"' || repeat('x', 1048573) || '\"]')::json",
            "args has 1048577 bytes of JSON and kwargs 2, expected at most 1048576",
        ),
        (
            "'t', ('{\"a\":\"' || repeat('x', 1048569) || '\"}')::json",
            "and kwargs 1048577, expected",
        ),
        ("'t', origin => repeat('x', 201)", "origin has 201 characters, expected at most 200"),
        (
            "'t', options => jsonb_build_object('a', repeat('x', 4000))",
            "options has 4009 characters",
        ),
    ],
)
def test_what_is_too_large_is_refused_with_its_size_and_without_its_content(
    app, connection, arguments, message
):
    with pytest.raises(errors.CheckViolation, match=message) as refused:
        enqueue(connection, arguments)

    assert "xxxx" not in f"{refused.value} {refused.value.diag.message_detail}"
    assert app.jobs() == []


def test_what_is_just_small_enough_is_taken(connection):
    enqueue(connection, "'t', '{}', ('[\"' || repeat('x', 1048572) || '\"]')::json")

    assert connection.execute("select octet_length(args) from pgtasks.job").fetchone() == (1048576,)


def test_an_id_that_exists_is_refused(connection):
    id = enqueue(connection, "'t'")

    with pytest.raises(errors.UniqueViolation):
        enqueue(connection, "'t', id => %s", id)


def test_the_json_text_keeps_its_bytes(connection):
    id = enqueue(connection, """'t', '{"b":  1.10, "a": 1e2}'""")

    kwargs = connection.execute("select kwargs from pgtasks.job where id = %s", [id]).fetchone()[0]
    assert kwargs == '{"b":  1.10, "a": 1e2}'


def test_a_rolled_back_transaction_leaves_no_job(app, dsn):
    with psycopg.connect(dsn) as connection:
        enqueue(connection, "'t'")
        connection.rollback()

    assert app.jobs() == []


def test_a_trigger_of_another_table_can_enqueue(app, connection, worker):
    with connection.transaction(force_rollback=True):
        connection.execute("""
            create table public.shop_order (id int);
            create function public.ordered() returns trigger language plpgsql as $$
            begin
                perform pgtasks.enqueue('ship', json_build_object('order', new.id));
                return new;
            end $$;
            create trigger ordered after insert on public.shop_order
                for each row execute function public.ordered();
            insert into public.shop_order values (1), (2);
        """)
        held = worker.claim()

    assert [one.kwargs for one in held] == ['{"order" : 1}', '{"order" : 2}']
