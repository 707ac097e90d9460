"""KServe's SDK, unchanged, in an environment of its own: `make prove-clients`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.server import ServerProcess
from tests.conformance.repository import for_dlproxy

PYTHON = os.environ.get("DLPROXY_KSERVE", "")


@pytest.mark.skipif(not PYTHON, reason="make prove-clients")
def test_kserve_s_clients(tmp_path: Path) -> None:
    with ServerProcess("--repository", for_dlproxy(tmp_path), "--grpc-port", "0") as server:
        script = Path(__file__).with_name("kserve_client.py")
        subprocess.run([PYTHON, script, str(server.http_port), str(server.grpc_port)], check=True, timeout=60)
