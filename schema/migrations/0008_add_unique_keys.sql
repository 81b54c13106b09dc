-- Unique keys: at most one job that waits or runs for each key of a queue, or one in so much time.
--
-- A job that is unique carries its key in its options: `unique_key` (the task's name, a colon, and what its arguments
-- make), and with it `unique_until` ('started'; else it is held until the job is finished) or `unique_for` (seconds). The row
-- here is the key itself: who can insert it has it, and who meets it uncommitted waits, as with any unique index. All
-- who take keys do so in their order, so that batches do not deadlock.
--
-- A key is taken in the transaction that inserts its job, and given back in the one that takes the job out of `job` or,
-- if so said, claims it. One that is held for a time outlives its job, and ends by itself. Plain jobs never come here.
create table pgtasks.unique_key (
    queue text not null,
    key text not null check (length(key) between 1 and 401),
    job_id uuid not null,
    -- Held until then, whatever becomes of the job.
    until timestamptz,
    -- Or until the job starts, or leaves `job`.
    release text check (release in ('start', 'finish')),
    primary key (queue, key),
    check ((until is null) <> (release is null))
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 1
);

create index unique_key_job on pgtasks.unique_key (job_id);
-- For claims, which ask with each batch: usually there is nothing in it.
create index unique_key_start on pgtasks.unique_key (job_id) where release = 'start';
create index unique_key_until on pgtasks.unique_key (until) where until is not null;

