"""A cascade learned by `dlproxy cascade` and asked through the server: `python -m benchmarks.pipelines.cascade`.

Docstrings' sentences, by the package that they stand in. Cheap: a linear model of the word pieces. Dear: MiniLM's embedding and
the same word pieces. Neither was trained on the sentences that all is judged by. Exits with 1 if a goal is missed.
"""

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

from benchmarks.compress.models import CACHE, MODELS, Made, obtain
from benchmarks.harness.checks import Findings, as_text
from benchmarks.harness.live import Live
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import options_of, positive
from benchmarks.harness.processes import BenchmarkError, Children, Cores
from benchmarks.harness.running import EXIT_MISSED, run, workplace
from benchmarks.harness.turns import in_turn, spread
from dlproxy import AsyncClient

CHEAP, DEAR, CASCADE = "words", "words-and-meaning", "cascade"
LABELS, IDS, MASK, EMBEDDING = "labels", "input_ids", "attention_mask", "sentence_embedding"
MOST_LOSS, LEAST_RATIO = 0.005, 1.5
READY_S, LEARN_S = 180.0, 900.0
OPSET = 18
FLOAT = np.float32
Array = NDArray[np.generic]


class Side(Struct):
    """Through the server. `rates`: answers per second, of each round. `right`: of each sentence, whether the class was."""

    rates: list[float]
    right: NDArray[np.bool_]


# Making the models


