"""Networks that this process itself asks, on the event loop: agents, forecasts, what watches telemetry. One thread each.

Called by autopilot/ and fleet/forecasts.py, which know what the network must take and say. Not aware of: what for.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.files import read_files
from dlproxy.instance.runtime.formats import ANY

if TYPE_CHECKING:
    from dlproxy.instance.runtime.onnx import OnnxRuntime


def read_network(path: str, trust: Trust = ANY) -> "OnnxRuntime":
    """As signed or encrypted, where [integrity] wants that; with its `metadata`. Raises ModelError."""
    from dlproxy.instance.runtime.onnx import OnnxRuntime  # most servers ask none

    network = OnnxRuntime(Path(path), threads=1, files=read_files(path, trust))
    network.forget_graph()
    return network
