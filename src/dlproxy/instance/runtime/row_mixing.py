"""Looks at a graph for what lets one row's answer depend on its neighbours in a batch: what no probe can be sure to meet.

Values of rows are followed from the inputs that carry them through all operators; sizes alone are no values. Called by
onnx.py. Not aware of: what the operators compute, which axis is which; the probe of instance/evidence.py sees to those.
"""

from collections.abc import Collection

from dlproxy.instance.runtime.onnx_graph import Graph, Node

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
SCALED_TOGETHER = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
COUNTING = {"NonZero": 0, "Unique": 0, "Compress": 1, "NonMaxSuppression": 1}  # the input whose values decide how many come out
# Inputs that are sizes, positions or conditions for the whole tensor: if rows decide them, rows decide for one another.
SIZES = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Pad": (1,),
    "OneHot": (1,),
    "Slice": (1, 2, 3, 4),
    "TopK": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Split": (1,),
    "Loop": (0, 1),
    "If": (0,),
}
SHAPE_ALONE = ("Shape", "Size")


def why_rows_meet(graph: Graph, carrying: Collection[str], outputs: Collection[str]) -> str:
    """What in the graph lets rows meet, in words for the operator; empty if nothing that shows.

    `carrying`: the inputs that hold rows; `outputs`: those that are served.
    """
    rows, counted = set(carrying), set[str]()
    why = _through(graph, rows, counted)
    if why:
        return why
    ragged = [name for name in outputs if name in counted]
    return f"how many elements output '{ragged[0]}' has depends on what is in the rows" if ragged else ""


def _through(graph: Graph, rows: set[str], counted: set[str]) -> str:
    """Why rows meet. Adds to `rows` the names whose values come from them, to `counted` those whose size does."""
    for node in graph.nodes:
        why = _at(node, rows, counted)
        if why:
            return why
    return ""


def _at(node: Node, rows: set[str], counted: set[str]) -> str:
    op, inputs = node.op, node.inputs
    if op in RANDOM:
        return f"the model draws random numbers ({op})"
    if op == "Dropout" and len(inputs) > 2 and inputs[2]:
        return "the model may drop elements at random (Dropout with a training mode)"
    touched = any(name in rows for name in inputs)
    for graph in node.graphs:  # they see the names around them; what goes in by position carries rows if anything does
        before = len(rows)
        if touched:
            rows.update(graph.inputs)
        why = _through(graph, rows, counted)
        if why:
            return why
        touched = touched or len(rows) > before
        if op == "Loop" and graph.outputs[:1] and graph.outputs[0] in rows:
            return "values of the rows decide when a loop over the whole batch ends (Loop)"
    if op in SHAPE_ALONE:
        touched = any(name in counted for name in inputs)
    if not touched:
        return ""
    if op in SCALED_TOGETHER:
        return f"the model quantises by the range of the whole batch ({op})"
    if op == "BatchNormalization" and node.attributes.get("training_mode", [0])[-1:] == [1]:
        return "the model normalises by the statistics of the batch (BatchNormalization in training mode)"
    if _reduces_all(node):
        return f"the model takes one number of all rows together ({op} over all axes)"
    for position in SIZES.get(op, ()):
        if position < len(inputs) and inputs[position] in rows:
            return f"values of the rows decide the course or the sizes for the whole batch ({op})"
    outputs = [name for name in node.outputs if name]
    rows.update(outputs)
    at = COUNTING.get(op, len(inputs))
    if op not in SHAPE_ALONE and ((at < len(inputs) and inputs[at] in rows) or any(name in counted for name in inputs)):
        counted.update(outputs)
    return ""


def _reduces_all(node: Node) -> bool:
    if not node.op.startswith("Reduce"):
        return False
    given = "axes" in node.attributes or (len(node.inputs) > 1 and node.inputs[1])
    return not given and node.attributes.get("noop_with_empty_axes", [0])[-1:] != [1]
