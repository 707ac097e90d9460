"""`dlproxy simulate`: what cannot be used is answered in one line with exit code 2; one seed, one file; Ctrl-C keeps it."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import INTERRUPTED, OK, USER_ERROR
from dlproxy.lab.report.result import load
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, environment

TIMES = "--service=m=base=10ms,row=0.5ms"
RATE = "--rate=50"
SHORT = "--duration=5s"
SCALING = "autoscale = 'in-flight'\nmax_instances = 5\n"
CHAIN = """
[models.find]
path = "find.onnx"
[models.read]
path = "read.onnx"
[pipelines.ocr]
slo = "p99=300ms"
inputs = {image = "BYTES[1]"}
outputs = {text = "read.text"}
[pipelines.ocr.steps.decode]
call = "image.decode"
inputs = {image = "image"}
[pipelines.ocr.steps.find]
model = "find"
inputs = {x = "decode.image"}
[pipelines.ocr.steps.read]
model = "read"
inputs = {x = "find.boxes"}
each = true
"""
OCR = ["--config=chain.toml", "--service=find=base=10ms,row=2ms", "--service=read=base=5ms,row=1ms", RATE, SHORT]
M = ["m", TIMES, RATE, SHORT]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a folder with some unusable files."""
    for name, content in {
        "empty.csv": "",
        "headed.csv": "time\n",
        "once.csv": "3\n",
        "malformed.csv": "time\n1\n2\nthree\n",
        "text.dlog": "dear diary",
        "typo.toml": "[models.m]\npath = 'm.onnx'\nmax_bach = 4\n",
        "broken.toml": "[models.m\n",
        "scaling.toml": f"[models.m]\npath = 'm.onnx'\nslo = 'p99=200ms'\n{SCALING}run = 'thread'\n",
        "chain.toml": CHAIN,
        "inline.toml": f"[models.m]\npath = 'm.onnx'\nmax_batch = 1\n{SCALING}",
        "binary.csv": "\0\0",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "cut.dlog").write_bytes(b"\xff\0\0\0header")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["m", TIMES, "--rate=0"], ["rate 0 is out of range", "positive"]),
        (["m", TIMES, "--rate=nan"], ["rate nan is out of range"]),
        (["m", TIMES, "--rate=inf"], ["rate inf is out of range"]),
        (["m", TIMES, "--rate=-1"], ["rate -1 is out of range"]),
        (["m", TIMES, "--rate=1e12"], ["--rate 1e+12 for 60 s is out of range", "at most 1,000,000,000 requests"]),
        ([*OCR, "--step=ocr.red=items=3"], ["--step ocr.red", "the steps are ocr.decode, ocr.find, ocr.read"]),
        ([*OCR, "--step=ocr.read=boxes=3"], ["no option 'boxes'", "items=1-20"]),
        ([*OCR, "--step=ocr.read=items=9-3"], ["the smaller number first"]),
        ([*OCR, "--step=ocr.read=time=3ms"], ["time is for code", "--service read"]),
        ([*M, "--step=ocr.read=items=3"], ["--step is for steps of pipelines"]),
        (["m", TIMES], ["no load given", "--rate 500 --duration 60", "--trace FILE"]),
        (["m", TIMES, RATE, "--duration=0"], ["--duration 0 is out of range"]),
        (["m", TIMES, RATE, "--duration=soon"], ["--duration soon is not a duration", "10, 10s or 500ms"]),
        (["m", TIMES, RATE, "--duration=nan"], ["--duration nan is out of range"]),
        (["m", TIMES, RATE, "--trace=malformed.csv"], ["--trace says when requests arrive", "omit --rate"]),
        (["m", TIMES, "--trace=empty.csv"], ["empty.csv holds no arrivals"]),
        (["m", TIMES, "--trace=headed.csv"], ["headed.csv holds no arrivals"]),
        (["m", TIMES, "--trace=once.csv"], ["once.csv", "at least two times"]),
        (["m", TIMES, "--trace=malformed.csv"], ["malformed.csv, line 4", "'three' is not a time", "2023-11-16"]),
        (["m", TIMES, "--trace=binary.csv"], ["binary.csv"]),
        (["m", TIMES, "--trace=nowhere.csv"], ["nowhere.csv cannot be read"]),
        (["m", TIMES, "--trace=folder"], ["folder cannot be read"]),
        ([*M, "--arrivals=often"], ["no arrival process 'often'", "poisson"]),
        ([*M, "--loop=recorded"], ["only a recording tells what the loop costs", "--service m=EVENT.dlog"]),
        (["m", "n", TIMES, RATE, "--loop=recorded"], ["--loop recorded works with one model only"]),
        ([*M, "--loop=recoded"], ["--loop recoded: 'recoded' is not understood", "read=20us", "or recorded"]),
        ([*M, "--cold-start=3s"], ["--cold-start only has a meaning for a model that scales"]),
        (["--config=scaling.toml", TIMES, RATE, SHORT, "--fault=die:node=node-0"], ["a model that scales", "slow or fail"]),
        (["--config=inline.toml", "--service=m=base=10us", RATE, SHORT], ["event loop does not scale", "run = 'thread'"]),
        ([*M, "--nodes=0"], ["--nodes 0 is out of range", "1 to 100000"]),
        ([*M, "--nodes=100001"], ["--nodes 100001 is out of range"]),
        ([*M, "--rows=0"], ["--rows 0 is out of range", "at least one row"]),
        ([*M, "--rows=8193"], ["--rows 8193 is more than the 8192 that a request for model m may have"]),
        ([*M, "--seed=-1"], ["--seed -1 is out of range", "0 or more"]),
        ([*M, "--balancer=best"], ["there is no balancer 'best'", "peak-ewma", "round-robin"]),
        ([*M, "--fault=explode:node=node-0"], ["there is no kind 'explode'", "slow, die or fail"]),
        ([*M, "--fault=die:node=node-1"], ["there is no node 'node-1'", "the nodes are node-0"]),
        ([*M, "--fault=die:node=node-0,instance=x"], ["no instance 'x' on node-0", "m-0"]),
        ([*M, "--fault=die:node=node-0", "--fault=die:node=node-0,at=3"], ["another 'die' on m-0", "let one end"]),
        (["m", "--service=m=10ms", RATE], ["service '10ms'", "base=10ms,row=0.5ms"]),
        (["m", "--service=m=bse=10ms", RATE], ["no option 'bse'", "base=10ms,row=0.5ms"]),
        (["m", "--service=m=base=0ms", RATE], ["base=0ms is not understood"]),
        (["m", "--service=m", RATE], ["--service m: begin with a model's name", "the models are m"]),
        (["m", "--service=other=base=10ms", RATE], ["--service other=base=10ms", "the models are m"]),
        (["m", "--service=m=text.dlog", RATE], ["text.dlog breaks off within its header"]),
        (["m", "--service=m=cut.dlog", RATE], ["cut.dlog breaks off within its header"]),
        (["m", "--service=m=folder", RATE], ["folder cannot be read"]),
        ([*M, "--mix=other=3"], ["--mix other=3", "the models are m"]),
        ([*M, "--mix=m"], ["--mix m: begin with a model's name"]),
        ([*M, "--mix=m=0"], ["the share of m must be a number above 0"]),
        ([*M, "--mix=m=nan"], ["the share of m must be a number above 0"]),
        ([*M, "--deadline=soon"], ["--deadline: duration 'soon'", "20ms"]),
        ([*M, "--objective=20"], ["--objective: duration '20'", "20ms"]),
        ([*M, f"--deadline={'9' * 400}s"], ["--deadline: duration", "is not understood; write it like 20ms"]),
        ([*M, "--slo=fast"], ["slo 'fast'", "p99=20ms"]),
        ([*M, "--loop=read"], ["--loop read: duration ''"]),
        ([*M, "--loop=think=20us"], ["'think' is not understood", "read=20us,write=15us,path=100us"]),
        ([*M, "--json=no/such/folder.json"], ["cannot write no/such/folder.json"]),
        ([*M, "--html=no/such/folder.html"], ["cannot write no/such/folder.html"]),
        ([*M, "--json=folder"], ["cannot write folder"]),
        (["--config=nowhere.toml", RATE], ["nowhere.toml cannot be read"]),
        (["--config=typo.toml", RATE], ["typo.toml:3: unknown key 'max_bach'", "did you mean 'max_batch'?"]),
        (["--config=broken.toml", RATE], ["broken.toml is not TOML"]),
        ([RATE], ["no model given", "dlproxy simulate MODEL.onnx"]),
        (["nowhere.onnx", RATE], ["nowhere.onnx does not exist"]),
        (["sleep:base=10", RATE], ["'sleep:base=10'", "20ms"]),
        (["m", "m", TIMES, RATE], ["two models are named 'm'"]),
        (["--replay=nowhere.dlog"], ["nowhere.dlog cannot be read"]),
        (["--replay=text.dlog"], ["text.dlog breaks off within its header"]),
        (["--replay=text.dlog", "m"], ["--replay takes its requests and its model from the recording"]),
        (["--replay=text.dlog", "--seed=0"], ["--replay takes its requests", "omit --seed"]),
        (["--replay=text.dlog", "--nodes=1", "--slo=p99=1s"], ["omit --nodes, --slo"]),
        ([*M, "--zipf=1"], ["--zipf only has a meaning where requests repeat", "--keys N"]),
        ([*M, "--cache=lru:answers=100"], ["--cache only has a meaning where requests repeat"]),
        ([*M, "--keys=0"], ["--keys 0 is out of range", "1 to 10,000,000"]),
        ([*M, "--keys=9", "--zipf=nan"], ["--zipf nan is out of range", "0 to 10"]),
        ([*M, "--keys=9", "--cache=lri:answers=100"], ["no cache policy 'lri'", "did you mean lru?"]),
        ([*M, "--keys=9", "--cache=lru:answers=9"], ["say for how many answers, 10 to 10,000,000", "lru:answers=1000"]),
        ([*M, "--keys=9", "--cache=lru"], ["say for how many answers", "lru:answers=1000"]),
        ([*M, "--speed=2"], ["--speed only has a meaning with --trace"]),
        ([*M, "--mix=m=3"], ["--mix divides the load among several models"]),
        ([*M, "--balancer=round-robin"], ["--balancer chooses among nodes", "--nodes 2"]),
        ([*M, "--service=m=base=3ms"], ["--service names m twice"]),
        ([*M, "--fault=die:node=node-0,at=5"], ["would never begin", "ends after 5 s"]),
        ([*M, "--fault=die:node=node-0,factor=3"], ["factor only has a meaning with slow"]),
        ([*M, "--fault=slow:node=node-0,after=3"], ["after only has a meaning with fail"]),
        (["--replay=text.dlog", "--fault=die:node=node-0"], ["--replay takes its requests"]),
        (["--replay=text.dlog", "--what-if=instances=2"], ["--replay takes its requests", "omit --what-if"]),
        (["--log=nowhere.dlog"], ["nowhere.dlog cannot be read"]),
        (["--log=text.dlog"], ["text.dlog breaks off within its header"]),
        (["--log=cut.dlog", "--what-if=instances=2"], ["cut.dlog breaks off within its header"]),
        (["--log=folder"], ["folder holds no event log (*.dlog)"]),
        (["--log=text.dlog", "m", RATE], ["--log takes requests, models and knobs from the recording; omit m, --rate"]),
        (["--log=text.dlog", "--loop=read=20us"], ["--loop is either recorded or left out"]),
        ([*M, "--what-if=max_bach=4"], ["--what-if max_bach=4", "did you mean 'max_batch'?"]),
        ([*M, "--what-if=rows=4"], ["no knob 'rows'"]),
        ([*M, "--what-if=instances=1000"], ["--what-if instances=1000", "<= 256"]),
        ([*M, "--rows=3", "--what-if=max_batch=2"], ["requests to m have up to 3 rows"]),
        ([*M, *["--what-if=instances=2"] * 21], ["--what-if is given 21 times", "at most 20"]),
        ([*M, "--parallel=0.5"], ["--parallel only has a meaning with"]),
        ([*M, "--what-if=threads=2", "--parallel=1.5"], ["--parallel 1.5 is out of range"]),
        ([*M, "--capacity=thrice"], ["--capacity 'thrice' is not understood", "3x"]),
        ([*M, "--capacity=3x"], ["--capacity needs an objective", "--objective 20ms"]),
        ([*M, "--capacity=3x", "--slo=p99=1s", "--what-if=rate=2x"], ["leave rate, speed and cores out"]),
        ([*M, "--capacity=3x", "--slo=p99=1s", "--what-if=instances=2"], ["finds the number of instances"]),
        ([*M, "--capacity=3x", "--slo=p99=1s", "--html=o.html"], ["no HTML report"]),
        ([*M, "--capacity=3x", "--slo=p99=1s", *["--what-if=max_batch=2"] * 2], ["one --what-if at most"]),
        (["m", "n", TIMES, "--service=n=base=1ms", RATE, "--objective=1s", "--capacity=3x"], ["one model only"]),
        (["--config=scaling.toml", TIMES, RATE, SHORT, "--what-if=instances=2"], ["the model scales", "autoscale = 'off'"]),
        (["--config=scaling.toml", TIMES, RATE, SHORT, "--what-if=cores=2"], ["models that scale"]),
        (["--config=scaling.toml", TIMES, RATE, SHORT, "--capacity=2x"], ["autoscaling"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_answered_in_one_line(
    arguments: list[str], clues: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == USER_ERROR
    line = only_line(capsys)
    assert not [clue for clue in clues if clue not in line], line


def _simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlproxy", "simulate", *arguments]
    variables = {**environment(), "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=variables, check=False)


def test_one_seed_writes_one_file_whatever_the_process_and_another_seed_another(folder: Path) -> None:
    what = ["a", "b", "--service=a=base=5ms,cv=0.5", "--service=b=base=2ms,row=1ms,cv=1", "--mix=a=3,b=1", "--rate=2000"]
    fleet = [
        "--nodes=4",
        "--balancer=power-of-two",
        "--duration=1",
        "--deadline=12ms",
        "--fault=die:node=node-1,at=0.3,for=0.3",
    ]
    written = []
    for number, (seed, hash_seed) in enumerate([("7", "1"), ("7", "2"), ("8", "1")]):
        done = _simulate(*what, *fleet, f"--seed={seed}", f"--json={number}.json", hash_seed=hash_seed)
        assert (done.returncode, done.stderr) == (OK, "")
        written.append((done.stdout, (folder / f"{number}.json").read_bytes()))
    assert written[0] == written[1]
    first, other = json.loads(written[0][1]), json.loads(written[2][1])
    assert first["sent"] != other["sent"]
    assert first["latency_ms"] != other["latency_ms"]
    assert {"deadline"} <= first["errors"].keys(), "the scene shall be rich"


def _interrupted(arguments: list[str]) -> str:
    """What the command prints if Ctrl-C comes while it simulates."""
    program = (
        "import sys\n"
        "from dlproxy.cli import main\n"
        "from dlproxy.lab.simulate import run\n"
        "make_calls = run.make_calls\n"
        "def telling(scenario, on_progress):\n"
        "    for number, call in enumerate(make_calls(scenario, on_progress)):\n"
        "        if number == 5000: print('under way', flush=True)\n"
        "        yield call\n"
        "run.make_calls = telling\n"
        f"sys.exit(main(['simulate', *{arguments!r}]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    guard = threading.Timer(HANG_S, process.kill)
    guard.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    guard.cancel()
    guard.join()
    assert (process.returncode, errors) == (INTERRUPTED, "")
    return out


def test_ctrl_c_ends_what_ifs_with_the_columns_so_far(folder: Path) -> None:
    long = ["m", TIMES, "--rate=1000", "--duration=1000000", "--json=part.json"]
    out = _interrupted([*long, "--what-if=instances=2"])
    assert "Stopped early: simulated covers" in out
    written = json.loads((folder / "part.json").read_bytes())
    assert list(written["columns"]) == ["simulated"]
    assert written["columns"]["simulated"]["interrupted"]


def test_ctrl_c_ends_the_search_for_a_capacity(folder: Path) -> None:
    long = ["m", TIMES, "--rate=1000", "--duration=100000", "--json=part.json"]
    out = _interrupted([*long, "--capacity=3x", "--objective=50ms"])
    assert "stopped before the number of instances was found" in out
    assert json.loads((folder / "part.json").read_bytes())["instances"] is None


def test_ctrl_c_prints_and_writes_what_was_simulated_so_far(folder: Path) -> None:
    assert "interrupted" in _interrupted(["m", TIMES, "--rate=1000", "--duration=1000000", "--json=part.json"])
    result = load(folder / "part.json")
    assert result.interrupted
    assert result.sent >= 5_000
    assert result.duration_s < 1e6
    assert result.sent == pytest.approx(1000 * result.duration_s, rel=0.05)


# What is asked for is what is simulated


def test_options_reach_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dlproxy.toml").write_text("[models.m]\npath = 'm.onnx'\nslo = 'p99=80ms'\ninstances = 2\n")
    options = [
        "--nodes=3",
        "--balancer=round-robin",
        "--rows=2",
        "--loop=read=20us,write=15us,path=1ms,shared",
        "--arrivals=gamma:cv=2",
    ]
    assert main(["simulate", "--config=dlproxy.toml", TIMES, RATE, SHORT, *options, "--json=out.json"]) == OK
    result = load(folder / "out.json")
    assert result.setup["nodes"] == 3
    assert result.setup["loop_us"] == {"read": pytest.approx(20.0), "write": pytest.approx(15.0), "path": pytest.approx(1000.0)}
    assert result.setup["loop_shares_core"] is True
    assert result.setup["arrivals"] == "gamma:cv=2"
    assert result.setup["models"]["m"]["slo_s"] == 0.08
    assert list(result.instances["node-2"]) == ["m-0", "m-1"]
    assert result.objective_ms == pytest.approx(80.0), "the model's objective, since no other is given"
    assert result.latency_ms["p50"] >= 10.0 + 2 * 0.5 + 1.0
    assert "requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "objective_ms"),
    [
        ([], None),
        (["--deadline=50ms"], 50.0),
        (["--deadline=50ms", "--slo=p99=20ms"], 50.0),
        (["--slo=p99=20ms"], 20.0),
        (["--deadline=50ms", "--objective=p99=30ms"], 30.0),
    ],
)
def test_what_counts_as_good(folder: Path, options: list[str], objective_ms: float | None) -> None:
    assert main(["simulate", *M, *options, "--json=out.json"]) == OK
    expected = None if objective_ms is None else pytest.approx(objective_ms)
    assert load(folder / "out.json").objective_ms == expected


@pytest.mark.parametrize(
    ("options", "share"),
    [([], 0.99), (["--slo=p95=20ms, rate>=5"], 0.95), (["--slo=p95=20ms", "--objective=30ms"], 0.99)],
)
def test_an_objective_is_for_the_share_that_it_names(folder: Path, options: list[str], share: float) -> None:
    assert main(["simulate", *M, *options, "--json=out.json"]) == OK
    assert load(folder / "out.json").objective_share == share


def test_a_trace_is_simulated_from_its_first_to_its_last_arrival(folder: Path) -> None:
    (folder / "trace.csv").write_text("\n".join(["time", "100", "100.5", "100.5", "102", "104"]))
    assert main(["simulate", "m", TIMES, "--trace=trace.csv", "--json=out.json"]) == OK
    result = load(folder / "out.json")
    assert (result.sent, result.ok, result.duration_s) == (5, 5, pytest.approx(4.0))
    assert result.batch_sizes == {1: 3, 2: 1}, "what comes at one instant shares a batch"
    assert main(["simulate", "m", TIMES, "--trace=trace.csv", "--speed=2", "--json=out.json"]) == OK
    assert load(folder / "out.json").duration_s == pytest.approx(2.0)


def test_a_trace_goes_with_what_ifs(folder: Path) -> None:
    (folder / "trace.csv").write_text("\n".join(["time", *(str(0.1 * number) for number in range(101))]))
    options = ["--trace=trace.csv", "--what-if=rate=2x", "--what-if=speed=4", "--what-if=rate=40/s", "--json=out.json"]
    assert main(["simulate", "m", TIMES, *options]) == OK
    columns = json.loads((folder / "out.json").read_bytes())["columns"]
    assert [round(result["duration_s"], 3) for result in columns.values()] == [10.0, 5.0, 2.5, pytest.approx(2.525)]
    assert {result["sent"] for result in columns.values()} == {101}


def test_no_request_at_all_is_a_result_too(folder: Path) -> None:
    assert main(["simulate", "m", TIMES, "--rate=1e-9", SHORT, "--json=out.json"]) == OK
    assert load(folder / "out.json").sent == 0


def test_a_disk_that_is_full_at_the_end_does_not_lose_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    assert main(["simulate", *M, "--json=/dev/full"]) == USER_ERROR
    captured = capsys.readouterr()
    assert "requests" in captured.out
    assert "cannot write /dev/full" in captured.err


def test_the_report_is_written(folder: Path) -> None:
    assert main(["simulate", *M, "--html=out.html"]) == OK
    assert "<html" in (folder / "out.html").read_text()


def test_a_model_that_scales_in_the_configuration_scales_here(capsys: pytest.CaptureFixture[str]) -> None:
    load_on_it = ["--service=m=base=20ms,row=20ms", "--rate=90", "--duration=120s", "--cold-start=3s", "--json=out.json"]
    assert main(["simulate", "--config=scaling.toml", *load_on_it]) == OK
    said = capsys.readouterr().out
    scaling = load(Path("out.json")).scaling["m"]
    assert 2 <= scaling.most <= 5
    assert scaling.instance_s > 120.0
    assert f"at most {scaling.most}, {scaling.changes} change" in said


def test_a_pipeline_goes_through_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--step=ocr.read=items=3-5", "--step=ocr.decode=time=4ms"]
    assert main(["simulate", *OCR, *steps, "--json=ocr.json"]) == OK
    result = load(Path("ocr.json"))
    assert result.sent == result.ok == result.steps["ocr.read"].ran > 200
    assert result.steps["ocr.decode"].computed_ms["p99"] == pytest.approx(4.0)
    assert result.latency_ms["p50"] > 4.0 + 12.0 + 8.0
    assert not result.models
    assert "ocr.find: ran" in capsys.readouterr().out
