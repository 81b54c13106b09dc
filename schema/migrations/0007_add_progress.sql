-- How far running jobs are, as their tasks say it.
--
-- A table of its own, and no column of job: a job of an hour is written 3,600 times, and under a held snapshot no
-- version of these may go, which would fill the pages that claims need for HOT updates, and the claim index
-- (measured, 200 running jobs written 120 times: a claim of 100 then reads 9,909 buffers; with this table 141, as
-- before). A row belongs to an attempt by its token: when a job is finished, retried, given back or rescued its token goes, and
-- with that nobody sees the row any more. So none of these has anything to do here, and a job without progress
-- costs nothing; forget_progress removes the row later. Who writes for a claim that was lost writes a row of his
-- own, that nobody sees.
create table pgtasks.job_progress (
    job_id uuid not null,
    queue text not null,
    token uuid not null,
    progress jsonb not null check (jsonb_typeof(progress) = 'object'),
    reported_at timestamptz not null,
    primary key (job_id, token, queue)
)
-- The only index stands on what never changes, so that each write is a HOT update.
with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);

-- Writes how far running jobs are: one entry a job in every array. Only for those that still carry their token;
-- returns how many. p_age: seconds since the task said so. Nobody waits for the disk: a report that is lost with
-- the server does not matter.
--
-- Who is rescued between the look and the write leaves a row that nobody sees: no lock on the job is worth that.
create function pgtasks.record_progress(
    p_ids uuid[], p_tokens uuid[], p_progress jsonb[], p_age double precision[]
) returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_count integer;
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into pgtasks.job_progress as p (job_id, queue, token, progress, reported_at)
    select j.id, j.queue, j.token, r.progress, now() - r.age * interval '1 second'
    from unnest(p_ids, p_tokens, p_progress, p_age) as r (id, token, progress, age)
    join pgtasks.job j on j.id = r.id and j.token = r.token
    order by j.id
    on conflict (job_id, token, queue) do update
    set progress = excluded.progress, reported_at = excluded.reported_at;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function pgtasks.record_progress(uuid[], uuid[], jsonb[], double precision[]) from public;

-- Removes the rows of attempts that are over; one process at a time. Returns how many, null: another is at it.
create function pgtasks.forget_progress() returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_count integer;
begin
    if not pg_try_advisory_xact_lock(7236412, 2) then
        return null;
    end if;
    delete from pgtasks.job_progress p
    where not exists (
        select from pgtasks.job j where j.id = p.job_id and j.queue = p.queue and j.token = p.token
    );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function pgtasks.forget_progress() from public;

-- State, result, error and progress of jobs: whoever knows a job's id may have its result. p_since is an hour before the
-- oldest id's time, to prune partitions.
drop function pgtasks.get_outcomes(uuid[], timestamptz);
create function pgtasks.get_outcomes(p_ids uuid[], p_since timestamptz)
returns table (id text, state text, attempt integer, result text, error jsonb, progress jsonb)
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        j.id::text, case when j.token is not null then 'running' else j.state end, j.attempt, null::text, null::jsonb,
        case when j.token is not null then (
            select p.progress || jsonb_build_object('at', p.reported_at)
            from pgtasks.job_progress p
            where p.job_id = j.id and p.token = j.token and p.queue = j.queue
        ) end
    from pgtasks.job j
    where j.id = any(p_ids)
    union all
    select h.id::text, h.state, h.attempt, h.result, h.error, null::jsonb
    from pgtasks.job_history h
    where h.id = any(p_ids) and h.stopped_at >= p_since;
end
$$;
revoke all on function pgtasks.get_outcomes(uuid[], timestamptz) from public;

-- The view's owner reads the table for whoever may look at the view: both have the same one, also before roles are
-- granted anew.
do $$
begin
    execute (
        select format('alter table pgtasks.job_progress owner to %I', r.rolname)
        from pg_catalog.pg_class c
        join pg_catalog.pg_roles r on r.oid = c.relowner
        where c.oid = 'pgtasks.jobs'::regclass
    );
end
$$;

-- As before, and `progress` at the end.
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
    null::text as result, null::jsonb as error,
    -- Its message is shown, like that of an error; its meta is data.
    case
        when token is null then null
        when (select has_column_privilege('pgtasks.job', 'args', 'select')) then (
            select p.progress || jsonb_build_object('at', p.reported_at)
            from pgtasks.job_progress p
            where p.job_id = job.id and p.token = job.token and p.queue = job.queue
        )
        else (
            select p.progress #- '{meta}' || jsonb_build_object('at', p.reported_at)
            from pgtasks.job_progress p
            where p.job_id = job.id and p.token = job.token and p.queue = job.queue
        )
    end as progress
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
    end as error,
    null::jsonb as progress
from pgtasks.job_history;
