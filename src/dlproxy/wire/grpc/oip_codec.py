"""Messages of ModelInfer to checked requests, and answers back to messages. Sans-I/O.

Tensors are views of the message. Messages that repeat but for their tensors and id are recognised instead of parsed. Called by
oip.py and oip_stream.py. Not aware of: calls.
"""

from collections.abc import Mapping, Sequence
from reprlib import repr as brief  # bounds the length: the value is the client's
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from msgspec import Struct
from msgspec.structs import replace

from dlproxy.message import (
    ANONYMOUS,
    DType,
    Failure,
    FailureKind,
    InferenceError,
    Principal,
    Request,
    Response,
    Tensor,
    invalid,
)
from dlproxy.protos.oip import RAW_INPUTS, RAW_OUTPUTS, REQUEST_ID, TYPED, oip
from dlproxy.protos.raw import before, take_out
from dlproxy.tensors import NUMPY, join_elements, to_bytes
from dlproxy.wire.checks import MAX_DIMS, MAX_ELEMENTS, UNEVEN, RequestChecker
from dlproxy.wire.endpoint import Endpoint, FrontDesk
from dlproxy.wire.grpc.messages import Piece
from dlproxy.wire.oip.codec import (
    LARGE,
    MAX_MEMO_BYTES,
    MAX_MEMOS,
    Form,
    Memo,
    WireRequest,
    in_form,
    is_part,
)
from dlproxy.wire.regions import NO_REGIONS, Regions, Window
from dlproxy.wire.rights import demand
from dlproxy.wire.terms import NO_TERMS, Terms, of_parameters

EMPTY_FINAL = "triton_enable_empty_final_response"
IN_PARTS = Failure(FailureKind.UNSUPPORTED, "ModelInfer RPC doesn't support models with decoupled transaction policy")
MOST_ALIKE = 4  # messages of one model and equal sizes that are told apart by comparing them
_TYPE_OF = {field: dtype for dtype, field in TYPED.items()}  # of those that share a field, the widest
_NAME, _VERSION, _ID = (number << 3 | 2 for number in (1, 2, REQUEST_ID))  # as bytes: the tags of these fields


class Asked(Struct):
    """A checked request, and of whom. `empty_final`: the end of an answer in parts shall be a message of its own.

    `forms`: of each output, if one is not sent as it is.
    """

    endpoint: Endpoint
    request: Request
    terms: Terms
    empty_final: bool = False
    memo: "KnownMessage | None" = None
    forms: tuple[Form, ...] | None = None


class KnownMessage(Memo):
    """What one message was found to say, as far as it stays the same.

    `rest`: what stands between the id and the first tensor. `marks`: what stands before the further tensors, and where, counted
    from the end.
    """

    __slots__ = ("empty_final", "endpoint", "marks", "reply", "rest")

    def __init__(self, asked: Asked, raw: Sequence[memoryview], rest: bytes) -> None:
        at, slices, marks = 0, {}, []
        for tensor, data in zip(reversed(asked.request.inputs), reversed(raw), strict=True):
            size = len(data)
            slices[tensor.name] = slice(at - size, at or None) if size else slice(0)
            mark = before(RAW_INPUTS, size)
            at -= size + len(mark)
            marks.append((at, mark))
        first_at, first = marks.pop()
        super().__init__(WireRequest(asked.request, (), asked.terms), slices, -first_at - len(first))
        self.endpoint = asked.endpoint
        self.empty_final = asked.empty_final
        self.rest = rest
        self.marks = marks
        self.reply: _Head | None = None

    def fits(self, message: bytes, after_id: int) -> bool:
        """`message`: one of the same size, but for its id, which ends there."""
        if not message.startswith(self.rest, after_id):
            return False
        return not self.marks or all(message.startswith(mark, len(message) + at) for at, mark in self.marks)


