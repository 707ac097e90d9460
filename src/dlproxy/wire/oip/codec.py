"""The Open Inference Protocol's REST bodies, JSON and binary tensor extension, to Request and back. Sans-I/O.

Called by wire/oip/http.py. Not aware of: connections, status lines, routes.
Non-finite floats: binary carries them exactly; JSON has none, so requests with them are refused and replies hold null.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from reprlib import repr as brief  # bounds depth and length: the value is the client's
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from dlproxy.instance.remote.json_values import element, is_base64
from dlproxy.message import DType, Request, Response, Tensor, Ticket, element_count, invalid
from dlproxy.tensors import NUMPY, bf16_to_fp32, fp32_to_bf16, join_elements, to_array, to_bytes
from dlproxy.wire.checks import MAX_DIMS, UNEVEN, RequestChecker
from dlproxy.wire.classification import Classes
from dlproxy.wire.regions import NO_REGIONS, Regions, Window, write_all
from dlproxy.wire.terms import NO_TERMS, Terms, of_parameters

MAX_MEMOS = 256
MAX_MEMO_BYTES = 4096
LARGE = 64 * 1024  # bytes of an output; copying a larger one costs more than writing it by itself
NO_JSON_FORM = (DType.FP16, DType.BF16)
_EXACT = {DType.FP32: 1 << 24, DType.FP64: 1 << 53}  # integers up to here are floats of this type
ONE_OF_THREE = "'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'"
Form = Window | Classes | None
"""What an output goes to, or becomes, that is not sent as it is."""

_NO_DATA = msgspec.Raw()
_ID_FIRST = re.compile(rb'\{"id": ?"([ !#-\[\]-~]+)"')  # of printable ASCII without escapes; as Triton's clients write it
_ID_AGAIN = re.compile(rb'"id"|\\')  # perhaps: of several, JSON readers take the last


class _TensorParams(Struct):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: int | None = None
    shared_memory_byte_size: int | None = None


class _InputHead(Struct):
    name: str
    shape: tuple[int, ...]
    datatype: DType
    parameters: _TensorParams | None = None
    data: msgspec.Raw = _NO_DATA  # `Raw | None` would take nothing but null


class _OutputHead(Struct):
    name: str
    parameters: _TensorParams | None = None


class _InferHead(Struct):
    inputs: list[_InputHead]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_OutputHead] | None = None


class _BinarySize(Struct):
    binary_data_size: int


class _ReplyOutput(Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: Sequence[int]
    parameters: _BinarySize | None = None
    data: Any = None


class _ReplyHead(Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_ReplyOutput]
    id: str = ""


_decode_head = msgspec.json.Decoder(_InferHead).decode
_encode_head = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


class WireRequest(Struct):
    """A checked request, what its parameters ask for and, for each output that it wants, whether the reply has it as binary;
    None where it does not have it at all. `forms`: of each output, if one is not sent as it is.
    """

    request: Request
    binary: tuple[bool | None, ...]
    terms: Terms = NO_TERMS
    memo: "Memo | None" = None
    forms: tuple[Form, ...] | None = None


class Memo:
    """What one JSON head was found to say. A client that sends tensors of one shape sends the same head every time, but for an
    id, which is cut out if it comes first.

    Only heads with every input binary, of fixed element size and not shared by a batch are remembered: all else depends on
    more than the head and the body's length. The reply's head (without an id) is remembered with it, for as long as the output
    shapes repeat.
    """

    __slots__ = (
        *("binary", "binary_bytes", "has_id", "inputs", "model", "outputs", "params", "terms"),
        *("reply_head", "reply_is_large", "reply_shapes", "reply_version", "rows", "shape_key", "length", "family"),
    )

    def __init__(self, wire: WireRequest, slices: Mapping[str, slice], binary_bytes: int) -> None:
        """`slices`: where each input is, counted from the body's end: what comes before it may hold a longer id."""
        request, ticket = wire.request, wire.request.ticket
        self.binary_bytes = binary_bytes
        self.has_id = bool(request.id)
        self.inputs = [(tensor.name, tensor.dtype, tensor.shape, slices[tensor.name]) for tensor in request.inputs]
        self.rows, self.shape_key, self.length, self.family = ticket.rows, ticket.shape_key, ticket.length, ticket.family
        self.model, self.outputs, self.params = request.model, request.outputs, request.params
        self.binary, self.terms = wire.binary, wire.terms
        self.reply_shapes: list[Sequence[int]] | None = None
        self.reply_version = ""  # a request that names none may be answered by one version or another
        self.reply_head = b""
        self.reply_is_large = False

    def request(self, body: bytes, request_id: str, ticket_id: int, now: float) -> WireRequest:
        """The request that this head makes of another body with as many binary bytes."""
        view = memoryview(body)
        inputs = [Tensor(name, dtype, shape, view[part]) for name, dtype, shape, part in self.inputs]
        ticket = Ticket(ticket_id, now, inf, self.rows, 0, "", self.shape_key, length=self.length)
        if self.family:
            ticket.family = self.family
        request = Request(ticket, self.model, inputs, self.outputs, request_id, self.params)
        return WireRequest(request, self.binary, self.terms, self)


