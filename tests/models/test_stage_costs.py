"""The cost of a stage, fitted to measured batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity.costs import StageCost
from benchmarks.capacity.stage_costs import Run, fit

lines = st.tuples(*[st.floats(1e-4, 1)] * 3)


@given(lines)
def test_costs_that_lie_on_a_line_are_fitted_exactly(line: tuple[float, float, float]) -> None:
    cost = StageCost(fixed_s=line[0], per_item_s=line[1], per_second_s=line[2])
    runs = [Run(n, s, cost.seconds(n, s), 1) for n in (1, 2, 4, 8, 16) for s in (1.0, 2.0, 4.0)]
    assert fit(runs) == pytest.approx(line, rel=1e-5)


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(0.5, 10), st.floats(0.001, 5)), min_size=1, max_size=20))
def test_no_fitted_cost_is_negative(measured: list[tuple[int, float, float]]) -> None:
    assert min(fit([Run(items, longest_s, wall_s, 1) for items, longest_s, wall_s in measured])) >= 0
