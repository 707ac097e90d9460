"""Doors that give whole answers refuse models that answer in parts, before anything runs."""

import msgspec
import pytest

from dlproxy.message import FailureKind

from .fixtures import PLAIN, EchoService, Wire, app_of, post, served


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/models/m/versions/1/infer", "/v2/models/%6d/infer"])
def test_a_model_that_answers_in_parts_is_refused_with_the_way_out(path: str) -> None:
    service = EchoService(msgspec.structs.replace(PLAIN, streams=True))
    model = served(service)
    wire = Wire(app_of(model)).feed(post(path, b"{}"))
    (reply,) = wire.take()
    assert reply.status == 501
    assert reply.error.startswith(
        "HTTP end point doesn't support models with decoupled transaction policy: model 'm' answers in"
    )
    for way in ("POST /v2/models/m/generate_stream", "POST /predict/m", "ModelStreamInfer", "proxy.stream(...)"):
        assert way in reply.error
    assert not service.requests
    assert model.stats.failures[FailureKind.UNSUPPORTED] == 1
