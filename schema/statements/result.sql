-- name: get_outcomes
-- State, result and error of jobs; `since` is an hour before the oldest id's time, to prune partitions.
select id, state, attempt, result, error
from pgtasks.get_outcomes(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: forget_results
-- Drops the results of finished jobs; the jobs stay.
select pgtasks.forget_results(%(ids)s::uuid[], %(since)s::timestamptz)

-- name: get_bundle_members
-- The members of a bundle in their order, with those in steps of it.
select id::text
from pgtasks.jobs
where bundle_id = %(id)s::uuid
    or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(id)s::uuid and s.kind = 'step'))
order by bundle_index, id

-- name: count_bundle_members
-- How many members are in each state, with those in steps of it.
select state, count(*)
from pgtasks.jobs
where bundle_id = %(id)s::uuid
    or bundle_id = any(array(select s.id from pgtasks.job_bundle s where s.parent_id = %(id)s::uuid and s.kind = 'step'))
group by state
