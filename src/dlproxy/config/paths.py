"""What a model's path, device and way of running mean, as far as names tell; those that installed packages add included.

Called by the rest of config/ and by whatever loads models. Not aware of: files' contents, which devices there are.
"""

import difflib
import re

from dlproxy.config.pipelines import PIPELINE
from dlproxy.config.values import ConfigError

SLEEP = "sleep:"  # the "path" of a model that only takes time
RUNTIMES = "dlproxy.runtimes"  # entry points of other packages, named .SUFFIX or SCHEME of paths
DEVICE_KINDS = "dlproxy.devices"  # and those named as a device is before the colon
INSTANCE_KINDS = "dlproxy.instances"  # and those named as `run` has it
LOCAL_WAYS = ("auto", "inline", "thread", "process")  # among which tuning may choose
OWN_WAYS = (*LOCAL_WAYS, "ray")
OWN_DEVICES = {"auto": "", "cpu": "", "cuda": "[0-9]+", "tensorrt": "[0-9]+", "openvino": r"(CPU|GPU|NPU)(\.[0-9]+)?"}
FORECASTS = ("off", "trend", "daily")  # and files that end in NETWORK
NETWORK = ".onnx"
DEVICES = "auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N, openvino or openvino:GPU"  # for messages


def scheme_of(path: str) -> str:
    """What stands before :// in a model's path, if anything does."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://", path)
    return match[1] if match else ""


def is_address(path: str) -> bool:
    """Whether a model's path names a server rather than a file."""
    return scheme_of(path) in ("http", "https", "grpc", "grpcs")


def python_place(path: str) -> str | None:
    """The module or .py file of a path like my_module:MyModel, folder/file.py:MyModel or file.py; None for any other path."""
    match = None if scheme_of(path) else re.fullmatch(r"(.+):[A-Za-z_]\w*|(.+\.py)", path)
    return None if match is None else match[1] or match[2]


def is_file(path: str) -> bool:
    """Whether a model's path is one in the file system, and not my_module:MyModel."""
    place = python_place(path)
    in_module = place is not None and not place.endswith(".py") and "/" not in place
    return not (path.startswith(SLEEP) or scheme_of(path) or in_module or path == PIPELINE)


def is_model_name(name: str) -> bool:
    """Whether a model may be called so: in one piece in the path of a URL, and readable in a log."""
    return "/" not in name and name.isprintable() and name.strip() == name and bool(name.strip("."))


def parse_devices(text: str) -> list[str]:
    """The devices of a list like "cuda:0,cuda:1". Raises ConfigError."""
    devices = [device.strip() for device in text.split(",")]
    for device in devices:
        try:
            split_device(device)
        except ConfigError as error:
            raise ConfigError(f"{error}, or several with commas between them", "device") from None
    return devices


def split_device(device: str) -> tuple[str, str]:
    """The kind of a device and what stands behind the colon. Raises ConfigError."""
    kind, colon, part = device.partition(":")
    pattern = OWN_DEVICES.get(kind)
    if pattern is None:
        others = plugged_in(DEVICE_KINDS)
        pattern = "[0-9]+" if kind in others else None
        if pattern is None:
            added = f" (installed packages add {', '.join(others)})" if others else ""
            raise ConfigError(f"device {device!r} is not understood; it is {DEVICES}{added}")
    if colon and not (part and re.fullmatch(pattern, part)):
        raise ConfigError(f"device {device!r} is not understood; it is {DEVICES}")
    return kind, part


def is_network(value: str) -> bool:
    """Whether a knob that takes names or what was learnt (a forecast, a policy, what watches) has a file of the latter."""
    return value.endswith(NETWORK)


def check_forecast(forecast: str) -> None:
    """Raises ConfigError for one that nobody knows."""
    if forecast not in FORECASTS and not is_network(forecast):
        near = difflib.get_close_matches(forecast, FORECASTS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(FORECASTS)}, or a file that ends in {NETWORK}"
        raise ConfigError(f"forecast = {forecast!r} is not understood; {hint}", "forecast")


def check_way(run: str) -> None:
    """Raises ConfigError for a way of running that nobody knows."""
    if run not in OWN_WAYS and run not in (others := plugged_in(INSTANCE_KINDS)):
        known = [*OWN_WAYS, *others]
        near = difflib.get_close_matches(run, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known)}"
        raise ConfigError(f"run = {run!r} is not understood; {hint}", "run")


def plugged_in(group: str) -> list[str]:
    """The names of the entry points that installed packages have in a group."""
    from importlib.metadata import entry_points  # a dozen modules, which hardly any start needs

    return sorted(entry_points(group=group).names)
