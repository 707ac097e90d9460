"""What a model's `device` means, and what is chosen from what is present.

Called by the runtimes to choose, and by fleet/ to place. Not aware of: frameworks; what they found is passed in.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.config.paths import DEVICE_KINDS, OWN_DEVICES, split_device
from dlproxy.instance.runtime import DeviceKind, ModelError, Runtime
from dlproxy.instance.runtime.plugins import plugin
from dlproxy.message import TensorSpec

if TYPE_CHECKING:
    from dlproxy.instance import Instance

CPU = "cpu"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
EMPTY: Mapping[str, str] = MappingProxyType({})
_PACKAGES = {CUDA_PROVIDER: "onnxruntime-gpu", TENSORRT_PROVIDER: "onnxruntime-gpu", OPENVINO_PROVIDER: "onnxruntime-openvino"}


class Plan(Struct, frozen=True):
    """A way to run an ONNX model. `main`: the provider without which it is not on `place`; `providers`: in order of preference.

    The CPU's provider stands last, for operators that the others lack.
    """

    place: str
    main: str
    providers: Sequence[tuple[str, Mapping[str, str]]]


ON_CPU = Plan(CPU, CPU_PROVIDER, [(CPU_PROVIDER, {})])


def onnx_plans(
    device: str,
    available: Collection[str],
    gpus: int,
    *,
    threads: int = 1,
    memory_limit_mb: int = 0,
    rows: Mapping[str, str] = EMPTY,
) -> list[Plan]:
    """The ways to try in turn: one, or with "auto" the first GPU, if there is any, and then the CPU. Raises ModelError.

    `available`: the providers that this ONNX Runtime was built with; `gpus`: how many NVIDIA GPUs the driver sees; `threads`:
    OpenVINO's; `rows`: from `tensorrt_rows`, where TensorRT is meant.
    TensorRT and OpenVINO must be named: one builds engines for minutes, and the other is seldom the better on a CPU.
    """
    kind, part = _parsed(device)
    if kind == CPU or (kind == "auto" and not (gpus and CUDA_PROVIDER in available)):
        return [ON_CPU]
    if kind not in OWN_DEVICES:
        return [_plan_elsewhere(device, available, memory_limit_mb)]
    main = {"tensorrt": TENSORRT_PROVIDER, "openvino": OPENVINO_PROVIDER}.get(kind, CUDA_PROVIDER)
    if main not in available:
        raise ModelError(
            f"device {device!r} needs ONNX Runtime's {main}, but this build has only {', '.join(available)}: "
            f"install {_PACKAGES[main]} in place of onnxruntime"
        )
    if memory_limit_mb and kind in ("tensorrt", "openvino"):
        raise ModelError(f"gpu_memory_limit_mb cannot be kept by device {device!r}; take the knob out, or device = 'cuda'")
    if kind == "openvino":
        options = {"device_type": part or "CPU", "num_of_threads": str(threads)}
        return [Plan(f"openvino:{part or 'CPU'}", main, [(main, options), (CPU_PROVIDER, {})])]
    index = _number(device, part, gpus, "the NVIDIA driver")
    # Trying every algorithm on each new shape, the default, would stall the first batch of every size
    cuda = {"device_id": str(index), "cudnn_conv_algo_search": "HEURISTIC"}
    if memory_limit_mb:  # the arena doubles by default, and would fail at the limit with half of it unused
        cuda |= {"gpu_mem_limit": str(memory_limit_mb * 2**20), "arena_extend_strategy": "kSameAsRequested"}
    providers = [(CUDA_PROVIDER, cuda), (CPU_PROVIDER, {})]
    if kind == "tensorrt":
        return [Plan(f"tensorrt:{index}", main, [(main, {"device_id": str(index), **rows}), *providers])]
    plan = Plan(f"cuda:{index}", main, providers)
    return [plan, ON_CPU] if kind == "auto" else [plan]


def _plan_elsewhere(device: str, available: Collection[str], memory_limit_mb: int) -> Plan:
    """On a device that another package knows. Raises ModelError."""
    kind, _ = _parsed(device)
    other = _other_kind(kind)
    if not other.provider:
        raise ModelError(f"device {device!r} is not for ONNX models")
    if other.provider not in available:
        raise ModelError(
            f"device {device!r} needs ONNX Runtime's {other.provider}, but this build has only {', '.join(available)}"
        )
    if memory_limit_mb:
        raise ModelError(f"gpu_memory_limit_mb cannot be kept by device {device!r}; take the knob out")
    number = _number_elsewhere(device, other)
    return Plan(f"{kind}:{number}", other.provider, [(other.provider, other.options(number)), (CPU_PROVIDER, {})])


def instance_maker(device: str) -> "Callable[[str, Runtime], Instance] | None":
    """What runs the batches of a model in this process that is on such a device, if its package brings something."""
    kind, _ = _parsed(device)
    if kind in OWN_DEVICES:
        return None
    other = _other_kind(kind)
    _number_elsewhere(device, other)
    return other.instance


def tensorrt_rows(inputs: Sequence[TensorSpec], most_rows: int) -> dict[str, str]:
    """The options that make one engine take every batch of up to `most_rows`, or none where further axes are open.

    Without them TensorRT builds an engine anew, in mid-service, for each batch that is larger than all before it.
    """
    if not any(-1 in spec.shape for spec in inputs) or any(-1 in spec.shape[1:] for spec in inputs):
        return {}

    def shapes(rows: int) -> str:
        sizes = {spec.name: [rows if size < 0 else size for size in spec.shape] for spec in inputs}
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes.items())

    bounds = {"min": 1, "opt": most_rows, "max": most_rows}
    return {f"trt_profile_{bound}_shapes": shapes(rows) for bound, rows in bounds.items()}


def gpu_of(device: str, gpus: int, framework: str) -> int | None:
    """The number of the GPU on which torch or TensorFlow shall run; None: on the CPU. `gpus`: how many the framework sees.

    Raises ModelError for one that is not there, and for devices of ONNX Runtime.
    """
    kind, part = _parsed(device)
    if kind == CPU or (kind == "auto" and not gpus):
        return None
    if kind not in ("auto", "cuda"):
        raise ModelError(f"device {device!r} is for {_whom(kind)} models; this one takes auto, cpu, cuda or cuda:N")
    return _number(device, part, gpus, framework)


def visible_gpus(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables under which a process sees this GPU alone, as its first, or no GPU; for models that choose by themselves.

    Raises ModelError for a GPU beyond those that `environment` shows, and for devices of ONNX Runtime.
    """
    kind, part = _parsed(device)
    if kind == "auto":
        return {}
    if kind == CPU:
        return {"CUDA_VISIBLE_DEVICES": ""}
    variable = "CUDA_VISIBLE_DEVICES" if kind == "cuda" else "" if kind in OWN_DEVICES else _other_kind(kind).variable
    if not variable:
        raise ModelError(f"device {device!r} is for {_whom(kind)} models; a Python class takes auto, cpu, cuda or cuda:N")
    shown = environment.get(variable)
    if shown is None:
        return {variable: part or "0"}
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return {variable: names[_number(device, part, len(names), f"{variable} = {shown!r}")]}


