"""One door to the recovery of every family."""

# A subclass of ConvexModel has a network of its own kind, which overloads are there to say:
# mypy: disable-error-code="overload-overlap"
# pyright: reportOverlappingOverload=false

from __future__ import annotations

from typing import overload

from convexnn_models.convolutional import ConvolutionalModel
from convexnn_models.convolutional_network import ConvolutionalNetwork
from convexnn_models.convolutional_recovery import recover_convolutional
from convexnn_models.deep_network import DeepNetwork
from convexnn_models.model import ConvexModel
from convexnn_models.network import Network
from convexnn_models.parallel_linear import ParallelLinearModel, recover_parallel_linear
from convexnn_models.polynomial import PolynomialModel
from convexnn_models.polynomial_network import PolynomialNetwork
from convexnn_models.polynomial_recovery import recover_polynomial
from convexnn_models.recovery import recover_two_layer
from convexnn_models.three_layer import ThreeLayerModel, recover_three_layer
from convexnn_solvers.named_options import checked_options


@overload
def recover(model: ConvolutionalModel, prune: bool = True) -> ConvolutionalNetwork: ...
@overload
def recover(model: PolynomialModel, prune: bool = True) -> PolynomialNetwork: ...
@overload
def recover(model: ParallelLinearModel | ThreeLayerModel, prune: bool = True) -> DeepNetwork: ...
@overload
def recover(model: ConvexModel, prune: bool = True) -> Network: ...


@checked_options
def recover(
    model: ConvexModel, prune: bool = True
) -> Network | ConvolutionalNetwork | PolynomialNetwork | DeepNetwork:
    """The network at the values that a model's variables hold, whoever put them there.

    Its own non-convex objective, ``network.objective(X, y, reg)``, is the convex one at the same point, with
    every block projected on its cone first (interior-point solutions lie slightly outside); where a
    family's relation is another, its text says so.

    Parameters
    ----------
    model : ConvexModel
        A solved model of any family: ``relu``, ``gated_relu`` and ``piecewise_linear`` give a
        :class:`Network` (see :func:`recover_two_layer`), ``convolutional`` a :class:`ConvolutionalNetwork`
        (:func:`recover_convolutional`), ``polynomial`` a :class:`PolynomialNetwork`
        (:func:`recover_polynomial`), ``parallel_linear`` and ``three_layer`` a :class:`DeepNetwork`
        (:func:`recover_parallel_linear`, :func:`recover_three_layer`).
    prune : bool
        Leave out neurons without raising the objective: those that change it by less than 1e-8 relative, then
        as many as depend linearly on others on the samples.

    Raises ValueError when a variable has no value, TypeError for anything but a model of this package.
    """
    if isinstance(model, ConvolutionalModel):
        return recover_convolutional(model, prune)
    if isinstance(model, PolynomialModel):
        return recover_polynomial(model, prune)
    if isinstance(model, ParallelLinearModel):
        return recover_parallel_linear(model, prune)
    if isinstance(model, ThreeLayerModel):
        return recover_three_layer(model, prune)
    return recover_two_layer(model, prune)
