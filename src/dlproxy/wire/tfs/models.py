"""What TensorFlow Serving's protocols say of models: which one a request means, how its versions are, what it takes and gives.

Texts and states are those of tensorflow_serving/model_servers. Called by tfs/http.py and grpc/tfs.py. Not aware of: transports.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from dlproxy.instance.remote.address import DEFAULT_SIGNATURE
from dlproxy.instance.remote.tensor_proto import NAMES, NUMBERS
from dlproxy.message import Failure, FailureKind, InferenceError, Principal, TensorSpec, invalid
from dlproxy.wire.catalog import Catalog, NotServedError, ServedModel
from dlproxy.wire.operations import ModelRepository

PREDICT = "tensorflow/serving/predict"  # what a signature is for
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_STATES = {"wanted": "START", "loading": "LOADING", "leaving": "UNLOADING", "failed": "END"}  # of what does not serve

Found = TypeVar("Found")


class ModelSpec(Struct, frozen=True):
    """Which model a request names. `version`: a number; `label`: instead of it; both may be empty."""

    name: str
    version: str = ""
    label: str = ""

    def found(self, look: Callable[[str, str, Principal], Found], who: Principal) -> Found:
        """What `look` finds for a name and a version. Raises InferenceError; NotServedError where waiting may help."""
        if not self.name:
            raise invalid("ModelSpec has no name specified.")
        try:
            return look(self.name, self.version or self.label, who)
        except NotServedError as missing:
            if missing.failure.kind is not FailureKind.NOT_FOUND:
                raise
        if self.label:
            raise invalid(f"Unrecognized servable version label: {self.label}")
        asked = f"Specific({self.name}, {self.version})" if self.version else f"Latest({self.name})"
        raise _not_found(f"Servable not found for request: {asked}")


class VersionStatus(Struct):
    """How one version is, in TensorFlow Serving's words."""

    version: str
    state: str
    status: dict[str, str]


def statuses(catalog: Catalog, repository: ModelRepository | None, spec: ModelSpec) -> list[VersionStatus]:
    """Of the version named, or of all, the newest first. `repository`: knows of what is not served. Raises InferenceError."""
    found: dict[str, VersionStatus] = {}
    for each in repository.states() if repository is not None else ():
        if each.name == spec.name and each.phase in _STATES and not (each.on_demand and each.phase == "wanted"):
            found[each.version] = _status(each.version, _STATES[each.phase], each.reason)
    for version in catalog.versions(spec.name):
        up = catalog.get(spec.name, version).ready
        found[version] = _status(version, "AVAILABLE" if up else "LOADING")  # its instances are on their way
    wanted = spec.version or catalog.route_of(spec.name).labels.get(spec.label, "")
    if spec.label and not wanted:
        raise invalid(f"Unrecognized servable version label: {spec.label}")
    if wanted:
        found = {wanted: found[wanted]} if wanted in found else {}
    if found:
        return [found[version] for version in sorted(found, key=int, reverse=True)]
    if catalog.waiting is not None and catalog.waiting.may_come(spec.name, wanted):
        message = f"model '{spec.name}' is not loaded now; a request for it will load it"
        raise InferenceError(Failure(FailureKind.UNAVAILABLE, message))
    raise _not_found(f"Could not find {f'version {wanted}' if wanted else 'any versions'} of model {spec.name}")


def _status(version: str, state: str, reason: str = "") -> VersionStatus:
    failed = state == "END"
    return VersionStatus(
        version, state, {"error_code": "UNKNOWN" if failed else "OK", "error_message": reason if failed else ""}
    )


def check_signature(name: str, refused: Callable[[str], InferenceError]) -> None:
    """dlproxy serves one signature of a model. Raises what `refused` makes of the name of another."""
    if name not in ("", DEFAULT_SIGNATURE):
        raise refused(name)


def no_such_signature(name: str) -> InferenceError:
    """As classify and regress say it, by either transport."""
    return invalid(f"No signature was found with the name: {name}")


def signature_def(model: ServedModel) -> dict[str, Any]:
    """A SignatureDefMap, as its JSON has it."""
    signature = model.signature
    definition = {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": PREDICT,
    }
    return {"signature_def": {DEFAULT_SIGNATURE: definition}}


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.shape]
    return {
        "dtype": NAMES[NUMBERS[spec.dtype]],
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": f"{spec.name}:0",
    }


def _not_found(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.NOT_FOUND, message))
