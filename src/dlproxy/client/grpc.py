"""The client's way over gRPC: one connection, tensors as raw contents, answers in parts by ModelStreamInfer. A Transport.

Called by awaited.py. Not aware of: when a call is tried again.
"""

import asyncio
from typing import Any

from dlproxy.client.address import Place
from dlproxy.client.ask import Ask, CallError, ListedModel, as_given, of_upstream, silent, unfit
from dlproxy.client.settings import ClientSettings
from dlproxy.instance.remote.channel import VARIANT
from dlproxy.instance.remote.failures import UpstreamError, grpc_failure_of
from dlproxy.instance.remote.grpc_channel import GrpcChannel, GrpcMessages
from dlproxy.instance.remote.oip_grpc import array_of, metadata_of, outputs_of, part_of
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.instance.remote.rpc import OK, Part, Rpc, RpcReply, parsed
from dlproxy.message import DType, TensorSpec, invalid
from dlproxy.protos.oip import RAW_INPUTS, SERVICE, oip
from dlproxy.protos.raw import before
from dlproxy.tensors import Answer

MOST_SILENT_S = 1e6  # between messages; who reads has its own patience
FINAL = "triton_final_response"


class GrpcTransport:
    """One channel."""

    def __init__(self, place: Place, settings: ClientSettings) -> None:
        """Raises ModelError for headers that cannot be sent, and for authorities that cannot be used."""
        self._channel = GrpcChannel(place.address, settings.remote, lambda: None)

    async def infer(self, ask: Ask, left_s: float) -> Answer:
        rpc = Rpc(f"{SERVICE}/ModelInfer", _infer_parts(ask), left_s if ask.deadline else None, ask.headers(left_s))
        reply = await self._fetch(rpc, left_s)
        answer, _ = _answer(reply.message)
        answer.cache, answer.variant = reply.cache, reply.variant
        return answer

    async def stream(self, ask: Ask, left_s: float) -> "GrpcParts":
        rpc = Rpc(f"{SERVICE}/ModelStreamInfer", _infer_parts(ask), None, ask.headers(left_s))
        return GrpcParts(self._channel.stream(rpc, timeout_s=MOST_SILENT_S))

    async def metadata(self, model: str, version: str, left_s: float) -> Metadata:
        reply = await self._call("ModelMetadata", oip.ModelMetadataRequest(name=model, version=version), left_s)
        try:
            return metadata_of(reply.message)
        except UpstreamError as error:
            raise of_upstream(error) from None

    async def models(self, left_s: float) -> list[ListedModel]:
        reply = await self._call("RepositoryIndex", oip.RepositoryIndexRequest(), left_s)
        told = _parsed(oip.RepositoryIndexResponse, reply)
        return [ListedModel(each.name, each.version, each.state, each.reason) for each in told.models]

    async def ready(self, model: str, version: str, left_s: float) -> bool:
        if model:
            reply = await self._call("ModelReady", oip.ModelReadyRequest(name=model, version=version), left_s)
            return bool(_parsed(oip.ModelReadyResponse, reply).ready)
        reply = await self._call("ServerReady", oip.ServerReadyRequest(), left_s)
        return bool(_parsed(oip.ServerReadyResponse, reply).ready)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: str, message: Any, left_s: float) -> RpcReply:
        return await self._fetch(Rpc(f"{SERVICE}/{method}", [message.SerializeToString()]), left_s)

    async def _fetch(self, rpc: Rpc, left_s: float) -> RpcReply:
        """An answer with status OK. Raises CallError."""
        try:
            reply = await self._channel.fetch(rpc, timeout_s=left_s)
        except UpstreamError as error:
            raise of_upstream(error) from None
        return _checked(reply)


class GrpcParts:
    """The messages of one ModelStreamInfer call. Parts."""

    def __init__(self, messages: GrpcMessages) -> None:
        self._messages = messages

    async def next(self, left_s: float) -> Answer | None:
        deadline_at = asyncio.get_running_loop().time() + left_s
        while (reply := await self._message(deadline_at)) is not None:
            try:
                part = part_of(_checked(reply).message)
            except UpstreamError as error:
                raise of_upstream(error) from None
            answer, final = (Answer(), True) if part is None else _answer(part)
            if answer or not final:  # a final response may be empty: it only says that nothing follows
                return answer
        return None

    async def _message(self, deadline_at: float) -> RpcReply | None:
        future: asyncio.Future[RpcReply | UpstreamError | None] = asyncio.get_running_loop().create_future()
        self._messages.ask(lambda outcome: None if future.done() else future.set_result(outcome))
        try:
            async with asyncio.timeout_at(deadline_at):
                outcome = await future
        except TimeoutError:
            self._messages.stop()
            raise silent() from None
        if isinstance(outcome, UpstreamError):
            raise of_upstream(outcome)
        return outcome

    async def close(self) -> None:
        self._messages.stop()


def _checked(reply: RpcReply) -> RpcReply:
    """Raises CallError for another status than OK."""
    if reply.status != OK:
        raise CallError(grpc_failure_of(reply.status, reply.words), 0.0 if reply.status == "UNAVAILABLE" else None)
    return reply


def _infer_parts(ask: Ask) -> list[Part]:
    message = oip.ModelInferRequest(model_name=ask.model, model_version=ask.version)
    data: list[Part] = []
    for tensor in ask.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.dtype.value, shape=tensor.shape)
        data += [before(RAW_INPUTS, len(tensor.data)), tensor.data]
    for name in ask.outputs:
        message.outputs.add(name=name)
    for parameter, value in ask.sequence.items():
        message.parameters[parameter].CopyFrom(_parameter(value))
    return [message.SerializeToString(), *data]


def _parameter(value: int | str | bool) -> Any:
    """Raises InferenceError for a number that no parameter can carry."""
    if isinstance(value, bool):
        return oip.InferParameter(bool_param=value)
    if isinstance(value, str):
        return oip.InferParameter(string_param=value)
    if not 0 <= value < 2**64:
        raise invalid(f"sequence_id is {value}; it must be an integer from 0 to 2**64 - 1, or a text")
    return oip.InferParameter(uint64_param=value) if value >= 2**63 else oip.InferParameter(int64_param=value)


def _answer(message: bytes) -> tuple[Answer, bool]:
    """The outputs of a ModelInferResponse, and whether it says to be the last."""
    try:
        said, given = outputs_of(message)
        answer = Answer(variant=said.parameters[VARIANT].string_param if VARIANT in said.parameters else "")
        for name, (output, data) in given.items():
            dtype = DType(output.datatype)
            answer[name] = as_given(dtype, array_of(TensorSpec(name, dtype, tuple(output.shape)), output, data))
    except UpstreamError as error:
        raise of_upstream(error) from None
    except ValueError as error:
        raise unfit(str(error)) from None
    return answer, FINAL in said.parameters and said.parameters[FINAL].bool_param


def _parsed(kind: Any, reply: RpcReply) -> Any:
    try:
        return parsed(kind, reply.message)
    except UpstreamError as error:
        raise of_upstream(error) from None