def in_words(places: Sequence[str]) -> str:
    """Where the instances are, for the start-up report: " on cuda:0 and cuda:1"; nothing where all of them are on the CPU."""
    different = list(dict.fromkeys(places))
    return "" if different in ([], [CPU]) else f" on {' and '.join(different)}"


def _parsed(device: str) -> tuple[str, str]:
    """What stands before and behind the colon. Raises ModelError."""
    try:
        return split_device(device)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def _other_kind(kind: str) -> DeviceKind:
    """Another package's. Raises ModelError."""
    found = plugin(DEVICE_KINDS, kind, DeviceKind)
    if found is None:
        raise ModelError(f"device {kind!r} is gone: no installed package adds it any more")
    return found


def _number_elsewhere(device: str, other: DeviceKind) -> int:
    try:
        count = other.count()
    except Exception as error:
        raise ModelError(f"device {device!r}: its package cannot count them: {type(error).__name__}: {error}") from error
    return _number(device, _parsed(device)[1], count, "its package", "device")


def _whom(kind: str) -> str:
    return "ONNX" if kind in OWN_DEVICES else "other"


def _number(device: str, part: str, count: int, who: str, what: str = "GPU") -> int:
    number = int(part or 0)
    if number >= count:
        raise ModelError(f"device {device!r} is not there: {who} sees {count} {what}{'s' * (count != 1)}")
    return number
