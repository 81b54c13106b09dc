-- What claims and finishes do beyond taking and writing back: unique keys, limits, rates, turns and pauses. Jobs without
-- any of them pass as before.

-- Takes up to p_limit ready jobs of one queue for a worker, and records them under the token.
--
-- Each range is a stretch of the claim index: one priority beyond the last seq that was claimed
-- there (the cursor), or, with a null p_after, the gap between two such priorities. Without cursors, under a
-- held snapshot, every claim would re-read all dead entries from the beginning.
--
-- The ids are collected first and updated by `= any(array)`: a locking subquery that is joined may
-- be run again by a nested loop, and then claims more than its limit. The settings keep the planner
-- on the claim index and the primary key, also for a generic plan on a table never analysed. An aggregate above the
-- locking subquery runs it once.
create or replace function pgtasks.claim_jobs(
    p_queue text,
    p_tasks text[],
    p_high integer[],   -- priority at most, per range
    p_low integer[],    -- priority at least
    p_after bigint[],   -- seq greater than, for a range of one priority
    p_limit integer,
    p_token uuid,
    p_worker_id bigint,
    p_at_most_once boolean default false   -- all of these tasks are
) returns table (
    id text, seq bigint, priority integer, task text, args text, kwargs text, input text,
    attempt integer, crashes integer, options text, bundle_id text, bundle_index integer, parent_id text,
    root_id text, origin text, created_at double precision, start_at double precision,
    expires_at double precision, expired boolean, attempts text
)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_ids uuid[] := '{}';
    v_more uuid[];
    v_range integer;
    -- Tasks whose jobs must pass something, and whether there is one among those that were found.
    v_tasks text[] := array(select g.task from pgtasks.task_gate g where g.task = any(p_tasks));
    v_found boolean;
    v_bound boolean := false;
    v_admitted uuid[];
    v_gated boolean := exists (select from pgtasks.queue q where q.name = p_queue);
begin
    if v_gated then   -- how many the queue lets pass
        p_limit := pgtasks.open_gate(p_queue, p_limit);
        if p_limit < 1 then
            return;
        end if;
    end if;

    for v_range in 1 .. cardinality(p_high) loop
        if p_after[v_range] is not null then
            select coalesce(array_agg(f.id), '{}'), bool_or(f.task = any(v_tasks))
            into v_more, v_found
            from (
                select j.id, j.task
                from pgtasks.job j
                where j.queue = p_queue
                    and j.state = 'ready'
                    and j.priority = p_high[v_range]
                    and j.seq > p_after[v_range]
                    and j.token is null
                    and j.task = any(p_tasks)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_ids)
                for update skip locked
            ) f;
        else
            select coalesce(array_agg(f.id), '{}'), bool_or(f.task = any(v_tasks))
            into v_more, v_found
            from (
                select j.id, j.task
                from pgtasks.job j
                where j.queue = p_queue
                    and j.state = 'ready'
                    and j.priority <= p_high[v_range]
                    and j.priority >= p_low[v_range]
                    and j.token is null
                    and j.task = any(p_tasks)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_ids)
                for update skip locked
            ) f;
        end if;
        v_ids := v_ids || v_more;
        v_bound := v_bound or coalesce(v_found, false);
        exit when cardinality(v_ids) >= p_limit;
    end loop;

    if not v_bound and cardinality(v_tasks) > 0 then   -- who is admitted may stand before all that were found
        perform from pgtasks.job j
        where j.queue = p_queue and j.state = 'ready' and j.admitted = j.seq and j.seq > 0 and j.token is null
        order by j.priority desc
        limit 1;
        v_bound := found;
    end if;
    if v_bound
        or (
            select true
            from pgtasks.job j
            where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn'
            order by j.priority desc
            limit 1
        )
    then
        select g.ids, g.admitted into v_ids, v_admitted
        from pgtasks.gate_jobs(p_queue, p_tasks, p_high, p_low, p_after, p_limit, v_ids) g;
    end if;

    if cardinality(v_ids) = 0 then
        return;
    end if;

    if v_gated then
        perform pgtasks.take_tokens(p_queue, cardinality(v_ids));
    end if;

    -- Durable like everything else: a claim that is lost with the server would let others run what this worker
    -- is running, although no worker died (tests/chaos, restarts under load).
    insert into pgtasks.claim (token, worker_id, queue, job_ids, at_most_once)
    values (p_token, p_worker_id, p_queue, v_ids, p_at_most_once);

    -- Keys that are held until the start: an index of these alone, usually empty.
    delete from pgtasks.unique_key k where k.job_id = any(v_ids) and k.release = 'start';

    return query
    update pgtasks.job j
    set token = p_token,
        worker_id = p_worker_id,
        attempt = j.attempt + 1,
        started_at = now(),
        -- Of plain jobs this is no change, and the update a HOT one.
        state = 'ready',
        reason = null,
        admitted = case when j.id = any(v_admitted) then j.seq else j.admitted end
    where j.queue = p_queue
        and j.id = any(v_ids)
    returning
        j.id::text, j.seq, j.priority, j.task, j.args, j.kwargs, j.input,
        j.attempt, j.crashes, j.options::text, j.bundle_id::text, j.bundle_index, j.parent_id::text,
        j.root_id::text, j.origin, extract(epoch from j.created_at)::double precision,
        extract(epoch from j.start_at)::double precision,
        extract(epoch from j.expires_at)::double precision,
        coalesce(j.expires_at <= now(), false), j.attempts::text;
