-- What roles need of the database, without rights on its tables: statements that write become functions, which
-- run with the owner's rights; the view `jobs` masks arguments and results for who may not read them.
--
-- Who may do what is in schema/roles.sql (`pgtasks migrate --roles`). Without it the schema belongs to whoever
-- migrated, as before, and to nobody else.

-- Texts for people, as the library limits them. What is longer is cut first: a constraint that is not valid holds for
-- each update, so that one old job would refuse every claim of its queue.
update pgtasks.job set origin = left(origin, 200) where length(origin) > 200;
update pgtasks.job_bundle
set type = left(type, 200), origin = left(origin, 200)
where length(type) > 200 or length(origin) > 200;
update pgtasks.worker set name = left(name, 200) where length(name) > 200;
alter table pgtasks.job add constraint job_origin_check check (length(origin) <= 200);
alter table pgtasks.job_bundle
    add constraint job_bundle_type_check check (length(type) <= 200),
    add constraint job_bundle_origin_check check (length(origin) <= 200);
alter table pgtasks.worker add constraint worker_name_check check (length(name) <= 200);

-- Workers: their own row, their claims, what no worker knows.

create function pgtasks.register_worker(
    p_name text, p_host text, p_boot_id text, p_pid_namespace text, p_pid integer, p_pid_started_at double precision,
    p_version text, p_pool text, p_concurrency integer, p_queues text[], p_tasks text[]
) returns bigint
language plpgsql as $$
declare
    v_id bigint;
begin
    insert into pgtasks.worker (
        name, host, boot_id, pid_namespace, pid, pid_started_at, version, pool, concurrency, queues, tasks
    )
    values (
        p_name, p_host, p_boot_id, p_pid_namespace, p_pid, p_pid_started_at, p_version, p_pool, p_concurrency,
        p_queues, p_tasks
    )
    returning id into v_id;
    return v_id;
end
$$;

-- Sorted by name, so that two workers do not deadlock.
create function pgtasks.publish_tasks(p_name text[], p_queue text[], p_priority integer[]) returns void
language plpgsql as $$
begin
    insert into pgtasks.task (name, queue, priority)
    select n.name, n.queue, n.priority
    from unnest(p_name, p_queue, p_priority) as n (name, queue, priority)
    order by n.name
    on conflict (name) do update
    set queue = excluded.queue, priority = excluded.priority, updated_at = now()
    where (task.queue, task.priority) is distinct from (excluded.queue, excluded.priority);
end
$$;

-- Renews a lease; no row comes back if another worker declared this one dead. p_lock: take the session's
-- advisory lock, unless it is p_locked already.
create function pgtasks.beat(
    p_worker_id bigint, p_state text, p_running uuid[], p_stats jsonb, p_lock boolean, p_locked boolean
) returns table (beat bigint, session_lock boolean)
language plpgsql as $$
#variable_conflict use_column
begin
    return query
    update pgtasks.worker w
    set beat = w.beat + 1, beat_at = now(), state = p_state, running = p_running, stats = p_stats,
        session_lock = p_lock and (
            p_locked or pg_try_advisory_lock(7236413, mod(p_worker_id, 2147483648)::integer)
        )
    where w.id = p_worker_id
    returning w.beat, w.session_lock;
end
$$;

create function pgtasks.set_idle(p_worker_id bigint, p_idle boolean) returns void
language plpgsql as $$
begin
    update pgtasks.worker set idle = p_idle where id = p_worker_id;
end
$$;

create function pgtasks.deregister_worker(p_worker_id bigint) returns void
language plpgsql as $$
begin
    delete from pgtasks.worker where id = p_worker_id;
end
$$;

create function pgtasks.delete_claims(p_tokens uuid[]) returns void
language plpgsql as $$
begin
    delete from pgtasks.claim c where c.token = any(p_tokens);
end
$$;

-- Gives back what was claimed for this worker by a statement whose reply was lost: claims that it does not
-- know of. Returns how many jobs came back, for each.
create function pgtasks.release_lost_claims(p_worker_id bigint, p_known uuid[]) returns integer
language plpgsql as $$
begin
    return pgtasks.settle_claims(
        array(select c.token from pgtasks.claim c where c.worker_id = p_worker_id and not c.token = any(p_known)),
        false
    );
end
$$;

