"""The model repository extension of the Open Inference Protocol, as Triton serves it: index, load, unload.

Called by oip/http.py and grpc/oip.py. Not aware of: where models come from, who may load them.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, Principal, invalid
from dlproxy.policy.planner import VersionState
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.rights import seen
from dlproxy.wire.waiting import Place

STATES = {"loading": "LOADING", "changing": "READY", "leaving": "UNLOADING"}


class _Index(Struct):
    ready: bool = False


class _Load(Struct):
    parameters: dict[str, Any] = {}


class RepositoryExtension:
    """Answers when what was asked for is done. Without a `repository` there is nothing but the catalog to tell of.

    `place`: where a refusal goes. All raise InferenceError for what is refused at once.
    """

    def __init__(self, catalog: Catalog, repository: ModelRepository | None) -> None:
        self._catalog = catalog
        self._repository = repository
        self._tasks: set[asyncio.Task[None]] = set()

    def index(self, place: Place, answer: Callable[[list[dict[str, str]]], None], who: Principal, *, only_ready: bool) -> None:
        """Of what `who` may see."""
        if self._repository is None:
            served = [VersionState(model.name, model.version, "serving") for model in self._catalog]
            answer(self._entries(seen(served, who), only_ready=only_ready))
            return
        self._answer(place, answer, self._index(self._repository, who, only_ready=only_ready))

    def load(self, place: Place, answer: Callable[[None], None], name: str, parameters: Mapping[str, Any]) -> None:
        config = parameters.get("config")
        for parameter in parameters:
            if parameter.startswith("file:"):
                message = "files in a load request are not supported: put them into the repository"
                raise InferenceError(Failure(FailureKind.UNSUPPORTED, message))
            if parameter != "config":
                raise invalid(f"unrecognized load parameter '{parameter}'.")
        self._answer(place, answer, self._allowed().load(name, None if config is None else _config(config)))

    def unload(self, place: Place, answer: Callable[[None], None], name: str) -> None:
        self._answer(place, answer, self._allowed().unload(name))

    def _allowed(self) -> ModelRepository:
        if self._repository is None:
            raise InferenceError(Failure(FailureKind.UNSUPPORTED, "this server has no model repository"))
        return self._repository

    async def _index(self, repository: ModelRepository, who: Principal, *, only_ready: bool) -> list[dict[str, str]]:
        return self._entries(seen(await repository.index(), who), only_ready=only_ready)

    def _entries(self, states: Any, *, only_ready: bool) -> list[dict[str, str]]:
        ready = {(model.name, model.version) for model in self._catalog if model.ready}
        entries = []
        for one in states:
            is_ready = (one.name, one.version) in ready
            state = "READY" if is_ready else STATES.get(one.phase, "UNAVAILABLE")
            reason = "" if is_ready else one.reason or ("no live instance" if one.phase == "serving" else "")
            told = {"reason": reason} if reason else {}
            entries.append({"name": one.name, "version": one.version, "state": state, **told})
        entries.sort(key=itemgetter("name"))  # as Triton does; versions stay in their order
        return [entry for entry in entries if entry["state"] == "READY"] if only_ready else entries

    def _answer(self, place: Place, answer: Callable[[Any], None], work: Coroutine[Any, Any, Any]) -> None:
        """`answer` gets what the work returns. It goes on if the client leaves: half a load helps nobody."""

        async def answered() -> None:
            try:
                answer(await work)
            except InferenceError as error:
                place.refuse(error.failure)
            except asyncio.CancelledError:
                place.refuse(Failure(FailureKind.UNAVAILABLE, "the server is shutting down"))
                raise
            except Exception:
                place.give_up()

        task = asyncio.get_running_loop().create_task(answered())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class RepositoryRoutes:
    """The same over HTTP."""

    def __init__(self, extension: RepositoryExtension) -> None:
        self._extension = extension

    def index(self, exchange: Exchange) -> None:
        self._extension.index(exchange, partial(_reply, exchange), exchange.principal, only_ready=_body(exchange, _Index).ready)

    def load(self, exchange: Exchange, name: str) -> None:
        self._extension.load(exchange, partial(_reply, exchange), name, _body(exchange, _Load).parameters)

    def unload(self, exchange: Exchange, name: str) -> None:
        _body(exchange, _Load)
        self._extension.unload(exchange, partial(_reply, exchange), name)


def _reply(exchange: Exchange, done: Any) -> None:
    exchange.reply(200, b"application/json", b"" if done is None else msgspec.json.encode(done))


def _body(exchange: Exchange, kind: Any) -> Any:
    """Raises InferenceError. An empty body asks for nothing special."""
    if not exchange.body:
        return kind()
    try:
        return msgspec.json.decode(exchange.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not understood: {error}") from None


def _config(text: Any) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text) if isinstance(text, str) else text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the parameter config is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise invalid("the parameter config is not a JSON object with a model configuration")
    return found
