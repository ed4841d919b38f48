"""Two affine CVXPY atoms that keep the features dense and the activation patterns as bits.

:class:`gated` is the prediction of a gated (or convex ReLU) network, :class:`pattern_slack` the left-hand
side of its cone constraints. Building one costs nothing beyond a look at the shapes. Interior-point
solvers get the same map as one explicit sparse matrix times ``vec(U)``: a single multiplication that
all of CVXPY's canonicalisation backends treat alike (``sum_entries(axis=1)`` does not pass all of them).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from numbers import Real
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.lin_ops import lin_utils
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.stuffing_limit import refuse_too_large
from convexnn_solvers.row_blocks import first_not_finite, none_negative, slices

_ROWS = 1024  # rows per block of `numeric`, so that no n x P intermediate is formed


class _Patterned(AffAtom):  # type: ignore[misc]
    """A linear map of weights (d * c, P), one column per gate, by features and activation patterns."""

    _allow_complex = False
    _weights = "U"  # as error messages call the argument

    def __init__(self, X: Any, patterns: Any, weights: Any) -> None:
        self.X: Float64Array = _features(X)
        self.patterns: NDArray[np.bool_] = _patterns(patterns, self.X)
        super().__init__(_expression(weights, self._weights))

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return int(self.args[0].shape[0]) // int(self.X.shape[1])

    def validate_arguments(self) -> None:
        """Raise ValueError unless the weights have shape (d * c, P) for some c."""
        super().validate_arguments()
        _check_weights(self._weights, self.args[0].shape, self.X, self.patterns)

    def is_decr(self, idx: int) -> bool:
        """False: unknown without a pass over the coefficients."""
        return False

    def get_data(self) -> Any:
        """What :meth:`copy` needs besides the argument."""
        return [self.X, self.patterns]

    def copy(self, args: list[Any] | None = None, id_objects: dict[int, Any] | None = None) -> Any:
        """The same map of other arguments, sharing features and patterns."""
        known = {} if id_objects is None else id_objects
        if id(self) in known:
            return known[id(self)]
        (weights,) = self.args if args is None else args
        X, patterns, *others = self.get_data()
        return type(self)(X, patterns, weights, *others)

    def graph_implementation(
        self, arg_objs: list[Any], shape: tuple[int, ...], data: Any = None
    ) -> tuple[Any, list[Any]]:
        """One sparse matrix times the weights, column by column."""
        return _times(self._matrix(), arg_objs[0], shape), []

    def _matrix(self) -> sp.csc_array:
        raise NotImplementedError

    def name(self) -> str:
        """A short text without the arrays."""
        return f"{type(self).__name__}({_sizes(self.X, self.patterns)}, {self.args[0].name()})"


class gated(_Patterned):
    """``sum_j (D_j + slope (I - D_j)) X u_j``: the linear map of a network whose gates are fixed.

    Parameters
    ----------
    X : array (n, d), float64
        The features, rows are samples. Kept by reference, never copied or changed.
    patterns : array (n, P), bool
        Column j is the diagonal of ``D_j``.
    U : CVXPY expression (d * c, P)
        Column j stacks the c outputs' weights: row ``k * d + i`` belongs to feature i of output k.
    slope : float
        The slope on the inactive side: 0 for ReLU, -1 for the absolute value.
    scope : str
        For which gates a bound on this problem holds; certificates repeat it.

    The value has shape (n,) for one output and (n, c) for several. Raises ValueError or TypeError when
    an argument has the wrong shape or type.
    """

    slope: float
    scope: str

    @checked_options
    def __init__(self, X: Any, patterns: Any, U: Any, slope: float = 0.0, scope: str = "") -> None:
        if not isinstance(slope, Real) or not np.isfinite(slope):
            raise ValueError(f"slope must be a finite number, not {slope!r}.")
        self.slope = float(slope)
        self.scope = str(scope)
        super().__init__(X, patterns, U)

    def shape_from_args(self) -> tuple[int, ...]:
        """(n,) for one output, (n, c) for several."""
        n = int(self.X.shape[0])
        return (n,) if self.outputs == 1 else (n, self.outputs)

    def sign_from_args(self) -> tuple[bool, bool]:
        """The sign of ``U`` when every coefficient is non-negative, unknown otherwise."""
        if self.is_incr(0):
            return self.args[0].is_nonneg(), self.args[0].is_nonpos()
        return False, False

    def is_incr(self, idx: int) -> bool:
        """Whether every coefficient is non-negative."""
        return self.slope >= 0.0 and none_negative(self.X)

    def get_data(self) -> Any:
        """What :meth:`copy` needs besides the argument."""
        return [*super().get_data(), self.slope, self.scope]

    def numeric(self, values: list[Any]) -> Float64Array:
        """The value for given weights."""
        weights = _dense(values[0])
        n, d = self.X.shape
        result = np.empty((n, self.outputs))
        for k in range(self.outputs):
            block = weights[k * d : (k + 1) * d]
            used = np.flatnonzero(block.any(axis=0))  # of a solution few
            block = block[:, used]
            for rows in slices(n, _ROWS):
                # Bits as numbers: products of both kinds take five times as long.
                mask = self.patterns[rows][:, used].astype(np.float64)
                active = np.einsum("ij,ij->i", self.X[rows] @ block, mask)
                result[rows, k] = (1.0 - self.slope) * active
            if self.slope != 0.0:
                result[:, k] += self.slope * (self.X @ block.sum(axis=1))
        return result[:, 0] if self.outputs == 1 else result

    def _matrix(self) -> sp.csc_array:
        n, d = self.X.shape
        gates, c = self.patterns.shape[1], self.outputs

        def column_block(j: int, k: int) -> tuple[NDArray[np.int64], Float64Array]:
            active = self.patterns[:, j]
            if self.slope == 0.0:
                rows = np.flatnonzero(active)
                return k * n + rows, self.X[rows]
            scale = np.where(active, 1.0, self.slope)
            return k * n + np.arange(n), scale[:, None] * self.X

        heights = self.patterns.sum(axis=0) if self.slope == 0.0 else np.full(gates, n)
        return _stack_columns(column_block, heights, d, c, n * c)


class pattern_slack(_Patterned):
    """``(2 D_j - I) X v_j`` for every gate j: non-negative iff ``v_j`` activates exactly as pattern j.

    Parameters
    ----------
    X : array (n, d), float64
        The features, rows are samples. Kept by reference, never copied or changed.
    patterns : array (n, P), bool
        Column j is the diagonal of ``D_j``.
    V : CVXPY expression (d * c, P)
        Stacked as ``U`` in :class:`gated`.

    The value has shape (n * c, P); row ``k * n + i`` belongs to sample i of output k. Raises ValueError
    or TypeError when an argument has the wrong shape or type.
    """

    _weights = "V"

    @checked_options
    def __init__(self, X: Any, patterns: Any, V: Any) -> None:
        super().__init__(X, patterns, V)

    def shape_from_args(self) -> tuple[int, ...]:
        """(n * c, P)."""
        return int(self.X.shape[0]) * self.outputs, int(self.patterns.shape[1])

    def sign_from_args(self) -> tuple[bool, bool]:
        """Unknown."""
        return False, False

    def is_incr(self, idx: int) -> bool:
        """False: the coefficients have both signs."""
        return False

    def numeric(self, values: list[Any]) -> Float64Array:
        """The value for given weights."""
        weights = _dense(values[0])
        n, d = self.X.shape
        result = np.empty(self.shape)
        for k in range(self.outputs):
            rows = slice(k * n, (k + 1) * n)
            np.matmul(self.X, weights[k * d : (k + 1) * d], out=result[rows])
            np.negative(result[rows], out=result[rows], where=~self.patterns)
        return result

    def _matrix(self) -> sp.csc_array:
        n, d = self.X.shape
        gates, c = self.patterns.shape[1], self.outputs

        def column_block(j: int, k: int) -> tuple[NDArray[np.int64], Float64Array]:
            signs = np.where(self.patterns[:, j], 1.0, -1.0)
            return (j * c + k) * n + np.arange(n), signs[:, None] * self.X

        return _stack_columns(column_block, np.full(gates, n), d, c, n * c * gates)


def _features(X: Any) -> Float64Array:
    if sp.issparse(X) or isinstance(X, cp.Expression):
        raise TypeError("X must be a dense NumPy array (n, d); convert it with X.toarray() or X.value.")
    if np.ma.is_masked(X):
        raise ValueError("X has masked entries; fill or drop them, e.g. X.filled(0.0).")
    array = np.asarray(X)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"X must hold real numbers, not {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"X must have shape (n, d) with n, d >= 1, not {array.shape}.")
    array = np.asarray(array, dtype=np.float64)
    if first_not_finite(array) is not None:
        raise ValueError("X must not contain NaN or infinite entries; remove or impute those samples.")
    return array


def _patterns(patterns: Any, X: Float64Array) -> NDArray[np.bool_]:
    array = np.asarray(patterns)
    if array.dtype != np.bool_:
        raise TypeError(f"patterns must be a boolean array, not {array.dtype}; write X @ G >= 0.")
    if array.ndim != 2 or array.shape[0] != X.shape[0] or array.shape[1] == 0:
        raise ValueError(
            f"patterns must have shape (n, P) with n = {X.shape[0]} (the rows of X) and P >= 1, "
            f"not {array.shape}."
        )
    return array


def _expression(weights: Any, name: str) -> Any:
    try:
        return cp.Expression.cast_to_const(weights)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a CVXPY expression or an array, such as cp.Variable((d, P)), "
            f"not {type(weights).__name__}."
        ) from None


def _check_weights(name: str, shape: tuple[int, ...], X: Float64Array, patterns: NDArray[np.bool_]) -> None:
    d, gates = X.shape[1], patterns.shape[1]
    if len(shape) != 2 or shape[1] != gates or shape[0] == 0 or shape[0] % d:
        raise ValueError(
            f"{name} must have shape (d * outputs, P) with d = {d} and P = {gates}, not {shape}."
        )


def _sizes(X: Float64Array, patterns: NDArray[np.bool_]) -> str:
    return f"X {X.shape[0]}x{X.shape[1]}, {patterns.shape[1]} patterns"


def _dense(value: Any) -> Float64Array:
    to_dense: Callable[[], Any] | None = getattr(value, "toarray", None)
    return np.asarray(value if to_dense is None else to_dense(), dtype=np.float64)


def _stack_columns(
    column_block: Callable[[int, int], tuple[NDArray[np.int64], Float64Array]],
    heights: NDArray[np.int64],
    width: int,
    outputs: int,
    rows: int,
) -> sp.csc_array:
    """The matrix whose columns, gate by gate and output by output, are those of ``column_block``.

    A block is its row numbers (m,) and its dense values (m, width), where m is the gate's height.
    """
    lengths = np.repeat(heights, outputs * width)
    entries, columns = int(lengths.sum()), int(lengths.size)
    refuse_too_large(entries, f"the matrix of {len(heights)} gates", "Auto(), or our other solvers")
    index_type = np.int32 if max(rows, columns, entries) < 2**31 else np.int64
    starts = np.zeros(columns + 1, dtype=index_type)
    np.cumsum(lengths, out=starts[1:])
    indices, values = np.empty(entries, dtype=index_type), np.empty(entries)
    filled = 0
    for j, k in itertools.product(range(len(heights)), range(outputs)):
        numbers, block = column_block(j, k)
        here = slice(filled, filled + block.size)
        indices[here].reshape(width, -1)[:] = numbers
        values[here].reshape(width, -1)[:] = block.T
        filled += block.size
    parts: Any = (values, indices, starts)
    matrix = sp.csc_array(parts, shape=(rows, columns))
    matrix.eliminate_zeros()
    return matrix


def _times(matrix: sp.csc_array, operand: Any, shape: tuple[int, ...]) -> Any:
    """The linear operator ``reshape(matrix @ vec(operand), shape)``, column-major like CVXPY's own."""
    column = lin_utils.reshape(operand, (matrix.shape[1],))
    constant = lin_utils.create_const(matrix, matrix.shape, sparse=True)
    return lin_utils.reshape(lin_utils.mul_expr(constant, column, (matrix.shape[0],)), shape)
