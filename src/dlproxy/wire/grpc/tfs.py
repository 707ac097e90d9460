"""TensorFlow Serving's gRPC API: `tensorflow.serving.PredictionService` and `ModelService`.

Texts follow tensorflow_serving/servables/tensorflow and model_servers. Called by services.py. Not aware of: HTTP/2, how models
run.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from dlproxy.instance.remote.address import DEFAULT_SIGNATURE
from dlproxy.instance.remote.tensor_proto import AS_IT_IS, NAMES, data_of, entry, typed
from dlproxy.instance.remote.tfs_model import DTYPES
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Tensor, invalid
from dlproxy.protos.raw import before, take_out
from dlproxy.protos.tfs import CONTENT, INPUTS, MODELS, OUTPUTS, PREDICTION, SIGNATURES, STATES, tfs
from dlproxy.protos.tfs_config import models_config
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.endpoint import Endpoint, FrontDesk, in_parts
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.messages import Piece
from dlproxy.wire.grpc.server import Methods, Unary
from dlproxy.wire.grpc.waiting import once_up
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.rights import demand
from dlproxy.wire.tfs.examples import Classified, Examples
from dlproxy.wire.tfs.models import CLASSIFY, REGRESS, ModelSpec, check_signature, no_such_signature, signature_def, statuses

MAX_SHAPES = 64  # of a model's answers, that are remembered
LARGE = 16 * 1024  # bytes of a message whose tensors are taken past protobuf
FEW = 64  # fields of a message that is taken apart in Python
ANY = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
_SPEC = 2  # model_spec of all answers
_CODES = {"OK": 0, "UNKNOWN": 2}  # of a StatusProto
_VALUE = 2  # of a map's entry

Encode = Callable[[Response], Sequence[Piece]]
Input = tuple[str, Any, bytes | memoryview]
"""A name, a TensorProto, and its tensor_content."""


class TfsService:
    """Both services. Without a `repository` the list of models cannot be changed."""

    def __init__(
        self, catalog: Catalog, repository: ModelRepository | None, *, clock: Callable[[], float], tenant_header: str
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._desk = FrontDesk(catalog, _Inference, clock=clock, tenant_header=tenant_header)
        self._tasks: set[asyncio.Task[None]] = set()

    def methods(self) -> Methods:
        of_models: dict[str, Unary] = {
            f"{PREDICTION}/Predict": self._predict,
            f"{PREDICTION}/Classify": partial(self._judge, kind=tfs.ClassificationRequest, method=CLASSIFY),
            f"{PREDICTION}/Regress": partial(self._judge, kind=tfs.RegressionRequest, method=REGRESS),
            f"{PREDICTION}/MultiInference": self._multi_inference,
            f"{PREDICTION}/GetModelMetadata": self._metadata,
        }
        return Methods(
            {
                **{path.encode(): once_up(self._catalog, method) for path, method in of_models.items()},
                f"{MODELS}/GetModelStatus".encode(): self._status,
                f"{MODELS}/HandleReloadConfigRequest".encode(): self._reload,
            },
            {},
        )

    def _predict(self, call: Call, message: bytes) -> None:
        inputs, rest = read_predict(message)
        _spec_of(rest.model_spec).found(self._desk.find, call.principal).predict(call, rest, inputs)

    def _judge(self, call: Call, message: bytes, *, kind: Any, method: str) -> None:
        asked = parsed(kind, message)
        _spec_of(asked.model_spec).found(self._desk.find, call.principal).judge(call, asked, method)

    def _multi_inference(self, call: Call, message: bytes) -> None:
        asked = parsed(tfs.MultiInferenceRequest, message)
        if not asked.tasks:
            raise invalid("MultiInferenceRequest has no tasks")
        specs = {_spec_of(task.model_spec) for task in asked.tasks}
        if any(not spec.name for spec in specs):
            raise invalid("Found ModelSpec with an empty model name.")
        if len(specs) > 1:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        specs.pop().found(self._desk.find, call.principal).multi_inference(call, asked)

    def _metadata(self, call: Call, message: bytes) -> None:
        asked = parsed(tfs.GetModelMetadataRequest, message)
        if not asked.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not asked.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in asked.metadata_field:
            if field != SIGNATURES:
                raise invalid(f"Metadata field {field} is not supported")
        demand(call.principal, "read", asked.model_spec.name)
        model = _spec_of(asked.model_spec).found(self._catalog.asked, call.principal)
        answer = tfs.GetModelMetadataResponse()
        answer.model_spec.name = model.name
        answer.model_spec.version.value = int(model.version)
        answer.metadata[SIGNATURES].type_url = ANY
        answer.metadata[SIGNATURES].value = _signature_map(signature_def(model)).SerializeToString()
        call.reply(answer.SerializeToString())

    def _status(self, call: Call, message: bytes) -> None:
        asked = parsed(tfs.GetModelStatusRequest, message)
        if not asked.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        demand(call.principal, "read", asked.model_spec.name)
        answer = tfs.GetModelStatusResponse()
        for each in statuses(self._catalog, self._repository, _spec_of(asked.model_spec)):
            added = answer.model_version_status.add(version=int(each.version), state=STATES[each.state])
            added.status.error_code = _CODES[each.status["error_code"]]
            added.status.error_message = each.status["error_message"]
        call.reply(answer.SerializeToString())

    def _reload(self, call: Call, message: bytes) -> None:
        """As far as clients may load and unload what lies in the server's repository."""
        config = parsed(models_config, parsed(tfs.ReloadConfigRequest, message).config)
        if not config.HasField("model_config_list"):
            raise invalid("HandleReloadConfigRequest takes a model_config_list")
        if self._repository is None or not self._repository.explicit:
            why = "clients may not change which models are served: start with --repository FOLDER --repository-mode explicit"
            raise InferenceError(Failure(FailureKind.FORBIDDEN, why))
        names = []
        for model in config.model_config_list.config:
            if model.HasField("model_version_policy") or model.version_labels:
                raise _unsupported(f"model '{model.name}': versions and labels are said where the server has its models")
            folder = model.base_path.rstrip("/").rpartition("/")[2]
            if not model.name or (folder and folder != model.name):
                raise invalid(f"model '{model.name}': only the folder of that name in the server's repository can be loaded")
            names.append(model.name)
        task = asyncio.get_running_loop().create_task(self._reloaded(call, self._repository, names))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reloaded(self, call: Call, repository: ModelRepository, names: Sequence[str]) -> None:
        """Goes on if the client leaves: half a list helps nobody."""
        try:
            served = dict.fromkeys(model.name for model in self._catalog)
            for name in names:
                await repository.load(name, None)
            for name in served.keys() - set(names):
                await repository.unload(name)
            answer = tfs.ReloadConfigResponse()
            answer.status.SetInParent()
            call.reply(answer.SerializeToString())
        except InferenceError as error:
            call.refuse(error.failure)
        except asyncio.CancelledError:
            call.refuse(Failure(FailureKind.UNAVAILABLE, "the server is shutting down"))
            raise
        except Exception:
            call.give_up()


