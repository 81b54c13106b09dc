-- Limits, rates and turns: what a job of such a task must pass before it is claimed.
--
-- The jobs come in as ready, by whatever way (an insert, a retry, a promotion, plain SQL). A claim lets those
-- pass that are admitted, or can be at once, and parks the others: reason 'limit', 'rate' or 'turn'. Who is admitted
-- holds a place of its limit until it is finished or retried, also while its worker dies; the finish that frees the place
-- admits the next one, in the same transaction.
--
-- Nothing is counted up and down that could drift: the holders of a key are the jobs that are ready and whose
-- `admitted` is their `seq`. Whatever takes a job out of the line, and puts it there again, gives it a new seq:
-- a retry, a promotion, a move, another job in its place. With that it is admitted no longer, whoever did it.

-- Null for jobs without any of this: so nothing of it stands in an index, and nothing is written.
alter table pgtasks.job add column admitted bigint;

-- Whose name no worker publishes limits nothing.
create table pgtasks.job_limit (
    name text primary key,
    jobs integer not null check (jobs > 0),
    updated_at timestamptz not null default now()
);

create table pgtasks.job_rate (
    name text primary key,
    per_second double precision not null check (per_second > 0),
    burst integer not null check (burst > 0),
    updated_at timestamptz not null default now()
);

-- Only tasks that have some. A key is a name, or a name, a space and what the job belongs to (no name has a
-- space in it); jobs without a key (plain SQL, a producer that does not know the task) have the name alone.
create table pgtasks.task_gate (
    task text primary key,
    limit_name text,
    rate_name text,
    fair boolean not null default false,
    check (not (fair and rate_name is not null))
);

-- A key without a row has a full bucket.
create table pgtasks.rate_bucket (
    key text primary key,
    tokens double precision not null,
    refilled_at timestamptz not null,
    -- When those that wait have the next token; null: nobody waits.
    next_at timestamptz
) with (fillfactor = 50);
create index rate_bucket_next on pgtasks.rate_bucket (next_at) where next_at is not null;

-- Whose turn it was last, in a queue at a priority.
create table pgtasks.turn (
    queue text not null,
    priority integer not null,
    last_key text,
    -- Whether a job without a key comes next, where there are such, too.
    others_next boolean not null default false,
    primary key (queue, priority)
) with (fillfactor = 50);

create index job_limited on pgtasks.job ((options ->> 'limit_key'), priority desc, seq)
    where state = 'parked' and reason = 'limit';
create index job_rated on pgtasks.job ((options ->> 'rate_key'), priority desc, seq)
    where state = 'parked' and reason = 'rate';
-- `seq > 0` holds for each job: who asks by a key does not say it, and so no plan, whatever it knows of the table, takes this
-- index for that and goes through all of it. Likewise below.
create index job_rated_queue on pgtasks.job (queue, seq) where state = 'parked' and reason = 'rate' and seq > 0;
create index job_turn on pgtasks.job (queue, priority desc, (coalesce(options ->> 'fair_key', '')), seq)
    where state = 'parked' and reason = 'turn';
-- A claim changes neither of these columns: it is a HOT update here, too.
create index job_holding on pgtasks.job ((options ->> 'limit_key'), seq) where state = 'ready' and admitted = seq;
create index job_admitted on pgtasks.job (queue, priority desc, seq) where state = 'ready' and admitted = seq and seq > 0;

-- Each reason has its own: where a hundred thousand wait for a limit, others are found without them, and no plan, made
-- when the table was empty, goes through all that is parked.
create index job_unknown on pgtasks.job (queue, task) where state = 'parked' and reason = 'unknown task';
create index job_paused on pgtasks.job (queue, task, seq) where state = 'parked' and reason = 'paused';
drop index pgtasks.job_parked;

-- Workers say at their start what their tasks must pass. Of a limit or a rate that several tasks share, or several
-- deploys change, the last that was published counts.
create function pgtasks.publish_gates(
    p_tasks text[],   -- all of the worker's
    p_task text[], p_limit_name text[], p_rate_name text[], p_fair boolean[],   -- those with a gate
    p_limits text[], p_jobs integer[],
    p_rates text[], p_per_second double precision[], p_burst integer[]
) returns void
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    -- Many workers start at once, and none shall wait for another in a circle.
    perform pg_advisory_xact_lock(7236417, 0);

    delete from pgtasks.task_gate g where g.task = any(p_tasks) and not g.task = any(p_task);
    -- A limit that is named after its task ends with it.
    delete from pgtasks.job_limit l where l.name = any(p_tasks) and not l.name = any(p_limits);
    delete from pgtasks.job_rate r where r.name = any(p_tasks) and not r.name = any(p_rates);

    insert into pgtasks.job_limit (name, jobs)
    select n.name, n.jobs from unnest(p_limits, p_jobs) as n (name, jobs)
    on conflict (name) do update set jobs = excluded.jobs, updated_at = now()
    where job_limit.jobs <> excluded.jobs;

    insert into pgtasks.job_rate (name, per_second, burst)
    select n.name, n.per_second, n.burst from unnest(p_rates, p_per_second, p_burst) as n (name, per_second, burst)
    on conflict (name) do update set per_second = excluded.per_second, burst = excluded.burst, updated_at = now()
    where (job_rate.per_second, job_rate.burst) is distinct from (excluded.per_second, excluded.burst);

    insert into pgtasks.task_gate (task, limit_name, rate_name, fair)
    select n.task, n.limit_name, n.rate_name, n.fair
    from unnest(p_task, p_limit_name, p_rate_name, p_fair) as n (task, limit_name, rate_name, fair)
    on conflict (task) do update
    set limit_name = excluded.limit_name, rate_name = excluded.rate_name, fair = excluded.fair
    where (task_gate.limit_name, task_gate.rate_name, task_gate.fair)
        is distinct from (excluded.limit_name, excluded.rate_name, excluded.fair);
