-- name: lock_unblocked
-- Locks jobs that wait or run, by id: before waiting and running ones are written one after the other.
select pgtasks.lock_unblocked(%(ids)s::uuid[])

-- name: cancel_waiting
-- Takes jobs out that wait, by id order; the running ones stay, and the blocked ones unless said.
select id, bundle_id
from pgtasks.cancel_waiting(%(ids)s::uuid[], %(blocked)s::boolean, %(reason)s)

-- name: request_cancel
-- Flags running jobs: a success still counts, a retry or a rescue becomes cancelled; interrupts them if `terminate`.
select pgtasks.request_cancel(%(ids)s::uuid[], %(terminate)s::boolean)

-- name: count_down
-- Counts members out of their bundles.
select pgtasks.count_down(%(bundle_ids)s::uuid[], %(failed)s::boolean[])

-- name: delete_finished
-- Forgets finished jobs by id.
select pgtasks.delete_finished(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: delete_history
-- Forgets finished jobs that fit, in a batch; never a member of an open bundle.
select pgtasks.delete_history(
    %(states)s::text[], %(task)s, %(queue)s, %(origin)s, %(stopped_before)s::timestamptz, %(limit)s::integer
)

-- name: reset_finished
-- Makes finished jobs ready again from their first attempt; what happened before stays in `attempts`.
select id, bundle_id, failed
from pgtasks.reset_finished(%(ids)s::uuid[], %(since)s::timestamptz)

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
select id, stopped from pgtasks.lock_bundles(%(ids)s::uuid[])

-- name: get_finished_members
-- Members of bundles, with those in steps of them, that are finished.
select id::text
from pgtasks.job_history
where bundle_id = any(%(ids)s::uuid[])
    or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = any(%(ids)s::uuid[])))

-- name: get_live_members
-- Members of bundles that are not finished, and the jobs that these wait for, and so on.
with recursive member as (
    select j.id, j.after_bundle_id
    from pgtasks.job j
    where j.bundle_id = any(%(ids)s::uuid[])
        or j.bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = any(%(ids)s::uuid[])))
    union
    select j.id, j.after_bundle_id
    from member m
    join pgtasks.job_bundle b on m.after_bundle_id in (b.id, b.parent_id)
    join pgtasks.job j on j.bundle_id = b.id
)
select m.id::text from member m

-- name: retry_failed
-- Starts failed graphs again from where they broke; returns the jobs that are ready again.
select pgtasks.retry_failed(%(ids)s::uuid[])

-- name: delete_bundles
-- Forgets stopped bundles and their finished members.
select pgtasks.delete_bundles(%(ids)s::uuid[])

-- name: list_stopped_bundles
-- Stopped bundles that fit, oldest first.
select id::text
from pgtasks.job_bundle
where stopped_at is not null
    and kind = 'group'
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

-- name: reschedule_job
-- Gives a job that waits another time, priority or queue; null if it does not wait.
select pgtasks.reschedule_job(
    %(id)s::uuid, %(start_at)s::timestamptz, %(delay)s::float8, %(now)s::boolean, %(priority)s::integer, %(queue)s::text
)

-- name: pause_queue
-- Holds a queue for all workers.
select pgtasks.pause_queue(%(name)s::text, %(by)s::text, %(reason)s::text)

-- name: resume_queue
-- Lets a queue go on; says whether it was paused.
select pgtasks.resume_queue(%(name)s::text)

-- name: limit_queue
-- Sets those limits of a queue that stand in `set`; null is none.
select pgtasks.limit_queue(
    %(name)s::text, %(set)s::text[], %(max_running)s::integer, %(rate)s::float8, %(burst)s::integer, %(ageing)s::float8,
    %(by)s::text
)

-- name: reset_limits
-- Gives the limits of a queue back to the code; says whether an operator had set any.
select pgtasks.reset_limits(%(name)s::text)

-- name: pause_task
-- Holds a task that workers have published; says whether there is one.
select pgtasks.pause_task(%(name)s::text, %(by)s::text, %(reason)s::text)

-- name: resume_task
-- Lets a task go on; says whether it was paused.
select pgtasks.resume_task(%(name)s::text)

-- name: move_jobs
-- Moves jobs that no worker has taken to another queue, at most `limit`; returns which, and which stay since another job
-- has their unique key there.
select id, holder
from pgtasks.move_jobs(
    %(from)s::text, %(to)s::text, %(ids)s::uuid[], %(task)s::text, %(without)s::uuid[], %(limit)s::integer
)
