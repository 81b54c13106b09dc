-- Tables. Hot and cold apart: `job` holds what is still to be done and stays small, `job_history`
-- is append-only and dropped by the day. The reasons and the measurements are in the comments.

create schema if not exists pgtasks;

create table pgtasks.migrations (
    version integer primary key,
    name text not null,
    -- Code that knows only older versions than this must not run against the schema.
    min_code_version integer not null,
    applied_at timestamptz not null default now()
);

-- Larger is newer. A job that becomes ready takes a new one, so that it lies ahead of every cursor.
create sequence pgtasks.job_seq as bigint;

create table pgtasks.job (
    id uuid not null,
    queue text not null,
    seq bigint not null default nextval('pgtasks.job_seq'),
    priority integer not null default 0,
    -- Running is not a state of its own: it is `token is not null`, so that a claim changes no index.
    state text not null default 'ready' check (state in ('blocked', 'scheduled', 'parked', 'ready')),
    created_at timestamptz not null default now(),
    start_at timestamptz,
    expires_at timestamptz,
    task text not null check (length(task) between 1 and 200),
    -- JSON as the producer wrote it: text keeps the bytes, and one bad value fails one job.
    args text not null default '[]' check (octet_length(args) <= 1048576),
    kwargs text not null default '{}' check (octet_length(kwargs) <= 1048576),
    -- What the call said beyond the task's own options; null: nothing. Few and small: a number of more digits
    -- than clients read (1e5000) is refused here, by its length.
    options jsonb check (jsonb_typeof(options) = 'object' and length(options::text) <= 4000),
    origin text,
    parent_id uuid,
    root_id uuid,
    bundle_id uuid,
    bundle_index integer,
    -- A blocked job waits for this bundle to stop, with success, with failure, or either way ('stop').
    after_bundle_id uuid,
    after_on text check (after_on in ('success', 'failure', 'stop')),
    -- What it is handed then, before its own arguments: the only member's result, or all in order.
    takes text check (takes in ('result', 'results')),
    input text,
    -- Why it is parked.
    reason text,
    cancel_requested boolean not null default false,
    crashes integer not null default 0,
    -- One entry for each attempt that ended in a retry.
    attempts jsonb,
    -- The lease: in no index and no index predicate, so that a claim is a HOT update. Last in the
    -- row, so that the WAL record of a claim holds little else.
    attempt integer not null default 0,
    started_at timestamptz,
    worker_id bigint,
    token uuid,
    primary key (id, queue),
    check (length(queue) between 1 and 63)
)
-- A batch rewrites whole pages in one transaction, so nothing can be pruned in between: HOT ratio
-- measured, for the smallest rows, 1.0 at 43, 0.97 at 45; for larger ones 1.0 at 45, 0.87 at 50, 0.58 at 60.
with (
    fillfactor = 43,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 1,
    autovacuum_analyze_scale_factor = 0.2
);

-- Running jobs stay in the claim index and are stepped over.
create index job_claim on pgtasks.job (queue, priority desc, seq) where state = 'ready';
create index job_due on pgtasks.job (queue, start_at) where state = 'scheduled';
create index job_parked on pgtasks.job (queue, task) where state = 'parked';
create index job_waiting on pgtasks.job (after_bundle_id) where state = 'blocked';
create index job_member on pgtasks.job (bundle_id) where bundle_id is not null;

create table pgtasks.job_history (
    id uuid not null,
    queue text not null,
    state text not null check (state in ('succeeded', 'failed', 'cancelled', 'expired', 'quarantined')),
    priority integer not null,
    created_at timestamptz not null,
    start_at timestamptz,
    expires_at timestamptz,
    started_at timestamptz,
    stopped_at timestamptz not null default now(),
    task text not null,
    args text not null,
    kwargs text not null,
    options jsonb,
    origin text,
    parent_id uuid,
    root_id uuid,
    bundle_id uuid,
    bundle_index integer,
    after_bundle_id uuid,
    after_on text,
    takes text,
    input text,
    reason text,
    crashes integer not null,
    attempts jsonb,
    attempt integer not null,
    worker_id bigint,
    result text,
    error jsonb,
    primary key (id, queue, stopped_at)
) partition by range (stopped_at);

