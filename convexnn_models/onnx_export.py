"""Networks as ONNX graphs, in float64 and with elementary operators only, for any ONNX runtime."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from convexnn_models._arrays import Float64Array

_OPSET, _IR_VERSION = 17, 8  # read by every runtime since 2022


def onnx_graph(
    W1: Float64Array,
    b1: Float64Array,
    W2: Float64Array,
    b2: Float64Array,
    slope: float,
    gates: tuple[Float64Array, Float64Array] | None,
) -> Any:
    """The ``onnx.ModelProto`` from ``X`` (n, d) to ``scores`` (n, c); ``gates`` are vectors and offsets."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError("to_onnx needs onnx; pip install 'convexnn[onnx]'") from error
    helper, double = onnx.helper, onnx.TensorProto.DOUBLE
    constants = {"W1": W1, "b1": b1, "W2": W2, "b2": b2}
    nodes = [helper.make_node("Gemm", ["X", "W1", "b1"], ["values"])]
    if gates is None and slope == 0.0:
        nodes.append(helper.make_node("Relu", ["values"], ["hidden"]))
    else:
        constants |= {"zero": np.zeros(()), "slope": np.array(slope)}
        deciding = "values"
        if gates is not None:
            deciding = "gate_values"
            constants |= {"gates": gates[0], "gate_bias": gates[1]}
            nodes.append(helper.make_node("Gemm", ["X", "gates", "gate_bias"], [deciding]))
        nodes += [
            helper.make_node("GreaterOrEqual", [deciding, "zero"], ["active"]),
            helper.make_node("Mul", ["values", "slope"], ["scaled"]),
            helper.make_node("Where", ["active", "values", "scaled"], ["hidden"]),
        ]
    nodes.append(helper.make_node("Gemm", ["hidden", "W2", "b2"], ["scores"]))
    weights = [onnx.numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(
        nodes,
        "convexnn",
        [helper.make_tensor_value_info("X", double, ["n", W1.shape[0]])],
        [helper.make_tensor_value_info("scores", double, ["n", W2.shape[1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
