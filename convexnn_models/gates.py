"""Gates: the fixed vectors whose activation patterns a convex program is built on.

Gate ``g_j`` gives the pattern ``D_j = diag(1[X g_j >= 0])``. Patterns are computed once, in float64, and
stored as bits. A sample that lies on a gate's hyperplane (a tie) would make the pattern one that no open
set of gates has, so gates are moved off ties; only zero rows of X remain ties, and they contribute nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.samplers import Sampler, Samples, drawn, named
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.row_blocks import blocks_of, row_blocks

# |x . g| <= _TIE ||x|| ||g|| counts as a tie. Rounding errors are around d * 1e-16 of that scale.
_TIE = 1e-9
_CHUNK_ENTRIES = 2_000_000  # of X @ g, so that no n x P array of floats is formed
_BATCH_BITS = 2**25  # of the patterns drawn at once


@dataclass(frozen=True, eq=False)
class Gates:
    """Fixed gates and their patterns on the training data.

    Parameters
    ----------
    vectors : array (d, P)
        One gate per column; (d + 1, P) with a bias, whose coefficient is the last row.
    patterns : array (n, P), bool
        ``X @ vectors >= 0``.
    description : str
        What certificates say about their scope, for example "the 500 sampled gates".
    """

    vectors: Float64Array
    patterns: NDArray[np.bool_]
    description: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", _arrays.vectors(self.vectors))
        bits = self.patterns
        if not isinstance(bits, np.ndarray) or bits.dtype != np.bool_:
            kind = getattr(bits, "dtype", type(bits).__name__)
            raise TypeError(f"patterns must be a boolean array, not {kind}; write X @ vectors >= 0.")
        if bits.ndim != 2 or bits.shape[1] != self.vectors.shape[1] or bits.shape[0] == 0:
            raise ValueError(
                f"patterns must have shape (n, P) with P = {self.vectors.shape[1]} columns like vectors, "
                f"not {bits.shape}."
            )
        object.__setattr__(self, "patterns", bits)

    def __len__(self) -> int:
        return int(self.vectors.shape[1])

    def __repr__(self) -> str:
        (d, gates), n = self.vectors.shape, self.patterns.shape[0]
        return f"Gates({self.description}: vectors ({d}, {gates}), patterns ({n}, {gates}))"

    def subset(self, columns: Any) -> Gates:
        """The gates with these column numbers (or this mask), under the same description."""
        return Gates(self.vectors[:, columns], self.patterns[:, columns], self.description)


class GatedNetwork(Protocol):
    """What :func:`gates_from` needs of a network."""

    @property
    def gate_vectors(self) -> Float64Array:
        """(d, m), or (d + 1, m) when the gates have a bias."""
        ...


@checked_options
def sample_gates(
    X: Any,
    k: int,
    seed: int | np.random.Generator = 0,
    *,
    bias: bool = False,
    sampler: str | Sampler = "gaussian",
) -> Gates:
    """At most ``k`` gates with distinct, non-zero patterns, drawn at random.

    Parameters
    ----------
    X : array (n, d)
        The training samples, scaled as they will be for the model.
    k : int
        How many gates to look for. When the data has fewer patterns (or the rest is too rare to be
        drawn) fewer are returned, and ``description``, which certificates repeat, says so.
    seed : int or Generator
        The same seed gives the same bits, and a larger ``k`` only appends gates.
    bias : bool
        Gates with an offset, for models with ``bias=True``: vectors in R^(d+1).
    sampler : str or function
        "gaussian", "sphere", "differences" (of samples), "quantiles" (of activity, with a bias), "sparse"
        (few features) or "vertices" (of the zonotope: small cells too); or a function like those of
        :mod:`samplers`, ``convolutional(shape, size)`` or one of your own.

    Raises ValueError when no sample can be active (all rows of X are zero and there is no bias).
    """
    data = _arrays.with_ones(_arrays.features(X), bias)
    wanted, draw = _arrays.count(k, "k"), named(sampler)
    norms = _row_norms(data)
    live = norms > 0.0
    if not live.any():
        raise ValueError("X has only zero rows, which no gate tells apart; pass bias=True or other samples.")
    most = _cover_bound(int(live.sum()), min(data.shape), wanted)
    rng, samples = _arrays.generator(seed), Samples(data, bias)
    found: dict[bytes, tuple[Float64Array, NDArray[np.bool_]]] = {}
    draws, idle = 0, 0
    while len(found) < min(wanted, most) and idle < 1000 + 10 * len(found):
        batch = drawn(draw, samples, _batch_size(data, wanted - len(found)), rng)
        bits, useful = _bits(data, norms, live, batch)
        keys = np.packbits(bits, axis=0)
        for column in range(batch.shape[0]):
            draws, idle = draws + 1, idle + 1
            key = keys[:, column].tobytes()
            if useful[column] and key not in found and len(found) < wanted:
                found[key] = batch[column].copy(), bits[:, column].copy()
                idle = 0
    if not found:
        remedy = "rescale X" if sampler == "gaussian" else "rescale X, or pass another sampler"
        raise ValueError(f"X has no pattern that {draws} random gates could find off its ties; {remedy}.")
    size = len(found)
    description = f"the {size} sampled gates"
    if size < wanted:
        description += f" ({wanted} were asked for; {draws} draws met no further pattern)"
    vectors, patterns = zip(*found.values(), strict=True)
    return Gates(np.stack(vectors, axis=1), np.stack(patterns, axis=1), description)


@checked_options
def gates_from_vectors(X: Any, vectors: Any, *, bias: bool = False, description: str | None = None) -> Gates:
    """The gates with these ``vectors`` (d, P), or (d + 1, P) with ``bias``, moved off ties.

    A gate through a sample of ``X`` (n, d) is moved by at most 1e-9 of its length, towards having its tied
    samples active where that is possible. Duplicated and all-zero *patterns* are kept (models drop them where
    they are redundant); an all-zero *vector* has no pattern and is refused with a ValueError. ``description``
    is what certificates say about their scope, by default "the P given gates".
    """
    if description is not None and not isinstance(description, str):
        raise TypeError(f"description must be a text such as 'the gates of a network', not {description!r}.")
    data = _arrays.with_ones(_arrays.features(X), bias)
    given = _arrays.vectors(vectors)
    if given.shape[0] != data.shape[1]:
        with_bias = given.shape[0] == data.shape[1] + 1
        raise ValueError(
            f"vectors must have {data.shape[1]} rows, one per feature"
            f"{' and a last one for the bias' if bias else ''}, not {given.shape[0]}; "
            f"{'if the last row is a bias, pass bias=True' if with_bias else 'a gate is a column'}."
        )
    lengths = _row_norms(given.T)
    if not lengths.all():
        raise ValueError(
            f"vectors must not hold an all-zero gate (column {int(np.argmin(lengths))}), which has "
            "no pattern; drop it."
        )
    norms = _row_norms(data)
    moved = given.copy()
    patterns = np.empty((data.shape[0], given.shape[1]), dtype=np.bool_)
    for columns in row_blocks(given.shape[1], data.shape[0], _CHUNK_ENTRIES):
        products = data @ moved[:, columns]
        tied = (np.abs(products) <= _TIE * norms[:, None] * lengths[columns]) & (norms > 0.0)[:, None]
        patterns[:, columns] = products >= 0.0
        for offset in np.flatnonzero(tied.any(axis=0)):
            j = columns.start + int(offset)
            moved[:, j] = _off_ties(data, norms, moved[:, j], tied[:, offset], j)
            patterns[:, j] = data @ moved[:, j] >= 0.0
    return Gates(moved, patterns, description or f"the {given.shape[1]} given gates")


@checked_options
def gates_from(network: GatedNetwork, X: Any) -> Gates:
    """The distinct patterns of a network's own neurons on ``X``; neurons without weights have none.

    Raises TypeError for what has no gates, and ValueError where all weights are zero or ``X`` (n, d) is not
    what the network reads.
    """
    vectors = getattr(network, "gate_vectors", None)
    if not isinstance(vectors, np.ndarray):
        raise TypeError(f"network must be a Network, not {type(network).__name__}; see recover(model).")
    vectors = vectors[:, _row_norms(vectors.T) > 0.0]
    if vectors.shape[1] == 0:
        raise ValueError("network has no neuron with a non-zero weight, so it has no gates.")
    samples = _arrays.features(X)
    bias = vectors.shape[0] == samples.shape[1] + 1
    if not bias and vectors.shape[0] != samples.shape[1]:
        raise ValueError(
            f"network has gates of {vectors.shape[0]} entries, but X has {samples.shape[1]} features; "
            "pass the features that the network reads."
        )
    gates = gates_from_vectors(samples, vectors, bias=bias)
    kept = gates.subset(distinct(gates.patterns, _live(_arrays.with_ones(samples, bias))))
    return Gates(kept.vectors, kept.patterns, f"the {len(kept)} gates of the network")


def checked(gates: Any, X: Float64Array, *, drop_zero: bool, drop_mirrored: bool = False) -> Gates:
    """``gates`` without redundant ones, after checking that they belong to the samples ``X``.

    Repeated patterns go, with ``drop_zero`` also the pattern without active samples, with
    ``drop_mirrored`` one of every two complementary patterns. Zero rows of X are ignored throughout.
    """
    if not isinstance(gates, Gates):
        raise TypeError(
            f"gates must be a Gates value, not {type(gates).__name__}; "
            "make one with sample_gates(X, k) or gates_from_vectors(X, vectors)."
        )
    _check_belongs(gates, X)
    live = _live(X)
    columns = distinct(gates.patterns, live, mirrored=drop_mirrored)
    if drop_zero:
        columns = columns[gates.patterns[:, columns][live].any(axis=0)]
    if columns.size == 0:
        raise ValueError("gates has no pattern with an active sample; sample others with sample_gates(X, k).")
    if columns.size == len(gates):
        return gates
    kept = gates.subset(columns)
    redundant = len(gates) - len(kept)
    return Gates(kept.vectors, kept.patterns, f"{gates.description}, {redundant} of them redundant")


def distinct(
    patterns: NDArray[np.bool_], rows: NDArray[np.bool_], *, mirrored: bool = False
) -> NDArray[np.int64]:
    """Column numbers of the first occurrence of every pattern, judged on ``rows`` (a mask) only."""
    bits = patterns if rows.all() else patterns[rows]
    if mirrored and bits.shape[0]:
        bits = bits ^ bits[0]
    keys = np.packbits(bits, axis=0)
    first: dict[bytes, int] = {}
    for j in range(keys.shape[1]):
        first.setdefault(keys[:, j].tobytes(), j)
    return np.fromiter(first.values(), dtype=np.int64)


def _check_belongs(gates: Gates, X: Float64Array) -> None:
    """Refuse gates of other data: right shapes, and bits that agree with the vectors on a sample of rows."""
    n, d = X.shape
    if gates.patterns.shape[0] != n:
        raise ValueError(
            f"gates were made for {gates.patterns.shape[0]} samples, but X has {n}; "
            "make them from the same X as the model."
        )
    if gates.vectors.shape[0] != d:
        raise ValueError(
            f"gates have vectors in R^{gates.vectors.shape[0]}, but the model's features"
            f" (a bias counts as one) are {d}; make them from the same X and with the same bias."
        )
    rows = np.unique(np.linspace(0, n - 1, min(n, 200)).astype(np.intp))
    products = X[rows] @ gates.vectors
    scale = _row_norms(X[rows])[:, None] * _row_norms(gates.vectors.T)
    clear = np.abs(products) > _TIE * scale
    if np.any(clear & ((products >= 0.0) != gates.patterns[rows])):
        raise ValueError(
            "gates do not belong to X: gates.patterns differs from X @ gates.vectors >= 0; "
            "make them from the same X (after scaling) as the model."
        )


def _off_ties(
    X: Float64Array, norms: Float64Array, gate: Float64Array, tied: NDArray[np.bool_], column: int
) -> Float64Array:
    """``gate`` moved by half the tie tolerance so that only its tied samples can change sides."""
    live = norms > 0.0
    unit = X[tied] / norms[tied, None]
    length = float(np.linalg.norm(gate))
    rng = np.random.default_rng(0)
    for direction in (unit.sum(axis=0), *rng.standard_normal((100, X.shape[1]))):
        size = float(np.linalg.norm(direction))
        if size <= 1e-6:
            continue
        moved: Float64Array = gate + (0.5 * _TIE * length / size) * direction
        if np.all(np.abs(X[live] @ moved) > 1e-4 * _TIE * length * norms[live]):
            return moved
    raise ValueError(
        f"vectors must not hold a gate (column {column}) that no small move takes off the samples on its "
        "hyperplane; drop it."
    )


def _bits(
    X: Float64Array, norms: Float64Array, live: NDArray[np.bool_], batch: Float64Array
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The patterns of some gates (rows of ``batch``), and which of them have active samples and no ties."""
    lengths = np.linalg.norm(batch, axis=1)
    bits = np.empty((X.shape[0], batch.shape[0]), dtype=np.bool_)
    tied, active = np.zeros((2, batch.shape[0]), dtype=np.bool_)
    for rows in row_blocks(X.shape[0], max(batch.shape)):
        products, counted = X[rows] @ batch.T, live[rows, None]
        bits[rows] = products >= 0.0
        tied |= np.any((np.abs(products) <= _TIE * norms[rows, None] * lengths) & counted, axis=0)
        active |= np.any(bits[rows] & counted, axis=0)
    return bits, ~tied & active


def _live(X: Float64Array) -> NDArray[np.bool_]:
    return np.concatenate([np.any(X[rows] != 0.0, axis=1) for rows in blocks_of(X)])


def _row_norms(X: Float64Array) -> Float64Array:
    """Euclidean norms of the rows, also where squares under- or overflow."""
    largest = np.maximum(X.max(axis=1), -X.min(axis=1))
    with np.errstate(over="ignore", under="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", X, X))
    unsafe = (largest > 0.0) & ((norms < 1e-150) | ~np.isfinite(norms))
    if unsafe.any():
        norms[unsafe] = largest[unsafe] * np.linalg.norm(X[unsafe] / largest[unsafe, None], axis=1)
    return np.asarray(norms)


def _cover_bound(n: int, rank: int, enough: int) -> int:
    """Cover's bound on the patterns of n samples of this rank, or anything above ``enough``."""
    total = 0
    for k in range(min(rank, n)):
        total += 2 * comb(n - 1, k)
        if total > enough:
            break
    return total


def _batch_size(X: Float64Array, missing: int) -> int:
    return max(1, min(missing + 16, _BATCH_BITS // len(X)))
