"""Recipes that change how a graph computes and not what: folded constants, dead nodes, fused operators.

In the table of recipes. Not aware of: that ONNX Runtime does most of it again whenever a model is loaded; the gate sees to what
is left of it.
"""

from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.graphs import Model, changed, count, finish, library, optimise, read, step

ATTENTION = ("Attention", "MultiHeadAttention")


def clean(source: Source, context: Context) -> Made:
    """Constants folded, nodes removed that do nothing or nobody reads, pairs merged, in ONNX's own operators."""
    model = read(source)
    cleaned = optimise(model, context, "clean", "BASIC")
    if not changed(model, cleaned):
        raise RecipeError("there is nothing to clean up")
    return finish(cleaned, source, context, "clean", [step("clean", level="basic")])


def fuse(source: Source, context: Context) -> Made:
    """ONNX Runtime's fused operators; of a transformer also its attention as one, where the pattern is known."""
    model = read(source)
    fused = _attention(model, context)
    steps = [] if fused is None else [step("fuse attention", blocks=count(fused, ATTENTION))]
    made = optimise(model if fused is None else fused, context, "fuse", "EXTENDED")
    if not changed(model, made):
        raise RecipeError("there is nothing to fuse")
    return finish(made, source, context, "fuse", [*steps, step("fuse", level="extended")])


def _attention(model: Model, context: Context) -> Model | None:
    """None where no attention is found: a Softmax between matrix products that onnxruntime.transformers knows."""
    if not count(model, ("Softmax",)) or count(model, ("MatMul",)) < 2:
        return None
    plain = optimise(model, context, "attention", "BASIC")
    try:
        with library("onnxruntime.transformers"):
            from onnxruntime.transformers.fusion_options import FusionOptions
            from onnxruntime.transformers.optimizer import optimize_by_fusion

            options = FusionOptions("bert")
            options.enable_shape_inference = False  # which takes sympy; what needs it, ONNX Runtime's own optimiser fuses, too
            fused: Model = optimize_by_fusion(plain, model_type="bert", optimization_options=options).model
    except RecipeError as error:
        context.tell(f"attention is left as it is: {error}")
        return None
    return fused if count(fused, ATTENTION) else None