end
$$;

-- The options of a job that plain SQL enqueues, with the keys that it belongs to: a client computes them of the
-- arguments.
--
-- `select pgtasks.enqueue('shop.charge', '{"id": 7}', options => pgtasks.gate_keys('shop.charge', limit_key => '7'))`
create function pgtasks.gate_keys(
    task text, limit_key text default null, rate_key text default null, fair_key text default null,
    options jsonb default '{}'
) returns jsonb
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_gate pgtasks.task_gate;
    v_what text;
begin
    select * into v_gate from pgtasks.task_gate g where g.task = gate_keys.task;
    v_what := case
        when limit_key is not null and v_gate.limit_name is null then 'limit'
        when rate_key is not null and v_gate.rate_name is null then 'rate'
        when fair_key is not null and v_gate.fair is not true then 'fair_by'
    end;
    if v_what is not null then
        raise exception 'task % has no %: leave its key out, or start a worker whose task says so',
            quote_literal(task), v_what
            using errcode = 'invalid_parameter_value';
    end if;
    if greatest(length(limit_key), length(rate_key), length(fair_key)) > 200 then
        raise exception 'a key has % characters, expected at most 200: take an id, or a digest of it',
            greatest(length(limit_key), length(rate_key), length(fair_key))
            using errcode = 'invalid_parameter_value';
    end if;
    return nullif(
        coalesce(options, '{}') || jsonb_strip_nulls(jsonb_build_object(
            'limit_key', v_gate.limit_name || ' ' || limit_key,
            'rate_key', v_gate.rate_name || ' ' || rate_key,
            'fair_key', fair_key
        )),
        '{}'
    );
end
$$;

-- Locks keys until the end of the transaction, and returns those that it has locked. Whoever counts the holders of
-- a key, or its tokens, and goes by that does this first, and then asks by a new statement.
--
-- Keys share 64 locks: one each would fill the server's table of locks (6,400 with its defaults). The locks are
-- taken in ascending order, and waited for only beyond the highest that this transaction has: so nobody waits
-- in a circle, also not who finishes and claims several times in one transaction. Whoever has them waits
-- for no row any more (`skip locked`), or has locked it before. Who was stopped with them holds up nobody for long:
-- the keys are not returned, and sweep_gates comes back to them.
create function pgtasks.lock_keys(p_keys text[]) returns text[]
language plpgsql
set lock_timeout = '250ms'
as $$
declare
    v_highest integer := coalesce(nullif(current_setting('pgtasks.highest_key_lock', true), '')::integer, -1);
    v_locked integer[] := '{}';
    v_slot integer;
    v_waits boolean := true;
begin
    for v_slot in
        select distinct (hashtextextended(k, 0) & 63)::integer from unnest(p_keys) k order by 1
    loop
        if pg_try_advisory_xact_lock(7236416, v_slot) then
            v_locked := v_locked || v_slot;
        elsif v_slot > v_highest and v_waits then
            begin
                perform pg_advisory_xact_lock(7236416, v_slot);
                v_locked := v_locked || v_slot;
            exception when lock_not_available then
                v_waits := false;
            end;
        end if;
    end loop;
    if v_locked[cardinality(v_locked)] > v_highest then
        perform set_config('pgtasks.highest_key_lock', v_locked[cardinality(v_locked)]::text, true);
    end if;
    return array(
        select k from unnest(p_keys) k where (hashtextextended(k, 0) & 63)::integer = any(v_locked)
    );
end
$$;

-- The queues that some worker serves now, and that are not paused: elsewhere nobody is admitted, since a place that
-- nobody uses would be taken from others.
create function pgtasks.served_queues() returns text[]
language plpgsql as $$
begin
    return array(
        select distinct q.name
        from pgtasks.worker w
        cross join unnest(w.queues) as q (name)
        where w.state = 'running'
            and not exists (select from pgtasks.queue p where p.name = q.name and p.paused_at is not null)
    );
end
$$;

-- Whether somebody waits for a limit, or for a rate. Said so (and not as `exists`), it is one descent in the index for
-- each key, never a table of all who wait.
create function pgtasks.waits_for(p_limit_key text, p_rate_key text) returns boolean
language plpgsql
set enable_sort = off   -- the callers' may be on
as $$
begin
    if p_limit_key is not null then
        perform from pgtasks.job j
        where j.state = 'parked' and j.reason = 'limit' and (j.options ->> 'limit_key') = p_limit_key
        order by j.priority desc, j.seq
        limit 1;
    else
        perform from pgtasks.job j
        where j.state = 'parked' and j.reason = 'rate' and (j.options ->> 'rate_key') = p_rate_key
        order by j.priority desc, j.seq
        limit 1;
    end if;
    return found;
end
$$;

-- How many more may be admitted for each of these keys; null: as many as there are.
create function pgtasks.limit_room(p_keys text[]) returns table (key text, room integer)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select
        k.key,
        (select l.jobs from pgtasks.job_limit l where l.name = split_part(k.key, ' ', 1)) - (
            select count(*)::integer
            from (
                select
                from pgtasks.job j
                where j.state = 'ready' and j.admitted = j.seq and (j.options ->> 'limit_key') = k.key
                order by j.seq   -- the order of the index, which it is forced to by that
            ) h
        )
    from unnest(p_keys) as k (key);
