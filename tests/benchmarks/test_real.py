"""The benchmark of real models without any: its candidates, rates, requests, checks, ratios and page. Nothing is downloaded."""

import ast
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import ort_loop
from benchmarks.harness.processes import BenchmarkError, Children
from benchmarks.harness.report import Goal, Report, Run
from benchmarks.harness.sample import JSON_LENGTH_HEADER, Sample, sample_of
from benchmarks.harness.wrk import Figures
from benchmarks.real import __main__ as program
from benchmarks.real import fetch
from benchmarks.real.catalog import CATALOG, RealModel
from benchmarks.real.ceiling import Ceiling, fit
from benchmarks.real.client import measure, steady_rate
from benchmarks.real.comparison import DEFAULT, HELD, HELD_GOAL, Facts, Findings, _Measuring, chosen, ratio_of
from benchmarks.real.held import described, timed
from benchmarks.real.page import page
from benchmarks.real.questions import check_answers, write_requests
from benchmarks.real.rivals import rivals
from benchmarks.real.settings import Setting, finalists, loops, settings
from benchmarks.real.tokens import OipTokens, OpenAiText
from dlproxy.config import load
from dlproxy.instance.runtime import TELEMETRY_OFF

FOLDER = Path(program.__file__).parent
MACHINE = {
    "date": "2026-01-02 03:04 UTC",
    "cpu": "a processor",
    "cores": 2,
    "server_core": None,
    "load_core": None,
    "python": "3.11.0",
    "packages": {"onnxruntime": "1.2.3"},
}
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


# Candidates


def test_every_combination_of_settings_is_tried_once() -> None:
    tried = settings(2)
    assert len({setting.label for setting in tried}) == len(tried) == 6
    assert {(one.threads, one.instances) for one in tried if one.run == "thread"} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {(one.threads, one.instances) for one in tried if one.run == "inline"} == {(1, 1), (2, 1)}
    assert len(settings(1)) == 2


@pytest.mark.parametrize("setting", settings(2), ids=lambda setting: setting.label)
def test_a_setting_is_a_configuration(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "dlproxy.toml").write_text(setting.toml("net", tmp_path / "net.onnx"))
    model = load(tmp_path / "dlproxy.toml").models["net"][0]
    assert (model.threads, model.instances, model.run) == (setting.threads, setting.instances, setting.run)


def test_loops_use_all_cores() -> None:
    assert [loop.threads * loop.callers for loop in loops(2)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"a": 100.0, "b": 99.0, "c": 90.0}, ["a", "b"]),
        ({"a": 50.0, "b": 100.0}, ["b"]),
        ({"a": 98.0, "b": 99.0, "c": 100.0}, ["c", "b"]),
    ],
)
def test_what_a_screening_cannot_tell_apart_goes_on(rates: Mapping[str, float], expected: Sequence[str]) -> None:
    assert finalists(rates, 2) == expected
    assert finalists(rates, 1) == expected[:1]
    assert finalists({}, 2) == []


# Rates


def test_a_rate_counts_whole_rounds_of_answers() -> None:
    """Two clients, a round every second: three rounds in two seconds, whenever the window begins."""
    answers = [0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5, 3.5]
    assert steady_rate(answers, 1.0, 3.9, 2) == (2.0, 2.0)
    assert steady_rate(answers, 1.4, 3.6, 2) == (2.0, 2.0)


def test_too_few_rounds_are_counted_over_the_whole_time() -> None:
    assert steady_rate([1.0, 1.5, 2.0], 0.0, 4.0, 2) == (0.75, 4.0)
    with pytest.raises(ValueError, match=r"no answer to 2 clients in 4\.0 s"):
        steady_rate([5.0], 0.0, 4.0, 2)


def test_loops_ask_all_requests_in_turn() -> None:
    class Session:
        asked: list[float]

        def run(self, names: None, feed: ort_loop.Feed) -> None:
            self.asked.append(float(feed["x"][0]))

    sessions = [Session(), Session()]
    for session in sessions:
        session.asked = []
    feeds = [{"x": np.array([float(number)])} for number in range(3)]
    figures = ort_loop.measure(sessions, feeds, callers=2, seconds=0.5)
    counts = np.bincount([int(asked) for session in sessions for asked in session.asked])
    assert counts.max() - counts.min() <= 1
    assert figures["requests"] == counts.sum() - 6  # each session is first asked everything once
    assert all(len(session.asked) > 3 for session in sessions)


