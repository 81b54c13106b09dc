-- Roles for pgtasks: `pgtasks migrate --roles`, or `psql -1 -f schema/roles.sql` after each migration. Creates
-- what is missing, grants, and may be run again at any time. The roles are for the whole server, the grants for
-- this database. None of them can log in: grant them to the roles that do, `grant pgtasks_worker to shop`.
--
-- | role              | may                                                                                  |
-- |-------------------|--------------------------------------------------------------------------------------|
-- | pgtasks_owner     | everything; functions run with its rights, and nobody logs in as it                  |
-- | pgtasks_producer  | enqueue; read and forget the result of a job whose id it knows; list jobs, masked    |
-- | pgtasks_worker    | run jobs, and all that a producer may, since tasks enqueue                           |
-- | pgtasks_inspector | look at everything but arguments and results, which are masked                       |
-- | pgtasks_admin     | see arguments and results; retry, cancel, delete, purge; pause, limit, move; schedules |
--
-- No role may write to a table, but for producers, who insert into job and job_bundle: the hot path, also by COPY.
-- Narrower than a producer: `grant usage on schema pgtasks` and `grant execute on function pgtasks.enqueue`.

do $$
declare
    v_role text;
    v_superuser boolean := (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user);
begin
    if to_regprocedure('pgtasks.release_orphaned_claims()') is null then
        raise exception 'the schema pgtasks is missing or too old for roles: run ''pgtasks migrate'''
            using errcode = 'undefined_object';
    end if;

    foreach v_role in array array[
        'pgtasks_owner', 'pgtasks_producer', 'pgtasks_worker', 'pgtasks_inspector', 'pgtasks_admin'
    ] loop
        continue when exists (select from pg_catalog.pg_roles r where r.rolname = v_role);
        if not (select r.rolcreaterole or r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
            raise exception
                'role % may not create roles: as a superuser, say ''alter role % createrole'' or run ''pgtasks migrate --roles''',
                current_user, quote_ident(current_user)
                using errcode = 'insufficient_privilege';
        end if;
        begin
            execute format('create role %I nologin', v_role);
        exception when duplicate_object or unique_violation then
            null;   -- another database of this server is set up right now
        end;
    end loop;

    -- Who migrates goes on to own what is in the schema, as a member.
    if not v_superuser and not pg_has_role(current_user, 'pgtasks_owner', 'usage') then
        execute format('grant pgtasks_owner to %I', current_user);
    end if;
    -- A worker's tasks enqueue; an administrator looks.
    if not pg_has_role('pgtasks_worker', 'pgtasks_producer', 'usage') then
        grant pgtasks_producer to pgtasks_worker;
    end if;
    if not pg_has_role('pgtasks_admin', 'pgtasks_inspector', 'usage') then
        grant pgtasks_inspector to pgtasks_admin;
    end if;
end
$$;

revoke all on schema pgtasks from public;
grant usage on schema pgtasks to pgtasks_producer, pgtasks_inspector, pgtasks_worker, pgtasks_admin;
grant usage, create on schema pgtasks to pgtasks_owner;   -- partitions

-- The owner; of indexes and of the sequences of identity columns it is that of their tables.
do $$
declare
    v_object record;
begin
    for v_object in
        select c.oid::regclass as name, c.relkind as kind
        from pg_catalog.pg_class c
        where c.relnamespace = 'pgtasks'::regnamespace
            and c.relowner <> 'pgtasks_owner'::regrole
            and c.relkind in ('r', 'p', 'v', 'S')
            and not exists (
                select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'i' and d.classid = 'pg_class'::regclass
                    and c.relkind = 'S'
            )
    loop
        execute format(
            'alter %s %s owner to pgtasks_owner',
            case v_object.kind when 'v' then 'view' when 'S' then 'sequence' else 'table' end, v_object.name
        );
    end loop;
    for v_object in
        select p.oid::regprocedure as name
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pgtasks'::regnamespace and p.proowner <> 'pgtasks_owner'::regrole
    loop
        execute format('alter function %s owner to pgtasks_owner', v_object.name);
    end loop;
end
$$;

-- Functions, by name, since arguments change.
do $$
declare
    v_grant record;
begin
    for v_grant in
        select p.oid::regprocedure as name, g.role
        from (
            values
                ('pgtasks_producer', array[
                    'enqueue', 'take_keys', 'gate_keys', 'replace_waiting', 'new_id', 'grow_group', 'graph_jobs', 'bundle_waiters', 'register_listener', 'deregister_listener', 'get_outcomes', 'forget_results',
                    -- What the trigger on job calls, as whoever inserts.
                    'wake_channel', 'may_notify'
                ]),
                ('pgtasks_worker', array[
                    'register_worker', 'publish_tasks', 'publish_queues', 'publish_gates', 'sweep_gates', 'beat', 'set_idle', 'deregister_worker', 'rescue_worker',
                    'claim_jobs', 'ready_priorities', 'look', 'promote_jobs', 'finish_jobs', 'finish_succeeded', 'release_jobs', 'lock_held',
                    'record_progress', 'forget_progress', 'forget_keys',
                    'delete_claims',
                    'release_lost_claims', 'release_orphaned_claims', 'park_unknown', 'unpark_known',
                    'park_paused', 'unpark_paused', 'age_queue', 'forget_listeners', 'maintain_history',
                    'declare_schedules', 'due_schedules', 'tick_schedules', 'keep_schedules'
                ]),
                ('pgtasks_inspector', array['show_gates', 'graph_jobs', 'bundle_waiters']),
                ('pgtasks_admin', array[
                    'show_gates', 'graph_jobs', 'bundle_waiters',
                    'lock_unblocked', 'cancel_waiting', 'request_cancel', 'count_down', 'count_up', 'delete_finished', 'delete_history',
                    'reset_finished', 'retry_failed', 'reschedule_job', 'lock_bundles', 'delete_bundles', 'get_outcomes', 'forget_results',
                    'pause_queue', 'resume_queue', 'limit_queue', 'reset_limits', 'pause_task', 'resume_task',
                    'unpark_paused', 'move_jobs',
                    'add_schedule', 'edit_schedule', 'pause_schedules', 'resume_schedules', 'run_schedule',
                    'remove_schedules'
                ])
        ) as g (role, functions)
        join pg_catalog.pg_proc p on p.pronamespace = 'pgtasks'::regnamespace and p.proname = any(g.functions)
    loop
        execute format('grant execute on function %s to %I', v_grant.name, v_grant.role);
    end loop;
end
$$;

grant select on pgtasks.migrations to pgtasks_producer, pgtasks_inspector;

-- Producers: what delay(), group().apply() and COPY write, and what they read for it.
grant insert (
    id, queue, priority, state, start_at, expires_at, task, args, kwargs, options, origin, parent_id, root_id, bundle_id,
    bundle_index, after_bundle_id, after_on, takes, input, reason
) on pgtasks.job to pgtasks_producer;
grant insert (
    id, kind, type, origin, parent_id, root_id, after_bundle_id, after_on, depth, total, remaining, stopped_at
) on pgtasks.job_bundle to pgtasks_producer;
grant usage on sequence pgtasks.job_seq to pgtasks_producer;
grant select on pgtasks.task to pgtasks_producer;
grant select (idle, queues) on pgtasks.worker to pgtasks_producer;
-- AsyncResult.job(), GroupResult, app.schedules.list(): the views mask.
grant select on pgtasks.jobs, pgtasks.job_bundle, pgtasks.schedules to pgtasks_producer;
-- Who has a unique key; the key itself stands in each job's options.
grant select on pgtasks.unique_key to pgtasks_producer, pgtasks_inspector;

-- Workers watch each other, and read what was cancelled of their claims, and what is paused.
grant select on pgtasks.worker, pgtasks.claim, pgtasks.queue to pgtasks_worker;

-- Inspectors: no token, since a token lets finish.
grant select on pgtasks.jobs, pgtasks.job_bundle, pgtasks.worker, pgtasks.task, pgtasks.queue, pgtasks.schedules to pgtasks_inspector;
grant select (worker_id, queue, job_ids, claimed_at, at_most_once) on pgtasks.claim to pgtasks_inspector;

-- Administrators: who may read the arguments in the table sees them in the view, too.
grant select on pgtasks.job, pgtasks.job_history, pgtasks.schedule to pgtasks_admin;
