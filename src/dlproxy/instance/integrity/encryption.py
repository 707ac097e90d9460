"""Files encrypted at rest: AES-256-GCM in chunks under a random key of the file's own, which the master key wraps.

Written by `dlproxy models encrypt`, read by files.py; the layout is in docs/security.md. Not aware of: where keys are kept.
"""

import hashlib
import os
import secrets
from pathlib import Path
from struct import Struct as Layout

from msgspec import Struct

from dlproxy.instance.integrity.ciphers import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Aead
from dlproxy.instance.runtime import ModelError

MAGIC = b"\xdcDLPENC\x01"  # begins no file that is text, protobuf, zip or a pickle
CHUNK_BYTES = 1 << 20
MOST_CHUNK_BYTES = 1 << 26  # that a file may ask for

_FIXED = Layout(">8sI8sH")  # magic, bytes of a chunk, which master key, bytes of the name
_PLACE = Layout(">Q?")  # a chunk's number, and whether it is the last
_WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES


class _Header(Struct, frozen=True):
    bound: bytes  # all that stands before the wrapped key
    chunk_bytes: int
    key_id: bytes
    name: str
    wrapped: bytes
    end: int


def is_encrypted(start: bytes | bytearray) -> bool:
    """Whether a file that begins so is."""
    return start[: len(MAGIC)] == MAGIC


def starts_encrypted(file: str | Path) -> bool:
    """Whether this file is. Raises OSError."""
    with open(file, "rb") as stream:
        return is_encrypted(stream.read(len(MAGIC)))


def key_id(master_key: bytes) -> bytes:
    """Tells one master key from another, and nothing of either."""
    return hashlib.sha256(b"dlproxy master key id\0" + master_key).digest()[:8]


def encrypt(source: Path, target: Path, name: str, master_key: bytes) -> None:
    """Write `source` encrypted. `name`: with which the path of where it will lie must end. Raises OSError."""
    file_key = secrets.token_bytes(KEY_BYTES)
    encoded = name.encode()
    bound = _FIXED.pack(MAGIC, CHUNK_BYTES, key_id(master_key), len(encoded)) + encoded
    nonce = secrets.token_bytes(NONCE_BYTES)
    header = bound + nonce + Aead(master_key).encrypted(nonce, file_key, bound)
    aead = Aead(file_key)
    with source.open("rb") as plain, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as sealed:
        sealed.write(header)
        chunk, number = plain.read(CHUNK_BYTES), 0
        while True:
            following = plain.read(CHUNK_BYTES)
            sealed.write(aead.encrypted(_nonce(number), chunk, header + _PLACE.pack(number, not following)))
            if not following:
                break
            chunk, number = following, number + 1


def decrypt(data: bytearray, file: Path, master_key: bytes) -> None:
    """Turn what was read of this file into what was encrypted, where it stands: models are large. Raises ModelError."""
    if not master_key:
        raise ModelError(f"{file} is encrypted: say in [integrity] master_key where the key is")
    header = _header(data, file)
    if header.key_id != key_id(master_key):
        raise ModelError(f"{file} was encrypted under another master key than [integrity] master_key")
    nonce, wrapped = header.wrapped[:NONCE_BYTES], header.wrapped[NONCE_BYTES:]
    file_key = Aead(master_key).decrypted(nonce, wrapped, header.bound)
    if file_key is None:
        raise ModelError(f"{file} has been changed since it was encrypted, in its header")
    if not f"/{file.absolute().as_posix()}".endswith(f"/{header.name}"):
        raise ModelError(f"{file} was encrypted as {header.name!r}: it has been renamed, or put in the place of another")
    aead, whole, written = Aead(file_key), header.bound + header.wrapped, 0
    step = header.chunk_bytes + TAG_BYTES
    count = max(-(-(len(data) - header.end) // step), 1)
    for number in range(count):
        at = header.end + number * step
        place = _PLACE.pack(number, number == count - 1)
        part = aead.decrypted(_nonce(number), data[at : at + step], whole + place)
        if part is None:
            raise ModelError(f"{file} has been changed, or cut short, since it was encrypted, in chunk {number}")
        data[written : written + len(part)] = part  # which never reaches the next chunk: tags and header are left out
        written += len(part)
    del data[written:]


def _header(data: bytearray, file: Path) -> _Header:
    broken = ModelError(f"{file} is encrypted, but its header is cut short or broken")
    if len(data) < _FIXED.size:
        raise broken
    _, chunk_bytes, key, name_bytes = _FIXED.unpack_from(data)
    end_of_name = _FIXED.size + name_bytes
    end = end_of_name + _WRAPPED_BYTES
    if len(data) < end or not 0 < chunk_bytes <= MOST_CHUNK_BYTES:
        raise broken
    try:
        name = data[_FIXED.size : end_of_name].decode()
    except UnicodeDecodeError:
        raise broken from None
    return _Header(bytes(data[:end_of_name]), chunk_bytes, key, name, bytes(data[end_of_name:end]), end)


def _nonce(number: int) -> bytes:
    """The key is this file's alone, and each chunk's number its own: no nonce comes twice."""
    return number.to_bytes(NONCE_BYTES, "big")
