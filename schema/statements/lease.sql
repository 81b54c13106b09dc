-- name: register_worker
-- Adds this worker and returns its id.
insert into pgtasks.worker (
    name, host, boot_id, pid_namespace, pid, pid_started_at, version, pool, concurrency, queues, tasks
)
values (
    %(name)s, %(host)s, %(boot_id)s, %(pid_namespace)s, %(pid)s::integer, %(pid_started_at)s::float8, %(version)s,
    %(pool)s, %(concurrency)s::integer, %(queues)s::text[], %(tasks)s::text[]
)
returning id

-- name: publish_tasks
-- Tells pgtasks.enqueue() where tasks go by default; sorted by name, so that two workers do not deadlock.
insert into pgtasks.task (name, queue, priority)
select n.name, n.queue, n.priority
from unnest(%(name)s::text[], %(queue)s::text[], %(priority)s::integer[]) as n (name, queue, priority)
order by n.name
on conflict (name) do update
set queue = excluded.queue, priority = excluded.priority, updated_at = now()
where (task.queue, task.priority) is distinct from (excluded.queue, excluded.priority)

-- name: beat
-- Renews the lease; no row comes back if another worker declared this one dead. `lock`: take the session's
-- advisory lock, so that others see at once when the session is gone; a pooler's sessions are not ours.
update pgtasks.worker
set beat = beat + 1, beat_at = now(), state = %(state)s, running = %(running)s::uuid[], stats = %(stats)s::jsonb,
    session_lock = %(lock)s::boolean and (
        %(locked)s::boolean or pg_try_advisory_lock(7236413, mod(%(worker_id)s::bigint, 2147483648)::integer)
    )
where id = %(worker_id)s::bigint
returning beat, session_lock

-- name: set_idle
-- Asks enqueuers for NOTIFY, or no longer. Losing this to a crash costs one poll interval, no more.
update pgtasks.worker set idle = %(idle)s where id = %(worker_id)s::bigint

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
delete from pgtasks.worker where id = %(worker_id)s::bigint

-- name: release_orphaned_claims
-- Gives back what is claimed for a worker that is no longer registered: a claim that was under way while
-- its worker was declared dead.
select pgtasks.settle_claims(
    array(
        select c.token
        from pgtasks.claim c
        where not exists (select from pgtasks.worker w where w.id = c.worker_id)
    ),
    true, '{}', 'its worker died'
)

-- name: maintain_history
-- Creates the partitions of the days to come and drops the expired ones.
select pgtasks.maintain_history(%(keep)s::float8 * interval '1 second')

-- name: park_unknown
-- Parks jobs at the head of one queue that no live worker knows and that waited long enough.
with head as materialized (
    select j.id, j.task, j.created_at, j.token
    from pgtasks.job j
    where j.queue = %(queue)s and j.state = 'ready'
    order by j.priority desc, j.seq
    limit %(limit)s::integer
), unknown as (
    select h.id
    from head h
    where h.token is null
        and h.created_at < now() - %(after)s::float8 * interval '1 second'
        and not exists (select from pgtasks.worker w where h.task = any(w.tasks))
)
update pgtasks.job j
set state = 'parked', reason = 'unknown task'
where j.queue = %(queue)s
    and j.state = 'ready'
    and j.token is null
    and j.id = any(array(select u.id from unknown u))

-- name: unpark_known
-- Frees parked jobs of one queue whose task this worker knows.
update pgtasks.job j
set state = 'ready', reason = null, seq = nextval('pgtasks.job_seq')
where j.queue = %(queue)s
    and j.id = any(array(
        select p.id
        from pgtasks.job p
        where p.queue = %(queue)s
            and p.state = 'parked'
            and p.reason = 'unknown task'
            and p.task = any(%(tasks)s::text[])
        limit 1000
        for update skip locked
    ))

-- name: register_listener
-- Asks workers to tell of stopped jobs and bundles; renewed while the process waits.
insert into pgtasks.listener (id) values (%(id)s::uuid)
on conflict (id) do update set seen_at = now()

-- name: deregister_listener
-- The process no longer waits.
delete from pgtasks.listener where id = %(id)s::uuid

-- name: forget_listeners
-- Removes the rows of processes that died while they waited.
delete from pgtasks.listener where seen_at < now() - interval '2 minutes'