class _Inference:
    """Of one version of one model."""

    def __init__(self, endpoint: Endpoint) -> None:
        signature = endpoint.model.signature
        self._endpoint = endpoint
        self._answers = _Answers()
        self._examples = Examples(endpoint.model)
        self._inputs = {spec.name for spec in signature.inputs}
        self._required = {spec.name for spec in signature.inputs if spec.default is None}
        self._outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}

    def predict(self, call: Call, asked: Any, inputs: Sequence[Input]) -> None:
        """Raises InferenceError if it is refused."""
        signature = asked.model_spec.signature_name
        if signature not in ("", DEFAULT_SIGNATURE):
            text = f'Serving signature key "{signature}" not found.'
            self._endpoint.refused(invalid(text), call.headers)
            call.end(Status.FAILED_PRECONDITION, text)
            return

        def request() -> Request:
            self._check_names([name for name, _, _ in inputs])
            tensors = [_tensor(*each) for each in inputs]
            return self._endpoint.request(tensors, self._wanted(asked.output_filter))

        self._submit(call, request, partial(self._answers.encode, asked.model_spec.name))

    def judge(self, call: Call, asked: Any, method: str) -> None:
        """One of classify and regress. Raises InferenceError if it is refused."""
        count = 0

        def request() -> Request:
            nonlocal count
            check_signature(asked.model_spec.signature_name, no_such_signature)
            outputs = self._needed(method)
            examples, context = _examples_of(asked.input)
            count = len(examples)
            return self._endpoint.request(self._examples.tensors(examples, context), outputs)

        def encode(response: Response) -> Sequence[Piece]:
            kind = tfs.ClassificationResponse if method == CLASSIFY else tfs.RegressionResponse
            answer = kind(model_spec=_answered(asked.model_spec.name, response))
            self._judge_into(answer.result, method, response, count)
            return (answer.SerializeToString(),)

        self._submit(call, request, encode)

    def multi_inference(self, call: Call, asked: Any) -> None:
        """Classify and regress on one run of the model. Raises InferenceError if it is refused."""
        count = 0
        needed: list[list[int]] = []

        def request() -> Request:
            nonlocal count, needed
            methods = [task.method_name for task in asked.tasks]
            for task in asked.tasks:
                if task.method_name not in (CLASSIFY, REGRESS):
                    raise _unsupported(f"Unsupported signature method_name: {task.method_name}")
                check_signature(task.model_spec.signature_name, no_such_signature)
                if methods.count(task.method_name) > 1:
                    raise invalid(f"Duplicate evaluation of signature: {task.model_spec.signature_name or DEFAULT_SIGNATURE}")
            needed = [self._needed(method) for method in methods]
            examples, context = _examples_of(asked.input)
            count = len(examples)
            outputs = list(dict.fromkeys(index for each in needed for index in each))
            return self._endpoint.request(self._examples.tensors(examples, context), outputs)

        def encode(response: Response) -> Sequence[Piece]:
            answer = tfs.MultiInferenceResponse()
            names = list(self._outputs)
            for task, outputs in zip(asked.tasks, needed, strict=True):
                own = {names[index] for index in outputs}
                part = Response(
                    response.id,
                    response.model,
                    response.version,
                    [tensor for tensor in response.outputs if tensor.name in own],
                    response.timing,
                )
                added = answer.results.add(model_spec=_answered(task.model_spec.name, response))
                result = added.classification_result if task.method_name == CLASSIFY else added.regression_result
                self._judge_into(result, task.method_name, part, count)
            return (answer.SerializeToString(),)

        self._submit(call, request, encode)

    def _submit(self, call: Call, request_of: Callable[[], Request], encode: Encode) -> None:
        endpoint = self._endpoint
        try:
            if endpoint.model.signature.streams:
                raise in_parts(endpoint.model.name)
            terms = endpoint.read_headers(call.headers, call.principal)
            request = request_of()
        except InferenceError as error:
            raise endpoint.refused(error, call.headers) from None
        call.on_abandoned = partial(endpoint.cancel, request)
        call.asks(request)
        endpoint.submit(request, _Reply(call, encode), terms)

    def _needed(self, method: str) -> list[int]:
        return self._examples.scores_of() if method == CLASSIFY else self._examples.value_of()

    def _judge_into(self, result: Any, method: str, response: Response, count: int) -> None:
        if method == REGRESS:
            for value in self._examples.values(response, count).tolist():
                result.regressions.add(value=value)
            return
        for one in self._examples.classified(response, count):
            _add_classes(result.classifications.add(), one)

    def _check_names(self, given: Sequence[str]) -> None:
        extra, missing = set(given) - self._inputs, self._required - set(given)
        if extra or missing:
            wanted = _joined(self._inputs)
            raise invalid(
                f"input size does not match signature: {len(given)}!={len(self._inputs)} len({_joined(given)}) != "
                f"len({wanted}). Sent extra: {_joined(extra)}. Missing but required: {_joined(missing)}."
                if len(given) != len(self._inputs)
                else f"input tensor alias not found in signature: {sorted(extra)[0]}. "
                f"Inputs expected to be in the set {wanted}."
            )

    def _wanted(self, names: Sequence[str]) -> Sequence[int]:
        if not names:
            return self._endpoint.checker.all_outputs
        for name in names:
            if name not in self._outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {_joined(self._outputs)}."
                )
            if list(names).count(name) > 1:
                raise invalid(f"duplicate output tensor alias: {name}")
        return [self._outputs[name] for name in names]


