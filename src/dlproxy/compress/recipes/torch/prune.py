"""Pruning with fine-tuning: channels, neurons and attention heads, which leaves smaller dense layers; and single weights.

Named in the table of recipes. Not aware of: how candidates are judged.
"""

import gzip
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from dlproxy.compress.recipe import Context, Made, RecipeError, Source, Step
from dlproxy.compress.recipes.torch.export import flat
from dlproxy.compress.recipes.torch.modules import Trainable, number, trainable
from dlproxy.compress.recipes.torch.training import fit, labels_of, planned, reproducible
from dlproxy.instance.runtime.declared import one_line

_MOST = 0.9  # of one layer: a global ranking may otherwise take a whole one
_ROUND = 8  # channels are kept in multiples of a vector's width
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_PROJECTIONS = re.compile(r"(q|k|v|qkv|to_q|to_k|to_v|to_qkv|query|key|value|c_attn|(q|k|v|qkv|in)_?(proj|lin))")
_WIDTHS = ("all_head_size", "inner_dim", "attention_head_size_all")  # of a module with heads: heads x size of a head
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_channels(source: Source, context: Context) -> Made:
    """Ranks groups of channels that depend on each other over the whole network by magnitude (Fang et al. 2023, DepGraph),
    removes the least in steps, and fine-tunes after each (options `ratio`, of all channels, and `steps`). Raises RecipeError.
    """
    import torch_pruning

    labels = labels_of(context)
    ratio = number(context.options, "ratio", 0.5, low=0.01, high=0.95)
    steps = int(number(context.options, "steps", 2, low=1, high=100))
    plan = planned(context, epochs=8, lr=1e-3)
    of = trainable(source, context.training)
    before = _weights(of.module)
    with reproducible(seed=context.seed, threads=context.threads):
        pruner = _pruner(of, ratio, steps)
        for step in range(1, steps + 1):
            _prune(pruner, of)
            context.tell(f"step {step} of {steps}: {_weights(of.module):,} of {before:,} weights are left")
            fit(of.module, of, labels, plan, context)
    after = _weights(of.module)
    if after == before:
        raise RecipeError("nothing could be removed: no layer's channels are free to go, or a ratio this small takes none")
    path = context.folder / "prune-channels.onnx"
    of.save(of.module, path)
    settings = {"ratio": ratio, "steps": steps, "seed": context.seed, **plan.settings()}
    made = Step("prune-channels", f"torch-pruning {torch_pruning.__version__}, torch {torch.__version__}", settings)
    return Made(path, [made], [f"{before:,} weights became {after:,}"])


def prune_weights(source: Source, context: Context) -> Made:
    """Sets the weights of least magnitude to zero over all layers, more with every step (Zhu & Gupta 2017: cubic), and trains
    what is left (options `ratio`, of all weights, and `steps`). Raises RecipeError.
    """
    labels = labels_of(context)
    ratio = number(context.options, "ratio", 0.5, low=0.01, high=0.99)
    steps = int(number(context.options, "steps", 3, low=1, high=100))
    plan = planned(context, epochs=4, lr=1e-3)
    of = trainable(source, context.training)
    weights = list(_matrices(of.module))
    if not weights:
        raise RecipeError("it has no linear, convolutional or recurrent layers whose weights could go")
    with reproducible(seed=context.seed, threads=context.threads):
        for step in range(1, steps + 1):
            share = ratio * (1 - (1 - step / steps) ** 3)
            masks = _masks(weights, share)
            _apply(weights, masks)
            context.tell(f"step {step} of {steps}: {share:.0%} of the weights are zero")
            fit(of.module, of, labels, plan, context, after_step=partial(_apply, weights, masks))
    path = context.folder / "prune-weights.onnx"
    of.save(of.module, path)
    zeros = sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)
    packed = len(gzip.compress(path.read_bytes(), 6)) / len(gzip.compress(source.onnx.read_bytes(), 6))
    settings = {"ratio": ratio, "steps": steps, "seed": context.seed, **plan.settings()}
    notes = [
        f"{zeros:.0%} of the weights are zero. Dense kernels multiply by zeros as by any number: it is no quicker, and the "
        f"file is as large; packed by gzip it is {packed:.0%} of the original, packed likewise"
    ]
    return Made(path, [Step("prune-weights", f"torch {torch.__version__}", settings)], notes)