class InferDecoder:
    """Decodes infer bodies for one model. Remembers up to MAX_MEMOS heads, oldest first out."""

    def __init__(self, checker: RequestChecker, regions: Regions = NO_REGIONS) -> None:
        self._checker = checker
        self._regions = regions
        self._memos: dict[bytes, Memo] = {}

    def decode(self, body: bytes, json_bytes: int | None, *, ticket_id: int, now: float) -> WireRequest:
        """One infer body. `json_bytes`: the Inference-Header-Content-Length; None if the whole body is JSON.

        Raises InferenceError(INVALID_ARGUMENT) for whatever is wrong with it.
        """
        if not json_bytes:
            if json_bytes is None:
                return self._decode(_head(body), None, ticket_id=ticket_id, now=now)
            return self._decode_raw(body, ticket_id=ticket_id, now=now)
        if json_bytes > len(body):
            size = f"the body has {len(body)} bytes"
            raise invalid(f"inference header size should be in range (0, {len(body)}), got: {json_bytes}; {size}")
        text = head_text = body[:json_bytes]
        request_id = ""
        memo = self._memos.get(text)
        if memo is None and (match := _ID_FIRST.match(text)):
            request_id, text = str(match[1], "ascii"), text[match.end() :]
            memo = self._memos.get(text)
        if memo is not None and memo.has_id is bool(request_id) and memo.binary_bytes == len(body) - json_bytes:
            return memo.request(body, request_id, ticket_id, now)
        head = _head(head_text)
        wire = self._decode(head, memoryview(body)[json_bytes:], ticket_id=ticket_id, now=now)
        if head.id == request_id and (not request_id or _ID_AGAIN.search(text) is None):
            self._remember(text, head, wire, len(body) - json_bytes)
        return wire

    def _decode(self, head: _InferHead, binary: memoryview | None, *, ticket_id: int, now: float) -> WireRequest:
        inputs = []
        at = taken = 0
        for tensor in head.inputs:
            size = None if tensor.parameters is None else tensor.parameters.binary_data_size
            if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
                inputs.append(self._from_region(tensor, tensor.parameters, head.id, taken))
                taken += len(inputs[-1].data)
            elif size is not None:
                if tensor.data is not _NO_DATA:
                    raise _not_one("set 'data' 'binary_data_size'", tensor.name)
                if binary is None or size < 0 or at + size > len(binary):
                    raise self._binary_overrun(tensor.name, size, None if binary is None else len(binary) - at)
                inputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, binary[at : at + size]))
                at += size
            else:
                inputs.append(_json_input(tensor))
        if binary is not None and at != len(binary):
            extra = f"{len(binary) - at} bytes after the last input's; the inputs' binary_data_size must add up"
            raise invalid(f"unexpected additional input data for model '{self._checker.model_name}': {extra}")
        params = head.parameters
        outputs, as_binary, forms = self._wanted(head.outputs, params)
        request = self._checker.request(inputs, outputs, ticket_id=ticket_id, request_id=head.id, params=params or {}, now=now)
        return WireRequest(request, as_binary, of_parameters(params) if params else NO_TERMS, None, forms)

    def _from_region(self, tensor: _InputHead, params: _TensorParams, request_id: str, taken: int) -> Tensor:
        if params.binary_data_size is not None or tensor.data is not _NO_DATA:
            given = "'data'" if params.binary_data_size is None else "'binary_data_size'"
            raise _not_one(f"set {given} 'shared_memory_region'", tensor.name)
        window = self._window(params)
        self._checker.check_size(tensor.name, tensor.datatype, tensor.shape, window.byte_size, request_id)
        return Tensor(tensor.name, tensor.datatype, tensor.shape, self._regions.read(window, taken))

    def _binary_overrun(self, name: str, size: int, left: int | None) -> Exception:
        if size < 0:
            return invalid(f"input '{name}': binary_data_size is {size}")
        short = f"expecting {size - (left or 0)} additional bytes for model '{self._checker.model_name}'"
        hint = "; no Inference-Header-Content-Length header says where the JSON ends" if left is None else ""
        return invalid(f"unexpected size for input '{name}', {short}{hint}")

    def _window(self, params: _TensorParams) -> Window:
        region = params.shared_memory_region or ""
        return self._regions.window(region, params.shared_memory_offset, params.shared_memory_byte_size)

    def _wanted(
        self, outputs: list[_OutputHead] | None, params: dict[str, Any] | None
    ) -> tuple[Sequence[int], tuple[bool | None, ...], tuple[Form, ...] | None]:
        checker = self._checker
        binary_default = params.get("binary_data_output", False) if params else False
        if binary_default is not True and binary_default is not False:
            raise invalid(f"parameter 'binary_data_output' is {brief(binary_default)}; it must be true or false")
        forms = None
        if not outputs:
            wanted: Sequence[int] = checker.all_outputs
            binary: tuple[bool | None, ...] = (binary_default,) * len(wanted)
        else:
            wanted = [checker.output_index(output.name) for output in outputs]
            binary = tuple([_is_binary(output, binary_default) for output in outputs])
            for output in outputs:
                if output.parameters is not None:
                    forms = self._forms(outputs, wanted)
                    break
            if forms is not None:
                binary = tuple([None if isinstance(form, Window) else it for it, form in zip(binary, forms, strict=True)])
        if not all(binary):
            checker.check_json_form(wanted, binary, NO_JSON_FORM)
        return wanted, binary, forms

    def _forms(self, outputs: Sequence[_OutputHead], wanted: Sequence[int]) -> tuple[Form, ...] | None:
        found = [self._form(output, index) for output, index in zip(outputs, wanted, strict=True)]
        return tuple(found) if any(found) else None

    def _form(self, output: _OutputHead, index: int) -> Form:
        params = output.parameters
        if params is None:
            return None
        if params.shared_memory_region is None:
            return self._checker.classes(index, params.classification) if params.classification else None
        if params.classification is not None:
            raise invalid("Output can't set both 'shared_memory_region' and 'classification'")
        if params.binary_data:
            raise invalid("Output can't set both 'shared_memory_region' and 'binary_data'")
        return self._window(params)

    def _decode_raw(self, body: bytes, *, ticket_id: int, now: float) -> WireRequest:
        """Header length 0: the body is the one input's elements; all outputs come back as binary."""
        tensor = self._checker.raw_input(body)
        outputs = self._checker.all_outputs
        request = self._checker.request([tensor], outputs, ticket_id=ticket_id, request_id="", params={}, now=now)
        return WireRequest(request, (True,) * len(outputs))

    def _remember(self, text: bytes, head: _InferHead, wire: WireRequest, binary_bytes: int) -> None:
        uneven = UNEVEN in wire.request.ticket.shape_key
        if len(text) > MAX_MEMO_BYTES or self._checker.looks_inside or uneven or len(head.inputs) != len(wire.request.inputs):
            return
        if wire.forms is not None:  # what a region's name means may change
            return
        at, slices = -binary_bytes, {}
        for tensor in head.inputs:
            size = None if tensor.parameters is None else tensor.parameters.binary_data_size
            if size is None or tensor.datatype is DType.BYTES:
                return
            slices[tensor.name] = slice(at, at + size or None) if size else slice(0)
            at += size
        if len(self._memos) >= MAX_MEMOS:
            del self._memos[next(iter(self._memos))]
        self._memos[text] = Memo(wire, slices, binary_bytes)


