"""The judge of benchmarks/grpc: right answers pass, wrong ones and errors end the run."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.grpc.calls import Question, load, question_for
from benchmarks.harness.processes import BenchmarkError, Children, Cores, accepts_connections, free_ports
from benchmarks.models import build_mlp
from dlproxy.protos.oip import oip
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