def _pruner(of: Trainable, ratio: float, steps: int) -> Any:
    """Raises RecipeError if the module is none that can be traced."""
    import torch_pruning

    example = tuple(tensor[:2] for tensor in of.tensors)
    heads = _heads(of.module)
    kept = [
        *answering(of.module, example),
        *(one for one in of.module.modules() if isinstance(one, nn.RNNBase | nn.MultiheadAttention)),
    ]
    if not any(isinstance(one, _DENSE) and one not in kept for one in of.module.modules()):
        raise RecipeError("it has no linear or convolutional layers besides the last one, whose channels could go")
    try:
        return torch_pruning.pruner.BasePruner(
            of.module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=max(_MOST, ratio),
            iterative_steps=steps,
            ignored_layers=kept,
            round_to=_ROUND if _narrowest(of.module, kept) >= 4 * _ROUND else None,
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
    except Exception as error:  # its own, torch's, and whatever the module raises when it is traced
        raise RecipeError(f"the layers that depend on each other cannot be found: {one_line(error)}") from error


def _prune(pruner: Any, of: Trainable) -> None:
    try:
        pruner.step()
        _tell_heads(of.module, pruner.num_heads)
        with torch.no_grad():
            of.module(*[tensor[:2] for tensor in of.tensors])
    except Exception as error:
        raise RecipeError(
            f"with fewer channels the module does not run ({one_line(error)}); sizes that its forward has as numbers "
            "must come from its layers"
        ) from error


def answering(module: Any, example: tuple[Any, ...]) -> list[Any]:
    """The layers whose channels are the answer's: from the outputs backwards, the first that have weights."""
    owners = {id(one): layer for layer in module.modules() if isinstance(layer, _DENSE) for one in layer.parameters(False)}
    found: list[Any] = []
    waiting = [tensor.grad_fn for _, tensor in flat(module(*example)) if tensor.grad_fn is not None]
    seen = set()
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        before = [one for one, _ in step.next_functions if one is not None]
        near = before + [
            one
            for first in before
            if type(first).__name__ in ("TBackward0", "PermuteBackward0")
            for one, _ in first.next_functions
        ]
        layers = [owners[id(one.variable)] for one in near if hasattr(one, "variable") and id(one.variable) in owners]
        found += layers
        waiting += [] if layers else before
    return found


def _heads(module: Any) -> dict[Any, int]:
    """The projections of attention modules that say how many heads they have, and how many."""
    found = {}
    for one in module.modules():
        count = next((value for name in _HEADS if isinstance(value := getattr(one, name, None), int)), 0)
        for name, child in one.named_children() if count > 1 and not isinstance(one, nn.MultiheadAttention) else ():
            if isinstance(child, nn.Linear) and _PROJECTIONS.fullmatch(name):
                found[child] = count
    return found


def _tell_heads(module: Any, heads: dict[Any, int]) -> None:
    """Attention modules reshape by their own count."""
    for one in module.modules():
        counts = [heads[child] for child in one.children() if isinstance(child, nn.Linear) and child in heads]
        for name in _HEADS if counts else ():
            before = getattr(one, name, None)
            if isinstance(before, int):
                setattr(one, name, counts[0])
                for width in _WIDTHS:
                    if isinstance(size := getattr(one, width, None), int):
                        setattr(one, width, size // before * counts[0])


def _narrowest(module: Any, kept: list[Any]) -> int:
    """Channels of the layer that has the fewest, of those that lose any."""
    return min(int(one.weight.shape[0]) for one in module.modules() if isinstance(one, _DENSE) and one not in kept)


def _matrices(module: Any) -> Iterator[Any]:
    for layer in module.modules():
        if isinstance(layer, (*_DENSE, nn.RNNBase)):
            yield from (one for one in layer.parameters(recurse=False) if one.ndim > 1)


def _masks(weights: list[Any], share: float) -> list[Any]:
    """False for that share of all the weights, the least of them. By place among equals, so that the share is met exactly."""
    sizes = torch.cat([one.detach().abs().reshape(-1) for one in weights])
    keep = torch.ones(len(sizes), dtype=torch.bool)
    keep[torch.argsort(sizes, stable=True)[: int(share * len(sizes))]] = False
    parts = torch.split(keep, [one.numel() for one in weights])
    return [part.reshape(one.shape) for part, one in zip(parts, weights, strict=True)]


def _apply(weights: list[Any], masks: list[Any]) -> None:
    with torch.no_grad():
        for one, mask in zip(weights, masks, strict=True):
            one.mul_(mask)


def _weights(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())
