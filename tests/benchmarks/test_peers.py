"""The peers benchmark without any peer: its registry, how items travel, its ratios, and the page that it writes."""

import ast
import datetime
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.page import clean_reason
from benchmarks.harness.processes import BenchmarkError, Cores
from benchmarks.harness.wrk import Figures
from benchmarks.peers import __main__ as program
from benchmarks.peers import running
from benchmarks.peers.bodies import JSON_LENGTH, Array, JsonBase64, Message, OipBase64, OipBinary, RawBytes
from benchmarks.peers.markdown import page
from benchmarks.peers.registry import DLPROXY, PEERS, Launch, System
from benchmarks.peers.results import Footprint, Measurement, Results
from benchmarks.peers.workloads import BUILDERS, WORKLOADS

FOLDER = Path(program.__file__).parent
SYSTEMS = {system.name: system for system in (DLPROXY, *PEERS)}
MACHINE = {
    "date": "2026-01-02 03:04 UTC",
    "cpu": "a processor",
    "cores": 2,
    "server_core": 0,
    "load_core": 1,
    "python": "3.11.0",
    "packages": {"onnxruntime": "1.2.3"},
    "wrk": "wrk 4.1.0 [epoll] Copyright (C) 2012 somebody",
    "nginx": "not installed",
}


def figures(rate: float, p50: float = 1.0, p99: float = 2.0) -> Figures:
    return Figures(rate, p50, p99, requests=int(rate), seconds=1.0)


@pytest.fixture
def results() -> Results:
    """FastAPI measured in two workloads, LitServe failed in one of them, Ray not installed."""
    found = Results(MACHINE, "a command", ["dlproxy", "fastapi", "litserve", "ray"], ["mlp64", "mlp1"])
    for repeat, (ours, theirs) in enumerate([(4000, 1000), (900, 300), (5000, 1000)]):
        found.measurements.append(Measurement("dlproxy", "mlp64", f"fastapi-mlp64-{repeat}", figures(ours)))
        found.measurements.append(Measurement("fastapi", "mlp64", f"fastapi-mlp64-{repeat}", figures(theirs)))
    found.measurements.append(Measurement("dlproxy", "mlp64", "litserve-mlp64-0", figures(6000)))
    found.measurements.append(Measurement("litserve", "mlp64", "litserve-mlp64-0", figures(100)))
    for peer, p50 in (("fastapi", 0.6), ("litserve", 0.3)):
        found.measurements.append(Measurement("dlproxy", "mlp1", f"{peer}-mlp1-0", figures(5000, p50=0.2)))
        found.measurements.append(Measurement(peer, "mlp1", f"{peer}-mlp1-0", figures(1, p50=p50)))
    found.fail("litserve", ["mlp64"], "3 of 100 requests failed")
    found.fail("ray", ["mlp64", "mlp1"], "not installed: pip failed: no https://pypi.example/simple for /opt/some where/x")
    found.footprints.append(Footprint("fastapi", 0.5, 123.4, 0.014))
    found.versions["fastapi"] = {"fastapi": "7.8.9", "unnamed": "1"}
    return found


