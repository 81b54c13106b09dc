-- name: register_worker
-- Adds this worker and returns its id.
select pgtasks.register_worker(
    %(name)s, %(host)s, %(boot_id)s, %(pid_namespace)s, %(pid)s::integer, %(pid_started_at)s::float8, %(version)s,
    %(pool)s, %(concurrency)s::integer, %(queues)s::text[], %(tasks)s::text[]
)

-- name: publish_tasks
-- Tells pgtasks.enqueue() where tasks go by default; sorted by name, so that two workers do not deadlock.
select pgtasks.publish_tasks(%(name)s::text[], %(queue)s::text[], %(priority)s::integer[])

-- name: publish_queues
-- Writes the limits that code declares for queues; those that an operator set by hand go on to hold.
select pgtasks.publish_queues(
    %(name)s::text[], %(max_running)s::integer[], %(rate)s::float8[], %(burst)s::integer[], %(ageing)s::float8[]
)

-- name: list_gates
-- What a worker must know of its queues and tasks: queues with a row (paused, limited, ageing), and tasks that are
-- paused, or of which jobs may still be parked since they were.
select 'queue', q.name, q.paused_at is not null, q.max_running is not null or q.rate is not null, q.ageing is not null
from pgtasks.queue q
where q.name = any(%(queues)s::text[])
union all
select 'task', t.name, t.paused_at is not null, false, false
from pgtasks.task t
where t.parks
order by 1, 2

-- name: publish_gates
-- Tells what the worker's tasks must pass, and how much that is; of tasks that must pass nothing any more, that as well.
select pgtasks.publish_gates(
    %(tasks)s::text[], %(task)s::text[], %(limit_name)s::text[], %(rate_name)s::text[], %(fair)s::boolean[],
    %(limits)s::text[], %(jobs)s::integer[], %(rates)s::text[], %(per_second)s::float8[], %(burst)s::integer[]
)

-- name: sweep_gates
-- Admits what no finish told of, from behind a key on; returns the last key, '' at the end, null if another is at it.
select pgtasks.sweep_gates(%(after)s::text, %(limit)s::integer)

-- name: beat
-- Renews the lease; no row comes back if another worker declared this one dead. `lock`: take the session's
-- advisory lock, so that others see at once when the session is gone; a pooler's sessions are not ours.
select beat, session_lock
from pgtasks.beat(
    %(worker_id)s::bigint, %(state)s, %(running)s::uuid[], %(stats)s::jsonb, %(lock)s::boolean, %(locked)s::boolean
)

-- name: set_idle
-- Asks enqueuers for NOTIFY, or no longer. Losing this to a crash costs one poll interval, no more.
select pgtasks.set_idle(%(worker_id)s::bigint, %(idle)s::boolean)

-- name: watch_workers
-- What an observer needs for its verdict on the others; the last column changes when the server was restarted
-- or failed over: then no time of silence counts. One row at least: this worker's own.
select id, beat, session_lock, host, boot_id, pid_namespace, pid, pid_started_at, pg_postmaster_start_time()::text
from pgtasks.worker
order by id

-- name: session_is_gone
-- Whether the session that held a worker's advisory lock has ended.
select pg_try_advisory_xact_lock(7236413, mod(%(worker_id)s::bigint, 2147483648)::integer)

-- name: list_cancels
-- What was requested of the jobs that a worker holds: cancel, and interrupt.
select token::text, cancel_ids::text[], interrupt_ids::text[]
from pgtasks.claim
where worker_id = %(worker_id)s::bigint and cancel_ids <> '{}'

-- name: terminate_session
-- Ends the session of a child that died in a transaction, so that its locks go at once.
select pg_terminate_backend(pid)
from pg_stat_activity
where pid = %(pid)s::integer and usename = current_user and backend_type = 'client backend'

-- name: rescue_worker
-- Makes a dead worker's jobs ready again; null if it lives after all or another rescues it.
select pgtasks.rescue_worker(%(worker_id)s::bigint, %(beat)s::bigint)

-- name: deregister_worker
-- Removes a worker that stopped with nothing in hand.
select pgtasks.deregister_worker(%(worker_id)s::bigint)

-- name: release_orphaned_claims
-- Gives back what is claimed for a worker that is no longer registered: a claim that was under way while
-- its worker was declared dead.
select pgtasks.release_orphaned_claims()

-- name: maintain_history
-- Creates the partitions of the days to come and drops the expired ones.
select pgtasks.maintain_history(%(keep)s::float8 * interval '1 second')

-- name: park_unknown
-- Parks jobs at the head of one queue that no live worker knows and that waited long enough; returns how many.
select pgtasks.park_unknown(%(queue)s::text, %(limit)s::integer, %(after)s::float8)

-- name: unpark_known
-- Frees parked jobs of one queue whose task this worker knows, at most `limit`; returns how many.
select pgtasks.unpark_known(%(queue)s::text, %(tasks)s::text[], %(limit)s::integer)

-- name: park_paused
-- Parks jobs of paused tasks at the head of one queue; returns how many.
select pgtasks.park_paused(%(queue)s::text, %(limit)s::integer)

-- name: unpark_paused
-- Frees parked jobs of a task that was resumed, at most `limit`; returns how many, null: there is no such task.
select pgtasks.unpark_paused(%(limit)s::integer)

-- name: age_queue
-- Raises the priority of jobs of one queue that waited; looks at `limit` at most and returns at how many.
select pgtasks.age_queue(%(queue)s::text, %(limit)s::integer)

-- name: register_listener
-- Asks workers to tell of stopped jobs and bundles; renewed while the process waits.
select pgtasks.register_listener(%(id)s::uuid)

-- name: deregister_listener
-- The process no longer waits.
select pgtasks.deregister_listener(%(id)s::uuid)

-- name: forget_listeners
-- Removes the rows of processes that died while they waited.
select pgtasks.forget_listeners()

-- name: forget_progress
-- Removes the progress of attempts that are over.
select pgtasks.forget_progress()

-- name: forget_keys
-- Removes unique keys whose time is over, at most `limit`.
select pgtasks.forget_keys(%(limit)s::integer)
