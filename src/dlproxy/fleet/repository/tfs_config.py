"""TensorFlow Serving's models.config: which models there are, where, and which of their versions are served.

Called by scan.py. Not aware of: files, what is served. What it logs of requests (`logging_config`) has no effect here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.text_format import line_of, read_text
from dlproxy.fleet.repository.version_choice import VersionChoice
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.protos.tfs_config import batching_parameters, models_config

PLATFORM = "tensorflow"


class ListedModel(NamedTuple):
    """`policy`: None where the file leaves it to the default. `labels`: to their versions."""

    name: str
    base_path: str
    policy: VersionPolicy | None
    labels: Mapping[str, str]


class _Model(Struct, frozen=True):
    name: str = ""
    base_path: str = ""
    model_type: str = ""
    model_platform: str = ""
    model_version_policy: VersionChoice = VersionChoice()
    version_labels: Mapping[str, int] = {}


class _List(Struct, frozen=True):
    config: tuple[_Model, ...] = ()


class _Server(Struct, frozen=True):
    model_config_list: _List = _List()
    custom_model_config: dict[str, Any] | None = None


def read_models_config(text: str, where: str) -> list[ListedModel]:
    """In the file's order. Raises ConfigError, which names the line."""
    return models_and_rest(text, where)[0]


def models_and_rest(text: str, where: str) -> tuple[list[ListedModel], list[str]]:
    """The same, and the settings that have no effect. Raises ConfigError."""
    server, rest = read_text(text, where, models_config, _Server)
    if server.custom_model_config is not None:
        raise ConfigError(f"{where}{line_of(text, 'custom_model_config')}: dlproxy takes a model_config_list only")
    return [_listed(model, text, where) for model in server.model_config_list.config], rest


class BatchingParameters(Struct, frozen=True):
    """Of all models of a server; None where the file says nothing. Times are in microseconds."""

    max_batch_size: int | None = None
    batch_timeout_micros: int | None = None
    max_enqueued_batches: int | None = None
    num_batch_threads: int | None = None
    thread_pool_name: str | None = None
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool | None = None
    max_execution_batch_size: int | None = None


def read_batching_parameters(text: str, where: str) -> BatchingParameters:
    """The content of the file that --batching_parameters_file names. Raises ConfigError, which names the line."""
    wrapped, _ = read_text(text, where, batching_parameters, _Batching)
    given = {name: getattr(wrapped, name) for name in wrapped.__struct_fields__}
    return BatchingParameters(**{name: one.value if isinstance(one, _Value) else one for name, one in given.items()})


class _Value(Struct, frozen=True):
    """A number, text or truth that may be left out, as protobuf wraps it."""

    value: Any = None


class _Batching(Struct, frozen=True):
    max_batch_size: _Value | None = None
    batch_timeout_micros: _Value | None = None
    max_enqueued_batches: _Value | None = None
    num_batch_threads: _Value | None = None
    thread_pool_name: _Value | None = None
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: _Value | None = None
    max_execution_batch_size: _Value | None = None


def _listed(model: _Model, text: str, where: str) -> ListedModel:
    def error(what: str) -> ConfigError:
        line = line_of(text, model.name or model.base_path or "config")
        return ConfigError(f"{where}{line}: model '{model.name}': {what}")

    if not model.name or not model.base_path:
        raise error(f"it has no {'base_path' if model.name else 'name'}")
    if model.model_platform not in ("", PLATFORM) or model.model_type == "OTHER":
        raise error(f"its platform is {model.model_platform or 'OTHER'}; dlproxy takes {PLATFORM}")
    labels = {label: str(version) for label, version in model.version_labels.items()}
    try:
        return ListedModel(model.name, model.base_path, model.model_version_policy.policy(), labels)
    except ConfigError as wrong:
        raise error(str(wrong)) from None
