"""The server under load, asked before and after: what a model takes, whether one request succeeds, how batches were sized.

Called by run.py. Speaks the Open Inference Protocol over http.client. Not aware of: the load.
"""

import http.client
import socket
import ssl
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct

from dlproxy.hosts import authority, plain_host
from dlproxy.lab.load.settings import LoadError, Settings
from dlproxy.message import DType, TensorSpec

PATIENCE_S = 60.0  # a model may load or compile on its first request
_T = TypeVar("_T")


class Model(Struct, frozen=True):
    """A model as the server describes it. `outputs` may be empty."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = ""


class Answer(Struct):
    """One whole HTTP answer."""

    status: int
    reason: str
    body: bytes
    json_bytes: int | None = None

    @property
    def line(self) -> str:
        return f"{self.status} {self.reason}".strip()

    @property
    def error(self) -> str:
        """What the server says is wrong: the error text of the protocol, or the start of the body."""
        try:
            text = msgspec.json.decode(self.body, type=_Error).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = self.body[:200].decode("utf-8", errors="replace")
        return " ".join(text.split())


class _Error(Struct):
    error: str


class _Tensor(Struct):
    name: str
    datatype: DType
    shape: tuple[int, ...]

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, self.shape)


class _Metadata(Struct):
    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor] = []
    platform: str = ""


class _Listed(Struct):
    name: str


class _Count(Struct, frozen=True):
    count: int = 0
    ns: int = 0


class _BatchStats(Struct):
    batch_size: int
    compute_input: _Count = _Count()
    compute_infer: _Count = _Count()
    compute_output: _Count = _Count()

    @property
    def ns(self) -> int:
        return self.compute_input.ns + self.compute_infer.ns + self.compute_output.ns


class _ModelStats(Struct):
    inference_stats: dict[str, _Count] = {}
    batch_stats: list[_BatchStats] = []


class _Stats(Struct):
    model_stats: list[_ModelStats]


class Counters(Struct, frozen=True):
    """What a server counted of one model so far: batches by size, and per phase of a request how many and their seconds.

    `busy_s`: how long all batches took together.
    """

    batches: dict[int, int]
    busy_s: float
    phases: dict[str, tuple[int, float]]


class _OutputParams(Struct):
    binary_data_size: int | None = None


class _Output(Struct):
    name: str
    datatype: DType
    shape: tuple[int, ...]
    parameters: _OutputParams | None = None
    data: Any = None


class _Reply(Struct):
    outputs: list[_Output]


class Target:
    """A server by its URL. Every method raises LoadError where the server is not there or does not do what it should."""

    def __init__(self, url: str, settings: Settings | None = None) -> None:
        """`settings`: with what is sent along, and whom to believe."""
        self.url = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
            http.client.HTTPConnection(host or "", port or 80)  # which without a port would look for one in the host
        except (ValueError, http.client.InvalidURL) as error:
            raise LoadError(f"URL '{url}' is not understood ({error}); write it like http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise LoadError(f"URL '{url}' cannot be used; write it like http://127.0.0.1:8000 or https://")
        settings = settings or Settings(url=url)
        self._headers = dict(settings.headers)
        self._tls = settings.tls if parts.scheme == "https" else None
        self._host, self._port = plain_host(host), (443 if self._tls else 80) if port is None else port
        self._prefix = parts.path.rstrip("/").removesuffix("/v2")
        self.host_header = authority(host, self._port)
        self.address: tuple[int, Any] = (socket.AF_INET, ())
        """Family and address that answered; set by the first request."""

    @property
    def tls_name(self) -> str:
        """Whose certificate the server must show; empty where it speaks plain HTTP."""
        return self._host if self._tls is not None else ""

    def infer_path(self, model: str) -> str:
        return f"{self._path(model)}/infer"

    def model(self, name: str | None) -> Model:
        """What the server says about a model; without a name, about the only one that it has."""
        if name is None:
            name = self._only_model()
        answer = self.ask("GET", self._path(name))
        described = _decoded(answer, _Metadata)
        if described is None:
            raise LoadError(self._unknown(name, answer))
        if not described.inputs:
            raise LoadError(f"{self.url} does not say what inputs model '{name}' takes, so no requests can be made for it")
        inputs = tuple(tensor.spec() for tensor in described.inputs)
        return Model(name, inputs, tuple(tensor.spec() for tensor in described.outputs), described.platform)

    def counters(self, model: str) -> Counters | None:
        """What is counted of all its versions; None if the server does not tell."""
        try:
            stats = _decoded(self.ask("GET", f"{self._path(model)}/stats"), _Stats)
        except LoadError:
            return None
        if stats is None:
            return None
        sizes: dict[int, int] = {}
        busy_ns = 0
        phases: dict[str, tuple[int, float]] = {}
        for entry in stats.model_stats:
            for size in entry.batch_stats:
                sizes[size.batch_size] = sizes.get(size.batch_size, 0) + size.compute_infer.count
                busy_ns += size.ns
            for name, spent in entry.inference_stats.items():
                count, seconds = phases.get(name, (0, 0.0))
                phases[name] = count + spent.count, seconds + spent.ns * 1e-9
        return Counters(sizes, busy_ns * 1e-9, phases)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE_S)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE_S, context=self._tls)
        try:
            connection.connect()
            self.address = connection.sock.family, connection.sock.getpeername()
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            reply = connection.getresponse()
            json_bytes = reply.getheader("inference-header-content-length", "")
            return Answer(reply.status, reply.reason, reply.read(), int(json_bytes) if json_bytes.isdecimal() else None)
        except TimeoutError:
            raise LoadError(f"{self.url} did not answer within {PATIENCE_S:g} s") from None
        except ssl.SSLError as error:
            raise LoadError(f"no TLS connection to {self.url}: {error.strerror or error}") from None
        except (OSError, UnicodeError) as error:
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise LoadError(f"cannot reach {self.url}: {reason}; is the server running there?") from None
        except (http.client.HTTPException, ValueError):
            raise LoadError(f"the server at {self.url} does not speak HTTP; is the port right?") from None
        finally:
            connection.close()

    def _path(self, model: str) -> str:
        return f"{self._prefix}/v2/models/{quote(model, safe='')}"

    def _models(self) -> list[str] | None:
        """The names of the server's models; None if it does not tell."""
        answer = self.ask("POST", f"{self._prefix}/v2/repository/index", b"{}", {"content-type": "application/json"})
        listed = _decoded(answer, list[_Listed])
        return None if listed is None else list(dict.fromkeys(model.name for model in listed))

    def _only_model(self) -> str:
        names = self._models()
        if names is not None and len(names) == 1:
            return names[0]
        known = f"; the server has {', '.join(names)}" if names else ""
        raise LoadError(f"no model given: --model NAME{known}")

    def _unknown(self, name: str, answer: Answer) -> str:
        if answer.status == 200:
            try:
                msgspec.json.decode(answer.body, type=_Metadata)
            except msgspec.ValidationError as error:
                return f"{self.url} describes model '{name}' in a way that is not understood: {error}"
            except (msgspec.DecodeError, UnicodeDecodeError):
                return f"{self.url} is not an Open Inference Protocol server: GET {self._path(name)} did not return JSON"
        names = self._models()
        if names is not None:
            known = f"it has {', '.join(names)}" if names else "it has none"
            if name in names:
                return f"{self.url} does not describe its model '{name}': {answer.line}: {answer.error}"
            return f"{self.url} has no model '{name}'; {known}"
        if _decoded(self.ask("GET", f"{self._prefix}/v2"), _Listed) is not None:
            return f"{self.url} has no model '{name}': {answer.line}: {answer.error}"
        return (
            f"{self.url} is not an Open Inference Protocol server: GET {self._path(name)} returned {answer.line}, "
            "not a model's description"
        )


