-- name: finish_jobs
-- Writes a batch of outcomes back in one transaction; returns the ids that still carried their token.
select pgtasks.finish_jobs(
    %(queue)s::text[], %(id)s::uuid[], %(token)s::uuid[], %(outcome)s::text[], %(result)s::text[],
    %(error)s::jsonb[], %(delay)s::float8[], %(age)s::float8[], %(keep)s::boolean[], %(claims)s::uuid[]
)

-- name: finish_succeeded
-- Writes successes of plain jobs of one queue back, like finish_jobs; returns the ids that no longer carried their token.
select pgtasks.finish_succeeded(
    %(queue)s::text, %(id)s::uuid[], %(token)s::uuid[], %(result)s::text[], %(age)s::float8[], %(keep)s::boolean,
    %(claims)s::uuid[]
)

-- name: release_jobs
-- Gives claimed jobs of one queue back unrun: the attempt does not count, their place in line stays.
select pgtasks.release_jobs(%(queue)s, %(id)s::uuid[], %(token)s::uuid[], '{}')

-- name: crash_jobs
-- Makes jobs of one queue whose child died ready again and charges them a crash; the attempt counts.
-- `error` says of each what its crash looked like.
select pgtasks.release_jobs(%(queue)s, %(id)s::uuid[], %(token)s::uuid[], %(id)s::uuid[], %(error)s::jsonb[])

-- name: record_progress
-- Writes how far running jobs are, said `age` seconds ago; those that no longer carry the token are left out.
select pgtasks.record_progress(%(id)s::uuid[], %(token)s::uuid[], %(progress)s::jsonb[], %(age)s::float8[])

-- name: lock_held
-- Waits for whoever else writes a job, and returns a row if it still carries the token.
select pgtasks.lock_held(%(queue)s::text, %(id)s::uuid, %(token)s::uuid)

-- name: delete_claims
-- Forgets claim batches of which nothing is left.
select pgtasks.delete_claims(%(claims)s::uuid[])

-- name: release_lost_claims
-- Gives back what was claimed for this worker by a statement whose reply was lost: claims that it does
-- not know of.
select pgtasks.release_lost_claims(%(worker_id)s::bigint, %(known)s::uuid[])

-- name: limit_wait
-- Lets a statement of this transaction wait for 5 seconds at most: for one that a lost session has open.
select set_config('statement_timeout', '5s', true)
