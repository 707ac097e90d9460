"""Extensions over HTTP: the repository, shared memory, trace and log settings, generate. A table: what it is, and the request.

In this order: some change what later ones see.
"""

from typing import Any

from tests.conformance.asking import Http, Request, as_json, get, post
from tests.conformance.asks import Ask, Given

SPARE = as_json(Ask("spare", [Given("X", "FP32", [1, 1], [1])]))


def generate(model: str, body: Any, how: str = "generate") -> Http:
    return post(f"/v2/models/{model}/{how}", body)


def region(kind: str, rest: str, body: Any = b"") -> Http:
    return post(f"/v2/{kind}sharedmemory/{rest}", body)


REPOSITORY: dict[str, Request] = {
    "index": post("/v2/repository/index"),
    "index of what is ready": post("/v2/repository/index", {"ready": True}),
    "index of a bad body": post("/v2/repository/index", "{"),
    "index of a list": post("/v2/repository/index", "[]"),
    "index, ready a text": post("/v2/repository/index", {"ready": "yes"}),
    "load again": post("/v2/repository/models/spare/load"),
    "load an unknown model": post("/v2/repository/models/nobody/load"),
    "load with a bad body": post("/v2/repository/models/spare/load", "{"),
    "load with a configuration that is no JSON": post("/v2/repository/models/spare/load", {"parameters": {"config": "{"}}),
    "load with a file and no configuration": post(
        "/v2/repository/models/spare/load", {"parameters": {"file:1/model.onnx": "AAAA"}}
    ),
    "load with a parameter that is none": post("/v2/repository/models/spare/load", {"parameters": {"colour": "red"}}),
    "unload": post("/v2/repository/models/spare/unload"),
    "ready when it is unloaded": get("/v2/models/spare/ready"),
    "infer when it is unloaded": SPARE,
    "metadata when it is unloaded": get("/v2/models/spare"),
    "stats when it is unloaded": get("/v2/models/spare/stats"),
    "unload again": post("/v2/repository/models/spare/unload"),
    "unload an unknown model": post("/v2/repository/models/nobody/unload"),
    "unload with dependents": post("/v2/repository/models/spare/unload", {"parameters": {"unload_dependents": True}}),
    "index of what is ready when it is unloaded": post("/v2/repository/index", {"ready": True}),
    "load": post("/v2/repository/models/spare/load", {}),
    "infer when it is loaded": SPARE,
}

SHARED_MEMORY: dict[str, Request] = {
    "status": get("/v2/systemsharedmemory/status"),
    "status of an unknown region": get("/v2/systemsharedmemory/region/r/status"),
    "register what is not there": region("system", "region/r/register", {"key": "/none", "offset": 0, "byte_size": 8}),
    "register without a key": region("system", "region/r/register", {"byte_size": 8}),
    "register without a size": region("system", "region/r/register", {"key": "/none"}),
    "register a bad body": region("system", "region/r/register", "{"),
    "register nothing": region("system", "region/r/register"),
    "unregister an unknown region": region("system", "region/r/unregister"),
    "unregister all": region("system", "unregister"),
    "GET of register": get("/v2/systemsharedmemory/region/r/register"),
    "cuda status": get("/v2/cudasharedmemory/status"),
    "cuda unregister all": region("cuda", "unregister"),
}

SETTINGS: dict[str, Request] = {
    "trace": get("/v2/trace/setting"),
    "trace of a model": get("/v2/models/add_sub/trace/setting"),
    "trace of an unknown model": get("/v2/models/nobody/trace/setting"),
    "set trace": post("/v2/trace/setting", {"trace_rate": "500"}),
    "set trace to what is none": post("/v2/trace/setting", {"trace_level": ["EVERYTHING"]}),
    "set a trace setting that is none": post("/v2/trace/setting", {"colour": "red"}),
    "set trace back": post("/v2/trace/setting", {"trace_rate": "1000"}),
    "set trace by a bad body": post("/v2/trace/setting", "{"),
    "logging": get("/v2/logging"),
    "set logging": post("/v2/logging", {"log_verbose_level": 0}),
    "set logging to what is none": post("/v2/logging", {"log_info": "perhaps"}),
    "set a logging setting that is none": post("/v2/logging", {"colour": "red"}),
    "set logging by a bad body": post("/v2/logging", "{"),
    "PUT of logging": Http("PUT", "/v2/logging"),
}

GENERATE: dict[str, Request] = {
    "generate": generate("say", {"text_input": "ab", "times": 2}),
    "generate with an id": generate("say", {"id": "g-1", "text_input": "ab", "times": 2}),
    "generate of a version": post("/v2/models/say/versions/1/generate", {"text_input": "ab", "times": 2}),
    "generate with lists": generate("say", {"text_input": ["ab"], "times": [2]}),
    "generate with parameters": generate("say", {"text_input": "ab", "parameters": {"times": 2}}),
    "generate with keys of the client's own": generate("say", {"text_input": "ab", "times": 2, "temperature": 0.5}),
    "generate without an input": generate("say", {"text_input": "ab"}),
    "generate with a text for a number": generate("say", {"text_input": "ab", "times": "2"}),
    "generate with a number for a text": generate("say", {"text_input": 3, "times": 2}),
    "generate of a bad body": generate("say", "{"),
    "generate of nothing": generate("say", b""),
    "generate of an unknown model": generate("nobody", {"text_input": "ab"}),
    "GET of generate": get("/v2/models/say/generate"),
    "generate of a batch": generate("spare", {"X": [[1.0]]}),
    "generate of a number with a batch axis": generate("spare", {"X": 1.0}),
    "generate of one part": generate("tell", {"text_input": "one"}),
    "generate of many parts": generate("tell", {"text_input": "one two"}),
    "generate of no parts": generate("tell", {"text_input": ""}),
    "generate of a model that fails": generate("faulty", {"X": 1e9}),
    "stream": generate("tell", {"text_input": "one two three"}, "generate_stream"),
    "stream with an id": generate("tell", {"id": "s-1", "text_input": "one two"}, "generate_stream"),
    "stream of numbers": generate("count", {"N": 3}, "generate_stream"),
    "stream of no parts": generate("count", {"N": 0}, "generate_stream"),
    "stream of a model that answers at once": generate("say", {"text_input": "ab", "times": 2}, "generate_stream"),
    "stream of a model that fails": generate("faulty", {"X": 1e9}, "generate_stream"),
    "stream without an input": generate("tell", {}, "generate_stream"),
    "stream of a bad body": generate("tell", "{", "generate_stream"),
    "stream of an unknown model": generate("nobody", {"text_input": "ab"}, "generate_stream"),
}
