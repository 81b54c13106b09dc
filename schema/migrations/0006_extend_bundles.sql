-- What a canvas needs beyond a group: steps, callbacks, errors that are passed on, replacing a running job, and starting a
-- failed graph again.
--
-- Everything that waits, waits for a bundle. A *step* is a bundle of one job, so that others can wait for that job
-- alone: a chain's step, a job with callbacks. A step inside a group has it as its parent: its job is a member of
-- that group all the same, at its bundle_index. People do not see steps in lists.
--
-- What waits for success and does not get it ends cancelled, with the error that it does not run for: that of the step
-- before, with the id of the job that raised it as "dependency"; or, for what waited for a group, a ChordError.
-- What waits for the failure of a job that succeeds vanishes, and what waits for that; of one that does not run it is
-- cancelled like the rest, so that it is there when the graph is started again.

alter table pgtasks.job_bundle
    add column kind text not null default 'group' check (kind in ('group', 'step')),
    -- What all members of a group wait for. If none of them ran for it, what waits for the group hears of the failure
    -- there. Else the failure is a member's, be it of a job that only that member waited for.
    add column after_on text check (after_on in ('success', 'failure')),
    add column after_bundle_id uuid;

alter table pgtasks.job drop constraint job_takes_check;
alter table pgtasks.job add constraint job_takes_check check (takes in ('result', 'results', 'error'));

-- A whole graph by the id of its first job. By its bundles, so that the members of large groups are in no index more.
alter table pgtasks.job_bundle add column root_id uuid;
create index job_bundle_root on pgtasks.job_bundle (root_id) where root_id is not null;
create index job_alone on pgtasks.job (root_id) where root_id is not null and bundle_id is null;
create index job_history_alone on pgtasks.job_history (root_id)
where root_id is not null and bundle_id is null and after_bundle_id is null;

-- To start a failed graph again: what had waited.
create index job_history_waited on pgtasks.job_history (after_bundle_id) where after_bundle_id is not null;

-- The ids of all jobs of a graph, live and finished, by the id of its first job.
create function pgtasks.graph_jobs(p_root_id uuid) returns setof uuid
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_bundle_ids uuid[] := array(select b.id from pgtasks.job_bundle b where b.root_id = p_root_id);
begin
    return query
    select j.id from pgtasks.job j where j.bundle_id = any(v_bundle_ids)
    union
    select h.id from pgtasks.job_history h where h.bundle_id = any(v_bundle_ids)
    union
    select h.id from pgtasks.job_history h where h.after_bundle_id = any(v_bundle_ids)
    union
    select j.id from pgtasks.job j where j.root_id = p_root_id and j.bundle_id is null
    union
    select h.id from pgtasks.job_history h
    where h.root_id = p_root_id and h.bundle_id is null and h.after_bundle_id is null
    union
    select p_root_id;
end
$$;

-- The ids of jobs that wait for a bundle, or waited for it: up to so many.
create function pgtasks.bundle_waiters(p_bundle_id uuid, p_limit integer) returns setof uuid
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_root_id uuid := (select b.root_id from pgtasks.job_bundle b where b.id = p_bundle_id);
begin
    return query
    select j.id from pgtasks.job j where j.state = 'blocked' and j.after_bundle_id = p_bundle_id
    union all
    select h.id from pgtasks.job_history h where h.after_bundle_id = p_bundle_id
    union all
    -- Those that wait no longer and are not finished are in no index by what they waited for.
    select j.id
    from pgtasks.job j
    where j.root_id = v_root_id and j.bundle_id is null and j.after_bundle_id = p_bundle_id and j.state <> 'blocked'
    union all
    select j.id
    from pgtasks.job j
    where j.bundle_id = any(array(
            select b.id
            from pgtasks.job_bundle b
            where b.root_id = v_root_id and (b.kind = 'step' or b.after_bundle_id = p_bundle_id)
        ))
        and j.after_bundle_id = p_bundle_id
        and j.state <> 'blocked'
    limit p_limit;
end
$$;

-- Bundles whose members are needed: open ones, and stopped steps of open groups.
create view pgtasks.open_bundle as
select b.id
from pgtasks.job_bundle b
where b.stopped_at is null
union all
select s.id
from pgtasks.job_bundle s
join pgtasks.job_bundle g on g.id = s.parent_id
where s.stopped_at is not null and g.stopped_at is null;

-- Writes jobs that left `job` without having been run to an end into the history.
drop function pgtasks.archive(pgtasks.job[], text, text);
create function pgtasks.archive(p_jobs pgtasks.job[], p_state text, p_reason text, p_error jsonb default null) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
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

