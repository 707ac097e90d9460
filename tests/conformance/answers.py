"""Asks a server a case and says what it answered, as JSON. Called by record.py and the test. Not aware of: which server."""

import gzip
import http.client
import json
import zlib
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from tests.conformance.asking import Grpc, Http, Request

Answer = dict[str, Any]
TIMEOUT_S = 20.0
LENGTH = "inference-header-content-length"


class Asker:
    """One server. Closed by its `with`."""

    def __init__(self, http_port: int, grpc_port: int) -> None:
        self._http_port = http_port
        self._channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, case: Request) -> Answer:
        return self._call(case) if isinstance(case, Grpc) else self._request(case)

    def _request(self, case: Http) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=TIMEOUT_S)
        try:
            connection.request(case.method, case.path, case.body or None, case.headers)
            reply = connection.getresponse()
            body = reply.read()
        except (http.client.HTTPException, OSError) as error:
            return {"broken": type(error).__name__}
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in reply.headers.items()}
        answer: Answer = {"status": reply.status, "type": headers.get("content-type", "")}
        encoding = headers.get("content-encoding", "")
        if encoding:
            answer["encoding"] = encoding
            body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
        if LENGTH in headers:
            size = int(headers[LENGTH])
            return {**answer, "json": json.loads(body[:size]), "binary": body[size:].hex()}
        with suppress(ValueError):
            return {**answer, "json": json.loads(body)}
        return {**answer, "text": body.decode()} if body else answer

    def _call(self, case: Grpc) -> Answer:
        path = f"/{case.service}/{case.method}"
        make = self._channel.stream_stream if case.is_stream else self._channel.unary_unary
        ask = make(path, type(case.messages[0]).SerializeToString if case.messages else None, case.answer.FromString)
        try:
            if case.is_stream:
                return {"code": "OK", "messages": [_shown(each) for each in ask(iter(case.messages), timeout=TIMEOUT_S)]}
            return {"code": "OK", "messages": [_shown(ask(case.messages[0], timeout=TIMEOUT_S))]}
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details()}


def _shown(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


def error_of(answer: Answer) -> str | None:
    """The text of an error, wherever it is; None if it is none."""
    if "details" in answer:
        return str(answer["details"])
    body = answer.get("json")
    return str(body["error"]) if isinstance(body, dict) and "error" in body else None
