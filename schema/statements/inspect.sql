-- name: get_jobs
-- Whole rows by id, live or finished; `since` is an hour before the oldest id's time.
select
    id::text, queue, state, priority, created_at, start_at, expires_at, started_at, stopped_at, task, args, kwargs,
    options, origin, parent_id::text, root_id::text, bundle_id::text, bundle_index, after_bundle_id::text, reason,
    cancel_requested, crashes, attempts, attempt, worker_id, result, error, progress::text, after_on, takes
from pgtasks.jobs
where id = any(%(ids)s::uuid[]) and (stopped_at is null or stopped_at >= %(since)s::timestamptz)

-- name: list_jobs
-- Jobs that fit every condition that is not null, newest id first; `before_id` turns the page.
select
    id::text, queue, state, priority, created_at, start_at, expires_at, started_at, stopped_at, task, args, kwargs,
    options, origin, parent_id::text, root_id::text, bundle_id::text, bundle_index, after_bundle_id::text, reason,
    cancel_requested, crashes, attempts, attempt, worker_id, result, error, progress::text, after_on, takes
from pgtasks.jobs
where (%(states)s::text[] is null or state = any(%(states)s::text[]))
    and (%(task)s::text is null or task = %(task)s)
    and (%(queue)s::text is null or queue = %(queue)s)
    and (%(origin)s::text is null or origin = %(origin)s)
    and (
        %(bundle_id)s::uuid is null
        or bundle_id = %(bundle_id)s::uuid
        or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(bundle_id)s::uuid and s.kind = 'step'))
    )
    and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
    and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
    and (%(started_before)s::timestamptz is null or started_at < %(started_before)s)
    and (%(stopped_before)s::timestamptz is null or stopped_at < %(stopped_before)s)
    and (%(error)s::text is null or error->>'type' = %(error)s or strpos(error->>'message', %(error)s) > 0)
    and (%(low_id)s::uuid is null or id >= %(low_id)s::uuid)
    and (%(high_id)s::uuid is null or id <= %(high_id)s::uuid)
    and (%(before_id)s::uuid is null or id < %(before_id)s::uuid)
order by id desc
limit %(limit)s::integer

-- name: get_graph
-- All jobs of the graph that a job belongs to, live and finished, oldest first; of an unknown job none.
select
    j.id::text, j.queue, j.state, j.priority, j.created_at, j.start_at, j.expires_at, j.started_at, j.stopped_at,
    j.task, j.args, j.kwargs, j.options, j.origin, j.parent_id::text, j.root_id::text, j.bundle_id::text,
    j.bundle_index, j.after_bundle_id::text, j.reason, j.cancel_requested, j.crashes, j.attempts, j.attempt,
    j.worker_id, j.result, j.error, j.progress::text, j.after_on, j.takes
from pgtasks.jobs j
where j.id = any(array(
    select pgtasks.graph_jobs(coalesce(p.root_id, p.id))
    from pgtasks.jobs p
    where p.id = %(id)s::uuid and (p.stopped_at is null or p.stopped_at >= %(since)s::timestamptz)
))
order by j.id

-- name: count_graph
-- How many jobs of the graph that a job belongs to are in each state.
select j.state, count(*)
from pgtasks.jobs j
where j.id = any(array(
    select pgtasks.graph_jobs(coalesce(p.root_id, p.id))
    from pgtasks.jobs p
    where p.id = %(id)s::uuid and (p.stopped_at is null or p.stopped_at >= %(since)s::timestamptz)
))
group by j.state

-- name: list_waiters
-- Jobs that wait for a bundle, or waited for it, oldest first.
select
    id::text, queue, state, priority, created_at, start_at, expires_at, started_at, stopped_at, task, args, kwargs,
    options, origin, parent_id::text, root_id::text, bundle_id::text, bundle_index, after_bundle_id::text, reason,
    cancel_requested, crashes, attempts, attempt, worker_id, result, error, progress::text, after_on, takes
from pgtasks.jobs
where id = any(array(select pgtasks.bundle_waiters(%(id)s::uuid, %(limit)s::integer)))
order by id

