"""The OpenAPI document of a real server; `make prove-openapi` has schemathesis ask whatever it can think of."""

import json
import os
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from .server import ServerProcess, environment

SCHEMATHESIS = os.environ.get("DLPROXY_SCHEMATHESIS", "")
CHECKS = (  # not those of undeclared methods: TensorFlow Serving's own answers to them are no 405
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance"),
)
EXPECTED = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", 501, 503, 504]\n'  # which say what they mean


def test_both_ports_have_it_and_the_page_reaches_inference(server: ServerProcess) -> None:
    control = f"http://127.0.0.1:{server.control_port}"
    with urlopen(f"http://{server.address}/openapi.json") as ours, urlopen(f"{control}/openapi.json") as theirs:
        document, seen = json.load(ours), json.load(theirs)
    assert document["paths"] == seen["paths"]
    assert seen["servers"] == [{"url": f"http://{server.address}"}]
    assert "/v2/models/digits/infer" in document["paths"]
    with urlopen(f"{control}/docs") as page:
        assert b"Try a request" in page.read()
    question = json.dumps({"inputs": [[[[0.0] * 8] * 8]]}).encode()
    with urlopen(Request(f"{control}/docs/try/predict/digits", question)) as answer:
        assert json.load(answer)["model"] == "digits"


@pytest.mark.skipif(not SCHEMATHESIS, reason="needs schemathesis: make prove-openapi")
def test_every_answer_is_in_the_document_and_none_is_a_defect(server: ServerProcess, tmp_path: Path) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(EXPECTED, "utf-8")
    command = [SCHEMATHESIS, "--config-file", str(settings), "run", f"http://{server.address}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
    command += ["--max-examples", os.environ.get("DLPROXY_EXAMPLES", "100"), "--seed", "1"]
    found = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert server.process.poll() is None
