"""TensorFlow Serving's PredictionService, on calls without sockets.

Requests and answers in hexadecimal were recorded with tensorflow-serving-api 2.21 and tensorflow 2.21. Texts are quoted from
tensorflow_serving/servables/tensorflow (predict_util.cc, classifier.cc, multi_inference.cc) and server_core.cc.
"""

import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from dlproxy.message import DType, FailureKind
from dlproxy.protos.tfs import PREDICTION, tfs
from dlproxy.tensors import elements_of
from dlproxy.wire.grpc.call import Status
from dlproxy.wire.grpc.tfs import LARGE, TfsService
from tests.wire.fixtures import PLAIN, EchoService, served
from tests.wire.tfs_models import Computing, catalog_of, half_plus_two, identity, two_inputs

from .tfs_client import PREDICT, REGRESS, Client, multi, predict

SPEC = "12180a016d120208011a0f73657276696e675f64656661756c74"  # of every answer of version 1 of m


# Predict


@pytest.mark.parametrize(
    ("dtype", "recorded", "elements"),
    [
        (DType.FP32, "0a030a016d12170a01781212080112041202080222080000803f00002040", struct.pack("<ff", 1, 2.5)),
        (DType.FP32, "0a030a016d12130a0178120e08011204120208032a0400000040", struct.pack("<fff", 2, 2, 2)),
        (DType.INT32, "0a030a016d12170a017812120803120412020802220801000000feffffff", struct.pack("<ii", 1, -2)),
        (DType.FP16, "0a030a016d12110a0178120c08131204120208026a02807c", np.array([1.5, 1.5], np.float16).tobytes()),
        (DType.BF16, "0a030a016d12110a0178120c080e1204120208026a02c07f", bytes.fromhex("c03fc03f")),
        (DType.BOOL, "0a030a016d12100a0178120b080a1204120208025a0101", b"\1\1"),
        (DType.UINT8, "0a030a016d12100a0178120b08041204120208023a0107", b"\7\7"),
        (DType.UINT64, "0a030a016d121a0a0178121508171204120208018a010affffffffffffffffff01", b"\xff" * 8),
        (DType.FP64, "0a030a016d12170a01781212080212041202080132089a9999999999b93f", struct.pack("<d", 0.1)),
        (
            DType.BYTES,
            "0a030a016d12190a01781214080712041202080242016142075ac3bc72696368",
            b"\1\0\0\0a\7\0\0\0Z\xc3\xbcrich",
        ),
    ],
)
def test_tensors_of_tensorflows_own_client(dtype: DType, recorded: str, elements: bytes) -> None:
    """The last of too few typed values stands for the rest, which is how TensorFlow shortens them."""
    service = identity(dtype)
    answer = tfs.PredictResponse.FromString(Client(service).ask(PREDICT, recorded))
    if dtype not in (DType.FP16, DType.BF16):
        assert bytes(service.requests[0].inputs[0].data) == elements
    assert answer.outputs["y"].dtype == tfs.PredictRequest.FromString(bytes.fromhex(recorded)).inputs["x"].dtype
    assert answer.outputs["y"].tensor_content == b"", "many clients read typed values only"


@pytest.mark.parametrize(
    ("dtype", "values", "recorded"),
    [
        (
            DType.FP32,
            [1, 2.5],
            "0a170a0179121208011204120208022a080000803f0000204012180a016d120208011a0f73657276696e675f64656661756c74",
        ),
        (
            DType.INT64,
            [1, -2],
            "0a1a0a017912150809120412020802520b01feffffffffffffffff0112180a016d120208011a0f73657276696e675f64656661756c74",
        ),
        (DType.BOOL, [True, False], "0a110a0179120c080a1204120208025a020100" + SPEC),
        (DType.UINT8, [1, 127], "0a110a0179120c08041204120208023a02017f" + SPEC),
        (DType.UINT8, [1, 128], "0a120a0179120d08041204120208023a03018001" + SPEC),
        (DType.BYTES, [b"a", b"\0"], "0a130a0179120e0807120412020802420161420100" + SPEC),
    ],
)
def test_answers_are_the_bytes_of_tensorflow_servings(dtype: DType, values: Any, recorded: str) -> None:
    """Also the second time, when what stands around the elements is known."""
    client = Client(Computing([("x", DType.FP32, (-1,))], [("y", dtype, (-1,))], lambda x: values))
    for _ in range(2):
        assert client.ask(PREDICT, predict(x=[0])).hex() == recorded


