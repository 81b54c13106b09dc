-- Queues that somebody configured: paused, limited, or with ageing. A queue without a row is as before, and its
-- claims, finishes and looks pay for one probe of the primary key.
create table pgtasks.queue (
    name text primary key check (length(name) between 1 and 63),
    paused_at timestamptz,
    paused_by text check (length(paused_by) <= 200),
    pause_reason text check (length(pause_reason) <= 1000),
    -- How many of its jobs workers hold at most, all workers together.
    max_running integer check (max_running >= 1),
    -- A bucket of tokens, one for each attempt: so many come in a second, so many lie there at most, and so many
    -- lay there at that moment by the database's clock.
    rate double precision check (rate > 0),
    burst integer check (burst >= 1),
    tokens double precision,
    refilled_at timestamptz,
    -- After so many seconds of waiting, and again after so many, a job's priority rises by one.
    ageing double precision check (ageing >= 1),
    -- Up to which moment waiting was paid in priority; of a pass that is under way where it ends, and how far it came.
    aged_until timestamptz,
    ageing_until timestamptz,
    ageing_priority integer,
    ageing_seq bigint,
    -- Who set these limits by hand; null: they are what code declares, if any does.
    limited_at timestamptz,
    limited_by text check (length(limited_by) <= 200),
    declared jsonb,
    check ((rate is null) = (burst is null))
)
-- A claim of a queue with a rate writes its row.
with (fillfactor = 50);

alter table pgtasks.task
    add column paused_at timestamptz,
    add column paused_by text check (length(paused_by) <= 200),
    add column pause_reason text check (length(pause_reason) <= 1000),
    -- Whether jobs of it may be parked because it is, or was, paused.
    add column parks boolean not null default false;

