-- name: due_schedules
-- What is due, the longest due first; then a row without name with the seconds until the next one is.
select name, spec, timezone, catch_up, next_at, now, wait from pgtasks.due_schedules(%(limit)s::integer)

-- name: tick_schedules
-- Enqueues ticks and moves their schedules on, if they are as they were when this was computed; returns which moved.
select pgtasks.tick_schedules(
    %(name)s::text[], %(spec)s::text[], %(timezone)s::text[], %(expected)s::bigint[], %(next_at)s::timestamptz[],
    %(error)s::text[], %(ticked)s::text[], %(tick)s::timestamptz[]
)

-- name: declare_schedules
-- Says what a worker has in its code; returns the names that somebody added by hand, which stay as they are.
select pgtasks.declare_schedules(%(worker_id)s::bigint, %(app)s, %(age)s::float8, %(definitions)s::jsonb)

-- name: keep_schedules
-- Lets schedules go that no live worker has in its code any more.
select pgtasks.keep_schedules()

-- name: list_schedules
-- Schedules by name, all or some; and the database's clock.
select
    name, task, args, kwargs, queue, priority, expires, options, origin, spec, timezone, catch_up, next_at, last_at,
    last_job_id::text, paused_at, paused_by, declared_by, app, undeclared_at, overrides, error, now()
from pgtasks.schedules
where %(names)s::text[] is null or name = any(%(names)s::text[])
order by name

-- name: add_schedule
-- Adds a schedule by hand; false: there is one of that name.
select pgtasks.add_schedule(%(name)s, %(said)s::jsonb)

-- name: edit_schedule
-- Changes a schedule; `forget`: first forget what was changed of one from code. False: there is none.
select pgtasks.edit_schedule(%(name)s, %(changes)s::jsonb, %(forget)s::boolean)

-- name: pause_schedules
-- Lets schedules tick no more; returns which there are.
select pgtasks.pause_schedules(%(names)s::text[], %(by)s)

-- name: resume_schedules
-- Lets schedules tick again, from now on; returns which there are.
select pgtasks.resume_schedules(%(names)s::text[])

-- name: run_schedule
-- Enqueues a schedule's job now; null: there is none.
select pgtasks.run_schedule(%(name)s)::text

-- name: remove_schedules
-- Removes schedules, but those that a live worker has in its code; returns which went.
select pgtasks.remove_schedules(%(names)s::text[])
