"""CVXPY's own standard tests with an instance of our solver; refusals are listed with their sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
from cvxpy.tests.solver_test_helpers import (
    StandardTestECPs,
    StandardTestInfeasibleProblems,
    StandardTestLPs,
    StandardTestMixedCPs,
    StandardTestPCPs,
    StandardTestQPs,
    StandardTestSDPs,
    StandardTestSOCPs,
    lp_7,
    lp_bound_attr,
    qp_bound_attr,
)

from convexnn_solvers import AugmentedLagrangian

FAMILIES: tuple[Any, ...] = (
    StandardTestLPs,
    StandardTestQPs,
    StandardTestSOCPs,
    StandardTestSDPs,
    StandardTestECPs,
    StandardTestMixedCPs,
    StandardTestPCPs,
    StandardTestInfeasibleProblems,
)
TESTS: dict[str, Callable[..., Any]] = {
    f"{family.__name__}.{name}": getattr(family, name)
    for family in FAMILIES
    for name in dir(family)
    if name.startswith("test_")
}
# What we refuse, by the sentence that says so.
REFUSED = {
    **dict.fromkeys([name for name in TESTS if ".test_mi_" in name], "mixed-integer"),
    "StandardTestECPs.test_expcone_1": "ExpCone",
    "StandardTestMixedCPs.test_exp_soc_1": "ExpCone",
    "StandardTestMixedCPs.test_sdp_pcp_1": "PowCone3D",
    "StandardTestPCPs.test_pcp_1": "PowCone3D",
    "StandardTestPCPs.test_pcp_2": "PowCone3D",
    "StandardTestPCPs.test_pcp_3": "PowCone3D",
    "StandardTestInfeasibleProblems.test_exp_cone": "ExpCone",
    "StandardTestInfeasibleProblems.test_power_cone_3d": "PowCone3D",
    "StandardTestInfeasibleProblems.test_power_cone_nd": "PowConeND",
    "StandardTestInfeasibleProblems.test_soc_exp_mixed": "ExpCone",
}
# Tests that look at canonical matrices, which our solvers do without, or import another solver: their
# problems are solved below.
ABOUT_OTHERS = {
    "StandardTestLPs.test_lp_bound_attr",
    "StandardTestLPs.test_lp_7",
    "StandardTestQPs.test_qp_bound_attr",
}
PASSED = [name for name in TESTS if name not in {*REFUSED, *ABOUT_OTHERS}]


@pytest.mark.parametrize("name", PASSED)
def test_standard_problems_are_solved(name: str) -> None:
    TESTS[name](AugmentedLagrangian(tol=1e-6))


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(cp.SolverError, match=f"{REFUSED[name]}.*solve with"):
        TESTS[name](AugmentedLagrangian())


@pytest.mark.parametrize("make", [lp_bound_attr, qp_bound_attr, lp_7])
def test_problems_whose_tests_are_about_other_solvers(make: Callable[[], Any]) -> None:
    helper = make()
    helper.solve(AugmentedLagrangian(tol=1e-6))
    helper.verify_objective(4)
    helper.verify_primal_values(4)
