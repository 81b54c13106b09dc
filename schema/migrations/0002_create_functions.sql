-- Functions: only where several statements must be one atomic step, or must hold for any client.
-- PL/pgSQL throughout (a distributed PostgreSQL runs no SQL-language ones).

-- The channel on which the workers of a queue are woken; a hash, since channel names end at 63 bytes.
create function pgtasks.wake_channel(p_queue text) returns text
language plpgsql immutable parallel safe as $$
begin
    return 'pgtasks_' || left(encode(sha256(convert_to(p_queue, 'UTF8')), 'hex'), 40);
end
$$;

-- A time-ordered id (RFC 9562, version 7).
create function pgtasks.new_id() returns uuid
language plpgsql volatile as $$
declare
    v_bytes bytea := uuid_send(gen_random_uuid());
    v_ms bigint := floor(extract(epoch from clock_timestamp()) * 1000);
begin
    v_bytes := overlay(v_bytes placing substring(int8send(v_ms) from 3) from 1 for 6);
    v_bytes := set_byte(v_bytes, 6, (get_byte(v_bytes, 6) & 15) | 112);
    return encode(v_bytes, 'hex')::uuid;
end
$$;

-- Wakes the workers of these queues that say they are idle, and only those: NOTIFY takes a lock that is
-- held through commit, so that commits go one by one (measured, 32 clients: 2.0k/s with, 5.9k/s without).
create function pgtasks.wake(p_queues text[]) returns void
language plpgsql as $$
begin
    perform pg_notify(pgtasks.wake_channel(q.queue), '')
    from (select distinct unnest(p_queues)) as q (queue)
    where exists (select from pgtasks.worker w where w.idle and q.queue = any(w.queues));
end
$$;

-- Any client's insert wakes workers, also one by plain SQL. Goes by the idle queues, not by the rows.
create function pgtasks.wake_workers() returns trigger
language plpgsql as $$
declare
    v_queue text;
begin
    if not exists (select from pgtasks.worker where idle) then
        return null;   -- the usual case under load, and it costs each insert 5 µs and not 40
    end if;
    for v_queue in
        select distinct w.queue
        from pgtasks.worker, unnest(queues) as w (queue)
        where idle
    loop
        if exists (select from inserted i where i.queue = v_queue and i.state <> 'blocked') then
            perform pg_notify(pgtasks.wake_channel(v_queue), '');
        end if;
    end loop;
    return null;
end
$$;

create trigger job_inserted
    after insert on pgtasks.job
    referencing new table as inserted
    for each statement execute function pgtasks.wake_workers();

-- Takes up to p_limit ready jobs of one queue for a worker, and records them under the token.
--
-- Each range is a stretch of the claim index: one priority beyond the last seq that was claimed
-- there (the cursor), or, with a null p_after, the gap between two such priorities. Without cursors, under a held snapshot, every claim would re-read all dead entries from the beginning.
--
-- The ids are collected first and updated by `= any(array)`: a locking subquery that is joined may
-- be run again by a nested loop, and then claims more than its limit. The settings keep the planner
-- on the claim index and the primary key, also for a generic plan on a table never analysed.
create function pgtasks.claim_jobs(
    p_queue text,
    p_tasks text[],
    p_high integer[],   -- priority at most, per range
    p_low integer[],    -- priority at least
    p_after bigint[],   -- seq greater than, for a range of one priority
    p_limit integer,
    p_token uuid,
    p_worker_id bigint
) returns table (
    id text, seq bigint, priority integer, task text, args text, kwargs text, input text,
    attempt integer, crashes integer, options text, bundle_id text, bundle_index integer, parent_id text,
    root_id text, origin text, created_at double precision, start_at double precision,
    expires_at double precision, expired boolean, attempts text
)
language plpgsql
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
begin
    for v_range in 1 .. cardinality(p_high) loop
        if p_after[v_range] is not null then
            v_more := array(
                select j.id
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
            );
        else
            v_more := array(
                select j.id
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
            );
        end if;
        v_ids := v_ids || v_more;
        exit when cardinality(v_ids) >= p_limit;
    end loop;

    if cardinality(v_ids) = 0 then
        return;
    end if;

    -- Durable like everything else: a claim that is lost with the server would let others run what this worker
    -- is running, although no worker died (tests/chaos, restarts under load).
    insert into pgtasks.claim (token, worker_id, queue, job_ids)
    values (p_token, p_worker_id, p_queue, v_ids);

    return query
    update pgtasks.job j
    set token = p_token,
        worker_id = p_worker_id,
        attempt = j.attempt + 1,
        started_at = now()
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

