"""The plain padded form of a packed model: the same weights and operators, every linear layer on [batch * width, hidden].

Inputs: input_ids int64 [batch, width], lengths int32 [batch], word_index int64 [units] (slots of batch * width).
"""

import sys

import onnx
from onnx import TensorProto, helper, numpy_helper
import numpy as np

OWN_INPUTS = ("position_ids", "pad_index", "unpad_index")


def padded(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    turned = {n.output[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] == "pad_index"}
    nodes, same = prelude(graph), {}
    for node in graph.node:
        if node.output[0] in turned:
            continue
        inputs = [same.get(name, name) for name in node.input]
        index = inputs[1] if node.op_type == "Gather" else None
        if index == "pad_index":
            nodes.append(helper.make_node("Reshape", [inputs[0], "padded_shape"], node.output))
        elif index in turned:
            view = node.output[0] + "_view"
            nodes.append(helper.make_node("Reshape", [inputs[0], "padded_shape"], [view]))
            nodes.append(helper.make_node("Transpose", [view], node.output, perm=[1, 0, 2]))
        elif index == "unpad_index":
            same[node.output[0]] = inputs[0]
        elif index is not None and inputs[0] == "unpad_index":
            same[node.output[0]] = index
        else:
            del node.input[:]
            node.input.extend("flat_ids" if name == "input_ids" else name for name in inputs)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [i for i in graph.input if i.name not in (*OWN_INPUTS, "input_ids")]
    del graph.input[:]
    graph.input.extend([helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "width"]), *kept])
    onnx.checker.check_model(model)
    return model


def prelude(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Token ids in one row, the place of each in its sequence, and the shape of the padded view."""
    for name, value in (("flat", [-1]), ("zero", 0), ("one", 1), ("second", 1), ("rest", [-1])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), "padded_" + name))
    node = helper.make_node
    return [
        node("Reshape", ["input_ids", "padded_flat"], ["flat_ids"]),
        node("Shape", ["input_ids"], ["padded_size"]),
        node("Gather", ["padded_size", "padded_second"], ["padded_width"]),
        node("Range", ["padded_zero", "padded_width", "padded_one"], ["padded_places"]),
        node("Expand", ["padded_places", "padded_size"], ["padded_all_places"]),
        node("Reshape", ["padded_all_places", "padded_flat"], ["position_ids"]),
        node("Concat", ["padded_size", "padded_rest"], ["padded_shape"], axis=0),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: padded.py PACKED.onnx PADDED.onnx")
    onnx.save(padded(onnx.load(sys.argv[1])), sys.argv[2])