end
$$;

-- Says of each queue whether a job of these tasks is ready, and in how many seconds the next scheduled one is due. Of a
-- queue that is paused or full nothing is ready; nor is it where there is no token, and the next one is due like a job.
-- Of hot queues the asker knows better whether something is ready: there the answer is null. The settings and
-- the order force the claim index also for a table that was never analysed. The one with two arguments stays for
-- workers of the release before.
create or replace function pgtasks.look(p_queues text[], p_tasks text[], p_hot text[])
returns table (queue text, ready boolean, due_in double precision)
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select
        q.name,
        case
            when q.name = any(p_hot) then null
            when exists (select from pgtasks.queue g where g.name = q.name and pgtasks.gate_room(g, 1) < 1) then false
            else coalesce((
                select true
                from pgtasks.job j
                where j.queue = q.name and j.state = 'ready' and j.token is null and j.task = any(p_tasks)
                order by j.priority desc, j.seq
                limit 1
            ), (
                select true
                from pgtasks.job j
                where j.queue = q.name and j.state = 'parked' and j.reason = 'turn' and j.task = any(p_tasks)
                order by j.priority desc
                limit 1
            ), false)
        end,
        least(
            extract(epoch from (
                select j.start_at
                from pgtasks.job j
                where j.queue = q.name and j.state = 'scheduled'
                order by j.start_at
                limit 1
            ) - now())::double precision,
            (select pgtasks.next_token(g) from pgtasks.queue g where g.name = q.name and g.rate is not null),
            pgtasks.next_token_in(q.name)
        )
    from unnest(p_queues) as q (name);
end
$$;