class InferDecoder:
    """Of messages for any model. `whole`: models that answer in parts are refused."""

    def __init__(self, desk: FrontDesk[Endpoint], regions: Regions = NO_REGIONS, *, max_typed_bytes: int, whole: bool) -> None:
        self._desk = desk
        self._regions = regions
        self._max_typed_bytes = max_typed_bytes
        self._whole = whole
        self._known: dict[tuple[bytes, int], list[KnownMessage]] = {}

    def forget(self) -> None:
        """The catalog has changed."""
        self._known = {}

    def decode(self, message: bytes, headers: Mapping[bytes, bytes], principal: Principal) -> Asked:
        """Raises InferenceError for whatever is wrong with it, NotServedError for a model that is not there."""
        at, after_id = _place_of_id(message)
        for memo in self._known.get((message[:at], len(message) - after_id), ()):
            if memo.has_id is (after_id > at) and memo.fits(message, after_id):
                try:
                    request_id = str(message[at + 2 : after_id], "utf-8")
                except UnicodeDecodeError:
                    break
                return self._again(memo, message, request_id, headers, principal)
        return self._decode(message, headers, principal, at, after_id)

    def _again(
        self, memo: KnownMessage, message: bytes, request_id: str, headers: Mapping[bytes, bytes], principal: Principal
    ) -> Asked:
        endpoint = memo.endpoint
        if principal is not ANONYMOUS:
            demand(principal, "infer", endpoint.model.name)
        try:
            terms = endpoint.read_headers(headers, principal)
        except InferenceError as error:
            raise endpoint.refused(error, headers) from None
        if memo.terms is not NO_TERMS:
            terms = memo.terms if terms is NO_TERMS else terms.over(memo.terms)
        request = memo.request(message, request_id, next(endpoint.ticket_ids), endpoint.clock()).request
        return Asked(endpoint, request, terms, memo.empty_final, memo)

    def _decode(self, message: bytes, headers: Mapping[bytes, bytes], principal: Principal, at: int, after_id: int) -> Asked:
        head, parsed, raw = _taken_apart(message, self._max_typed_bytes)
        endpoint = self._desk.find(parsed.model_name, parsed.model_version, principal)
        try:
            if self._whole and endpoint.model.signature.streams:
                raise InferenceError(IN_PARTS)
            terms = endpoint.read_headers(headers, principal)
            asked = _asked(endpoint, parsed, raw, self._regions)
        except InferenceError as error:
            raise endpoint.refused(error, headers) from None
        if at and asked.forms is None and _repeats(message, head, parsed, raw, asked, at, after_id):
            asked.memo = self._remember(message, head, raw, asked, at, after_id)
        own = asked.terms
        asked.terms = terms if own is NO_TERMS else own if terms is NO_TERMS else terms.over(own)
        return asked

    def _remember(
        self, message: bytes, head: bytes, raw: Sequence[memoryview], asked: Asked, at: int, after_id: int
    ) -> KnownMessage:
        memo = KnownMessage(asked, raw, head[after_id:] + before(RAW_INPUTS, len(raw[0])))
        key = (message[:at], len(message) - after_id)
        if key not in self._known and len(self._known) >= MAX_MEMOS:
            del self._known[next(iter(self._known))]
        alike = self._known.setdefault(key, [])
        alike.insert(0, memo)
        del alike[MOST_ALIKE:]
        return memo


def timeout_s(message: bytes, max_typed_bytes: int) -> float:
    """Of a request whose model is not known yet. Raises InferenceError."""
    return of_parameters(values_of(_taken_apart(message, max_typed_bytes)[1].parameters)).timeout_s


def id_of(message: bytes) -> str:
    """Of a request that was refused; empty where it cannot be told."""
    try:
        request_id: str = oip.ModelInferRequest.FromString(take_out(message, RAW_INPUTS)[0]).id
    except (DecodeError, ValueError):
        return ""
    return request_id