class _Answers:
    """Encodes PredictResponses. What stands around the elements is remembered: most requests of a model have one shape."""

    def __init__(self) -> None:
        self._known: dict[Any, list[bytes]] = {}

    def encode(self, name: str, response: Response) -> Sequence[Piece]:
        """`name`: of the model, as the client has it."""
        outputs = response.outputs
        key = (name, response.version, *[(tensor.name, tuple(tensor.shape)) for tensor in outputs])
        known = self._known.get(key)
        if known is not None:
            data: list[Piece] = [tensor.data for tensor in outputs]
            return [piece for pair in zip(known, data, strict=False) for piece in pair] + [known[-1]]
        entries = [entry(OUTPUTS, tensor.name, typed(tensor.dtype, tensor.shape, tensor.data)) for tensor in outputs]
        spec = _answered(name, response).SerializeToString()
        end = before(_SPEC, len(spec)) + spec
        if all(tensor.dtype in AS_IT_IS and len(tensor.data) for tensor in outputs) and len(self._known) < MAX_SHAPES:
            self._known[key] = [*(b"".join(parts[:-1]) for parts in entries), end]
        return [*(part for parts in entries for part in parts), end]


class _Reply:
    """Where one answer goes: encoded, onto its call. A ReplyTo."""

    __slots__ = ("_call", "_encode")

    def __init__(self, call: Call, encode: Encode) -> None:
        self._call = call
        self._encode = encode

    def completed(self, response: Response) -> None:
        try:
            self._call.reply(*self._encode(response), of=response)
        except InferenceError as error:
            self._call.refuse(error.failure)
        except Exception:
            self._call.give_up()

    def failed(self, failure: Failure) -> None:
        self._call.refuse(failure)


