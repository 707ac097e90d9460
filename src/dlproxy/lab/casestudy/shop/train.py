"""Makes the shop's models again: `python -m dlproxy.lab.casestudy.shop.train FOLDER`, with dlproxy[learn,train,steps].

Called by the study's --full, too; what is packaged came of it. Not aware of: how a network is trained, or compressed.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
from msgspec import structs
from numpy.typing import NDArray

from dlproxy.cores import usable_cores
from dlproxy.lab.casestudy.shop.catalogue import Catalogue
from dlproxy.lab.casestudy.shop.examples import Examples, examples
from dlproxy.lab.learn.experiment import read
from dlproxy.lab.learn.train import train as train_one

EXPERIMENTS, MODELS = (Path(__file__).with_name(name) for name in ("experiments", "models"))
NAMES = ("classifier", "partner-a", "partner-b")  # of experiments, and of the models that they make
LEARNT, HELD_OUT = 10_000, 2_500  # uploads
SEED, JUDGING_SEED, CHOOSING_SEED = 1, 2, 4  # of uploads: for the first network; for compressed models; for the cascade
PARTNERS_SEED = 10  # and on: who learnt from other uploads errs elsewhere
WORTH = 0.9  # of what partners mend when they are always asked, the share that a cascade shall keep
OPTIONS = {"prune-channels": {"ratio": 0.3, "steps": 1, "epochs": 2}}  # of `dlproxy compress`
RECIPES = ("clean", "fuse", "fp16", "bf16", "dynamic-int8", "static-int8", *OPTIONS)
_ROWS = 100  # asked at once

Floats = NDArray[np.float32]
Tell = Callable[[str], None]


def train(
    folder: Path, *, tell: Tell, names: Sequence[str] = NAMES, learnt: int = LEARNT, held_out: int = HELD_OUT
) -> dict[str, dict[str, float]]:
    """Into `folder`: NAME.onnx of each, and figures.json, which it returns. Raises LearnError."""
    folder.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(names):
        began_at = perf_counter()
        known = examples(learnt, held_out, seed=PARTNERS_SEED + at if at else SEED, processes=usable_cores())
        known.save(folder / "uploads.npz")
        tell(f"{name}: {learnt} uploads to learn from and {held_out} held out: {perf_counter() - began_at:.0f} s")
        experiment = read(EXPERIMENTS / f"{name}.toml")
        experiment = structs.replace(experiment, settings=experiment.settings | {"data": str(folder / "uploads.npz")})
        result = train_one(experiment, folder / name, threads=usable_cores(), tell=tell)
        _write_categories(folder / name / "model.onnx", folder / f"{name}.onnx", np.unique(known.product))
        tell(f"{name}: {result.runs[0].figures} in {result.runs[0].seconds:.0f} s")
    models = {name: folder / f"{name}.onnx" for name in names}
    judged, chosen = (examples(0, held_out, seed=seed, processes=usable_cores()) for seed in (SEED, CHOOSING_SEED))
    figures = measured(models, judged) | {"cascade": cascade(models, chosen)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return figures


def _write_categories(told: Path, path: Path, products: NDArray[np.int64]) -> None:
    """The model that tells these products as one that tells how likely each category is: the sum over its products."""
    of = Catalogue.packaged().of_category()[products]
    model = onnx.load(told)
    graph, (given,) = model.graph, model.graph.output
    for node in graph.node:
        node.output[:] = ["products" if name == given.name else name for name in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(of, "category_of_products"))
    graph.node.append(onnx.helper.make_node("MatMul", ["products", "category_of_products"], [given.name]))
    given.type.tensor_type.shape.dim[1].dim_value = of.shape[1]
    onnx.save(model, path)


def measured(models: dict[str, Path], known: Examples) -> dict[str, dict[str, float]]:
    """Of each, and of the mean of all their probabilities (`together`): the share of held-out uploads that are read right, and
    of those whose drawing nothing was learnt from.
    """
    judged = known.image[known.held_out]
    found = {name: probabilities(path, judged) for name, path in models.items()}
    found["together"] = np.mean(list(found.values()), axis=0)
    unseen = known.unseen[known.held_out]
    right = {name: each.argmax(1) == known.label[known.held_out] for name, each in found.items()}
    return {
        name: {"accuracy": float(each.mean()), "accuracy, unseen drawings": float(each[unseen].mean())}
        for name, each in right.items()
    }


def cascade(models: dict[str, Path], judged: Examples) -> dict[str, float]:
    """`threshold`: the least lead of the likeliest category from which the first model's answer may stand; and its worth on
    these uploads: how often it is right (`accuracy`), the first is (`alone`), and the others are asked (`asked`).
    """
    found = [probabilities(path, judged.image) for path in models.values()]
    own, together = (each.argmax(1) == judged.label for each in (found[0], np.mean(found, axis=0)))
    second, best = np.sort(found[0], axis=1)[:, -2:].T
    enough = own.mean() + WORTH * (together.mean() - own.mean())
    for threshold in np.arange(0.0, 1.01, 0.05).tolist():
        unsure = best - second < threshold
        right = np.where(unsure, together, own).mean()
        if right >= enough:
            break
    shares = {"accuracy": right, "alone": own.mean(), "asked": unsure.mean()}
    return {"threshold": round(threshold, 2)} | {name: float(share) for name, share in shares.items()}


def probabilities(model: Path, image: Floats) -> Floats:
    """[n, categories]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"image": image[at : at + _ROWS]})[0] for at in range(0, len(image), _ROWS)]
    found: Floats = np.concatenate(parts)
    return found


def compress(folder: Path, *, learnt: int = 4_000, judged: int = 3_000, most_loss: str = "1.5%", budget: str = "8m") -> None:
    """What `dlproxy compress` makes of folder/classifier.onnx and its gate accepts: into folder/compressed, with its report.

    Raises subprocess.CalledProcessError.
    """
    for name, chosen in (("taught", examples(learnt, 0, seed=SEED)), ("judged", examples(0, judged, seed=JUDGING_SEED))):
        np.savez(folder / f"{name}.npz", image=chosen.image, label=chosen.label)
    options = [f"--set={recipe}.{name}={value}" for recipe, chosen in OPTIONS.items() for name, value in chosen.items()]
    asked = ["--data", folder / "taught.npz", "--held-out", folder / "judged.npz", "--max-loss", most_loss, "--budget", budget]
    asked += ["--recipes", ",".join(RECIPES), "--out", folder / "compressed", "--threads", "1", *options]
    command = [sys.executable, "-m", "dlproxy", "compress", folder / "classifier.onnx", *asked]
    subprocess.run([str(part) for part in command], check=True)


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    train(OUT, tell=_tell)
    compress(OUT)
