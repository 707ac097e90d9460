"""What only gRPC has: its methods, typed and raw contents, streams. A table: what it is, and the call.

In this order: some change what later ones see.
"""

from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.conformance.asking import Ask, Given, Grpc, Request, as_raw, as_typed, infer_call, infer_message
from tests.conformance.asks import PAIR, A, pair

WIDE = Ask("wide", [Given("X", "INT64", [1, 2], [3, 4])])


def call(method: str, **fields: Any) -> Grpc:
    return Grpc(method, [getattr(pb, f"{method}Request")(**fields)], getattr(pb, f"{method}Response"))


def stream(*asks: Ask, **parameters: bool) -> Grpc:
    messages = [as_raw(ask).messages[0] for ask in asks]
    for message in messages:
        for name, value in parameters.items():
            message.parameters[name].bool_param = value
    return Grpc("ModelStreamInfer", messages, pb.ModelStreamInferResponse)


def count(number: int, **changes: Any) -> Ask:
    return Ask("count", [Given("N", "INT32", [1], [number])], **changes)


def contents(**values: Any) -> Grpc:
    """Of WIDE's input."""
    message = infer_message(WIDE)
    for field, data in values.items():
        getattr(message.inputs[0].contents, field).extend(data)
    return infer_call(message)


def raw(*pieces: bytes, typed: bool = False) -> Grpc:
    message = as_typed(WIDE).messages[0] if typed else infer_message(WIDE)
    message.raw_input_contents.extend(pieces)
    return infer_call(message)


def some_raw() -> Grpc:
    """One input typed, the other raw."""
    message = as_typed(PAIR).messages[0]
    message.inputs[1].ClearField("contents")
    message.raw_input_contents.append(PAIR.inputs[1].raw)
    return infer_call(message)


def load(name: str, **parameters: Any) -> Grpc:
    asked = call("RepositoryModelLoad", model_name=name)
    for key, value in parameters.items():
        setattr(asked.messages[0].parameters[key], "bytes_param" if isinstance(value, bytes) else "string_param", value)
    return asked


def setting(method: str, model: str = "", **values: Any) -> Grpc:
    asked = call(method, model_name=model) if model else call(method)
    for key, value in values.items():
        if method == "TraceSetting":
            asked.messages[0].settings[key].value.append(value)
        else:
            kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
            setattr(asked.messages[0].settings[key], kind, value)
    return asked


METHODS: dict[str, Request] = {
    "live": call("ServerLive"),
    "ready": call("ServerReady"),
    "server metadata": call("ServerMetadata"),
    "model ready": call("ModelReady", name="add_sub"),
    "version ready": call("ModelReady", name="add_sub", version="1"),
    "unknown model ready": call("ModelReady", name="nobody"),
    "unknown version ready": call("ModelReady", name="add_sub", version="9"),
    "no model ready": call("ModelReady"),
    "metadata": call("ModelMetadata", name="add_sub"),
    "metadata of a version": call("ModelMetadata", name="add_sub", version="1"),
    "metadata without batches": call("ModelMetadata", name="fixed"),
    "metadata of an unknown model": call("ModelMetadata", name="nobody"),
    "metadata of an unknown version": call("ModelMetadata", name="add_sub", version="9"),
    "metadata of a version that is no number": call("ModelMetadata", name="add_sub", version="one"),
    "metadata of no model": call("ModelMetadata"),
    "config": call("ModelConfig", name="add_sub"),
    "config of a stream": call("ModelConfig", name="count"),
    "config of an unknown model": call("ModelConfig", name="nobody"),
    "stats": call("ModelStatistics", name="add_sub"),
    "stats of all": call("ModelStatistics"),
    "stats of an unknown model": call("ModelStatistics", name="nobody"),
    "a method that is none": Grpc("ModelDream", [pb.ServerLiveRequest()], pb.ServerLiveResponse),
    "a service that is none": Grpc("ServerLive", [pb.ServerLiveRequest()], pb.ServerLiveResponse, "inference.Nobody"),
    "health": Grpc("Check", [pb.ServerLiveRequest()], pb.ModelReadyRequest, "grpc.health.v1.Health"),
}

