"""The gRPC codecs on bytes: recorded ones of NVIDIA's and TensorFlow's own messages, made-up ones, and none.

Recorded with the generated messages of tritonclient 2.73, tensorflow 2.21 and tensorflow-serving-api 2.21.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.instance.remote.address import parse_address
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.remote.failures import UpstreamError, grpc_refusal
from dlproxy.instance.remote.oip_grpc import OipGrpcCodec
from dlproxy.instance.remote.rpc import Rpc, RpcReply
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tfs_grpc import TfsGrpcCodec
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, Signature, TensorSpec
from dlproxy.protos.oip import oip
from dlproxy.protos.raw import before, take_out
from dlproxy.protos.tfs import SIGNATURES, tfs
from tests.instance.remote_cases import request

OIP = OipGrpcCodec(parse_address("grpc://h:8001/v2/models/m/versions/3"), RemoteSettings())
TFS = TfsGrpcCodec(parse_address("grpc://h:8500/v1/models/m/versions/3"), RemoteSettings())
X, TEXT, Y = TensorSpec("x", DType.FP32, (-1, 2)), TensorSpec("t", DType.BYTES, (-1,)), TensorSpec("y", DType.FP16, (-1, 3))
HALF = np.array([[1, 2, 3]], np.float16)
REFUSED = RpcReply("UNIMPLEMENTED", words="no such method")


def _model(*outputs: TensorSpec, inputs: Sequence[TensorSpec] = (X,), batched: bool = True) -> UpstreamModel:
    return UpstreamModel(Signature(tuple(inputs), outputs or (Y,), batched, "p"), 8, binary=True)


def _reply(message: Any) -> RpcReply:
    return RpcReply("OK", message if isinstance(message, bytes) else message.SerializeToString())


def _recorded(text: str) -> RpcReply:
    return _reply(bytes.fromhex(text))


def _sent(ask: Rpc) -> str:
    return b"".join(ask.parts).hex()


# Open Inference Protocol: what Triton says

METADATA = _recorded(
    "0a016d1201311201331a106f6e6e7872756e74696d655f6f6e6e7822160a01781204465033321a0bffffffffffffffffff010222160a0174120542595445"
    "531a0affffffffffffffffff012a160a01791204465031361a0bffffffffffffffffff0103"
)
CONFIG = _recorded(
    "0a350a016d12106f6e6e7872756e74696d655f6f6e6e7820102a060a01782201023a0210015a0210648a010b6f6e6e7872756e74696d65"
)


def _described(metadata: RpcReply = METADATA, config: RpcReply = CONFIG, **settings: Any) -> UpstreamModel:
    codec = OipGrpcCodec(parse_address("grpc://h:8001/v2/models/m"), RemoteSettings(**settings))
    return codec.described({"model": metadata, "config": config})


def test_asks_triton_what_its_own_client_asks() -> None:
    assert OIP.readiness.method == "/inference.GRPCInferenceService/ModelReady"
    assert {ask.method.rpartition("/")[2] for ask in OIP.questions.values()} == {"ModelMetadata", "ModelConfig"}
    assert {_sent(ask) for ask in (OIP.readiness, *OIP.questions.values())} == {"0a016d120133"}


def test_reads_what_triton_says() -> None:
    model = _described()
    assert model.signature == Signature((X, TEXT), (Y,), True, "onnxruntime_onnx")
    assert (model.max_batch, model.binary) == (16, True)
    assert _described(config=REFUSED).max_batch is None
    assert not _described(batched=False).signature.batched
    assert not _described(config=_reply(oip.ModelConfigResponse(config=oip.ModelConfig(name="m")))).signature.batched


def test_models_that_cannot_be_served_are_refused() -> None:
    with pytest.raises(ModelError, match="keeps state"):
        _described(config=_recorded("0a090a016d20046a020805"))


def test_a_model_that_answers_in_parts_is_asked_so_and_alone() -> None:
    model = _described(config=_recorded("0a0a0a016d20049a01020801"))
    assert (model.signature.streams, model.signature.batched) == (True, False)
    assert not model.same_as(_described(batched=False))


def test_descriptions_that_are_none_fail() -> None:
    unknown = oip.ModelMetadataResponse()
    unknown.inputs.add(name="x", datatype="STRING")
    for reply, clue in (
        (_reply(b"\xff"), "cannot be read as inference.ModelMetadataResponse"),
        (_reply(unknown), "'STRING' is not a valid"),
    ):
        with pytest.raises(UpstreamError, match=clue):
            _described(reply)
    with pytest.raises(UpstreamError, match="answered UNIMPLEMENTED: no such method"):
        _described(REFUSED)
    with pytest.raises(ModelError, match="no inputs"):
        _described(_reply(b""))


def test_readiness_of_the_open_inference_protocol() -> None:
    for reply, ready in ((_recorded("0801"), True), (_reply(b""), False), (REFUSED, False)):
        assert OIP.is_ready(reply) is ready


# Open Inference Protocol: batches


def test_requests_are_the_bytes_that_tritons_own_client_sends() -> None:
    requests = [
        request(("x", DType.FP32, np.full((rows, 2), rows, np.float32)), ("t", DType.BYTES, texts))
        for rows, texts in ((1, [b"a"]), (2, [b"\xff", b""]))
    ]
    ask = OIP.encode(_model(inputs=(X, TEXT)), requests)
    assert ask.method == "/inference.GRPCInferenceService/ModelInfer"
    assert _sent(ask) == (
        "0a016d1201332a0d0a0178120446503332" + "1a0203022a0d0a0174120542595445531a01033a18"
        "0000803f0000803f00000040000000400000004000000040" + "3a0e010000006101000000ff00000000"
    )
    parts = [each.inputs[index].data for index in (0, 1) for each in requests]
    assert [part for part in ask.parts if any(part is each for each in parts)] == parts, "copied"


def test_raw_answers_are_views_found_by_name() -> None:
    reply = _recorded(
        "0a016d1201311a013722080a016b12031a01762a0c0a017a1204494e54381a01012a160a01791204465031361a02010322070a0161120210033201053206"
        "003c00400042"
    )
    (got,) = OIP.decode(_model(), reply, 1)
    assert np.array_equal(got, HALF)
    assert np.shares_memory(got, np.frombuffer(reply.message, np.uint8)), "copied"


def test_typed_answers_are_understood() -> None:
    reply = _recorded("0a016d2a240a01791205494e5436341a01022a151a13808080808080808040ffffffffffffffffff01")
    (got,) = OIP.decode(_model(TensorSpec("y", DType.INT64, (-1,))), reply, 2)
    assert got.tolist() == [2**62, -1]
    texts = oip.ModelInferResponse()
    texts.outputs.add(name="y", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"\xff", b""])
    (got,) = OIP.decode(_model(TensorSpec("y", DType.BYTES, (-1,))), _reply(texts), 2)
    assert got.tolist() == [b"\xff", b""]


def _answer(
    datatype: str = "FP16", shape: Sequence[int] = (1, 3), *, raw: Sequence[bytes] = (bytes(6),), name: str = "y"
) -> Any:
    answer = oip.ModelInferResponse(raw_output_contents=raw)
    answer.outputs.add(name=name, datatype=datatype, shape=shape)
    return answer


def _overflow() -> Any:
    answer = _answer("INT8", [1], raw=())
    answer.outputs[0].contents.int_contents.append(300)
    return answer


ODD = [
    (b"\xff\xff", "cannot be read as inference.ModelInferResponse: no number ends"),
    (b"\x2a\x05a", "cannot be read as inference.ModelInferResponse: field 5 is said to have 5 bytes, 1 are left"),
    (b"\x0b", "cannot be read as inference.ModelInferResponse: wire type 3"),
    (b"\x2a\x02\xff\xff", "cannot be read as inference.ModelInferResponse$"),
    (_answer(name="z"), "gave no output 'y'; it gave z"),
    (_answer("FP32"), "as FP32, it declares FP16"),
    (_answer(shape=[2, 3], raw=[bytes(12)]), r"shape \[2, 3\] for a batch of 1 rows"),
    (_answer(shape=[1, 4], raw=[bytes(8)]), r"shape \[1, 4\]"),
    (_answer(shape=[-1, -3]), "cannot be read: its shape is"),
    (_answer(raw=[bytes(5)]), "5 bytes do not make the shape"),
    (_answer(raw=[bytes(6), b""]), "2 raw contents for 1 outputs"),
    (_answer(raw=[]), "it has no contents"),
]


@pytest.mark.parametrize(("message", "clue"), ODD)
def test_answers_that_are_none_fail_with_a_reason(message: Any, clue: str) -> None:
    with pytest.raises(UpstreamError, match=clue):
        OIP.decode(_model(), _reply(message), 1)


def test_typed_numbers_are_taken_exactly() -> None:
    with pytest.raises(UpstreamError, match="do not fit INT8"):
        OIP.decode(_model(TensorSpec("y", DType.INT8, (-1,))), _reply(_overflow()), 1)


@given(st.binary(max_size=60))
def test_no_answer_makes_them_stumble(message: bytes) -> None:
    for codec in (OIP, TFS):
        with pytest.raises(UpstreamError):
            codec.decode(_model(), _reply(message), 1)
    for codec, question in ((OIP, "config"), (TFS, "model")):
        replies = {"model": METADATA, question: _reply(message)}
        try:
            codec.described(replies)
        except ModelError:
            continue


# TensorFlow Serving

TFS_METADATA = _recorded(
    "0a070a016d12020803128b020a0d7369676e61747572655f64656612f9010a36747970652e676f6f676c65617069732e636f6d2f74656e736f72666c6f77"
    "2e73657276696e672e5369676e61747572654465664d617012be010a8e010a0f73657276696e675f64656661756c74127b0a1f0a0178121a0a03783a3010"
    "011a11120b08ffffffffffffffffff01120208020a1b0a017412160a03743a3010071a0d120b08ffffffffffffffffff01121f0a0179121a0a03793a3010"
    "131a11120b08ffffffffffffffffff01120208031a1a74656e736f72666c6f772f73657276696e672f707265646963740a2b0a155f5f73617665645f6d6f"
    "64656c5f696e69745f6f70121212100a026f70120a0a044e6f4f701a021801"
)


def test_asks_tensorflow_serving_where_it_answers() -> None:
    assert TFS.readiness.method == "/tensorflow.serving.ModelService/GetModelStatus"
    assert TFS.questions["model"].method == "/tensorflow.serving.PredictionService/GetModelMetadata"
    for ask, kind in ((TFS.readiness, tfs.GetModelStatusRequest), (TFS.questions["model"], tfs.GetModelMetadataRequest)):
        spec = kind.FromString(b"".join(ask.parts)).model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "")


def test_reads_what_tensorflow_serving_says() -> None:
    model = TFS.described({"model": TFS_METADATA})
    assert model.signature == Signature((TEXT, X), (Y,), True, "tensorflow_savedmodel")
    other = TfsGrpcCodec(parse_address("grpc://h:1/v1/models/m?signature=__saved_model_init_op"), RemoteSettings())
    with pytest.raises(ModelError, match="'op' is type 0"):
        other.described({"model": TFS_METADATA})
    missing = TfsGrpcCodec(parse_address("grpc://h:1/v1/models/m?signature=classify"), RemoteSettings())
    with pytest.raises(ModelError, match=r"no signature 'classify'; it has .*serving_default"):
        missing.described({"model": TFS_METADATA})


@pytest.mark.parametrize("kind", ["coo_sparse", "composite_tensor"])
def test_sparse_and_ragged_tensors_are_refused(kind: str) -> None:
    definition = tfs.SignatureDef()
    definition.inputs["x"].dtype = 1
    getattr(definition.inputs["x"], kind).SetInParent()
    packed = tfs.SignatureDefMap(signature_def={"serving_default": definition}).SerializeToString()
    with pytest.raises(ModelError, match="'x' is sparse or ragged"):
        TFS.described({"model": _reply(tfs.GetModelMetadataResponse(metadata={SIGNATURES: tfs.Any(value=packed)}))})


def test_readiness_of_tensorflow_serving() -> None:
    status = _recorded("0a0c080210321a061204676f6e650a040803101e")  # one version has ended, another is available
    for reply, ready in (
        (status, True),
        (_recorded("0a0c080210321a061204676f6e65"), False),
        (_reply(b""), False),
        (REFUSED, False),
    ):
        assert TFS.is_ready(reply) is ready


def test_requests_are_the_bytes_that_tensorflows_own_messages_make() -> None:
    requests = [request(("x", DType.FP32, np.full((rows, 2), rows, np.float32))) for rows in (1, 2)]
    ask = TFS.encode(_model(), requests)
    assert ask.method == "/tensorflow.serving.PredictionService/Predict"
    assert _sent(ask) == (
        "0a180a016d120208031a0f73657276696e675f64656661756c74122b0a017812260801120812020803120208022218"
        "0000803f0000803f00000040000000400000004000000040"
    )
    parts = [each.inputs[0].data for each in requests]
    assert [part for part in ask.parts if any(part is each for each in parts)] == parts, "copied"
    labelled = TfsGrpcCodec(parse_address("grpc://h:1/v1/models/m/labels/stable?signature=sig"), RemoteSettings())
    texts = labelled.encode(_model(inputs=[TEXT]), [request(("t", DType.BYTES, [b"a", b"\xff"]))])
    assert _sent(texts) == "0a100a016d1a037369672206737461626c6512130a0174120e08071204120208024201614201ff"


ANSWERS = [  # as tensorflow's make_tensor_proto has them
    (DType.FP32, "0a1f0a0179121a080112081202080112020803220c0000803f000020c00000404012030a016d", [1.0, -2.5, 3.0]),
    (DType.FP16, "0a190a017912140813120812020801120208032206003c00c1ff7b12030a016d", [1.0, -2.5, 65504.0]),
    (DType.BF16, "0a190a01791214080e120812020801120208032206c03f00c0404012030a016d", [0x3FC0, 0xC000, 0x4040]),
    (
        DType.UINT64,
        "0a2b0a01791226081712081202080112020803221800000000000000800100000000000000" + "0" * 16 + "12030a016d",
        [2**63, 1, 0],
    ),
    (DType.INT8, "0a160a017912110806120812020801120208032203ff010012030a016d", [-1, 1, 0]),
    (DType.BOOL, "0a160a01791211080a120812020801120208035a0301000112030a016d", [True, False, True]),
    (DType.BYTES, "0a190a017912140807120812020801120208034201ff420042016212030a016d", [b"\xff", b"", b"b"]),
]


@pytest.mark.parametrize(("dtype", "recorded", "values"), ANSWERS, ids=[each[0].value for each in ANSWERS])
def test_answers_of_tensorflows_own_messages_are_read(dtype: DType, recorded: str, values: list[Any]) -> None:
    (got,) = TFS.decode(_model(TensorSpec("y", dtype, (-1, 3))), _recorded(recorded), 1)
    assert got.tolist() == [values]


VALUES = [
    (DType.FP16, 19, "half_val", [0x3C00, 0xC100], [1.0, -2.5]),
    (DType.BF16, 14, "half_val", [0x3FC0, 0xFFFF], [0x3FC0, 0xFFFF]),
    (DType.FP64, 2, "double_val", [0.1, -0.0], [0.1, -0.0]),
    (DType.INT16, 5, "int_val", [-1, 7], [-1, 7]),
    (DType.UINT8, 4, "int_val", [255, 0], [255, 0]),
    (DType.UINT32, 22, "uint32_val", [2**32 - 1, 0], [2**32 - 1, 0]),
    (DType.UINT64, 23, "uint64_val", [2**64 - 1, 0], [2**64 - 1, 0]),
    (DType.INT64, 9, "int64_val", [-(2**63), 0], [-(2**63), 0]),
    (DType.INT32, 3, "int_val", [5], [5, 5]),  # one stands for all
]


@pytest.mark.parametrize(("dtype", "number", "field", "values", "expected"), VALUES, ids=[each[0].value for each in VALUES])
def test_typed_values_are_read(dtype: DType, number: int, field: str, values: list[Any], expected: list[Any]) -> None:
    (got,) = TFS.decode(_model(TensorSpec("y", dtype, (-1,))), _tensor(number, [2], **{field: values}), 2)
    assert got.tolist() == expected


def _tensor(dtype: int, shape: Sequence[int], **fields: Any) -> RpcReply:
    tensor = tfs.TensorProto(dtype=dtype, **fields)
    tensor.tensor_shape.dim.extend(tfs.TensorShapeProto.Dim(size=size) for size in shape)
    return _reply(tfs.PredictResponse(outputs={"y": tensor}))


@pytest.mark.parametrize(
    ("reply", "clue"),
    [
        (_reply(b"\x0a\x05a"), "cannot be read as tensorflow.serving.PredictResponse"),
        (_reply(b""), "gave no output 'y'; it gave none"),
        (_tensor(1, [2]), "as FP32, it declares INT8"),
        (_tensor(8, [2]), "as type 8, it declares INT8"),
        (_tensor(6, [3], int_val=[1, 2, 3]), r"shape \[3\] for a batch of 2 rows"),
        (_tensor(6, [2], int_val=[1, 2, 3]), "cannot be read"),
        (_tensor(6, [2], int_val=[1, 300]), "do not fit INT8"),
        (_tensor(6, [2], tensor_content=b"abc"), "3 bytes do not make the shape"),
        (_tensor(6, [-2], int_val=[1, 2]), "its shape is"),
    ],
)
def test_other_answers_of_tensorflow_serving_fail_with_a_reason(reply: RpcReply, clue: str) -> None:
    with pytest.raises(UpstreamError, match=clue) as caught:
        TFS.decode(_model(TensorSpec("y", DType.INT8, (-1,))), reply, 2)
    assert caught.value.failure.kind is FailureKind.MODEL_FAILED


def test_scalars_keep_their_shape() -> None:
    scalar = _model(TensorSpec("y", DType.INT32, ()), inputs=[TensorSpec("x", DType.INT32, ())], batched=False)
    given = [request(("x", DType.INT32, np.int32(7)))]
    assert oip.ModelInferRequest.FromString(b"".join(OIP.encode(scalar, given).parts)).inputs[0].shape == []
    sent = tfs.PredictRequest.FromString(b"".join(TFS.encode(scalar, given).parts)).inputs["x"]
    assert (list(sent.tensor_shape.dim), sent.HasField("tensor_shape"), sent.tensor_content) == ([], True, b"\7\0\0\0")
    (got,) = TFS.decode(scalar, _tensor(3, [], int_val=[9]), 1)
    assert got.shape == ()
    assert got == 9


# Refusals


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        ("INVALID_ARGUMENT", "bad", FailureKind.INVALID_ARGUMENT),
        ("FAILED_PRECONDITION", "bad", FailureKind.INVALID_ARGUMENT),
        ("ABORTED", "round", FailureKind.LOOP),
        ("OUT_OF_RANGE", "bad", FailureKind.INVALID_ARGUMENT),
        ("RESOURCE_EXHAUSTED", "queue full", FailureKind.OVERLOADED),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)", FailureKind.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (9 vs. 4)", FailureKind.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4: 9", FailureKind.TOO_LARGE),
        ("INTERNAL", "CUDA error", FailureKind.MODEL_FAILED),
        ("INTERNAL", "Received RST_STREAM with error code 2", FailureKind.UNAVAILABLE),
        ("UNKNOWN", "Stream removed", FailureKind.UNAVAILABLE),
        ("UNKNOWN", "oops", FailureKind.MODEL_FAILED),
        ("UNIMPLEMENTED", "", FailureKind.UNSUPPORTED),
        *[
            (status, "no", FailureKind.UNAVAILABLE)
            for status in (
                "UNAVAILABLE",
                "NOT_FOUND",
                "UNAUTHENTICATED",
                "PERMISSION_DENIED",
                "ALREADY_EXISTS",
                "DEADLINE_EXCEEDED",
            )
        ],
    ],
)
def test_a_status_says_whose_fault_it_was(status: str, words: str, kind: FailureKind) -> None:
    error = grpc_refusal(status, words)
    assert error.failure.kind is kind
    own = kind is FailureKind.MODEL_FAILED
    assert str(error) == (words if own else f"the upstream answered {status}: {words or 'without a reason'}")
    assert not error.gone
    assert (error.failure.retry_after_s is None) is (kind not in (FailureKind.UNAVAILABLE, FailureKind.OVERLOADED))


# Bytes around protobuf


@given(st.lists(st.binary(max_size=300)), st.text(), st.lists(st.integers(-(2**63), 2**63 - 1)), st.floats(width=32))
def test_large_fields_are_written_and_found_as_protobuf_does(
    raw: list[bytes], text: str, shape: list[int], value: float
) -> None:
    head = oip.ModelInferResponse(model_name=text)
    head.outputs.add(name=text, shape=shape).contents.fp32_contents.append(value)
    whole = oip.ModelInferResponse(raw_output_contents=raw)
    whole.MergeFrom(head)
    parts = [part for each in raw for part in (before(6, len(each)), each)]
    encoded = head.SerializeToString() + b"".join(parts)
    assert encoded == whole.SerializeToString()
    rest, taken = take_out(encoded, 6)
    assert rest == head.SerializeToString()
    assert taken == raw


@given(st.binary(max_size=80))
def test_what_is_no_message_is_said_to_be_none(data: bytes) -> None:
    try:
        rest, taken = take_out(data, 6)
    except ValueError:
        return
    assert len(rest) + sum(map(len, taken)) <= len(data)
    assert sum(len(before(6, len(each))) + len(each) for each in taken) + len(rest) <= len(data)
