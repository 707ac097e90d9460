"""Parts that are run one after the other answer as the whole does, wherever it is cut and whatever crosses the cut."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dlproxy.compress.split.files import TIED, PartFile, Transfer, part_files, save
from dlproxy.compress.split.graph import Network
from dlproxy.compress.split.linears import shared, shares_of
from dlproxy.compress.split.probing import Examples, carried_by
from tests import models
from tests.compress.split import networks

QUIET = ort.SessionOptions()
QUIET.log_severity_level = 4


def network_of(made: models.Model, folder: Path) -> tuple[Network, Examples]:
    examples = Examples(networks.save(made, folder))
    return Network(made, carried_by(made, examples)), examples


def run(paths: list[Path], feed: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(feed)
    for path in paths:
        session = ort.InferenceSession(path, QUIET)
        names = [one.name for one in session.get_outputs()]
        values |= zip(names, session.run(names, {one.name: values[one.name] for one in session.get_inputs()}), strict=True)
    return values


def written(files: list[PartFile], folder: Path) -> list[Path]:
    names = [f"part{number}" for number in range(len(files))]
    save(files, names, folder)
    return [folder / f"{name}.onnx" for name in names]


def off(made: models.Model, paths: list[Path], examples: Examples, folder: Path, rows: int = 3) -> float:
    feed = examples.batch(rows, draw=7)
    right, given = run([networks.save(made, folder, "whole")], feed), run(paths, feed)
    names = [one.name for one in made.graph.output]
    return max(float(np.abs(right[name] - given[name]).max()) for name in names)


@pytest.mark.parametrize("place", range(2, 12))
def test_a_tangle_is_cut_anywhere(place: int, tmp_path: Path) -> None:
    made = networks.tangled()
    network, examples = network_of(made, tmp_path)
    end = len(network.nodes)
    groups = [(list(range(place)), 0), (list(range(place, end)), 0)]
    if place > 2:
        groups = [(list(range(2)), 0), (list(range(2, place)), 0), groups[1]]
    assert off(made, written(part_files(network, network.parts(groups)), tmp_path), examples, tmp_path) == 0.0


def test_what_has_no_rows_of_its_own_is_computed_again_and_not_sent(tmp_path: Path) -> None:
    network, _ = network_of(networks.tangled(), tmp_path)
    assert {"size", "elements", "many", "both"}.isdisjoint(network.carried)
    _, second = network.parts([(list(range(7)), 0), (list(range(7, 12)), 0)])
    assert second.inputs == ("a", "b", "middle", "x")
    assert second.again == (0,)


@pytest.mark.parametrize(("transfer", "bound"), [("fp16", 3e-3), ("int8", 0.05)])
@pytest.mark.parametrize("made", [networks.chain(), networks.tangled()], ids=["chain", "tangled"])
def test_fewer_bits_change_answers_a_little_and_rows_not_at_all(
    made: models.Model, transfer: Transfer, bound: float, tmp_path: Path
) -> None:
    network, examples = network_of(made, tmp_path)
    half, end = len(network.nodes) // 2, len(network.nodes)
    files = part_files(network, network.parts([(list(range(half)), 0), (list(range(half, end)), 0)]), transfer)
    paths = written(files, tmp_path)
    assert 0.0 < off(made, paths, examples, tmp_path) < bound
    feed = examples.batch(4)
    feed["x"] = np.asarray(
        feed["x"] * np.array([[1], [1], [1000], [1000]]), np.float32
    )  # another row's range is no row's business
    alone = run(paths, {"x": feed["x"][:1]})
    assert np.array_equal(run(paths, feed)["y"][:1], alone["y"])
    whole = part_files(network, network.parts([(list(range(half)), 0), (list(range(half, end)), 0)]))
    assert sum(files[1].row_bytes) < sum(whole[1].row_bytes)


def test_weights_of_several_parts_are_stored_once(tmp_path: Path) -> None:
    made = networks.chain(4, 160, tied=True)
    network, examples = network_of(made, tmp_path)
    paths = written(part_files(network, network.parts([([0, 1, 2, 3], 0), ([4, 5, 6, 7], 0)])), tmp_path)
    assert off(made, paths, examples, tmp_path) == 0.0
    assert (tmp_path / TIED).stat().st_size == 160 * 160 * 4
    assert all(path.stat().st_size < 2000 for path in paths)
    apart = networks.chain(4, 160)
    network, _ = network_of(apart, tmp_path)
    written(part_files(network, network.parts([([0, 1, 2, 3], 0), ([4, 5, 6, 7], 0)])), tmp_path)
    assert not (tmp_path / TIED).exists()


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(
    ("made", "way"),
    [
        (networks.wide(), "columns"),
        (networks.wide(bias=False), "columns"),
        (networks.wide(128, outer=40), "rows"),
        (networks.wide(128, outer=40, bias=False), "rows"),
    ],
    ids=["columns", "columns without bias", "rows", "rows without bias"],
)
def test_shares_of_a_product_are_side_by_side_and_make_it(made: models.Model, way: str, parts: int, tmp_path: Path) -> None:
    network, examples = network_of(made, tmp_path)
    (share,) = shares_of(made, {name: one.row_bytes for name, one in network.carried.items()})
    assert share.way(parts) == way
    model, places = shared(made, [share], parts)
    cut = Network(model, carried_by(model, examples))
    lanes = [[new for new, (_, lane) in enumerate(places) if lane == one] for one in range(1, parts + 1)]
    before = list(range(min(map(min, lanes))))
    after = list(range(max(map(max, lanes)) + 1, len(places)))
    groups = [(before, 0), *((lane, number) for number, lane in enumerate(lanes, 1)), (after, 0)]
    files = part_files(cut, cut.parts(groups))
    assert off(made, written(files, tmp_path), examples, tmp_path) < 1e-5
    taken = [name for file in files[1:-1] for name in file.part.inputs]
    assert set(taken) <= set(files[0].part.outputs), "shares wait for one another"
