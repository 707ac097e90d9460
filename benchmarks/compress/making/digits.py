"""Trains a network of networks.py on scikit-learn's digits: `python -m benchmarks.compress.making.digits NAME FOLDER`.

Writes NAME.pt and networks.py, model.onnx, train.npz, heldout.npz. Needs PyTorch. The same seed gives the same weights on the
same machine; the examples that are held out have never been seen.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from benchmarks.compress.making import networks

SEED, EPOCHS, ROWS, RATE = 23, 50, 64, 2e-3
HELD_OUT = 900
INPUTS = {"digits_cnn": ("image", (1, 8, 8)), "digits_lstm": ("lines", (8, 8)), "digits_mlp": ("pixels", (64,))}


def trained(network: nn.Module, examples: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """On examples [n, ...] that are shifted a little, each in its own way."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(examples) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    network.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(examples)).split(ROWS):
            loss = functional.cross_entropy(network(_blurred(examples[chosen])), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _blurred(examples: torch.Tensor) -> torch.Tensor:
    """Shifted by up to half a pixel, rotated and stretched by up to a tenth, whatever the shape that they come in."""
    images = examples.reshape(-1, 1, 8, 8)
    change = torch.eye(2, 3) + torch.empty(len(images), 2, 3).uniform_(-0.12, 0.12)
    grid = functional.affine_grid(change, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).reshape(examples.shape)


def make(name: str, folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    argument, shape = INPUTS[name]
    pixels = digits.data[order].astype(np.float32).reshape(-1, *shape)
    labels = digits.target[order].astype(np.int64)
    for part, rows in (("heldout", slice(HELD_OUT)), ("train", slice(HELD_OUT, None))):
        np.savez(folder / f"{part}.npz", **{argument: pixels[rows], "labels": labels[rows]})
    network = getattr(networks, name)()
    trained(network, torch.from_numpy(pixels[HELD_OUT:]), torch.from_numpy(labels[HELD_OUT:]))
    torch.save(network.state_dict(), folder / f"{name}.pt")
    shutil.copyfile(networks.__file__, folder / "networks.py")
    rows = {argument: {0: torch.export.Dim("rows", min=1, max=4096)}}
    torch.onnx.export(
        network,
        (torch.from_numpy(pixels[:2]),),
        folder / "model.onnx",
        dynamo=True,
        dynamic_shapes=rows,
        external_data=False,
        input_names=[argument],
        output_names=["scores"],
        verbose=False,
    )


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