-- The bundles that may be counted when members of these are counted out: those around them, and those of the
-- jobs that wait for any of them, since such a job may leave. Who counts locks them all first, in order: one that
-- is met only when a job leaves would be locked after blocked jobs, against who cancels these.
--
-- Of p_sure it is known that they succeed: what waits for their success stays. So a chain of a thousand steps does
-- not lock the rest of it at each.
--
-- Stable: where it is called once a statement, and its bundles are found by their index. As a volatile one it was called
-- for each bundle in the table (measured: each step of a chain of 5,000 took 1.5 s).
create function pgtasks.reached_bundles(p_ids uuid[], p_sure uuid[]) returns uuid[]
language plpgsql stable
set search_path = pgtasks, pg_catalog, pg_temp
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
                -- That there is one is asked last: asked here it invites a read of all bundles that are in another.
                select b.parent_id from pgtasks.job_bundle b where b.id = r.id
                union all
                select j.bundle_id
                from pgtasks.job j
                where j.state = 'blocked'
                    and j.after_bundle_id = r.id
                    and j.bundle_id is not null
                    and not (j.after_on = 'success' and r.id = any(p_sure))
            ) as n (id)
        )
        select r.id from reached r where r.id is not null
    );
end
$$;

create or replace function pgtasks.reached_bundles(p_ids uuid[]) returns uuid[]
language plpgsql stable
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    return pgtasks.reached_bundles(p_ids, '{}');
end
$$;

-- Whether no member of a failed group ran, because of what all of it waits for. p_dependency: the job behind the failure.
-- Callbacks for a failure run for it, and do not if it was passed on to their job: then they have it from there.
create function pgtasks.is_unreached(p_group pgtasks.job_bundle, p_dependency text) returns boolean
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
    return exists (
        select
        from pgtasks.job_bundle a
        where a.id = p_group.after_bundle_id
            and a.failed > 0
            and (
                p_group.after_on = 'success'
                or exists (
                    select
                    from pgtasks.job_history h
                    where h.bundle_id = a.id and h.stopped_at >= a.created_at and h.error ->> 'dependency' = p_dependency
                )
            )
    );
end
$$;

-- Whether what comes after this bundle does not run because of a step that failed before: that step's own callbacks
-- for failure have run then. Where a group failed by itself, in it or before groups that wait for it, nobody's have: they
-- are those of the first job after it that is no member of a group with something after it.
create function pgtasks.is_passed_by(p_bundle_id uuid, p_dependency text) returns boolean
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_id uuid := p_bundle_id;
    v_bundle pgtasks.job_bundle;
begin
    loop
        select * into v_bundle from pgtasks.job_bundle b where b.id = v_id and b.failed > 0;
        if not found then
            return false;
        elsif v_bundle.kind = 'step' then
            return true;
        elsif not pgtasks.is_unreached(v_bundle, p_dependency) then
            return false;
        end if;
        v_id := v_bundle.after_bundle_id;
    end loop;
end
$$;

-- Why what waited for a bundle's success does not run, or null if nothing is known of it: the first failure in time.
-- `passed_on`: it lies before the bundle, whose own members did not run for it. `replaced`: how often the job put
-- another graph in its place; if so the failure lies in the last of them, not before what waited for that job.
create function pgtasks.first_failure(
    p_bundle_id uuid, out job_id uuid, out error jsonb, out passed_on boolean, out replaced integer
)
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_bundle pgtasks.job_bundle;
    v_first pgtasks.job_history;
    v_waited boolean;
    v_unreached boolean;
    v_error jsonb;
    v_message text;
