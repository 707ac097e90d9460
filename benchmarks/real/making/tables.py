"""Models trained in seconds on scikit-learn's own data sets, and rows of what they did not see.

Exported as their converters do by default, so that the labels of `wine_forest` come beside a sequence of maps.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxmltools
import skl2onnx
import xgboost
from numpy.typing import NDArray
from onnxmltools.convert.common.data_types import FloatTensorType as OtherFloatTensorType
from skl2onnx.common.data_types import FloatTensorType
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.real.making.places import Places
from benchmarks.real.making.texts import Request

OPSET = 17
REQUESTS = 32
MOST_ROWS = 4  # three requests of four hold one row


def _split(load: Any) -> list[NDArray[Any]]:
    rows, wanted = load(return_X_y=True)
    return list(train_test_split(rows.astype(np.float32), wanted, test_size=0.3, random_state=0))


def _sklearn(model: Any, width: int, **options: Any) -> bytes:
    types = [("X", FloatTensorType([None, width]))]
    converted = skl2onnx.convert_sklearn(model, initial_types=types, target_opset=OPSET, options={id(model): options})
    return bytes(converted.SerializeToString())


def digits_mlp(places: Places) -> bytes:
    rows, _, wanted, _ = _split(datasets.load_digits)
    model = MLPClassifier((128, 64), random_state=0, max_iter=60, early_stopping=True).fit(rows / 16, wanted)
    return _sklearn(model, 64, zipmap=False)


def digits_svc(places: Places) -> bytes:
    rows, _, wanted, _ = _split(datasets.load_digits)
    return _sklearn(SVC(gamma=0.001).fit(rows, wanted), 64, zipmap=False)


def wine_forest(places: Places) -> bytes:
    rows, _, wanted, _ = _split(datasets.load_wine)
    model = make_pipeline(StandardScaler(), RandomForestClassifier(100, random_state=0)).fit(rows, wanted)
    return _sklearn(model, rows.shape[1])


def cancer_lightgbm(places: Places) -> bytes:
    rows, _, wanted, _ = _split(datasets.load_breast_cancer)
    model = lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, random_state=0, verbose=-1).fit(rows, wanted)
    types = [("input", OtherFloatTensorType([None, rows.shape[1]]))]
    converted = onnxmltools.convert_lightgbm(model, initial_types=types, target_opset=15, zipmap=False)
    return bytes(converted.SerializeToString())


def diabetes_xgboost(places: Places) -> bytes:
    rows, _, wanted, _ = _split(datasets.load_diabetes)
    model = xgboost.XGBRegressor(n_estimators=300, max_depth=5, random_state=0).fit(rows, wanted)
    types = [("input", OtherFloatTensorType([None, rows.shape[1]]))]
    return bytes(onnxmltools.convert_xgboost(model, initial_types=types, target_opset=15).SerializeToString())


def _rows(load: Any, name: str, divisor: float = 1.0) -> Iterator[Request]:
    _, rows, _, _ = _split(load)
    random = np.random.default_rng(REQUESTS)
    for number in range(REQUESTS):
        chosen = random.integers(0, len(rows), MOST_ROWS if number % 4 == 3 else 1)
        yield {name: np.ascontiguousarray(rows[chosen] / np.float32(divisor))}


def digits_rows(places: Places, model: Path) -> Iterator[Request]:
    return _rows(datasets.load_digits, "X", 16.0 if "mlp" in model.stem else 1.0)


def wine_rows(places: Places, model: Path) -> Iterator[Request]:
    return _rows(datasets.load_wine, "X")


def cancer_rows(places: Places, model: Path) -> Iterator[Request]:
    return _rows(datasets.load_breast_cancer, "input")


def diabetes_rows(places: Places, model: Path) -> Iterator[Request]:
    return _rows(datasets.load_diabetes, "input")
