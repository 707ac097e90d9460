"""The judge of benchmarks/grpc: right answers pass, wrong ones and errors end the run."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.grpc.calls import load, question_for
from benchmarks.harness.processes import BenchmarkError, Children, Cores, accepts_connections, free_ports
from benchmarks.models import build_mlp
from tests.clients.server import ServerProcess


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_mlp(tmp_path_factory.mktemp("model") / "mlp.onnx")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    (port,) = free_ports(1)
    with Children(tmp_path_factory.mktemp("logs")) as children:
        child = children.start("echo", [sys.executable, "-m", "benchmarks.grpc.echo", str(port)])
        child.wait_until(lambda: accepts_connections(port))
        yield port


def test_an_echo_is_right_where_it_should_be_one(model: Path, echo: int) -> None:
    question = question_for(model, "mlp")
    assert question.check(echo, echoed=True) == len(question.message)
    with pytest.raises(BenchmarkError, match="wrong"):
        question.check(echo, echoed=False)


def test_a_model_s_answer_is_compared_with_its_own(model: Path) -> None:
    with ServerProcess(f"mlp={model}", "--grpc-port", "0") as server:
        question = question_for(model, "mlp")
        assert question.check(server.grpc_port, echoed=False) < len(question.message)
        question.expected += 1
        with pytest.raises(BenchmarkError, match="wrong"):
            question.check(server.grpc_port, echoed=False)
        with pytest.raises(BenchmarkError, match="NOT_FOUND"):
            question_for(model, "nobody").check(server.grpc_port, echoed=False)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load")
def test_a_load_counts_calls(model: Path, echo: int, tmp_path: Path) -> None:
    question, more = question_for(model, "mlp"), {"calls": 4, "seconds": 1, "cores": Cores(None, None), "folder": tmp_path}
    size = len(question.message)
    figures = load(question, size, echo, **more)
    assert figures.calls_per_s > 10
    assert 0 < figures.p50_ms <= figures.p99_ms
    with pytest.raises(BenchmarkError, match="h2load failed"):
        load(question, size, free_ports(1)[0], **more)
    with pytest.raises(BenchmarkError, match="no answer"):
        load(question, 2 * size, echo, **more)
