"""Requests from files and from metadata: what is sent, which comes next, and what is refused with a remedy."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.lab.load import payload
from dlproxy.lab.load.settings import LoadError, Settings
from dlproxy.lab.load.target import Model
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import to_array

ONE = Model("m", (TensorSpec("x", DType.FP32, (-1, 3)),), ())
TWO = Model("m", (TensorSpec("a", DType.INT64, (-1,)), TensorSpec("b", DType.BYTES, (-1, 2))), ())
FIXED = Model("m", (TensorSpec("x", DType.FP32, (2, 3)),), ())


def _settings(**options: Any) -> Settings:
    return Settings(url="http://h", **options)


def _arrays(sample: payload.Sample) -> dict[str, Any]:
    return {tensor.name: to_array(tensor.dtype, tensor.shape, tensor.data) for tensor in sample}


def test_samples_of_a_file_are_grouped_into_rows(tmp_path: Path) -> None:
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    np.save(tmp_path / "x.npy", values)
    made = payload.samples(ONE, _settings(input=tmp_path / "x.npy", rows=2), 1)
    assert len(made) == 3  # the seventh sample makes no request of two
    assert np.array_equal(np.concatenate([_arrays(sample)["x"] for sample in made]), values[:6])


def test_an_npz_holds_an_array_for_each_input(tmp_path: Path) -> None:
    texts = np.array([["a", "bc"], ["", "ü"], ["d", "e"]])
    np.savez(tmp_path / "x.npz", a=np.arange(3), b=texts)
    made = payload.samples(TWO, _settings(input=tmp_path / "x.npz", keys=2), 1)
    assert len(made) == 2
    assert _arrays(made[1])["a"].tolist() == [1]
    assert _arrays(made[1])["b"].tolist() == [[b"", "ü".encode()]]


def test_bytes_of_a_file_are_not_shortened_in_silence(tmp_path: Path) -> None:
    model = Model("m", (TensorSpec("x", DType.BYTES, (-1,)),), ())
    np.save(tmp_path / "x.npy", np.array([b"\xff\xd8", b"\xff"]))
    made = payload.samples(model, _settings(input=tmp_path / "x.npy"), 1)
    assert [_arrays(sample)["x"].tolist() for sample in made] == [[b"\xff\xd8"], [b"\xff"]]
    np.save(tmp_path / "x.npy", np.array([b"PK\0\0", b"a\0"]))
    with pytest.raises(LoadError, match="ends in a zero byte"):
        payload.samples(model, _settings(input=tmp_path / "x.npy"), 1)


@pytest.mark.parametrize(("shape", "requests"), [((6, 3), 3), ((5, 2, 3), 5)])
def test_a_model_with_a_fixed_number_of_rows_gets_whole_tensors(tmp_path: Path, shape: Any, requests: int) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    made = payload.samples(FIXED, _settings(input=tmp_path / "x.npy"), 1)
    assert [list(sample[0].shape) for sample in made] == [[2, 3]] * requests


@pytest.mark.parametrize(
    ("array", "options", "clues"),
    [
        (np.zeros((4, 3)), {}, ["float64", "float32", "astype('float32')"]),
        (np.zeros((4, 5), np.float32), {}, ["[4, 5]", "[samples, 3]"]),
        (np.zeros(3, np.float32), {}, ["[3]", "[samples, 3]"]),
        (np.float32(1), {}, ["[]", "[samples, 3]"]),
        (np.zeros((1, 3), np.float32), {"rows": 2}, ["1 samples", "takes 2"]),
        (np.zeros((0, 3), np.float32), {}, ["0 samples"]),
        (np.zeros((4, 3), np.float32), {"keys": 9}, ["--keys 9", "only 4"]),
        (np.zeros((1, 3), np.float32), {"zipf": 1.0}, ["--zipf", "--keys N"]),
    ],
)
def test_arrays_that_do_not_suit_are_explained(tmp_path: Path, array: Any, options: Any, clues: list[str]) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(LoadError) as caught:
        payload.samples(ONE, _settings(input=tmp_path / "x.npy", **options), 1)
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


def test_files_that_are_no_samples_are_explained(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("dear diary")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    np.savez(tmp_path / "uneven.npz", a=np.arange(3), b=np.full((2, 2), "t"))
    np.save(tmp_path / "one.npy", np.arange(3))
    for name, model, clue in (
        ("nowhere.npy", ONE, "cannot be read"),
        ("text.npy", ONE, "is not a .npy or .npz"),
        ("cut.npz", ONE, "is not a .npy or .npz"),
        ("objects.npy", ONE, "is not a .npy or .npz"),
        ("other.npz", ONE, "holds z; model 'm' takes 'x' FP32 [N,3]"),
        ("uneven.npz", TWO, "'a' 3, 'b' 2"),
        ("one.npy", TWO, "give an .npz"),
    ):
        with pytest.raises(LoadError, match=name.partition(".")[0]) as caught:
            payload.samples(model, _settings(input=tmp_path / name), 1)
        assert clue in str(caught.value)


def test_made_up_inputs_have_the_declared_types_and_are_the_same_for_the_same_seed() -> None:
    specs = tuple(TensorSpec(dtype.value, dtype, (-1, 2, -1)) for dtype in DType)
    model = Model("m", specs, ())
    made, again, other = (payload.samples(model, _settings(rows=3, keys=4, seed=seed), 8) for seed in (1, 1, 2))
    assert all(list(tensor.shape) == [3, 2, 8] for tensor in made[0])
    encoded = [payload.encode("binary", sample, None) for sample in made]
    assert encoded == [payload.encode("binary", sample, None) for sample in again]
    assert encoded[0] != payload.encode("binary", other[0], None)
    assert len({body for body, _ in encoded}) == 4


def test_shape_gives_open_dimensions_and_nothing_else() -> None:
    model = Model("m", (TensorSpec("x", DType.FP32, (-1, -1, 8)),), ())
    (sample,) = payload.samples(model, _settings(shapes={"x": (5, 8)}, keys=1), 1)
    assert list(sample[0].shape) == [1, 5, 8]
    assert payload.open_dimensions(model, _settings())
    assert not payload.open_dimensions(model, _settings(shapes={"x": (5, 8)}))
    assert not payload.open_dimensions(ONE, _settings())
    for shapes, clue in (({"x": (5, 9)}, "x:1,8"), ({"x": (5,)}, "2 sizes"), ({"y": (1,)}, "no such input")):
        with pytest.raises(LoadError, match=clue):
            payload.samples(model, _settings(shapes=shapes), 1)
    with pytest.raises(LoadError, match="2 rows; omit --rows"):
        payload.samples(FIXED, _settings(rows=3), 1)
    with pytest.raises(LoadError, match="do not fit into memory"):
        payload.samples(model, _settings(shapes={"x": (100_000_000, 8)}), 1)


@pytest.mark.parametrize("protocol", ["binary", "json"])
def test_more_headers_stand_beside_those_of_the_protocol(protocol: str) -> None:
    (sample,) = payload.samples(ONE, _settings(keys=1), 1)
    body, headers = payload.encode(protocol, sample, None)
    more = (("x-tenant-id", "shop"), ("x-request-priority", "1"))
    assert payload.encode(protocol, sample, None, more) == (body, {**headers, **dict(more)})
    head = payload.whole_request("/p", "h", payload.encode(protocol, sample, None, more)).partition(b"\r\n\r\n")[0]
    assert b"\r\nx-tenant-id: shop\r\nx-request-priority: 1\r\n" in head


def test_binary_and_json_say_the_same() -> None:
    ((tensor,),) = payload.samples(ONE, _settings(keys=1, rows=2), 1)
    body, headers = payload.encode("binary", [tensor], 0.05)
    size = int(headers["Inference-Header-Content-Length"])
    head = json.loads(body[:size])
    assert head["parameters"] == {"binary_data_output": True, "timeout": 50_000}
    assert head["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}]
    said = json.loads(payload.encode("json", [tensor], 0.05)[0])
    assert said["parameters"] == {"timeout": 50_000}
    assert said["inputs"][0]["data"] == np.frombuffer(body[size:], np.float32).tolist()
    assert "parameters" not in json.loads(payload.encode("json", [tensor], None)[0])


def test_what_has_no_json_form_is_refused() -> None:
    model = Model("m", (TensorSpec("x", DType.FP16, (-1,)),), ())
    with pytest.raises(LoadError, match="use --protocol binary"):
        payload.encode("json", payload.samples(model, _settings(), 1)[0], None)


def test_in_turn_every_request_comes_equally_often_and_processes_start_apart() -> None:
    orders = [list(islice(payload.in_order(10, _settings(processes=2), index), 20)) for index in (0, 1)]
    assert all(Counter(order) == dict.fromkeys(range(10), 2) for order in orders)
    assert [order[0] for order in orders] == [0, 5]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_zipf_frequencies(exponent: float) -> None:
    draws, keys = 100_000, 50
    chosen = Counter(islice(payload.in_order(keys, _settings(zipf=exponent), 0), draws))
    weights = 1.0 / np.arange(1, keys + 1) ** exponent
    expected = draws * weights / weights.sum()
    found = np.array([chosen[key] for key in range(keys)])
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected))  # five standard deviations


def test_processes_draw_differently_and_repeatably() -> None:
    first, again, second = (list(islice(payload.in_order(50, _settings(zipf=1.0), index), 100)) for index in (0, 0, 1))
    assert first == again
    assert first != second
