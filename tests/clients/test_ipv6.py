"""A whole server on an IPv6 address: what it prints is what its own commands and another dlproxy take."""

import json
import re
import subprocess
import sys
from http.client import HTTPConnection

import pytest

from tests import models

from .server import HANG_S, ServerProcess, environment


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_what_is_printed_is_understood_by_every_client(host: str) -> None:
    with ServerProcess(models.DIGITS, "--host", host) as server:
        inference, metrics = (
            re.search(rf"{what} +(http://\S+?)/(?:v2|metrics)", server.report) for what in ("inference", "metrics")
        )
        assert inference is not None
        assert metrics is not None
        assert inference[1] == f"http://[::1]:{server.http_port}"
        told = run("models", "--control", metrics[1])
        assert "digits" in told
        told = run("bench", inference[1], "--duration", "0.3", "--concurrency", "2", "--warmup", "0.1")
        assert "digits" in told
        with ServerProcess(f"far={inference[1]}/v2/models/digits") as before:
            connection = HTTPConnection("127.0.0.1", before.http_port, timeout=10)
            connection.request("POST", "/predict/far", json.dumps({"inputs": [[[[0] * 8] * 8]]}))
            status = connection.getresponse().status
            connection.close()
            assert status == 200


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dlproxy", *arguments], env=environment(), capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
