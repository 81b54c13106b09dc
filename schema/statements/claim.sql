-- name: claim_jobs
-- Takes up to `limit` ready jobs of one queue and records them under the token: never more, none twice.
select
    id, seq, priority, task, args, kwargs, input, attempt, crashes, options, bundle_id, bundle_index, parent_id,
    root_id, origin, created_at, start_at, expires_at, expired, attempts, %(queue)s::text
from pgtasks.claim_jobs(
    %(queue)s::text, %(tasks)s::text[], %(high)s::integer[], %(low)s::integer[], %(after)s::bigint[], %(limit)s::integer,
    %(token)s::uuid, %(worker_id)s::bigint
)

-- name: look
-- Says of each queue whether a job is ready, and in how many seconds the next scheduled one is due
-- (negative: overdue; null: none). Reads only.
select
    q.queue,
    exists (
        select from pgtasks.job j
        where j.queue = q.queue and j.state = 'ready' and j.token is null and j.task = any(%(tasks)s::text[])
    ),
    extract(epoch from (
        select j.start_at from pgtasks.job j
        where j.queue = q.queue and j.state = 'scheduled'
        order by j.start_at
        limit 1
    ) - now())::float8
from unnest(%(queues)s::text[]) as q (queue)

-- name: promote_jobs
-- Makes due jobs of one queue ready, at most `limit`; each takes a new seq, ahead of every cursor.
update pgtasks.job j
set state = 'ready', seq = nextval('pgtasks.job_seq')
where j.queue = %(queue)s
    and j.id = any(array(
        select d.id
        from pgtasks.job d
        where d.queue = %(queue)s and d.state = 'scheduled' and d.start_at <= now()
        order by d.start_at
        limit %(limit)s::integer
        for update skip locked
    ))