end
$$;

-- How many tokens there are now for each of these keys; null: as many as one likes. By the clock, not by the
-- transaction's time: that may lie before the last who took some. Where the clock was set back, nothing has come since.
create function pgtasks.rate_tokens(p_keys text[])
returns table (key text, tokens double precision, per_second double precision)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select
        k.key,
        coalesce(
            least(
                r.burst,
                b.tokens + r.per_second
                    * greatest(0, extract(epoch from clock_timestamp() - b.refilled_at)::double precision)
            ),
            r.burst
        ),
        r.per_second
    from unnest(p_keys) as k (key)
    left join pgtasks.job_rate r on r.name = split_part(k.key, ' ', 1)
    left join pgtasks.rate_bucket b on b.key = k.key;
end
$$;

-- Takes tokens of keys that are locked, and notes when the next one comes for those of which somebody waits: not
-- before p_least seconds.
create function pgtasks.take_rate_tokens(p_keys text[], p_taken integer[], p_least double precision) returns void
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set jit = off
as $$
begin
    insert into pgtasks.rate_bucket as b (key, tokens, refilled_at, next_at)
    select
        t.key, t.tokens - n.taken, clock_timestamp(),
        case when pgtasks.waits_for(null, t.key) then
            clock_timestamp() + interval '1 second' * greatest(p_least, (1 - (t.tokens - n.taken)) / t.per_second)
        end
    from unnest(p_keys, p_taken) as n (key, taken)
    join pgtasks.rate_tokens(p_keys) t on t.key = n.key
    where t.tokens is not null
    on conflict (key) do update
    set tokens = excluded.tokens, refilled_at = excluded.refilled_at, next_at = excluded.next_at;
end
$$;

