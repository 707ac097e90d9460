"""`dlproxy models keygen`, `sign`, `verify` and `encrypt`: what they write, and that every mistake is one line."""

import base64
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.cli.terminal import FAILED, OK
from dlproxy.instance.integrity.encryption import starts_encrypted
from dlproxy.instance.integrity.settings import read_master_key
from tests.instance.integrity.keys import PLAIN, flipped, save_with_weights_beside

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command that succeeds; what it says."""

    def run(*arguments: str) -> str:
        code = main(["models", *arguments])
        captured = capsys.readouterr()
        assert (code, captured.err) == (OK, "")
        return captured.out

    return run


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Run:
    """One that does not; the only line that it says."""

    def run(*arguments: str, code: int = USER_ERROR) -> str:
        assert main(["models", *arguments]) == code
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert captured.out == "" or code == FAILED
        return line.removeprefix("dlproxy: ")

    return run


@pytest.fixture
def model(run: Run, tmp_path: Path) -> Path:
    """Keys, and a model with its weights in another file, in the working folder."""
    run("keygen", "signer")
    run("keygen", "--master", "master.key")
    save_with_weights_beside(tmp_path / "m")
    return Path("m/m.onnx")


def test_keys_are_their_owner_s_and_are_not_overwritten(run: Run, complaint: Run, tmp_path: Path) -> None:
    assert 'trusted = ["signer.pub"]' in run("keygen", "signer")
    run("keygen", "--master", "master.key")
    contents = {name: Path(name).read_bytes() for name in ("signer.key", "signer.pub", "master.key")}
    assert [os.stat(name).st_mode & 0o777 for name in contents] == [0o600, 0o644, 0o600]
    assert complaint("keygen", "signer") == "signer.key is there already, and is not overwritten"
    assert complaint("keygen", "--master", "master.key") == "master.key is there already, and is not overwritten"
    Path("signer.key").unlink()
    assert complaint("keygen", "signer") == "signer.pub is there already, and is not overwritten"
    assert not Path("signer.key").exists()
    assert {name: Path(name).read_bytes() for name in ("signer.pub", "master.key")}.items() <= contents.items()
    assert complaint("keygen", "nowhere/signer") == "nowhere/signer.key: No such file or directory"
    assert "keygen makes one thing" in complaint("keygen")
    assert "keygen makes one thing" in complaint("keygen", "a", "--master", "b")


@pytest.mark.parametrize("what", ["m/m.onnx", "m"])
def test_signed_and_verified(run: Run, complaint: Run, model: Path, what: str) -> None:
    assert "2 files, signed with key" in run("sign", what, "--key", "signer.key")
    assert f"{what}: 2 files as signed with key" in run("verify", what, "--trusted", "signer.pub")
    flipped(model.with_name("weights.bin"), 7)
    assert "weights.bin has been changed" in complaint("verify", what, "--trusted", "signer.pub", code=FAILED)
    run("sign", what, "--key", "signer.key")  # anew
    run("verify", what, "--trusted", "signer.pub")
    run("keygen", "other")
    assert "which is not trusted" in complaint("verify", what, "--trusted", "other.pub", code=FAILED)
    run("verify", what, "--trusted", "other.pub", "--trusted", "signer.pub")


def test_one_that_fails_does_not_hide_the_others(complaint: Run, run: Run, model: Path, tmp_path: Path) -> None:
    save_with_weights_beside(tmp_path / "n")
    run("sign", "m", "--key", "signer.key")
    assert "n is not signed" in complaint("verify", "n", "m", "--trusted", "signer.pub", code=FAILED)


def test_what_belongs_to_a_class_is_named(run: Run, complaint: Run, model: Path) -> None:
    for name in ("m.py", "helper.py"):
        Path("m", name).write_text("x = 1\n")
    assert "1 file, signed" in run("sign", "m/m.py:Model", "--key", "signer.key")
    assert "2 files, signed" in run("sign", "m/m.py", "--key", "signer.key", "--with", "m/helper.py")
    assert "2 files as signed" in run("verify", "m/m.py:Model", "--trusted", "signer.pub")
    wrong = complaint("sign", "m/m.py", "--key", "signer.key", "--with", "master.key")
    assert wrong == "master.key is not a file in m, where what belongs to the model has to be"


def test_what_it_may_be_served_as(run: Run, complaint: Run, model: Path) -> None:
    run("sign", str(model), "--key", "signer.key", "--as", "digits/3")
    assert "to be served as digits/3" in run("verify", str(model), "--trusted", "signer.pub")
    assert "write a name, or a name and a version" in complaint("sign", "m", "--key", "signer.key", "--as", "digits/new")
    assert "are about one model" in complaint("sign", "m", "m", "--key", "signer.key", "--as", "digits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sign", "m", "--key", "nothing.key"], "nothing.key: No such file or directory"),
        (["sign", "m", "--key", "signer.pub"], "signer.pub: it is a public key; what signs is the private one beside it"),
        (["sign", "m", "--key", "master.key"], "master.key: it is not a private key in PEM"),
        (["sign", "nothing", "--key", "signer.key"], "nothing is not the path of a model's file or folder"),
        (["sign", "my_module:Model", "--key", "signer.key"], "my_module:Model is not the path of a model's file or folder"),
        (["verify", "m", "--trusted", "signer.key"], "--trusted: signer.key: it is a private key"),
        (["verify", "m", "--trusted", "nothing.pub"], "--trusted: nothing.pub cannot be read: No such file"),
        (["verify", "m", "--trusted", "master.key"], "--trusted: master.key: it is not a public key in PEM"),
        (["encrypt", "m", "sealed", "--master-key", "file:nothing"], "master_key: nothing cannot be read: No such file"),
        (["encrypt", "m", "sealed", "--master-key", "file:signer.pub"], "master_key: file:signer.pub is not 32 bytes"),
        (["encrypt", "m", "sealed", "--master-key", "master.key"], "master_key says where the key is, and does not hold it"),
        (["encrypt", "m", "sealed", "--master-key", "file:"], "master_key says where the key is, and does not hold it"),
        (["encrypt", "m", "sealed", "--master-key", "env:NO_SUCH"], "the environment variable NO_SUCH is not set"),
        (["encrypt", "m", "sealed", "--master-key", "command:no-such-command"], "the command cannot be run: No such file"),
        (["encrypt", "m", "sealed", "--master-key", "command:false"], "the command ended with exit status 1"),
        (["encrypt", "m", "sealed", "--master-key", "command:echo secret"], "what the command printed is not 32 bytes"),
        (["encrypt", "m", "sealed", "--master-key", "command:'"], "the command cannot be run: No closing quotation"),
        (["encrypt", "m", "m", "--master-key", "file:master.key"], "m is there already"),
        (["encrypt", "m/m.onnx", "m/other.onnx", "--master-key", "file:master.key"], "m/weights.bin is there already"),
        (["encrypt", "nothing", "sealed", "--master-key", "file:master.key"], "nothing is not the path of a model's file"),
    ],
)
def test_mistakes(complaint: Run, model: Path, arguments: list[str], words: str) -> None:
    said = complaint(*arguments)
    assert words in said
    assert "secret" not in said
    assert not Path("sealed").exists()
    assert not list(Path("m").glob("*other*"))


def test_keys_of_another_kind(complaint: Run, model: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = ec.generate_private_key(ec.SECP256R1())
    Path("ec.key").write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    public = other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    Path("ec.pub").write_bytes(public)
    locked = serialization.BestAvailableEncryption(b"password")
    Path("locked.key").write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, locked))
    assert "it is not an Ed25519 key" in complaint("sign", "m", "--key", "ec.key")
    assert "it is not an Ed25519 key" in complaint("verify", "m", "--trusted", "ec.pub")
    assert "it is protected by a password" in complaint("sign", "m", "--key", "locked.key")


def test_a_missing_file_of_weights_is_noticed_when_it_is_signed(complaint: Run, model: Path) -> None:
    model.with_name("weights.bin").unlink()
    assert "m/weights.bin is not a file in m" in complaint("sign", "m/m.onnx", "--key", "signer.key")
    assert "m/weights.bin is not a file in m" in complaint("encrypt", "m/m.onnx", "sealed", "--master-key", "file:master.key")


def test_encrypted(run: Run, complaint: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m/dlproxy.toml").write_text("max_batch = 4\n")
    Path("m/sub").mkdir()
    Path("m/sub/words.txt").write_bytes(PLAIN)
    run("sign", "m", "--key", "signer.key")
    assert "sealed: 4 files encrypted; to have it signed, sign it now" in run(
        "encrypt", "m", "sealed", "--master-key", "file:master.key"
    )
    assert not list(Path("sealed").rglob("*.manifest.json"))
    encrypted = {path.as_posix() for path in Path("sealed").rglob("*") if path.is_file() and starts_encrypted(path)}
    assert encrypted == {"sealed/m.onnx", "sealed/weights.bin", "sealed/sub/words.txt"}
    for path in encrypted:
        assert PLAIN not in Path(path).read_bytes()
    assert Path("sealed/dlproxy.toml").read_text() == "max_batch = 4\n"
    assert "is encrypted already" in complaint("encrypt", "sealed", "twice", "--master-key", "file:master.key")
    run("sign", "sealed", "--key", "signer.key")
    run("verify", "sealed", "--trusted", "signer.pub")
    monkeypatch.setenv("KEY", Path("master.key").read_text())
    run("encrypt", "m/m.onnx", "one/other.onnx", "--master-key", "env:KEY")
    assert sorted(os.listdir("one")) == ["other.onnx", "weights.bin"]


def test_places_of_a_master_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("master.key").read_text().strip()
    key = base64.b64decode(text)
    Path("hex").write_text(key.hex())
    monkeypatch.setenv("KEY", text)
    places = ["file:master.key", "file:hex", "env:KEY", "command:cat master.key", f"command:{shlex.join(['echo', text])}"]
    assert {read_master_key(place) for place in places} == {key}
