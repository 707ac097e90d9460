"""What a model's path and device mean, as far as names tell.

Called by reading.py and by whatever loads models. Not aware of: files' contents, which devices there are.
"""

import re

from dlproxy.config.values import ConfigError

SLEEP = "sleep:"  # the "path" of a model that only takes time
DEVICE = r"auto|cpu|(cuda|tensorrt)(:[0-9]+)?|openvino(:(CPU|GPU|NPU)(\.[0-9]+)?)?"
DEVICES = "auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N, openvino or openvino:GPU"  # for messages


def is_address(path: str) -> bool:
    """Whether a model's path names a server rather than a file."""
    return re.match(r"(?:https?|grpcs?)://", path) is not None


def python_place(path: str) -> str | None:
    """The module or .py file of a path like my_module:MyModel, folder/file.py:MyModel or file.py; None for any other path."""
    match = re.fullmatch(r"(.+):[A-Za-z_]\w*|(.+\.py)", path)
    return None if match is None else match[1] or match[2]


def is_file(path: str) -> bool:
    """Whether a model's path is one in the file system, and not my_module:MyModel."""
    place = python_place(path)
    in_module = place is not None and not place.endswith(".py") and "/" not in place
    return not (path.startswith(SLEEP) or is_address(path) or in_module)


def parse_devices(text: str) -> list[str]:
    """The devices of a list like "cuda:0,cuda:1". Raises ConfigError."""
    devices = [device.strip() for device in text.split(",")]
    for device in devices:
        if not re.fullmatch(DEVICE, device):
            message = f"device {device!r} is not understood; it is {DEVICES}, or several with commas between them"
            raise ConfigError(message, "device")
    return devices