def read_predict(message: bytes) -> tuple[list[Input], Any]:
    """The inputs of a PredictRequest, and the rest of it. Raises InferenceError."""
    if len(message) > LARGE:
        with suppress(ValueError):  # many fields, as of texts, or none: protobuf knows
            return _read_past_protobuf(message)
    asked = parsed(tfs.PredictRequest, message)
    return [(name, tensor, tensor.tensor_content) for name, tensor in asked.inputs.items()], asked


def _read_past_protobuf(message: bytes) -> tuple[list[Input], Any]:
    """Contents are views of the message. Raises ValueError."""
    inputs: dict[str, Input] = {}
    rest, entries = take_out(message, INPUTS, FEW)
    for each in entries:
        key, values = take_out(each, _VALUE, FEW)
        if len(values) != 1:
            raise ValueError(f"an input has {len(values)} tensors")
        plain, contents = take_out(values[0], CONTENT, FEW)
        name = parsed(tfs.PredictRequest.InputsEntry, key).key
        inputs[name] = (name, parsed(tfs.TensorProto, plain), contents[-1] if contents else b"")
    return list(inputs.values()), parsed(tfs.PredictRequest, rest)


def parsed(kind: Any, message: bytes) -> Any:
    """Raises InferenceError for what is none of this kind."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise invalid(f"not a {kind.DESCRIPTOR.full_name}") from None


def _tensor(name: str, tensor: Any, content: bytes | memoryview) -> Tensor:
    try:
        kind = NAMES.get(tensor.dtype)
        if kind is None:
            raise ValueError(f"type {tensor.dtype} is none that dlproxy has")
        if tensor.tensor_shape.unknown_rank:
            raise ValueError("its number of dimensions is not known")
        dtype, shape = DTYPES[kind], tuple([dim.size for dim in tensor.tensor_shape.dim])
        return Tensor(name, dtype, shape, data_of(tensor, dtype, shape, content))
    except ValueError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from None


def _answered(name: str, response: Response) -> Any:
    """The ModelSpec of an answer: which version gave it."""
    spec = tfs.ModelSpec(name=name, signature_name=DEFAULT_SIGNATURE)
    spec.version.value = int(response.version)
    return spec


def _spec_of(spec: Any) -> ModelSpec:
    version = str(spec.version.value) if spec.HasField("version") else ""
    return ModelSpec(spec.name, version, spec.version_label)


def _examples_of(given: Any) -> tuple[Sequence[bytes], bytes]:
    if given.WhichOneof("kind") == "example_list_with_context":
        return given.example_list_with_context.examples, given.example_list_with_context.context
    return given.example_list.examples, b""


def _add_classes(classifications: Any, one: Classified) -> None:
    for label, score in zip(one.labels, one.scores.tolist(), strict=True):
        classifications.classes.add(label=label, score=score)


def _signature_map(described: dict[str, Any]) -> Any:
    numbers = {name: number for number, name in NAMES.items()}
    for definition in described["signature_def"].values():
        for info in (*definition["inputs"].values(), *definition["outputs"].values()):
            info["dtype"] = numbers[info["dtype"]]
    return ParseDict(described, tfs.SignatureDefMap())


def _joined(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _unsupported(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.UNSUPPORTED, message))
