"""How a batch runs: one file per framework. A runtime is synchronous and used by one batch at a time.

Called by instance/batch.py. Not aware of: threads, batches, requests.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import Signature

TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""For the environment, before anything imports ONNX Runtime, which else reports to its maker (since 1.29 on Linux too)
and keeps a device id and a store of events below the home folder. The operator's own setting stays."""


class ModelError(Exception):
    """A model that cannot be loaded; the message says which file, what is wrong with it and what would be right."""


class Runtime(Protocol):
    """A loaded model. It may say where it computes (`device: str`) and, where its path does not tell, what it was loaded from
    (`files: list[str]`), and have a `close()` to call at the end.
    """

    signature: Signature

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute. Inputs and outputs in signature order; may raise anything, which fails this batch only."""
        ...