def test_requests_are_read_in_order_and_scalars_stay_scalars(tmp_path: Path) -> None:
    arrays = {"10/x": np.zeros(1), "2/x": np.zeros((2, 3)), "2/sr": np.array(16000)}
    np.savez(tmp_path / "requests.npz", **arrays)  # type: ignore[arg-type]
    feeds = ort_loop.read_feeds(tmp_path / "requests.npz")
    assert [feed["x"].shape for feed in feeds] == [(2, 3), (1,)]
    assert feeds[0]["sr"].shape == ()


# Checks and loads, against a small server


class _Doubler(BaseHTTPRequestHandler):
    """Answers with the doubled input, wrongly from some request on, or with 500 where it is told to fail."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        described = json.loads(body[: int(self.headers[JSON_LENGTH_HEADER])])["inputs"][0]
        values = np.frombuffer(body[int(self.headers[JSON_LENGTH_HEADER]) :], np.int64).reshape(described["shape"])
        server: Any = self.server
        server.seen.append(values.size)
        answer = values * 2 + (server.wrong_from <= len(server.seen))
        output = {"name": "y", "shape": values.shape, "datatype": "INT64", "parameters": {"binary_data_size": answer.nbytes}}
        head = json.dumps({"outputs": [output]}).encode()
        self.send_response(500 if server.wrong_from < 0 else 200)
        self.send_header(JSON_LENGTH_HEADER, str(len(head)))
        self.send_header("Content-Length", str(len(head) + answer.nbytes))
        self.end_headers()
        self.wfile.write(head + answer.tobytes())

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@contextmanager
def doubler(wrong_from: int = 10**9) -> Iterator[ThreadingHTTPServer]:
    """`wrong_from`: the number of the first request that is answered wrongly; negative to fail all."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Doubler) as server:
        server.seen, server.wrong_from = [], wrong_from  # type: ignore[attr-defined]
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no error
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def samples() -> list[Sample]:
    arrays = [np.arange(length, dtype=np.int64)[None] for length in (5, 1, 3, 3)]
    return [sample_of("double", {"x": array}, {"y": array * 2}, tolerance=1e-3) for array in arrays]


def test_every_request_is_checked_alone_and_then_with_those_of_its_size() -> None:
    with doubler() as server:
        check_answers(samples(), server.server_port, clients=2)
        seen = server.seen  # type: ignore[attr-defined]
    assert seen[:4] == [5, 1, 3, 3]
    assert [sorted(seen[4:6]), sorted(seen[6:])] == [[1, 3], [3, 5]]


@pytest.mark.parametrize(
    ("wrong_from", "said"),
    [(2, "alone: output 'y' differs"), (5, "beside 1 others: output 'y' differs"), (-1, "alone: .* answered 500")],
)
def test_a_wrong_answer_says_how_it_was_asked_for(wrong_from: int, said: str) -> None:
    with doubler(wrong_from) as server, pytest.raises(BenchmarkError, match=said):
        check_answers(samples(), server.server_port, clients=2)


