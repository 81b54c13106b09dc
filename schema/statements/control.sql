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
-- Members of a bundle that are finished, or only those without success.
select id::text
from pgtasks.job_history
where bundle_id = any(%(ids)s::uuid[]) and (not %(unsuccessful)s or state <> 'succeeded')

-- name: get_live_members
-- Members of bundles that are not finished.
select id::text from pgtasks.job where bundle_id = any(%(ids)s::uuid[])

-- name: delete_bundles
-- Forgets stopped bundles and their finished members.
select pgtasks.delete_bundles(%(ids)s::uuid[])

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