CONTENTS: dict[str, Request] = {
    "typed and raw": raw(WIDE.inputs[0].raw, typed=True),
    "one input typed, another raw": some_raw(),
    "more raw than inputs": raw(WIDE.inputs[0].raw, b"abc"),
    "fewer raw than inputs": infer_call(as_raw(pair(inputs=[A])).messages[0]),
    "raw too short": raw(bytes(15)),
    "raw too long": raw(bytes(17)),
    "raw empty": raw(b""),
    "neither typed nor raw": raw(),
    "in the field of another type": contents(int_contents=[3, 4]),
    "in two fields": contents(int64_contents=[3, 4], int_contents=[3, 4]),
    "too few": contents(int64_contents=[3]),
    "too many": contents(int64_contents=[3, 4, 5]),
    "uint8 too large": infer_call(as_typed(Ask("small", [Given("X", "INT32", [1, 2], [1, 256])])).messages[0]),
}

STREAMS: dict[str, Request] = {
    "three parts": stream(count(3)),
    "three parts with an id": stream(count(3, id="s-1")),
    "no parts": stream(count(0)),
    "an empty final answer": stream(count(2), triton_enable_empty_final_response=True),
    "an empty final answer of a model that answers at once": stream(PAIR, triton_enable_empty_final_response=True),
    "two requests": stream(pair(id="1"), pair(id="2")),
    "no request": stream(),
    "an unknown model": stream(pair(model="nobody")),
    "a bad request between good ones": stream(pair(id="1"), pair(inputs=[A], id="2"), pair(id="3")),
    "a stream of a bad request": stream(count(1, version="9")),
    "a model that fails": stream(Ask("faulty", [Given("X", "FP32", [1, 1], [2e6])])),
}

CONTROL: dict[str, Request] = {
    "index": call("RepositoryIndex"),
    "index of what is ready": call("RepositoryIndex", ready=True),
    "load an unknown model": load("nobody"),
    "load with a configuration that is no JSON": load("spare", config="{"),
    "load with a parameter that is none": load("spare", colour="red"),
    "unload": call("RepositoryModelUnload", model_name="spare"),
    "ready when it is unloaded": call("ModelReady", name="spare"),
    "infer when it is unloaded": as_raw(Ask("spare", [Given("X", "FP32", [1, 1], [1])])),
    "unload an unknown model": call("RepositoryModelUnload", model_name="nobody"),
    "load": load("spare"),
    "infer when it is loaded": as_raw(Ask("spare", [Given("X", "FP32", [1, 1], [1])])),
    "shared memory": call("SystemSharedMemoryStatus"),
    "an unknown region": call("SystemSharedMemoryStatus", name="r"),
    "register what is not there": call("SystemSharedMemoryRegister", name="r", key="/none", byte_size=8),
    "unregister an unknown region": call("SystemSharedMemoryUnregister", name="r"),
    "unregister all": call("SystemSharedMemoryUnregister"),
    "cuda shared memory": call("CudaSharedMemoryStatus"),
    "cuda unregister all": call("CudaSharedMemoryUnregister"),
    "trace": setting("TraceSetting"),
    "trace of a model": setting("TraceSetting", "add_sub"),
    "trace of an unknown model": setting("TraceSetting", "nobody"),
    "set trace to what is none": setting("TraceSetting", trace_level="EVERYTHING"),
    "set a trace setting that is none": setting("TraceSetting", colour="red"),
    "logging": setting("LogSettings"),
    "set logging": setting("LogSettings", log_verbose_level=0),
    "set logging to what is none": setting("LogSettings", log_info="perhaps"),
    "set a logging setting that is none": setting("LogSettings", colour="red"),
}
