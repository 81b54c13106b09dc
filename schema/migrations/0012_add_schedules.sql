-- Schedules: what enqueues a job of its own accord, at each of its ticks.
--
-- A tick is enqueued exactly once, whoever computes it and however often: `tick_schedules` inserts the job and moves
-- `next_at` on in one transaction, and only if `next_at` is still what the worker computed from; besides, `schedule_tick`
-- takes each (schedule, tick) once. All times are the database's. Which tick comes next is computed by workers, from the
-- row, so that what was edited here holds; see pgtasks/schedule.py.
create table pgtasks.schedule (
    name text primary key check (length(name) between 1 and 200),
    -- What is enqueued. The limits are those of pgtasks.job, so that no row of this table can fail there.
    task text not null check (length(task) between 1 and 200),
    args text not null default '[]' check (octet_length(args) <= 1048576),
    kwargs text not null default '{}' check (octet_length(kwargs) <= 1048576),
    queue text check (length(queue) between 1 and 63),              -- null: as workers published it for the task
    priority integer,                                               -- null: likewise
    expires double precision check (expires >= 0 and expires < 1e10),   -- seconds after it was enqueued
    options jsonb check (jsonb_typeof(options) = 'object' and length(options::text) <= 4000),
    origin text check (length(origin) <= 200),                      -- null: 'schedule <name>'
    -- When: a cron line, 'every 30s', 'crontab 0 0 1 * mon'.
    spec text not null check (length(spec) between 1 and 1000),
    timezone text not null default 'UTC' check (length(timezone) between 1 and 100),
    -- What becomes of ticks that were missed: no job, one for all of them, one for each.
    catch_up text not null default 'one' check (catch_up in ('skip', 'one', 'all')),
    -- The first tick that was not enqueued. Null: to be computed, from now on.
    next_at timestamptz check (next_at >= '2000-01-01 00:00Z' and next_at < '9000-01-01 00:00Z'),   -- clients know no others
    last_at timestamptz,            -- the last tick that was enqueued, and its job
    last_job_id uuid,
    paused_at timestamptz,
    paused_by text check (length(paused_by) <= 200),
    -- 'code': a worker declared it; 'hand': somebody added it, and nobody but somebody removes it.
    declared_by text not null default 'hand' check (declared_by in ('code', 'hand')),
    app text,                       -- whose code
    definition jsonb,               -- what the code says, newest first
    worker_id bigint,               -- which worker said so
    undeclared_at timestamptz,      -- since when no live worker declares it: it does not tick
    overrides jsonb check (jsonb_typeof(overrides) = 'object'),   -- what was edited, and goes before what the code says
    -- Why it does not tick: it cannot be read, or its job cannot be inserted. Tried again after a minute.
    error text,
    error_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index schedule_due on pgtasks.schedule (next_at) where paused_at is null and undeclared_at is null;

-- Each tick that was enqueued, for a few hours.
create table pgtasks.schedule_tick (
    schedule text not null,
    tick timestamptz not null,
    job_id uuid not null,
    primary key (schedule, tick)
);

create index schedule_tick_time on pgtasks.schedule_tick (tick);

-- What each live worker has in its code: a row with the last worker that has it goes, by keep_schedules.
create table pgtasks.schedule_declaration (
    worker_id bigint primary key references pgtasks.worker (id) on delete cascade,
    app text not null,
    declared_at timestamptz not null,   -- when the process began; the latest is the newest code
    definitions jsonb not null check (jsonb_typeof(definitions) = 'object')   -- name -> definition
);

-- The owner as of the tables that these belong to, also before roles are granted anew.
do $$
declare
    v_table text;
begin
    foreach v_table in array array['schedule', 'schedule_tick', 'schedule_declaration'] loop
        execute (
            select format('alter table pgtasks.%I owner to %I', v_table, r.rolname)
            from pg_catalog.pg_class c
            join pg_catalog.pg_roles r on r.oid = c.relowner
            where c.oid = 'pgtasks.jobs'::regclass
        );
    end loop;
end
$$;

-- A row whose time was changed, or that goes on after a pause, counts from now on. By plain SQL, too.
create function pgtasks.renew_schedule() returns trigger
language plpgsql as $$
begin
    new.error := null;
    new.error_at := null;
    if new.next_at is not distinct from old.next_at then
        new.next_at := null;
    end if;
    return new;
end
$$;
revoke all on function pgtasks.renew_schedule() from public;

create trigger schedule_renewed
    before update of spec, timezone, paused_at on pgtasks.schedule
    for each row
    when (
        old.spec is distinct from new.spec
        or old.timezone is distinct from new.timezone
        or (old.paused_at is not null and new.paused_at is null)
    )
    execute function pgtasks.renew_schedule();

-- Tells those who sleep until the next tick that an earlier one has come up. A tick itself tells nobody.
create function pgtasks.tell_schedules() returns trigger
language plpgsql as $$
begin
    if pgtasks.may_notify() then
        perform pg_notify('pgtasks_schedule', '');
    end if;
    return null;
end
$$;
revoke all on function pgtasks.tell_schedules() from public;

create trigger schedule_inserted
    after insert on pgtasks.schedule
    for each statement execute function pgtasks.tell_schedules();

create trigger schedule_brought_forward
    after update on pgtasks.schedule
    for each row
    when (
        new.paused_at is null and new.undeclared_at is null and (
            (new.next_at is null and old.next_at is not null)
            or new.next_at < old.next_at
            or old.paused_at is not null
            or old.undeclared_at is not null
        )
    )
    execute function pgtasks.tell_schedules();

-- What is due, the longest due first, and last a row without name with the seconds until the next one is: as
-- numbers of microseconds, since no client may lose one.
create function pgtasks.due_schedules(p_limit integer)
returns table (
    name text, spec text, timezone text, catch_up text, next_at bigint, now bigint, wait double precision
)
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        s.name, s.spec, s.timezone, s.catch_up, (extract(epoch from s.next_at) * 1000000)::bigint,
        (extract(epoch from now()) * 1000000)::bigint, null::double precision
    from pgtasks.schedule s
    where s.paused_at is null
        and s.undeclared_at is null
        and (s.next_at is null or s.next_at <= now())
        and (s.error_at is null or s.error_at not between now() - interval '1 minute' and now())
    order by s.next_at nulls first, s.name
    limit p_limit;

    return query
    select
        null, null, null, null, null::bigint, (extract(epoch from now()) * 1000000)::bigint,
        (
            select extract(epoch from min(s.next_at) - now())::double precision
            from pgtasks.schedule s
            where s.paused_at is null and s.undeclared_at is null and s.next_at > now()
        );
end
$$;
revoke all on function pgtasks.due_schedules(integer) from public;

-- The jobs of schedules, as their rows say; returns their ids. A job that is unique, and whose key another one has, is not
-- inserted: that other's id comes back.
create function pgtasks.enqueue_scheduled(p_ids uuid[], p_names text[], p_ticks timestamptz[]) returns uuid[]
language plpgsql
set lock_timeout = '500ms'   -- for keys: whoever takes one may leave his transaction open
as $$
declare
    v_refused uuid[] := '{}';
    v_holders uuid[] := '{}';
begin
    -- One job for each key, and the others of this batch wait behind it.
    if exists (
        select from pgtasks.schedule s where s.name = any(p_names) and s.options ? 'unique_key'
    ) then
        with wanted as (
            select
                t.id, coalesce(s.queue, k.queue, 'default') as queue, s.options ->> 'unique_key' as key, s.options,
                first_value(t.id) over (
                    partition by coalesce(s.queue, k.queue, 'default'), s.options ->> 'unique_key' order by t.place
                ) as first
            from unnest(p_ids, p_names) with ordinality as t (id, name, place)
            join pgtasks.schedule s on s.name = t.name
            left join pgtasks.task k on k.name = s.task
            where s.options ? 'unique_key'
        ), refused as materialized (
            select r.id::uuid as id, r.holder::uuid as holder
            from (
                select
                    array_agg(w.queue) as queue, array_agg(w.key) as key, array_agg(w.id) as id,
                    array_agg(pgtasks.option_number(w.options, 'unique_for')) as seconds,
                    array_agg(
                        case
                            when pgtasks.option_number(w.options, 'unique_for') is not null then null
                            when w.options ->> 'unique_until' = 'started' then 'start'
                            else 'finish'
                        end
                    ) as release
                from wanted w
                where w.id = w.first
            ) w
            cross join lateral pgtasks.take_keys(w.queue, w.key, w.id, w.seconds, w.release) r
        )
        select array_agg(w.id), array_agg(coalesce(r.holder, w.first))
        into v_refused, v_holders
        from wanted w
        left join refused r on r.id = w.first
        where w.id <> w.first or r.id is not null;
        v_refused := coalesce(v_refused, '{}');
    end if;

    insert into pgtasks.job (
        id, queue, priority, state, start_at, expires_at, task, args, kwargs, options, origin
    )
    select
        t.id, coalesce(s.queue, k.queue, 'default'), coalesce(s.priority, k.priority, 0), 'ready', t.tick,
        now() + s.expires * interval '1 second', s.task, s.args, s.kwargs, s.options,
        coalesce(s.origin, left('schedule ' || s.name, 200))
    from unnest(p_ids, p_names, p_ticks) with ordinality as t (id, name, tick, place)
    join pgtasks.schedule s on s.name = t.name
    left join pgtasks.task k on k.name = s.task
    where t.id <> all(v_refused)
    order by t.place;

    return array(
        select coalesce(h.holder, t.id)
        from unnest(p_ids) with ordinality as t (id, place)
        left join unnest(v_refused, v_holders) as h (id, holder) on h.id = t.id
        order by t.place
    );
exception when lock_not_available then
    raise exception 'a transaction that is open takes the unique key of its job';
end
$$;
revoke all on function pgtasks.enqueue_scheduled(uuid[], text[], timestamptz[]) from public;

-- Enqueues ticks and moves their schedules on: one entry a schedule in the first arrays, one a tick in the last two.
-- Only for schedules that are as they were when this was computed; those that another worker is at are left to him.
-- Returns the names of those that moved.
--
-- p_expected: the next_at that this was computed from, in microseconds. p_next: the one to go on with, null: as it is, there is p_error.
create function pgtasks.tick_schedules(
    p_names text[], p_specs text[], p_timezones text[], p_expected bigint[], p_next timestamptz[], p_errors text[],
    p_ticked text[], p_ticks timestamptz[]
) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_taken text[];
    v_ids uuid[];
    v_ticked text[];
    v_ticks timestamptz[];
begin
    -- By name, so that two workers do not deadlock; and skipped, so that they do not even wait.
    v_taken := array(
        select s.name
        from pgtasks.schedule s
        join unnest(p_names, p_specs, p_timezones, p_expected) as n (name, spec, timezone, expected) on n.name = s.name
        where s.spec = n.spec
            and s.timezone = n.timezone
            and (extract(epoch from s.next_at) * 1000000)::bigint is not distinct from n.expected
            and s.paused_at is null
            and s.undeclared_at is null
        order by s.name
        for update of s skip locked
    );

    with ticked as (
        insert into pgtasks.schedule_tick (schedule, tick, job_id)
        select t.name, t.tick, pgtasks.new_id()
        from unnest(p_ticked, p_ticks) as t (name, tick)
        where t.name = any(v_taken)
        on conflict do nothing
        returning schedule, tick, job_id
    )
    select array_agg(t.job_id order by t.tick, t.schedule), array_agg(t.schedule order by t.tick, t.schedule),
        array_agg(t.tick order by t.tick, t.schedule)
    into v_ids, v_ticked, v_ticks
    from ticked t;

    if v_ids is not null then
        v_ids := pgtasks.enqueue_scheduled(v_ids, v_ticked, v_ticks);
    end if;

    update pgtasks.schedule s
    set next_at = coalesce(n.next_at, s.next_at),
        error = n.error,
        error_at = case when n.error is not null then now() end,
        last_at = coalesce(l.tick, s.last_at),
        last_job_id = coalesce(l.id, s.last_job_id)
    from unnest(p_names, p_next, p_errors) as n (name, next_at, error)
    left join (
        select distinct on (t.name) t.name, t.tick, t.id
        from unnest(v_ticked, v_ticks, v_ids) as t (name, tick, id)
        order by t.name, t.tick desc
    ) l on l.name = n.name
    where s.name = n.name and s.name = any(v_taken);

    return v_taken;
end
$$;
revoke all on function pgtasks.tick_schedules(
    text[], text[], text[], bigint[], timestamptz[], text[], text[], timestamptz[]
) from public;

-- Writes into rows what is said of them, one entry a row.
create function pgtasks.set_schedules(p_names text[], p_said jsonb[]) returns void
language plpgsql as $$
begin
    update pgtasks.schedule s
    set task = n.said ->> 'task',
        args = coalesce(n.said ->> 'args', '[]'),
        kwargs = coalesce(n.said ->> 'kwargs', '{}'),
        queue = n.said ->> 'queue',
        priority = (n.said ->> 'priority')::integer,
        expires = (n.said ->> 'expires')::double precision,
        options = nullif(n.said -> 'options', 'null'),
        origin = n.said ->> 'origin',
        spec = n.said ->> 'spec',
        timezone = coalesce(n.said ->> 'timezone', 'UTC'),
        catch_up = coalesce(n.said ->> 'catch_up', 'one'),
        updated_at = now()
    from unnest(p_names, p_said) as n (name, said)
    where s.name = n.name;
end
$$;
revoke all on function pgtasks.set_schedules(text[], jsonb[]) from public;

-- Lets rows be what a worker's code says of them, with what was edited going before. One entry a row, by name.
create function pgtasks.define_schedules(p_names text[], p_workers bigint[]) returns void
language plpgsql as $$
declare
    v_names text[];
    v_said jsonb[];
begin
    insert into pgtasks.schedule (name, task, spec, declared_by)
    select n.name, d.definitions -> n.name ->> 'task', d.definitions -> n.name ->> 'spec', 'code'
    from unnest(p_names, p_workers) as n (name, worker_id)
    join pgtasks.schedule_declaration d on d.worker_id = n.worker_id
    order by n.name
    on conflict (name) do nothing;

    perform from pgtasks.schedule s where s.name = any(p_names) order by s.name for update;

    select array_agg(s.name), array_agg(d.definitions -> s.name || coalesce(s.overrides, '{}'))
    into v_names, v_said
    from unnest(p_names, p_workers) as n (name, worker_id)
    join pgtasks.schedule s on s.name = n.name
    join pgtasks.schedule_declaration d on d.worker_id = n.worker_id
    where s.declared_by = 'code' and s.definition is distinct from d.definitions -> s.name;

    update pgtasks.schedule s
    set definition = d.definitions -> s.name, app = d.app, worker_id = d.worker_id, undeclared_at = null
    from unnest(p_names, p_workers) as n (name, worker_id)
    join pgtasks.schedule_declaration d on d.worker_id = n.worker_id
    where s.name = n.name
        and s.declared_by = 'code'
        and (s.worker_id is distinct from d.worker_id or s.undeclared_at is not null);

    if v_names is not null then
        perform pgtasks.set_schedules(v_names, v_said);
    end if;
end
$$;
revoke all on function pgtasks.define_schedules(text[], bigint[]) from public;

-- Says what a worker has in its code: name -> definition. p_age: seconds since its process began. The newest process
-- that has a schedule says what it is. Returns the names that somebody added by hand: those stay as they are.
create function pgtasks.declare_schedules(
    p_worker_id bigint, p_app text, p_age double precision, p_definitions jsonb
) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_declared_at timestamptz := now() - p_age * interval '1 second';
    v_names text[];
begin
    -- As keep_schedules and remove_schedules: what is declared here must not go there, unseen.
    perform pg_advisory_xact_lock(7236412, 3);
    insert into pgtasks.schedule_declaration (worker_id, app, declared_at, definitions)
    values (p_worker_id, p_app, v_declared_at, p_definitions);

    v_names := array(
        select n.name
        from jsonb_object_keys(p_definitions) as n (name)
        where not exists (
            select from pgtasks.schedule_declaration d
            where d.declared_at > v_declared_at and d.definitions ? n.name
        )
        order by n.name
    );
    perform pgtasks.define_schedules(v_names, array_fill(p_worker_id, array[cardinality(v_names)]));
    return array(
        select s.name
        from pgtasks.schedule s
        where s.declared_by = 'hand' and p_definitions ? s.name
        order by s.name
    );
end
$$;
revoke all on function pgtasks.declare_schedules(bigint, text, double precision, jsonb) from public;

-- Lets rows be what the newest live worker that has them says; returns which are in any live worker's code.
create function pgtasks.redefine_schedules(p_names text[]) returns text[]
language plpgsql as $$
declare
    v_names text[];
    v_workers bigint[];
begin
    select array_agg(n.name), array_agg(n.worker_id)
    into v_names, v_workers
    from (
        select distinct on (o.name) o.name, d.worker_id
        from unnest(p_names) as o (name)
        join pgtasks.schedule_declaration d on d.definitions ? o.name
        order by o.name, d.declared_at desc, d.worker_id desc
    ) n;
    if v_names is not null then
        perform pgtasks.define_schedules(v_names, v_workers);
    end if;
    return coalesce(v_names, '{}');
end
$$;
revoke all on function pgtasks.redefine_schedules(text[]) from public;

-- Looks after the rows that come from code: the newest live worker that has a schedule says what it is; one that no
-- live worker has does not tick, and goes
-- - at once, if a worker of its app knows its task: whoever has that has the newer code;
-- - after a minute, if a worker of its app lives: until then one may be on its way that has the schedule;
-- - after a week, if none does: until then the app is merely stopped, and what is missed may have to be caught up.
-- What was paused or edited stays, for somebody to remove. And forgets old ticks. One process at a time.
-- Returns how many went; null: another is at it.
create function pgtasks.keep_schedules() returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_orphans text[];
    v_known text[];
    v_count integer;
begin
    if not pg_try_advisory_xact_lock(7236412, 3) then
        return null;
    end if;
    delete from pgtasks.schedule_tick t where t.tick < now() - interval '3 hours';

    -- One that somebody is at waits for the next time.
    v_orphans := array(
        select s.name
        from pgtasks.schedule s
        where s.declared_by = 'code'
            and not exists (select from pgtasks.schedule_declaration d where d.worker_id = s.worker_id)
        order by s.name
        for update of s skip locked
    );
    if cardinality(v_orphans) = 0 then
        return 0;
    end if;
    v_known := pgtasks.redefine_schedules(v_orphans);

    update pgtasks.schedule s
    set undeclared_at = now()
    where s.name = any(v_orphans) and s.name <> all(v_known) and s.undeclared_at is null;

    delete from pgtasks.schedule s
    where s.name = any(v_orphans)
        and s.undeclared_at is not null
        and s.paused_at is null
        and s.overrides is null
        and (
            exists (
                select from pgtasks.schedule_declaration d
                join pgtasks.worker w on w.id = d.worker_id
                where d.app = s.app and (s.task = any(w.tasks) or s.undeclared_at < now() - interval '1 minute')
            )
            or s.undeclared_at < now() - interval '7 days'
        );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function pgtasks.keep_schedules() from public;

-- Administrators.

-- Adds a schedule by hand; false: there is one of that name.
create function pgtasks.add_schedule(p_name text, p_said jsonb) returns boolean
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    insert into pgtasks.schedule (name, task, spec)
    values (p_name, p_said ->> 'task', p_said ->> 'spec')
    on conflict (name) do nothing;
    if not found then
        return false;
    end if;
    perform pgtasks.set_schedules(array[p_name], array[p_said]);
    return true;
end
$$;
revoke all on function pgtasks.add_schedule(text, jsonb) from public;

-- Changes a schedule. Of one from code the changes go before what the code says, until they are forgotten.
-- False: there is none of that name.
create function pgtasks.edit_schedule(p_name text, p_changes jsonb, p_forget boolean) returns boolean
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_row pgtasks.schedule;
    v_overrides jsonb;
begin
    select * into v_row from pgtasks.schedule s where s.name = p_name for update;
    if not found then
        return false;
    end if;
    if v_row.declared_by = 'hand' then
        perform pgtasks.set_schedules(array[p_name], array[to_jsonb(v_row) || p_changes]);
        return true;
    end if;
    v_overrides := case when p_forget then '{}' else coalesce(v_row.overrides, '{}') end || p_changes;
    update pgtasks.schedule s set overrides = nullif(v_overrides, '{}') where s.name = p_name;
    perform pgtasks.set_schedules(array[p_name], array[v_row.definition || v_overrides]);
    return true;
end
$$;
revoke all on function pgtasks.edit_schedule(text, jsonb, boolean) from public;

-- Lets schedules tick no more, or again: what was missed meanwhile is dropped. Returns which there are.
create function pgtasks.pause_schedules(p_names text[], p_by text) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    perform from pgtasks.schedule s where s.name = any(p_names) order by s.name for update;
    update pgtasks.schedule s
    set paused_at = now(), paused_by = p_by
    where s.name = any(p_names) and s.paused_at is null;
    return array(select s.name from pgtasks.schedule s where s.name = any(p_names) order by s.name);
end
$$;
revoke all on function pgtasks.pause_schedules(text[], text) from public;

create function pgtasks.resume_schedules(p_names text[]) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    perform from pgtasks.schedule s where s.name = any(p_names) order by s.name for update;
    update pgtasks.schedule s
    set paused_at = null, paused_by = null
    where s.name = any(p_names) and s.paused_at is not null;
    return array(select s.name from pgtasks.schedule s where s.name = any(p_names) order by s.name);
end
$$;
revoke all on function pgtasks.resume_schedules(text[]) from public;

-- Enqueues a schedule's job now, whatever its ticks are, and returns its id, or that of the job that has its unique key;
-- null: there is none of that name.
create function pgtasks.run_schedule(p_name text) returns uuid
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    if not exists (select from pgtasks.schedule s where s.name = p_name) then
        return null;
    end if;
    return (pgtasks.enqueue_scheduled(array[pgtasks.new_id()], array[p_name], array[null::timestamptz]))[1];
end
$$;
revoke all on function pgtasks.run_schedule(text) from public;

-- Removes schedules, but those that a live worker has in its code: it would come back. Returns which went. Where one
-- that was added by hand stood before one of the same name in code, that one comes.
create function pgtasks.remove_schedules(p_names text[]) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_removed text[];
begin
    perform pg_advisory_xact_lock(7236412, 3);
    perform from pgtasks.schedule s where s.name = any(p_names) order by s.name for update;
    with removed as (
        delete from pgtasks.schedule s
        where s.name = any(p_names)
            and (
                s.declared_by = 'hand'
                or not exists (select from pgtasks.schedule_declaration d where d.definitions ? s.name)
            )
        returning s.name
    )
    select coalesce(array_agg(r.name order by r.name), '{}') into v_removed from removed r;
    perform pgtasks.redefine_schedules(v_removed);
    return v_removed;
end
$$;
revoke all on function pgtasks.remove_schedules(text[]) from public;

-- Arguments are masked as in pgtasks.jobs.
create view pgtasks.schedules as
select
    name, task,
    case when (select has_column_privilege('pgtasks.schedule', 'args', 'select')) then args else '["(masked)"]' end as args,
    case when (select has_column_privilege('pgtasks.schedule', 'args', 'select')) then kwargs else '{}' end as kwargs,
    queue, priority, expires, options, origin, spec, timezone, catch_up, next_at, last_at, last_job_id,
    paused_at, paused_by, declared_by, app, undeclared_at,
    case
        when overrides is null or (select has_column_privilege('pgtasks.schedule', 'args', 'select')) then overrides
        else overrides - array['args', 'kwargs']
    end as overrides,
    error, error_at, created_at, updated_at
from pgtasks.schedule;

do $$
begin
    execute (
        select format('alter view pgtasks.schedules owner to %I', r.rolname)
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
end
$$;