-- Says of each queue whether a job is ready, and in how many seconds the next scheduled one is due
-- (negative: overdue; null: none). The order and the settings force the indexes: left alone, the planner
-- reads the whole backlog of other queues (measured: 142 ms instead of 0.3 ms, with 400,000 jobs).
create function pgtasks.look(p_queues text[], p_tasks text[])
returns table (queue text, ready boolean, due_in double precision)
language plpgsql stable
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
        coalesce((
            select true
            from pgtasks.job j
            where j.queue = q.name and j.state = 'ready' and j.token is null and j.task = any(p_tasks)
            order by j.priority desc, j.seq
            limit 1
        ), false),
        extract(epoch from (
            select j.start_at
            from pgtasks.job j
            where j.queue = q.name and j.state = 'scheduled'
            order by j.start_at
            limit 1
        ) - now())::double precision
    from unnest(p_queues) as q (name);
end
$$;

-- Makes due jobs of one queue ready, at most p_limit; each takes a new seq, ahead of every cursor. Returns
-- how many.
create function pgtasks.promote_jobs(p_queue text, p_limit integer) returns integer
language plpgsql
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
    v_count integer;
begin
    update pgtasks.job j
    set state = 'ready', seq = nextval('pgtasks.job_seq')
    where j.queue = p_queue
        and j.id = any(array(
            select d.id
            from pgtasks.job d
            where d.queue = p_queue and d.state = 'scheduled' and d.start_at <= now()
            order by d.start_at
            limit p_limit
            for update skip locked
        ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Tells the processes that wait for results, if there are any. "id" stopped; "id+" will be retried.
create function pgtasks.tell_stopped(p_ids text[], p_will_retry boolean) returns void
language plpgsql as $$
begin
    if cardinality(p_ids) > 0 and exists (select from pgtasks.listener) then
        perform pg_notify(
            'pgtasks_job_stopped',
            string_agg(case when p_will_retry then s.id || '+' else s.id end, ',' order by s.n)
        )
        from unnest(p_ids) with ordinality as s (id, n)
        group by s.n / 200;   -- 200 ids are 7,600 bytes; a payload ends at 8,000
    end if;
end
$$;

-- Writes jobs that left `job` without having been run to an end into the history.
create function pgtasks.archive(p_jobs pgtasks.job[], p_state text, p_reason text) returns void
language plpgsql as $$
begin
    insert into pgtasks.job_history (
        id, queue, state, priority, created_at, start_at, expires_at, started_at, task, args, kwargs,
        options, origin, parent_id, root_id, bundle_id, bundle_index, after_bundle_id, after_on, takes,
        input, reason, crashes, attempts, attempt, worker_id
    )
    select
        j.id, j.queue, p_state, j.priority, j.created_at, j.start_at, j.expires_at, j.started_at, j.task, j.args,
        j.kwargs, j.options, j.origin, j.parent_id, j.root_id, j.bundle_id, j.bundle_index, j.after_bundle_id,
        j.after_on, j.takes, j.input, p_reason, j.crashes, j.attempts, j.attempt, j.worker_id
    from unnest(p_jobs) j;
    perform pgtasks.tell_stopped(array(select j.id::text from unnest(p_jobs) j), false);
end
$$;

-- Unblocks the jobs that waited for these stopped bundles and hands them the results; those that are
-- no longer needed leave: what waited for success is cancelled, what waited for failure vanishes.
--
-- Returns the bundles of those that left, for count_down.
create function pgtasks.release_waiters(p_stopped uuid[], out bundle_ids uuid[], out failed boolean[])
language plpgsql as $$
declare
    v_queues text[];
    v_unneeded pgtasks.job[];
begin
    perform from pgtasks.job j
    where j.state = 'blocked' and j.after_bundle_id = any(p_stopped)
    order by j.id
    for update;

    if not found then
        return;
    end if;

    with released as (
        update pgtasks.job j
        set state = case when j.start_at > now() then 'scheduled' else 'ready' end,
            seq = nextval('pgtasks.job_seq'),
            input = case j.takes
                when 'results' then (
                    select '[' || coalesce(string_agg(coalesce(h.result, 'null'), ',' order by h.bundle_index, h.id), '') || ']'
                    from pgtasks.job_history h
                    where h.bundle_id = b.id and h.stopped_at >= b.created_at
                )
                when 'result' then (
                    select coalesce(max(h.result), 'null')
                    from pgtasks.job_history h
                    where h.bundle_id = b.id and h.stopped_at >= b.created_at
                )
            end
        from pgtasks.job_bundle b
        where j.state = 'blocked'
            and j.after_bundle_id = any(p_stopped)
            and b.id = j.after_bundle_id
            and (j.after_on = 'stop' or (j.after_on = 'success') = (b.failed = 0))
        returning j.queue
    )
    select array_agg(distinct r.queue) into v_queues from released r;

    if v_queues is not null then
        perform pgtasks.wake(v_queues);
    end if;

    with unneeded as (
        delete from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = any(p_stopped)
        returning j as job
    )
    select array_agg(u.job) into v_unneeded from unneeded u;

    perform pgtasks.archive(
        array(select j from unnest(v_unneeded) j where j.after_on = 'success'), 'cancelled', 'what it waited for failed'
    );
    select array_agg(j.bundle_id), array_agg(j.after_on = 'success')
    into bundle_ids, failed
    from unnest(v_unneeded) j
    where j.bundle_id is not null;
end
$$;

-- Counts members out of their bundles and settles what waited for the bundles that stop.
--
-- Bundles are locked deepest first and by id, blocked jobs after them by id: the order of every
-- other writer too. What happens at zero is decided by statements of their own, whose snapshots
-- begin after the wait for the bundle's row: in one statement two workers that finish the last two
-- members release the waiter with one result of two, or leave one that was just added blocked.
--
-- p_bundle_ids has one entry a member, p_failed says how that member ended. Returns the bundles that
-- stopped.
create function pgtasks.count_down(p_bundle_ids uuid[], p_failed boolean[]) returns uuid[]
language plpgsql as $$
declare
    v_ids uuid[] := p_bundle_ids;
    v_failed boolean[] := p_failed;
    v_depth integer;
    v_counted uuid[];
    v_level_stopped uuid[];
    v_round_stopped uuid[];
    v_stopped uuid[] := '{}';
begin
    loop
        v_round_stopped := '{}';
        loop
            select max(b.depth) into v_depth from pgtasks.job_bundle b where b.id = any(v_ids);
            exit when v_depth is null;

            v_counted := array(
                select b.id
                from pgtasks.job_bundle b
                where b.id = any(v_ids) and b.depth = v_depth
                order by b.id
                for update
            );

            update pgtasks.job_bundle b
            set remaining = b.remaining - c.members,
                failed = b.failed + c.failures,
                stopped_at = case when b.remaining - c.members <= 0 then now() end
            from (
                select m.id, count(*)::integer as members, (count(*) filter (where m.failed))::integer as failures
                from unnest(v_ids, v_failed) as m (id, failed)
                where m.id = any(v_counted)
                group by m.id
            ) c
            where b.id = c.id;

            v_level_stopped := array(
                select b.id from pgtasks.job_bundle b where b.id = any(v_counted) and b.stopped_at is not null
            );
            v_round_stopped := v_round_stopped || v_level_stopped;

            -- What is left: the shallower levels, and one for the bundle around each that stopped.
            select array_agg(r.id), array_agg(r.failed)
            into v_ids, v_failed
            from (
                select m.id, m.failed
                from unnest(v_ids, v_failed) as m (id, failed)
                where not m.id = any(v_counted)
                union all
                select b.parent_id, b.failed > 0
                from pgtasks.job_bundle b
                where b.id = any(v_level_stopped) and b.parent_id is not null
            ) r;
        end loop;

        exit when cardinality(v_round_stopped) = 0;
        v_stopped := v_stopped || v_round_stopped;
        select w.bundle_ids, w.failed into v_ids, v_failed from pgtasks.release_waiters(v_round_stopped) w;
    end loop;

    if cardinality(v_stopped) > 0 and exists (select from pgtasks.listener) then
        perform pg_notify('pgtasks_job_bundle_stopped', string_agg(s.id::text, ',' order by s.n))
        from unnest(v_stopped) with ordinality as s (id, n)
        group by s.n / 200;   -- 200 ids are 7,400 bytes; a payload ends at 8,000
    end if;
    return v_stopped;
end
$$;

-- Counts members into their bundles again (a finished member was reset). A bundle that had stopped is
-- open again, and counts into the one around it.
create function pgtasks.count_up(p_bundle_ids uuid[], p_failed boolean[]) returns void
language plpgsql as $$
declare
    v_ids uuid[] := p_bundle_ids;
    v_failed boolean[] := p_failed;
    v_depth integer;
    v_counted uuid[];
    v_reopened uuid[];
    v_reopened_failed boolean[];
begin
    loop
        select max(b.depth) into v_depth from pgtasks.job_bundle b where b.id = any(v_ids);
        exit when v_depth is null;

        v_counted := array(
            select b.id
            from pgtasks.job_bundle b
            where b.id = any(v_ids) and b.depth = v_depth
            order by b.id
            for update
        );

        select array_agg(b.id), array_agg(b.failed > 0)
        into v_reopened, v_reopened_failed
        from pgtasks.job_bundle b
        where b.id = any(v_counted) and b.stopped_at is not null;

        update pgtasks.job_bundle b
        set remaining = b.remaining + c.members,
            failed = b.failed - c.failures,
            stopped_at = null
        from (
            select m.id, count(*)::integer as members, (count(*) filter (where m.failed))::integer as failures
            from unnest(v_ids, v_failed) as m (id, failed)
            where m.id = any(v_counted)
            group by m.id
        ) c
        where b.id = c.id;

        select array_agg(r.id), array_agg(r.failed)
        into v_ids, v_failed
        from (
            select m.id, m.failed
            from unnest(v_ids, v_failed) as m (id, failed)
            where not m.id = any(v_counted)
            union all
            select b.parent_id, o.failed
            from unnest(v_reopened, v_reopened_failed) as o (id, failed)
            join pgtasks.job_bundle b on b.id = o.id
            where b.parent_id is not null
        ) r;
    end loop;
end
$$;

-- Writes the outcomes of one queue: the first step of finish_jobs, whose arguments it has.
--
-- Rows are found by `= any(array)` and joined with their outcomes by hash, nothing else: a nested loop of the
-- batch with the table becomes a scan of the whole table where statistics say that it is empty (analysed
-- while a bulk insert was not committed): measured 1 to 2 ms a job.
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
    out failed boolean[]
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
                attempts = coalesce(j.attempts, '[]') || jsonb_build_object(
                    'attempt', j.attempt,
                    'worker_id', j.worker_id,
                    'started_at', now() - o.age * interval '1 second',
                    'stopped_at', now(),
                    'error', o.error
                ),
                token = null,
                worker_id = null,
                started_at = null
            from outcome o
            where j.queue = p_of
                and j.id = any(p_id)
                and j.id = o.id
                and j.token = o.token
                and not j.cancel_requested
            returning j.id::text as id
        )
        select coalesce(array_agg(r.id), '{}') into retried from retried r;
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
        coalesce(array_agg(g.outcome <> 'succeeded') filter (where g.bundle_id is not null), '{}')
    into ids, bundle_ids, failed
    from gone g;
end
$$;

-- Writes outcomes back: one transaction for a whole batch, in three steps (jobs, bundles, waiters).
--
-- One entry a job in every array, sorted by id. p_outcome: 'succeeded', 'failed', 'expired',
-- 'quarantined', 'cancelled', or 'retry' (ready again after p_delay seconds; one whose cancel was
-- requested is cancelled instead). p_keep false: nothing is kept of it, unless it is in a bundle. p_age: seconds since the attempt
-- began, null: it did not. p_claims: claim batches of which nothing is left.
--
-- Only rows that still carry the token are touched; their ids come back. The others are late finishes
-- of a claim that was lost, and change nothing.
create function pgtasks.finish_jobs(
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
    v_all_ids text[] := '{}';
    v_all_bundle_ids uuid[] := '{}';
    v_all_failed boolean[] := '{}';
    v_retried text[] := '{}';
begin
    for v_queue in select distinct q from unnest(p_queue) q order by q loop
        select f.ids, f.retried, f.bundle_ids, f.failed
        into v_ids, v_queue_retried, v_bundle_ids, v_failed
        from pgtasks.finish_queue(
            v_queue, p_queue, p_id, p_token, p_outcome, p_result, p_error, p_delay, p_age, p_keep
        ) f;
        v_retried := v_retried || v_queue_retried;
        v_all_ids := v_all_ids || v_ids;
        v_all_bundle_ids := v_all_bundle_ids || v_bundle_ids;
        v_all_failed := v_all_failed || v_failed;
    end loop;

    if cardinality(v_all_bundle_ids) > 0 then
        perform pgtasks.count_down(v_all_bundle_ids, v_all_failed);
    end if;

    if cardinality(p_claims) > 0 then
        delete from pgtasks.claim c where c.token = any(p_claims);
    end if;

    perform pgtasks.tell_stopped(v_all_ids, false);
    perform pgtasks.tell_stopped(v_retried, true);
    return query select unnest(v_all_ids || v_retried);
end
$$;

-- Gives claimed jobs of one queue back, as far as they still carry the token: unattempted, or charged a
-- crash (those in p_crashed; their attempt counts). One whose cancel was requested ends cancelled.
-- Returns how many.
create function pgtasks.release_jobs(p_queue text, p_ids uuid[], p_tokens uuid[], p_crashed uuid[]) returns integer
language plpgsql
-- By `= any(array)` and hash, for the reason that finish_queue has.
set enable_seqscan = off
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
as $$
declare
    v_count integer;
    v_cancelled pgtasks.job[];
begin
    update pgtasks.job j
    set token = null,
        worker_id = null,
        started_at = null,
        attempt = j.attempt - case when j.id = any(p_crashed) then 0 else 1 end,
        crashes = j.crashes + case when j.id = any(p_crashed) then 1 else 0 end
    from unnest(p_ids, p_tokens) as r (id, token)
    where j.queue = p_queue
        and j.id = any(p_ids)
        and j.id = r.id
        and j.token = r.token
        and not j.cancel_requested;
    get diagnostics v_count = row_count;
    if v_count > 0 then
        perform pgtasks.wake(array[p_queue]);
    end if;

    with gone as (
        delete from pgtasks.job j
        using unnest(p_ids, p_tokens) as r (id, token)
        where j.queue = p_queue and j.id = any(p_ids) and j.id = r.id and j.token = r.token
        returning j as job
    )
    select coalesce(array_agg(g.job), '{}') into v_cancelled from gone g;

    if cardinality(v_cancelled) > 0 then
        perform pgtasks.archive(v_cancelled, 'cancelled', 'given back after a cancel was requested');
        perform pgtasks.count_down(
            array(select j.bundle_id from unnest(v_cancelled) j where j.bundle_id is not null),
            array(select true from unnest(v_cancelled) j where j.bundle_id is not null)
        );
    end if;
    return v_count + cardinality(v_cancelled);
end
$$;

-- Makes a dead worker's jobs ready again, and forgets the worker. The jobs that its children had begun
-- are charged a crash; what it merely held is returned unattempted.
--
-- p_beat is the beat that the observer saw stand still: if it moved after all, nothing happens. The claim
-- rows are the only way in: no scan of the backlog. Returns how many jobs came back; null: the worker
-- lives, or another rescues it right now.
create function pgtasks.rescue_worker(p_worker_id bigint, p_beat bigint) returns integer
language plpgsql as $$
declare
    v_running uuid[];
    v_claim record;
    v_count integer := 0;
begin
    select w.running into v_running
    from pgtasks.worker w
    where w.id = p_worker_id and w.beat = p_beat
    for update skip locked;
    if not found then
        return null;
    end if;

    for v_claim in
        select c.token, c.queue, c.job_ids from pgtasks.claim c where c.worker_id = p_worker_id order by c.token
    loop
        v_count := v_count + pgtasks.release_jobs(
            v_claim.queue, v_claim.job_ids,
            array_fill(v_claim.token, array[cardinality(v_claim.job_ids)]), v_running
        );
    end loop;

    delete from pgtasks.claim c where c.worker_id = p_worker_id;
    delete from pgtasks.worker w where w.id = p_worker_id;
    return v_count;
end
$$;

-- Creates the partitions of the history for today and the days to come, and drops those whose last row
-- is older than p_keep. Members of open bundles move to the default partition before a drop, so that a
-- bundle never loses results. One process at a time; gives up at once where it would have to wait.
--
-- Returns what it created and dropped, or null if another process is at it.
create function pgtasks.maintain_history(p_keep interval, p_ahead integer default 3) returns text[]
language plpgsql as $$
declare
    v_today date := (now() at time zone 'UTC')::date;
    v_day date;
    v_from timestamptz;
    v_to timestamptz;
    v_name text;
    v_done text[] := '{}';
begin
    if not pg_try_advisory_xact_lock(7236412, 1) then
        return null;
    end if;
    perform set_config('lock_timeout', '50ms', true);

    for v_day in select v_today + n from generate_series(0, p_ahead) as n loop
        v_name := 'job_history_' || to_char(v_day, 'YYYYMMDD');
        continue when to_regclass('pgtasks.' || v_name) is not null;
        v_from := v_day::timestamp at time zone 'UTC';
        v_to := (v_day + 1)::timestamp at time zone 'UTC';
        execute format('create table pgtasks.%I (like pgtasks.job_history including all)', v_name);
        -- Rows of that day that fell into the default partition would refuse the attachment.
        execute format(
            'with moved as (delete from pgtasks.job_history_default where stopped_at >= %L and stopped_at < %L returning *) '
            'insert into pgtasks.%I select * from moved',
            v_from, v_to, v_name
        );
        execute format(
            'alter table pgtasks.job_history attach partition pgtasks.%I for values from (%L) to (%L)',
            v_name, v_from, v_to
        );
        v_done := v_done || ('created ' || v_name);
    end loop;

    for v_name, v_day in
        select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'pgtasks.job_history'::regclass and c.relname ~ '^job_history_[0-9]{8}$'
    loop
        continue when (v_day + 1)::timestamp at time zone 'UTC' > now() - p_keep;
        execute format('alter table pgtasks.job_history detach partition pgtasks.%I', v_name);
        execute format(
            'insert into pgtasks.job_history_default '
            'select h.* from pgtasks.%I h join pgtasks.job_bundle b on b.id = h.bundle_id where b.stopped_at is null',
            v_name
        );
        execute format('drop table pgtasks.%I', v_name);
        v_done := v_done || ('dropped ' || v_name);
    end loop;

    delete from pgtasks.job_history_default h
    where h.stopped_at < now() - p_keep
        and not exists (select from pgtasks.job_bundle b where b.id = h.bundle_id and b.stopped_at is null);
    delete from pgtasks.job_bundle b where b.stopped_at < now() - p_keep;
    return v_done;
end
$$;

-- Enqueues a job from any client: a trigger, psql, another language. A name that workers published
-- brings its queue and priority. Returns the job's id.
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

-- The first days; workers keep them ahead from here on.
select pgtasks.maintain_history(interval '7 days');
