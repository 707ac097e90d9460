"""dlproxy as a library: the same lanes, batching and checks without sockets.

Not aware of: HTTP.
"""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy import service, tensors
from dlproxy.config import ConfigError, ModelConfig, ServerConfig, check_device, check_sticky, parse_slo
from dlproxy.message import DType, Tensor, invalid
from dlproxy.serve.assemble import LoadedModel, load_model, share_cores, unload_model
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.checks import RequestChecker


class Model:
    """A model to serve. `name` defaults to the file's stem; further settings are those of [models.NAME] in dlproxy.toml."""

    def __init__(self, path: str | Path, *, name: str = "", slo: str = "", **settings: Any) -> None:
        """Raises ConfigError for an unknown setting or a value out of its range."""
        self.name = name or Path(path).stem.partition(":")[0]
        parse_slo(slo)
        try:
            self.config = msgspec.convert({"path": str(path), "slo": slo, **settings}, ModelConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"model '{self.name}': {error}") from None
        check_sticky(self.config)
        check_device(self.config)


class Proxy:
    """`async with Proxy([Model("digits.onnx", slo="p99=20ms")]) as proxy: await proxy.infer("digits", {"image": x})`"""

    def __init__(self, models: Sequence[Model], *, drain_s: float = 30.0) -> None:
        """Raises ConfigError if two models have the same name and version."""
        keys = [(model.name, model.config.version) for model in models]
        for name, version in keys:
            if keys.count((name, version)) > 1:
                raise ConfigError(
                    f"two models are named '{name}' in version {version}; give them names or versions of their own"
                )
        self._models = models
        self._drain_s = drain_s
        self._catalog = Catalog()
        self._checkers: dict[tuple[str, str], RequestChecker] = {}
        self._loaded: list[LoadedModel] = []

    async def __aenter__(self) -> "Proxy":
        """Loads and warms up every model. Raises ModelError if one cannot be loaded."""
        try:
            for model in self._models:
                loaded = await load_model(model.name, model.config)
                self._loaded.append(loaded)
                self._catalog.add(loaded.served)
                self._checkers[model.name, model.config.version] = RequestChecker(loaded.served)
            share_cores(self._loaded, ServerConfig())
        except BaseException:  # cancellation too: what is up already has threads
            await self._unload()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._unload()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> dict[str, NDArray[Any]]:
        """One request; axis 0 of every input is the batch. Numbers of the declared kind are converted to the declared type,
        those of another kind (float for an integer) are refused. BF16 goes in and comes out as float32. BYTES take bytes and
        str, which goes as UTF-8; they come out as bytes, or as str where the model declares text.

        Returns the named outputs (all if none is named). Raises InferenceError. Cancelling cancels the request.
        """
        served = self._catalog.get(model, version)
        checker = self._checkers[served.name, served.version]
        wanted = [checker.output_index(name) for name in outputs] or checker.all_outputs
        params: dict[str, Any] = {"priority": priority} if priority else {}
        if timeout_s is not None and timeout_s != inf:
            params["timeout"] = max(1, round(timeout_s * 1e6))
        request = checker.request(
            [_tensor(name, checker.spec_of(name).dtype, value) for name, value in inputs.items()],
            wanted,
            ticket_id=next(self._catalog.ticket_ids),
            request_id="",
            params=params,
            now=monotonic(),
        )
        request.ticket.tenant = tenant
        response = await service.infer(served.service, request)
        specs = served.signature.outputs
        return {
            tensor.name: _array(tensor, text=specs[index].text) for index, tensor in zip(wanted, response.outputs, strict=True)
        }

    @property
    def models(self) -> list[LoadedModel]:
        """What is up, with what the warm-ups found."""
        return self._loaded

    async def _unload(self) -> None:
        while self._loaded:
            await unload_model(self._loaded.pop(), self._drain_s)


def _array(tensor: Tensor, *, text: bool) -> NDArray[Any]:
    array = tensors.to_array(tensor.dtype, tensor.shape, tensor.data, text=text)
    return tensors.bf16_to_fp32(array) if tensor.dtype is DType.BF16 else array


def _tensor(name: str, dtype: DType, value: Any) -> Tensor:
    if dtype is DType.BYTES:
        return _opaque(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise invalid(f"input '{name}' makes no array: {error}") from None
    if dtype is DType.BF16:
        array = tensors.fp32_to_bf16(_converted(name, array, np.dtype(np.float32), dtype))
    else:
        array = _converted(name, array, tensors.NUMPY[dtype], dtype)
    return Tensor(name, dtype, array.shape, tensors.to_bytes(dtype, array))


def _opaque(name: str, value: Any) -> Tensor:
    """BYTES as they are given: numpy's own strings, which it would make of lists too, lose zeros. Raises InferenceError."""
    try:
        fixed_width = _strings_in(value)
        array = tensors.opaque(np.asarray(value, object) if fixed_width is None else fixed_width)
    except ValueError as error:
        raise invalid(f"input '{name}': {error}") from None
    return Tensor(name, DType.BYTES, array.shape, tensors.to_bytes(DType.BYTES, array))


def _strings_in(value: Any) -> NDArray[Any] | None:
    """The first numpy array of strings of fixed width, itself or somewhere in nested lists."""
    if isinstance(value, list | tuple):
        return next((found for found in map(_strings_in, value) if found is not None), None)
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "SU" else None


def _converted(name: str, array: NDArray[Any], wanted: np.dtype[Any], dtype: DType) -> NDArray[Any]:
    """Of the wanted type: numbers to floats by rounding, integers to integers that hold them. Raises InferenceError."""
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}[wanted.kind]:
        raise invalid(f"input '{name}' is {array.dtype}, which is not a kind of {dtype.value}; convert it first")
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if wanted.kind != "f" and (converted != array).any():
        raise invalid(f"input '{name}' has numbers that do not fit {dtype.value}")
    if wanted.kind == "f" and not (np.isfinite(converted) == np.isfinite(array)).all():
        raise invalid(f"input '{name}' has numbers that are too large for {dtype.value}")
    return converted
