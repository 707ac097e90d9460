"""What a search found as files: served as written it answers as reported, and a folder is replaced whole or not at all."""

import asyncio
import tomllib
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy.compress import CompressError, data, metrics
from dlproxy.compress.gate import Bar
from dlproxy.compress.manifest import read_manifest, read_report, record_path
from dlproxy.compress.publish import check, configuration, publish, variant_name
from dlproxy.compress.search import Asked, Found, search
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.serve.proxy import Model, Proxy
from tests.compress import fakes, graphs

VARIANT = "house-coarse"


class Results:
    """A search in a folder with its model, examples to learn from, and others to judge by."""

    def __init__(self, folder: Path) -> None:
        self.model = graphs.saved(graphs.classifier(400), folder, "house")
        given = graphs.dataset(460)
        for name, rows in (("learn", slice(0, 60)), ("judge", slice(60, 460))):
            part = given.rows(rows)
            assert part.labels is not None
            fakes.saved_data(folder / f"{name}.npz", **part.inputs, label=part.labels)
        self.judge = folder / "judge.npz"
        table = fakes.table(
            fakes.Does(name="fuse", do=fakes.refuses), fakes.Writes(name="coarse", model=graphs.coarse().SerializeToString())
        )
        asked = Asked(
            model=str(self.model),
            data=folder / "learn.npz",
            held_out=self.judge,
            recipes=list(table),
            bar=Bar(most_loss=0.3),
            batch=2,
            budget_s=900.0,
            race_s=0.2,
        )
        work = folder / "work"
        work.mkdir()
        self.found = search(asked, table=table, folder=work, tell=[].append)

    def publish(self, out: Path, *, name: str = "house", found: Found | None = None) -> None:
        publish(found or self.found, out, name=name, model=str(self.model), page="<p>seen</p>")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("results"))


async def test_what_is_served_is_as_right_as_reported(results: Results, tmp_path: Path) -> None:
    """Each example by a request of its own, all at a time, through the proxy."""
    results.publish(tmp_path / "out")
    with (tmp_path / "out" / "dlproxy.toml").open("rb") as file:
        served = tomllib.load(file)["models"]
    examples = data.read(results.judge, inputs=open_runtime(str(results.model)).signature.inputs)
    answers = {}
    paths = {name: tmp_path / "out" / settings["path"] for name, settings in served.items()}
    async with Proxy([Model(path, name=name) for name, path in paths.items()]) as proxy:
        for name in served:
            rows = [proxy.infer(name, {"x": examples.inputs["x"][row : row + 1]}) for row in range(len(examples))]
            answers[name] = {"logits": np.concatenate([answer["logits"] for answer in await asyncio.gather(*rows)])}
    report = read_report(tmp_path / "out" / "report.json")
    (candidate,) = [one for one in report.candidates if one.status == "accepted"]
    assert candidate.measured is not None
    compared = metrics.compare(
        report.run.metric,
        labels=examples.labels,
        original=answers["house"],
        candidate=answers[VARIANT],
        seed=report.run.seed,
    )
    assert compared == candidate.measured.accuracy
    assert compared.loss > 0.0, "it is coarse"
    assert {name: settings["accuracy"] for name, settings in served.items()} == {
        "house": pytest.approx(compared.original, abs=1e-6),
        VARIANT: pytest.approx(compared.candidate, abs=1e-6),
    }
    assert candidate.notes[1].startswith("measured row by row, as dlproxy serves it: the model quantises by the range")


def test_all_that_is_known_stands_in_the_folder(results: Results, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    results.publish(out)
    assert {path.name for path in out.iterdir()} == {VARIANT, "dlproxy.toml", "report.html", "report.json"}
    artifact = out / VARIANT / "model.onnx"
    assert artifact.read_bytes() == next(iter(results.found.artifacts.values())).read_bytes()
    record = read_manifest(record_path(artifact))
    assert (record.candidate.recipe, record.run) == ("coarse", results.found.report.run)
    assert [one.artifact for one in read_report(out / "report.json").candidates] == ["", f"{VARIANT}/model.onnx"]
    assert (out / "report.html").read_text("utf-8") == "<p>seen</p>"
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing half-written is left"


def test_the_configuration_names_the_model_and_its_variants(results: Results) -> None:
    candidates = [replace(one, artifact=f"{one.recipe}/model.onnx") for one in results.found.report.candidates]
    text = configuration(results.found, candidates, "a house", "../house.onnx")
    tables = tomllib.loads(text)["models"]
    assert list(tables) == ["a house", "a house-coarse"]
    assert tables["a house"]["variants"] == ["a house-coarse"]
    assert tables["a house-coarse"]["path"] == "coarse/model.onnx"
    unusual = replace(results.found, accuracy=7.5)
    assert "accuracy" not in configuration(unusual, candidates, "house", "../house.onnx"), "the knob takes shares alone"


def test_an_earlier_result_is_replaced_and_nothing_else(results: Results, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    results.publish(out)
    results.publish(out, name="other")
    assert (out / "other-coarse").is_dir()
    assert not (out / VARIANT).exists()
    (out / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(CompressError, match=r"holds notes\.txt beside an earlier result"):
        results.publish(out)
    (tmp_path / "file").write_text("mine", "utf-8")
    with pytest.raises(CompressError, match="is not a folder"):
        check(tmp_path / "file")
    with pytest.raises(CompressError, match="is not empty, and holds no earlier result"):
        check(tmp_path)


def test_what_cannot_be_written_leaves_what_was_there(results: Results, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results.publish(out)
    before = (out / "report.json").read_bytes()
    gone = replace(results.found, artifacts={"coarse": tmp_path / "gone.onnx"})
    with pytest.raises(CompressError, match="cannot write"):
        results.publish(out, found=gone)
    assert (out / "report.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_was_accepted_there_is_a_report_alone(results: Results, tmp_path: Path) -> None:
    results.publish(tmp_path / "out", found=replace(results.found, artifacts={}, front=[]))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}


def test_a_variant_is_named_by_its_recipes() -> None:
    assert variant_name("house", "clean+dynamic-int8") == "house-clean-dynamic-int8"
