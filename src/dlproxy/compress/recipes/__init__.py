"""The table of recipes, by name, in the order in which they are tried. Each stands in a file of its own.

Asked by search.py and by the help. Not aware of: what the packages they need do.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from msgspec import Struct

from dlproxy.compress.recipe import Context, Made, Recipe, RecipeError, Source

_ONNX = ("onnx",)
_TRAINS = ("onnx", "torch")
_PRUNES = (*_TRAINS, "torch_pruning")
_TRAINING = ("epochs", "lr", "batch", "optimizer", "soft", "temperature")


class Listed(Struct):
    """A recipe of whose code nothing is imported before it is made. `at`: module:function, below this package."""

    name: str
    what: str
    at: str
    needs: tuple[str, ...] = _ONNX
    trains: bool = False
    options: tuple[str, ...] = ()

    def make(self, source: Source, context: Context) -> Made:
        missing = [package for package in self.needs if find_spec(package) is None]
        if missing:
            extras = "compress,train" if self.trains else "compress"
            raise RecipeError(f"{self.name} needs {', '.join(missing)}: pip install 'dlproxy[{extras}]'")
        module, _, function = self.at.partition(":")
        made: Made = getattr(import_module(f"{__name__}.{module}"), function)(source, context)
        return made


_ALL = (
    Listed("clean", "fold constants, remove what nobody reads", "optimise:clean"),
    Listed("fuse", "ONNX Runtime's fused operators; attention as one", "optimise:fuse"),
    Listed("fp16", "weights and computation in float16", "halves:fp16"),
    Listed("bf16", "weights stored in bfloat16", "halves:bf16"),
    Listed("dynamic-int8", "int8 products, scaled by the whole batch", "dynamic:make"),
    Listed("rows-int8", "int8 products, each row with a scale of its own", "rows:make"),
    Listed(
        "static-int8",
        "int8 with ranges from calibration, sensitive operators left out",
        "static:make",
        options=("calibration", "activations"),
    ),
    Listed("weights-int8", "large matrices in 8 bits, activations in floats", "weights:int8", options=("block",)),
    Listed("weights-int4", "large matrices in 4 bits, activations in floats", "weights:int4", options=("block",)),
    Listed(
        "prune-layers", "fewer layers, trained on", "torch.layers:prune_layers", _TRAINS, True, ("keep", "steps", *_TRAINING)
    ),
    Listed(
        "prune-channels",
        "fewer channels, neurons, heads, trained on",
        "torch.prune:prune_channels",
        _PRUNES,
        True,
        ("ratio", "steps", *_TRAINING),
    ),
    Listed(
        "prune-weights",
        "weights set to zero, trained on; no quicker",
        "torch.prune:prune_weights",
        _TRAINS,
        True,
        ("ratio", "steps", *_TRAINING),
    ),
    Listed("qat", "int8 that is trained for", "torch.qat:qat", _TRAINS, True, _TRAINING),
    Listed(
        "distil",
        "a smaller network learns to answer as this one",
        "torch.distil:distil",
        _TRAINS,
        True,
        ("width", "student", *_TRAINING),
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