-- name: list_unsuccessful_members
-- Members of a bundle, with those in steps of it, that ended without success, in their order.
select
    id::text, queue, state, priority, created_at, start_at, expires_at, started_at, stopped_at, task, args, kwargs,
    options, origin, parent_id::text, root_id::text, bundle_id::text, bundle_index, after_bundle_id::text, reason,
    cancel_requested, crashes, attempts, attempt, worker_id, result, error, progress::text, after_on, takes
from pgtasks.jobs
where (
        bundle_id = %(id)s::uuid
        or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(id)s::uuid and s.kind = 'step'))
    )
    and stopped_at is not null
    and state <> 'succeeded'
order by bundle_index, id
limit %(limit)s::integer

-- name: count_jobs
-- How many jobs are in each state, by queue.
select queue, state, count(*)
from pgtasks.jobs
group by queue, state
order by queue, state

-- name: count_bundles
-- How many bundles run, succeeded and failed.
select
    count(*) filter (where stopped_at is null),
    count(*) filter (where stopped_at is not null and failed = 0),
    count(*) filter (where stopped_at is not null and failed > 0)
from pgtasks.job_bundle
where kind = 'group'

-- name: list_bundles
-- Groups, or any bundles by their ids, that fit every condition that is not null, newest id first.
select id::text, type, origin, total, remaining, failed, created_at, stopped_at, kind, parent_id::text
from pgtasks.job_bundle
where case when %(ids)s::uuid[] is null then kind = 'group' else id = any(%(ids)s::uuid[]) end
    and (%(type)s::text is null or type = %(type)s)
    and (%(origin)s::text is null or origin = %(origin)s)
    and (%(stopped)s::boolean is null or (stopped_at is not null) = %(stopped)s)
    and (%(failed)s::boolean is null or (failed > 0) = %(failed)s)
    and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
    and (%(low_id)s::uuid is null or id >= %(low_id)s::uuid)
    and (%(high_id)s::uuid is null or id <= %(high_id)s::uuid)
    and (%(before_id)s::uuid is null or id < %(before_id)s::uuid)
order by id desc
limit %(limit)s::integer

-- name: may_see_claims
-- Whether this role may ask what workers hold.
select has_column_privilege('pgtasks.claim', 'job_ids', 'select') and has_table_privilege('pgtasks.worker', 'select')

-- name: list_running_members
-- Jobs of a bundle that workers run, the oldest first; the way goes over the claims, not over the members. What is
-- merely held is left out: it has no progress, and stands in no beat.
select
    j.id::text, j.queue, j.state, j.priority, j.created_at, j.start_at, j.expires_at, j.started_at, j.stopped_at,
    j.task, j.args, j.kwargs, j.options, j.origin, j.parent_id::text, j.root_id::text, j.bundle_id::text,
    j.bundle_index, j.after_bundle_id::text, j.reason, j.cancel_requested, j.crashes, j.attempts, j.attempt,
    j.worker_id, j.result, j.error, j.progress::text, j.after_on, j.takes
from pgtasks.claim c
join pgtasks.worker w on w.id = c.worker_id
-- The view, which masks arguments; live rows only.
join pgtasks.jobs j on j.queue = c.queue and j.id = any(c.job_ids) and j.worker_id = c.worker_id
where j.stopped_at is null
    and j.state = 'running'
    and (j.id = any(w.running) or j.progress is not null)
    and j.bundle_id in (select b.id from pgtasks.job_bundle b where %(id)s::uuid in (b.id, b.parent_id))
order by j.started_at, j.id
limit %(limit)s::integer

-- name: list_workers
-- The workers as they described themselves at their last beat.
select
    id, name, host, pid, version, pool, concurrency, queues, tasks, state, idle, running::text[], stats, started_at,
    beat_at, extract(epoch from now() - beat_at)::float8
from pgtasks.worker
order by name, id

