-- Claims of at_most_once tasks, cancel requests on the way to the worker, the session lock of a parent, what a
-- crash looked like; and no NOTIFY into a queue that fills up.

alter table pgtasks.claim
    -- Never run again: if their worker dies these jobs fail as lost.
    add column at_most_once boolean not null default false,
    -- Jobs of this claim whose cancel was requested, and those of them that are to be interrupted.
    add column cancel_ids uuid[] not null default '{}',
    add column interrupt_ids uuid[] not null default '{}';

alter table pgtasks.worker
    -- The parent's session holds the advisory lock (7236413, id): who can take it knows that the session is gone.
    add column session_lock boolean not null default false;

-- Whether NOTIFY would still go through. One session that has said LISTEN and sleeps in a transaction fills the
-- queue in the end, and then every commit that notifies fails: so those that poll go without in time. To ask
-- also frees what nobody needs any more. It takes a lock: ask only when something would be sent.
create function pgtasks.may_notify() returns boolean
language plpgsql volatile as $$
begin
    return pg_notification_queue_usage() < 0.5;
end
$$;

-- Wakes the workers of these queues that say they are idle, and only those: NOTIFY takes a lock that is
-- held through commit, so that commits go one by one (measured, 32 clients: 2.0k/s with, 5.9k/s without).
create or replace function pgtasks.wake(p_queues text[]) returns void
language plpgsql as $$
declare
    v_queue text;
begin
    for v_queue in
        select q.queue
        from (select distinct unnest(p_queues)) as q (queue)
        where exists (select from pgtasks.worker w where w.idle and q.queue = any(w.queues))
    loop
        if pgtasks.may_notify() then
            perform pg_notify(pgtasks.wake_channel(v_queue), '');
        end if;
    end loop;
end
$$;

-- Any client's insert wakes workers, also one by plain SQL. Goes by the idle queues, not by the rows.
create or replace function pgtasks.wake_workers() returns trigger
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
        if exists (select from inserted i where i.queue = v_queue and i.state <> 'blocked') and pgtasks.may_notify() then
            perform pg_notify(pgtasks.wake_channel(v_queue), '');
        end if;
    end loop;
    return null;
end
$$;

-- Tells the processes that wait for results, if there are any. "id" stopped; "id+" will be retried.
create or replace function pgtasks.tell_stopped(p_ids text[], p_will_retry boolean) returns void
language plpgsql as $$
begin
    if cardinality(p_ids) > 0 and exists (select from pgtasks.listener) and pgtasks.may_notify() then
        perform pg_notify(
            'pgtasks_job_stopped',
            string_agg(case when p_will_retry then s.id || '+' else s.id end, ',' order by s.n)
        )
        from unnest(p_ids) with ordinality as s (id, n)
        group by s.n / 200;   -- 200 ids are 7,600 bytes; a payload ends at 8,000
    end if;
end
$$;

-- The bundles that may be counted when members of these are counted out: those around them, and those of the
-- jobs that wait for any of them, since such a job may leave. Who counts locks them all first, in order: one that
-- is met only when a job leaves would be locked after blocked jobs, against who cancels these.
create function pgtasks.reached_bundles(p_ids uuid[]) returns uuid[]
language plpgsql
set enable_seqscan = off
set jit = off
as $$
begin
    return array(
        with recursive reached as (
            select i.id from unnest(p_ids) as i (id)
            union
            select n.id
            from reached r
            cross join lateral (
                select b.parent_id from pgtasks.job_bundle b where b.id = r.id and b.parent_id is not null
                union all
                select j.bundle_id
                from pgtasks.job j
                where j.state = 'blocked' and j.after_bundle_id = r.id and j.bundle_id is not null
            ) as n (id)
        )
        select r.id from reached r
    );
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
create or replace function pgtasks.count_down(p_bundle_ids uuid[], p_failed boolean[]) returns uuid[]
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
    -- Seldom: usually what waits for a bundle is a member of none.
    if exists (
        select
        from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = any(p_bundle_ids) and j.bundle_id is not null
    ) then
        perform from pgtasks.job_bundle b
        where b.id = any(pgtasks.reached_bundles(p_bundle_ids))
        order by b.depth desc, b.id
        for update;
    end if;

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

    if cardinality(v_stopped) > 0 and exists (select from pgtasks.listener) and pgtasks.may_notify() then
        perform pg_notify('pgtasks_job_bundle_stopped', string_agg(s.id::text, ',' order by s.n))
        from unnest(v_stopped) with ordinality as s (id, n)
        group by s.n / 200;   -- 200 ids are 7,400 bytes; a payload ends at 8,000
    end if;
    return v_stopped;
end
$$;

