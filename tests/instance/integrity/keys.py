"""Keys, and models that are signed and encrypted with them, for the tests beside this file and those of servers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.ciphers import private_key
from dlproxy.instance.integrity.settings import read_master_key, read_signers
from dlproxy.instance.integrity.writing import encrypt, make_key_pair, make_master_key, sign
from dlproxy.message import DType
from tests import models

PLAIN = b"what nobody may read"
ROWS = 600  # of the weights: so many that a file of them has three chunks
WIDTH = 1024


class Keys:
    """A signer's and a stranger's keys, and two master keys, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.signer, self.public = make_key_pair(folder / "signer")
        self.stranger, self.strangers_public = make_key_pair(folder / "stranger")
        self.master, self.other_master = folder / "master.key", folder / "other.key"
        make_master_key(self.master)
        make_master_key(self.other_master)

    def trust(self, *, signed: bool = True, master: Path | None = None, pickle: bool = False, **named: str) -> Trust:
        return Trust(
            signers=read_signers([str(self.public)]) if signed else (),
            master_key=read_master_key(f"file:{self.master if master is None else master}"),
            pickle=pickle,
            **named,
        )

    def sign(self, path: Path | str, *, strange: bool = False, **more: str) -> Path:
        """The manifest."""
        return sign(str(path), private_key((self.stranger if strange else self.signer).read_bytes()), **more)[0]

    def encrypt(self, path: Path | str, target: Path) -> Path:
        encrypt(str(path), target, read_master_key(f"file:{self.master}"))
        return target


def save_with_weights_beside(folder: Path, *, scale: float = 1.0) -> Path:
    """y = x w, whose weights of some 2.4 MB are in weights.bin; and a text in the graph that can be searched for."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.full((WIDTH, ROWS), scale, np.float32)
    made = models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=PLAIN.decode())],
        [models.value("x", DType.FP32, ("N", WIDTH))],
        [models.value("y", DType.FP32, ("N", ROWS))],
        [models.constant("w", weights)],
    )
    onnx.save(made, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "m.onnx"


def flipped(file: Path, at: int) -> None:
    """One bit of one byte."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