def test_what_is_remembered_of_one_answer_is_not_said_of_another() -> None:
    client = Client(two_inputs())
    for rows in ([[1, 2]], [[1, 2], [3, 4]], [[5, 6]]):
        for wanted in (["s"], ["d", "s"], []):
            asked = predict("two", a=rows)
            asked.inputs["b"].CopyFrom(tfs.TensorProto(dtype=3, tensor_shape=asked.inputs["a"].tensor_shape))
            asked.output_filter.extend(wanted)
            outputs = tfs.PredictResponse.FromString(client.ask(PREDICT, asked)).outputs
            assert sorted(outputs) == sorted(wanted or ["d", "s"])
            assert list(outputs["s"].float_val) == [value for row in rows for value in row]
            assert [dim.size for dim in outputs["s"].tensor_shape.dim] == [len(rows), 2]


@pytest.mark.parametrize(
    ("dtype", "field", "bits"), [(DType.FP16, "half_val", [0x3E00, 0xC000]), (DType.BF16, "half_val", [0x3FC0, 0xC000])]
)
def test_sixteen_bit_floats_are_bit_patterns(dtype: DType, field: str, bits: list[int]) -> None:
    service = identity(dtype)
    asked = tfs.PredictRequest()
    asked.model_spec.name = "m"
    asked.inputs["x"].dtype = {DType.FP16: 19, DType.BF16: 14}[dtype]
    asked.inputs["x"].tensor_shape.dim.add(size=2)
    getattr(asked.inputs["x"], field).extend(bits)
    answer = tfs.PredictResponse.FromString(Client(service).ask(PREDICT, asked))
    assert list(getattr(answer.outputs["y"], field)) == bits
    assert bytes(service.requests[0].inputs[0].data) == np.array(bits, "<u2").tobytes()


def test_strings_may_be_packed_into_the_content() -> None:
    """All lengths, then all bytes: tensorflow/core/lib/strings/coding and port::EncodeStringList."""
    service = identity(DType.BYTES)
    asked = tfs.PredictRequest()
    asked.model_spec.name = "m"
    tensor = asked.inputs["x"]
    tensor.dtype = 7
    tensor.tensor_shape.dim.add(size=2)
    tensor.tensor_content = b"\1\2abc"
    Client(service).ask(PREDICT, asked)
    assert [bytes(each) for each in elements_of(service.requests[0].inputs[0].data)] == [b"a", b"bc"]
    for content in (b"\1\3abc", b"\1\1abc", b"\1", b"\xff\xff"):
        tensor.tensor_content = content
        status, text = Client(service).refused(PREDICT, asked)
        assert (status, text[:24]) == (Status.INVALID_ARGUMENT, "tensor parsing error: x:")


@pytest.mark.parametrize("rows", [1, LARGE])
def test_large_tensors_pass_by_protobuf_and_are_the_same(rows: int) -> None:
    inputs = [("a", DType.FP32, (-1,)), ("b", DType.FP32, (-1,))]
    service = Computing(inputs, [("s", DType.FP32, (-1,)), ("d", DType.FP32, (-1,))], lambda a, b: (a + b, a - b))
    values = np.arange(rows, dtype=np.float32)
    asked = predict(a=values, b=values * 2)
    asked.output_filter.append("d")
    methods = TfsService(catalog_of(service, max_batch=LARGE), None, clock=lambda: 0.0, tenant_header="x-tenant-id").methods()
    message = asked.SerializeToString()
    answer = tfs.PredictResponse.FromString(Client(methods=methods).ask(PREDICT, message))
    assert list(answer.outputs) == ["d"]
    assert answer.outputs["d"].float_val == (-values).tolist()
    given = service.requests[0].inputs[0].data
    if rows == LARGE:
        assert isinstance(given, memoryview), "taken as a view, without a copy"
        assert given.obj is message


