"""Random graphs on workers that claim and finish in any order: they come to what a plain interpreter says."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.graph_runs import graph_run
from tests.fixtures.graphs import Plan, plans

SCALE = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)


def test_a_random_graph_comes_to_what_the_interpreter_says(dsn: str) -> None:
    with graph_run(dsn) as house:

        @given(plans(grows=True), st.integers(0, 2**32))
        @settings(
            max_examples=round(150 * SCALE), deadline=None, suppress_health_check=list(HealthCheck)
        )
        def any_graph(plan: Plan, seed: int) -> None:
            house.chance = random.Random(seed)
            house.check(plan)

        any_graph()
