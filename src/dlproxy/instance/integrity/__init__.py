"""Which models may be loaded: signed by whom, encrypted under which key, and whether pickles may be read.

Made of the configuration by settings.py, given to whatever loads models, and told to worker processes. Not aware of: files.
"""

from msgspec import Struct


class Trust(Struct, frozen=True, kw_only=True):
    """`signers`: Ed25519 public keys, of which one must have signed every model; none: whatever lies there is loaded.

    `master_key`: decrypts; empty: there is none. `key_variable`: the environment variable that it came from, which worker
    processes need not see. `pickle`: models that run code when they are read may be loaded. `model`, `version`: what the model
    is served as, if that is known; a manifest that names another is refused.
    """

    signers: tuple[bytes, ...] = ()
    master_key: bytes = b""
    key_variable: str = ""
    pickle: bool = False
    model: str = ""
    version: str = ""

    def __repr__(self) -> str:
        return f"Trust({len(self.signers)} signers, {'a' if self.master_key else 'no'} master key)"