-- Gives back what is claimed for a worker that is no longer registered: a claim that was under way while its
-- worker was declared dead. Returns how many jobs came back.
create function pgtasks.release_orphaned_claims() returns integer
language plpgsql as $$
begin
    return pgtasks.settle_claims(
        array(
            select c.token from pgtasks.claim c
            where not exists (select from pgtasks.worker w where w.id = c.worker_id)
        ),
        true, '{}', 'its worker died'
    );
end
$$;

-- Waits for whoever else writes a job, and returns a row if it still carries the token.
create function pgtasks.lock_held(p_queue text, p_id uuid, p_token uuid) returns setof integer
language plpgsql as $$
begin
    return query
    select 1 from pgtasks.job j where j.queue = p_queue and j.id = p_id and j.token = p_token for update;
end
$$;

-- Parks jobs at the head of one queue that no live worker knows and that waited longer than p_after seconds. The
-- order and the settings force the claim index, as in look.
create function pgtasks.park_unknown(p_queue text, p_limit integer, p_after double precision) returns integer
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
    v_count integer;
begin
    with head as materialized (
        select j.id, j.task, j.created_at, j.token
        from pgtasks.job j
        where j.queue = p_queue and j.state = 'ready'
        order by j.priority desc, j.seq
        limit p_limit
    ), unknown as (
        select h.id
        from head h
        where h.token is null
            and h.created_at < now() - p_after * interval '1 second'
            and not exists (select from pgtasks.worker w where h.task = any(w.tasks))
    )
    update pgtasks.job j
    set state = 'parked', reason = 'unknown task'
    where j.queue = p_queue
        and j.state = 'ready'
        and j.token is null
        and j.id = any(array(
            -- Not in the order of ids: so wait for nobody.
            select l.id
            from pgtasks.job l
            where l.queue = p_queue and l.id = any(array(select u.id from unknown u)) and l.token is null
            for update skip locked
        ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Frees parked jobs of one queue whose task this worker knows, at most p_limit; returns how many.
create function pgtasks.unpark_known(p_queue text, p_tasks text[], p_limit integer) returns integer
language plpgsql
set enable_seqscan = off
set jit = off
as $$
declare
    v_count integer;
begin
    update pgtasks.job j
    set state = 'ready', reason = null, seq = nextval('pgtasks.job_seq')
    where j.queue = p_queue
        and j.id = any(array(
            select p.id
            from pgtasks.job p
            where p.queue = p_queue
                and p.state = 'parked'
                and p.reason = 'unknown task'
                and p.task = any(p_tasks)
            limit p_limit
            for update skip locked
        ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Removes the rows of processes that died while they waited for results.
create function pgtasks.forget_listeners() returns void
language plpgsql as $$
begin
    delete from pgtasks.listener where seen_at < now() - interval '2 minutes';
end
$$;

-- Who waits for results.

create function pgtasks.register_listener(p_id uuid) returns void
language plpgsql as $$
begin
    insert into pgtasks.listener (id) values (p_id)
    on conflict (id) do update set seen_at = now();
end
$$;

create function pgtasks.deregister_listener(p_id uuid) returns void
language plpgsql as $$
begin
    delete from pgtasks.listener where id = p_id;
end
$$;

-- State, result and error of jobs: whoever knows a job's id may have its result. p_since is an hour before the
-- oldest id's time, to prune partitions.
create function pgtasks.get_outcomes(p_ids uuid[], p_since timestamptz)
returns table (id text, state text, attempt integer, result text, error jsonb)
language plpgsql stable as $$
#variable_conflict use_column
begin
    return query
    select j.id::text, case when j.token is not null then 'running' else j.state end, j.attempt, null::text, null::jsonb
    from pgtasks.job j
    where j.id = any(p_ids)
    union all
    select h.id::text, h.state, h.attempt, h.result, h.error
    from pgtasks.job_history h
    where h.id = any(p_ids) and h.stopped_at >= p_since;
end
$$;

create function pgtasks.forget_results(p_ids uuid[], p_since timestamptz) returns void
language plpgsql as $$
begin
    update pgtasks.job_history h
    set result = null
    where h.id = any(p_ids) and h.stopped_at >= p_since;
end
$$;

-- Administration.

-- Locks jobs that wait or run, by id: before waiting and running ones are written one after the other.
create function pgtasks.lock_unblocked(p_ids uuid[]) returns void
language plpgsql as $$
begin
    perform from pgtasks.job j where j.id = any(p_ids) and j.state <> 'blocked' order by j.id for update;
end
$$;

-- Takes jobs out that wait, by id order; the running ones stay, and the blocked ones unless said. Their bundles
-- are for the caller to count down.
create function pgtasks.cancel_waiting(p_ids uuid[], p_blocked boolean, p_reason text)
returns table (id text, bundle_id text)
language plpgsql as $$
#variable_conflict use_column
declare
    v_gone pgtasks.job[];
begin
    with locked as materialized (
        select j.id, j.queue
        from pgtasks.job j
        where j.id = any(p_ids) and j.token is null and (p_blocked or j.state <> 'blocked')
        order by j.id
        for update
    ), gone as (
        delete from pgtasks.job j
        using locked l
        where j.id = l.id and j.queue = l.queue and j.token is null
        returning j as job
    )
    select array_agg(g.job) into v_gone from gone g;
    if v_gone is null then
        return;
    end if;
    perform pgtasks.archive(v_gone, 'cancelled', p_reason);
    return query select g.id::text, g.bundle_id::text from unnest(v_gone) g;
end
$$;

create function pgtasks.delete_finished(p_ids uuid[], p_since timestamptz) returns setof text
language plpgsql as $$
begin
    -- Locked by id, as by everybody who removes from the history.
    return query
    with locked as materialized (
        select h.id, h.queue, h.stopped_at
        from pgtasks.job_history h
        where h.id = any(p_ids) and h.stopped_at >= p_since
        order by h.id
        for update
    )
    delete from pgtasks.job_history h
    using locked l
    where h.id = l.id and h.queue = l.queue and h.stopped_at = l.stopped_at
    returning h.id::text;
end
$$;

-- Forgets finished jobs that fit every condition that is not null, in a batch; never a member of an open bundle.
create function pgtasks.delete_history(
    p_states text[], p_task text, p_queue text, p_origin text, p_stopped_before timestamptz, p_limit integer
) returns integer
language plpgsql as $$
declare
    v_count integer;
begin
    -- Not in the order of ids: so none that others remove now, to wait for nobody.
    with fit as materialized (
        select f.id, f.queue, f.stopped_at
        from pgtasks.job_history f
        where (p_states is null or f.state = any(p_states))
            and (p_task is null or f.task = p_task)
            and (p_queue is null or f.queue = p_queue)
            and (p_origin is null or f.origin = p_origin)
            and (p_stopped_before is null or f.stopped_at < p_stopped_before)
            and not exists (select from pgtasks.job_bundle b where b.id = f.bundle_id and b.stopped_at is null)
        limit p_limit
        for update of f skip locked
    )
    delete from pgtasks.job_history h
    using fit f
    where h.id = f.id and h.queue = f.queue and h.stopped_at = f.stopped_at;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Makes finished jobs ready again from their first attempt; what happened before stays in `attempts`. Their
-- bundles are for the caller to count up.
create function pgtasks.reset_finished(p_ids uuid[], p_since timestamptz)
returns table (id text, bundle_id text, failed boolean)
language plpgsql as $$
#variable_conflict use_column
begin
    return query
    with locked as materialized (
        select h.id, h.queue, h.stopped_at
        from pgtasks.job_history h
        where h.id = any(p_ids) and h.stopped_at >= p_since
        order by h.id
        for update
    ), gone as (
        delete from pgtasks.job_history h
        using locked l
        where h.id = l.id and h.queue = l.queue and h.stopped_at = l.stopped_at
        returning h.*
    ), reset as (
        insert into pgtasks.job (
            id, queue, priority, created_at, task, args, kwargs, options, origin, parent_id, root_id,
            bundle_id, bundle_index, after_bundle_id, after_on, takes, input, attempts
        )
        select
            g.id, g.queue, g.priority, g.created_at, g.task, g.args, g.kwargs, g.options, g.origin, g.parent_id,
            g.root_id, g.bundle_id, g.bundle_index, g.after_bundle_id, g.after_on, g.takes, g.input,
            coalesce(g.attempts, '[]') || jsonb_build_object(
                'attempt', g.attempt, 'worker_id', g.worker_id, 'started_at', g.started_at,
                'stopped_at', g.stopped_at, 'error', g.error
            )
        from gone g
        order by g.id
    )
    select g.id::text, g.bundle_id::text, g.state <> 'succeeded' from gone g;
end
$$;

-- Locks bundles and those that may be counted with them, deepest first, by id: who adds, resets or removes members does this
-- before touching blocked jobs.
create function pgtasks.lock_bundles(p_ids uuid[]) returns table (id text, stopped boolean)
language plpgsql as $$
#variable_conflict use_column
begin
    return query
    select b.id::text, b.stopped_at is not null
    from pgtasks.job_bundle b
    where b.id = any(pgtasks.reached_bundles(p_ids))
    order by b.depth desc, b.id
    for update;
end
$$;

-- Forgets stopped bundles and their finished members.
create function pgtasks.delete_bundles(p_ids uuid[]) returns setof text
language plpgsql as $$
begin
    return query
    with stopped as materialized (
        select b.id
        from pgtasks.job_bundle b
        where b.id = any(p_ids) and b.stopped_at is not null
        order by b.depth desc, b.id
        for update
    ), locked as materialized (
        select h.id, h.queue, h.stopped_at
        from pgtasks.job_history h
        where h.bundle_id = any(array(select s.id from stopped s))
        order by h.id
        for update
    ), members as (
        delete from pgtasks.job_history h
        using locked l
        where h.id = l.id and h.queue = l.queue and h.stopped_at = l.stopped_at
    ), gone as (
        delete from pgtasks.job_bundle b
        using stopped s
        where b.id = s.id
        returning b.id
    )
    select g.id::text from gone g;
end
$$;

-- Arguments and results are for those who may read them in the tables; others see that there is something.
-- Each question is a sub-select, so that it is asked once a statement and not once a row.
create or replace view pgtasks.jobs as
select
    id, queue,
    case when token is not null then 'running' else state end as state,
    priority, created_at, start_at, expires_at, started_at, null::timestamptz as stopped_at,
    task,
    case when (select has_column_privilege('pgtasks.job', 'args', 'select')) then args else '["(masked)"]' end as args,
    case when (select has_column_privilege('pgtasks.job', 'args', 'select')) then kwargs else '{}' end as kwargs,
    options, origin, parent_id, root_id, bundle_id, bundle_index,
    after_bundle_id, after_on, takes,
    case
        when input is null or (select has_column_privilege('pgtasks.job', 'args', 'select')) then input
        else '"(masked)"'
    end as input,
    reason, cancel_requested, crashes,
    -- Of an error its type, text and traceback are what an inspector is there for; what it was made with is data.
    case
        when attempts is null or (select has_column_privilege('pgtasks.job', 'args', 'select')) then attempts
        else (select jsonb_agg(a.value #- '{error,args}') from jsonb_array_elements(attempts) a)
    end as attempts,
    attempt, worker_id,
    null::text as result, null::jsonb as error
from pgtasks.job
union all
select
    id, queue, state,
    priority, created_at, start_at, expires_at, started_at, stopped_at,
    task,
    case when (select has_column_privilege('pgtasks.job', 'args', 'select')) then args else '["(masked)"]' end as args,
    case when (select has_column_privilege('pgtasks.job', 'args', 'select')) then kwargs else '{}' end as kwargs,
    options, origin, parent_id, root_id, bundle_id, bundle_index,
    after_bundle_id, after_on, takes,
    case
        when input is null or (select has_column_privilege('pgtasks.job', 'args', 'select')) then input
        else '"(masked)"'
    end as input,
    reason, false as cancel_requested, crashes,
    case
        when attempts is null or (select has_column_privilege('pgtasks.job', 'args', 'select')) then attempts
        else (select jsonb_agg(a.value #- '{error,args}') from jsonb_array_elements(attempts) a)
    end as attempts,
    attempt, worker_id,
    case
        when result is null or (select has_column_privilege('pgtasks.job', 'args', 'select')) then result
        else '"(masked)"'
    end as result,
    case
        when (select has_column_privilege('pgtasks.job', 'args', 'select')) then error
        else error #- '{args}'
    end as error
from pgtasks.job_history;

-- Enqueues a job from any client: a trigger, psql, another language. A name that workers published
-- brings its queue and priority. Returns the job's id.
--
-- Sizes are looked at here, too: where a constraint of the table fails, the error quotes the row, arguments and all.
create or replace function pgtasks.enqueue(
    task text,
    kwargs json default '{}',
    args json default '[]',
    queue text default null,
    priority integer default null,
    start_at timestamptz default null,
    expires_at timestamptz default null,
    origin text default null,
    id uuid default null,
    options jsonb default null
) returns uuid
language plpgsql as $$
#variable_conflict use_variable
declare
    v_id uuid := coalesce(id, pgtasks.new_id());
    v_queue text;
    v_priority integer;
begin
    if json_typeof(kwargs) is distinct from 'object' then
        raise exception 'kwargs is a JSON object, not %: write {"name": value}', coalesce(json_typeof(kwargs), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if json_typeof(args) is distinct from 'array' then
        raise exception 'args is a JSON array, not %: write [value]', coalesce(json_typeof(args), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if task !~ '^[A-Za-z_][A-Za-z0-9_.:<>/-]{0,199}$' then
        raise exception 'task % is not a name: use letters, digits, _ . - : / < >, at most 200',
            quote_literal(left(task, 200))
            using errcode = 'invalid_parameter_value';
    end if;
    if greatest(octet_length(args::text), octet_length(kwargs::text)) > 1048576 then
        raise exception 'args has % bytes of JSON and kwargs %, expected at most 1048576: store it elsewhere and pass a reference',
            octet_length(args::text), octet_length(kwargs::text)
            using errcode = 'check_violation';
    end if;
    if length(origin) > 200 then
        raise exception 'origin has % characters, expected at most 200', length(origin)
            using errcode = 'check_violation';
    end if;
    if length(options::text) > 4000 then
        raise exception 'options has % characters, expected at most 4000', length(options::text)
            using errcode = 'check_violation';
    end if;
    select t.queue, t.priority into v_queue, v_priority from pgtasks.task t where t.name = task;
    v_queue := coalesce(queue, v_queue, 'default');
    if v_queue !~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$' then
        raise exception 'queue % is not a name: use letters, digits, _ . -, at most 63', quote_literal(v_queue)
            using errcode = 'invalid_parameter_value';
    end if;
    insert into pgtasks.job as j (id, queue, priority, state, start_at, expires_at, task, args, kwargs, options, origin)
    values (
        v_id, v_queue, coalesce(priority, v_priority, 0),
        case when start_at > now() then 'scheduled' else 'ready' end,
        start_at, expires_at, task, args::text, kwargs::text, options, origin
    );
    return v_id;
end
$$;

-- Functions that clients call run with the owner's rights, whatever their callers may do. Each pins its
-- search_path, the temporary schema last: else a caller could put a table or function of his own before ours.
-- All others (wake, archive, count_down's helpers) are called by these and need no rights of their own.
--
-- wake_workers is not among them: it runs for every insert, and would cost the server 10 µs of 87 there (measured;
-- a claim and a finish of 100 jobs: 0.7 µs of 16 a job). So enqueuers may read who is idle, instead.
-- By name, since arguments change; a later migration that makes a function anew says this anew
-- (tests/integration/test_roles.py knows them all).
do $$
declare
    v_function regprocedure;
begin
    for v_function in select p.oid from pg_catalog.pg_proc p where p.pronamespace = 'pgtasks'::regnamespace loop
        execute format('revoke all on function %s from public', v_function);
    end loop;

    for v_function in
        select p.oid
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace
            and p.proname in (
                'enqueue', 'register_listener', 'deregister_listener', 'get_outcomes', 'forget_results',
                'register_worker', 'publish_tasks', 'beat', 'set_idle', 'deregister_worker', 'rescue_worker',
                'claim_jobs', 'look', 'promote_jobs', 'finish_jobs', 'release_jobs', 'lock_held', 'delete_claims',
                'release_lost_claims', 'release_orphaned_claims', 'park_unknown', 'unpark_known', 'forget_listeners',
                'maintain_history',
                'lock_unblocked', 'cancel_waiting', 'request_cancel', 'count_down', 'count_up', 'delete_finished', 'delete_history',
                'reset_finished', 'lock_bundles', 'delete_bundles'
            )
    loop
        execute format('alter function %s security definer set search_path = pgtasks, pg_catalog, pg_temp', v_function);
    end loop;
end
$$;
