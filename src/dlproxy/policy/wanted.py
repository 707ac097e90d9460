"""What shall be served: every model with its versions, and which of them answers whom. Plain data with a revision.

Whoever wants something else (start, a repository's files, an operator, a tuner) makes another one of these; planner.py says
what follows. Not aware of: what is served now, where this is kept.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig

MOST_VERSION = 2**63 - 1  # as TensorFlow Serving has them


class WantedVersion(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One version of a model. `config`: its knobs, as [models.NAME] has them; `config.version` is its number.

    `stamp`: of the files behind its path: another one means another content. `instances`: so many, whatever the knob says.
    `problem`: why it cannot be served, if that was found out already.
    """

    config: ModelConfig
    stamp: str = ""
    instances: int | None = None
    problem: str = ""


class Traffic(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which version answers a request that names none, where it is not always the default one.

    `shares`: of these requests, 0 to 1, for other versions. `by`: "" (each request anew), "tenant" or "header:NAME" (who has
    the same always gets the same version). `tenants`: who gets a version of their own. `shadow`: a version that is asked too,
    at the lowest priority, and whose answers are compared and dropped. `guarded`: shares are taken back when their version
    does worse than the default one. `trunk`: a model that computes what these versions take, for all of them together.
    """

    shares: Mapping[str, float] = {}
    by: str = ""
    tenants: Mapping[str, str] = {}
    shadow: str = ""
    guarded: bool = False
    trunk: str = ""


class WantedModel(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`versions`: by their number. `default`: for requests that name none; empty: the one with the largest number that is up.

    `labels`: names of versions, to be asked for in a version's place. `on_demand`: loaded when it is asked for, and given up
    when its memory is needed. `previous`: what was wanted before the last change of versions, default or traffic.
    """

    versions: Mapping[str, WantedVersion] = {}
    default: str = ""
    labels: Mapping[str, str] = {}
    traffic: Traffic = Traffic()
    on_demand: bool = False
    previous: "WantedModel | None" = None


class Wanted(Struct, frozen=True):
    """All of it. Each change has the next revision. `files`: by model, a digest of what a repository's files said of it when
    that was taken up last: only when they say something else is it taken up again, whatever operators have done meanwhile.
    """

    models: Mapping[str, WantedModel] = {}
    revision: int = 0
    files: Mapping[str, str] = {}

    def having(self, name: str, model: WantedModel | None) -> "Wanted":
        """This, with the model as given; None: without it. Raises ConfigError for one that contradicts itself."""
        before = self.models.get(name)
        if model is not None:
            check_model(name, model)
            if before is not None and _answers(before) != _answers(model):
                model = msgspec.structs.replace(model, previous=msgspec.structs.replace(before, previous=None))
        return self.restored(name, model)

    def restored(self, name: str, model: WantedModel | None) -> "Wanted":
        """This, with the model as it was once, its past included."""
        if model is not None:
            return msgspec.structs.replace(self, models={**self.models, name: model})
        others = {other: found for other, found in self.models.items() if other != name}
        return msgspec.structs.replace(self, models=others)

    def model(self, name: str) -> WantedModel:
        """Raises ConfigError."""
        found = self.models.get(name)
        if found is None:
            raise ConfigError(f"no model '{name}' is wanted; there are: {', '.join(self.models) or 'none'}")
        return found


def number_of(version: str) -> int:
    """By which versions are ordered. Raises ConfigError for what is no version."""
    if not (version.isascii() and version.isdecimal() and int(version) <= MOST_VERSION):
        raise ConfigError(f"version '{version}' is not a whole number from 0 to {MOST_VERSION}")
    return int(version)


def check_model(name: str, model: WantedModel) -> None:
    """Raises ConfigError for numbers that are none, and for labels, shares and tenants of versions that are not wanted."""
    for version, wanted in model.versions.items():
        number_of(version)
        if wanted.config.version != version:
            raise ConfigError(f"model '{name}': version {version} is configured as version {wanted.config.version}")
    traffic = model.traffic
    uses = [
        ("the default version", model.default),
        *((f"label '{label}'", version) for label, version in model.labels.items()),
        *((f"the share of version {version}", version) for version in traffic.shares),
        *((f"tenant '{tenant}'", version) for tenant, version in traffic.tenants.items()),
        ("the shadow", traffic.shadow),
    ]
    for what, version in uses:
        if version and version not in model.versions:
            known = ", ".join(model.versions) or "none"
            raise ConfigError(f"model '{name}': {what} is version {version}, which is not wanted; there are: {known}")
    for label in model.labels:
        if not label.isidentifier():
            raise ConfigError(f"model '{name}': label '{label}' must be a word such as stable or canary")
    if any(not 0.0 <= share <= 1.0 for share in traffic.shares.values()) or sum(traffic.shares.values()) > 1.0 + 1e-9:
        raise ConfigError(f"model '{name}': the shares of its versions must be 0 to 1 and at most 1 together")


def _answers(model: WantedModel) -> object:
    return model.versions, model.default, model.traffic
