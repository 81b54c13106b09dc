"""Random graphs, run eagerly: they come to what a plain interpreter of the same graph says."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.eager_graphs import check_eagerly
from tests.fixtures.graph_plans import plans, random_plan
from tests.fixtures.graphs import Plan


@given(plans() | st.integers(0, 2**32).map(random_plan))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_graph_comes_to_what_the_interpreter_says(plan: Plan) -> None:
    check_eagerly(plan)
