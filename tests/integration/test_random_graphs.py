"""Random graphs on workers that claim and finish in any order: they come to what a plain interpreter says."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.graph_plans import grows_for_a_failure, plans, random_plan
from tests.fixtures.graph_runs import graph_run
from tests.fixtures.graphs import Plan, interpret

SCALE = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)
SEEDS = st.integers(0, 2**32)
# Small ones, which shrink; and larger ones by chance alone.
GRAPHS = plans(grows=True) | SEEDS.map(lambda seed: random_plan(seed, grows=True))
# What such a callback has added to its group stays there, and is added again.
STARTED_AGAIN = GRAPHS.filter(lambda plan: not grows_for_a_failure(plan))


def test_a_random_graph_comes_to_what_the_interpreter_says(dsn: str) -> None:
    with graph_run(dsn) as house:

        @given(GRAPHS, SEEDS)
        @settings(
            max_examples=round(60 * SCALE), deadline=None, suppress_health_check=list(HealthCheck)
        )
        def any_graph(plan: Plan, seed: int) -> None:
            house.chance = random.Random(seed)
            house.check(plan)

        any_graph()


def test_a_failed_graph_that_is_started_again_comes_to_what_it_would_without_failures(
    dsn: str,
) -> None:
    with graph_run(dsn) as house:

        @given(STARTED_AGAIN, SEEDS)
        @settings(
            max_examples=round(50 * SCALE), deadline=None, suppress_health_check=list(HealthCheck)
        )
        def any_graph(plan: Plan, seed: int) -> None:
            house.chance = random.Random(seed)
            house.check_healed(plan)

        any_graph()


def test_a_failed_graph_that_is_started_again_without_one_of_its_failures_calls_back_for_the_others(
    dsn: str,
) -> None:
    """Whatever did not run before, for what failed before it, has its own callbacks when it runs."""
    with graph_run(dsn) as house:

        @given(STARTED_AGAIN, SEEDS)
        @settings(
            max_examples=round(60 * SCALE), deadline=None, suppress_health_check=list(HealthCheck)
        )
        def any_graph(plan: Plan, seed: int) -> None:
            house.chance = random.Random(seed)
            failed = sorted(job.label for job, _ in interpret(plan).jobs if job.state == "failed")
            if failed:
                house.check_healed(plan, house.chance.choice(failed))

        any_graph()