def test_a_large_message_of_many_texts_is_read_too() -> None:
    service = identity(DType.BYTES)
    texts = [b"x" * 10] * LARGE
    asked = tfs.PredictRequest()
    asked.model_spec.name = "m"
    asked.inputs["x"].dtype = 7
    asked.inputs["x"].tensor_shape.dim.add(size=LARGE)
    asked.inputs["x"].string_val.extend(texts)
    methods = TfsService(catalog_of(service, max_batch=LARGE), None, clock=lambda: 0.0, tenant_header="x-tenant-id").methods()
    answer = tfs.PredictResponse.FromString(Client(methods=methods).ask(PREDICT, asked))
    assert list(answer.outputs["y"].string_val) == texts


def test_several_outputs_and_a_filter() -> None:
    client = Client(two_inputs())
    asked = predict("two", a=[[1, 2]])
    asked.inputs["b"].dtype = 3
    for size in (1, 2):
        asked.inputs["b"].tensor_shape.dim.add(size=size)
    asked.inputs["b"].int_val.extend([1, -1])
    answer = tfs.PredictResponse.FromString(client.ask(PREDICT, asked))
    assert list(answer.outputs["s"].float_val) == [2.0, 1.0]
    assert list(answer.outputs["d"].double_val) == [0.0, 3.0]
    assert [dim.size for dim in answer.outputs["d"].tensor_shape.dim] == [1, 2]
    del asked.inputs["b"].int_val[:]
    asked.output_filter.append("s")
    assert tfs.PredictResponse.FromString(client.ask(PREDICT, asked)).outputs["s"].float_val == [1.0, 2.0], "none means zeros"


@pytest.mark.parametrize("name", ["", "serving_default"])
def test_versions_and_labels(name: str) -> None:
    client = Client(half_plus_two())
    client.catalog.route("half", "", {"canary": "1"})
    asked = predict("half", x=[1])
    asked.model_spec.signature_name = name
    for choose in (
        lambda spec: spec.version.SetInParent(),
        lambda spec: setattr(spec.version, "value", 1),
        lambda spec: setattr(spec, "version_label", "canary"),
    ):
        choose(asked.model_spec)
        found = client.begin(PREDICT, asked)
        if asked.model_spec.HasField("version") and not asked.model_spec.version.value:
            assert (found.status, found.text) == (Status.NOT_FOUND, "Servable not found for request: Specific(half, 0)")
            continue
        answer = tfs.PredictResponse.FromString(found.message)
        spec = answer.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("half", 1, "serving_default")


