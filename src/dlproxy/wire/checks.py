"""Checks a decoded request against its model's signature and makes it a Request. The same for every protocol.

The error texts that start like Triton's are matched by its clients' tests. Not aware of: JSON, HTTP.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from dlproxy.message import (
    DType,
    Request,
    Tensor,
    TensorSpec,
    Ticket,
    element_count,
    invalid,
)
from dlproxy.tensors import elements_of
from dlproxy.wire.catalog import ServedModel
from dlproxy.wire.classification import Classes, classes_of
from dlproxy.wire.padded import PaddedShape

UNEVEN = -1  # begins the shape_key, no other's equal, of a request whose inputs differ in rows
UNPADDED = -2  # ends the shape_key of a request that must not be padded, as others of its shape may be
MAX_DIMS = 64  # as in numpy; before the product: that of a million sizes takes hours
MAX_ELEMENTS = 1 << 20  # BYTES elements of one input


class RequestChecker:
    """Everything about one model that a check needs, worked out once."""

    def __init__(self, model: ServedModel) -> None:
        signature = model.signature
        self._name = self.model_name = model.name
        self._specs = signature.inputs
        self._batched = signature.batched
        self._even = signature.even
        self._model = model  # whose max_batch may change while it runs
        self._tails = tuple(_fixed_tail(spec, batched=signature.batched) for spec in signature.inputs)
        self._row_bytes = tuple(
            0 if tail is None else element_count(tail) * spec.dtype.itemsize
            for spec, tail in zip(signature.inputs, self._tails, strict=True)
        )
        self._passed: list[tuple[Sequence[int], int]] = [((), -1)] * len(signature.inputs)
        """Shapes and sizes of the last inputs that were right, where not all of a shape is fixed: most requests repeat them."""
        self._one_shape = all(tail is not None for tail in self._tails)
        self._shares = self._batched and any(spec.rows is None for spec in signature.inputs)
        self._padding = PaddedShape(signature.inputs) if self._batched and signature.pads else None
        self.looks_inside = self._shares or (self._padding is not None and self._padding.looks_inside)
        """Whether it depends on what is in the inputs which requests may share a batch."""
        self._defaults = {
            spec.name: Tensor(spec.name, spec.dtype, spec.shape, spec.default)
            for spec in signature.inputs
            if spec.default is not None
        }
        self._output_specs = signature.outputs
        self._outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}
        self.all_outputs = tuple(range(len(signature.outputs)))

    def request(
        self,
        inputs: list[Tensor],
        outputs: Sequence[int],
        *,
        ticket_id: int,
        request_id: str | None,
        params: dict[str, Any],
        now: float,
    ) -> Request:
        """The checked request. Raises InferenceError(INVALID_ARGUMENT). Allocates nothing that depends on shapes.

        `request_id`: None in a protocol that has none; errors then do not begin with it.
        """
        if len(inputs) != len(self._specs):
            inputs = self._completed(inputs, request_id)
        if len(outputs) > len(self.all_outputs):  # one that is asked for a thousand times would be sent as often
            raise invalid(f"{len(outputs)} outputs are requested of model '{self._name}', which has {len(self.all_outputs)}")
        rows, uneven = 0, False
        for index, spec in enumerate(self._specs):
            tensor = inputs[index]
            if tensor.name != spec.name:
                inputs = self._in_order(inputs, request_id)
                tensor = inputs[index]
            shape, tail = tensor.shape, self._tails[index]
            if (
                tail is None
                or tensor.dtype is not spec.dtype
                or shape[1:] != tail
                or not shape
                or shape[0] < 1
                or len(tensor.data) != shape[0] * self._row_bytes[index]
                or not self._row_bytes[index]
            ):
                self._check_unless_known(index, tensor, request_id)
            if self._batched and spec.rows is not None:
                count = shape[spec.rows]
                if rows and count != rows:
                    if self._even:
                        raise self._disagreeing(inputs, request_id)
                    uneven = True
                rows = max(rows, count)
        rows = rows or 1
        if rows > self._model.max_batch:
            most = f"inference request batch-size must be <= {self._model.max_batch} for '{self._name}'"
            raise invalid(f"{_begin(request_id)}{most}, got {rows}")
        ticket = Ticket(ticket_id, now, rows=rows)
        if not self._one_shape:
            ticket.shape_key = self._shape_key(inputs)
            if self._padding is None:
                ticket.length = self._length(inputs)
            else:
                ticket.length, ticket.family = self._padding.length_and_family(inputs, ticket.shape_key)
                if not ticket.family:
                    ticket.shape_key = (*ticket.shape_key, UNPADDED)
        if uneven:
            ticket.shape_key, ticket.family = (UNEVEN, ticket_id), ()
        return Request(ticket, self._name, inputs, outputs, request_id or "", params)

    def _shape_key(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """Equal for requests whose rows can be stacked: by their shapes, and by the content of what a batch shares."""
        key: list[int] = []
        for tensor, spec in zip(inputs, self._specs, strict=True):
            key.append(len(tensor.shape))
            key += [size for axis, size in enumerate(tensor.shape) if axis != spec.rows]
            if self._shares and spec.rows is None:
                key.append(int.from_bytes(blake2b(tensor.data, digest_size=16).digest(), "little"))
        return tuple(key)

    def _length(self, inputs: Sequence[Tensor]) -> int:
        return max(
            element_count(
                [
                    size
                    for axis, (size, want) in enumerate(zip(tensor.shape, spec.shape, strict=True))
                    if want < 0 and not (self._batched and axis == spec.rows)  # the axis of the rows is no part of a row
                ]
            )
            for tensor, spec in zip(inputs, self._specs, strict=True)
        )

    def output_index(self, name: str) -> int:
        """Raises InferenceError for an output that the model does not have."""
        index = self._outputs.get(name)
        if index is None:
            known = ", ".join(f"'{known}'" for known in self._outputs)
            raise invalid(f"unexpected inference output '{name}' for model '{self._name}'; its outputs are {known}")
        return index

    def raw_input(self, body: bytes) -> Tensor:
        """The tensor that a body without any header means: the model's one input, as many rows as the bytes make."""
        if len(self._specs) != 1:
            only = "Raw request must only have 1 input (found 1) to be deduced"  # the odd words are Triton's
            raise invalid(f"{_begin('')}{only} but got {len(self._specs)} inputs in '{self._name}' model configuration")
        spec = self._specs[0]
        if spec.dtype is DType.BYTES:
            shape: tuple[int, ...] = (1,) * len(spec.shape)
            return Tensor(spec.name, spec.dtype, shape, len(body).to_bytes(4, "little") + body)
        if spec.shape.count(-1) > 1:
            raise invalid(f"a raw binary request leaves the shape of input '{spec.name}', {_show(spec.shape)}, open")
        known_bytes = element_count([size for size in spec.shape if size >= 0]) * spec.dtype.itemsize
        if not known_bytes or len(body) % known_bytes:
            raise invalid(f"a raw binary request for '{self._name}' must be a multiple of {known_bytes} bytes, got {len(body)}")
        shape = tuple([len(body) // known_bytes if size < 0 else size for size in spec.shape])
        return Tensor(spec.name, spec.dtype, shape, body)

    def classes(self, index: int, count: int) -> Classes | None:
        """The form of an output that is asked for as its `count` best classes. Raises InferenceError."""
        spec = self._output_specs[index]
        return classes_of(spec, count, batched=self._batched, names=self._model.class_names)

    def check_size(self, name: str, dtype: DType, shape: Sequence[int], size: int, request_id: str) -> None:
        """Of an input that is not read yet. Raises InferenceError if the shape needs more or fewer bytes."""
        needed = element_count(shape[:MAX_DIMS]) * dtype.itemsize
        if needed != size and dtype is not DType.BYTES:
            sizes = f"Expected {needed}, got {size}"
            raise invalid(f"{_begin(request_id)}input byte size mismatch for input '{name}' for model '{self._name}'. {sizes}")

    def check_json_form(self, wanted: Sequence[int], binary: Sequence[bool | None], without: Sequence[DType]) -> None:
        """Refuse an output as JSON whose type has no JSON form. None: it is not in the reply."""
        for index, as_binary in zip(wanted, binary, strict=True):
            spec = self._output_specs[index]
            if as_binary is False and spec.dtype in without:
                how = f"Please use the binary data format for output {spec.name}"
                raise invalid(f"sending {spec.dtype.value} data via JSON is not supported. {how}")

    def spec_of(self, name: str) -> TensorSpec:
        """The declared input of this name. Raises InferenceError if there is none."""
        for spec in self._specs:
            if spec.name == name:
                return spec
        raise self._unknown_input(name)

    def _check_unless_known(self, index: int, tensor: Tensor, request_id: str | None) -> None:
        spec, passed = self._specs[index], (tensor.shape, len(tensor.data))
        if tensor.dtype is not spec.dtype or self._passed[index] != passed:
            self._check_slowly(tensor, spec, request_id)
            if spec.dtype is not DType.BYTES:
                self._passed[index] = passed

    def _check_slowly(self, tensor: Tensor, spec: TensorSpec, request_id: str | None) -> None:
        name, begin = spec.name, _begin(request_id)
        if tensor.dtype is not spec.dtype:
            raise invalid(
                f"{begin}inference input '{name}' data-type is '{tensor.dtype.value}', but model '{self._name}' expects "
                f"'{spec.dtype.value}'"
            )
        if any(size < 0 for size in tensor.shape):
            raise invalid(f"{begin}input '{name}': shape {list(tensor.shape)} has a negative dimension")
        if self._batched and spec.rows == 0 and not tensor.shape:
            wanted = f"the model expects {len(spec.shape)} dimensions: [{','.join(spec.sizes)}]"
            raise invalid(f"{begin}input '{name}' has no shape but model requires batch dimension for '{self._name}'; {wanted}")
        fits = len(tensor.shape) == len(spec.shape) and all(
            want in (-1, size) for size, want in zip(tensor.shape, spec.shape, strict=True)
        )
        if not fits:
            hint = ""
            if len(tensor.shape) != len(spec.shape):
                wanted = f"{len(spec.shape)}: [{','.join(spec.sizes)}]"
                hint = f" The shape has {len(tensor.shape)} dimensions, but the model expects {wanted}."
            elif spec.shape and spec.shape[0] not in (-1, tensor.shape[0]):
                hint = f" The model's batch size is fixed to {spec.shape[0]}."
            raise invalid(
                f"{begin}unexpected shape for input '{name}' for model '{self._name}'. Expected {_show(spec.shape)}, "
                f"got {_show(tensor.shape)}.{hint}"
            )
        if self._batched and spec.rows is not None and tensor.shape[spec.rows] < 1:
            raise invalid(f"{begin}input '{name}': shape {list(tensor.shape)} has no rows; at least one is required")
        count = element_count(tensor.shape)
        if spec.dtype is DType.BYTES:
            self._check_elements(tensor, count, begin, text=spec.text)
        elif len(tensor.data) != count * spec.dtype.itemsize:
            sizes = f"Expected {count * spec.dtype.itemsize}, got {len(tensor.data)} bytes"
            raise invalid(
                f"{begin}input byte size mismatch for input '{name}' for model '{self._name}'. {sizes} for shape "
                f"{list(tensor.shape)} of {spec.dtype.value}"
            )

    def _check_elements(self, tensor: Tensor, count: int, begin: str, *, text: bool) -> None:
        name = tensor.name
        if count > MAX_ELEMENTS:  # each becomes an object: seconds of blocked loop for 64 MiB of empty ones
            raise invalid(f"{begin}input '{name}': at most {MAX_ELEMENTS} BYTES elements are accepted, got {count}")
        found = 0
        try:
            for element in elements_of(tensor.data):
                if text:
                    str(element, "utf-8")
                found += 1
                if found > count:
                    break
        except UnicodeDecodeError as error:
            message = f"input '{name}': element {found} is not valid UTF-8, which this model requires: {error}"
            raise invalid(begin + message) from None
        except ValueError as error:
            raise invalid(f"{begin}input '{name}': {error}") from None
        of_model = f"for inference input '{name}' for model '{self._name}'"
        if found > count:
            raise invalid(f"{begin}unexpected number of string elements {found} {of_model}, expecting {count}")
        if found < count:
            raise invalid(f"{begin}expected {count} string elements {of_model}, got {found}")

    def _in_order(self, inputs: list[Tensor], request_id: str | None) -> list[Tensor]:
        by_name = self._by_name(inputs, request_id)
        for tensor in inputs:
            self.spec_of(tensor.name)
        return [by_name[spec.name] for spec in self._specs]

    @staticmethod
    def _by_name(inputs: Sequence[Tensor], request_id: str | None) -> dict[str, Tensor]:
        by_name: dict[str, Tensor] = {}
        for tensor in inputs:
            if by_name.setdefault(tensor.name, tensor) is not tensor:
                raise invalid(f"{_begin(request_id)}input '{tensor.name}' already exists in request")
        return by_name

    def _completed(self, inputs: Sequence[Tensor], request_id: str | None) -> list[Tensor]:
        """With defaults for what was left out."""
        given = self._by_name(inputs, request_id)
        left_out = [tensor for name, tensor in self._defaults.items() if name not in given]
        if len(inputs) + len(left_out) != len(self._specs):
            raise self._wrong_count(list(given), request_id)
        return [*inputs, *left_out]

    def _disagreeing(self, inputs: Sequence[Tensor], request_id: str | None) -> Exception:
        counts = [
            (spec.name, tensor.shape[spec.rows])
            for spec, tensor in zip(self._specs, inputs, strict=True)
            if spec.rows is not None
        ]
        first, rows = counts[0]
        name, other = next((name, count) for name, count in counts if count != rows)
        return invalid(
            f"{_begin(request_id)}input '{name}' batch size does not match other inputs for '{self._name}': "
            f"it has {other} rows where input '{first}' has {rows}"
        )

    def _wrong_count(self, given: Sequence[str], request_id: str | None) -> Exception:
        most, least = len(self._specs), len(self._specs) - len(self._defaults)
        wanted = f"{most} inputs" if most == least else f"number of inputs between {least} and {most}"
        missing = [spec.name for spec in self._specs if spec.name not in given and spec.default is None]
        what = f"missing required input(s) {_listed(missing)}. Please provide all required input(s)."
        if not missing:
            what = f"the model's inputs are {_listed([spec.name for spec in self._specs])}"
        return invalid(
            f"{_begin(request_id)}expected {wanted} but got {len(given)} inputs for model '{self._name}'. "
            f"Got input(s) {_listed(given)}, but {what}"
        )

    def _unknown_input(self, name: str) -> Exception:
        wanted = ", ".join(f"'{spec.name}'" for spec in self._specs)
        return invalid(f"unexpected inference input '{name}' for model '{self._name}'; its inputs are {wanted}")


def _fixed_tail(spec: TensorSpec, *, batched: bool) -> tuple[int, ...] | None:
    """The dimensions after the rows if all of them are fixed and rows come first; None sends the input the slow way."""
    tail = spec.shape[1:]
    return tail if batched and spec.rows == 0 and -1 not in tail else None


def _show(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape[:16])) + (",…]" if len(shape) > 16 else "]")


def _listed(names: Sequence[str]) -> str:
    return f"[{','.join(map(repr, names))}]"


def _begin(request_id: str | None) -> str:
    """What Triton says first of a request whose tensors do not suit its model."""
    return "" if request_id is None else f"[request id: {request_id or '<id_unknown>'}] "
