"""Distillation: a smaller student learns the original's answers along with the labels (Hinton et al. 2015).

Named in the table of recipes. Not aware of: how candidates are judged.
"""

import copy
from typing import Any

import torch
from torch import nn

from dlproxy.compress import CompressError
from dlproxy.compress.recipe import Context, Made, RecipeError, Source, Step
from dlproxy.compress.recipes.torch.modules import Trainable, first, made_by, number, trainable
from dlproxy.compress.recipes.torch.prune import answering
from dlproxy.compress.recipes.torch.training import fit, labels_of, planned, reproducible
from dlproxy.instance.runtime.declared import one_line

NAME = "distil"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def distil(source: Source, context: Context) -> Made:
    """The student is the user's own (option `student`, as file.py:make), or the original's architecture with a part of the
    width of every layer (`width`, a share), from fresh weights. Raises RecipeError.
    """
    labels = labels_of(context)
    plan = planned(context, epochs=40, lr=3e-3, soft=0.7)
    width = number(context.options, "width", 0.5, low=0.01, high=1)
    given = context.options.get("student", "")
    of = trainable(source, context.training)
    with reproducible(seed=context.seed, threads=context.threads):
        student = _given(str(given)) if given else narrowed(of, width)
        _check(student, of)
        loss = fit(student, of, labels, plan, context)
    path = context.folder / f"{NAME}.onnx"
    of.save(student, path)
    settings = {"seed": context.seed, **plan.settings(), **({"student": str(given)} if given else {"width": width})}
    before, after = (sum(one.numel() for one in module.parameters()) for module in (of.module, student))
    notes = [f"a student of {after:,} weights for {before:,}, validation loss {loss:.4f}"]
    return Made(path, [Step(NAME, f"torch {torch.__version__}", settings)], notes)


def _given(target: str) -> Any:
    try:
        return made_by(target)
    except CompressError as error:
        raise RecipeError(f"option student: {error}") from error


class _Fitting(nn.Module):  # type: ignore[misc] # torch's types are not read
    """Stands for a layer until its first input says how wide it must be."""

    def __init__(self, layer: Any, width: float) -> None:
        super().__init__()
        self.old, self.width = layer, width
        self.new: Any = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        self.new = self.new or _refitted(self.old, inputs[0], self.width)
        return self.new(*inputs, **named)


def narrowed(of: Trainable, width: float) -> Any:
    """The same architecture with layers of a part of the width and fresh weights; the answer's size stays.

    Widths follow from one forward pass. Raises RecipeError if sizes stand as numbers in the module's own code.
    """
    last = answering(of.module, tuple(tensor[:2] for tensor in of.tensors))
    paths = {name for name, one in of.module.named_modules() if any(one is layer for layer in last)}
    student = copy.deepcopy(of.module)
    names = [
        name
        for name, one in student.named_modules()
        if isinstance(one, (nn.Linear, nn.Embedding, nn.RNNBase, nn.LayerNorm, *_CONVS, *_NORMS))
    ]
    if any(isinstance(one, nn.MultiheadAttention) for one in student.modules()):
        raise RecipeError("it has attention, whose width cannot be told from outside; give option student = file.py:make")
    for name in names:
        _replace(student, name, _Fitting(student.get_submodule(name), 1.0 if name in paths else width))
    try:
        with torch.no_grad():
            student.eval()(*[tensor[:2] for tensor in of.tensors])
    except Exception as error:  # whatever the module raises when sizes do not fit
        raise RecipeError(
            f"it does not run with {width:.0%} of its width ({one_line(error)}); give option student = file.py:make"
        ) from error
    for name in names:
        fitting = student.get_submodule(name)
        _replace(student, name, fitting.new or fitting.old)
    return student


def _replace(module: Any, name: str, new: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _refitted(old: Any, tensor: Any, width: float) -> Any:
    """A fresh layer of this kind for this input."""
    if isinstance(old, nn.Linear):
        return nn.Linear(tensor.shape[-1], _part(old.out_features, width), bias=old.bias is not None)
    if isinstance(old, nn.Embedding):
        return nn.Embedding(old.num_embeddings, _part(old.embedding_dim, width), padding_idx=old.padding_idx)
    if isinstance(old, _NORMS):
        return type(old)(tensor.shape[1], eps=old.eps, momentum=old.momentum, affine=old.affine)
    if isinstance(old, nn.LayerNorm):
        return nn.LayerNorm((*tensor.shape[-len(old.normalized_shape) :],), eps=old.eps)
    if isinstance(old, nn.RNNBase):
        return type(old)(
            tensor.shape[-1],
            _part(old.hidden_size, width),
            old.num_layers,
            bias=old.bias,
            batch_first=old.batch_first,
            dropout=old.dropout,
            bidirectional=old.bidirectional,
        )
    groups = tensor.shape[1] if old.groups == old.in_channels > 1 else old.groups
    out = (
        old.out_channels // old.in_channels * groups
        if groups > 1 and old.groups == old.in_channels
        else _part(old.out_channels, width)
    )
    return type(old)(
        tensor.shape[1],
        out - out % groups,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        groups=groups,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )


def _part(size: int, width: float) -> int:
    """At least 1; a multiple of 8, the width of a vector, where there is enough of it."""
    part = max(1, round(size * width))
    return part if width == 1 or part < 32 else part // 8 * 8


def _check(student: Any, of: Trainable) -> None:
    """Raises RecipeError for a student that does not take the inputs, or answers in another form."""
    try:
        with torch.no_grad():
            got = first(student.eval()(*[tensor[:2] for tensor in of.tensors]))
    except Exception as error:
        raise RecipeError(f"the student cannot take the model's inputs: {one_line(error)}") from error
    if got.shape != of.answers[:2].shape:
        raise RecipeError(
            f"the student answers two rows in the shape {tuple(got.shape)}; the model's is {tuple(of.answers[:2].shape)}"
        )
