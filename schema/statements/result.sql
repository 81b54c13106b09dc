-- name: get_outcomes
-- State, result, error and progress of jobs; `since` is an hour before the oldest id's time, to prune partitions.
select id, state, attempt, result, error, progress::text
from pgtasks.get_outcomes(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: forget_results
-- Drops the results of finished jobs; the jobs stay.
select pgtasks.forget_results(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: get_bundle_members
-- The members of a bundle in their order, with those in steps of it.
select id::text
from pgtasks.jobs
where bundle_id = %(id)s::uuid
    or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(id)s::uuid and s.kind = 'step'))
order by bundle_index, id

-- name: count_bundle_members
-- How many members are in each state, with those in steps of it.
select state, count(*)
from pgtasks.jobs
where bundle_id = %(id)s::uuid
    or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(id)s::uuid and s.kind = 'step'))
group by state

-- name: get_states
-- Where jobs are, without their results.
select id, state
from pgtasks.get_outcomes(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: get_parent
-- What a job waits or waited for: the only job of a step, or a group; no row if it waits for nothing, or nothing is kept.
with bundle as (
    select b.id, b.kind
    from pgtasks.job_bundle b
    where b.id = (
        select j.after_bundle_id
        from pgtasks.jobs j
        where j.id = %(id)s::uuid and (j.stopped_at is null or j.stopped_at >= %(since)s::timestamptz)
    )
)
select true as is_group, b.id::text, null as task
from bundle b
where b.kind = 'group'
union all
select false, j.id::text, j.task
from pgtasks.jobs j
where j.bundle_id = (select b.id from bundle b where b.kind = 'step')

-- name: get_children
-- The jobs that these enqueued or that follow them, oldest first, with the group that they are members of.
-- By the graphs, which are found by their roots; a job without one is the root of what it enqueues.
select
    j.parent_id::text,
    j.id::text,
    j.task,
    (
        select case b.kind when 'step' then b.parent_id else b.id end::text
        from pgtasks.job_bundle b
        where b.id = j.bundle_id
    ) as group_id
from pgtasks.jobs j
where j.id = any(array(
        select pgtasks.graph_jobs(root.id)
        from (
            -- A look each, so that no plan joins all of the history.
            select distinct coalesce(
                (
                    select p.root_id
                    from pgtasks.jobs p
                    where p.id = i.id and (p.stopped_at is null or p.stopped_at >= %(since)s::timestamptz)
                ),
                i.id
            ) as id
            from unnest(%(ids)s::uuid[]) as i (id)
        ) as root
    ))
    and j.parent_id = any(%(ids)s::uuid[])
    and (j.stopped_at is null or j.stopped_at >= %(since)s::timestamptz)
order by j.id
