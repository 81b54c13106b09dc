-- name: lock_unblocked
-- Locks jobs that wait or run, by id: before waiting and running ones are written one after the other.
select from pgtasks.job where id = any(%(ids)s::uuid[]) and state <> 'blocked' order by id for update

-- name: cancel_waiting
-- Takes jobs out that wait, by id order; the running ones stay, and the blocked ones unless said.
with locked as materialized (
    select j.id, j.queue
    from pgtasks.job j
    where j.id = any(%(ids)s::uuid[]) and j.token is null and (%(blocked)s or j.state <> 'blocked')
    order by j.id
    for update
), gone as (
    delete from pgtasks.job j
    using locked l
    where j.id = l.id and j.queue = l.queue and j.token is null
    returning j as job
), written as (
    select pgtasks.archive(array_agg(g.job), 'cancelled', %(reason)s) from gone g having count(*) > 0
)
select (g.job).id::text, (g.job).bundle_id::text, (select count(*) from written)
from gone g

-- name: request_cancel
-- Flags running jobs: a success still counts, a retry or a rescue becomes cancelled; interrupts them if `terminate`.
select pgtasks.request_cancel(%(ids)s::uuid[], %(terminate)s::boolean)

-- name: count_down
-- Counts members out of their bundles.
select pgtasks.count_down(%(bundle_ids)s::uuid[], %(failed)s::boolean[])

-- name: delete_finished
-- Forgets finished jobs by id.
delete from pgtasks.job_history
where id = any(%(ids)s::uuid[]) and stopped_at >= %(since)s::timestamptz
returning id::text

-- name: delete_history
-- Forgets finished jobs that fit, in a batch; never a member of an open bundle.
with gone as (
    delete from pgtasks.job_history h
    where (h.id, h.queue, h.stopped_at) in (
        select f.id, f.queue, f.stopped_at
        from pgtasks.job_history f
        where (%(states)s::text[] is null or f.state = any(%(states)s::text[]))
            and (%(task)s::text is null or f.task = %(task)s)
            and (%(queue)s::text is null or f.queue = %(queue)s)
            and (%(origin)s::text is null or f.origin = %(origin)s)
            and (%(stopped_before)s::timestamptz is null or f.stopped_at < %(stopped_before)s)
            and not exists (select from pgtasks.job_bundle b where b.id = f.bundle_id and b.stopped_at is null)
        limit %(limit)s::integer
    )
    returning 1
)
select count(*)::integer from gone

-- name: reset_finished
-- Makes finished jobs ready again from their first attempt; what happened before stays in `attempts`.
with gone as (
    delete from pgtasks.job_history
    where id = any(%(ids)s::uuid[]) and stopped_at >= %(since)s::timestamptz
    returning *
), reset as (
    insert into pgtasks.job (
        id, queue, priority, created_at, task, args, kwargs, options, origin, parent_id, root_id,
        bundle_id, bundle_index, after_bundle_id, after_on, takes, input, attempts
    )
    select
        g.id, g.queue, g.priority, g.created_at, g.task, g.args, g.kwargs, g.options, g.origin, g.parent_id,
        g.root_id, g.bundle_id, g.bundle_index, g.after_bundle_id, g.after_on, g.takes, g.input,
        coalesce(g.attempts, '[]') || jsonb_build_object(
            'attempt', g.attempt, 'worker_id', g.worker_id, 'started_at', g.started_at,
            'stopped_at', g.stopped_at, 'error', g.error
        )
    from gone g
    order by g.id
)
select g.id::text, g.bundle_id::text, g.state <> 'succeeded' from gone g

-- name: count_up
-- Counts members into their bundles again.
select pgtasks.count_up(%(bundle_ids)s::uuid[], %(failed)s::boolean[])

-- name: get_blocked
-- Which of these jobs wait for a bundle, and the bundles that they are members of.
select id::text, bundle_id::text
from pgtasks.job
where id = any(%(ids)s::uuid[]) and state = 'blocked'

-- name: lock_bundles
-- Locks bundles and those around them, deepest first, by id: who adds, resets or removes members does this
-- before touching blocked jobs.
with recursive family as (
    select b.id, b.parent_id from pgtasks.job_bundle b where b.id = any(%(ids)s::uuid[])
    union
    select b.id, b.parent_id from pgtasks.job_bundle b join family f on b.id = f.parent_id
)
select b.id::text, b.stopped_at is not null
from pgtasks.job_bundle b
where b.id = any(array(select f.id from family f))
order by b.depth desc, b.id
for update

-- name: get_finished_members
-- Members of a bundle that are finished, or only those without success.
select id::text
from pgtasks.job_history
where bundle_id = any(%(ids)s::uuid[]) and (not %(unsuccessful)s or state <> 'succeeded')

-- name: get_live_members
-- Members of bundles that are not finished.
select id::text from pgtasks.job where bundle_id = any(%(ids)s::uuid[])

-- name: delete_bundles
-- Forgets stopped bundles and their finished members.
with gone as (
    delete from pgtasks.job_bundle
    where id = any(%(ids)s::uuid[]) and stopped_at is not null
    returning id
), members as (
    delete from pgtasks.job_history h
    using gone g
    where h.bundle_id = g.id
)
select id::text from gone

-- name: list_stopped_bundles
-- Stopped bundles that fit, oldest first.
select id::text
from pgtasks.job_bundle
where stopped_at is not null
    and (%(type)s::text is null or type = %(type)s)
    and (%(origin)s::text is null or origin = %(origin)s)
    and (%(stopped_before)s::timestamptz is null or stopped_at < %(stopped_before)s)
order by id
limit %(limit)s::integer

-- name: list_waiting_ids
-- Ids of jobs of some queues that no worker has taken.
select id::text
from pgtasks.job
where queue = any(%(queues)s::text[]) and token is null
order by id
limit %(limit)s::integer
