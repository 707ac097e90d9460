"""Where packages lie that were installed apart. Not aware of: what is in them."""

from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    root: Path

    def of(self, requirement: str) -> Path:
        return self.root / requirement.partition("==")[0]
