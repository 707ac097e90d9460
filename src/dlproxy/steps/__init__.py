"""The steps that pipelines call by name: classes made once with options, then called with arrays, by several threads at once.

Called by whatever runs pipelines. A class has Options (a table of knobs), `outputs` (types and shapes), and takes its inputs by
name; what it cannot take is a ValueError, an option that does not fit a ConfigError. Not aware of: pipelines, requests.
"""

from collections.abc import Mapping
from types import MappingProxyType

STEPS: Mapping[str, str] = MappingProxyType(
    {
        "image.decode": "dlproxy.steps.image:Decode",
        "image.resize": "dlproxy.steps.image:Resize",
        "image.normalise": "dlproxy.steps.image:Normalise",
        "image.crop": "dlproxy.steps.image:Crop",
        "boxes.nms": "dlproxy.steps.boxes:Nms",
        "audio.decode": "dlproxy.steps.sound:Decode",
        "audio.log_mel": "dlproxy.steps.mel:LogMel",
        "text.tokenize": "dlproxy.steps.tokens:Tokenize",
        "text.pool": "dlproxy.steps.scores:Pool",
        "softmax": "dlproxy.steps.scores:Softmax",
        "top_k": "dlproxy.steps.scores:TopK",
        "argmax": "dlproxy.steps.scores:ArgMax",
        "guard": "dlproxy.steps.guard:Guard",
        "choose": "dlproxy.steps.choosing:Choose",
        "combine.average": "dlproxy.steps.combine:Average",
        "combine.weighted": "dlproxy.steps.combine:Weighted",
        "combine.vote": "dlproxy.steps.combine:Vote",
        "combine.stack": "dlproxy.steps.combine:Stack",
        "combine.confidence": "dlproxy.steps.combine:Confidence",
    }
)
"""By name, module:class; imported only when used, as some need packages of the extra `steps`."""
