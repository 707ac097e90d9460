"""The control port of a running server, asked over http.client: the models' state, the autopilot's, what is remembered, and
changes.

Called by the commands that operators use. Not aware of: command-line arguments, how a state is shown (told.py has what it is).
"""

import difflib
import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from dlproxy.cli.credentials import Credentials
from dlproxy.cli.told import CacheState, DashboardState, ExemplarState, GatewayState, LogState, ModelState, PilotState
from dlproxy.config import ConfigError
from dlproxy.config.secrets import KEY_VARIABLE, with_key
from dlproxy.hosts import plain_host

NOBODY = Credentials()
PORT = 8002
PATIENCE_S = 10.0
RESTART_PATIENCE_S = 3600.0  # each gateway loads all models, and drains
ACTION_PATIENCE_S = 900.0  # a model may take load_timeout_s (300 s) to load, and one that leaves first ends its batch

Told = TypeVar("Told")


class ControlError(Exception):
    """What was asked cannot be done; the message says why and what would be right."""


class _Forgotten(Struct):
    """As POST /cache/clear tells it."""

    forgotten: int


class ControlPort:
    """A control port by its URL. Every method raises ControlError; what they return is JSON, which `states` reads."""

    def __init__(self, url: str, asks: Credentials = NOBODY) -> None:
        self._asks = asks
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
            http.client.HTTPConnection(host or "", port or PORT)  # which without a port would look for one in the host
        except (ValueError, http.client.InvalidURL) as error:
            raise ControlError(
                f"--control '{url}' is not understood ({error}); write it like http://127.0.0.1:{PORT}"
            ) from None
        if parts.scheme not in ("http", "https") or not host or parts.path or parts.query or parts.fragment:
            raise ControlError(f"--control '{url}' cannot be used; write it like http://127.0.0.1:{PORT} or https://")
        try:
            self._tls = asks.tls if parts.scheme == "https" else None
        except ConfigError as error:
            raise ControlError(str(error)) from None
        self._host, self._port = plain_host(host), PORT if port is None else port

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self._host in ("localhost", "::1") or self._host.startswith("127.")

    def models(self) -> Any:
        """All that are served."""
        status, body = self._ask("GET", "/models")
        if status != 200:
            raise ControlError(self._no_control_port())
        return self._decoded(body)

    def model(self, name: str) -> Any:
        return self._one("GET", name)

    def change(self, name: str, knobs: dict[str, Any]) -> Any:
        """The model with these knobs."""
        return self._one("PATCH", name, body=knobs)

    def act(self, name: str, action: str, arguments: dict[str, Any]) -> Any:
        """All versions of the model once it is done; waits for that."""
        return self._one("POST", name, f"/{action}", body=arguments, patience_s=ACTION_PATIENCE_S)

    def autopilot(self, name: str = "") -> Any:
        """What it does with every model, or all that it knows of one."""
        return self._of_all("GET", "/autopilot" + (f"/{_quoted(name)}" if name else ""), name)

    def switch_autopilot(self, action: str, name: str = "") -> Any:
        """pause or resume; the same of every model afterwards."""
        return self._of_all("POST", f"/autopilot/{action}", name, body={"model": name} if name else {})

    def challenge(self, challenger: str, name: str = "") -> Any:
        """This policy, or file on the server, is asked beside what tunes a model, or all; empty: nothing is."""
        body = {"challenger": challenger} | ({"model": name} if name else {})
        return self._of_all("POST", "/autopilot/challenge", name, body=body)

    def pilots(self, told: Any) -> list[PilotState]:
        """What these returned."""
        return self._converted(told, list[PilotState])

    def cache(self, name: str = "") -> Any:
        """What is remembered of every model, or of one."""
        return self._of_all("GET", "/cache" + (f"/{_quoted(name)}" if name else ""), name)

    def caches(self, told: Any) -> list[CacheState]:
        """What that returned."""
        return self._converted(told, list[CacheState])

    def clear_cache(self, name: str = "") -> Any:
        """Forget the answers of every model, or of one: how many they were."""
        return self._of_all("POST", "/cache/clear", name, body={"model": name} if name else {})

    def forgotten(self, told: Any) -> int:
        """What that returned."""
        return self._converted(told, _Forgotten).forgotten

    def logs(self) -> Any:
        """How much is logged."""
        return self._of_all("GET", "/log", "")

    def change_logs(self, level: str, logger: str) -> Any:
        """The same, once this logger (empty: all) logs what is as severe as this level."""
        return self._of_all("PATCH", "/log", "", body={"level": level, "logger": logger})

    def log_levels(self, told: Any) -> LogState:
        """What these returned."""
        return self._converted(told, LogState)

    def gateways(self, *, restart: bool = False) -> Any:
        """Of a server that has several; with `restart` once each has been replaced by a new process."""
        if restart:
            return self._of_all("POST", "/gateways/restart", "", patience_s=RESTART_PATIENCE_S)
        return self._of_all("GET", "/gateways", "")

    def gateway_states(self, told: Any) -> list[GatewayState]:
        """What these returned."""
        return self._converted(told, list[GatewayState])

    def dashboard(self) -> dict[str, Any]:
        """All that it shows now."""
        told = self._of_all("GET", "/dashboard/feed", "", accept="application/json")
        return msgspec.structs.asdict(self._converted(told, DashboardState))

    def feed(self) -> Iterator[tuple[str, bytes]]:
        """What the dashboard is told, each second: the event, and its JSON. Ends when the server ends it."""
        event = ""
        with self._asking("GET", "/dashboard/feed", accept="text/event-stream") as reply:
            if reply.status != http.client.OK:
                raise ControlError(self._no_control_port())
            for line in reply:
                field, _, value = line.strip().partition(b": ")
                if field == b"event":
                    event = value.decode("ascii")
                elif field == b"data":
                    yield event, value

    def asked(self) -> list[dict[str, Any]]:
        """Versions of models that were asked in the last hour, the most asked first."""
        return self._converted(self._of_all("GET", "/dashboard/history", ""), list[dict[str, Any]])

    def history(self, name: str, version: str, seconds: int) -> dict[str, Any]:
        """What one of them did in the last so many seconds, in columns."""
        query = urlencode({"model": name, "version": version, "seconds": seconds})
        return self._converted(self._of_all("GET", f"/dashboard/history?{query}", name), dict[str, Any])

    def why(self, request: str, *, model: str = "") -> Any:
        """All that is known of one request."""
        status, body = self._ask("GET", f"/why/{_quoted(request)}?{urlencode({'model': model})}")
        return self._found(status, body)

    def slow_requests(self, **which: str) -> Any:
        """Those that are known. `which`: as the query has it."""
        status, body = self._ask("GET", f"/why?{urlencode(which)}")
        return self._found(status, body)

    def exemplars(self, told: Any) -> list[ExemplarState]:
        """What that returned, or a list of one."""
        return self._converted(told, list[ExemplarState])

    def _found(self, status: int, body: bytes) -> Any:
        try:
            told = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            told = None
        if status == 200 and told is not None:
            return told
        if not isinstance(told, dict) or not (status == 400 or "kept" in told):
            raise ControlError(self._no_control_port())
        raise ControlError(str(told.get("error", f"{self.url} answered {status}")))

    def states(self, told: Any) -> list[ModelState]:
        """One model or all, as another method returned them."""
        return self._converted(told if isinstance(told, list) else [told], list[ModelState])

    def _one(self, method: str, name: str, action: str = "", **request: Any) -> Any:
        status, body = self._ask(method, f"/models/{_quoted(name)}{action}", **request)
        return self._understood(status, body, name)

    def _of_all(self, method: str, path: str, name: str, **request: Any) -> Any:
        """`name`: of the one model that is meant, if it is one."""
        status, body = self._ask(method, path, **request)
        if status == 404 and not name:
            raise ControlError(self._no_control_port())
        return self._understood(status, body, name)

    def _understood(self, status: int, body: bytes, name: str) -> Any:
        told = self._decoded(body)
        if status == 404 and not any(name == model.name for model in self.states(self.models())):
            raise ControlError(self._unknown(name))
        if status != 200:
            raise ControlError(told["error"] if isinstance(told, dict) and "error" in told else f"{self.url} answered {status}")
        return told

    def _unknown(self, name: str) -> str:
        served = [model.name for model in self.states(self.models())]
        near = difflib.get_close_matches(name, served, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it serves {', '.join(served) or 'none'}"
        return f"{self.url} serves no model {name!r}; {hint}"

    def _no_control_port(self) -> str:
        live, _ = self._ask("GET", "/v2/health/live")
        what = "an inference port" if live == 200 else "not a dlproxy control port"
        return f"{self.url} is {what}; give the port on which `dlproxy serve` reports its metrics: --control http://HOST:{PORT}"

    def _refused(self, body: bytes) -> str:
        told = self._decoded(body)
        why = told.get("error", "") if isinstance(told, dict) else ""
        return f"{self.url} refuses: {why or 'it does not say why'} (--api-key-file or the variable {KEY_VARIABLE} has the key)"

    def _decoded(self, body: bytes) -> Any:
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ControlError(self._strange(error)) from None

    def _converted(self, told: Any, kind: type[Told]) -> Told:
        try:
            return msgspec.convert(told, kind)
        except msgspec.ValidationError as error:
            raise ControlError(self._strange(error)) from None

    def _strange(self, error: Exception) -> str:
        return f"the answer from {self.url} is not understood: {error}; is it the control port of this version of dlproxy?"

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        patience_s: float = PATIENCE_S,
        accept: str = "*/*",
    ) -> tuple[int, bytes]:
        """Status and body of the answer."""
        with self._asking(method, path, body=body, patience_s=patience_s, accept=accept) as reply:
            return reply.status, reply.read()

    @contextmanager
    def _asking(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        patience_s: float = PATIENCE_S,
        accept: str = "*/*",
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer, to be read."""
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE_S)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE_S, context=self._tls)
        try:
            connection.connect()
            connection.sock.settimeout(patience_s)
            payload = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, payload, with_key({"Accept": accept}, self._asks.api_key))
            reply = connection.getresponse()
            if reply.status in (401, 403):
                raise ControlError(self._refused(reply.read()))
            yield reply
        except TimeoutError:
            raise ControlError(f"{self.url} did not answer within {patience_s:g} s") from None
        except (OSError, UnicodeError) as error:
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise ControlError(f"cannot reach {self.url}: {reason}; is dlproxy running there?") from None
        except (http.client.HTTPException, ValueError):
            raise ControlError(f"{self.url} did not answer with complete HTTP; is the port right?") from None
        finally:
            connection.close()


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="replace")
