"""What sslyze and testssl.sh find on the TLS ports of a real server: nothing (`make prove-locks`)."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..certificates import Authority
from ..clients.server import ServerProcess

SCANNERS = os.environ.get("DLPROXY_SCANNERS", "")
TESTSSL = shutil.which("testssl") or shutil.which("testssl.sh")
PORTS = ("http_port", "grpc_port", "control_port")
OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
FINE = ("OK", "INFO", "DEBUG")

pytestmark = pytest.mark.skipif(not SCANNERS, reason="needs scanners: make prove-locks")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("scanned")
    certificate = Authority(folder, "ours").issue("server")
    with ServerProcess("m=sleep:base=1ms", "--tls-cert", certificate, "--grpc-port", "0") as running:
        yield running


@pytest.mark.parametrize("door", PORTS)
def test_sslyze_finds_nothing(server: ServerProcess, door: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    command = [f"{SCANNERS}/python", "-m", "sslyze", "--json_out", str(path), f"127.0.0.1:{getattr(server, door)}"]
    subprocess.run(command, capture_output=True)  # ends with 1 for what Mozilla's profile has, such as a certificate for a day
    (scanned,) = json.loads(path.read_text())["server_scan_results"]
    found: dict[str, Any] = {name: part["result"] for name, part in scanned["scan_result"].items()}
    for protocol in OLD:
        assert found[f"{protocol}_cipher_suites"]["accepted_cipher_suites"] == []
    for protocol in ("tls_1_2", "tls_1_3"):
        suites = [accepted["cipher_suite"]["name"] for accepted in found[f"{protocol}_cipher_suites"]["accepted_cipher_suites"]]
        assert suites
        assert all("GCM" in suite or "CHACHA20" in suite for suite in suites)
        assert all(suite.startswith("TLS_ECDHE_") for suite in suites if protocol == "tls_1_2")
    assert found["tls_compression"] == {"supports_compression": False}
    assert found["openssl_ccs_injection"] == {"is_vulnerable_to_ccs_injection": False}
    assert found["heartbleed"] == {"is_vulnerable_to_heartbleed": False}
    assert found["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    assert found["tls_fallback_scsv"] == {"supports_fallback_scsv": True}
    assert found["tls_extended_master_secret"] == {"supports_ems_extension": True}
    assert found["session_renegotiation"]["supports_secure_renegotiation"]
    assert not found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    (chain,) = found["certificate_info"]["certificate_deployments"]
    assert chain["received_chain_has_valid_order"]
    assert not chain["verified_chain_has_sha1_signature"]


@pytest.mark.skipif(TESTSSL is None, reason="needs testssl.sh; on Debian: apt-get install testssl.sh")
def test_testssl_finds_nothing(server: ServerProcess, tmp_path: Path) -> None:
    """Protocols, kinds of ciphers, forward secrecy, and vulnerabilities by name."""
    path = tmp_path / "found.json"
    command = [str(TESTSSL), "--quiet", "--warnings", "batch", "-p", "-s", "-f", "-U", "--jsonfile", str(path)]
    subprocess.run([*command, server.address], capture_output=True, timeout=300)
    found = json.loads(path.read_text())
    assert len(found) > 20
    bad = [f"{one['severity']} {one['id']}: {one['finding']}" for one in found if one["severity"] not in FINE]
    assert bad == []
