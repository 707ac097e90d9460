"""The recipe prune-layers: fewer of a network's repeated blocks, such as a transformer's layers; what is left is trained on.

Named in the table of recipes. Not aware of: how candidates are judged.
"""

from typing import Any

import onnx
import torch
from msgspec.structs import replace

from dlproxy.compress.recipe import Context, Made, RecipeError, Source, Step
from dlproxy.compress.recipes.graphs import finish
from dlproxy.compress.recipes.torch.blocks import Block, repeated, without
from dlproxy.compress.recipes.torch.export import ORT, simplified
from dlproxy.compress.recipes.torch.modules import Trainable, learnable, number, read, trainable, write_back
from dlproxy.compress.recipes.torch.training import Plan, fit, labels_of, loss_on, planned, reproducible

NAME = "prune-layers"
_TRIED_ON = 128  # examples by which it is told which layer is missed least


def prune_layers(source: Source, context: Context) -> Made:
    """Takes out the block without which the training loss is least, one by one, until the share `keep` of them is left.
    In `steps` parts, with an epoch of training between them and `epochs` at the end, on labels and the original's answers.
    The ONNX graph is what is cut, of whatever the model was made. Raises RecipeError.
    """
    labels = labels_of(context)
    keep = number(context.options, "keep", 0.5, low=0.01, high=0.99)
    steps = int(number(context.options, "steps", 1, low=1, high=100))
    plan = planned(context, epochs=3, lr=1e-4)
    of = trainable(Source(source.onnx), context.training)
    model = simplified(source.onnx)
    layers = repeated(model)
    goal = len(layers) - max(1, round(keep * len(layers)))
    if goal < 1:
        raise RecipeError(
            f"{len(layers)} layers are repeated in it, and {keep:.0%} of them are to stay"
            if layers
            else "it has no repeated layers: blocks one after the other with the same operators, that add to what they take"
        )
    gone: list[Block] = []
    with reproducible(seed=context.seed, threads=context.threads):
        tried = torch.randperm(len(labels))[:_TRIED_ON]
        for step in range(1, min(steps, goal) + 1):
            while len(gone) < goal * step // min(steps, goal):
                gone.append(_least_missed(model, layers, gone, of, labels, plan, tried))
            context.tell(f"without {_numbered(layers, gone)} of {len(layers)} layers")
            found = learnable(without(model, gone))
            last = len(gone) == goal
            fit(found.module, of, labels, plan if last else replace(plan, epochs=1), context)
            write_back(found, model)
    by, settings = f"{ORT}, torch {torch.__version__}", {"keep": keep, "steps": steps, "seed": context.seed}
    made = Step(NAME, by, {**settings, **plan.settings(), "gone": _numbered(layers, gone)})
    notes = [f"{len(layers) - goal} of {len(layers)} layers are left: gone are {_numbered(layers, gone)}, counted from 1"]
    return finish(without(model, gone), source, context, NAME, [made], notes)


def _least_missed(
    model: onnx.ModelProto, layers: list[Block], gone: list[Block], of: Trainable, labels: Any, plan: Plan, tried: Any
) -> Block:
    losses = {
        layer: loss_on(read(without(model, [*gone, layer])).module, of, labels, plan, tried)
        for layer in layers
        if layer not in gone
    }
    return min(losses, key=losses.__getitem__)


def _numbered(layers: list[Block], gone: list[Block]) -> str:
    return ", ".join(str(number) for number, layer in enumerate(layers, 1) if layer in gone)