def row(text: str, heading: str, title: str) -> list[str]:
    """The cells of a table's row below a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_ratio_is_the_median_over_pairs(results: Results) -> None:
    assert results.ratio("fastapi", "mlp64") == 4.0  # of 4, 3 and 5; medians of the rates would give the same only by chance


def test_one_connection_is_compared_by_latency(results: Results) -> None:
    assert results.ratio("fastapi", "mlp1") == pytest.approx(3.0)


def test_the_best_peer_is_the_one_with_the_lowest_ratio(results: Results) -> None:
    assert results.best_peer("mlp1") == ("litserve", pytest.approx(1.5))


def test_a_failed_peer_has_no_figure_and_is_never_the_best(results: Results) -> None:
    assert results.median("litserve", "mlp64", "requests_per_s") is None
    assert results.ratio("litserve", "mlp64") is None
    assert results.best_peer("mlp64") == ("fastapi", 4.0)


def test_no_best_peer_when_all_failed(results: Results) -> None:
    results.fail("fastapi", ["mlp64"], "crashed")
    assert results.best_peer("mlp64") is None
    assert row(page(results, SYSTEMS), "dlproxy against each peer", "**the best peer**")[1] == "-"


def test_the_page_shows_figures_ratios_and_the_best_peer(results: Results) -> None:
    text = page(results, SYSTEMS)
    assert row(text, "Figures", "**dlproxy**")[1] == "4,500 (1 / 2)"
    assert row(text, "Figures", "FastAPI + uvicorn")[1:6] == ["1,000 (1 / 2)", "1.0 (0.6 / 2)", "123", "0.50", "1.4%"]
    assert row(text, "dlproxy against each peer", "FastAPI + uvicorn")[1:] == ["4.00 x", "3.00 x"]
    best = row(text, "dlproxy against each peer", "**the best peer**")[1:]
    assert best == ["**4.00 x** FastAPI + uvicorn", "**1.50 x** LitServe"]
    assert "fastapi 7.8.9" in text
    assert "unnamed" not in text


def test_the_page_says_what_failed_and_why(results: Results) -> None:
    text = page(results, SYSTEMS)
    assert row(text, "Figures", "LitServe")[1] == "failed"
    assert row(text, "dlproxy against each peer", "Ray Serve (HAProxy)")[1:] == ["failed", "failed"]
    assert "- LitServe (mlp64): 3 of 100 requests failed" in text
    assert "- Ray Serve (HAProxy) (mlp64, mlp1): not installed: pip failed" in text


def test_every_table_has_as_many_cells_in_each_row(results: Results) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page(results, SYSTEMS), flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_page_names_no_registry_and_no_path(results: Results) -> None:
    assert not re.search(r"pypi\.example|/opt/", page(results, SYSTEMS))


@pytest.mark.parametrize(
    ("reason", "clean"),
    [
        ("no file /opt/venvs/x/bin/python: gone", "no file …: gone"),
        ("GET https://registry.example/simple/x failed", "GET … failed"),
        ("two\nlines  | of it", "two lines of it"),
        ("3 of 4 requests/s, mlserver/x is fine", "3 of 4 requests/s, mlserver/x is fine"),
    ],
)
def test_reasons_lose_what_belongs_to_a_machine(reason: str, clean: str) -> None:
    assert clean_reason(reason) == clean


def test_a_long_reason_keeps_its_end() -> None:
    assert clean_reason("x" * 5000 + " the cause").endswith("the cause")
    assert len(clean_reason("x" * 5000)) < 400


def test_results_are_kept_as_json(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "new" / "peers.json")
    kept = json.loads((tmp_path / "new" / "peers.json").read_text())
    assert kept["ratios"]["fastapi"] == {"mlp64": 4.0, "mlp1": pytest.approx(3.0)}
    assert kept["failures"]["ray"]["mlp1"].startswith("not installed")


@pytest.mark.parametrize("system", PEERS, ids=lambda system: system.name)
def test_a_peer_is_complete(system: System) -> None:
    assert system.requirements
    assert system.packages
    assert system.batching
    assert system.documentation.startswith("https://")
    assert system.path.startswith("/")
    launch = Launch(Path("python"), Path("model.onnx"), 1234, Path("folder"))
    command = system.command(launch)
    assert command[:2] == ["python", "-m"]
    assert command[3:] == ["model.onnx", "1234"]
    app = FOLDER / f"{command[2].rpartition('.')[2]}.py"
    assert ast.get_docstring(ast.parse(app.read_text("utf-8")))


def test_every_server_program_is_registered() -> None:
    assert {f"{system.name}_app" for system in PEERS} == {path.stem for path in FOLDER.glob("*_app.py")}
    assert len(SYSTEMS) == len(PEERS) + 1


def test_every_workload_has_a_model() -> None:
    assert {workload.model for workload in WORKLOADS.values()} == set(BUILDERS)


def test_dlproxy_batches_as_the_others_do(tmp_path: Path) -> None:
    from dlproxy.config import load

    DLPROXY.command(Launch(Path("python"), Path("model.onnx"), 1234, tmp_path))
    ((_, model),) = load(tmp_path / "dlproxy.toml").served()
    assert (model.max_batch, model.threads) == (64, 1)


ITEM = np.arange(12, dtype=np.float32).reshape(1, 3, 4) - 5.5
ANSWER = np.array([0.25, -3, 1e-7], np.float32)


def test_raw_bytes_round_trip() -> None:
    sent = RawBytes().encode(ITEM)
    assert np.array_equal(np.frombuffer(sent.body, np.float32), ITEM.ravel())
    assert np.array_equal(RawBytes().decode(Message(ANSWER.tobytes())), ANSWER)


def test_oip_binary_round_trip() -> None:
    sent = OipBinary().encode(ITEM)
    head_bytes = int(sent.headers[JSON_LENGTH])
    (described,) = json.loads(sent.body[:head_bytes])["inputs"]
    assert (described["shape"], described["parameters"]["binary_data_size"]) == ([1, 3, 4], 48)
    assert sent.body[head_bytes:] == ITEM.tobytes()
    head = json.dumps({"outputs": [{"name": "output", "parameters": {"binary_data_size": 12}}]}).encode()
    reply = Message(head + ANSWER.tobytes(), {JSON_LENGTH.lower(): str(len(head))})
    assert np.array_equal(OipBinary().decode(reply), ANSWER)


def test_oip_binary_refuses_a_short_answer() -> None:
    head = json.dumps({"outputs": [{"parameters": {"binary_data_size": 12}}]}).encode()
    with pytest.raises(ValueError, match="8 bytes of data, not 12"):
        OipBinary().decode(Message(head + b"12345678", {JSON_LENGTH: str(len(head))}))


def test_base64_forms_round_trip() -> None:
    text = json.loads(JsonBase64().encode(ITEM).body)["items"]
    assert np.array_equal(JsonBase64().decode(Message(json.dumps(text).encode())), ITEM.ravel())
    (described,) = json.loads(OipBase64().encode(ITEM).body)["inputs"]
    assert (described["data"], described["shape"], described["datatype"]) == (text, [1, 1], "BYTES")
    reply = json.dumps({"outputs": [{"data": ANSWER.tolist()}]}).encode()
    assert np.array_equal(OipBase64().decode(Message(reply)), ANSWER)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (ANSWER[:2], "2 values, not 3"),
        (ANSWER + np.float32(0.01), "differs"),
        (np.array([np.nan, -3, 1e-7], np.float32), "differs"),
    ],
)
def test_a_wrong_answer_is_an_error(answer: Array, problem: str) -> None:
    with pytest.raises(BenchmarkError, match=problem):
        running.compare(answer, ANSWER)


def test_a_right_answer_gives_its_difference() -> None:
    assert running.compare(ANSWER + np.float32(1e-6), ANSWER) == pytest.approx(1e-6, rel=0.5)


@pytest.mark.parametrize(("name", "mode"), [("mlp64", ["same"]), ("resnet8", ["steady", "8"])])
def test_the_load_sends_what_was_checked(name: str, mode: list[str], tmp_path: Path) -> None:
    question = running.Question(ITEM, ANSWER)
    server = running.Running(PEERS[0], None, None, 1234, question, 0.1)  # type: ignore[arg-type]
    command = running.load_command(server, WORKLOADS[name], 2, Cores(None, None), tmp_path)
    assert command[:2] == ["wrk", "-t1"]
    body, json_bytes, *rest = command[command.index("--") + 1 :]
    assert Path(body).read_bytes() == PEERS[0].format.encode(ITEM).body
    assert (json_bytes, rest) == ("0", mode)
    assert command[command.index("-H") + 1] == "Content-Type: application/octet-stream"


def test_options_choose_in_the_registrys_order(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    options = program.parse_options(["--only", "litserve, fastapi", "--workloads", "cnn64,mlp64", "--seconds", "4"], now)
    assert (options.only, options.workloads, options.seconds) == (["fastapi", "litserve"], ["mlp64", "cnn64"], 4)
    assert options.json.name == "peers-2026-01-02T030405Z.json"


@pytest.mark.parametrize("arguments", [["--only", "nobody"], ["--workloads", "mlp65"], ["--repeats", "0"]])
def test_options_refuse_what_does_not_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.parse_options(arguments, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    assert arguments[0] in capsys.readouterr().err