create index job_history_member on pgtasks.job_history (bundle_id) where bundle_id is not null;
create index job_history_unsuccessful on pgtasks.job_history (stopped_at) where state <> 'succeeded';

-- Takes what falls between two partitions; upkeep moves it to its day.
create table pgtasks.job_history_default partition of pgtasks.job_history default;

create table pgtasks.job_bundle (
    id uuid primary key,
    type text,
    origin text,
    parent_id uuid,
    -- 0 is outermost; bundles are locked deepest first.
    depth integer not null default 0,
    total integer not null,
    remaining integer not null,
    failed integer not null default 0,
    created_at timestamptz not null default now(),
    stopped_at timestamptz
) with (fillfactor = 50);

create index job_bundle_parent on pgtasks.job_bundle (parent_id) where parent_id is not null;
create index job_bundle_created on pgtasks.job_bundle (created_at);

-- One row a parent process.
create table pgtasks.worker (
    id bigint generated always as identity primary key,
    name text not null,
    host text not null,
    -- Who is sure to be gone: same boot and pid namespace, and no process with that pid and start time.
    boot_id text,
    pid_namespace text,
    pid integer not null,
    pid_started_at double precision,
    version text not null,
    pool text not null,
    concurrency integer not null,
    queues text[] not null,
    tasks text[] not null,
    state text not null default 'running' check (state in ('running', 'draining')),
    -- Raised every few seconds; others watch that it moves, by their own clocks.
    beat bigint not null default 0,
    -- Asks enqueuers for a NOTIFY; they only read it.
    idle boolean not null default false,
    -- The jobs that children have begun; the rest of a claim is merely held.
    running uuid[] not null default '{}',
    stats jsonb not null default '{}',
    started_at timestamptz not null default now(),
    -- For people only: no verdict reads it.
    beat_at timestamptz not null default now()
) with (fillfactor = 50);

-- One row a claim batch: the way from a worker to its rows, for rescue, inspection and lost replies.
create table pgtasks.claim (
    token uuid primary key,
    worker_id bigint not null,
    queue text not null,
    job_ids uuid[] not null,
    claimed_at timestamptz not null default now()
);

create index claim_worker on pgtasks.claim (worker_id);

-- What workers publish of their tasks, for pgtasks.enqueue().
create table pgtasks.task (
    name text primary key,
    queue text not null,
    priority integer not null default 0,
    updated_at timestamptz not null default now()
);

-- One row a process that waits for stopped jobs; without any, finishing sends no NOTIFY.
create table pgtasks.listener (
    id uuid primary key,
    seen_at timestamptz not null default now()
) with (fillfactor = 50);

-- Live and finished jobs as one relation with one state. For a look-up by id add
-- `and (stopped_at is null or stopped_at >= <the id's time - 1 hour>)`: it prunes the partitions.
create view pgtasks.jobs as
select
    id, queue,
    case when token is not null then 'running' else state end as state,
    priority, created_at, start_at, expires_at, started_at, null::timestamptz as stopped_at,
    task, args, kwargs, options, origin, parent_id, root_id, bundle_id, bundle_index,
    after_bundle_id, after_on, takes, input, reason, cancel_requested, crashes, attempts, attempt, worker_id,
    null::text as result, null::jsonb as error
from pgtasks.job
union all
select
    id, queue, state,
    priority, created_at, start_at, expires_at, started_at, stopped_at,
    task, args, kwargs, options, origin, parent_id, root_id, bundle_id, bundle_index,
    after_bundle_id, after_on, takes, input, reason, false as cancel_requested, crashes, attempts, attempt, worker_id,
    result, error
from pgtasks.job_history;