def encode(response: Response, wire: WireRequest) -> tuple[bytes, int | None, Sequence[memoryview | bytes]]:
    """The body of a reply, its Inference-Header-Content-Length (None if all of it is JSON), and outputs that follow the body.

    These are too large to be copied. Outputs that go to regions are written there. Raises InferenceError if one cannot be.
    """
    outputs, binary, memo = response.outputs, wire.binary, wire.memo
    shapes = [tensor.shape for tensor in outputs]
    if memo is not None and shapes == memo.reply_shapes and response.version == memo.reply_version:
        head, is_large = memo.reply_head, memo.reply_is_large
        if memo.has_id:
            head = b'%b,"id":"%b"}' % (head[:-1], response.id.encode())
        data = [tensor.data for tensor in outputs]
    else:
        if wire.forms is not None:
            outputs = in_form(outputs, wire.forms)
        described = [_described(tensor, as_binary) for tensor, as_binary in zip(outputs, binary, strict=True)]
        head = _encode_head(_ReplyHead(response.model, response.version, described, response.id))
        data = [tensor.data for tensor, as_binary in zip(outputs, binary, strict=True) if as_binary]
        if not data:
            return head, None, ()
        is_large = max(map(len, data)) > LARGE
        if memo is not None and all(binary) and DType.BYTES not in [tensor.dtype for tensor in outputs]:
            memo.reply_head = _encode_head(_ReplyHead(response.model, response.version, described)) if memo.has_id else head
            memo.reply_shapes, memo.reply_version, memo.reply_is_large = shapes, response.version, is_large
    if is_large and not any(map(is_part, data)):
        return head, len(head), data
    return b"".join([head, *data]), len(head), ()