-- The view's owner reads the table for whoever may look at the view, and functions write it: all have the same owner,
-- also before roles are granted anew.
do $$
begin
    execute (
        select format('alter table pgtasks.unique_key owner to %I', r.rolname)
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
end
$$;

-- Takes keys for jobs that are about to be inserted, one entry a job in every array: p_seconds is how long it is held, or
-- null, and then p_release says what ends it. Returns the jobs that do not get theirs, each with the job that has it.
--
-- A key may be taken over when its time is over, or when the job that was to give it back is gone. A row that nobody may
-- take over is not locked: its job must be able to end while the caller's transaction is open.
--
-- In two steps, each in the order of the keys. Where a key that was held is gone before the second look, all is undone and
-- begun again: to take it now would be out of order. How often follows from what others commit meanwhile.
--
-- With generic plans: to make one for each list takes longer than to take a key.
create function pgtasks.take_keys(
    p_queue text[], p_key text[], p_id uuid[], p_seconds double precision[], p_release text[]
) returns table (id text, holder text)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_taken uuid[];
    v_refused uuid[];
    v_holders uuid[];
    v_wanted record;
    v_holder uuid;
begin
    loop
        v_refused := '{}';
        v_holders := '{}';
        begin
            with taken as (
                insert into pgtasks.unique_key (queue, key, job_id, until, release)
                select w.queue, w.key, w.id, now() + w.seconds * interval '1 second', w.release
                from unnest(p_queue, p_key, p_id, p_seconds, p_release) with ordinality
                    as w (queue, key, id, seconds, release, n)
                order by w.queue collate "C", w.key collate "C", w.n
                on conflict (queue, key) do nothing
                returning job_id
            )
            select coalesce(array_agg(t.job_id), '{}') into v_taken from taken t;
            if cardinality(v_taken) = cardinality(p_id) then
                return;
            end if;

            for v_wanted in
                select w.*
                from unnest(p_queue, p_key, p_id, p_seconds, p_release) with ordinality
                    as w (queue, key, id, seconds, release, n)
                where not w.id = any(v_taken)
                order by w.queue collate "C", w.key collate "C", w.n
            loop
                update pgtasks.unique_key k
                set job_id = v_wanted.id,
                    until = now() + v_wanted.seconds * interval '1 second',
                    release = v_wanted.release
                where k.queue = v_wanted.queue
                    and k.key = v_wanted.key
                    -- Nor of another of this call, whose job is not there yet.
                    and k.job_id <> all(array_remove(p_id, v_wanted.id))
                    and (
                        k.until <= now()
                        -- By the id alone: its job may be in another queue now.
                        or k.until is null and not exists (select from pgtasks.job j where j.id = k.job_id)
                    );
                continue when found;
                select k.job_id into v_holder
                from pgtasks.unique_key k
                where k.queue = v_wanted.queue and k.key = v_wanted.key;
                if not found then
                    raise exception using errcode = 'PT001';
                end if;
                v_refused := v_refused || v_wanted.id;
                v_holders := v_holders || v_holder;
            end loop;
            exit;
        exception when sqlstate 'PT001' then
            null;   -- with what was taken so far
        end;
    end loop;
    return query select r.id::text, r.holder::text from unnest(v_refused, v_holders) as r (id, holder);
end
$$;

-- Takes keys for jobs that were finished and begin again; returns those that do not get theirs, likewise. One that a job has
-- still, since it is held for a time, is its own.
create function pgtasks.retake_keys(p_jobs pgtasks.job_history[]) returns table (id uuid, holder text)
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with wanted as (
        select
            array_agg(j.queue) as queue, array_agg(j.options ->> 'unique_key') as key, array_agg(j.id) as id,
            array_agg(pgtasks.option_number(j.options, 'unique_for')) as seconds,
            array_agg(
                case
                    when pgtasks.option_number(j.options, 'unique_for') is not null then null
                    when j.options ->> 'unique_until' = 'started' then 'start'
                    else 'finish'
                end
            ) as release
        from unnest(p_jobs) j
        where length(j.options ->> 'unique_key') between 1 and 401
    )
    select t.id::uuid, t.holder
    from wanted w
    cross join lateral pgtasks.take_keys(w.queue, w.key, w.id, w.seconds, w.release) t
    where w.id is not null and t.id <> t.holder;
end
$$;

-- Gives back the keys of jobs that leave `job`, but those that are held for a time. For jobs with options: others have none.
create function pgtasks.release_keys(p_ids uuid[]) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
    -- By the job's id only: asked for the queue as well, the planner may read all keys of it.
    delete from pgtasks.unique_key k where k.job_id = any(p_ids) and k.release is not null;
end
$$;

-- Lets the keys of jobs go with them to another queue. Returns the jobs whose key another job has there: theirs stay.
create function pgtasks.move_keys(p_ids uuid[], p_to text) returns table (id uuid, holder text)
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_key pgtasks.unique_key;
begin
    for v_key in
        select k.*
        from pgtasks.unique_key k
        where k.job_id = any(p_ids) and k.queue <> p_to
        order by k.key collate "C"
    loop
        select t.holder into holder
        from pgtasks.take_keys(
            array[p_to], array[v_key.key], array[v_key.job_id], array[null::double precision], array['finish']
        ) t;
        if found then
            id := v_key.job_id;
            return next;
        else
            update pgtasks.unique_key k
            set until = v_key.until, release = v_key.release
            where k.queue = p_to and k.key = v_key.key;
            delete from pgtasks.unique_key k where k.queue = v_key.queue and k.key = v_key.key;
        end if;
    end loop;
end
$$;

-- Gives waiting jobs new arguments and a new time, found by the keys that they hold: one entry in every array. Those that
-- a worker has by now, or that are finished, stay as they are. Returns the ids of those that changed.
--
-- A key that is held for a time is held so long from now. The jobs are locked by id, like everywhere.
create function pgtasks.replace_waiting(
    p_queue text[], p_key text[], p_args text[], p_kwargs text[], p_start_at timestamptz[], p_delay double precision[],
    p_expires_at timestamptz[], p_expires_in double precision[], p_seconds double precision[],
    p_options jsonb[] default '{}'   -- of which the keys of limits, rates and turns are made of the arguments
) returns setof text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_queues text[];
    v_ids text[];
begin
    perform from pgtasks.job j
    where j.token is null
        and j.id = any(array(
            select k.job_id
            from unnest(p_queue, p_key) as w (queue, key)
            join pgtasks.unique_key k on k.queue = w.queue and k.key = w.key
        ))
    order by j.id
    for update;

    with wanted as materialized (
        select
            k.job_id as id, k.queue, k.key, w.args, w.kwargs, w.seconds,
            jsonb_strip_nulls(jsonb_build_object(
                'limit_key', w.options -> 'limit_key', 'rate_key', w.options -> 'rate_key',
                'fair_key', w.options -> 'fair_key'
            )) as gate_keys,
            coalesce(w.start_at, now() + w.delay * interval '1 second') as start_at,
            coalesce(w.expires_at, now() + w.expires_in * interval '1 second') as expires_at
        from unnest(
            p_queue, p_key, p_args, p_kwargs, p_start_at, p_delay, p_expires_at, p_expires_in, p_seconds, p_options
        ) as w (queue, key, args, kwargs, start_at, delay, expires_at, expires_in, seconds, options)
        join pgtasks.unique_key k on k.queue = w.queue and k.key = w.key
    ), changed as (
        update pgtasks.job j
        set args = w.args,
            kwargs = w.kwargs,
            options = j.options || w.gate_keys,
            -- With another key it holds no place any more.
            admitted = case when j.options @> w.gate_keys then j.admitted end,
            start_at = w.start_at,
            expires_at = w.expires_at,
            state = case
                when j.state = 'blocked' then 'blocked'
                when w.start_at > now() then 'scheduled'
                when j.state = 'scheduled' then 'ready'
                else j.state
            end,
            reason = case when w.start_at > now() and j.state <> 'blocked' then null else j.reason end,
            seq = case when j.state = 'scheduled' then nextval('pgtasks.job_seq') else j.seq end
        from wanted w
        where j.id = w.id and j.token is null and j.options ->> 'unique_key' = w.key
        returning j.id, j.queue, w.key, w.seconds
    ), renewed as (
        update pgtasks.unique_key k
        set until = now() + c.seconds * interval '1 second'
        from changed c
        where k.queue = c.queue and k.key = c.key and k.job_id = c.id and k.until is not null and c.seconds is not null
    )
    select array_agg(c.id::text), array_agg(distinct c.queue) into v_ids, v_queues from changed c;
    if v_ids is not null then
        perform pgtasks.wake(v_queues);
    end if;
    return query select unnest(v_ids);
end
$$;

-- Removes keys whose time is over; how many, at most p_limit. Those that somebody takes over right now are not waited for.
create function pgtasks.forget_keys(p_limit integer) returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_count integer;
begin
    with over as materialized (
        select k.queue, k.key
        from pgtasks.unique_key k
        where k.until <= now()
        order by k.until
        limit p_limit
        for update skip locked
    )
    delete from pgtasks.unique_key k
    using over o
    where k.queue = o.queue and k.key = o.key;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Gives a job that waits another time, priority or queue; what is null stays. p_now: as soon as may be. Returns its state,
-- or null if it does not wait: a worker has it, or takes it right now, or there is none.
--
-- The row is written in place, in whatever queue: whoever waits for its lock, as the end of what it is blocked by,
-- finds it then. It takes a new place in line, ahead of every cursor.
create function pgtasks.reschedule_job(
    p_id uuid, p_start_at timestamptz, p_delay double precision, p_now boolean, p_priority integer, p_queue text
) returns text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_job pgtasks.job;
    v_start_at timestamptz := coalesce(p_start_at, now() + p_delay * interval '1 second');
    v_timed boolean := p_now or v_start_at is not null;
    v_refused record;
begin
    select * into v_job from pgtasks.job j where j.id = p_id and j.token is null for update;
    if not found then
        return null;
    end if;
    if p_queue <> v_job.queue and v_job.options is not null then
        select * into v_refused from pgtasks.move_keys(array[p_id], p_queue);
        if found then
            raise exception 'job % is unique, and job % has its key in queue %: it stays in queue %',
                p_id, v_refused.holder, p_queue, v_job.queue
                using errcode = 'object_in_use';
        end if;
    end if;

    if v_timed then
        v_job.start_at := case when v_start_at > now() then v_start_at else now() end;
        if v_job.state <> 'blocked' then
            v_job.state := case
                when v_job.start_at > now() then 'scheduled'
                when v_job.state = 'parked' then 'parked'
                else 'ready'
            end;
        end if;
        if v_job.state <> 'parked' then
            v_job.reason := null;
        end if;
        -- What the call said in seconds, to count from when it no longer waits.
        v_job.options := nullif(v_job.options - 'countdown', '{}');
    end if;
    update pgtasks.job j
    set queue = coalesce(p_queue, v_job.queue),
        priority = coalesce(p_priority, v_job.priority),
        state = v_job.state,
        start_at = v_job.start_at,
        reason = v_job.reason,
        options = v_job.options,
        seq = nextval('pgtasks.job_seq')
    where j.id = p_id and j.queue = v_job.queue;
    if v_job.state <> 'blocked' then
        perform pgtasks.wake(array[coalesce(p_queue, v_job.queue)]);
    end if;
    return v_job.state;
end
$$;

create or replace function pgtasks.archive(p_jobs pgtasks.job[], p_state text, p_reason text, p_error jsonb default null) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_ids uuid[];
begin
    select array_agg(j.id) into v_ids from unnest(p_jobs) j where j.options is not null;
    if v_ids is not null then
        perform pgtasks.release_keys(v_ids);
    end if;
    insert into pgtasks.job_history (
        id, queue, state, priority, created_at, start_at, expires_at, started_at, task, args, kwargs,
        options, origin, parent_id, root_id, bundle_id, bundle_index, after_bundle_id, after_on, takes,
        input, reason, crashes, attempts, attempt, worker_id, error
    )
    select
        j.id, j.queue, p_state, j.priority, j.created_at, j.start_at, j.expires_at, j.started_at, j.task, j.args,
        j.kwargs, j.options, j.origin, j.parent_id, j.root_id, j.bundle_id, j.bundle_index, j.after_bundle_id,
        j.after_on, j.takes, j.input, p_reason, j.crashes, j.attempts, j.attempt, j.worker_id, p_error
    from unnest(p_jobs) j;
    perform pgtasks.tell_stopped(array(select j.id::text from unnest(p_jobs) j), false);
end
$$;

-- Takes out what waited for a failure that did not come, and all that waits for that, as if it had never been.
create or replace function pgtasks.forget_unneeded(p_ids uuid[]) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := p_ids;
    v_bundle_ids uuid[];
    v_keyed uuid[];
begin
    while cardinality(v_ids) > 0 loop
        with gone as (
            delete from pgtasks.job j where j.id = any(v_ids) and j.state = 'blocked' returning j.id, j.bundle_id, j.options
        ), around as (
            select g.bundle_id as id from gone g where g.bundle_id is not null
            union
            select b.parent_id
            from gone g
            join pgtasks.job_bundle b on b.id = g.bundle_id
            where b.parent_id is not null
        )
        select
            (select coalesce(array_agg(a.id), '{}') from around a),
            (select array_agg(g.id) from gone g where g.options is not null)
        into v_bundle_ids, v_keyed;
        if v_keyed is not null then
            perform pgtasks.release_keys(v_keyed);
        end if;
        delete from pgtasks.job_bundle b where b.id = any(v_bundle_ids);
        v_ids := array(
            select j.id from pgtasks.job j where j.state = 'blocked' and j.after_bundle_id = any(v_bundle_ids) order by j.id
            for update
        );
    end loop;
end
$$;

-- Puts a graph in the place of a running job: the row becomes the graph's last job, under its own id and in its own
-- bundle, so that whoever waits for it waits on. Returns whether it did: not if the token is another, nor if a
-- cancel was requested.
--
-- p_graph: `bundles`; `jobs`; `last`, the job that takes the place; `step`, the bundle that callbacks of it
-- wait for, or null, and `step_depth`, its depth among the bundles.
--
-- The job goes on, and so it keeps its unique key; what is new has none (see Graph.replacement).
create or replace function pgtasks.replace_job(p_queue text, p_id uuid, p_token uuid, p_graph jsonb) returns boolean
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_job pgtasks.job;
    v_last jsonb := p_graph -> 'last';
    v_step uuid := (p_graph ->> 'step')::uuid;
    v_around pgtasks.job_bundle;
    v_depth integer := 0;   -- what is added to the depths in the graph
    v_replaced integer;
    v_taken boolean;
    v_after uuid;   -- what the job had waited for
    v_after_on text;
    v_inherited jsonb;   -- options
    v_held jsonb;   -- options, of the job itself
begin
    select * into v_job from pgtasks.job j where j.queue = p_queue and j.id = p_id and j.token = p_token for update;
    if not found or v_job.cancel_requested then
        return false;
    end if;

    -- What begins in its place waited for the same: so a callback for failure is armed again, whoever stands in for it.
    if v_job.after_on <> 'stop' then
        v_after := v_job.after_bundle_id;
        v_after_on := v_job.after_on;
    end if;
    v_inherited := jsonb_strip_nulls(jsonb_build_object('replaced', v_job.options -> 'replaced'));
    v_held := jsonb_strip_nulls(jsonb_build_object(
        'unique_key', v_job.options -> 'unique_key', 'unique_for', v_job.options -> 'unique_for',
        'unique_until', v_job.options -> 'unique_until'
    ));

    -- What is new before the bundle that the job is in is deeper; callbacks that wait for a step are not.
    if v_job.bundle_id is not null then
        select * into v_around from pgtasks.job_bundle b where b.id = v_job.bundle_id;
        v_depth := v_around.depth + 1;
        if v_around.kind = 'step' and v_step is not null then
            v_depth := v_around.depth - (p_graph ->> 'step_depth')::integer;
        end if;
    end if;
    v_replaced := 1 + coalesce(jsonb_array_length(jsonb_path_query_array(v_job.attempts, '$[*].replaced')), 0);
    v_taken := exists (
        select
        from pgtasks.job j
        where j.state = 'blocked'
            and j.after_bundle_id in (v_around.id, v_around.parent_id)
            and j.takes in ('result', 'results')
    );
    perform pgtasks.insert_bundles(
        p_graph -> 'bundles', v_depth, v_step, case v_around.kind when 'step' then v_around.id else v_step end,
        v_after, v_after_on
    );
    if v_step is not null and v_around.kind is distinct from 'step' then
        insert into pgtasks.job_bundle (id, kind, parent_id, root_id, depth, total, remaining)
        values (
            v_step, 'step', v_around.id, coalesce(v_job.root_id, v_job.id), v_depth + (p_graph ->> 'step_depth')::integer,
            1, 1
        );
    end if;

    insert into pgtasks.job (
        id, queue, priority, state, start_at, expires_at, task, args, kwargs, options, origin,
        parent_id, root_id, bundle_id, bundle_index, after_bundle_id, after_on, takes, input
    )
    select
        n.id,
        coalesce(n.queue, (select t.queue from pgtasks.task t where t.name = n.task), 'default'),
        coalesce(n.priority, (select t.priority from pgtasks.task t where t.name = n.task), 0),
        case
            when n.after_bundle_id is not null then 'blocked'
            when coalesce(n.start_at, now() + n.delay * interval '1 second') > now() then 'scheduled'
            else 'ready'
        end,
        coalesce(n.start_at, now() + n.delay * interval '1 second'),
        coalesce(n.expires_at, now() + n.expires_in * interval '1 second'),
        n.task, n.args, n.kwargs,
        -- Callbacks for the failure of the last job alone, not of all that is in this place: see first_failure.
        nullif(
            coalesce(n.options, '{}') || case
                when n.after_bundle_id = v_step and n.after_on = 'failure'
                    then jsonb_build_object('replaced', v_replaced)
                when n.after_bundle_id is null then v_inherited
                else '{}'
            end,
            '{}'
        ),
        n.origin, n.parent_id, n.root_id, n.bundle_id, n.bundle_index,
        case
            when n.after_bundle_id = v_step and v_around.kind = 'step' then v_around.id
            else coalesce(n.after_bundle_id, v_after)
        end,
        coalesce(n.after_on, v_after_on), n.takes, n.input
    from jsonb_to_recordset(p_graph -> 'jobs') as n (
        id uuid, queue text, priority integer, start_at timestamptz, delay double precision, expires_at timestamptz,
        expires_in double precision, task text, args text, kwargs text, options jsonb, origin text, parent_id uuid,
        root_id uuid, bundle_id uuid, bundle_index integer, after_bundle_id uuid, after_on text, takes text, input text
    )
    order by n.id;

    update pgtasks.job j
    set queue = coalesce(n.queue, (select t.queue from pgtasks.task t where t.name = n.task), 'default'),
        priority = coalesce(n.priority, (select t.priority from pgtasks.task t where t.name = n.task), 0),
        seq = nextval('pgtasks.job_seq'),
        state = case
            when n.after_bundle_id is not null then 'blocked'
            when coalesce(n.start_at, now() + n.delay * interval '1 second') > now() then 'scheduled'
            else 'ready'
        end,
        start_at = coalesce(n.start_at, now() + n.delay * interval '1 second'),
        expires_at = coalesce(n.expires_at, now() + n.expires_in * interval '1 second'),
        task = n.task,
        args = n.args,
        kwargs = n.kwargs,
        -- Its result is kept for who takes that of the job, whatever its task says.
        options = nullif(
            coalesce(n.options, '{}')
            || case when v_taken then '{"ignore_result": false}'::jsonb else '{}' end
            || case when n.after_bundle_id is null then v_inherited else '{}' end
            || v_held,
            '{}'
        ),
        after_bundle_id = coalesce(n.after_bundle_id, v_after),
        after_on = coalesce(n.after_on, v_after_on),
        takes = n.takes,
        input = n.input,
        bundle_id = case when v_step is null or v_around.kind = 'step' then j.bundle_id else v_step end,
        crashes = 0,
        attempts = coalesce(j.attempts, '[]') || jsonb_build_object(
            'attempt', j.attempt, 'worker_id', j.worker_id, 'started_at', j.started_at, 'stopped_at', now(),
            'replaced', j.task
        ),
        attempt = 0,
        started_at = null,
        worker_id = null,
        token = null
    from jsonb_to_record(v_last) as n (
        queue text, priority integer, start_at timestamptz, delay double precision, expires_at timestamptz,
        expires_in double precision, task text, args text, kwargs text, options jsonb, after_bundle_id uuid,
        after_on text, takes text, input text
    )
    where j.queue = p_queue and j.id = p_id;

    perform pgtasks.wake(array[coalesce(v_last ->> 'queue', p_queue)]);
    return true;
end
$$;

-- Starts failed graphs again from where they broke: what failed in these bundles, or before them, is ready again; what
-- did not run because of it waits again, there and in all that follows; callbacks for failure that ran are armed
-- again. What succeeded is left alone. Returns the jobs that are ready again.
--
-- What was cancelled while it waited, of these bundles, waits again too, and so do a job in no bundle that waited for one
-- of these, and what could not get the results that it takes; and what did not run for something that has been reset and
-- has succeeded since gets what it waited for.
create or replace function pgtasks.retry_failed(p_bundle_ids uuid[]) returns setof text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_before uuid[];
    v_failed uuid[];
    v_stranded uuid[];
    v_reached uuid[];
    v_anew uuid[];
    v_waited uuid[];
    v_gone pgtasks.job_history[];
    v_stopped uuid[];
    v_refused record;
begin
    -- Bundles in which something failed, or did not run for something before it.
    v_before := array(
        with recursive before as (
            select i.id from unnest(p_bundle_ids) as i (id)
            union
            select n.id
            from before r
            cross join lateral (
                select s.id from pgtasks.job_bundle s where s.parent_id = r.id
                union all
                select h.after_bundle_id
                from pgtasks.job_history h
                where h.bundle_id = r.id and h.state = 'cancelled' and h.attempt = 0 and h.after_on = 'success'
            ) as n (id)
        )
        select b.id from before r join pgtasks.job_bundle b on b.id = r.id
    );
    v_failed := array(
        select h.id
        from pgtasks.job_history h
        where h.bundle_id = any(v_before)
            and h.state <> 'succeeded'
            and not (h.state = 'cancelled' and h.attempt = 0 and h.after_bundle_id is not null)
            and not pgtasks.was_refused(h)
    );
    -- Jobs that did not run, though what they waited for may still come, or came meanwhile.
    v_stranded := array(
        select h.id
        from pgtasks.job_history h
        join pgtasks.job_bundle b on b.id = h.after_bundle_id
        where h.bundle_id = any(v_before)
            and (h.state = 'cancelled' and h.attempt = 0 or pgtasks.was_refused(h))
            and (b.stopped_at is null or b.failed = 0 or h.after_on <> 'success')
        union
        select h.id
        from pgtasks.job_history h
        join pgtasks.job_bundle b on b.id = h.after_bundle_id
        where h.after_bundle_id = any(v_before)
            and (h.state = 'cancelled' and h.reason = 'what it waited for failed' or pgtasks.was_refused(h))
            and (b.stopped_at is null or b.failed = 0)
        union
        -- One that is in no bundle has no other name.
        select h.id
        from pgtasks.job_history h
        join pgtasks.job_bundle b on b.id = h.after_bundle_id
        where h.after_bundle_id = any(p_bundle_ids)
            and h.bundle_id is null
            and h.state = 'cancelled'
            and h.attempt = 0
            and (b.stopped_at is null or b.failed = 0 or h.after_on <> 'success')
    );
    -- Bundles that are open again then, since a job in them, or before them, is not finished. What followed a callback
    -- for failure is armed again with it, however it ended.
    with recursive reached as (
        select h.bundle_id as id, false as anew from pgtasks.job_history h where h.id = any(v_failed || v_stranded)
        union
        select n.id, n.anew
        from reached r
        cross join lateral (
            select b.parent_id, r.anew from pgtasks.job_bundle b where b.id = r.id and b.parent_id is not null
            union all
            select h.bundle_id, r.anew or h.after_on = 'failure'
            from pgtasks.job_history h
            where h.after_bundle_id = r.id
                and h.bundle_id is not null
                and (
                    r.anew
                    or h.after_on = 'failure'
                    or pgtasks.was_refused(h)
                    or h.state = 'cancelled'
                    and (h.reason = 'what it waited for failed' or h.attempt = 0 and h.bundle_id = any(v_before))
                )
        ) as n (id, anew)
    )
    select coalesce(array_agg(distinct b.id), '{}'), coalesce(array_agg(distinct b.id) filter (where r.anew), '{}')
    into v_reached, v_anew
    from reached r
    join pgtasks.job_bundle b on b.id = r.id;
    perform from pgtasks.job_bundle b
    where b.id = any(pgtasks.reached_bundles(
        v_reached || array(select h.after_bundle_id from pgtasks.job_history h where h.id = any(v_stranded))
    ))
    order by b.depth desc, b.id
    for update;

    -- As they are now: another may have done the same meanwhile.
    v_waited := array(
        select h.id
        from pgtasks.job_history h
        where h.after_bundle_id = any(v_reached)
            and (
                h.after_on = 'failure'
                or h.after_bundle_id = any(v_anew)
                or pgtasks.was_refused(h)
                or h.state = 'cancelled'
                and (
                    h.reason = 'what it waited for failed'
                    or h.attempt = 0 and h.bundle_id = any(v_before)
                    or h.attempt = 0 and h.bundle_id is null and h.after_bundle_id = any(p_bundle_ids)
                )
            )
        union
        select h.id
        from pgtasks.job_history h
        where h.id = any(v_stranded) and (h.state = 'cancelled' and h.attempt = 0 or pgtasks.was_refused(h))
    );
    perform from pgtasks.job_history h where h.id = any(v_failed || v_waited) order by h.id for update;
    with gone as (
        delete from pgtasks.job_history h
        where h.id = any(v_failed) and h.state <> 'succeeded' or h.id = any(v_waited)
        returning h as job
    )
    select array_agg(g.job) into v_gone from gone g;
    if v_gone is null then
        return;
    end if;

    select * into v_refused
    from pgtasks.retake_keys(array(select g from unnest(v_gone) g where g.options ? 'unique_key'));
    if found then
        raise exception
            'job % is unique, and job % has its key: nothing is started again before that one is finished or cancelled',
            v_refused.id, v_refused.holder
            using errcode = 'object_in_use';
    end if;

    insert into pgtasks.job (
        id, queue, priority, state, created_at, start_at, expires_at, task, args, kwargs, options, origin, parent_id,
        root_id, bundle_id, bundle_index, after_bundle_id, after_on, takes, input, attempts
    )
    select
        g.id, g.queue, g.priority, case when w.again then 'blocked' else 'ready' end, g.created_at,
        case when w.again then g.start_at end, case when w.again then g.expires_at end, g.task, g.args, g.kwargs,
        g.options, g.origin, g.parent_id, g.root_id, g.bundle_id, g.bundle_index, g.after_bundle_id, g.after_on,
        g.takes,
        case when g.takes is null or not w.again then g.input end,
        case
            when g.attempt = 0 then g.attempts
            else coalesce(g.attempts, '[]') || jsonb_build_object(
                'attempt', g.attempt, 'worker_id', g.worker_id, 'started_at', g.started_at,
                'stopped_at', g.stopped_at, 'error', g.error
            )
        end
    from unnest(v_gone) g
    cross join lateral (select g.id = any(v_waited) as again) w
    order by g.id;

    perform pgtasks.count_up(
        array(select g.bundle_id from unnest(v_gone) g where g.bundle_id is not null),
        array(select g.state <> 'succeeded' from unnest(v_gone) g where g.bundle_id is not null)
    );

    -- What waits for something that has stopped is settled at once, as everywhere.
    v_stopped := array(
        select b.id
        from pgtasks.job_bundle b
        where b.id = any(array(select g.after_bundle_id from unnest(v_gone) g where g.id = any(v_waited)))
            and b.stopped_at is not null
    );
    if cardinality(v_stopped) > 0 then
        perform pgtasks.count_down(w.bundle_ids, w.failed) from pgtasks.release_waiters(v_stopped) w;
    end if;
    return query
    select j.id::text
    from pgtasks.job j
    where j.id = any(array(select g.id from unnest(v_gone) g)) and j.state <> 'blocked'
    order by j.id;
end
$$;

-- Makes finished jobs ready again from their first attempt; what happened before stays in `attempts`. Their
-- bundles are for the caller to count up. One that never ran, because what it waited for failed, or because it ended
-- before it had what it takes, has nothing to run with: see retry_failed. One that was unique takes its key again, and stays
-- as it is if another job has it.
create or replace function pgtasks.reset_finished(p_ids uuid[], p_since timestamptz)
returns table (id text, bundle_id text, failed boolean)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_unique pgtasks.job_history[];
    v_refused uuid[] := '{}';
begin
    if exists (
        select from pgtasks.job_history h where h.id = any(p_ids) and h.stopped_at >= p_since and h.options ? 'unique_key'
    ) then
        with locked as materialized (
            select h.*
            from pgtasks.job_history h
            where h.id = any(p_ids)
                and h.stopped_at >= p_since
                and h.reason is distinct from 'what it waited for failed'
                and not (h.state = 'cancelled' and h.attempt = 0 and h.takes is not null and h.input is null)
                and not pgtasks.was_refused(h)
            order by h.id
            for update
        )
        select array_agg(h) into v_unique
        from pgtasks.job_history h
        join locked l on l.id = h.id and l.queue = h.queue and l.stopped_at = h.stopped_at
        where h.options ? 'unique_key';
        v_refused := array(select k.id from pgtasks.retake_keys(v_unique) k);
    end if;

    return query
    with locked as materialized (
        select h.id, h.queue, h.stopped_at
        from pgtasks.job_history h
        where h.id = any(p_ids)
            and h.stopped_at >= p_since
            and h.reason is distinct from 'what it waited for failed'
            and not (h.state = 'cancelled' and h.attempt = 0 and h.takes is not null and h.input is null)
            and not pgtasks.was_refused(h)
            and not h.id = any(v_refused)
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
            case
                when g.attempt = 0 then g.attempts
                else coalesce(g.attempts, '[]') || jsonb_build_object(
                    'attempt', g.attempt, 'worker_id', g.worker_id, 'started_at', g.started_at,
                    'stopped_at', g.stopped_at, 'error', g.error
                )
            end
        from gone g
        order by g.id
    )
    select g.id::text, g.bundle_id::text, g.state <> 'succeeded' from gone g;
end
$$;

-- Enqueues a job from any client: a trigger, psql, another language. A name that workers published
-- brings its queue and priority. Returns the job's id.
--
-- unique_key: at most one job of this task in its queue has that key until it is finished; with "unique_until": "started" among
-- the options until it starts, with "unique_for": 60 for so many seconds. If another job has it, nothing is written, and its id
-- comes back.
--
-- Sizes are looked at here, too: where a constraint of the table fails, the error quotes the row, arguments and all.
create function pgtasks.enqueue(
    task text,
    kwargs json default '{}',
    args json default '[]',
    queue text default null,
    priority integer default null,
    start_at timestamptz default null,
    expires_at timestamptz default null,
    origin text default null,
    id uuid default null,
    options jsonb default null,
    unique_key text default null
) returns uuid
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_id uuid := coalesce(id, pgtasks.new_id());
    v_queue text;
    v_priority integer;
    v_holder text;
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
    if unique_key is not null then
        if length(unique_key) not between 1 and 200 then
            raise exception 'unique_key has % characters, expected 1 to 200: take an id, or a digest of it', length(unique_key)
                using errcode = 'invalid_parameter_value';
        end if;
        if options ? 'unique_for' and pgtasks.option_number(options, 'unique_for') is null
            or options ? 'unique_until'
                and (options ->> 'unique_until' not in ('started', 'finished') or options ? 'unique_for') then
            raise exception 'options: expected "unique_for" with seconds, or "unique_until" with "started" or "finished", found %',
                options
                using errcode = 'invalid_parameter_value';
        end if;
        options := coalesce(options, '{}') || jsonb_build_object('unique_key', task || ':' || unique_key);
        select k.holder into v_holder
        from pgtasks.take_keys(
            array[v_queue], array[options ->> 'unique_key'], array[v_id],
            array[pgtasks.option_number(options, 'unique_for')],
            array[
                case
                    when options ? 'unique_for' then null
                    when options ->> 'unique_until' = 'started' then 'start'
                    else 'finish'
                end
            ]
        ) k;
        if found then
            return v_holder::uuid;
        end if;
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

-- The one before goes, since two would be one too many for a call by position; who might execute it may execute this one.
do $$
declare
    v_before regprocedure :=
        'pgtasks.enqueue(text, json, json, text, integer, timestamptz, timestamptz, text, uuid, jsonb)';
    v_now regprocedure :=
        'pgtasks.enqueue(text, json, json, text, integer, timestamptz, timestamptz, text, uuid, jsonb, text)';
    v_function regprocedure;
    v_executor record;
begin
    for v_function in
        select p.oid
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace
            and p.proname in (
                'take_keys', 'retake_keys', 'release_keys', 'move_keys', 'replace_waiting', 'forget_keys', 'reschedule_job',
                'enqueue'
            )
    loop
        execute format('revoke all on function %s from public', v_function);
    end loop;

    for v_executor in
        select a.grantee, a.is_grantable
        from pg_catalog.pg_proc p
        cross join lateral aclexplode(p.proacl) a
        where p.oid = v_before and a.grantee <> p.proowner
    loop
        execute format(
            'grant execute on function %s to %s%s', v_now,
            case v_executor.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(v_executor.grantee)) end,
            case when v_executor.is_grantable then ' with grant option' else '' end
        );
    end loop;
    execute format('drop function %s', v_before);
end
$$;