begin
    select * into v_bundle from pgtasks.job_bundle b where b.id = p_bundle_id;
    select h.* into v_first
    from pgtasks.job_history h
    where h.bundle_id = any(array(
            select v_bundle.id
            union all
            select s.id from pgtasks.job_bundle s where s.parent_id = v_bundle.id and s.failed > 0
        ))
        and h.stopped_at >= v_bundle.created_at
        -- Not for the index of what did not succeed, which may be long since then.
        and h.state || '' <> 'succeeded'
    order by h.stopped_at, h.id
    limit 1;

    job_id := v_first.id;
    replaced := jsonb_array_length(jsonb_path_query_array(v_first.attempts, '$[*].replaced'));
    v_error := v_first.error;
    v_waited := coalesce(v_first.state = 'cancelled' and v_first.reason = 'what it waited for failed', false);
    if v_first.state = 'cancelled' and not v_waited then
        v_error := null;   -- of an attempt that would have been retried
    end if;
    if v_error is null then
        v_message := format('job %s ended %s', coalesce(v_first.id::text, 'of an unknown id'), coalesce(v_first.state, 'without success'));
        v_error := jsonb_build_object(
            'type', 'pgtasks.errors.' || case v_first.state
                when 'cancelled' then 'JobCancelledError'
                when 'expired' then 'JobExpiredError'
                else 'JobFailedError'
            end,
            'message', v_message, 'traceback', '', 'args', jsonb_build_array(v_message)
        );
    end if;

    if v_bundle.kind = 'step' then
        passed_on := v_waited and pgtasks.is_passed_by(v_first.after_bundle_id, v_error ->> 'dependency');
    else
        v_unreached := pgtasks.is_unreached(v_bundle, v_error ->> 'dependency');
        passed_on := v_unreached and pgtasks.is_passed_by(v_bundle.after_bundle_id, v_error ->> 'dependency');
    end if;
    if v_bundle.kind = 'step' or v_unreached then
        error := jsonb_build_object('dependency', v_first.id) || v_error;
        return;
    end if;
    v_message := format(
        'Dependency %s raised %s(%s)',
        v_first.id,
        regexp_replace(v_error ->> 'type', '^.*\.', ''),
        '''' || replace(left(v_error ->> 'message', 1000), '''', '\''') || ''''
    );
    error := jsonb_build_object(
        'dependency', v_first.id, 'type', 'pgtasks.errors.ChordError', 'message', v_message,
        'traceback', v_error -> 'traceback', 'args', jsonb_build_array(v_message)
    );
end
$$;

-- Takes out what waited for a failure that did not come, and all that waits for that, as if it had never been.
create function pgtasks.forget_unneeded(p_ids uuid[]) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := p_ids;
    v_bundle_ids uuid[];
begin
    while cardinality(v_ids) > 0 loop
        with gone as (
            delete from pgtasks.job j where j.id = any(v_ids) and j.state = 'blocked' returning j.bundle_id
        ), around as (
            select g.bundle_id as id from gone g where g.bundle_id is not null
            union
            select b.parent_id
            from gone g
            join pgtasks.job_bundle b on b.id = g.bundle_id
            where b.parent_id is not null
        )
        select coalesce(array_agg(a.id), '{}') into v_bundle_ids from around a;
        delete from pgtasks.job_bundle b where b.id = any(v_bundle_ids);
        v_ids := array(
            select j.id from pgtasks.job j where j.state = 'blocked' and j.after_bundle_id = any(v_bundle_ids) order by j.id
            for update
        );
    end loop;
end
$$;

-- A number among the options of a call, between 0 and a hundred years in seconds. Any client may have written these:
-- what is no number counts as nothing.
create function pgtasks.option_number(p_options jsonb, p_name text) returns double precision
language plpgsql immutable
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_options -> p_name) is distinct from 'number' then
        return null;
    end if;
    return least(greatest((p_options ->> p_name)::numeric, 0), 3155760000)::double precision;
end
$$;

-- The results of a bundle's members, with those in steps of it, in their order: as a JSON array; or why there is none.
--
-- Each of p_takers jobs gets all of it, in the transaction of who finishes the last member: more than 128 MiB in all may
-- take longer than a statement may, and would be tried again for ever.
create function pgtasks.results_of(p_bundle_id uuid, p_takers bigint, out list text, out refusal text)
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_bundle pgtasks.job_bundle;
    v_size bigint;
    v_found bigint;
    v_total bigint;
    v_ids uuid[] := array(
        select p_bundle_id
        union all
        select s.id from pgtasks.job_bundle s where s.parent_id = p_bundle_id and s.kind = 'step'
    );
