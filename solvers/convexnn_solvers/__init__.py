"""Solvers, atoms and certificates for convex neural networks written in CVXPY."""

from __future__ import annotations

from convexnn_solvers.certify.certificate import Certificate as Certificate
from convexnn_solvers.certify.certificate import certificate as certificate
from convexnn_solvers.comparison.compare import Comparison as Comparison
from convexnn_solvers.comparison.compare import ComparisonRow as ComparisonRow
from convexnn_solvers.comparison.compare import Contestant as Contestant
from convexnn_solvers.comparison.compare import compare as compare
from convexnn_solvers.composite import DualPoint as DualPoint
from convexnn_solvers.loop.result import Progress as Progress
from convexnn_solvers.public_names import name_after as _name_after
from convexnn_solvers.reading.atoms import gated as gated
from convexnn_solvers.reading.atoms import pattern_slack as pattern_slack
from convexnn_solvers.reading.compiler import UnsupportedProblem as UnsupportedProblem
from convexnn_solvers.solver_classes import ADMM as ADMM
from convexnn_solvers.solver_classes import RFISTA as RFISTA
from convexnn_solvers.solver_classes import AugmentedLagrangian as AugmentedLagrangian
from convexnn_solvers.solver_classes import Auto as Auto
from convexnn_solvers.solver_classes import BlockDescent as BlockDescent
from convexnn_solvers.solver_classes import SemismoothNewton as SemismoothNewton
from convexnn_solvers.status import Status as Status

__version__ = "0.1.0"

_name_after(__name__, globals())