def in_form(outputs: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """As the reply has them: classes in place of values, no data where it goes to a region, which has it then.

    Raises InferenceError.
    """
    formed = list(zip(outputs, forms, strict=True))
    write_all([(tensor, form) for tensor, form in formed if isinstance(form, Window)])
    return [
        form.of(tensor)
        if isinstance(form, Classes)
        else Tensor(tensor.name, tensor.dtype, tensor.shape, b"" if form is not None else tensor.data)
        for tensor, form in formed
    ]


def _described(tensor: Tensor, as_binary: bool | None) -> _ReplyOutput:
    name, dtype, shape = tensor.name, tensor.dtype.value, tensor.shape
    if as_binary:
        return _ReplyOutput(name, dtype, shape, _BinarySize(len(tensor.data)))
    return _ReplyOutput(name, dtype, shape, None, None if as_binary is None else json_data(tensor, flat=True))


def is_part(data: memoryview | bytes) -> bool:
    """A slow client would keep more than twice as much in memory: the rows of others in its batch."""
    return isinstance(data, memoryview) and memoryview(data.obj).nbytes > 2 * len(data)


def json_data(tensor: Tensor, *, flat: bool) -> Any:
    """The elements as JSON values, nested as the shape says unless `flat`. BYTES must be UTF-8."""
    array = to_array(tensor.dtype, tensor.shape, tensor.data, text=True)
    if tensor.dtype is DType.BF16:
        array = bf16_to_fp32(array)
    return (array.ravel() if flat else array).tolist()


def json_tensor(name: str, dtype: DType, shape: Sequence[int] | None, data: Any, *, tfs: bool = False) -> Tensor:
    """A tensor from JSON values, flat or nested; `shape` None takes the nesting's own. A scalar may come without a list.

    `tfs`: as TensorFlow Serving takes them, with NaN and infinities, and with {"b64": …} for bytes. Raises InferenceError.
    """
    bare = shape is not None and not shape and not isinstance(data, list)
    found = () if bare else _nesting(data, name)
    if shape is None:
        shape = found
    elif any(size < 0 for size in shape):
        raise invalid(f"input '{name}': shape {list(shape)} has a negative dimension")
    elif len(shape) > MAX_DIMS:
        raise invalid(f"input '{name}': the shape has {len(shape)} dimensions; at most {MAX_DIMS} are supported")
    elif element_count(found) != element_count(shape) or (len(found) > 1 and tuple(shape) != found):
        raise invalid(f"input '{name}': the data has shape {list(found)}, but 'shape' is {list(shape)}")
    values = [data] if bare else _flatten(data, found, name)
    if dtype is DType.BYTES:
        for value in values:
            if not (isinstance(value, str) or (tfs and is_base64(value))):
                raise invalid(f"input '{name}': {brief(value)} is not a string; BYTES data must be strings")
        try:
            return Tensor(name, dtype, tuple(shape), join_elements([element(value) for value in values] if tfs else values))
        except ValueError as error:  # also for half of a surrogate pair
            raise invalid(f"input '{name}': {error}") from None
    return Tensor(name, dtype, tuple(shape), _pack(name, dtype, values, tfs=tfs))


def _head(data: bytes | memoryview) -> _InferHead:
    try:
        head = _decode_head(data)
    except msgspec.ValidationError as error:
        if "enum value" in str(error):
            raise _bad_datatype(error, data) from None
        raise invalid(f"not an inference request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"malformed JSON: {error}") from None
    except RecursionError:
        raise invalid("malformed JSON: nested too deeply") from None
    return head


def _bad_datatype(error: msgspec.ValidationError, data: bytes | memoryview) -> Exception:
    name: Any = ""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):  # what follows may be wrong
        found = re.search(r"inputs\[(\d+)\]", str(error))
        name = _decode_any(data)["inputs"][int(found[1]) if found else 0]["name"]
    of_input = f" for input {name}" if name and isinstance(name, str) else ""
    return invalid(f"invalid datatype{of_input}: {error}; valid datatypes are {', '.join(dtype.value for dtype in DType)}")


def _not_one(but: str, name: str) -> Exception:
    return invalid(f"Input must set only one of the following fields: {ONE_OF_THREE}. But {but}: input '{name}'")


def _json_input(tensor: _InputHead) -> Tensor:
    if tensor.data is _NO_DATA:
        raise _not_one("no field is set", tensor.name)
    if tensor.datatype in NO_JSON_FORM:
        how = f"Please use the binary data format for input {tensor.name}"
        raise invalid(f"receiving {tensor.datatype.value} data via JSON is not supported. {how}")
    try:
        data = _decode_any(tensor.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"input '{tensor.name}': {error or 'the data is nested too deeply'}") from None
    return json_tensor(tensor.name, tensor.datatype, tensor.shape, data)


def _is_binary(output: _OutputHead, default: bool) -> bool:
    params = output.parameters
    return default if params is None or params.binary_data is None else params.binary_data


def _nesting(data: Any, name: str) -> tuple[int, ...]:
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        if not data:
            break
        data = data[0]
    if not shape:
        raise invalid(f"input '{name}': the data must be a list, got {type(data).__name__}")
    return tuple(shape)


def _flatten(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    for depth, size in enumerate(shape[1:], start=2):
        flat = []
        for part in data:
            if not isinstance(part, list) or len(part) != size:
                got = f"a list of {len(part)}" if isinstance(part, list) else brief(part)
                raise invalid(f"input '{name}': ragged data: expected {size} elements in dimension {depth}, got {got}")
            flat += part
        data = flat
    values: list[Any] = data
    return values


def _pack(name: str, dtype: DType, values: list[Any], *, tfs: bool) -> memoryview:
    """JSON numbers to elements, exactly: no silent truncation, wrap-around or bool for number."""
    number = np.dtype(np.float32) if dtype is DType.BF16 else NUMPY[dtype]
    kinds = set(map(type, values))
    allowed = {DType.BOOL: {bool}}.get(dtype, {int, float} if number.kind == "f" else {int})
    if not kinds <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        wanted = "true or false" if dtype is DType.BOOL else "a number" if float in allowed else "an integer"
        raise invalid(f"input '{name}': {brief(wrong)} is not {wanted}, which {dtype.value} requires")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=number)
    except OverflowError:
        raise invalid(f"input '{name}': a number is out of range for {dtype.value}") from None
    bits = fp32_to_bf16(array) if dtype is DType.BF16 else array
    if number.kind == "f":
        finite = np.isfinite(array if bits is array else bf16_to_fp32(bits))
        if not finite.all() and not (tfs and (finite == np.isfinite(np.array(values, np.float64))).all()):
            raise invalid(f"input '{name}': a number is too large for {dtype.value}")
        if tfs and int in kinds:
            _check_integers(name, dtype, values)
    return to_bytes(dtype, bits)


def _check_integers(name: str, dtype: DType, values: list[Any]) -> None:
    """TensorFlow Serving takes no integer that the floats would round."""
    bound = _EXACT.get(dtype, 0)
    for value in values if bound else ():
        if type(value) is int and abs(value) > bound and int(NUMPY[dtype].type(value)) != value:
            raise invalid(f"input '{name}': {value} cannot be converted to {dtype.value} without loss of precision")