-- Writes the outcomes of one queue: the first step of finish_jobs, whose arguments it has.
--
-- Rows are found by `= any(array)` and joined with their outcomes by hash, nothing else: a nested loop of the
-- batch with the table becomes a scan of the whole table where statistics say that it is empty (analysed
-- while a bulk insert was not committed): measured 1 to 2 ms a job.
drop function pgtasks.finish_queue(
    text, text[], uuid[], uuid[], text[], text[], jsonb[], double precision[], double precision[], boolean[]
);
create function pgtasks.finish_queue(
    p_of text,
    p_queue text[],
    p_id uuid[],
    p_token uuid[],
    p_outcome text[],
    p_result text[],
    p_error jsonb[],
    p_delay double precision[],
    p_age double precision[],
    p_keep boolean[],
    out ids text[],
    out retried text[],
    out bundle_ids uuid[],
    out failed boolean[],
    out limit_keys text[]   -- of jobs that hold a place of it no longer
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_nestloop = off
set enable_hashjoin = on   -- the caller's is off, and would hold here
-- What is switched off costs 1e10 where it is the only way, and jit would compile it: 640 ms.
set jit = off
as $$
#variable_conflict use_column
declare
    v_keyed uuid[];
    v_limit_keys text[];
begin
    retried := '{}';
    if 'retry' = any(p_outcome) then
        with outcome as (
            select o.*
            from unnest(p_queue, p_id, p_token, p_outcome, p_error, p_delay, p_age)
                as o (queue, id, token, outcome, error, delay, age)
            where o.queue = p_of and o.outcome = 'retry'
        ), retried as (
            update pgtasks.job j
            set state = case when o.delay > 0 then 'scheduled' else 'ready' end,
                start_at = now() + o.delay * interval '1 second',
                seq = nextval('pgtasks.job_seq'),
                -- One that is not counted (Retry(count=False)) leaves no trace, as often as it comes.
                attempt = j.attempt - case when o.error ->> 'counted' = 'false' then 1 else 0 end,
                attempts = case
                    when o.error ->> 'counted' = 'false' then j.attempts
                    else coalesce(j.attempts, '[]') || jsonb_build_object(
                        'attempt', j.attempt,
                        'worker_id', j.worker_id,
                        'started_at', now() - o.age * interval '1 second',
                        'stopped_at', now(),
                        'error', o.error
                    )
                end,
                token = null,
                worker_id = null,
                started_at = null
            from outcome o
            where j.queue = p_of
                and j.id = any(p_id)
                and j.id = o.id
                and j.token = o.token
                and not j.cancel_requested
            returning j.id::text as id, j.options ->> 'limit_key' as limit_key
        )
        select coalesce(array_agg(r.id), '{}'), array_agg(distinct r.limit_key) filter (where r.limit_key is not null)
        into retried, v_limit_keys
        from retried r;
    end if;

    with outcome as (
        select o.*
        from unnest(p_queue, p_id, p_token, p_outcome, p_result, p_error, p_age, p_keep)
            as o (queue, id, token, outcome, result, error, age, keep)
        where o.queue = p_of
    ), gone as (
        delete from pgtasks.job j
        using outcome o
        where j.queue = p_of
            and j.id = any(p_id)
            and j.id = o.id
            and j.token = o.token
            and (o.outcome <> 'retry' or j.cancel_requested)
        returning
            j.*, case o.outcome when 'retry' then 'cancelled' else o.outcome end as outcome,
            o.result, o.error, o.age, o.keep
    ), written as (
        insert into pgtasks.job_history (
            id, queue, state, priority, created_at, start_at, expires_at, started_at, task, args, kwargs,
            options, origin, parent_id, root_id, bundle_id, bundle_index, after_bundle_id, after_on, takes,
            input, reason, crashes, attempts, attempt, worker_id, result, error
        )
        select
            g.id, g.queue, g.outcome, g.priority, g.created_at, g.start_at, g.expires_at,
            now() - g.age * interval '1 second', g.task, g.args, g.kwargs, g.options, g.origin,
            g.parent_id, g.root_id, g.bundle_id, g.bundle_index, g.after_bundle_id, g.after_on, g.takes,
            g.input, g.reason,
            -- The crash that led to quarantine was not counted yet.
            g.crashes + case when g.outcome = 'quarantined' and g.age is not null then 1 else 0 end, g.attempts,
            -- One that was claimed and never begun has not been attempted.
            g.attempt - case when g.age is null then 1 else 0 end, g.worker_id, g.result, g.error
        from gone g
        -- A member's place in the results of its bundle is kept in any case.
        where g.keep or g.bundle_id is not null
    )
    select
        coalesce(array_agg(g.id::text), '{}'),
        coalesce(array_agg(g.bundle_id) filter (where g.bundle_id is not null), '{}'),
        coalesce(array_agg(g.outcome <> 'succeeded') filter (where g.bundle_id is not null), '{}'),
        array_agg(g.id) filter (where g.options is not null),
        array_agg(g.options ->> 'limit_key') filter (where g.options ? 'limit_key') || v_limit_keys
    into ids, bundle_ids, failed, v_keyed, limit_keys
    from gone g;
    if v_keyed is not null then
        perform pgtasks.release_keys(v_keyed);
    end if;
end
$$;

-- Writes outcomes back: one transaction for a whole batch, in three steps (jobs, bundles, waiters).
--
-- One entry a job in every array, sorted by id. p_outcome: 'succeeded', 'failed', 'expired',
-- 'quarantined', 'cancelled', 'retry' (ready again after p_delay seconds; one whose cancel was
-- requested is cancelled instead), or 'replace' (p_result is the graph, see replace_job; likewise). p_keep false:
-- nothing is kept of it, unless it is in a bundle. p_age: seconds since the attempt
-- began, null: it did not. p_claims: claim batches of which nothing is left.
--
-- Only rows that still carry the token are touched; their ids come back. The others are late finishes
-- of a claim that was lost, and change nothing.
create or replace function pgtasks.finish_jobs(
    p_queue text[],
    p_id uuid[],
    p_token uuid[],
    p_outcome text[],
    p_result text[],
    p_error jsonb[],
    p_delay double precision[],
    p_age double precision[],
    p_keep boolean[],
    p_claims uuid[]
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
    v_queue text;
    v_ids text[];
    v_queue_retried text[];
    v_bundle_ids uuid[];
    v_failed boolean[];
    v_outcome text[] := p_outcome;
    v_all_ids text[] := '{}';
    v_all_bundle_ids uuid[] := '{}';
    v_all_failed boolean[] := '{}';
    v_retried text[] := '{}';
    v_limit_keys text[];
    v_all_limit_keys text[] := '{}';
begin
    -- A batch of one queue without a retry is written in the order of its ids; others are locked so before.
    if 'retry' = any(p_outcome) or 'replace' = any(p_outcome) or p_queue[1] <> any(p_queue) then
        perform from pgtasks.job j where j.id = any(p_id) and j.token = any(p_token) order by j.id for update;
    end if;

    if 'replace' = any(p_outcome) then
        v_all_limit_keys := array(
            select j.options ->> 'limit_key'
            from pgtasks.job j
            where j.id = any(p_id) and j.token = any(p_token) and j.options ? 'limit_key'
        );
        for v_n in 1 .. cardinality(p_id) loop
            continue when p_outcome[v_n] <> 'replace';
            if pgtasks.replace_job(p_queue[v_n], p_id[v_n], p_token[v_n], p_result[v_n]::jsonb) then
                v_retried := v_retried || p_id[v_n]::text;
            else
                v_outcome[v_n] := 'retry';   -- whose cancel was requested, or whose token is another
            end if;
        end loop;
    end if;

    for v_queue in select distinct q from unnest(p_queue) q order by q loop
        select f.ids, f.retried, f.bundle_ids, f.failed, f.limit_keys
        into v_ids, v_queue_retried, v_bundle_ids, v_failed, v_limit_keys
        from pgtasks.finish_queue(
            v_queue, p_queue, p_id, p_token, v_outcome, p_result, p_error, p_delay, p_age, p_keep
        ) f;
        v_retried := v_retried || v_queue_retried;
        v_all_ids := v_all_ids || v_ids;
        v_all_bundle_ids := v_all_bundle_ids || v_bundle_ids;
        v_all_failed := v_all_failed || v_failed;
        if exists (select from pgtasks.queue q where q.name = v_queue and q.max_running is not null) then
            perform pgtasks.wake(array[v_queue]);   -- a place is free
        end if;
        v_all_limit_keys := v_all_limit_keys || v_limit_keys;
    end loop;

    if cardinality(v_all_bundle_ids) > 0 then
        perform pgtasks.count_down(v_all_bundle_ids, v_all_failed);
    end if;

    if cardinality(p_claims) > 0 then
        delete from pgtasks.claim c where c.token = any(p_claims);
    end if;

    perform pgtasks.tell_stopped(v_all_ids, false);
    perform pgtasks.tell_stopped(v_retried, true);
    -- Last of all: whoever has locked a key waits for nothing any more.
    if cardinality(v_all_limit_keys) > 0 then
        perform pgtasks.admit(v_all_limit_keys, '{}');
    end if;
    return query select unnest(v_all_ids || v_retried);
end
$$;

-- By the token, also where statistics say that the table is small.
alter function pgtasks.delete_claims(uuid[]) set enable_seqscan = off;

-- One owner for all of this with what calls it, also before roles are granted anew.
do $$
declare
    v_owner name := (
        select r.rolname
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
    v_object record;
begin
    for v_object in
        select c.oid::regclass as name
        from pg_catalog.pg_class c
        where c.relnamespace = 'pgtasks'::regnamespace
            and c.relkind = 'r'
            and c.relname in ('job_limit', 'job_rate', 'task_gate', 'rate_bucket', 'turn')
    loop
        execute format('alter table %s owner to %I', v_object.name, v_owner);
    end loop;
    for v_object in
        select p.oid::regprocedure as name
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace
    loop
        execute format('revoke all on function %s from public', v_object.name);
        execute format('alter function %s owner to %I', v_object.name, v_owner);
    end loop;
end
$$;
