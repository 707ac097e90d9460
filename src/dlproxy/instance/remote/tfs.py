"""TensorFlow Serving's REST API, as a client: predict in the columnar form, and the signature from the metadata. Sans-I/O.

Called by remote.py. Not aware of: connections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.batch import Array
from dlproxy.instance.remote import json_values
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.codec import UpstreamModel, reported
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_channel import Heads, Lines
from dlproxy.instance.remote.http_client import Reply
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tfs_model import Definition, model_of
from dlproxy.message import DType, Request, TensorSpec


class _Definitions(Struct):
    signature_def: dict[str, Definition]


class _Details(Struct):
    signature_def: _Definitions


class _Metadata(Struct):
    metadata: _Details


class TfsCodec:
    """For one signature of one model at one address."""

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        heads = Heads(address, settings.headers)
        self._settings = settings
        self._signature_name = address.signature
        self.questions: Mapping[str, Lines] = {"model": heads.get(f"{address.path}/metadata")}
        self.readiness: Lines = heads.get(address.path)
        self._post = heads.post(f"{address.path}:predict") + b"content-type: application/json\r\ncontent-length: "

    def is_ready(self, reply: Reply) -> bool:
        """A version is available. KServe, which shares the path, says `ready`."""
        if reply.status != 200:
            return False
        try:
            said = msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if not isinstance(said, dict):
            return False
        versions = said.get("model_version_status")
        if isinstance(versions, list):
            return any(isinstance(version, dict) and version.get("state") == "AVAILABLE" for version in versions)
        return said.get("ready") in (True, "True", "true")

    def described(self, replies: Mapping[str, Reply]) -> UpstreamModel:
        reply = replies["model"]
        if (refused := reply.refusal()) is not None:
            raise refused
        try:
            known = msgspec.json.decode(reply.body, type=_Metadata).metadata.signature_def.signature_def
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError(f"the upstream's description of the model is not understood: {error}") from None
        return model_of(known, self._signature_name, self._settings, binary=False)

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        inputs: dict[str, Any] = {}
        finite = True
        for index, spec in enumerate(model.signature.inputs):
            array = json_values.gathered(spec, index, requests)
            finite = finite and json_values.is_finite(array)
            if spec.dtype is DType.BYTES:
                array = json_values.texts_or_base64(array)
            inputs[spec.name] = array.tolist()
        body = json_values.encode({"signature_name": self._signature_name, "inputs": inputs}, finite=finite)
        return [b"%b%d\r\n\r\n" % (self._post, len(body)), body]

    def decode(self, model: UpstreamModel, reply: Reply, rows: int) -> list[Array]:
        try:
            said = json_values.decode(reply.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError(f"the upstream's answer is not JSON: {error}") from None
        given = said.get("outputs") if isinstance(said, dict) else None
        specs = model.signature.outputs
        if given is None:
            raise UpstreamError("the upstream's answer has no 'outputs'")
        if len(specs) == 1:  # its name is left out
            given = {specs[0].name: given}
        if not isinstance(given, dict) or any(spec.name not in given for spec in specs):
            names = ", ".join(given) if isinstance(given, dict) else type(given).__name__
            raise UpstreamError(
                f"the upstream's answer lacks an output: declared are {', '.join(s.name for s in specs)}, got {names}"
            )
        expected = rows if model.signature.batched else None
        return [reported(spec, spec.dtype, _array(spec, given[spec.name]), expected) for spec in specs]


def _array(spec: TensorSpec, data: Any) -> Array:
    try:
        return json_values.to_array(spec, data, None)
    except (ValueError, TypeError, OverflowError) as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None
