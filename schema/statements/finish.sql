-- name: finish_jobs
-- Writes a batch of outcomes back in one transaction; returns the ids that still carried their token.
select pgtasks.finish_jobs(
    %(queue)s::text[], %(id)s::uuid[], %(token)s::uuid[], %(outcome)s::text[], %(result)s::text[],
    %(error)s::jsonb[], %(delay)s::float8[], %(age)s::float8[], %(keep)s::boolean[], %(claims)s::uuid[]
)

-- name: release_jobs
-- Gives claimed jobs of one queue back unrun: the attempt does not count, their place in line stays.
update pgtasks.job j
set token = null, worker_id = null, started_at = null, attempt = j.attempt - 1
from unnest(%(id)s::uuid[], %(token)s::uuid[]) as r (id, token)
where j.queue = %(queue)s and j.id = r.id and j.token = r.token

-- name: crash_jobs
-- Makes jobs of one queue whose child died ready again and charges them a crash; the attempt counts.
update pgtasks.job j
set token = null, worker_id = null, started_at = null, crashes = j.crashes + 1
from unnest(%(id)s::uuid[], %(token)s::uuid[]) as r (id, token)
where j.queue = %(queue)s and j.id = r.id and j.token = r.token

-- name: delete_claims
-- Forgets claim batches of which nothing is left.
delete from pgtasks.claim where token = any(%(claims)s::uuid[])

-- name: release_lost_claims
-- Gives back what was claimed for this worker by a statement whose reply was lost: claims that it does
-- not know of.
with lost as (
    delete from pgtasks.claim c
    where c.worker_id = %(worker_id)s::bigint and not c.token = any(%(known)s::uuid[])
    returning c.queue, c.token, c.job_ids
)
update pgtasks.job j
set token = null, worker_id = null, started_at = null, attempt = j.attempt - 1
from lost
where j.queue = lost.queue and j.id = any(lost.job_ids) and j.token = lost.token
