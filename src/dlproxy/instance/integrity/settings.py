"""What [integrity] says, as a Trust: public keys and the master key read from where they are kept.

Called where a server starts and by `dlproxy models`. Not aware of: models.
"""

import base64
import binascii
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from dlproxy.config import ConfigError
from dlproxy.config.security import IntegrityConfig
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.ciphers import KEY_BYTES, KeyFormatError, public_key
from dlproxy.instance.runtime import ModelError

PATIENCE_S = 30.0  # for a command that gives the key, perhaps over a network
PLACES = "file:PATH, env:NAME or command:WORDS"


def read_trust(config: IntegrityConfig) -> Trust:
    """Raises ConfigError for keys that cannot be read."""
    kind, _, rest = config.master_key.partition(":")
    return Trust(
        signers=read_signers(config.trusted),
        master_key=read_master_key(config.master_key) if config.master_key else b"",
        key_variable=rest if kind == "env" else "",
        pickle=config.pickle == "allow",
    )


def read_signers(files: Sequence[str], label: str = "[integrity] trusted") -> tuple[bytes, ...]:
    """Public keys. Raises ConfigError that names them by the `label`."""
    return tuple(_signer(file, label) for file in files)


def _signer(file: str, label: str) -> bytes:
    try:
        return public_key(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"{label}: {file} cannot be read: {error.strerror}") from None
    except (KeyFormatError, ModelError) as error:
        raise ConfigError(f"{label}: {file}: {error}") from None


def read_master_key(place: str) -> bytes:
    """The key that this says where to find. Raises ConfigError, in which nothing of it stands."""
    kind, _, rest = place.partition(":")
    if kind not in ("file", "env", "command") or not rest:  # it may be the key itself, which must not be shown
        raise ConfigError(f"master_key says where the key is, and does not hold it: write {PLACES}")
    text = {"file": _in_file, "env": _in_environment, "command": _of_command}[kind](rest)
    key = _decoded(text.strip())
    if key is None:
        source = place if kind != "command" else "what the command printed"
        raise ConfigError(
            f"master_key: {source} is not {KEY_BYTES} bytes in base64 or hex; `dlproxy models keygen --master FILE` makes some"
        )
    return key


def new_master_key() -> str:
    """As its file has it."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def _decoded(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES else None


def _in_file(path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except OSError as error:
        raise ConfigError(f"master_key: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        return ""


def _in_environment(name: str) -> str:
    if name not in os.environ:
        raise ConfigError(f"master_key: the environment variable {name} is not set")
    return os.environ[name]


def _of_command(words: str) -> str:
    import shlex
    import subprocess

    try:
        arguments = shlex.split(words)
        done = subprocess.run(  # nosec B603 # the operator's own command, from the configuration
            arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, ValueError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"master_key: the command cannot be run: {reason}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"master_key: the command did not end within {PATIENCE_S:g} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ConfigError(
            f"master_key: the command ended with exit status {done.returncode}" + "".join(f": {line}" for line in said)
        )
    return done.stdout.decode("ascii", "replace")
