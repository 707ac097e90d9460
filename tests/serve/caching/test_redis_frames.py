"""Answers as bytes: what was sealed is what is opened, and nothing else is an answer."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.message import DType, Signature, Tensor, TensorSpec
from dlproxy.serve.caching import frames
from dlproxy.serve.caching.frames import HEAD, answer_in, body_of, opened, sealed, shrinks, size_of
from dlproxy.serve.caching.layer import Kept
from dlproxy.tensors import join_elements

KEY = bytes(range(16))
SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (-1, 4)),),
    (TensorSpec("y", DType.FP32, (-1, 4)), TensorSpec("words", DType.BYTES, (-1,))),
    batched=True,
    platform="test",
)
Y = Tensor("y", DType.FP32, (2, 4), np.arange(8, dtype=np.float32).tobytes())
WORDS = Tensor("words", DType.BYTES, (2,), join_elements([b"cat", b""]))


def _kept(*outputs: Tensor, at: float = 95.0) -> Kept:
    return Kept("m", "3", list(outputs), at, 0.25)


def _read(frame: bytes, key: bytes = KEY, signature: Signature = SIGNATURE) -> Kept | None:
    body = opened(key, frame)
    return None if body is None else answer_in(body, {spec.name: spec for spec in signature.outputs}, "m", "3", 200.0)


BODY = body_of(_kept(Y, WORDS), 100.0)
FRAMES = [sealed(KEY, BODY, compress=compress) for compress in (False, True)]


@pytest.mark.parametrize("compress", [False, True])
def test_what_was_sealed_is_opened(compress: bool) -> None:
    found = _read(sealed(KEY, body_of(_kept(Y, WORDS), 100.0), compress=compress))
    assert found is not None
    assert found.outputs == [Y, WORDS]
    assert (found.model, found.version, found.cost_s) == ("m", "3", 0.25)
    assert found.at == pytest.approx(195.0, abs=1.0), "its age counts by the clock of whoever reads it"


def test_views_are_sealed_as_well() -> None:
    view = Tensor("y", DType.FP32, [2, 4], memoryview(bytearray(b"head" + bytes(Y.data)))[4:])
    found = _read(sealed(KEY, body_of(_kept(view), 100.0), compress=False))
    assert found is not None
    assert found.outputs == [Y]


def test_an_answer_belongs_to_its_key() -> None:
    assert _read(sealed(KEY, body_of(_kept(Y), 100.0), compress=False), key=KEY[::-1]) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_change_of_any_byte_is_noticed(data: st.DataObject) -> None:
    frame = data.draw(st.sampled_from(FRAMES))
    at = data.draw(st.integers(0, len(frame) - 1))
    changed = bytearray(frame)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert opened(KEY, bytes(changed)) is None
    assert opened(KEY, frame[:at]) is None
    assert opened(KEY, frame + frame[at:]) is None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_stands_there_raises_nothing(junk: bytes) -> None:
    assert opened(KEY, junk) is None
    assert size_of(junk) >= 0
    assert _read(sealed(KEY, junk, compress=False)) is None


@pytest.mark.parametrize(
    "outputs",
    [
        [Tensor("other", DType.FP32, (2, 4), bytes(32))],
        [Tensor("y", DType.INT32, (2, 4), bytes(32))],
        [Tensor("y", DType.FP32, (2, 5), bytes(40))],
        [Tensor("y", DType.FP32, (8,), bytes(32))],
        [Tensor("y", DType.FP32, (2, 4), bytes(28))],
        [Tensor("y", DType.FP32, (-2, 4), b"")],
        [Y, Y],
        [Tensor("words", DType.BYTES, (3,), WORDS.data)],
        [Tensor("words", DType.BYTES, (1,), b"\xff\xff\xff\xff")],
        [],
    ],
)
def test_what_this_model_does_not_give_is_no_answer(outputs: list[Tensor]) -> None:
    assert _read(sealed(KEY, body_of(_kept(*outputs), 100.0), compress=False)) is None


def test_other_formats_and_codecs_are_no_answer() -> None:
    frame = sealed(KEY, body_of(_kept(Y), 100.0), compress=False)
    magic, version, codec, size, checksum = HEAD.unpack_from(frame)
    rest = frame[HEAD.size :]
    assert opened(KEY, HEAD.pack(magic, version, codec, size, checksum) + rest) is not None
    assert opened(KEY, HEAD.pack(magic, version + 1, codec, size, checksum) + rest) is None
    assert opened(KEY, HEAD.pack(magic, version, 7, size, frames._checksum(KEY, 7, size, rest)) + rest) is None


def test_what_inflates_to_more_than_it_says_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    for size in (10, frames.MOST_BYTES, frames.MOST_BYTES + 1):
        checksum = frames._checksum(KEY, frames.ZLIB, size, bomb)
        assert opened(KEY, HEAD.pack(frames.MAGIC, frames.FORMAT, frames.ZLIB, size, checksum) + bomb) is None


def test_compression_pays_for_text_and_not_for_noise() -> None:
    words = join_elements([b"a label of some length"] * 200)
    assert shrinks(body_of(_kept(Tensor("words", DType.BYTES, (200,), words)), 100.0))
    noise = np.random.default_rng(1).normal(size=(1000, 4)).astype(np.float32).tobytes()
    assert not shrinks(body_of(_kept(Tensor("y", DType.FP32, (1000, 4), noise)), 100.0))
    assert not shrinks(body_of(_kept(Y), 100.0)), "too small to be worth it"


def test_an_answer_from_a_clock_that_is_ahead_is_as_young_as_can_be() -> None:
    found = _read(sealed(KEY, body_of(_kept(Y, at=130.0), 100.0), compress=False))
    assert found is not None
    assert found.at == 200.0
