"""cluster.toml: nodes and what they have, models and what they take, for `dlproxy place`.

Read by cli/place.py. Not aware of: what a server's own configuration says.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from dlproxy.config.messages import unknown_key
from dlproxy.config.paths import is_model_name
from dlproxy.config.values import ConfigError

MEMORY = "memory_mb"  # the one kind that is measured, too: what a node says that a loaded model holds

Amount = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]

Section = TypeVar("Section", bound=Struct)


class PlaceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[place]. `moves`: loads and unloads that are under way at a time. `every_s`: between two looks at the nodes; `window_s`:
    over which load is measured; `patience_s`: a node that is silent for so long is lost; `steady_s`: one that is back has to
    answer for so long before it counts.
    """

    every_s: Positive = 5.0
    moves: Annotated[int, Meta(ge=1)] = 2
    window_s: Positive = 60.0
    patience_s: Positive = 15.0
    steady_s: Amount = 60.0


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[nodes.NAME]. `control`: its control port's URL. `domain`: nodes of the same one fail together, as those of a rack do.
    `has`: of each kind of resource. `cores`: that compute, 0: as the node says; `speed`: how many times as quick as those of a
    node of speed 1.
    """

    control: str
    domain: str = ""
    has: dict[str, Amount] = {}
    cores: Amount = 0.0
    speed: Positive = 1.0


class PlacedConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.NAME]. `path`: on the nodes. `config`: its knobs there. `takes`: of each kind, by one replica. `replicas`: nodes
    that serve it at least; `most_replicas`: at most, where load wants more; 0: as many as there are.
    """

    path: str
    config: dict[str, Any] = {}
    takes: dict[str, Amount] = {}
    replicas: Annotated[int, Meta(ge=1)] = 1
    most_replicas: Count = 0


class ClusterConfig(Struct, frozen=True, kw_only=True):
    place: PlaceConfig
    nodes: dict[str, NodeConfig]
    models: dict[str, PlacedConfig]


def load_cluster(path: Path) -> ClusterConfig:
    """Raises ConfigError, which names the table and what would be right."""
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for key in told:
        if key not in ClusterConfig.__struct_fields__:
            raise ConfigError(f"{path}: {unknown_key(key, ClusterConfig.__struct_fields__)}")
    cluster = ClusterConfig(
        place=_section(path, "place", told.get("place", {}), PlaceConfig),
        nodes={name: _section(path, f"nodes.{name}", one, NodeConfig) for name, one in _tables(path, told, "nodes").items()},
        models={
            name: _section(path, f"models.{name}", one, PlacedConfig) for name, one in _tables(path, told, "models").items()
        },
    )
    _check(path, cluster)
    return cluster


def _check(path: Path, cluster: ClusterConfig) -> None:
    kinds = {kind for node in cluster.nodes.values() for kind in node.has}
    for name, model in cluster.models.items():
        if not is_model_name(name):
            raise ConfigError(f"{path}: models.{name}: no model can have this name")
        if 0 < model.most_replicas < model.replicas:
            raise ConfigError(
                f"{path}: models.{name}: most_replicas {model.most_replicas} is less than replicas {model.replicas}"
            )
        for kind in model.takes:
            if kind not in kinds:
                raise ConfigError(
                    f"{path}: models.{name}: no node has any {unknown_key(kind, kinds).removeprefix('unknown key ')}"
                )
    ports: dict[str, str] = {}
    for name, node in cluster.nodes.items():
        if (other := ports.setdefault(node.control, name)) != name:
            raise ConfigError(f"{path}: nodes.{name}: {node.control} is the control port of {other}")


def _tables(path: Path, told: dict[str, Any], key: str) -> dict[str, Any]:
    found = told.get(key)
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: it has no [{key}.NAME]")
    return found


def _section(path: Path, place: str, told: Any, kind: type[Section]) -> Section:
    if isinstance(told, dict):
        for key in told:
            if key not in kind.__struct_fields__:
                raise ConfigError(f"{path}: {place}: {unknown_key(key, kind.__struct_fields__)}")
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {place}: {error}") from None
