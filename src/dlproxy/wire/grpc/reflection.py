"""`grpc.reflection.v1` and `v1alpha`: which services there are, and their descriptions, for grpcurl and the like.

Made of the table of methods and the tables of messages (protos/) when somebody asks. Joined to others by services.py.
Not aware of: what a method does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from dlproxy.message import invalid
from dlproxy.protos.grpc_services import REFLECTION, VERSIONS, reflection
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.server import Methods, all_of

NAMES = {  # of requests and answers that are not called after their method
    "inference.GRPCInferenceService/ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse"),
    "tensorflow.serving.PredictionService/Classify": ("ClassificationRequest", "ClassificationResponse"),
    "tensorflow.serving.PredictionService/Regress": ("RegressionRequest", "RegressionResponse"),
    "tensorflow.serving.ModelService/HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
    "grpc.health.v1.Health/Check": ("HealthCheckRequest", "HealthCheckResponse"),
    "grpc.health.v1.Health/Watch": ("HealthCheckRequest", "HealthCheckResponse"),
    **{
        f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": (
            "ServerReflectionRequest",
            "ServerReflectionResponse",
        )
        for version in VERSIONS
    },
}
ONE_REQUEST = frozenset({"grpc.health.v1.Health/Watch"})  # streaming methods that take a single message

Tables = Sequence[SimpleNamespace]
"""Classes of messages, as describe.messages makes them."""


class Files:
    """Descriptions by the names of their files and of what is in them."""

    def __init__(self, methods: Methods, tables: Tables) -> None:
        self.by_name: dict[str, FileDescriptorProto] = {}
        self.by_symbol: dict[str, str] = {}
        """The name of the file."""
        for table in tables:
            for message in vars(table).values():
                self._add_with_dependencies(message.DESCRIPTOR.file)
        for service, names in services_of(methods).items():
            self._add_service(service, names, methods)

    def with_dependencies(self, name: str) -> list[bytes]:
        """The file of that name, and all that it builds on. Raises KeyError."""
        found: dict[str, bytes] = {}
        wanted = [name]
        while wanted:
            file = self.by_name[wanted.pop()]
            if file.name not in found:
                found[file.name] = file.SerializeToString()
                wanted += file.dependency
        return list(found.values())

    def _add_with_dependencies(self, file: Any) -> None:
        if file.name not in self.by_name:
            self._add(FileDescriptorProto.FromString(file.serialized_pb))
            for dependency in file.dependencies:
                self._add_with_dependencies(dependency)

    def _add(self, file: FileDescriptorProto) -> None:
        self.by_name[file.name] = file
        for found in (*file.message_type, *file.enum_type, *file.service):
            self._note(f"{file.package}.{found.name}", found, file.name)

    def _note(self, symbol: str, found: Any, file: str) -> None:
        self.by_symbol[symbol] = file
        for part in ("field", "method", "nested_type", "enum_type"):
            for inner in getattr(found, part, ()):
                self._note(f"{symbol}.{inner.name}", inner, file)

    def _add_service(self, service: str, names: Iterable[str], methods: Methods) -> None:
        package, _, bare = service.rpartition(".")
        file = FileDescriptorProto(name=f"dlproxy/{service}.proto", package=package, syntax="proto3")
        described = file.service.add(name=bare)
        for name in names:
            path = f"{service}/{name}"
            request, answer = NAMES.get(path, (f"{name}Request", f"{name}Response"))
            if {f"{package}.{request}", f"{package}.{answer}"} <= self.by_symbol.keys():
                streams = f"/{path}".encode() in methods.streaming
                method = described.method.add(name=name, server_streaming=streams)
                method.client_streaming = streams and path not in ONE_REQUEST
                method.input_type, method.output_type = f".{package}.{request}", f".{package}.{answer}"
        file.dependency.extend(sorted({self.by_symbol[m.input_type[1:]] for m in described.method}))
        self._add(file)


class Reflection:
    """The service. `methods`: those of all others."""

    def __init__(self, methods: Methods, tables: Callable[[], Tables]) -> None:
        self._own = Methods(
            {}, {f"{REFLECTION.format(v)}/ServerReflectionInfo".encode(): partial(self._talk, v) for v in VERSIONS}
        )
        self._all = all_of(methods, self._own)
        self._tables = tables
        self._files: Files | None = None

    def methods(self) -> Methods:
        return self._own

    def _talk(self, version: str, call: Call) -> None:
        messages = reflection[version]

        def answer(message: bytes) -> None:
            try:
                request = messages.ServerReflectionRequest.FromString(message)
            except DecodeError:
                raise invalid("the message is no ServerReflectionRequest") from None
            response = messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
            self._answer(request, response)
            call.send(response.SerializeToString())

        call.on_message = answer
        call.on_half_closed = call.end

    def _answer(self, request: Any, response: Any) -> None:
        if self._files is None:
            self._files = Files(self._all, [*self._tables(), *reflection.values()])
        files, asked = self._files, request.WhichOneof("message_request")
        value = getattr(request, asked) if asked else None
        if asked == "list_services":
            for service in services_of(self._all):
                response.list_services_response.service.add(name=service)
        elif asked == "file_by_filename" and value in files.by_name:
            response.file_descriptor_response.file_descriptor_proto.extend(files.with_dependencies(value))
        elif asked == "file_containing_symbol" and value in files.by_symbol:
            found = files.with_dependencies(files.by_symbol[value])
            response.file_descriptor_response.file_descriptor_proto.extend(found)
        elif asked == "all_extension_numbers_of_type" and value in files.by_symbol:
            response.all_extension_numbers_response.base_type_name = value  # proto3 has no extensions
        else:
            missing = asked is not None
            response.error_response.error_code = Status.NOT_FOUND if missing else Status.INVALID_ARGUMENT
            response.error_response.error_message = f"{asked}: not found" if missing else "nothing is asked for"


def services_of(methods: Methods) -> Mapping[str, list[str]]:
    """The names of their methods by the services' full names."""
    found: dict[str, list[str]] = {}
    for path in (*methods.unary, *methods.streaming):
        service, _, name = path.decode()[1:].partition("/")
        found.setdefault(service, []).append(name)
    return found