begin
    select * into v_bundle from pgtasks.job_bundle b where b.id = p_bundle_id;
    select coalesce(sum(octet_length(coalesce(h.result, 'null')) + 1), 0), count(*)
    into v_size, v_found
    from unnest(v_ids) as m (id)
    join pgtasks.job_history h on h.bundle_id = m.id
    where h.stopped_at >= v_bundle.created_at;

    -- A group inside counts as one, and has its results for itself.
    v_total := v_bundle.total - (
        select count(*) from pgtasks.job_bundle g where g.parent_id = p_bundle_id and g.kind = 'group'
    );
    if v_found < v_total then
        refusal := format(
            '%s of %s results of bundle %s are deleted: enqueue its members again', v_total - v_found, v_total,
            p_bundle_id
        );
    elsif v_size > 67108864 then
        refusal := format(
            'the results of bundle %s take %s bytes, at most 67108864 can be handed on: store them elsewhere and '
            'return where they are', p_bundle_id, v_size
        );
    elsif v_size * p_takers > 134217728 then
        refusal := format(
            'the results of bundle %s take %s bytes, at most 134217728 can be handed on to all of %s jobs: store them '
            'elsewhere and return where they are', p_bundle_id, v_size, p_takers
        );
    else
        select '[' || coalesce(string_agg(coalesce(h.result, 'null'), ',' order by h.bundle_index, h.id), '') || ']'
        into list
        from unnest(v_ids) as m (id)
        join pgtasks.job_history h on h.bundle_id = m.id
        where h.stopped_at >= v_bundle.created_at;
    end if;
end
$$;

-- Whether a job ended since it could not get what it takes: see release_waiters.
create function pgtasks.was_refused(p_job pgtasks.job_history) returns boolean
language sql immutable
return p_job.state = 'failed' and p_job.attempt = 0 and p_job.takes is not null and p_job.input is null;

-- Unblocks the jobs that waited for these stopped bundles and hands them what they take; those that are
-- no longer needed leave: what waited for success is cancelled, what waited for failure vanishes, or is cancelled too
-- where the failure lies before.
--
-- Returns the bundles of those that left, for count_down.
create or replace function pgtasks.release_waiters(p_stopped uuid[], out bundle_ids uuid[], out failed boolean[])
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_queues text[];
    v_waiters bigint;
    v_awaited uuid[];
    v_listed uuid[];   -- those whose list of results is taken if they succeeded, and if they failed
    v_listed_failed uuid[];
    v_bundle_id uuid;
    v_takes text;
    v_takers bigint;
    v_failure record;
    v_results record;
    v_gone pgtasks.job[];
    v_more uuid[];
