-- name: claim_jobs
-- Takes up to `limit` ready jobs of one queue and records them under the token: never more, none twice.
select
    id, seq, priority, task, args, kwargs, input, attempt, crashes, options, bundle_id, bundle_index, parent_id,
    root_id, origin, created_at, start_at, expires_at, expired, attempts, %(queue)s::text
from pgtasks.claim_jobs(
    %(queue)s::text, %(tasks)s::text[], %(high)s::integer[], %(low)s::integer[], %(after)s::bigint[], %(limit)s::integer,
    %(token)s::uuid, %(worker_id)s::bigint, %(at_most_once)s::boolean
)

-- name: ready_priorities
-- Says of which priorities one queue has something ready, highest first, at most `limit`, and their last seq. Reads only.
select priority, last_seq from pgtasks.ready_priorities(%(queue)s::text, %(limit)s::integer)

-- name: look
-- Says of each queue whether a job is ready (null for the hot ones), and in how many seconds the next scheduled one
-- is due. Reads only.
select queue, ready, due_in from pgtasks.look(%(queues)s::text[], %(tasks)s::text[], %(hot)s::text[])

-- name: promote_jobs
-- Makes due jobs of one queue ready, at most `limit`.
select pgtasks.promote_jobs(%(queue)s::text, %(limit)s::integer)
