"""One model and its inputs: `python -m benchmarks.real.making NAME PACKAGES FOLDER` writes NAME.onnx and NAME.npz into FOLDER,
and NAME.more where there is more of it.

Arrays are called NUMBER/INPUT: request NUMBER holds them all. Not aware of: dlproxy.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks.real.catalog import CATALOG, RealModel
from benchmarks.real.making import images, minilm, signals, tables, texts
from benchmarks.real.making.places import Places


def make(model: RealModel, places: Places, folder: Path) -> None:
    path = folder / f"{model.name}.onnx"
    if model.file is not None and model.package is not None:
        shutil.copyfile(places.of(model.package) / model.file, path)
    else:
        assert model.maker is not None
        module = minilm if hasattr(minilm, model.maker) else tables
        path.write_bytes(getattr(module, model.maker)(places))
    more = getattr(minilm, f"{model.name}_more", None)
    if more is not None:
        more(places, folder / f"{model.name}.more")
    module = next(found for found in (texts, images, signals, tables) if hasattr(found, model.inputs))
    requests = getattr(module, model.inputs)(places, path)
    arrays = {f"{number}/{name}": array for number, request in enumerate(requests) for name, array in request.items()}
    np.savez(folder / f"{model.name}.npz", **arrays)


if __name__ == "__main__":
    make(CATALOG[sys.argv[1]], Places(Path(sys.argv[2])), Path(sys.argv[3]))
