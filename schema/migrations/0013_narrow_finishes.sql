-- Less for each job of a batch: most batches are successes of plain jobs of one queue, and need three arrays, not ten.

-- Ids do not compress: trying costs 1 µs a job (measured, batches of 500).
alter table pgtasks.claim alter column job_ids set storage external;

-- Writes successes of one queue back: what finish_jobs does with them, for jobs without bundle and options.
--
-- One entry a job in every array, sorted by id. p_keep false: nothing is kept of these. The others as for finish_jobs,
-- which is asked for all that are not so plain. Returns the ids that no longer carried their token: usually none.
create function pgtasks.finish_succeeded(
    p_queue text,
    p_id uuid[],
    p_token uuid[],
    p_result text[],
    p_age double precision[],
    p_keep boolean,
    p_claims uuid[]
) returns setof text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_nestloop = off   -- see finish_queue
set enable_hashjoin = on
set jit = off
as $$
declare
    v_gone uuid[];
    v_left uuid[];
    v_written text[];
begin
    if p_keep then
        with outcome as (
            select o.* from unnest(p_id, p_token, p_result, p_age) as o (id, token, result, age)
        ), gone as (
            delete from pgtasks.job j
            using outcome o
            where j.queue = p_queue
                and j.id = any(p_id)
                and j.id = o.id
                and j.token = o.token
                and j.bundle_id is null
                and j.options is null
            returning
                j.id, j.priority, j.created_at, j.start_at, j.expires_at, j.task, j.args, j.kwargs, j.origin,
                j.parent_id, j.root_id, j.after_bundle_id, j.after_on, j.takes, j.input, j.reason, j.crashes,
                j.attempts, j.attempt, j.worker_id, o.result, o.age
        ), written as (
            insert into pgtasks.job_history (
                id, queue, state, priority, created_at, start_at, expires_at, started_at, task, args, kwargs, origin,
                parent_id, root_id, after_bundle_id, after_on, takes, input, reason, crashes, attempts, attempt,
                worker_id, result
            )
            select
                g.id, p_queue, 'succeeded', g.priority, g.created_at, g.start_at, g.expires_at,
                now() - g.age * interval '1 second', g.task, g.args, g.kwargs, g.origin, g.parent_id, g.root_id,
                g.after_bundle_id, g.after_on, g.takes, g.input, g.reason, g.crashes, g.attempts, g.attempt,
                g.worker_id, g.result
            from gone g
        )
        select coalesce(array_agg(g.id), '{}') into v_gone from gone g;
    else
        with outcome as (
            select o.* from unnest(p_id, p_token) as o (id, token)
        ), gone as (
            delete from pgtasks.job j
            using outcome o
            where j.queue = p_queue
                and j.id = any(p_id)
                and j.id = o.id
                and j.token = o.token
                and j.bundle_id is null
                and j.options is null
            returning j.id
        )
        select coalesce(array_agg(g.id), '{}') into v_gone from gone g;
    end if;

    if exists (select from pgtasks.queue q where q.name = p_queue and q.max_running is not null) then
        perform pgtasks.wake(array[p_queue]);   -- a place is free
    end if;
    if exists (select from pgtasks.listener) then
        perform pgtasks.tell_stopped(v_gone::text[], false);
    end if;

    if cardinality(v_gone) = cardinality(p_id) then
        if cardinality(p_claims) > 0 then
            delete from pgtasks.claim c where c.token = any(p_claims);
        end if;
        return;
    end if;

    v_left := array(
        select o.id from unnest(p_id) with ordinality as o (id, n) where o.id <> all(v_gone) order by o.n
    );
    v_written := array(
        select pgtasks.finish_jobs(
            array_agg(p_queue order by o.n), array_agg(o.id order by o.n), array_agg(o.token order by o.n),
            array_agg('succeeded'::text order by o.n), array_agg(o.result order by o.n),
            array_agg(null::jsonb), array_agg(null::double precision), array_agg(o.age order by o.n),
            array_agg(p_keep), p_claims
        )
        from unnest(p_id, p_token, p_result, p_age) with ordinality as o (id, token, result, age, n)
        where o.id = any(v_left)
    );
    return query select l::text from unnest(v_left) l where l::text <> all(v_written);
end
$$;

-- One owner for it with what it calls, also before roles are granted anew.
do $$
declare
    v_name text := 'pgtasks.finish_succeeded(text, uuid[], uuid[], text[], double precision[], boolean, uuid[])';
    v_owner name := (
        select r.rolname
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
begin
    execute format('revoke all on function %s from public', v_name);
    execute format('alter function %s owner to %I', v_name, v_owner);
end
$$;