def check_answer(answer: Answer, model: Model) -> None:
    """Compare the answer to an inference request with what the metadata promises. Raises LoadError."""
    if answer.status != 200:
        raise LoadError(f"the server refused a request to '{model.name}': {answer.line}: {answer.error or 'no reason given'}")
    head = answer.body if answer.json_bytes is None else answer.body[: answer.json_bytes]
    try:
        reply = msgspec.json.decode(head, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"the answer from '{model.name}' does not follow the Open Inference Protocol: {error}") from None
    found = {output.name: output for output in reply.outputs}
    for spec in model.outputs:
        if spec.name not in found:
            raise LoadError(f"the answer from '{model.name}' lacks output '{spec.name}', which its metadata promises")
        _check_output(found[spec.name], spec)
    binary = sum(output.parameters.binary_data_size or 0 for output in reply.outputs if output.parameters)
    if len(answer.body) - len(head) != binary:
        raise LoadError(
            f"the answer from '{model.name}' has {len(answer.body) - len(head)} binary bytes, but its header says {binary}"
        )


def _check_output(output: _Output, spec: TensorSpec) -> None:
    if output.datatype is not spec.dtype or not _fits(output.shape, spec.shape):
        raise LoadError(
            f"output '{spec.name}' came as {output.datatype.value} {list(output.shape)}, "
            f"the model's metadata says {spec.dtype.value} {list(spec.shape)}"
        )


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(size < 0 or size == is_ for is_, size in zip(shape, declared, strict=True))


def _decoded(answer: Answer, kind: type[_T]) -> _T | None:
    """The JSON of a successful answer; None if it is none or something else."""
    if answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