-- One owner with the view `jobs`, also before roles are granted anew.
do $$
begin
    execute (
        select format('alter table pgtasks.queue owner to %I', r.rolname)
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
end
$$;

-- The gate: how many jobs of a configured queue may be claimed.

-- How many jobs of a queue workers hold. The way goes over the claims, not over the backlog, so that the answer
-- is right whoever died. Volatile: who has locked the queue's row needs to see all that was claimed before.
create function pgtasks.count_held(p_queue text) returns integer
language plpgsql volatile
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    return (
        select count(*)
        from pgtasks.job j
        where j.queue = p_queue
            and j.id = any(array(
                select i.id from pgtasks.claim c cross join unnest(c.job_ids) as i (id) where c.queue = p_queue
            ))
            and j.token is not null
    );
end
$$;

-- How many tokens lie in a queue's bucket at this moment. Where the clock was set back, nothing has come since.
create function pgtasks.count_tokens(p_gate pgtasks.queue) returns double precision
language plpgsql volatile as $$
begin
    return least(
        p_gate.burst,
        p_gate.tokens + greatest(0, extract(epoch from clock_timestamp() - p_gate.refilled_at)) * p_gate.rate
    );
end
$$;

-- How many of p_wanted jobs the gate lets pass at this moment.
create function pgtasks.gate_room(p_gate pgtasks.queue, p_wanted integer) returns integer
language plpgsql volatile as $$
declare
    v_room integer := p_wanted;
begin
    if p_gate.paused_at is not null then
        return 0;
    end if;
    if p_gate.rate is not null then
        -- A hair more: what came in steps may lack the last bit of a token.
        v_room := least(v_room, floor(pgtasks.count_tokens(p_gate) + 1e-6)::integer);
    end if;
    -- The jobs are counted only where the claims alone do not show that there is room.
    if p_gate.max_running is not null and v_room > 0 and v_room > p_gate.max_running - (
        select coalesce(sum(cardinality(c.job_ids)), 0) from pgtasks.claim c where c.queue = p_gate.name
    ) then
        v_room := least(v_room, p_gate.max_running - pgtasks.count_held(p_gate.name));
    end if;
    return greatest(0, v_room);
end
$$;

-- In how many seconds a queue with an empty bucket has a token, or a few where they come fast; null: it has one.
create function pgtasks.next_token(p_gate pgtasks.queue) returns double precision
language plpgsql volatile as $$
declare
    v_tokens double precision := pgtasks.count_tokens(p_gate);
begin
    if p_gate.paused_at is not null or v_tokens + 1e-6 >= 1 then
        return null;
    end if;
    return greatest((1 - v_tokens) / p_gate.rate, least(0.05, (p_gate.burst - v_tokens) / p_gate.rate));
end
$$;

-- The first step of a claim of a configured queue: says how many of p_wanted it may take. Where that is limited, one
-- claim after the other: the row stays locked until its transaction ends.
create function pgtasks.open_gate(p_queue text, p_wanted integer) returns integer
language plpgsql volatile
-- An operator's open transaction shall not hold up the claims of other queues for long.
set lock_timeout = '1s'
as $$
declare
    v_gate pgtasks.queue;
begin
    select q.* into v_gate from pgtasks.queue q where q.name = p_queue;
    if v_gate.paused_at is not null then
        return 0;
    end if;
    if v_gate.max_running is null and v_gate.rate is null then
        return p_wanted;
    end if;
    select q.* into v_gate from pgtasks.queue q where q.name = p_queue for no key update;
    return pgtasks.gate_room(v_gate, p_wanted);
end
$$;

-- The last step of a claim of a configured queue: takes a token for each job out of the bucket, if there is one.
create function pgtasks.take_tokens(p_queue text, p_taken integer) returns void
language plpgsql volatile as $$
begin
    update pgtasks.queue q
    set tokens = greatest(0, pgtasks.count_tokens(q) - p_taken), refilled_at = clock_timestamp()
    where q.name = p_queue and q.rate is not null;
end
$$;

-- Wakes the workers of these queues that say they are idle, and only those: NOTIFY takes a lock that is
-- held through commit, so that commits go one by one (measured, 32 clients: 2.0k/s with, 5.9k/s without). Where
-- max_running holds jobs back, all workers: the busy ones do not see that a place is free.
create or replace function pgtasks.wake(p_queues text[]) returns void
language plpgsql as $$
declare
    v_queue text;
begin
    for v_queue in
        select q.queue
        from (select distinct unnest(p_queues)) as q (queue)
        where exists (
            select
            from pgtasks.worker w
            where q.queue = any(w.queues) and (
                w.idle
                or exists (select from pgtasks.queue l where l.name = q.queue and l.max_running is not null)
            )
        )
    loop
        if pgtasks.may_notify() then
            perform pg_notify(pgtasks.wake_channel(v_queue), '');
        end if;
    end loop;
end
$$;

-- What operators change. Workers hear of it on the channel pgtasks_gates, and look twice a second beneath.

create function pgtasks.tell_gates(p_queue text default null) returns void
language plpgsql as $$
begin
    if pgtasks.may_notify() then
        perform pg_notify('pgtasks_gates', '');
        if p_queue is not null then
            perform pg_notify(pgtasks.wake_channel(p_queue), '');
        end if;
    end if;
end
$$;

-- Holds a queue: nothing of it is claimed from the moment that this is committed. Who paused it first stays known
-- by the time; by whom and why is what was said last.
create function pgtasks.pause_queue(p_name text, p_by text, p_reason text) returns void
language plpgsql as $$
begin
    insert into pgtasks.queue as q (name, paused_at, paused_by, pause_reason)
    values (p_name, now(), p_by, p_reason)
    on conflict (name) do update
    set paused_at = coalesce(q.paused_at, now()), paused_by = excluded.paused_by, pause_reason = excluded.pause_reason;
    perform pgtasks.tell_gates();
end
$$;

-- Lets a queue go on; returns whether it was paused.
create function pgtasks.resume_queue(p_name text) returns boolean
language plpgsql as $$
begin
    update pgtasks.queue q
    set paused_at = null, paused_by = null, pause_reason = null
    where q.name = p_name and q.paused_at is not null;
    if not found then
        return false;
    end if;
    perform pgtasks.tell_gates(p_name);
    return true;
end
$$;

-- Sets those limits of a queue that stand in p_set (max_running, rate, ageing) by hand; null is none. From then on
-- its limits are the operator's, whatever code declares, until reset_limits.
create function pgtasks.limit_queue(
    p_name text, p_set text[], p_max_running integer, p_rate double precision, p_burst integer,
    p_ageing double precision, p_by text
) returns void
language plpgsql as $$
begin
    insert into pgtasks.queue (name) values (p_name) on conflict (name) do nothing;
    update pgtasks.queue q
    set max_running = case when 'max_running' = any(p_set) then p_max_running else q.max_running end,
        rate = case when 'rate' = any(p_set) then p_rate else q.rate end,
        burst = case when 'rate' = any(p_set) then p_burst else q.burst end,
        -- A bucket is full at first; another rate goes on with what there is.
        tokens = case
            when 'rate' = any(p_set) then least(p_burst, coalesce(pgtasks.count_tokens(q), p_burst))
            else q.tokens
        end,
        refilled_at = case when 'rate' = any(p_set) then clock_timestamp() else q.refilled_at end,
        ageing = case when 'ageing' = any(p_set) then p_ageing else q.ageing end,
        aged_until = case when 'ageing' = any(p_set) then now() else q.aged_until end,
        ageing_until = case when 'ageing' = any(p_set) then null else q.ageing_until end,
        limited_at = now(),
        limited_by = coalesce(p_by, '')
    where q.name = p_name;
    perform pgtasks.tell_gates(p_name);
end
$$;

-- Writes the limits that code declares for queues; where an operator set them by hand they are noted, and do not
-- hold. Sorted by name, so that two workers do not deadlock. Tells nobody: workers look, and one that starts asks.
create function pgtasks.publish_queues(
    p_name text[], p_max_running integer[], p_rate double precision[], p_burst integer[], p_ageing double precision[]
) returns void
language plpgsql as $$
declare
    v_one record;
begin
    for v_one in
        select
            n.*,
            jsonb_strip_nulls(jsonb_build_object(
                'max_running', n.max_running, 'rate', n.rate, 'burst', n.burst, 'ageing', n.ageing
            )) as declared
        from unnest(p_name, p_max_running, p_rate, p_burst, p_ageing) as n (name, max_running, rate, burst, ageing)
        order by n.name
    loop
        insert into pgtasks.queue (name) values (v_one.name) on conflict (name) do nothing;
        update pgtasks.queue q
        set declared = v_one.declared
        where q.name = v_one.name and q.declared is distinct from v_one.declared;
        if found then
            perform pgtasks.apply_declared(v_one.name);
        end if;
    end loop;
end
$$;

-- Lets the limits of a queue be those that code declares, or none, unless an operator set them.
create function pgtasks.apply_declared(p_name text) returns void
language plpgsql as $$
begin
    update pgtasks.queue q
    set max_running = (q.declared ->> 'max_running')::integer,
        rate = (q.declared ->> 'rate')::double precision,
        burst = (q.declared ->> 'burst')::integer,
        tokens = least(
            (q.declared ->> 'burst')::integer, coalesce(pgtasks.count_tokens(q), (q.declared ->> 'burst')::integer)
        ),
        refilled_at = clock_timestamp(),
        ageing = (q.declared ->> 'ageing')::double precision,
        aged_until = now(),
        ageing_until = null
    where q.name = p_name and q.limited_at is null;
end
$$;

-- Gives the limits of a queue back to the code; returns whether an operator had set any.
create function pgtasks.reset_limits(p_name text) returns boolean
language plpgsql as $$
begin
    update pgtasks.queue q set limited_at = null, limited_by = null where q.name = p_name and q.limited_at is not null;
    if not found then
        return false;
    end if;
    perform pgtasks.apply_declared(p_name);
    perform pgtasks.tell_gates(p_name);
    return true;
end
$$;

-- Holds a task that workers have published; returns whether there is one.
create function pgtasks.pause_task(p_name text, p_by text, p_reason text) returns boolean
language plpgsql as $$
begin
    update pgtasks.task t
    set paused_at = coalesce(t.paused_at, now()), paused_by = p_by, pause_reason = p_reason, parks = true
    where t.name = p_name;
    if not found then
        return false;
    end if;
    perform pgtasks.tell_gates();
    return true;
end
$$;

-- Lets a task go on; returns whether it was paused. Its parked jobs are for unpark_paused.
create function pgtasks.resume_task(p_name text) returns boolean
language plpgsql as $$
begin
    update pgtasks.task t
    set paused_at = null, paused_by = null, pause_reason = null
    where t.name = p_name and t.paused_at is not null;
    if not found then
        return false;
    end if;
    perform pgtasks.tell_gates();
    return true;
end
$$;

-- Parks jobs of paused tasks at the head of one queue: workers do not ask for them, and would step over them in each
-- claim. Returns how many. As park_unknown. The tasks are locked, so that nothing is parked after a resume.
create function pgtasks.park_paused(p_queue text, p_limit integer) returns integer
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
    v_paused text[] := array(select t.name from pgtasks.task t where t.paused_at is not null for share);
    v_count integer;
begin
    if cardinality(v_paused) = 0 then
        return 0;
    end if;
    with head as materialized (
        select j.id, j.task, j.token
        from pgtasks.job j
        where j.queue = p_queue and j.state = 'ready'
        order by j.priority desc, j.seq
        limit p_limit
    )
    update pgtasks.job j
    set state = 'parked', reason = 'paused'
    -- By the ids alone: with `state = 'ready'` the planner may read all of the claim index, and filter.
    where j.queue = p_queue
        and j.id = any(array(
            -- Not in the order of ids: so wait for nobody.
            select l.id
            from pgtasks.job l
            where l.queue = p_queue
                and l.id = any(array(select h.id from head h where h.token is null and h.task = any(v_paused)))
                and l.state not in ('blocked', 'scheduled', 'parked')
                and l.token is null
            for update skip locked
        ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Frees parked jobs of a task that was resumed, of all queues, in their order and with new places in line; at most
-- p_limit. Returns how many; fewer: nothing is left of this task, null: nothing to do at all.
create function pgtasks.unpark_paused(p_limit integer) returns integer
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
-- By `= any(array)` and hash, for the reason that finish_queue has.
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
as $$
declare
    v_task text;
    v_queue text := '';
    v_moved integer;
    v_count integer := 0;
begin
    select t.name into v_task
    from pgtasks.task t
    where t.parks and t.paused_at is null
    limit 1
    for no key update skip locked;
    if not found then
        return null;
    end if;

    while v_count < p_limit loop
        -- The next queue in which something waits for that: one step in the index.
        select j.queue into v_queue
        from pgtasks.job j
        where j.state = 'parked' and j.reason = 'paused' and j.queue > v_queue
        order by j.queue
        limit 1;
        exit when not found;

        with freed as materialized (
            select j.id
            from pgtasks.job j
            where j.queue = v_queue and j.state = 'parked' and j.task = v_task and j.reason = 'paused'
            order by j.seq
            limit p_limit - v_count
            for update skip locked
        ), numbered as materialized (
            select f.id, nextval('pgtasks.job_seq') as seq from freed f
        )
        update pgtasks.job j
        set state = 'ready', reason = null, seq = n.seq
        from numbered n
        where j.queue = v_queue and j.id = any(array(select o.id from numbered o)) and j.id = n.id;
        get diagnostics v_moved = row_count;
        if v_moved > 0 then
            perform pgtasks.wake(array[v_queue]);
        end if;
        v_count := v_count + v_moved;
    end loop;

    if v_count < p_limit then
        update pgtasks.task t set parks = false where t.name = v_task;
    end if;
    return v_count;
end
$$;

-- Ageing: raises the priority of jobs that wait, by one for each whole period of waiting that ended since the last
-- pass, up to the highest priority that stands ready in the queue: beyond that it would change no order. The place in
-- line by age (seq) stays; a worker's next sweep sees it. Walks through the queue from above, at most p_limit jobs a call;
-- returns how many it looked at: fewer when the pass is over, or is not due.
--
-- No job remembers how often it was raised: waiting since s, it has earned floor((t - s) / ageing) at any moment t, and
-- each pass pays the difference between its end and the end of the pass before.
create function pgtasks.age_queue(p_queue text, p_limit integer) returns integer
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
    v_queue pgtasks.queue;
    v_top integer;
    v_last bigint;
    v_ids uuid[];
    v_by integer[];
    v_looked integer;
    v_count integer := 0;
begin
    select q.* into v_queue
    from pgtasks.queue q
    where q.name = p_queue and q.ageing is not null
    for no key update skip locked;
    if not found then
        return 0;
    end if;

    select j.priority into v_top
    from pgtasks.job j
    where j.queue = p_queue and j.state = 'ready'
    order by j.priority desc
    limit 1;
    if v_queue.ageing_until is null then
        -- So that a raise comes at most a tenth of the period late.
        if now() - v_queue.aged_until < v_queue.ageing / 10 * interval '1 second' then
            return 0;
        end if;
        v_queue.ageing_until := now();
        v_queue.ageing_priority := v_top;
        v_queue.ageing_seq := null;   -- through with the top: nothing rises above it
    end if;

    while v_count < p_limit loop
        if v_queue.ageing_seq is null then
            select j.priority into v_queue.ageing_priority
            from pgtasks.job j
            where j.queue = p_queue and j.state = 'ready' and j.priority < v_queue.ageing_priority
            order by j.priority desc
            limit 1;
            if not found then
                v_queue.aged_until := v_queue.ageing_until;
                v_queue.ageing_until := null;
                exit;
            end if;
            v_queue.ageing_seq := 0;
        end if;

        select
            count(*), max(w.seq),
            array_agg(w.id) filter (where w.rises >= 1), array_agg(least(w.rises, 2147483647)::integer) filter (where w.rises >= 1)
        into v_looked, v_last, v_ids, v_by
        from (
            select
                j.id, j.seq,
                case when j.token is null then
                    floor(extract(epoch from v_queue.ageing_until - coalesce(j.start_at, j.created_at)) / v_queue.ageing)
                    - greatest(0, floor(
                        extract(epoch from v_queue.aged_until - coalesce(j.start_at, j.created_at)) / v_queue.ageing
                    ))
                end as rises
            from pgtasks.job j
            where j.queue = p_queue
                and j.state = 'ready'
                and j.priority = v_queue.ageing_priority
                and j.seq > v_queue.ageing_seq
            order by j.seq
            limit p_limit - v_count
        ) w;

        if v_ids is not null then
            update pgtasks.job j
            set priority = greatest(j.priority, least(v_top, j.priority::bigint + v_by[array_position(v_ids, j.id)]))
            where j.queue = p_queue
                and j.id = any(array(
                    -- Not in the order of ids: so wait for nobody. By the ids alone, as in park_paused.
                    select l.id
                    from pgtasks.job l
                    where l.queue = p_queue
                        and l.id = any(v_ids)
                        and l.state not in ('blocked', 'scheduled', 'parked')
                        and l.priority = v_queue.ageing_priority
                        and l.token is null
                    for update skip locked
                ));
        end if;

        v_queue.ageing_seq := case when v_looked < p_limit - v_count then null else v_last end;
        v_count := v_count + v_looked;
    end loop;

    update pgtasks.queue q
    set aged_until = v_queue.aged_until,
        ageing_until = v_queue.ageing_until,
        ageing_priority = v_queue.ageing_priority,
        ageing_seq = v_queue.ageing_seq
    where q.name = p_queue;
    return v_count;
end
$$;

-- Moves jobs that no worker has taken to another queue, oldest first, each with a new place in line: those of p_ids, or
-- all; of a task, or of all; none of p_without; at most p_limit. Their unique keys go with them. Returns the ids of those
-- that moved, and of those that stay, with the job that has their key there.
create function pgtasks.move_jobs(
    p_from text, p_to text, p_ids uuid[], p_task text, p_without uuid[], p_limit integer
) returns table (id text, holder text)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
-- By `= any(array)` and hash, for the reason that finish_queue has.
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_state text;
    v_ids uuid[] := '{}';
    v_keyed uuid[];
    v_refused record;
begin
    if p_ids is not null then
        v_ids := array(
            select j.id
            from pgtasks.job j
            where j.queue = p_from
                and j.id = any(p_ids)
                and j.token is null
                and not j.id = any(p_without)
                and (p_task is null or j.task = p_task)
            order by j.seq
            limit p_limit
            for update skip locked
        );
    else
        -- By state, so that an index leads there; ready ones in the order in which they would have run.
        foreach v_state in array array['ready', 'scheduled', 'parked', 'blocked'] loop
            v_ids := v_ids || array(
                select j.id
                from pgtasks.job j
                where j.queue = p_from
                    and j.state = v_state
                    and j.token is null
                    and not j.id = any(p_without)
                    and (p_task is null or j.task = p_task)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_ids)
                for update skip locked
            );
            exit when cardinality(v_ids) >= p_limit;
        end loop;
    end if;

    v_keyed := array(
        select j.id
        from pgtasks.job j
        where j.queue = p_from and j.id = any(v_ids) and j.options ? 'unique_key'
    );
    if cardinality(v_keyed) > 0 then
        for v_refused in select m.id, m.holder from pgtasks.move_keys(v_keyed, p_to) m loop
            v_ids := array_remove(v_ids, v_refused.id);
            id := v_refused.id::text;
            holder := v_refused.holder::text;
            return next;
        end loop;
    end if;

    return query
    with numbered as materialized (
        select o.id, nextval('pgtasks.job_seq') as seq
        from (select u.id from unnest(v_ids) with ordinality as u (id, n) order by u.n) o
    )
    update pgtasks.job j
    set queue = p_to, seq = n.seq
    from numbered n
    where j.queue = p_from and j.id = any(v_ids) and j.id = n.id
    returning j.id::text, null::text;
    if found then
        perform pgtasks.wake(array[p_to]);
    end if;
end
$$;

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace
            and p.proname in (
                'count_held', 'count_tokens', 'gate_room', 'next_token', 'open_gate', 'take_tokens', 'tell_gates',
                'pause_queue', 'resume_queue', 'limit_queue', 'publish_queues', 'apply_declared', 'reset_limits',
                'pause_task', 'resume_task', 'park_paused', 'unpark_paused', 'age_queue', 'move_jobs'
            )
    loop
        execute format('revoke all on function %s from public', v_function);
    end loop;
    for v_function in
        select p.oid
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace
            and p.proname in (
                'pause_queue', 'resume_queue', 'limit_queue', 'publish_queues', 'reset_limits', 'pause_task',
                'resume_task', 'park_paused', 'unpark_paused', 'age_queue', 'move_jobs'
            )
    loop
        execute format('alter function %s security definer set search_path = pgtasks, pg_catalog, pg_temp', v_function);
    end loop;
end
$$;