def test_a_load_mixes_sizes_and_has_a_rate(tmp_path: Path) -> None:
    requests = msgspec.msgpack.decode(write_requests(samples(), tmp_path / "requests").read_bytes(), type=list[bytes])
    with doubler() as server:
        figures = measure(server.server_port, requests, connections=2, seconds=0.3, warm_up=0.1)
        seen = server.seen  # type: ignore[attr-defined]
    assert set(seen) == {1, 3, 5}
    assert figures["requests_per_s"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


def test_a_load_with_a_failed_request_is_not_measured(tmp_path: Path) -> None:
    requests = msgspec.msgpack.decode(write_requests(samples(), tmp_path / "requests").read_bytes(), type=list[bytes])
    with doubler(-1) as server, pytest.raises(ValueError, match="500"):
        measure(server.server_port, requests, connections=2, seconds=0.2, warm_up=0.0)


# Ratios


class _Fake(_Measuring):
    """Every side answers at a fixed rate."""

    def __init__(self, report: Report, findings: Findings, pairs: int) -> None:
        self.name, self.seconds = "net", 1.0

        class Of:
            pass

        of: Any = Of()
        of.report, of.findings, of.pairs = report, findings, pairs
        self.of = of


def test_all_sides_take_turns_and_the_order_changes() -> None:
    report, findings = Report(MACHINE, {}), Findings()
    rates = {DEFAULT: 90.0, "hand": 100.0, "loop": 80.0}

    def side(label: str) -> Any:
        return lambda seconds: Run("net", "dlproxy", label, Figures(rates[label], 1.0, 2.0, 1, seconds), [])

    best = {"settings": ["hand"], "loops": ["loop"]}
    _Fake(report, findings, 3)._rounds({label: side(label) for label in rates}, best)
    assert [run.what for run in report.runs[:6]] == [DEFAULT, "hand", "loop", "hand", "loop", DEFAULT]
    found = {ratio.what: (ratio.median, ratio.verdict, len(ratio.values)) for ratio in report.ratios}
    assert found == {
        ratio_of("settings", "hand"): (pytest.approx(0.9), "miss", 3),
        ratio_of("loops", "loop"): (pytest.approx(1.125), "pass", 3),
    }
    assert findings.best["net"] == {"settings": "hand", "loops": "loop"}


def test_inline_batches_are_measured_in_processor_time() -> None:
    began: Any = []
    spent: Any = []
    assert timed(lambda rows: rows + 1, began, spent)(1) == 2
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / 0, began, spent)()
    assert len(began) == len(spent) == 2


def test_what_held_the_loop_at_first_does_not_count() -> None:
    assert described([], [], 9.0) == {"batches": 0}
    assert described([1.0, 2.0], [0.5, 0.1], 9.0) == {"batches": 0, "longest_ms": 500.0}  # it left the loop
    found = described([1.0, 6.0, 7.0], [0.5, 0.001, 0.001], 9.0)
    assert (found["batches"], found["longest_ms"], found["p999_ms"]) == (2, 500.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "  runs     inline on the event loop, 1 thread each, 0.1 ms a row",
            "inline on the event loop, 1 thread each, 0.1 ms a row",
        ),
        ("  runs     on 2 threads, 1 thread each\n  more", "on 2 threads, 1 thread each"),
        ("  runs     inline on the event loop, a\nmodel x: runs on 2 threads, b", "on 2 threads, b"),
        ("nothing", ""),
    ],
)
def test_what_dlproxy_chose_is_read_from_its_report(log: str, expected: str) -> None:
    assert chosen(log) == expected


# Models and servers


def test_enough_models_of_every_kind() -> None:
    kinds = {model.kind for model in CATALOG.values()}
    assert kinds == {"text", "image", "speech", "tabular"}
    assert len(CATALOG) >= 12