begin
    with locked as materialized (
        select j.after_bundle_id as id, j.after_on, j.takes
        from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = any(p_stopped)
        order by j.id
        for update
    )
    select
        count(*),
        array_agg(distinct l.id),
        array_agg(distinct l.id) filter (where l.takes = 'results' and l.after_on <> 'failure'),
        array_agg(distinct l.id) filter (where l.takes = 'results' and l.after_on <> 'success')
    into v_waiters, v_awaited, v_listed, v_listed_failed
    from locked l;
    if v_waiters = 0 then
        return;
    end if;

    bundle_ids := '{}';
    for v_bundle_id in
        select b.id from pgtasks.job_bundle b where b.id = any(v_awaited) and b.failed > 0 order by b.id
    loop
        select * into v_failure from pgtasks.first_failure(v_bundle_id);
        with gone as (
            delete from pgtasks.job j
            where j.state = 'blocked'
                and j.after_bundle_id = v_bundle_id
                and (
                    j.after_on = 'success'
                    -- Those of what was replaced are for any failure of what is in its place.
                    or j.after_on = 'failure'
                        and v_failure.passed_on
                        and coalesce(pgtasks.option_number(j.options, 'replaced'), 0) >= coalesce(v_failure.replaced, 0)
                )
            returning j as job
        )
        select array_agg(g.job) into v_gone from gone g;
        if v_gone is not null then
            perform pgtasks.archive(v_gone, 'cancelled', 'what it waited for failed', v_failure.error);
            bundle_ids := bundle_ids || array(select j.bundle_id from unnest(v_gone) j where j.bundle_id is not null);
        end if;

        update pgtasks.job j
        set input = to_json(v_failure.job_id)::text
        where j.state = 'blocked' and j.after_bundle_id = v_bundle_id and j.takes = 'error';
    end loop;

    -- The list of results is made once for all that take it. What is too large would end the child that gets it. A single
    -- result has at most 1 MiB, so it is too much for no fewer than 129 jobs.
    for v_bundle_id, v_takes in
        select b.id, 'results'
        from pgtasks.job_bundle b
        where b.id = any(v_awaited)
            and case when b.failed > 0 then b.id = any(v_listed_failed) else b.id = any(v_listed) end
        union all
        select j.after_bundle_id, 'result'
        from pgtasks.job j
        where v_waiters > 128 and j.state = 'blocked' and j.after_bundle_id = any(p_stopped) and j.takes = 'result'
        group by j.after_bundle_id
        having count(*) > 128
        order by 1
    loop
        select count(*) into v_takers
        from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = v_bundle_id and j.takes = v_takes;
        if v_takes = 'result' then
            select
                null::text as list,
                format(
                    'the result of job %s takes %s bytes, at most 134217728 can be handed on to all of %s jobs: store '
                    'it elsewhere and return where it is', h.id, octet_length(h.result), v_takers
                ) as refusal
            into v_results
            from pgtasks.job_history h
            join pgtasks.job_bundle b on b.id = h.bundle_id
            where h.bundle_id = v_bundle_id
                and h.stopped_at >= b.created_at
                and octet_length(h.result) * v_takers > 134217728;
            continue when not found;
        else
            select * into v_results from pgtasks.results_of(v_bundle_id, v_takers);
        end if;
        if v_results.refusal is null then
            update pgtasks.job j
            set input = v_results.list
            where j.state = 'blocked' and j.after_bundle_id = v_bundle_id and j.takes = 'results';
            continue;
        end if;

        with gone as (
            delete from pgtasks.job j
            where j.state = 'blocked' and j.after_bundle_id = v_bundle_id and j.takes = v_takes
            returning j as job
        )
        select array_agg(g.job) into v_gone from gone g;
        perform pgtasks.archive(
            v_gone, 'failed', null,
            jsonb_build_object(
                'type', 'pgtasks.errors.JobFailedError', 'message', v_results.refusal, 'traceback', '',
                'args', jsonb_build_array(v_results.refusal)
            )
        );
        bundle_ids := bundle_ids || array(select j.bundle_id from unnest(v_gone) j where j.bundle_id is not null);
    end loop;

    -- Of the rest, what waited for success gets it.
    with waiter as (
        select
            j.id, j.queue, j.after_bundle_id,
            -- What a call says in seconds counts from here.
            coalesce(now() + pgtasks.option_number(j.options, 'countdown') * interval '1 second', j.start_at) as start_at,
            coalesce(now() + pgtasks.option_number(j.options, 'expires_in') * interval '1 second', j.expires_at) as expires_at
        from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = any(p_stopped)
    ), released as (
        update pgtasks.job j
        set state = case when w.start_at > now() then 'scheduled' else 'ready' end,
            start_at = w.start_at,
            expires_at = w.expires_at,
            seq = nextval('pgtasks.job_seq'),
            input = case j.takes
                when 'result' then (
                    select coalesce(max(h.result), 'null')
                    from pgtasks.job_history h
                    where h.bundle_id = b.id and h.stopped_at >= b.created_at
                )
                else j.input
            end
        from waiter w
        -- By their ids: else all of job_bundle may be read for each.
        join pgtasks.job_bundle b on b.id = any(p_stopped) and b.id = w.after_bundle_id
        where j.id = w.id and j.queue = w.queue and (j.after_on <> 'failure' or b.failed > 0)
        returning j.queue
    )
    select array_agg(distinct r.queue) into v_queues from released r;

    if v_queues is not null then
        perform pgtasks.wake(v_queues);
    end if;

    v_more := array(select j.id from pgtasks.job j where j.state = 'blocked' and j.after_bundle_id = any(p_stopped));
    if cardinality(v_more) > 0 then
        perform pgtasks.forget_unneeded(v_more);
    end if;
    failed := array_fill(true, array[cardinality(bundle_ids)]);
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
--
-- With generic plans: a plan of its own for each list looks cheaper, and to make it takes most of the time (measured: of
-- 1.1 ms for each step of a chain that does not run, 0.7).
create or replace function pgtasks.count_down(p_bundle_ids uuid[], p_failed boolean[]) returns uuid[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_ids uuid[] := p_bundle_ids;
    v_failed boolean[] := p_failed;
    v_parent_ids uuid[];
    v_sure uuid[];
    v_depth integer;
    v_counted uuid[];
    v_level_stopped uuid[];
    v_round_stopped uuid[];
    v_stopped uuid[] := '{}';
begin
    -- Seldom: usually a group is in no other, and what waits for it is a member of none.
    v_parent_ids := array_remove(array(select b.parent_id from pgtasks.job_bundle b where b.id = any(p_bundle_ids)), null);
    if cardinality(v_parent_ids) > 0 or exists (
        select
        from pgtasks.job j
        where j.state = 'blocked' and j.after_bundle_id = any(p_bundle_ids) and j.bundle_id is not null
    ) then
        v_sure := array(
            select b.id
            from unnest(p_bundle_ids, p_failed) as m (id, failed)
            join pgtasks.job_bundle b on b.id = any(p_bundle_ids) and b.id = m.id
            where b.kind = 'step' and not m.failed
        );
        perform from pgtasks.job_bundle b
        where b.id = any(pgtasks.reached_bundles(p_bundle_ids, v_sure))
        order by b.depth desc, b.id
        for update;
    end if;

    loop
        v_round_stopped := '{}';
        loop
            -- Of an empty list the planner may read a whole index, to find nothing.
            exit when coalesce(cardinality(v_ids), 0) = 0;
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
            where b.id = any(v_counted) and b.id = c.id;

            v_level_stopped := array(
                select b.id from pgtasks.job_bundle b where b.id = any(v_counted) and b.stopped_at is not null
            );
            v_round_stopped := v_round_stopped || v_level_stopped;

            -- What is left: the shallower levels, and one for the bundle around each that stopped. That one is around is
            -- asked last: asked of the table it invites a read of all bundles that are in another.
            select array_agg(r.id) filter (where r.id is not null), array_agg(r.failed) filter (where r.id is not null)
            into v_ids, v_failed
            from (
                select m.id, m.failed
                from unnest(v_ids, v_failed) as m (id, failed)
                where not m.id = any(v_counted)
                union all
                select b.parent_id, b.failed > 0
                from pgtasks.job_bundle b
                where b.id = any(v_level_stopped)
            ) r;
        end loop;

        exit when cardinality(v_round_stopped) = 0;
        v_stopped := v_stopped || v_round_stopped;
        select w.bundle_ids, w.failed into v_ids, v_failed from pgtasks.release_waiters(v_round_stopped) w;
    end loop;

    if cardinality(v_stopped) > 0 and exists (select from pgtasks.listener) and pgtasks.may_notify() then
        perform pg_notify('pgtasks_job_bundle_stopped', string_agg(s.id::text, ',' order by s.n))
        from (
            select b.id, row_number() over () as n
            from pgtasks.job_bundle b
            where b.id = any(v_stopped) and b.kind = 'group'
        ) s
        group by s.n / 200;   -- 200 ids are 7,400 bytes; a payload ends at 8,000
    end if;
    return v_stopped;
end
$$;

-- Counts members into their bundles again; one that had stopped is open then, and so are those around it, in which it
-- counts as a member again. p_bundle_ids has one entry a member, p_failed says how that member had ended.
--
-- All at once, and then those around them: by levels of depth, as count_down must, the retry of a chain of 4,000 steps
-- took 13 s (now 0.2).
create or replace function pgtasks.count_up(p_bundle_ids uuid[], p_failed boolean[]) returns void
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := p_bundle_ids;
    v_failed boolean[] := p_failed;
    v_parent_ids uuid[];
    v_parents_failed boolean[];
begin
    while cardinality(v_ids) > 0 loop
        perform from pgtasks.job_bundle b where b.id = any(v_ids) order by b.depth desc, b.id for update;

        select array_agg(b.parent_id) filter (where b.parent_id is not null), array_agg(b.failed > 0) filter (where b.parent_id is not null)
        into v_parent_ids, v_parents_failed
        from pgtasks.job_bundle b
        where b.id = any(v_ids) and b.stopped_at is not null;

        update pgtasks.job_bundle b
        set remaining = b.remaining + c.members,
            failed = b.failed - c.failures,
            stopped_at = null
        from (
            select m.id, count(*)::integer as members, (count(*) filter (where m.failed))::integer as failures
            from unnest(v_ids, v_failed) as m (id, failed)
            group by m.id
        ) c
        where b.id = any(v_ids) and b.id = c.id;

        v_ids := v_parent_ids;
        v_failed := v_parents_failed;
    end loop;
end
$$;

-- Opens many bundles; what is after p_step there is after p_place, and a group that is after nothing is after what the
-- replaced job had waited for. Of those that are stopped already nothing will ever be counted: they are empty.
create function pgtasks.insert_bundles(
    p_bundles jsonb, p_depth integer, p_step uuid, p_place uuid, p_after_bundle_id uuid, p_after_on text
) returns void
language plpgsql
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    insert into pgtasks.job_bundle (
        id, kind, type, origin, parent_id, root_id, after_bundle_id, after_on, depth, total, remaining, stopped_at
    )
    select
        b.id, b.kind, b.type, b.origin, b.parent_id, b.root_id,
        case
            when b.after_bundle_id = p_step then p_place
            when b.kind = 'group' then coalesce(b.after_bundle_id, p_after_bundle_id)
        end,
        case when b.kind = 'group' then coalesce(b.after_on, p_after_on) end,
        b.depth + p_depth, b.total, b.total, case when b.total = 0 then now() end
    from jsonb_to_recordset(p_bundles) as b (
        id uuid, kind text, type text, origin text, parent_id uuid, root_id uuid, after_bundle_id uuid, after_on text,
        depth integer, total integer
    );
end
$$;

-- Puts a graph in the place of a running job: the row becomes the graph's last job, under its own id and in its own
-- bundle, so that whoever waits for it waits on. Returns whether it did: not if the token is another, nor if a
-- cancel was requested.
--
-- p_graph: `bundles`; `jobs`; `last`, the job that takes the place; `step`, the bundle that callbacks of it
-- wait for, or null, and `step_depth`, its depth among the bundles.
create function pgtasks.replace_job(p_queue text, p_id uuid, p_token uuid, p_graph jsonb) returns boolean
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
            || case when n.after_bundle_id is null then v_inherited else '{}' end,
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
begin
    -- A batch of one queue without a retry is written in the order of its ids; others are locked so before.
    if 'retry' = any(p_outcome) or 'replace' = any(p_outcome) or p_queue[1] <> any(p_queue) then
        perform from pgtasks.job j where j.id = any(p_id) and j.token = any(p_token) order by j.id for update;
    end if;

    if 'replace' = any(p_outcome) then
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
        select f.ids, f.retried, f.bundle_ids, f.failed
        into v_ids, v_queue_retried, v_bundle_ids, v_failed
        from pgtasks.finish_queue(
            v_queue, p_queue, p_id, p_token, v_outcome, p_result, p_error, p_delay, p_age, p_keep
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

-- Makes room for more members in a group that is open, for jobs that are inserted in the same transaction. Of a step
-- the group is meant that it is in. Returns the group, how many members there were, and its depth; no row if it is not
-- open.
create function pgtasks.grow_group(p_bundle_id uuid, p_members integer)
returns table (id text, total integer, depth integer)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    update pgtasks.job_bundle g
    set total = g.total + p_members, remaining = g.remaining + p_members
    from pgtasks.job_bundle b
    where b.id = p_bundle_id
        and g.id = case b.kind when 'group' then b.id else b.parent_id end
        and g.stopped_at is null
    returning g.id::text, g.total - p_members, g.depth;
end
$$;

-- Starts failed graphs again from where they broke: what failed in these bundles, or before them, is ready again; what
-- did not run because of it waits again, there and in all that follows; callbacks for failure that ran are armed
-- again. What succeeded is left alone. Returns the jobs that are ready again.
--
-- What was cancelled while it waited, of these bundles, waits again too, and so do a job in no bundle that waited for one
-- of these, and what could not get the results that it takes; and what did not run for something that has been reset and
-- has succeeded since gets what it waited for.
create function pgtasks.retry_failed(p_bundle_ids uuid[]) returns setof text
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
-- before it had what it takes, has nothing to run with: see retry_failed.
create or replace function pgtasks.reset_finished(p_ids uuid[], p_since timestamptz)
returns table (id text, bundle_id text, failed boolean)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with locked as materialized (
        select h.id, h.queue, h.stopped_at
        from pgtasks.job_history h
        where h.id = any(p_ids)
            and h.stopped_at >= p_since
            and h.reason is distinct from 'what it waited for failed'
            and not (h.state = 'cancelled' and h.attempt = 0 and h.takes is not null and h.input is null)
            and not pgtasks.was_refused(h)
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

-- Forgets finished jobs that fit every condition that is not null, in a batch; never a member of an open bundle.
create or replace function pgtasks.delete_history(
    p_states text[], p_task text, p_queue text, p_origin text, p_stopped_before timestamptz, p_limit integer
) returns integer
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
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
            and not exists (select from pgtasks.open_bundle b where b.id = f.bundle_id)
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

-- Takes jobs out that wait, by id order; the running ones stay, and either the blocked ones or, if said, the others. Their
-- bundles are for the caller to count down.
--
-- The caller has locked those that are not blocked (lock_unblocked), and here locks the blocked ones after their bundles.
-- One that was released meanwhile belongs before all that: it is taken only if nobody else has it, for who does may wait
-- for a job or a bundle that the caller holds.
create or replace function pgtasks.cancel_waiting(p_ids uuid[], p_blocked boolean, p_reason text)
returns table (id text, bundle_id text)
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_gone pgtasks.job[];
begin
    with locked as materialized (
        select j.id, j.queue
        from pgtasks.job j
        where p_blocked and j.id = any(p_ids) and j.token is null and j.state = 'blocked'
        order by j.id
        for update
    ), released as materialized (
        select j.id, j.queue
        from pgtasks.job j
        where j.id = any(p_ids) and j.token is null and j.state <> 'blocked'
        for update skip locked
    ), gone as (
        delete from pgtasks.job j
        using (select * from locked union all select * from released) l
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

-- Forgets stopped bundles with the steps inside them, and their finished members; never a step of an open group, which
-- still needs its result.
create or replace function pgtasks.delete_bundles(p_ids uuid[]) returns setof text
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
begin
    return query
    with stopped as materialized (
        select b.id
        from pgtasks.job_bundle b
        where (
                b.id = any(p_ids)
                or b.parent_id = any(array(select p.id from pgtasks.job_bundle p where p.id = any(p_ids) and p.stopped_at is not null))
            )
            and b.stopped_at is not null
            and not exists (select from pgtasks.job_bundle g where g.id = b.parent_id and g.stopped_at is null)
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
    select g.id::text from gone g where g.id = any(p_ids);
end
$$;

-- Creates the partitions of the history for today and the days to come, and drops those whose last row
-- is older than p_keep. Members are as old as their bundle: they move to the default partition before a drop if it is
-- open or stopped since, so that it never loses results; and so does what broke before them, for retry_failed. One
-- process at a time; gives up at once where it would have to wait.
--
-- Returns what it created and dropped, or null if another process is at it.
create or replace function pgtasks.maintain_history(p_keep interval, p_ahead integer default 3) returns text[]
language plpgsql
security definer
set search_path = pgtasks, pg_catalog, pg_temp
as $$
declare
    v_today date := (now() at time zone 'UTC')::date;
    v_since timestamptz := now() - p_keep;
    v_broken uuid[];
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

    -- Failed bundles that are kept, and those before them for which something in them did not run: few.
    v_broken := array(
        with recursive broken as (
            select b.id
            from pgtasks.job_bundle b
            left join pgtasks.job_bundle g on g.id = b.parent_id
            where b.created_at < v_since
                and b.failed > 0
                and (
                    coalesce(b.stopped_at, v_since) >= v_since
                    or g.id is not null and coalesce(g.stopped_at, v_since) >= v_since
                )
            union
            select h.after_bundle_id
            from broken r
            join pgtasks.job_history h on h.bundle_id = r.id
            where h.state = 'cancelled' and h.attempt = 0 and h.after_on = 'success' and h.after_bundle_id is not null
        )
        select r.id from broken r
    );
    for v_name, v_day in
        select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'pgtasks.job_history'::regclass and c.relname ~ '^job_history_[0-9]{8}$'
    loop
        v_to := (v_day + 1)::timestamp at time zone 'UTC';
        continue when v_to > v_since;
        execute format('alter table pgtasks.job_history detach partition pgtasks.%I', v_name);
        -- Of those that stopped only what began before: few, found by their index.
        execute format(
            'insert into pgtasks.job_history_default '
            'select h.* from pgtasks.%I h join ('
            '    select o.id from pgtasks.open_bundle o '
            '    union '
            '    select b.id from pgtasks.job_bundle b left join pgtasks.job_bundle g on g.id = b.parent_id '
            '    where b.created_at < %L and (b.stopped_at >= %L or g.stopped_at >= %L) '
            '    union '
            '    select unnest(%L::uuid[])'
            ') k on k.id = h.bundle_id',
            v_name, v_to, v_since, v_since, v_broken
        );
        execute format('drop table pgtasks.%I', v_name);
        v_done := v_done || ('dropped ' || v_name);
    end loop;

    delete from pgtasks.job_history_default h
    where h.stopped_at < v_since
        and (h.bundle_id = any(v_broken)) is not true
        and not exists (
            select
            from pgtasks.job_bundle b
            left join pgtasks.job_bundle g on g.id = b.parent_id
            where b.id = h.bundle_id
                and (coalesce(b.stopped_at, v_since) >= v_since or g.id is not null and coalesce(g.stopped_at, v_since) >= v_since)
        );
    delete from pgtasks.job_bundle b
    where b.stopped_at < v_since
        and not b.id = any(v_broken)
        and not exists (
            select from pgtasks.job_bundle g where g.id = b.parent_id and coalesce(g.stopped_at, v_since) >= v_since
        );
    return v_done;
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