-- Admits jobs that the caller has locked, in their order and at most p_most, as far as there is room and there are
-- tokens; parks those without. A limit goes first: who does not get a place takes no token, and without a token
-- no place is taken.
--
-- p_fresh: they have not waited yet, and stand behind those that wait for the same; and they are claimed right now, by
-- an update that also writes that they are admitted: each update more costs an entry in each index. Until then
-- p_taken says how many places of each key were given away. Returns who was admitted; these counts; the keys
-- that have no room, and no tokens, as jsonb objects; the keys of which somebody waits although there may be room;
-- and how many were not admitted.
create function pgtasks.pass_jobs(
    p_ids uuid[], p_fresh boolean, p_most integer, p_taken jsonb,
    out passed uuid[], out taken jsonb, out full_keys jsonb, out dry_keys jsonb, out open_keys text[], out stopped integer
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_nestloop = off
set enable_hashjoin = on   -- the caller's may be off, and would hold here
set enable_sort = on
set jit = off
as $$
declare
    v_ids uuid[];
    v_limit_keys text[];   -- of each job
    v_rate_keys text[];
    v_keyed boolean[];     -- whether the keys stand in its options
    v_locked text[];
    v_become text[];       -- of each job
begin
    -- In their order; keys whose limit nobody publishes bind nobody. What plain SQL wrote may be of any length, and an
    -- index takes 2,700 bytes.
    select
        coalesce(array_agg(o.id), '{}'), coalesce(array_agg(o.limit_key), '{}'), coalesce(array_agg(o.rate_key), '{}'),
        coalesce(array_agg(o.keyed), '{}')
    into v_ids, v_limit_keys, v_rate_keys, v_keyed
    from (
        select
            c.id,
            case when l.name is not null then c.limit_key end as limit_key,
            case when r.name is not null then c.rate_key end as rate_key,
            coalesce(l.name is null or c.options ->> 'limit_key' = c.limit_key, false)
                and coalesce(r.name is null or c.options ->> 'rate_key' = c.rate_key, false) as keyed
        from (
            select
                j.id, j.priority, j.seq, j.options,
                left(coalesce(j.options ->> 'limit_key', g.limit_name), 401) as limit_key,
                left(coalesce(j.options ->> 'rate_key', g.rate_name), 401) as rate_key
            from pgtasks.job j
            left join pgtasks.task_gate g on g.task = j.task
            where j.id = any(p_ids)
        ) c
        left join pgtasks.job_limit l on l.name = split_part(c.limit_key, ' ', 1)
        left join pgtasks.job_rate r on r.name = split_part(c.rate_key, ' ', 1)
        order by c.priority desc, c.seq
    ) o;

    v_locked := pgtasks.lock_keys(array(
        select distinct k.key
        from (select unnest(v_limit_keys) union all select 'rate ' || unnest(v_rate_keys)) as k (key)
        where k.key is not null
    ));

    -- A statement of its own, whose snapshot begins after the wait for the locks.
    with asked as materialized (
        select n.*
        from unnest(v_ids, v_limit_keys, v_rate_keys) with ordinality as n (id, limit_key, rate_key, place)
    ), limited as (
        select
            r.key, r.room - coalesce((p_taken ->> r.key)::integer, 0) as room,
            p_fresh and pgtasks.waits_for(r.key, null) as waits
        from pgtasks.limit_room(array(
            select distinct j.limit_key from asked j join unnest(v_locked) as k (key) on k.key = j.limit_key
        )) r
    ), rated as (
        select
            t.key, t.tokens,
            p_fresh and pgtasks.waits_for(null, t.key) as waits
        from pgtasks.rate_tokens(
            array(
                select distinct j.rate_key from asked j join unnest(v_locked) as k (key) on k.key = 'rate ' || j.rate_key
            )
        ) t
    ), by_limit as (
        select
            j.*, l.room, coalesce(l.waits, false) as limit_waits,
            j.limit_key is not null and l.key is null as busy,
            j.limit_key is null or l.room is null or (
                not l.waits and row_number() over (partition by j.limit_key order by j.place) <= l.room
            ) as has_room
        from asked j
        left join limited l on l.key = j.limit_key
    ), by_rate as (
        select
            j.id, j.limit_key, j.rate_key, j.place, j.room, j.limit_waits, j.has_room,
            j.busy or (j.rate_key is not null and r.key is null) as busy,
            j.rate_key is null or (
                not r.waits
                -- A hair more: what came in steps may lack the last bit of a token.
                and row_number() over (partition by j.rate_key, j.has_room, j.busy order by j.place) <= r.tokens + 1e-6
            ) as has_token
        from by_limit j
        left join rated r on r.key = j.rate_key
    ), decided as (
        select
            j.*,
            case
                when j.busy then 'busy'   -- the key is in other hands, and waiting for it might never end
                when not j.has_room then 'limit'
                when not j.has_token then 'rate'
                when row_number() over (
                    partition by j.busy, j.has_room, j.has_token order by j.place
                ) <= p_most then 'pass'
                else 'spare'
            end as become
        from by_rate j
    )
    select
        array_agg(d.become order by d.place),
        coalesce(array_agg(d.id order by d.place) filter (where d.become = 'pass'), '{}'),
        coalesce(
            jsonb_object_agg(d.limit_key, 1) filter (where d.limit_key is not null and d.become in ('limit', 'busy')),
            '{}'
        ),
        coalesce(
            jsonb_object_agg(d.rate_key, 1) filter (where d.rate_key is not null and d.become in ('rate', 'busy')),
            '{}'
        ),
        coalesce(
            array_agg(distinct d.limit_key) filter (
                where d.limit_key is not null and (d.become = 'rate' or d.become = 'limit' and d.limit_waits and d.room > 0)
            ),
            '{}'
        ),
        (count(*) filter (where d.become <> 'pass'))::integer
    into v_become, passed, full_keys, dry_keys, open_keys, stopped
    from decided d;

    if not (p_fresh and stopped = 0 and true = all(v_keyed)) then   -- else the claim writes all of it
        update pgtasks.job j
        set state = case n.become when 'pass' then 'ready' else 'parked' end,
            reason = case n.become when 'pass' then null else n.become end,
            admitted = case when n.become = 'pass' and not p_fresh then j.seq end,
            -- From now on they stand there, whoever wrote the job.
            options = nullif(
                coalesce(j.options, '{}')
                || jsonb_strip_nulls(jsonb_build_object('limit_key', n.limit_key, 'rate_key', n.rate_key)),
                '{}'
            )
        from unnest(v_ids, v_become, v_limit_keys, v_rate_keys, v_keyed) as n (id, become, limit_key, rate_key, keyed)
        where j.id = any(v_ids)
            and j.id = n.id
            and case n.become
                when 'pass' then not p_fresh or not n.keyed
                when 'limit' then j.reason is distinct from 'limit'
                when 'rate' then j.reason is distinct from 'rate'
                else false
            end;
    end if;

    taken := p_taken || coalesce(
        (
            select jsonb_object_agg(n.key, n.places)
            from (
                select n.limit_key as key, count(*) + coalesce((p_taken ->> n.limit_key)::integer, 0) as places
                from unnest(v_become, v_limit_keys) as n (become, limit_key)
                where n.become = 'pass' and n.limit_key is not null
                group by n.limit_key
            ) n
        ),
        '{}'
    );

    if exists (select from unnest(v_rate_keys) k where k is not null) then
        perform pgtasks.take_rate_tokens(array_agg(t.key), array_agg(t.taken), 0)
        from (
            select n.rate_key as key, (count(*) filter (where n.become = 'pass'))::integer as taken
            from unnest(v_become, v_rate_keys) as n (become, rate_key)
            where n.rate_key is not null and 'rate ' || n.rate_key = any(v_locked)
            group by n.rate_key
            having bool_or(n.become in ('pass', 'rate'))
            order by n.rate_key
        ) t
        having count(*) > 0;
    end if;
end
$$;

-- Admits those that wait longest for keys, highest priority first, as far as there is room and there are tokens, and
-- wakes the workers of their queues. Returns how many.
create function pgtasks.admit(p_limit_keys text[], p_rate_keys text[]) returns integer
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set enable_nestloop = on
set enable_sort = off   -- so that the order leads to the index
set jit = off
as $$
declare
    v_served text[];
    v_paused text[];
    v_locked text[];
    v_keys text[];
    v_ids uuid[] := '{}';
    v_passed uuid[];
begin
    v_locked := pgtasks.lock_keys(array(
        select k from unnest(p_limit_keys) k union select 'rate ' || k from unnest(p_rate_keys) k
    ));
    v_keys := array(
        select k.key
        from (select distinct unnest(p_limit_keys)) as k (key)
        where k.key = any(v_locked) and pgtasks.waits_for(k.key, null)
    );
    if cardinality(v_keys) = 0 and cardinality(p_rate_keys) = 0 then
        return 0;
    end if;
    v_served := pgtasks.served_queues();
    v_paused := array(select t.name from pgtasks.task t where t.paused_at is not null);

    if cardinality(v_keys) > 0 then
        v_ids := array(
            select w.id
            from pgtasks.limit_room(v_keys) r
            cross join lateral (
                select j.id
                from pgtasks.job j
                where j.state = 'parked'
                    and j.reason = 'limit'
                    and (j.options ->> 'limit_key') = r.key
                    and j.queue = any(v_served)
                    and not j.task = any(v_paused)
                order by j.priority desc, j.seq
                limit least(greatest(coalesce(r.room, 1000), 0), 1000)
                for update skip locked
            ) w
        );
    end if;
    if cardinality(p_rate_keys) > 0 then
        v_keys := array(select distinct k from unnest(p_rate_keys) k where 'rate ' || k = any(v_locked));
        v_ids := v_ids || array(
            select w.id
            from pgtasks.rate_tokens(v_keys) t
            cross join lateral (
                select j.id
                from pgtasks.job j
                where j.state = 'parked'
                    and j.reason = 'rate'
                    and (j.options ->> 'rate_key') = t.key
                    and j.queue = any(v_served)
                    and not j.task = any(v_paused)
                order by j.priority desc, j.seq
                limit least(greatest(floor(coalesce(t.tokens, 1000) + 1e-6)::integer, 0), 1000)
                for update skip locked
            ) w
        );
        -- Of those who cannot be admitted now nobody asks again at once.
        perform pgtasks.take_rate_tokens(v_keys, array_fill(0, array[cardinality(v_keys)]), 0.5);
    end if;
    if cardinality(v_ids) = 0 then
        return 0;
    end if;

    select p.passed into v_passed from pgtasks.pass_jobs(v_ids, false, cardinality(v_ids), '{}') p;
    if cardinality(v_passed) > 0 then
        perform pgtasks.wake(array(select distinct j.queue from pgtasks.job j where j.id = any(v_passed)));
    end if;
    return cardinality(v_passed);
end
$$;

-- Whose turn it is in a queue: up to p_limit jobs of these tasks, highest priority first, and within one the keys in a
-- circle from the one after the last. Locks nothing.
create function pgtasks.next_turns(p_queue text, p_tasks text[], p_limit integer)
returns table (id uuid, priority integer, place bigint, key text)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set enable_nestloop = on
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_priority integer;
    v_last text;
    v_keys text[];
    v_left integer := p_limit;
    v_found integer;
begin
    loop
        -- In the order of the index, which it is forced to by that.
        select j.priority into v_priority
        from pgtasks.job j
        where j.queue = p_queue
            and j.state = 'parked'
            and j.reason = 'turn'
            and j.priority <= coalesce(v_priority::bigint - 1, 2147483647)
        order by j.priority desc
        limit 1;
        exit when not found;

        v_last := coalesce((select t.last_key from pgtasks.turn t where t.queue = p_queue and t.priority = v_priority), '');
        v_keys := array(
            with recursive ahead as (
                (
                    select coalesce(j.options ->> 'fair_key', '') as key
                    from pgtasks.job j
                    where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn' and j.priority = v_priority
                        and coalesce(j.options ->> 'fair_key', '') > v_last and j.task = any(p_tasks)
                    order by coalesce(j.options ->> 'fair_key', '')
                    limit 1
                )
                union all
                select (
                    select coalesce(j.options ->> 'fair_key', '')
                    from pgtasks.job j
                    where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn' and j.priority = v_priority
                        and coalesce(j.options ->> 'fair_key', '') > a.key and j.task = any(p_tasks)
                    order by coalesce(j.options ->> 'fair_key', '')
                    limit 1
                )
                from ahead a
                where a.key is not null
            )
            select a.key from ahead a where a.key is not null limit v_left
        );
        if cardinality(v_keys) < v_left then   -- around, up to and with the last
            v_keys := v_keys || array(
                with recursive behind as (
                    (
                        select coalesce(j.options ->> 'fair_key', '') as key
                        from pgtasks.job j
                        where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn' and j.priority = v_priority
                            and coalesce(j.options ->> 'fair_key', '') <= v_last and j.task = any(p_tasks)
                        order by coalesce(j.options ->> 'fair_key', '')
                        limit 1
                    )
                    union all
                    select (
                        select coalesce(j.options ->> 'fair_key', '')
                        from pgtasks.job j
                        where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn' and j.priority = v_priority
                            and coalesce(j.options ->> 'fair_key', '') > b.key
                            and coalesce(j.options ->> 'fair_key', '') <= v_last and j.task = any(p_tasks)
                        order by coalesce(j.options ->> 'fair_key', '')
                        limit 1
                    )
                    from behind b
                    where b.key is not null
                )
                select b.key from behind b where b.key is not null limit v_left - cardinality(v_keys)
            );
        end if;

        return query
        select w.id, v_priority, row_number() over (order by w.n, k.n), k.key
        from unnest(v_keys) with ordinality as k (key, n)
        cross join lateral (
            select j.id, row_number() over (order by j.seq) as n
            from pgtasks.job j
            where j.queue = p_queue
                and j.state = 'parked'
                and j.reason = 'turn'
                and j.priority = v_priority
                and coalesce(j.options ->> 'fair_key', '') = k.key
                and j.task = any(p_tasks)
            order by j.seq
            limit (v_left - 1) / greatest(cardinality(v_keys), 1) + 1
        ) w
        order by w.n, k.n
        limit v_left;
        get diagnostics v_found = row_count;
        v_left := v_left - v_found;
        exit when v_left <= 0;
    end loop;
end
$$;

-- Whether anybody in a queue waits for his turn.
create function pgtasks.has_turns(p_queue text) returns boolean
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
    perform from pgtasks.job j
    where j.queue = p_queue and j.state = 'parked' and j.reason = 'turn'
    order by j.priority desc
    limit 1;
    return found;
end
$$;

-- Chooses who of those that wait for their turn is claimed now, one for one with the others that may be (p_others), and
-- notes whose turn it was. Locks them, and returns them.
create function pgtasks.choose_turns(p_queue text, p_tasks text[], p_limit integer, p_others uuid[]) returns uuid[]
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = on
set enable_nestloop = off
set enable_sort = on
set jit = off
as $$
declare
    v_ids uuid[];
begin
    with candidate as materialized (
        select n.id, n.priority, n.place, n.key from pgtasks.next_turns(p_queue, p_tasks, p_limit) n
        union all
        select j.id, j.priority, row_number() over (partition by j.priority order by j.seq), null
        from pgtasks.job j
        where j.id = any(p_others) and cardinality(p_others) > 0
    ), chosen as materialized (
        select
            c.id, c.priority, c.key,
            row_number() over (
                order by c.priority desc, c.place, (c.key is null) <> coalesce(t.others_next, false)
            ) as place
        from candidate c
        left join pgtasks.turn t on t.queue = p_queue and t.priority = c.priority
        order by place
        limit p_limit
    ), last as (
        select
            c.priority,
            (array_agg(c.key order by c.place desc) filter (where c.key is not null))[1] as key,
            (array_agg(c.key is not null order by c.place desc))[1] as others_next
        from chosen c
        where c.priority in (select k.priority from candidate k where k.key is not null)
        group by c.priority
    ), noted as (
        insert into pgtasks.turn as t (queue, priority, last_key, others_next)
        select p_queue, l.priority, l.key, l.others_next from last l order by l.priority
        on conflict (queue, priority) do update
        set last_key = coalesce(excluded.last_key, t.last_key), others_next = excluded.others_next
    )
    select coalesce(array_agg(c.id), '{}') into v_ids from chosen c where c.key is not null;

    return array(
        select j.id
        from pgtasks.job j
        where j.id = any(v_ids)
            and coalesce(j.reason, '') = 'turn'   -- said so, it leads to no index: the ids do
        order by j.id
        for update skip locked
    );
end
$$;

-- Locks the jobs that follow one in a claim, whose ranges these are, as far as the key of none is in p_full or p_dry.
create function pgtasks.lock_next(
    p_queue text, p_tasks text[], p_high integer[], p_low integer[], p_after bigint[], p_limit integer,
    p_last uuid, p_full jsonb, p_dry jsonb
) returns uuid[]
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set enable_nestloop = on
set enable_sort = off
set jit = off
as $$
declare
    v_priority integer;
    v_seq bigint;
    v_high integer;
    v_low integer;
    v_limits jsonb;   -- task -> the key of a job without one
    v_rates jsonb;
    v_ids uuid[] := '{}';
begin
    select j.priority, j.seq into v_priority, v_seq from pgtasks.job j where j.id = p_last;
    select
        coalesce(jsonb_object_agg(g.task, g.limit_name) filter (where g.limit_name is not null), '{}'),
        coalesce(jsonb_object_agg(g.task, g.rate_name) filter (where g.rate_name is not null), '{}')
    into v_limits, v_rates
    from pgtasks.task_gate g
    where g.task = any(p_tasks);

    for v_range in 1 .. cardinality(p_high) loop
        -- Behind the last one at its own priority, or behind a cursor; then what is below.
        continue when p_low[v_range] > v_priority;
        if p_high[v_range] >= v_priority or p_after[v_range] is not null then
            v_high := least(p_high[v_range], v_priority);
            v_ids := v_ids || array(
                select j.id
                from pgtasks.job j
                where j.queue = p_queue
                    and j.state = 'ready'
                    and j.priority = v_high
                    and j.seq > greatest(p_after[v_range], case when v_high = v_priority then v_seq end)
                    and j.token is null
                    and j.task = any(p_tasks)
                    and not coalesce(p_full ? coalesce(j.options ->> 'limit_key', v_limits ->> j.task), false)
                    and not coalesce(p_dry ? coalesce(j.options ->> 'rate_key', v_rates ->> j.task), false)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_ids)
                for update skip locked
            );
        end if;
        exit when cardinality(v_ids) >= p_limit;
        v_high := least(p_high[v_range]::bigint, v_priority::bigint - 1);
        v_low := p_low[v_range];
        if p_after[v_range] is null and v_high >= v_low then
            v_ids := v_ids || array(
                select j.id
                from pgtasks.job j
                where j.queue = p_queue
                    and j.state = 'ready'
                    and j.priority <= v_high
                    and j.priority >= v_low
                    and j.token is null
                    and j.task = any(p_tasks)
                    and not coalesce(p_full ? coalesce(j.options ->> 'limit_key', v_limits ->> j.task), false)
                    and not coalesce(p_dry ? coalesce(j.options ->> 'rate_key', v_rates ->> j.task), false)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_ids)
                for update skip locked
            );
        end if;
        exit when cardinality(v_ids) >= p_limit;
    end loop;
    return v_ids;