-- name: list_claimed_jobs
-- Jobs that workers hold, with their worker: the way goes over the claims, not over the backlog.
select
    c.worker_id, j.id::text, j.queue, j.task, j.args, j.kwargs, j.priority, j.attempt, j.started_at,
    j.id = any(w.running), j.progress::text
from pgtasks.claim c
join pgtasks.worker w on w.id = c.worker_id
-- The view, which masks arguments; live rows only.
join pgtasks.jobs j on j.queue = c.queue and j.id = any(c.job_ids) and j.worker_id = c.worker_id
where j.stopped_at is null and j.state = 'running'
order by j.started_at, j.id
limit %(limit)s::integer

-- name: list_queues
-- Depth of each queue by state, the wait of its oldest ready job in seconds, how many workers serve it, and what was
-- configured: paused, limited by whom.
select
    q.queue,
    count(*) filter (where j.state = 'ready'),
    count(*) filter (where j.state = 'running'),
    count(*) filter (where j.state = 'scheduled'),
    count(*) filter (where j.state = 'blocked'),
    count(*) filter (where j.state = 'parked'),
    extract(epoch from now() - min(coalesce(j.start_at, j.created_at)) filter (where j.state = 'ready'))::float8,
    (select count(*) from pgtasks.worker w where q.queue = any(w.queues)),
    c.paused_at, c.paused_by, c.pause_reason, c.max_running, c.rate, c.burst,
    least(c.burst, c.tokens + greatest(0, extract(epoch from now() - c.refilled_at)::float8) * c.rate),
    c.ageing, c.limited_at, c.limited_by, c.declared
from (
    select queue from pgtasks.jobs where stopped_at is null
    union
    select unnest(queues) from pgtasks.worker
    union
    select name from pgtasks.queue
) as q (queue)
left join pgtasks.jobs j on j.queue = q.queue and j.stopped_at is null
left join pgtasks.queue c on c.name = q.queue
group by q.queue, c.name
order by q.queue

-- name: key_holder
-- Which job has a unique key.
select job_id::text from pgtasks.unique_key where queue = %(queue)s::text and key = %(key)s::text

-- name: held_key
-- Until when a job has its unique key, or what ends that; no row if it has none.
select until, release
from pgtasks.unique_key
where queue = %(queue)s::text and key = %(key)s::text and job_id = %(id)s::uuid

-- name: list_queue_names
-- Every queue of which a trace is left: jobs, workers, tasks that go there, what was configured.
select q.queue
from (
    select queue from pgtasks.jobs where stopped_at is null
    union
    select unnest(queues) from pgtasks.worker
    union
    select queue from pgtasks.task
    union
    select name from pgtasks.queue
) as q (queue)
order by q.queue

-- name: list_tasks
-- The tasks that workers have published, how many jobs of each are ready, running and parked, and which are paused.
select
    t.name, t.queue, t.priority,
    count(*) filter (where j.state = 'ready'),
    count(*) filter (where j.state = 'running'),
    count(*) filter (where j.state = 'parked'),
    (select count(*) from pgtasks.worker w where t.name = any(w.tasks)),
    t.paused_at, t.paused_by, t.pause_reason
from pgtasks.task t
left join pgtasks.jobs j on j.task = t.name and j.stopped_at is null
group by t.name
order by t.name

-- name: get_gates
-- What may hold a job back: whether its queue and its task are paused, and what its queue lets through.
select
    q.paused_at, q.paused_by, q.pause_reason, q.max_running, q.rate,
    least(q.burst, q.tokens + greatest(0, extract(epoch from now() - q.refilled_at)::float8) * q.rate),
    (select count(*) from pgtasks.jobs j where j.queue = %(queue)s::text and j.stopped_at is null and j.state = 'running'),
    t.paused_at, t.paused_by, t.pause_reason
from (select) as one
left join pgtasks.queue q on q.name = %(queue)s::text
left join pgtasks.task t on t.name = %(task)s::text

-- name: show_gates
-- How many have a place of a limit, of how many, and in how many seconds the next token of a rate comes.
select holding, jobs, token_in from pgtasks.show_gates(%(limit_key)s, %(rate_key)s)
