"""dlproxy's own client on a real server: every kind of element there and back, large ones, versions."""

from collections.abc import Iterator

import numpy as np
import pytest

from dlproxy import Client, FailureKind, InferenceError
from tests.clients.server import ServerProcess


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(f"http://{server.address}") as made:
        yield made


@pytest.mark.parametrize(
    ("model", "given", "dtype"),
    [
        ("wide", np.array([[-(2**63), 2**63 - 1], [0, 1]]), np.int64),
        ("half", np.array([[0.5, -1.5, np.inf], [np.nan, 65504.0, 0.0]], np.float16), np.float16),
        ("brain", np.array([[0.5, -1.5, np.inf], [np.nan, 3.0, 0.0]], np.float32), np.float32),
        ("text", [["ä", ""], ["a\0", "b"]], object),
        ("text", np.array([[b"x", b"yz"]], object), object),
        ("wide", np.zeros((3, 0), np.int64), np.int64),
    ],
)
def test_what_goes_comes_back(client: Client, model: str, given: object, dtype: type) -> None:
    (array,) = client.infer(model, given).values()
    assert array.dtype == dtype
    expected = np.array(given, object) if dtype is object else np.array(given)
    if dtype is object:
        assert [bytes(each, "utf-8") if isinstance(each, str) else each for each in expected.ravel()] == array.ravel().tolist()
        assert array.shape == expected.shape
    else:
        assert np.array_equal(array, expected, equal_nan=expected.dtype.kind == "f")


def test_other_layouts_and_narrower_types_are_converted(client: Client) -> None:
    image = np.asfortranarray(np.random.default_rng(1).random((2, 1, 8, 8)))
    one = client.infer("digits", image)["probabilities"]
    two = client.infer("digits", {"image": image.astype(np.float32).copy()})["probabilities"]
    assert np.array_equal(one, two)


def test_large_tensors(client: Client) -> None:
    given = np.arange(4_000_000, dtype=np.int64).reshape(2, -1)
    (array,) = client.infer("wide", given).values()
    assert np.array_equal(array, given)


def test_versions(client: Client) -> None:
    a = np.ones((1, 4), np.int32)
    assert client.infer("simple", {"a": a, "b": a}, version="3")["sum"].tolist() == [[2] * 4]
    assert client.metadata("simple", "3").versions == ["3"]
    with pytest.raises(InferenceError, match="version 4 is not found") as caught:
        client.infer("simple", {"a": a, "b": a}, version="4")
    assert caught.value.failure.kind is FailureKind.NOT_FOUND


def test_a_stream_over_http_of_a_model_that_answers_at_once(client: Client) -> None:
    (part,) = client.stream("text", [["ä", "b"]])
    assert [each.tolist() for each in part.values()] == [[["ä".encode(), b"b"]]]