end
$$;

-- Locks those of a queue that are admitted and not claimed yet: of these a cursor knows nothing.
create function pgtasks.lock_admitted(p_queue text, p_tasks text[], p_limit integer) returns uuid[]
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
    return array(
        select j.id
        from pgtasks.job j
        where j.queue = p_queue
            and j.state = 'ready'
            and j.admitted = j.seq
            and j.seq > 0
            and j.token is null
            and j.task = any(p_tasks)
        order by j.priority desc, j.seq
        limit p_limit
        for update skip locked
    );
end
$$;

-- The second step of a claim where there is something to pass: of p_ids, which it has locked, returns those that may be
-- claimed, and others in place of those that may not, at most p_limit; and which of these are admitted with that.
--
-- What must wait is parked, and the claim goes on behind it; from the third round on it steps over keys that it found
-- full. Who is admitted already is claimed wherever he stands; those who take turns come one for one with the others.
create function pgtasks.gate_jobs(
    p_queue text, p_tasks text[], p_high integer[], p_low integer[], p_after bigint[], p_limit integer, p_ids uuid[],
    out ids uuid[], out admitted uuid[]
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = on
set enable_nestloop = off
set enable_sort = on
set jit = off
as $$
#variable_conflict use_column
declare
    v_ids uuid[] := p_ids;
    v_admitted uuid[] := '{}';
    v_free uuid[] := '{}';   -- may be claimed
    v_bound uuid[];
    v_turns uuid[];
    v_pass record;
    v_stopped integer;
    v_full jsonb := '{}';
    v_dry jsonb := '{}';
    v_taken jsonb := '{}';
    v_open text[] := '{}';
    v_chosen uuid[];
begin
    if cardinality(p_ids) > 0 and not exists (
        select from pgtasks.job j where j.id = any(p_ids) and j.task = any(array(select g.task from pgtasks.task_gate g))
    ) then
        v_free := v_ids;
        v_ids := '{}';
    end if;

    for v_round in 1 .. 8 loop
        exit when cardinality(v_ids) = 0;
        select
            coalesce(array_agg(s.id) filter (where s.kind = 'free'), '{}'),
            coalesce(array_agg(s.id) filter (where s.kind = 'bound'), '{}'),
            coalesce(array_agg(s.id) filter (where s.kind = 'turn'), '{}')
        into v_chosen, v_bound, v_turns
        from (
            select
                j.id,
                case
                    when j.admitted = j.seq then 'free'
                    when g.fair then 'turn'
                    when g.task is not null and (l.name is not null or r.name is not null) then 'bound'
                    else 'free'
                end as kind
            from pgtasks.job j
            left join pgtasks.task_gate g on g.task = j.task
            left join pgtasks.job_limit l
                on l.name = split_part(coalesce(j.options ->> 'limit_key', g.limit_name), ' ', 1)
            left join pgtasks.job_rate r
                on r.name = split_part(coalesce(j.options ->> 'rate_key', g.rate_name), ' ', 1)
            where j.id = any(v_ids)
        ) s;
        v_free := v_free || v_chosen;
        v_stopped := cardinality(v_turns);

        if cardinality(v_turns) > 0 then
            update pgtasks.job j
            set state = 'parked',
                reason = 'turn',
                admitted = null,
                options = coalesce(j.options, '{}')
                    || jsonb_build_object('fair_key', coalesce(left(j.options ->> 'fair_key', 401), ''))
            where j.id = any(v_turns);
        end if;
        if cardinality(v_bound) > 0 then
            select p.* into v_pass
            from pgtasks.pass_jobs(v_bound, true, greatest(0, p_limit - cardinality(v_free)), v_taken) p;
            v_taken := v_pass.taken;
            v_free := v_free || v_pass.passed;
            v_admitted := v_admitted || v_pass.passed;
            v_full := v_full || v_pass.full_keys;
            v_dry := v_dry || v_pass.dry_keys;
            v_open := v_open || v_pass.open_keys;
            v_stopped := v_stopped + v_pass.stopped;
        end if;

        exit when v_stopped = 0 or cardinality(v_free) >= p_limit;
        v_ids := pgtasks.lock_next(
            p_queue, p_tasks, p_high, p_low, p_after, greatest(p_limit - cardinality(v_free), 200),
            v_ids[cardinality(v_ids)],
            case when v_round = 1 then '{}' else v_full end, case when v_round = 1 then '{}' else v_dry end
        );
    end loop;

    -- Where somebody waits for what is free: he comes first.
    if cardinality(v_open) > 0 then
        update pgtasks.job j set admitted = j.seq where j.id = any(v_admitted);
        v_taken := '{}';
        perform pgtasks.admit(v_open, '{}');
    end if;
    v_chosen := pgtasks.lock_admitted(p_queue, p_tasks, p_limit);
    if cardinality(v_chosen) > 0 then
        v_free := array(select distinct f from unnest(v_free || v_chosen) f);
    end if;

    for v_round in 1 .. 3 loop
        -- One claim of a queue after the other: who comes meanwhile takes none.
        exit when not pgtasks.has_turns(p_queue)
            or not pg_try_advisory_xact_lock(7236418, hashtext(p_queue));

        v_chosen := pgtasks.choose_turns(p_queue, p_tasks, p_limit, v_free);
        exit when cardinality(v_chosen) = 0;
        select p.* into v_pass from pgtasks.pass_jobs(v_chosen, true, cardinality(v_chosen), v_taken) p;
        v_taken := v_pass.taken;
        v_admitted := v_admitted || v_pass.passed;
        -- Those who took their turn are in, and others as far as there is a place for them.
        if cardinality(v_free) > p_limit - cardinality(v_pass.passed) then
            v_free := array(
                select j.id
                from pgtasks.job j
                where j.id = any(v_free)
                order by j.priority desc, j.seq
                limit p_limit - cardinality(v_pass.passed)
            );
        end if;
        v_free := v_pass.passed || v_free;
        exit when v_pass.stopped = 0;
    end loop;

    ids := case when cardinality(v_free) <= p_limit then v_free else array(
        select j.id from pgtasks.job j where j.id = any(v_free) order by j.priority desc, j.seq limit p_limit
    ) end;
    admitted := v_admitted;
end
$$;

-- Makes due jobs of one queue ready, at most p_limit; each takes a new seq, ahead of every cursor. With them those that
-- waited for tokens which have come: a look tells workers when. Returns how many were due.
create or replace function pgtasks.promote_jobs(p_queue text, p_limit integer) returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
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

    if pgtasks.next_token_in(p_queue) <= 0 then
        perform pgtasks.admit('{}', array(
            select b.key from pgtasks.rate_bucket b where b.next_at <= clock_timestamp() order by b.next_at limit 200
        ));
    end if;
    return v_count;
end
$$;

-- In how many seconds the next token comes that a parked job of this queue may wait for; null: none waits.
create function pgtasks.next_token_in(p_queue text) returns double precision
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
    -- In the order of its own index, which it is forced to by that.
    perform from pgtasks.job j
    where j.queue = p_queue and j.state = 'parked' and j.reason = 'rate' and j.seq > 0
    order by j.seq
    limit 1;
    if not found then
        return null;
    end if;
    return extract(epoch from (
        select b.next_at from pgtasks.rate_bucket b where b.next_at is not null order by b.next_at limit 1
    ) - clock_timestamp())::double precision;
end
$$;

-- What a job waits for, for people: how many have a place of its limit, of how many; and in how many seconds the next
-- token of its rate comes.
create function pgtasks.show_gates(p_limit_key text, p_rate_key text)
returns table (holding integer, jobs integer, token_in double precision)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        l.jobs - (select r.room from pgtasks.limit_room(array[p_limit_key]) r),
        l.jobs,
        extract(epoch from (select b.next_at from pgtasks.rate_bucket b where b.key = p_rate_key) - now())::double precision
    from (select split_part(p_limit_key, ' ', 1)) as n (name)
    left join pgtasks.job_limit l on l.name = n.name;
end
$$;

-- Finds what no finish told of: places of jobs that were cancelled, deleted or moved before they were claimed, limits that
-- were raised or are gone, buckets that nobody watches, places of jobs that no worker serves. Goes through
-- the keys of which somebody waits, p_limit a call, from behind p_after.
--
-- Returns the last key, from which to go on; '' at the end; null if another process is at it.
create function pgtasks.sweep_gates(p_after text, p_limit integer) returns text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set enable_sort = off   -- so that the order leads to the index
set jit = off
as $$
declare
    v_served text[];
    v_keys text[];
    v_rate_keys text[];
begin
    if not pg_try_advisory_xact_lock(7236417, 1) then
        return null;
    end if;

    v_keys := array(
        with recursive key as (
            (
                select j.options ->> 'limit_key' as key
                from pgtasks.job j
                where j.state = 'parked' and j.reason = 'limit' and (j.options ->> 'limit_key') > p_after
                order by j.options ->> 'limit_key'
                limit 1
            )
            union all
            select (
                select j.options ->> 'limit_key'
                from pgtasks.job j
                where j.state = 'parked' and j.reason = 'limit' and (j.options ->> 'limit_key') > k.key
                order by j.options ->> 'limit_key'
                limit 1
            )
            from key k
            where k.key is not null
        )
        select k.key from key k where k.key is not null limit p_limit
    );
    v_rate_keys := array(
        with recursive key as (
            (
                select j.options ->> 'rate_key' as key
                from pgtasks.job j
                where j.state = 'parked' and j.reason = 'rate' and (j.options ->> 'rate_key') > ''
                order by j.options ->> 'rate_key'
                limit 1
            )
            union all
            select (
                select j.options ->> 'rate_key'
                from pgtasks.job j
                where j.state = 'parked' and j.reason = 'rate' and (j.options ->> 'rate_key') > k.key
                order by j.options ->> 'rate_key'
                limit 1
            )
            from key k
            where k.key is not null
        )
        select k.key
        from key k
        where k.key is not null
            and not exists (
                select from pgtasks.rate_bucket b where b.key = k.key and b.next_at > clock_timestamp()
            )
        limit p_limit
    );

    if exists (select from pgtasks.job j where j.state = 'ready' and j.admitted = j.seq and j.seq > 0) then
        v_served := pgtasks.served_queues();
        update pgtasks.job j
        set state = 'parked', reason = 'limit', admitted = null
        where j.id = any(array(
            select h.id
            from pgtasks.job h
            where h.state = 'ready'
                and h.admitted = h.seq
                and h.seq > 0
                and h.token is null
                and h.options ? 'limit_key'
                and not h.queue = any(v_served)
            limit 1000
            for update skip locked
        ));
    end if;
    if cardinality(v_keys) > 0 or cardinality(v_rate_keys) > 0 then
        perform pgtasks.admit(v_keys, v_rate_keys);
    end if;

    -- Full buckets are as good as none; of rates that nobody publishes any more as well.
    delete from pgtasks.rate_bucket b
    where b.key = any(array(
        select o.key
        from pgtasks.rate_bucket o
        left join pgtasks.job_rate r on r.name = split_part(o.key, ' ', 1)
        where (o.next_at is null or r.name is null)
            and (r.name is null or o.tokens + r.per_second * extract(epoch from now() - o.refilled_at) >= r.burst)
        limit 1000
        for update of o skip locked
    ));
    return case when cardinality(v_keys) < p_limit then '' else v_keys[p_limit] end;
end
$$;

do $$
declare
    v_function regprocedure;
begin
    for v_function in select p.oid from pg_catalog.pg_proc p where p.pronamespace = 'pgtasks'::regnamespace loop
        execute format('revoke all on function %s from public', v_function);
    end loop;
end
$$;
