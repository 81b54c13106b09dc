-- The priorities of which a queue has something ready, highest first, at most p_limit, and the last seq of each:
-- running jobs and those of tasks that the asker does not know included. Two steps in the claim index for each.
-- A worker begins its claims behind what it has passed there, and so does not read what it does not know each time.
create function pgtasks.ready_priorities(p_queue text, p_limit integer)
returns table (priority integer, last_seq bigint)
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_below bigint := 2147483648;  -- above the highest
begin
    for v_step in 1 .. p_limit loop
        select j.priority into priority
        from pgtasks.job j
        where j.queue = p_queue and j.state = 'ready' and j.priority < v_below
        order by j.priority desc
        limit 1;
        exit when not found;
        v_below := priority;

        select j.seq into last_seq
        from pgtasks.job j
        where j.queue = p_queue and j.state = 'ready' and j.priority = v_below
        order by j.seq desc
        limit 1;
        return next;
    end loop;
end
$$;
revoke all on function pgtasks.ready_priorities(text, integer) from public;

-- Says of each queue whether a job of these tasks is ready, and in how many seconds the next scheduled one is due.
-- Of hot queues the asker knows better whether something is ready: there the answer is null. The settings and
-- the order force the claim index also for a table that was never analysed. The one with two arguments stays for
-- workers of the release before.
create function pgtasks.look(p_queues text[], p_tasks text[], p_hot text[])
returns table (queue text, ready boolean, due_in double precision)
language plpgsql stable
security definer
set search_path = pgtasks, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select
        q.name,
        case
            when q.name = any(p_hot) then null
            else coalesce((
                select true
                from pgtasks.job j
                where j.queue = q.name and j.state = 'ready' and j.token is null and j.task = any(p_tasks)
                order by j.priority desc, j.seq
                limit 1
            ), false)
        end,
        extract(epoch from (
            select j.start_at
            from pgtasks.job j
            where j.queue = q.name and j.state = 'scheduled'
            order by j.start_at
            limit 1
        ) - now())::double precision
    from unnest(p_queues) as q (name);
end
$$;
revoke all on function pgtasks.look(text[], text[], text[]) from public;