def values_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A map of InferParameter or ModelRepositoryParameter. Raises InferenceError."""
    found = {}
    for name, value in parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        if chosen is None:
            expected = "expected int64_param, bool_param, or string_param."
            raise invalid(f"invalid value type for '{name}' parameter, {expected}")
        found[name] = getattr(value, chosen)
    return found


def _taken_apart(message: bytes, max_typed_bytes: int) -> tuple[bytes, Any, list[memoryview]]:
    """The message without its raw contents, as bytes and parsed, and these."""
    try:
        head, raw = take_out(message, RAW_INPUTS)
        if len(head) > max_typed_bytes:
            text = f"the message is {len(head)} bytes besides its raw contents; at most {max_typed_bytes} are accepted"
            raise InferenceError(Failure(FailureKind.TOO_LARGE, f"{text}; send tensors as raw_input_contents"))
        return head, oip.ModelInferRequest.FromString(head), raw
    except (DecodeError, ValueError) as error:
        raise invalid(f"the message cannot be read as inference.ModelInferRequest: {error}") from None


def _asked(endpoint: Endpoint, parsed: Any, raw: Sequence[memoryview], regions: Regions) -> Asked:
    checker = endpoint.checker
    inputs = _inputs(checker, parsed, raw, regions)
    outputs = [checker.output_index(output.name) for output in parsed.outputs] or checker.all_outputs
    found = [_form(checker, index, output, regions) for index, output in zip(outputs, parsed.outputs, strict=False)]
    params = values_of(parsed.parameters)
    empty_final = params.get(EMPTY_FINAL, False)
    if not isinstance(empty_final, bool):
        raise invalid(f"invalid value type for '{EMPTY_FINAL}' parameter, expected bool_param.")
    request = checker.request(
        inputs, outputs, ticket_id=next(endpoint.ticket_ids), request_id=parsed.id, params=params, now=endpoint.clock()
    )
    terms = of_parameters(params) if params else NO_TERMS
    return Asked(endpoint, request, terms, empty_final, forms=tuple(found) if any(found) else None)


def _inputs(checker: RequestChecker, parsed: Any, raw: Sequence[memoryview], regions: Regions) -> list[Tensor]:
    inputs, left, taken = [], iter(raw), 0
    for given in parsed.inputs:
        name, model = given.name, parsed.model_name
        try:
            dtype = DType(given.datatype)
        except ValueError:
            valid = ", ".join(dtype.value for dtype in DType)
            raise invalid(f"input '{name}': datatype {brief(given.datatype)} is none; valid datatypes are {valid}") from None
        if len(given.shape) > MAX_DIMS:
            text = f"the shape has {len(given.shape)} dimensions; at most {MAX_DIMS} are supported"
            raise invalid(f"input '{name}': {text}")
        data: memoryview | bytes | None
        window = _window(given, regions)
        if window is not None:
            if given.HasField("contents"):
                text = f"unexpected 'content' provided when using shared memory for input tensor '{name}'"
                raise invalid(f"{text} for model '{model}'")
            checker.check_size(name, dtype, given.shape, window.byte_size, parsed.id)
            data = regions.read(window, taken)
            taken += window.byte_size
        elif given.HasField("contents"):
            if raw:
                text = "contents field must not be specified when using raw_input_contents"
                raise invalid(f"{text} for '{name}' for model '{model}'")
            data = _typed(given, dtype, model)
        else:
            data = next(left, None)
            if data is None:
                raise invalid(f"unable to find data for input tensor '{name}' for model '{model}' in request.")
        inputs.append(Tensor(name, dtype, tuple(given.shape), data))
    if next(left, None) is not None:
        raise invalid(f"the request has {len(raw)} raw_input_contents for {len(inputs)} inputs")
    return inputs


def _typed(given: Any, dtype: DType, model: str) -> memoryview | bytes:
    """The elements of a tensor that are given one by one."""
    fields = given.contents.ListFields()
    for field, _ in fields:
        if field.name != TYPED.get(dtype):
            text = f"unexpected explicit tensor data for input tensor '{given.name}' for model '{model}'"
            raise invalid(f"{text} of type '{_TYPE_OF[field.name].value}', expected datatype '{dtype.value}'")
    if not fields:
        return b""
    values = fields[0][1]
    if dtype is DType.BYTES:
        if len(values) > MAX_ELEMENTS:
            text = f"at most {MAX_ELEMENTS} BYTES elements are accepted, got {len(values)}"
            raise invalid(f"input '{given.name}': {text}")
        return join_elements(values)
    wide = np.array(values, NUMPY[_TYPE_OF[fields[0][0].name]])
    array = wide.astype(NUMPY[dtype], copy=False)
    if array is not wide and (array != wide).any():
        raise invalid(f"input '{given.name}': a number is out of range for {dtype.value}")
    return to_bytes(dtype, array)


def _window(tensor: Any, regions: Regions) -> Window | None:
    """Where the parameters say that it is; None if they say nothing. Raises InferenceError."""
    given = tensor.parameters
    region, offset, size = (
        _value(tensor, f"shared_memory_{part}", kind) if f"shared_memory_{part}" in given else None
        for part, kind in (("region", "string_param"), ("offset", "int64_param"), ("byte_size", "int64_param"))
    )
    if region is None:
        for part, value in (("offset", offset), ("byte_size", size)):
            if value is not None:
                text = f"'shared_memory_{part}' can not be specified without 'shared_memory_region' parameter"
                raise invalid(f"{text} for tensor '{tensor.name}'")
        return None
    if size is None:
        text = "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter"
        raise invalid(f"{text} for tensor '{tensor.name}'")
    return regions.window(region, offset, size)


def _form(checker: RequestChecker, index: int, output: Any, regions: Regions) -> Form:
    window = _window(output, regions)
    if "classification" not in output.parameters:
        return window
    if window is not None:
        raise invalid("output can't set both 'shared_memory_region' and 'classification'")
    value = output.parameters["classification"]
    if value.WhichOneof("parameter_choice") != "int64_param":
        raise invalid("invalid value type for 'classification' parameter, expected int64_param")
    if value.int64_param <= 0:
        raise invalid("invalid value for 'classification' parameter, expected >= 0")
    return checker.classes(index, value.int64_param)


def _value(tensor: Any, name: str, kind: str) -> Any:
    value = tensor.parameters[name]
    if value.WhichOneof("parameter_choice") != kind:
        raise invalid(f"invalid value type for '{name}' parameter for tensor '{tensor.name}', expected {kind}.")
    return getattr(value, kind)


def _place_of_id(message: bytes) -> tuple[int, int]:
    """Where the id begins and ends, which stands after the model's name and version; twice the same if there is none.

    (0, 0) where that is not plain to see.
    """
    try:
        if message[0] != _NAME or message[1] > 127:
            return 0, 0
        at = message[1] + 2
        if message[at] == _VERSION:
            if message[at + 1] > 127:
                return 0, 0
            at += message[at + 1] + 2
        if message[at] != _ID:
            return at, at
        size = message[at + 1]
        return (at, at + size + 2) if 0 < size < 128 else (0, 0)
    except IndexError:
        return 0, 0


def _repeats(message: bytes, head: bytes, parsed: Any, raw: Sequence[memoryview], asked: Asked, at: int, after_id: int) -> bool:
    """Whether another message with the same bytes between the id and the tensors says the same.

    It does if all inputs are raw contents of fixed element size, in order at the end, and not shared by a batch.
    """
    inputs = asked.request.inputs
    if not 0 < len(raw) == len(inputs) or len(head) > MAX_MEMO_BYTES or asked.endpoint.checker.looks_inside:
        return False
    if UNEVEN in asked.request.ticket.shape_key or any(tensor.dtype is DType.BYTES for tensor in inputs):
        return False
    if [tensor.name for tensor in inputs] != [given.name for given in parsed.inputs]:
        return False
    if len(head) < after_id or not _ends_with(message, head, raw):
        return False
    try:  # fields may come again: the last one holds, so that only what has no other id may have its id exchanged
        rest = oip.ModelInferRequest.FromString(head[:at] + head[after_id:])
    except DecodeError:
        return False
    return not rest.id and bool(parsed.id) is (after_id > at) and parsed.id.encode() == head[at + 2 : after_id]


def _ends_with(message: bytes, head: bytes, raw: Sequence[memoryview]) -> bool:
    """Whether the raw contents stand behind everything else."""
    at = len(head)
    for data in raw:
        mark = before(RAW_INPUTS, len(data))
        if not message.startswith(mark, at):
            return False
        at += len(mark) + len(data)
    return at == len(message) and message.startswith(head)


# Answers


class _Head:
    """What an answer holds besides id and tensors: `first` before the id, `rest` after it, `marks` before each tensor."""

    __slots__ = ("first", "large", "marks", "rest", "shapes", "version")

    def __init__(self, response: Response, shapes: list[Sequence[int]]) -> None:
        named = oip.ModelInferResponse(model_name=response.model, model_version=response.version)
        rest = oip.ModelInferResponse()
        for tensor in response.outputs:
            rest.outputs.add(name=tensor.name, datatype=tensor.dtype.value, shape=tensor.shape)
        self.first: bytes = named.SerializeToString()
        self.rest: bytes = rest.SerializeToString()
        self.marks = [before(RAW_OUTPUTS, len(tensor.data)) for tensor in response.outputs]
        self.shapes, self.version = shapes, response.version
        self.large = any(len(tensor.data) > LARGE for tensor in response.outputs)


def encode(
    response: Response, memo: KnownMessage | None, flags: bytes = b"", forms: Sequence[Form] | None = None
) -> list[Piece]:
    """The message, in pieces. `flags`: further fields. Raises InferenceError for what cannot be in the form asked for."""
    if forms is not None:
        response = replace(response, outputs=in_form(response.outputs, forms))
    outputs = response.outputs
    shapes = [tensor.shape for tensor in outputs]
    head = None if memo is None else memo.reply
    if head is None or shapes != head.shapes or response.version != head.version:
        head = _Head(response, shapes)
        if memo is not None and not any(tensor.dtype is DType.BYTES for tensor in outputs):
            memo.reply = head
    pieces: list[Piece] = [head.first]
    if response.id:
        encoded = response.id.encode()
        pieces += (before(REQUEST_ID, len(encoded)), encoded)
    pieces += (flags, head.rest)
    for mark, tensor in zip(head.marks, outputs, strict=True):
        data = tensor.data
        pieces += (mark, bytes(data) if head.large and is_part(data) else data)
    return pieces
