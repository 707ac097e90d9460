"""The shop's models and pictures as the study takes them. Called by cli/casestudy.py. Not aware of: servers, load."""

from collections.abc import Sequence
from pathlib import Path

from dlproxy.lab.casestudy.replay import Item
from dlproxy.lab.casestudy.shop.catalogue import Catalogue
from dlproxy.lab.casestudy.steps import Goods

MODELS = Path(__file__).parent / "shop" / "models"


def pictures(count: int, seed: int) -> Sequence[Item]:
    """That no model was trained on."""
    uploads = Catalogue.packaged().uploads(count, seed=seed, held_out=True)
    return [Item(upload.jpeg, upload.category) for upload in uploads]


def goods() -> Goods:
    """The packaged models."""
    return Goods(
        classifier=MODELS / "classifier.onnx",
        compressed=MODELS / "classifier-int8.onnx",
        light=MODELS / "light.onnx",
        partners=(MODELS / "partner-a.onnx", MODELS / "partner-b.onnx"),
        accuracy={},
        threshold=0.5,
    )
