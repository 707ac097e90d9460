"""Encrypted files: what comes out is what went in, and every change of the ciphertext is refused."""

from itertools import permutations
from pathlib import Path

import pytest

from dlproxy.instance.integrity import encryption
from dlproxy.instance.integrity.ciphers import TAG_BYTES
from dlproxy.instance.integrity.encryption import CHUNK_BYTES, decrypt, encrypt, is_encrypted, starts_encrypted
from dlproxy.instance.runtime import ModelError

MODEL = Path("models/m.onnx")
KEY, OTHER = bytes(range(32)), bytes(32)
CHUNK = 64  # in tests, so that a few bytes have many
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "CHUNK_BYTES", CHUNK)


def _encrypted(folder: Path, plain: bytes, name: str = "m.onnx", key: bytes = KEY, into: str = "sealed") -> bytes:
    source, target = folder / "plain", folder / into
    source.write_bytes(plain)
    target.unlink(missing_ok=True)
    encrypt(source, target, name, key)
    return target.read_bytes()


def _decrypted(data: bytes, file: Path, key: bytes) -> bytes:
    read = bytearray(data)
    decrypt(read, file, key)
    return bytes(read)


def _refusal(data: bytes, name: str = "m.onnx", key: bytes = KEY) -> str:
    with pytest.raises(ModelError) as caught:
        decrypt(bytearray(data), Path("models") / name, key)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"models/{name} ")
    return str(caught.value)


def _plain(size: int) -> bytes:
    return bytes(at % 251 for at in range(size))


@pytest.mark.parametrize("size", SIZES)
def test_what_comes_out_is_what_went_in(size: int, tmp_path: Path) -> None:
    data = _encrypted(tmp_path, _plain(size))
    assert is_encrypted(data)
    assert starts_encrypted(tmp_path / "sealed")
    assert not starts_encrypted(tmp_path / "plain")
    assert _decrypted(data, MODEL, KEY) == _plain(size)


@pytest.mark.parametrize("size", [0, 3 * CHUNK + 5])
def test_every_bit_counts(size: int, tmp_path: Path) -> None:
    data = bytearray(_encrypted(tmp_path, _plain(size)))
    for at in range(len(encryption.MAGIC), len(data)):
        for bit in (0, 7):
            data[at] ^= 1 << bit
            _refusal(bytes(data))
            data[at] ^= 1 << bit
    assert _decrypted(bytes(data), MODEL, KEY) == _plain(size)


@pytest.mark.parametrize("size", [0, CHUNK, 3 * CHUNK, 3 * CHUNK + 5])
def test_nothing_can_be_cut_off_or_added(size: int, tmp_path: Path) -> None:
    data = _encrypted(tmp_path, _plain(size))
    for end in range(len(encryption.MAGIC), len(data)):
        _refusal(data[:end])
    for more in (b"\0", bytes(CHUNK + TAG_BYTES), data[-(CHUNK + TAG_BYTES) :]):
        _refusal(data + more)


def test_chunks_cannot_change_places(tmp_path: Path) -> None:
    data = _encrypted(tmp_path, _plain(4 * CHUNK))
    step = CHUNK + TAG_BYTES
    header, chunks = data[: -4 * step], [data[len(data) - (4 - number) * step :][:step] for number in range(4)]
    for order in list(permutations(range(4)))[1:]:
        refusal = _refusal(header + b"".join(chunks[number] for number in order))
        assert "has been changed, or cut short, since it was encrypted, in chunk" in refusal
    assert _decrypted(header + b"".join(chunks), MODEL, KEY) == _plain(4 * CHUNK)


def test_chunks_and_headers_of_another_file_do_not_fit(tmp_path: Path) -> None:
    one, two = _encrypted(tmp_path, _plain(4 * CHUNK)), _encrypted(tmp_path, _plain(4 * CHUNK))
    assert one != two  # keys and nonces are new each time
    body = 4 * (CHUNK + TAG_BYTES)
    assert "in chunk 0" in _refusal(one[:-body] + two[-body:])
    assert "in chunk 3" in _refusal(one[: -(CHUNK + TAG_BYTES)] + two[-(CHUNK + TAG_BYTES) :])


def test_another_name_and_another_key(tmp_path: Path) -> None:
    data = _encrypted(tmp_path, b"weights")
    assert "was encrypted as 'm.onnx': it has been renamed, or put in the place of another" in _refusal(data, "other.onnx")
    for fits in ("models/m.onnx", "a/models/m.onnx", "m.onnx"):
        assert _decrypted(data, Path(fits), KEY) == b"weights"
    deeper = _encrypted(tmp_path, b"weights", "models/m.onnx")
    assert _decrypted(deeper, MODEL, KEY) == b"weights"
    assert "put in the place of another" in _refusal(deeper, "../others/m.onnx")
    assert "under another master key" in _refusal(data, key=OTHER)
    assert "is encrypted: say in [integrity] master_key where the key is" in _refusal(data, key=b"")


def test_a_file_of_the_real_size_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plain = bytes(CHUNK_BYTES) + b"and a bit"
    assert _decrypted(_encrypted(tmp_path, plain), MODEL, KEY) == plain


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    data = _encrypted(tmp_path, b"first")
    with pytest.raises(FileExistsError):
        encrypt(tmp_path / "plain", tmp_path / "sealed", "m.onnx", KEY)
    assert (tmp_path / "sealed").read_bytes() == data