def _set(**fields: Any) -> Callable[[Any], None]:
    def change(asked: Any) -> None:
        for name, value in fields.items():
            setattr(asked.model_spec, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        (_set(name="nobody"), Status.NOT_FOUND, "Servable not found for request: Latest(nobody)"),
        (_set(name=""), Status.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (
            lambda asked: setattr(asked.model_spec.version, "value", 3),
            Status.NOT_FOUND,
            "Servable not found for request: Specific(m, 3)",
        ),
        (_set(version_label="x"), Status.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        (_set(signature_name="x"), Status.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        (
            lambda asked: asked.inputs.pop("x"),
            Status.INVALID_ARGUMENT,
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
        (
            lambda asked: asked.inputs["z"].CopyFrom(asked.inputs.pop("x")),
            Status.INVALID_ARGUMENT,
            "input tensor alias not found in signature: z. Inputs expected to be in the set {x}.",
        ),
        (
            lambda asked: asked.output_filter.append("z"),
            Status.INVALID_ARGUMENT,
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        ),
        (lambda asked: asked.output_filter.extend("yy"), Status.INVALID_ARGUMENT, "duplicate output tensor alias: y"),
        (lambda asked: setattr(asked.inputs["x"], "dtype", 20), Status.INVALID_ARGUMENT, "tensor parsing error: x: type 20"),
        (
            lambda asked: setattr(asked.inputs["x"], "dtype", 3),
            Status.INVALID_ARGUMENT,
            "inference input 'x' data-type is 'INT32'",
        ),
        (
            lambda asked: setattr(asked.inputs["x"].tensor_shape, "unknown_rank", True),
            Status.INVALID_ARGUMENT,
            "tensor parsing error: x",
        ),
        (
            lambda asked: asked.inputs["x"].tensor_shape.dim.add(size=2),
            Status.INVALID_ARGUMENT,
            "unexpected shape for input 'x'",
        ),
        (lambda asked: asked.inputs["x"].tensor_shape.dim.add(size=-1), Status.INVALID_ARGUMENT, ""),
        (
            lambda asked: setattr(asked.inputs["x"], "tensor_content", b"abc"),
            Status.INVALID_ARGUMENT,
            "Expected 8, got 3 bytes",
        ),
    ],
)
def test_what_is_wrong_is_said_as_tensorflow_serving_says_it(change: Callable[[Any], None], status: Status, text: str) -> None:
    service = identity(DType.FP32)
    asked = predict(x=[1, 2])
    change(asked)
    found, said = Client(service).refused(PREDICT, asked)
    assert found is status
    assert text in said
    assert not service.requests


def test_a_message_means_no_more_memory_than_it_may() -> None:
    """Values that are left out cost the client nothing, and the server all of them."""
    asked = predict(x=[1])
    tensor = asked.inputs["x"]
    tensor.tensor_content = b""
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim[0].size = 1 << 40
    assert "may be left out" in Client(identity(DType.FP32)).refused(PREDICT, asked)[1]
    for _ in range(300):
        tensor.tensor_shape.dim.add(size=1 << 60)
    assert "has 301 dimensions" in Client(identity(DType.FP32)).refused(PREDICT, asked)[1]
    del tensor.tensor_shape.dim[1:]
    tensor.tensor_shape.dim[0].size = 1
    tensor.float_val.append(2.0)
    assert "2 values do not make the shape [1]" in Client(identity(DType.FP32)).refused(PREDICT, asked)[1]


@pytest.mark.parametrize(
    ("number", "field", "value"),
    [(4, "int_val", 256), (4, "int_val", -1), (6, "int_val", 128), (19, "half_val", 65536), (14, "half_val", -1)],
)
def test_values_that_do_not_fit_are_refused(number: int, field: str, value: int) -> None:
    asked = tfs.PredictRequest()
    asked.model_spec.name = "m"
    asked.inputs["x"].dtype = number
    getattr(asked.inputs["x"], field).append(value)
    assert "tensor parsing error: x: its values do not fit" in Client(identity(DType.UINT8)).refused(PREDICT, asked)[1]


def test_metadata_says_what_a_request_asks_for_besides() -> None:
    service = half_plus_two()
    headers = {"x-request-deadline-ms": "250", "x-request-priority": "2", "x-tenant-id": "shop"}
    Client(service).ask(PREDICT, predict("half", x=[1]), **headers)
    ticket = service.requests[0].ticket
    assert (ticket.answer_by, ticket.priority, ticket.tenant) == (100.25, 2, "shop")


def test_a_model_that_answers_in_parts_is_refused() -> None:
    model = served(EchoService(msgspec.structs.replace(PLAIN, streams=True)))
    status, text = Client(model).refused(PREDICT, predict(x=[[1, 2]]))
    assert (status, text[:28]) == (Status.UNIMPLEMENTED, "model 'm' answers in parts, ")
    assert model.stats.failures[FailureKind.UNSUPPORTED] == 1


def test_a_client_that_leaves_takes_its_request_back() -> None:
    service = EchoService(PLAIN)
    client = Client(service)
    client.begin(PREDICT, predict(x=[[1, 2]]))
    assert client.call.on_abandoned is not None
    client.call.on_abandoned()
    assert service.cancelled == service.requests


# Classify, regress, both


def judged(x: Any) -> Any:
    return [["much", "little"]] * len(x), np.stack([x.sum(1), -x.sum(1)], 1)


CLASSES = [("classes", DType.BYTES, (-1, -1)), ("scores", DType.FP32, (-1, -1))]
CLASSIFIED = "0a1e0a1c0a0b0a046d75636815000060400a0d0a066c6974746c6515000060c0" + SPEC


@pytest.mark.parametrize(
    "recorded",
    [
        "0a030a016d12190a170a150a130a110a0178120c120a0a080000c03f00000040",
        "0a030a016d121b12190a0012150a130a110a0178120c120a0a080000c03f00000040",  # as context
    ],
)
def test_classify(recorded: str) -> None:
    client = Client(Computing([("x", DType.FP32, (-1, 2))], CLASSES, judged))
    assert client.ask(f"{PREDICTION}/Classify", recorded).hex() == CLASSIFIED


def test_a_context_is_not_copied_without_end() -> None:
    asked = tfs.ClassificationRequest()
    asked.model_spec.name = "m"
    asked.input.example_list_with_context.context = bytes(2 << 20)
    asked.input.example_list_with_context.examples.extend([b""] * 33)
    client = Client(Computing([("inputs", DType.BYTES, (-1,))], CLASSES, judged))
    assert "a context of 2097152 bytes for 33 examples" in client.refused(f"{PREDICTION}/Classify", asked)[1]


def test_regress() -> None:
    service = half_plus_two()
    service.model = "m"
    assert Client(service).ask(f"{PREDICTION}/Regress", REGRESS).hex() == "0a070a050d00002842" + SPEC


def test_both_run_the_model_once() -> None:
    """multi_inference.cc; there, one signature cannot be for both."""
    outputs = [*CLASSES, ("outputs", DType.FP32, (-1, 1))]
    service = Computing([("x", DType.FP32, (-1, 1))], outputs, lambda x: (*judged(x), x))
    recorded = (
        "0a210a030a016d121a74656e736f72666c6f772f73657276696e672f726567726573730a220a030a016d121b74656e736f72666c6f772f7365727669"
        "6e672f636c61737369667912150a130a110a0f0a0d0a0178120812060a0400000040"
    )
    found = tfs.MultiInferenceResponse.FromString(Client(service).ask(f"{PREDICTION}/MultiInference", recorded))
    first, second = found.results
    assert [each.value for each in first.regression_result.regressions] == [2.0]
    classes = second.classification_result.classifications[0].classes
    assert [(each.label, each.score) for each in classes] == [("much", 2.0), ("little", -2.0)]
    assert first.model_spec.version.value == second.model_spec.version.value == 1
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("method", "asked", "status", "text"),
    [
        ("Classify", tfs.ClassificationRequest(), Status.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        ("Classify", "0a030a016d", Status.INVALID_ARGUMENT, "Input is empty."),
        ("Classify", "0a060a016d1a0178", Status.INVALID_ARGUMENT, "No signature was found with the name: x"),
        ("Classify", "0a030a016d12060a040a02ffff", Status.INVALID_ARGUMENT, "an example cannot be read"),
        ("Classify", "0a030a016d12040a020a00", Status.INVALID_ARGUMENT, "example 0 has no feature 'x'"),
        ("Regress", REGRESS, Status.UNIMPLEMENTED, "model 'm' takes predict only: regress needs an output 'outputs'"),
        ("MultiInference", multi(), Status.INVALID_ARGUMENT, "MultiInferenceRequest has no tasks"),
        ("MultiInference", multi(("", "classify")), Status.INVALID_ARGUMENT, "Found ModelSpec with an empty model name."),
        (
            "MultiInference",
            multi(("m", "classify"), ("n", "regress")),
            Status.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            "MultiInference",
            multi(("m", "predict")),
            Status.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            "MultiInference",
            multi(("m", "classify"), ("m", "classify")),
            Status.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            "MultiInference",
            multi(("m", "classify"), signature="x"),
            Status.INVALID_ARGUMENT,
            "No signature was found with the name: x",
        ),
    ],
)
def test_what_is_wrong_with_examples(method: str, asked: Any, status: Status, text: str) -> None:
    client = Client(Computing([("x", DType.FP32, (-1, 2))], CLASSES, judged))
    found, said = client.refused(f"{PREDICTION}/{method}", asked)
    assert found is status
    assert said.startswith(text)