@pytest.mark.parametrize("model", CATALOG.values(), ids=list(CATALOG))
def test_a_model_is_pinned_and_its_functions_exist(model: RealModel) -> None:
    assert all("==" in package for package in model.packages)
    assert (model.file is None) != (model.maker is None)
    defined = {
        node.name
        for path in (FOLDER / "making").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {model.inputs, model.maker or model.inputs} <= defined


@pytest.mark.parametrize(
    "module", ["benchmarks.peers.onnx_session", "benchmarks.real.catalog", "benchmarks.real.making.places"]
)
def test_what_other_environments_import_needs_no_dlproxy(module: str) -> None:
    """Peers' server programs and the making of models run where dlproxy is not installed."""
    code = f"import sys; sys.modules['dlproxy'] = None; import {module}, os; print(os.environ['{TELEMETRY_OFF[0]}'])"
    environment = {name: value for name, value in os.environ.items() if name != TELEMETRY_OFF[0]}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert (said.returncode, said.stdout.strip()) == (0, TELEMETRY_OFF[1]), said.stderr


def test_what_is_made_already_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / fetch.version()
    folder.mkdir()
    for ending in ("onnx", "npz"):
        (folder / f"minilm.{ending}").touch()
    with Children(tmp_path) as children:
        made = fetch.obtain(CATALOG["minilm"], children, tmp_path)
    assert made.model.exists()


def test_rivals_have_ways_of_their_own_and_goals() -> None:
    found = rivals(2, {}, Path("folder"))
    assert [(rival.name, rival.goal.limit) for rival in found] == [
        ("litserve", 1.8),
        ("bentoml", 1.8),
        ("infinity", 1.2),
        ("fastapi", 1.1),
    ]
    for rival in found:
        assert len({way.batching for way in rival.ways}) == len({way.environment for way in rival.ways}) == len(rival.ways) > 1
        assert {way.name for way in rival.ways} == {rival.name}
        assert rival.documented in rival.ways
    documented = {rival.name: rival.documented.batching for rival in found}
    assert documented["litserve"] == documented["bentoml"] == "workers 1, threads 2, batches of at most 8"


def test_the_ceiling_is_what_the_tokens_alone_take() -> None:
    found = fit([10, 50, 200], [4.3e-3, 13.5e-3, 48e-3], cores=2, mean_tokens=36.6)
    assert (found.fixed_s, found.per_token_s) == pytest.approx((2e-3, 0.23e-3))
    assert round(found.rate) == 238


def test_tokens_and_texts_travel() -> None:
    ids = np.array([[101, 7, 102]], np.int64)
    message = OipTokens().encode(ids)  # type: ignore[arg-type]
    head = json.loads(message.body[: int(message.headers[JSON_LENGTH_HEADER])])
    assert [(one["name"], one["shape"], one["datatype"]) for one in head["inputs"]] == [
        ("input_ids", [1, 3], "INT64"),
        ("attention_mask", [1, 3], "INT64"),
        ("token_type_ids", [1, 3], "INT64"),
    ]
    assert json.loads(OpenAiText({ids.tobytes(): "seven"}).encode(ids).body)["input"] == ["seven"]  # type: ignore[arg-type]


# Program and page


@pytest.mark.parametrize(
    ("arguments", "only", "minilm"),
    [
        ([], list(CATALOG), True),
        (["--minilm"], [], True),
        (["--only", "magika"], ["magika"], False),
        (["--only", "speech", "--minilm"], ["silero-vad", "fsmn-vad", "eeg-seizure"], True),
    ],
)
def test_parts_are_chosen(arguments: list[str], only: list[str], minilm: bool) -> None:
    options = program.parse_options(arguments, NOW)
    assert (options.only, options.minilm) == (only, minilm)


def test_the_page_has_the_worst_of_the_finalists_and_what_failed() -> None:
    report, findings = Report(MACHINE, {}), Findings()
    findings.facts["net"] = Facts("text", "a net", ["in x float[any, 3]"], 5, {1: 2.0, 2: 1.5}, "inline on the event loop")
    report.runs.append(Run("net", "dlproxy", DEFAULT, Figures(123.0, 1.0, 2.0, 9, 1.0), []))
    for label, value in (("a", 0.99), ("b", 0.9)):
        report.add_ratio("net", ratio_of("settings", label), value, Goal(0.95, at_least=True))
    report.add_ratio("net", HELD, 0.4, HELD_GOAL, "ms")
    findings.best["MiniLM"] = {"litserve, as documented": "batches", "litserve, at its best": "workers 2"}
    findings.ceiling = Ceiling(cores=2, fixed_s=1.0, per_token_s=1e-3, mean_tokens=20.0)
    for name, way, rate in (("as documented", "batches", 40.0), ("at its best", "workers 2", 50.0)):
        report.add_ratio("MiniLM", f"dlproxy / litserve, {name}", 100.0 / rate, Goal(1.8, at_least=True))
        report.runs.append(Run("MiniLM", "litserve", way, Figures(rate, 1.0, 2.0, 9, 1.0), []))
    report.failures.append("other  alone: /v2/models/other/infer answered 500")
    text = page(report, findings, "a command")
    assert "| net | 2 / 1.5 | inline on the event loop | 123.0 | 0.90 (missed) b | - | 0.40 |" in text
    documented = "| litserve, as documented | batches | 40.0 | 2.50 | - | >= 1.8 | 2.50 |"
    assert f"{documented}\n| litserve, at its best | workers 2 | 50.0 | 2.00 | - | >= 1.8 | 2.00 |" in text
    assert "no fixed part that is 100/s" in text
    report.runs.append(Run("MiniLM", "dlproxy", DEFAULT, Figures(101.0, 1.0, 2.0, 9, 1.0), []))
    busy = page(report, findings, "a command")
    assert "no fixed part" not in busy
    assert "| 50.0 | 2.00 | - | >= 1.8 | - |" in busy
    assert "- other alone:" in text