def make(made: Made, folder: Path) -> dict[str, Path]:
    """Both models, fitted to the sentences that MiniLM's own layer was fitted to. Raises BenchmarkError."""
    if importlib.util.find_spec("sklearn") is None:
        raise BenchmarkError("the models are fitted by scikit-learn: pip install 'dlproxy[torch]' or scikit-learn")
    paths = {name: folder / f"{name}.onnx" for name in (CHEAP, DEAR)}
    if all(path.exists() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(made.training) as arrays:
        inputs, labels = {name: arrays[name] for name in arrays.files if name != LABELS}, arrays[LABELS]
    body = _without_head(onnx.load(made.onnx))
    rarity = _rarity(inputs, _vocabulary(body))
    words = _bag(inputs, rarity)
    weights, bias = _fitted(words, labels, strength=3.0)
    onnx.save(_model([], [], None, _table(weights, rarity), bias), paths[CHEAP])
    meaning = _embeddings(body, inputs)
    weights, bias = _fitted(sparse.hstack([words, meaning]).tocsr(), labels, strength=10.0)
    split = words.shape[1]
    onnx.save(
        _model(body.graph.node, body.graph.initializer, weights[split:], _table(weights[:split], rarity), bias), paths[DEAR]
    )
    return paths


def _without_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """MiniLM up to its embedding."""
    last = next(number for number, node in enumerate(model.graph.node) if EMBEDDING in node.output)
    del model.graph.node[last + 1 :]
    kept = [one for one in model.graph.initializer if not one.name.startswith("head.")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", 384]))
    return model


def _vocabulary(model: onnx.ModelProto) -> int:
    return max(one.dims[0] for one in model.graph.initializer if len(one.dims) == 2)


def _rarity(inputs: dict[str, Array], size: int) -> NDArray[np.float32]:
    """Inverse document frequency of each word piece."""
    ids, mask = inputs[IDS], inputs[MASK] > 0
    frequency = np.zeros(size)
    for row, seen in zip(ids, mask, strict=True):
        frequency[np.unique(row[seen])] += 1
    return (np.log(len(ids) / (1 + frequency)) + 1).clip(0.0).astype(FLOAT)


def _bag(inputs: dict[str, Array], rarity: NDArray[np.float32]) -> sparse.csr_matrix:
    """[sentences, vocabulary]: pieces by their rarity, over the root of the sum of its squares."""
    ids, mask = inputs[IDS], inputs[MASK] > 0
    lengths = np.sqrt((mask * rarity[ids] ** 2).sum(axis=1))
    rows = np.repeat(np.arange(len(ids)), mask.sum(axis=1))
    return sparse.csr_matrix((rarity[ids[mask]] / lengths[rows], (rows, ids[mask])), (len(ids), len(rarity)))


def _fitted(features: sparse.csr_matrix, labels: Array, strength: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
    return model.coef_.T.astype(FLOAT), model.intercept_.astype(FLOAT)


def _embeddings(body: onnx.ModelProto, inputs: dict[str, Array]) -> NDArray[np.float32]:
    """Of sentences of one length at a time, without their padding."""
    session = onnxruntime.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = inputs[MASK].sum(axis=1)
    found = np.empty((len(lengths), 384), FLOAT)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for chosen in np.array_split(rows, -(-len(rows) // 32)):
            found[chosen] = session.run([EMBEDDING], {name: array[chosen, :length] for name, array in inputs.items()})[0]
    return found


def _table(weights: NDArray[np.float32], rarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each word piece what it adds to the scores, and to the square of the length."""
    return np.hstack([weights * rarity[:, None], rarity[:, None] ** 2]).astype(FLOAT)


def _model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    meaning: NDArray[np.float32] | None,
    table: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> onnx.ModelProto:
    """Probabilities of the classes. `meaning`: weights of the embedding that `nodes` make."""
    classes = len(bias)
    constants = {
        "pieces": table,
        "bias": bias,
        "places": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "sizes": np.array([classes, 1], np.int64),
    }
    constants |= {} if meaning is None else {"meaning": meaning}
    more = [
        helper.make_node("Gather", ["pieces", IDS], ["found"]),
        helper.make_node("Cast", [MASK], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["counted"]),
        helper.make_node("Mul", ["found", "counted"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "places"], ["summed"], keepdims=0),
        helper.make_node("Split", ["summed", "sizes"], ["raw", "square"], axis=1),
        helper.make_node("Sqrt", ["square"], ["length"]),
        helper.make_node("Div", ["raw", "length"], ["words"]),
        helper.make_node("Add", ["words", "bias"], ["biased"]),
    ]
    if meaning is not None:
        more += [
            helper.make_node("MatMul", [EMBEDDING, "meaning"], ["meant"]),
            helper.make_node("Add", ["biased", "meant"], ["all"]),
        ]
    more.append(helper.make_node("Softmax", ["biased" if meaning is None else "all"], ["probabilities"], axis=1))
    names = (IDS, MASK) if meaning is None else (IDS, MASK, "token_type_ids")
    graph = helper.make_graph(
        [*nodes, *more],
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        [*initializers, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


# Learning and serving


def learn(paths: dict[str, Path], held_out: Path, children: Children, folder: Path) -> tuple[dict[str, Any], Path]:
    """Run `dlproxy cascade`: its report, and the configuration that it wrote. Raises BenchmarkError."""
    out = folder / "cascade.toml"
    command = [sys.executable, "-m", "dlproxy", "cascade", *(f"{name}={path}" for name, path in paths.items())]
    command += ["--data", str(held_out), "--max-loss", str(MOST_LOSS), "--name", CASCADE, "--out", str(out), "--json"]
    child = children.start("cascade", command)
    try:
        child.process.wait(LEARN_S)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"dlproxy cascade did not end in {LEARN_S:.0f} s: {child.log_tail()}") from None
    said = child.log_path.read_text("utf-8")
    if child.process.returncode or "\n{" not in said:
        raise BenchmarkError(f"dlproxy cascade failed: {child.log_tail()}")
    report = json.loads(said[said.index("\n{") :])
    if not out.exists():
        raise BenchmarkError(f"dlproxy cascade found none that pays: {'; '.join(report['verdict']['reasons'])}")
    return report, out


def serve(toml: str, held_out: Path, live: Live, clients: int, rounds: int) -> dict[str, Side]:
    """Every sentence asked of each model once, one a request; the models take turns, round by round."""
    with np.load(held_out) as arrays:
        inputs, labels = {name: arrays[name] for name in arrays.files if name != LABELS}, arrays[LABELS]
    sides = {name: Side([], np.zeros(len(labels), np.bool_)) for name in (DEAR, CASCADE, CHEAP)}
    order = np.random.default_rng(5).permutation(len(labels))
    with live.serve(toml) as served:
        for name in sides:
            asyncio.run(_classes(served.url, name, inputs, order[: 8 * clients], clients))
        for number, rows in enumerate(np.array_split(order, rounds)):
            for name in in_turn(list(sides), number):
                began_at = perf_counter()
                classes = asyncio.run(_classes(served.url, name, inputs, rows, clients))
                sides[name].rates.append(len(rows) / (perf_counter() - began_at))
                sides[name].right[rows] = classes == labels[rows]
    return sides


async def _classes(url: str, model: str, inputs: dict[str, Array], rows: Array, clients: int) -> Array:
    """Of these rows, asked by so many clients that wait for each answer."""
    found = np.full(len(rows), -1)
    left: Iterator[tuple[int, int]] = iter(enumerate(rows.tolist()))

    async with AsyncClient(url, connections=clients) as client:

        async def asking() -> None:
            for place, row in left:
                own = {name: array[row : row + 1] for name, array in inputs.items() if model != CHEAP or name in (IDS, MASK)}
                found[place] = (await client.infer(model, own))["probabilities"].argmax()

        await asyncio.gather(*(asking() for _ in range(clients)))
    return found


def judged(report: dict[str, Any], sides: dict[str, Side]) -> Findings:
    findings = Findings("Cascade")
    ratios = [one / other for one, other in zip(sides[CASCADE].rates, sides[DEAR].rates, strict=True)]
    rates = {name: median(side.rates) for name, side in sides.items()}
    accuracies = {name: float(side.right.mean()) for name, side in sides.items()}
    cascade, alone = (report[name] for name in ("cascade", "alone"))
    examples, gains = cascade["examples"], [gain["ratio"] for gain in report["gains"]]
    findings.at_least("throughput, times the dear model's", LEAST_RATIO, median(ratios), note=f"rounds {spread(ratios)}")
    findings.at_most(
        "accuracy lost, cross-validated, at most, 95 % sure",
        100 * MOST_LOSS,
        100 * cascade["high"],
        unit=" %",
        note=f"lost on {examples:,} sentences: {cascade['loss']:.2%}; the cheap model alone loses {alone['loss']:.2%}",
    )
    findings.at_most(
        "accuracy lost, served",
        100 * MOST_LOSS,
        100 * (accuracies[DEAR] - accuracies[CASCADE]),
        unit=" %",
        note="same sentences",
    )
    findings.details += [
        "| | accuracy | requests/s |",
        "|---|---|---|",
        *(f"| {name} | {accuracies[name]:.2%} | {rates[name]:,.0f} |" for name in sides),
        "",
        f"Threshold {report['threshold']:.3f} of the {report['by']}; {report['escalated']:.1%} of the sentences reach the dear "
        f"model; expected {' and '.join(f'{one:.2f}' for one in gains)} times the throughput at batch 1 and 32.",
    ]
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("pipelines.cascade", __doc__)
    parser.add_argument("--clients", type=positive(int), default=8, help="each waits for its answer (default 8)")
    parser.add_argument("--rounds", type=positive(int), default=6, help="in which the models take turns (default 6)")
    options = parser.parse_args(arguments)
    found: list[Findings] = []

    def measure() -> None:
        with workplace("cascade") as (children, folder):
            made = obtain(MODELS["minilm"], children)
            paths = make(made, CACHE / "cascade")
            report, out = learn(paths, made.held_out, children, folder)
            live = Live(children, Cores(None, None), folder, READY_S)
            found.append(judged(report, serve(out.read_text("utf-8"), made.held_out, live, options.clients, options.rounds)))

    print(summary(describe_machine(Cores(None, None))))
    if code := run(measure):
        return code
    (findings,) = found
    print("\n".join([as_text(findings.checks), "", *findings.details]))
    return EXIT_MISSED if any(check.missed for check in findings.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
