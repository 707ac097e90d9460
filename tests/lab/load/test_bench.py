"""`dlproxy bench` as a user meets it: runs in processes of their own, their results, and one line for whatever is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.cli import main
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import Interrupt, LoadTest
from dlproxy.lab.load.settings import Settings
from dlproxy.lab.load.worker import portion, share
from dlproxy.lab.report.result import Result, load
from tests import models
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess, environment
from tests.lab.load.fake import METADATA, OK, REPLY, Asked, FakeServer, http, one_at_a_time, silent_port

QUICK = ("--model", "m", "--warmup", "0", "--duration", "300ms", "--keys", "4")


def _bench(server: FakeServer | str, *arguments: str | Path) -> int:
    url = server if isinstance(server, str) else server.url
    return main(["bench", url, *map(str, arguments)])


def _complaint(capsys: pytest.CaptureFixture[str], server: FakeServer | str, *arguments: str | Path) -> str:
    """The one line that says what the user can mend."""
    assert _bench(server, *arguments) == 2
    return only_line(capsys)


def _check_sum(result: Result) -> None:
    assert result.sent == result.ok + result.failed


# Good runs


def test_a_closed_loop_is_measured_shown_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = [{"model_stats": [{"batch_stats": [{"batch_size": 3, "compute_infer": {"count": 7}}]}]}]
    with FakeServer(pages={"/v2/models/m/stats": http(stats[0])}) as server:
        code = _bench(server, *QUICK, "--concurrency", "3", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert code == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "p99" in said.out
    assert "<html" in (tmp_path / "r.html").read_text("utf-8")
    result = load(tmp_path / "r.json")
    _check_sum(result)
    assert result.ok > 30
    assert result.ok + 1 == len(server.asked)  # and the one that was sent before to see whether it works
    assert result.batch_sizes == {}  # the fake's statistics stand still
    assert result.generator is not None
    assert 0.0 < result.generator.cpu_share <= 1.2
    setup = result.setup
    assert (setup["loop"], setup["concurrency"], setup["processes"], setup["seed"]) == ("closed", 3, 1, 0)
    assert setup["payload"]["distinct"] == 4
    assert setup["model"]["inputs"] == {"x": "FP32 [-1,4]"}
    assert len({asked.body for asked in server.asked}) == 4


def test_what_the_server_counted_during_the_run_is_in_the_result() -> None:
    def stats(requests: int, batches: int) -> bytes:
        phase = {"count": requests, "ns": requests * 2_000_000}
        size = {
            "batch_size": 4,
            "compute_input": {"ns": batches * 1000},
            "compute_infer": {"count": batches, "ns": batches * 9000},
        }
        return http({"model_stats": [{"inference_stats": {"queue": phase}, "batch_stats": [size]}]})

    path = "/v2/models/m/stats"
    with FakeServer(pages={path: stats(10, 3)}) as server:
        test = LoadTest(Settings(url=server.url, model="m", concurrency=2, duration_s=0.2, warmup_s=0.0))

        def count_more(progress: Progress) -> bool:
            server.pages[path] = stats(50, 13)
            return True

        result = test.run(Interrupt(), count_more)
    assert result.batch_sizes == {4: 10}
    assert result.phases_ms == {"queue": pytest.approx(2.0)}
    assert result.busy_s == pytest.approx(10 * 10e-6)


def test_two_processes_send_the_stream_of_one_and_the_deadline_with_each_request(tmp_path: Path) -> None:
    with FakeServer() as server:
        options = ("--rate", "120", "--processes", "2", "--deadline", "50ms", "--objective", "p99=2s", "--seed", "3")
        assert _bench(server, *QUICK, *options, "--json", tmp_path / "r.json") == 0
    result = load(tmp_path / "r.json")
    _check_sum(result)
    expected = sum(chunk.size for chunk in make_arrivals("poisson", rate=120.0, seed=3).chunks(0.3))
    assert result.sent == result.ok == expected
    assert result.objective_ms == 2000.0
    assert result.goodput_rps == result.rate_rps
    probe, *asked = server.asked
    assert "timeout" not in probe.json.get("parameters", {})
    assert {request.json["parameters"]["timeout"] for request in asked} == {50_000}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_headers_go_with_each_request_and_their_values_into_no_report(tmp_path: Path, processes: str) -> None:
    given = ("--header", "x-tenant-id:shop", "--header", "Authorization: Bearer s3cret:x", "--header", "X-Empty:")
    with FakeServer() as server:
        options = ("--rate", "60", "--processes", processes, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
        assert _bench(server, *QUICK, *given, *options) == 0
    assert len(server.asked) > 5
    for asked in server.asked:  # the probe among them: it must be let in too
        lines = asked.head.lower().split("\r\n")
        assert [lines.count(line) for line in ("x-tenant-id: shop", "authorization: bearer s3cret:x", "x-empty: ")] == [1, 1, 1]
    assert load(tmp_path / "r.json").setup["headers"] == "x-tenant-id, Authorization, X-Empty"
    for report in ("r.json", "r.html"):
        assert "s3cret" not in (tmp_path / report).read_text("utf-8")


def test_a_run_without_headers_says_nothing_of_them(tmp_path: Path) -> None:
    with FakeServer() as server:
        assert _bench(server, *QUICK, "--json", tmp_path / "r.json") == 0
    assert "headers" not in load(tmp_path / "r.json").setup


def test_a_trace_is_replayed_with_its_last_arrival(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("TIMESTAMP,tokens\n10.0,5\n10.4,5\n11.0,5\n")
    with FakeServer() as server:
        assert (
            _bench(server, "--model", "m", "--trace", tmp_path / "trace.csv", "--speed", "2", "--json", tmp_path / "r.json")
            == 0
        )
    result = load(tmp_path / "r.json")
    assert result.sent == result.ok == 3
    first, second, third = (asked.at for asked in server.asked[1:])
    assert abs(second - first - 0.2) < 0.15
    assert abs(third - first - 0.5) < 0.15
    assert result.setup["speed"] == 2.0


def test_json_requests_of_a_file_reach_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(models.HELDOUT) as heldout:
        np.save(tmp_path / "images.npy", heldout["images"][:20].astype(np.float32))
    with ServerProcess(models.DIGITS) as server:
        options = ("--duration", "0.3", "--warmup", "0", "--rows", "2", "--input", tmp_path / "images.npy", "--zipf", "1")
        for protocol in ("json", "binary"):
            code = _bench(server.address, *options, "--protocol", protocol, "--json", tmp_path / f"{protocol}.json")
            assert code == 0, capsys.readouterr().err
    for protocol in ("json", "binary"):
        result = load(tmp_path / f"{protocol}.json")
        assert result.failed == 0
        assert result.ok > 20
        assert sum(size * count for size, count in result.batch_sizes.items()) >= 2 * result.ok
        assert result.setup["payload"]["requests"] == 10


def test_open_dimensions_are_tried_until_the_model_takes_them(tmp_path: Path) -> None:
    pages = {"/v2/models/m": http({**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]})}

    def infer(asked: Asked) -> None:
        right = asked.json["inputs"][0]["shape"] == [1, 32]
        asked.reply(OK if right else http({"error": "I take 32"}, "400 Bad Request"))

    with FakeServer(infer, pages) as server:
        assert _bench(server, *QUICK, "--json", tmp_path / "r.json") == 0
    assert load(tmp_path / "r.json").setup["payload"]["shapes"] == {"x": "1x32"}


def test_errors_are_named_with_what_the_server_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def infer(asked: Asked) -> None:
        asked.reply(OK if len(server.asked) % 2 else http({"error": "queue full"}, "503 Service Unavailable"))

    with FakeServer(infer) as server:
        assert _bench(server, *QUICK, "--concurrency", "2", "--json", tmp_path / "r.json") == 0
    result = load(tmp_path / "r.json")
    _check_sum(result)
    assert list(result.errors) == ["503 Service Unavailable"]
    assert "queue full" in capsys.readouterr().out


def test_only_errors_is_a_failed_run() -> None:
    def infer(asked: Asked) -> None:
        asked.reply(OK if len(server.asked) == 1 else http({"error": "no"}, "500 Internal Server Error"))

    with FakeServer(infer) as server:
        assert _bench(server, *QUICK) == 1


def test_the_peak_of_a_server_of_known_capacity_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(one_at_a_time(0.005)) as server:
        options = ("--find-peak", "p99=100ms", "--duration", "0.6", "--warmup", "0", "--trials", "4", "--rate", "60")
        code = _bench(server, "--model", "m", *options, "--json", tmp_path / "r.json")
    said = capsys.readouterr().out
    assert code == 0, said
    result = load(tmp_path / "r.json")
    peak = re.search(r"^peak +([\d.,]+) requests/s", said, re.MULTILINE)
    assert peak is not None, said
    assert 15.0 <= float(peak[1].replace(",", "")) <= 240.0  # the server's limit is 200 a second
    assert 2 <= len(result.trials) <= 4
    assert len(re.findall("^trial ", said, re.MULTILINE)) == len(result.trials)
    assert result.trials[-1].passed
    assert result.setup["arrivals"] == "poisson"


def test_no_rate_may_meet_the_objective(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda asked: asked.reply(after_s=0.05)) as server:
        assert (
            _bench(
                server,
                "--model",
                "m",
                "--find-peak",
                "1ms",
                "--duration",
                "0.3",
                "--warmup",
                "0",
                "--trials",
                "2",
                "--rate",
                "20",
            )
            == 1
        )
    assert "not found" in capsys.readouterr().out


# Ended early


def _start(server: FakeServer, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dlproxy", "bench", server.url, "--model", "m", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def _at_request(number: int, action: Any) -> Any:
    """An `infer` that does something once, at this request."""
    seen = 0

    def infer(asked: Asked) -> None:
        nonlocal seen
        seen += 1
        asked.reply(after_s=0.002)
        if seen == number:
            action()

    return infer


@pytest.mark.parametrize("load_options", [("--concurrency", "2"), ("--rate", "200")], ids=["closed", "open"])
def test_ctrl_c_reports_what_was_measured(tmp_path: Path, load_options: tuple[str, ...]) -> None:
    with FakeServer() as server:
        bench = _start(server, *load_options, "--warmup", "0", "--duration", "60", "--json", tmp_path / "r.json")
        server.infer = _at_request(100, lambda: bench.send_signal(signal.SIGINT))
        out, err = bench.communicate(timeout=HANG_S)
    assert bench.returncode == 130, err
    assert err == ""
    assert "interrupted" in out
    result = load(tmp_path / "r.json")
    assert result.interrupted
    assert result.ok >= 95
    assert result.failed == 0
    assert result.duration_s < 30.0
    _check_sum(result)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with FakeServer() as server:
        bench = _start(server, "--concurrency", "2", "--warmup", "0", "--duration", "60", "--json", tmp_path / "r.json")

        def twice(asked: Asked) -> None:  # unanswered, so that the run has something to wait for
            if len(server.asked) in (10, 11):
                bench.send_signal(signal.SIGINT)
            if len(server.asked) < 10:
                asked.reply(after_s=0.05)

        server.infer = twice
        _, err = bench.communicate(timeout=HANG_S)
    assert bench.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_remembered_and_a_second_one_raises(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        signal.raise_signal(number)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_server_that_dies_ends_the_run_with_a_report(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.infer = _at_request(100, server.die)
        bench = _start(server, "--concurrency", "2", "--warmup", "0", "--duration", "60", "--json", tmp_path / "r.json")
        out, err = bench.communicate(timeout=HANG_S)
    assert bench.returncode == 1, err
    assert err == ""
    assert "every request had begun to fail" in " ".join(out.split())
    result = load(tmp_path / "r.json")
    assert result.errors["connection refused"] > 1
    assert result.duration_s < 30.0
    _check_sum(result)


# What the user can mend


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["--rate", "5", "--concurrency", "3"], ["--concurrency and --rate contradict"]),
        (["--rate", "5", "--trace", "x.csv"], ["--rate and --trace contradict"]),
        (["--rate", "0"], ["--rate 0 is out of range", "above 0"]),
        (["--rate", "-3"], ["--rate -3 is out of range"]),
        (["--rate", "nan"], ["--rate nan is out of range"]),
        (["--rate", "inf"], ["--rate inf is out of range"]),
        (["--rate", "1e9"], ["--rate 1e+09 is out of range", "at most 1,000,000"]),
        (["--rate", "0.01"], ["less than one request"]),
        (["--rate", "9", "--arrivals", "weekly"], ["no arrival process 'weekly'", "poisson"]),
        (["--arrivals", "poisson"], ["--arrivals", "--rate R"]),
        (["--speed", "2"], ["--speed only has a meaning with --trace"]),
        (["--trace", "nowhere.csv"], ["nowhere.csv cannot be read"]),
        (["--concurrency", "0"], ["--concurrency 0 is out of range"]),
        (["--concurrency", "2", "--processes", "3"], ["less than one for each of 3 processes"]),
        (["--duration", "0"], ["--duration 0 is out of range"]),
        (["--duration", "soon"], ["--duration soon is not a duration", "10, 10s or 500ms"]),
        (["--warmup", "2h"], ["--warmup 2h is not a duration"]),
        (["--duration", "nan"], ["--duration nan is out of range"]),
        (["--warmup", "-1"], ["--warmup -1 is out of range"]),
        (["--protocol", "telepathy"], ["there is no protocol 'telepathy'", "binary, json"]),
        (["--deadline", "soon"], ["'soon' is not understood", "20ms"]),
        (["--objective", "p99=fast"], ["'fast' is not understood"]),
        (["--find-peak", "20ms", "--concurrency", "3"], ["--find-peak", "omit --concurrency"]),
        (["--trials", "5"], ["--trials only has a meaning with --find-peak"]),
        (["--find-peak", "20ms", "--trials", "1"], ["--trials 1 is out of range"]),
        (["--max-connections", "5"], ["--max-connections is for an open loop"]),
        (["--input", "x.npy", "--seed", "0"], ["--seed changes nothing here"]),
        (["--shape", "x"], ["--shape x is not understood", "image:224,224,3"]),
        (["--shape", "x:5"], ["'x' FP32 [N,4]", "x:4"]),
        (["--shape", "z:5"], ["no such input", "'x' FP32"]),
        (["--input", "nowhere.npy"], ["nowhere.npy cannot be read"]),
        (["--zipf", "1", "--keys", "1"], ["only one", "--keys N"]),
        (["--json", "nowhere/r.json"], ["cannot write nowhere/r.json"]),
        (["--html", "."], ["cannot write ."]),
        (["--model", "nope"], ["has no model 'nope'", "it has m, other"]),
        (["--header", "x-tenant-id"], ["--header 'x-tenant-id' is not a header", "x-tenant-id:shop"]),
        (["--header", ":shop"], ["--header ':shop' is not a header"]),
        (["--header", "x tenant:shop"], ["--header 'x tenant:shop' is not a header"]),
        (["--header", "x-tenant:zürich"], ["is not a header", "x-tenant-id:shop"]),
        (["--header", "x-a:b\r\nx-c: d"], ["is not a header", "x-tenant-id:shop"]),
        (["--header", "x-a:b\0"], ["is not a header"]),
        (["--header", ""], ["--header '' is not a header"]),
        (["--header", "Content-Length:5"], ["--header Content-Length", "load test sets it itself"]),
        (["--header", "content-type:text/plain"], ["--header content-type", "load test sets it itself"]),
        (["--header", "Expect:100-continue"], ["--header Expect", "load test sets it itself"]),
        (["--header", "x-a:b", "--header", "X-A:c"], ["--header X-A is given twice", "commas"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], clues: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeServer() as server:
        complaint = _complaint(capsys, server, "--model", "m", *arguments)
    assert not [clue for clue in clues if clue not in complaint], complaint
    assert len(server.asked) <= 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "yesterday\n", "1.0\n1.0\n", "1.0\n2.0\nnan\n", "\0\0"])
def test_a_trace_that_is_none_is_said_in_one_line(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with FakeServer() as server:
        assert "trace.csv" in _complaint(capsys, server, "--model", "m", "--trace", tmp_path / "trace.csv")


@pytest.mark.parametrize(
    "url", ["grpc://127.0.0.1:1", "ftp://x", "http://", "http://[::1", "http://127.0.0.1:99999", "http://h:1/v2?x=1", "\0", ""]
)
def test_a_url_that_is_none_is_said_in_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "http://127.0.0.1:8000" in _complaint(capsys, url, "--model", "m")


def test_authorities_that_cannot_be_used_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asks = ("--ca", tmp_path / "none.pem")
    assert "none.pem cannot be loaded" in _complaint(capsys, "https://127.0.0.1:1", "--model", "m", *asks)
    asks = ("--api-key-file", tmp_path / "none")
    assert "--api-key-file: " in _complaint(capsys, "http://127.0.0.1:1", "--model", "m", *asks)


def test_a_server_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_port() as port:
        complaint = _complaint(capsys, f"http://127.0.0.1:{port}", "--model", "m")
    assert "connection refused" in complaint
    assert "is the server running there?" in complaint


@pytest.mark.parametrize(
    ("page", "clue"),
    [
        (http({"error": "what?"}, "404 Not Found"), "is not an Open Inference Protocol server"),
        (http(b"<html>"), "is not an Open Inference Protocol server"),
        (b"220 smtp ready\r\n", "does not speak HTTP"),
        (http({"name": "m", "inputs": []}), "does not say what inputs"),
        (http({"name": "m", "inputs": [{"name": "x", "datatype": "FP9", "shape": [1]}]}), "in a way that is not understood"),
    ],
)
def test_a_server_that_is_something_else_is_said_in_one_line(
    page: bytes, clue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = dict.fromkeys(("/v2/models/m", "/v2/repository/index", "/v2"), page)
    with FakeServer(pages=pages) as server:
        assert clue in _complaint(capsys, server, "--model", "m")


@pytest.mark.parametrize(
    ("answer", "clues"),
    [
        (http({"error": "x is bad"}, "400 Bad Request"), ["400 Bad Request: x is bad"]),
        (http(b"not json"), ["does not follow the Open Inference Protocol"]),
        (http({**REPLY, "outputs": []}), ["lacks output 'y'"]),
        (http({"outputs": [{**REPLY["outputs"][0], "shape": [1, 3]}]}), ["came as FP32 [1, 3]", "says FP32 [-1, 2]"]),  # type: ignore[dict-item]
        (http({"outputs": [{**REPLY["outputs"][0], "datatype": "INT8"}]}), ["came as INT8"]),  # type: ignore[dict-item]
        (
            http(json.dumps(REPLY).encode() + b"1234", "200 OK", f"inference-header-content-length: {len(json.dumps(REPLY))}"),
            ["4 binary"],
        ),
    ],
)
def test_a_first_answer_that_is_wrong_is_said_in_one_line(
    answer: bytes, clues: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(lambda asked: asked.reply(answer)) as server:
        complaint = _complaint(capsys, server, "--model", "m")
    assert not [clue for clue in clues if clue not in complaint], complaint


def test_a_missing_model_name_is_asked_for_unless_there_is_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        assert "--model NAME; the server has m, other" in _complaint(capsys, server)
    with FakeServer(pages={"/v2/repository/index": http([{"name": "m"}])}) as server:
        assert _bench(server, *QUICK[2:]) == 0


def test_a_second_url_is_too_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unexpected argument 'more.json'" in _complaint(capsys, "http://h", "more.json")


@pytest.mark.parametrize("option", ["--html=x.html", "--json=x.json", "--seed=0", "--model=m"])
def test_compare_refuses_options_that_would_do_nothing(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    complaint = _complaint(capsys, "compare", "a.json", "b.json", option)
    assert f"compare prints its comparison and has no options; omit {option.partition('=')[0]}" in complaint
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_the_server_hangs_ends_at_once() -> None:
    with FakeServer(lambda asked: hung.set()) as server:
        hung = threading.Event()
        bench = _start(server)
        assert hung.wait(HANG_S)
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=HANG_S / 4)
    assert (bench.returncode, out, err) == (130, "", "")


def test_compare_takes_two_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "two results" in _complaint(capsys, "compare", "a.json")
    assert "a.json" in _complaint(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json")


# Parts


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("spec", ["poisson", "mmpp"])
def test_the_processes_shares_together_are_the_stream(processes: int, spec: str) -> None:
    stream = make_arrivals(spec, rate=5000.0, seed=2)
    whole = np.concatenate(list(stream.chunks(5.0))).tolist()
    shares = [list(share(stream, 5.0, index, processes)) for index in range(processes)]
    assert sorted(at for part in shares for at in part) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("total", "processes"), [(64, 1), (64, 3), (5, 5)])
def test_portions_add_up(total: int, processes: int) -> None:
    portions = [portion(total, index, processes) for index in range(processes)]
    assert sum(portions) == total
    assert max(portions) - min(portions) <= 1