-- Takes up to p_limit ready jobs of one queue for a worker, and records them under the token.
--
-- Each range is a stretch of the claim index: one priority beyond the last seq that was claimed
-- there (the cursor), or, with a null p_after, the gap between two such priorities. Without cursors, under a
-- held snapshot, every claim would re-read all dead entries from the beginning.
--
-- The ids are collected first and updated by `= any(array)`: a locking subquery that is joined may
-- be run again by a nested loop, and then claims more than its limit. The settings keep the planner
-- on the claim index and the primary key, also for a generic plan on a table never analysed.
drop function pgtasks.claim_jobs(text, text[], integer[], integer[], bigint[], integer, uuid, bigint);
create function pgtasks.claim_jobs(
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
    insert into pgtasks.claim (token, worker_id, queue, job_ids, at_most_once)
    values (p_token, p_worker_id, p_queue, v_ids, p_at_most_once);

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

-- Flags running jobs: a success still counts, a retry, a release or a rescue becomes cancelled. What is to be
-- done about them now is written into their claims, where their workers look at each beat and at this
-- NOTIFY: what has not begun is not begun, and with p_interrupt what runs is interrupted.
--
-- A claim that somebody else has locked ends right now, and the flag is enough. Returns the ids of those that
-- ran.
create function pgtasks.request_cancel(p_ids uuid[], p_interrupt boolean) returns setof text
language plpgsql as $$
declare
    v_ids uuid[];
    v_tokens uuid[];
begin
    perform from pgtasks.job j where j.id = any(p_ids) and j.token is not null order by j.id for update;

    with flagged as (
        update pgtasks.job j
        set cancel_requested = true
        where j.id = any(p_ids) and j.token is not null
        returning j.id, j.token
    )
    select array_agg(f.id), array_agg(f.token) into v_ids, v_tokens from flagged f;
    if v_ids is null then
        return;
    end if;

    with free as (
        select c.token from pgtasks.claim c where c.token = any(v_tokens) order by c.token for update skip locked
    ), asked as (
        select a.token, array_agg(a.id) as ids
        from unnest(v_ids, v_tokens) as a (id, token)
        group by a.token
    )
    update pgtasks.claim c
    set cancel_ids = c.cancel_ids || a.ids,
        interrupt_ids = c.interrupt_ids || case when p_interrupt then a.ids else '{}' end
    from free f
    join asked a on a.token = f.token
    where c.token = f.token;

    if pgtasks.may_notify() then
        perform pg_notify('pgtasks_cancel', '');
    end if;
    return query select i::text from unnest(v_ids) i;
end
$$;

-- Locks the jobs that still carry these tokens, by id across queues: for whoever goes on to write them in another
-- order (claim by claim, queue by queue, retries before the rest). Then, as far as members of them will be counted
-- out (their cancel was requested, or p_counted has their token), their bundles and those around, deepest first.
--
-- The order of locks of every writer: the worker's row, unblocked jobs by id, bundles deepest first and by id,
-- blocked jobs by id, claims.
create function pgtasks.lock_jobs(p_ids uuid[], p_tokens uuid[], p_counted uuid[] default '{}') returns void
language plpgsql
set enable_seqscan = off
set jit = off
as $$
declare
    v_bundle_ids uuid[];
begin
    with locked as materialized (
        select j.token, j.bundle_id, j.cancel_requested
        from pgtasks.job j
        where j.id = any(p_ids) and j.token = any(p_tokens)
        order by j.id
        for update
    )
    select array_agg(l.bundle_id)
    into v_bundle_ids
    from locked l
    where l.bundle_id is not null and (l.cancel_requested or l.token = any(p_counted));

    if v_bundle_ids is not null then
        perform from pgtasks.job_bundle b
        where b.id = any(pgtasks.reached_bundles(v_bundle_ids))
        order by b.depth desc, b.id
        for update;
    end if;
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
    -- A batch of one queue without a retry is written in the order of its ids; others are locked so before.
    if 'retry' = any(p_outcome) or p_queue[1] <> any(p_queue) then
        perform from pgtasks.job j where j.id = any(p_id) and j.token = any(p_token) order by j.id for update;
    end if;

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
-- crash (those in p_crashed; their attempt counts, and p_errors says what the crash looked like). One whose
-- cancel was requested ends cancelled. Returns how many.
drop function pgtasks.release_jobs(text, uuid[], uuid[], uuid[]);
create function pgtasks.release_jobs(
    p_queue text, p_ids uuid[], p_tokens uuid[], p_crashed uuid[], p_errors jsonb[] default '{}'
) returns integer
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
    -- What is to be cancelled is written after the rest, so not in the order of ids.
    perform from pgtasks.job j
    where j.queue = p_queue and j.id = any(p_ids) and j.token = any(p_tokens)
    order by j.id
    for update;

    update pgtasks.job j
    set token = null,
        worker_id = null,
        started_at = null,
        attempt = j.attempt - case when j.id = any(p_crashed) then 0 else 1 end,
        crashes = j.crashes + case when j.id = any(p_crashed) then 1 else 0 end,
        attempts = case
            when j.id = any(p_crashed) and r.error is not null then
                coalesce(j.attempts, '[]') || jsonb_build_object(
                    'attempt', j.attempt, 'worker_id', j.worker_id, 'started_at', j.started_at,
                    'stopped_at', now(), 'error', r.error
                )
            else j.attempts
        end
    from unnest(p_ids, p_tokens, p_errors) as r (id, token, error)
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

-- Fails jobs of a claim of at_most_once tasks, whose worker is gone: they may have run, so they never run again.
-- Returns how many.
create function pgtasks.lose_jobs(p_queue text, p_ids uuid[], p_token uuid, p_message text) returns integer
language plpgsql as $$
declare
    v_ids uuid[];
    v_ages double precision[];
    v_count integer;
begin
    select coalesce(array_agg(l.id), '{}'), coalesce(array_agg(l.age), '{}')
    into v_ids, v_ages
    from (
        select j.id, extract(epoch from now() - j.started_at)::double precision as age
        from pgtasks.job j
        where j.queue = p_queue and j.id = any(p_ids) and j.token = p_token
        order by j.id
    ) l;

    v_count := cardinality(v_ids);
    perform from pgtasks.finish_jobs(
        array_fill(p_queue, array[v_count]), v_ids, array_fill(p_token, array[v_count]),
        array_fill('failed'::text, array[v_count]), array_fill(null::text, array[v_count]),
        array_fill(
            jsonb_build_object(
                'type', 'pgtasks.errors.JobLostError', 'message', p_message, 'traceback', '',
                'args', jsonb_build_array(p_message)
            ),
            array[v_count]
        ),
        array_fill(null::double precision, array[v_count]), v_ages, array_fill(true, array[v_count]), '{}'
    );
    return v_count;
end
$$;

-- Makes the jobs of a claim ready again, or fails them as lost if their tasks are at_most_once, because the
-- worker is gone. p_running: those that had begun, as far as is known; they are charged a crash.
create function pgtasks.take_back(p_claim pgtasks.claim, p_running uuid[], p_message text) returns integer
language plpgsql as $$
declare
    v_count integer := cardinality(p_claim.job_ids);
begin
    if p_claim.at_most_once then
        return pgtasks.lose_jobs(p_claim.queue, p_claim.job_ids, p_claim.token, p_message);
    end if;
    return pgtasks.release_jobs(
        p_claim.queue, p_claim.job_ids, array_fill(p_claim.token, array[v_count]), p_running,
        array_fill(
            jsonb_build_object('type', 'pgtasks.Crash', 'message', p_message, 'traceback', '', 'args', null),
            array[v_count]
        )
    );
end
$$;

-- Gives back the jobs of claims that nobody works on: of a dead worker (p_dead: see take_back), or claimed by a
-- statement whose reply was lost. Everything is locked in order first, since claims are settled one by one.
-- Returns how many.
create function pgtasks.settle_claims(
    p_tokens uuid[], p_dead boolean, p_running uuid[] default '{}', p_message text default ''
) returns integer
language plpgsql as $$
declare
    v_claim pgtasks.claim;
    v_count integer := 0;
begin
    if cardinality(p_tokens) = 0 then
        return 0;
    end if;
    perform pgtasks.lock_jobs(
        array(select i from pgtasks.claim c, unnest(c.job_ids) i where c.token = any(p_tokens)),
        p_tokens,
        array(select c.token from pgtasks.claim c where c.token = any(p_tokens) and c.at_most_once and p_dead)
    );

    for v_claim in
        select c.* from pgtasks.claim c where c.token = any(p_tokens) order by c.token
    loop
        if p_dead then
            v_count := v_count + pgtasks.take_back(v_claim, p_running, p_message);
        else
            v_count := v_count + pgtasks.release_jobs(
                v_claim.queue, v_claim.job_ids,
                array_fill(v_claim.token, array[cardinality(v_claim.job_ids)]), '{}'
            );
        end if;
    end loop;

    delete from pgtasks.claim c where c.token = any(p_tokens);
    return v_count;
end
$$;

-- Makes a dead worker's jobs ready again, and forgets the worker. The jobs that its children had begun
-- are charged a crash; what it merely held is returned unattempted; those of at_most_once tasks fail as lost.
--
-- p_beat is the beat that the observer saw stand still: if it moved after all, nothing happens. The claim
-- rows are the only way in: no scan of the backlog. Returns how many jobs came back; null: the worker
-- lives, or another rescues it right now.
create or replace function pgtasks.rescue_worker(p_worker_id bigint, p_beat bigint) returns integer
language plpgsql as $$
declare
    v_running uuid[];
    v_message text;
    v_count integer;
begin
    select w.running, format('worker %s (pid %s) died', w.name, w.pid) into v_running, v_message
    from pgtasks.worker w
    where w.id = p_worker_id and w.beat = p_beat
    for update skip locked;
    if not found then
        return null;
    end if;

    v_count := pgtasks.settle_claims(
        array(select c.token from pgtasks.claim c where c.worker_id = p_worker_id), true, v_running, v_message
    );
    delete from pgtasks.worker w where w.id = p_worker_id;
    return v_count;
end
$$;
