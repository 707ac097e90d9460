"""Compares an answer with Triton's, and an answer that differs on purpose with what is said of it. Called by the test.

Both raise AssertionError. Not aware of: who was asked.
"""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.grpc import model_config_pb2

from tests.conformance.answers import Answer, error_of
from tests.conformance.differences import FINE, STREAMED, Difference

NOT_KNOWN = ("version_policy", "instance_group", "default_model_filename", "optimization", "dynamic_batching", "runtime")
"""Fields of a configuration that say what dlproxy does in its own way."""


def compare(name: str, here: Answer, triton: Answer) -> None:
    """Equal in all but what differences.EVERYWHERE says."""
    assert _kind(here) == _kind(triton), f"{_shown(here)}\nTriton: {_shown(triton)}"
    text, tritons = error_of(here), error_of(triton)
    if tritons is not None:
        assert (text or "").startswith(_plain(tritons)), f"{_shown(here)}\nTriton: {_shown(triton)}"
        return
    assert _answer(name, here) == _answer(name, triton), f"{_shown(here)}\nTriton: {_shown(triton)}"


def differs_as_said(here: Answer, triton: Answer, difference: Difference, wanted: str) -> None:
    text = error_of(here)
    if wanted == FINE:
        assert (text, _kind(here)) in ((None, 200), (None, "OK")), f"{difference.what} {_shown(here)}"
        return
    if wanted == STREAMED:
        assert [error for message in here["messages"] if (error := message.get("error_message"))], (
            f"{difference.what} {_shown(here)}"
        )
        return
    first, _, rest = wanted.partition(" ")
    is_kind = first.isdigit() or first.replace("_", "").isupper()
    kind, begin = (first, rest) if is_kind else (str(_kind(triton)), wanted)
    assert str(_kind(here)) == kind, f"{difference.what} {_shown(here)}"
    assert (text or "").startswith(begin), f"{difference.what} {_shown(here)}"


def _kind(answer: Answer) -> Any:
    return answer.get("status", answer.get("code", answer.get("died", "broken")))


def _plain(text: str) -> str:
    """Without the note about max_batch_size."""
    return text.partition(" NOTE: ")[0].strip()


def _answer(name: str, answer: Answer) -> Any:
    """What is compared of one that is no error."""
    body = answer["messages"] if "messages" in answer else answer.get("json", answer.get("text"))
    if answer.get("type", "").startswith("text/event-stream"):
        body = [json.loads(event.removeprefix("data: ")) for event in (body or "").split("\n\n") if event]
    case = name.partition(": ")[2]
    if case == "server metadata":
        return sorted(body[0] if isinstance(body, list) else body)
    if case.startswith("config"):
        return _config(body[0]["config"] if isinstance(body, list) else body)
    if case.startswith("stats"):
        return _keys((body[0] if isinstance(body, list) else body)["model_stats"][0])
    if name.startswith("stream: "):
        return [_message(message) for message in body]
    return {**answer, "json": body, "messages": None, "text": None}


def _config(found: Any) -> Any:
    message = ParseDict(found, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
    for field in NOT_KNOWN:
        message.ClearField(field)
    return MessageToDict(message)


def _keys(stats: Any) -> Any:
    """Names without the numbers; not those that are left out where they are 0 or empty."""
    if isinstance(stats, dict):
        own = ("failures", "batch_stats", "response_stats", "memory_usage", "ns", "count")
        return {name: _keys(value) for name, value in stats.items() if name not in own}
    return None


def _message(message: Any) -> Any:
    """Of a stream: an error may go on after Triton's text here, too; the version of an answer without outputs is left out."""
    text, infer = message.get("error_message", ""), message["infer_response"]
    for rest in ("; the models served are", "; the versions served are"):
        text = text.partition(rest)[0]
    if "outputs" not in infer:
        infer = {name: value for name, value in infer.items() if name != "model_version"}
    return {"error_message": text, "infer_response": infer}


def _shown(answer: Answer) -> str:
    return str(answer)[:1500]
