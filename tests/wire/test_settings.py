"""Log and trace settings: what they say is the case, and what of it can be changed from outside."""

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.config import ConfigError, HttpLimits
from dlproxy.message import FailureKind, InferenceError
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http import access_log
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.oip.settings_http import SettingRoutes
from dlproxy.wire.settings import TRACE, LogLevels, LogSettings, TraceSettings

from .fixtures import PLAIN, EchoService, Reply, Wire, post, request, served

log = logging.getLogger("dlproxy.test")


class Kept(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said


@pytest.fixture
def kept() -> Iterator[Kept]:
    """All that the root logger hands on, as it is at INFO."""
    root, handler = logging.getLogger(), Kept()
    before, handlers = root.level, root.handlers
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    yield handler
    for each in root.handlers:  # pytest's own, too, which it has put beside it
        each.filters.clear()
    root.handlers = handlers
    root.setLevel(before)


def say_all() -> None:
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)(level)
    access_log.log.info("access")


def test_the_settings_are_those_of_the_root_logger(kept: Kept) -> None:
    logs = LogSettings(may_change=False)
    normal = {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0}
    assert logs.show() == {"log_file": "", **normal, "log_format": "default"}
    logging.getLogger().setLevel(logging.DEBUG)  # as --verbose does
    assert logs.show()["log_verbose_level"] == 1
    logging.getLogger().setLevel(logging.WARNING)  # as --quiet does
    assert (logs.show()["log_info"], logs.show()["log_warning"]) == (False, True)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, ["info", "warning", "error", "critical", "access"]),
        ({"log_verbose_level": 2}, ["debug", "info", "warning", "error", "critical", "access"]),
        ({"log_info": False}, ["warning", "error", "critical", "access"]),
        ({"log_warning": False}, ["info", "error", "critical", "access"]),
        ({"log_error": False}, ["info", "warning", "access"]),
        ({"log_info": False, "log_error": False}, ["warning", "access"]),
        ({"log_info": False, "log_warning": False, "log_verbose_level": 1}, ["debug", "error", "critical", "access"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, ["access"]),
        ({"log_info": None, "log_format": "default"}, ["info", "warning", "error", "critical", "access"]),
    ],
)
def test_what_is_changed_is_logged_or_not(asked: dict[str, Any], says: list[str], kept: Kept) -> None:
    access_log.log.setLevel(logging.INFO)  # as for those who ask for access lines
    try:
        logs = LogSettings(may_change=True)
        before = logs.show()
        logs.change(asked)
        say_all()
        assert kept.take() == says
        changed = {**before, **{name: value for name, value in asked.items() if value is not None}}
        assert logs.show() == changed
        logs.change({name: before[name] for name in asked})
        say_all()
        assert kept.take() == ["info", "warning", "error", "critical", "access"]
        assert logs.show() == before
    finally:
        access_log.log.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ({"log_file": "/tmp/x"}, FailureKind.UNSUPPORTED, "log file location can not be updated through network protocol"),
        ({"log_info": 1}, FailureKind.INVALID_ARGUMENT, "expect boolean for 'log_info'"),
        ({"log_error": "no"}, FailureKind.INVALID_ARGUMENT, "expect boolean for 'log_error'"),
        ({"log_verbose_level": True}, FailureKind.INVALID_ARGUMENT, "expect int32 for 'log_verbose_level'"),
        ({"log_verbose_level": -1}, FailureKind.INVALID_ARGUMENT, "expect int32 for 'log_verbose_level'"),
        ({"log_verbose_level": 1.5}, FailureKind.INVALID_ARGUMENT, "expect int32 for 'log_verbose_level'"),
        ({"log_format": "x"}, FailureKind.INVALID_ARGUMENT, "invalid argument for log_format, got: x"),
        ({"log_format": "ISO8601"}, FailureKind.INVALID_ARGUMENT, "is set when the server starts"),
        ({"log_colour": "red"}, FailureKind.INVALID_ARGUMENT, "there is no log setting 'log_colour'; there are log_info,"),
    ],
)
def test_what_cannot_be_set_changes_nothing(asked: dict[str, Any], kind: FailureKind, says: str, kept: Kept) -> None:
    logs = LogSettings(may_change=True)
    with pytest.raises(InferenceError) as caught:
        logs.change({"log_verbose_level": 1, **asked})
    assert (caught.value.failure.kind, says in str(caught.value)) == (kind, True)
    assert logs.show()["log_verbose_level"] == 0


def test_clients_change_nothing_unless_they_may(kept: Kept) -> None:
    logs = LogSettings(may_change=False)
    logs.change({"log_info": True, "log_error": None})  # as it is already
    with pytest.raises(InferenceError) as caught:
        logs.change({"log_error": False})
    assert caught.value.failure.kind is FailureKind.FORBIDDEN
    assert "[server] client_log_settings allows it" in str(caught.value)
    say_all()
    assert "error" in kept.take()


def trace() -> TraceSettings:
    catalog = Catalog()
    catalog.add(served(EchoService(PLAIN)))
    return TraceSettings(catalog)


ALL = ["debug", "info", "warning", "error", "critical"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], ALL[1:]),
        ([("debug", "")], ALL),
        ([("error", "")], ALL[3:]),
        ([("debug", "dlproxy.test")], ALL),
        ([("error", ""), ("warning", "dlproxy")], ALL[2:]),
        ([("debug", "dlproxy.test"), ("default", "dlproxy.test")], ALL[1:]),
        ([("error", ""), ("default", "")], ALL[1:]),
    ],
)
def test_operators_say_how_much_is_logged(changes: list[tuple[str, str]], says: list[str], kept: Kept) -> None:
    levels = LogLevels()
    try:
        for level, logger in changes:
            levels.change(level, logger)
        last = {logger: level for level, logger in changes}
        wanted = {logger: level for logger, level in last.items() if logger and level != "default"}
        assert levels.show()["loggers"] == wanted
        say_all()
        assert [said for said in kept.take() if said != "access"] == says
    finally:
        for _, logger in changes:
            levels.change("default", logger)
    assert levels.show() == {"level": "info", "loggers": {}}


def test_what_clients_have_switched_off_comes_if_an_operator_wants_it(kept: Kept) -> None:
    LogSettings(may_change=True).change({"log_info": False, "log_warning": False})
    LogLevels().change("warning")
    say_all()
    assert kept.take() == ALL[2:]


@pytest.mark.parametrize(
    ("level", "logger", "says"),
    [
        ("loud", "", "there is no level 'loud'; there are debug, info, warning, error, and default"),
        ("debug", "dlproxy.tset", "there is no logger 'dlproxy.tset'; did you mean 'dlproxy.test'?"),
        ("debug", "x" * 10_000, "they are named like dlproxy.serve or dlproxy.fleet.local"),
    ],
)
def test_a_level_or_a_logger_that_there_is_not_changes_nothing(level: str, logger: str, says: str, kept: Kept) -> None:
    before = set(logging.root.manager.loggerDict)
    with pytest.raises(ConfigError) as raised:
        LogLevels().change(level, logger)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 200
    assert set(logging.root.manager.loggerDict) == before, "nobody fills the memory"


def test_nothing_is_traced() -> None:
    assert trace().show() == trace().show("m") == TRACE
    trace().change({})
    trace().change({"trace_level": ["OFF"], "trace_rate": None, "trace_count": "-1"}, "m")


@pytest.mark.parametrize(
    ("asked", "model", "kind", "says"),
    [
        ({"trace_level": ["TIMESTAMPS"]}, "", FailureKind.INVALID_ARGUMENT, "Attempting to set invalid trace setting :"),
        ({"trace_level": ["OFF", "TENSORS"]}, "m", FailureKind.INVALID_ARGUMENT, "does not trace requests"),
        ({"trace_rate": "500"}, "", FailureKind.INVALID_ARGUMENT, "trace_rate can only be 1000"),
        ({"trace_file": "x"}, "", FailureKind.UNSUPPORTED, "trace file location can not be updated through network protocol"),
        ({"colour": "red"}, "", FailureKind.INVALID_ARGUMENT, "there is no trace setting 'colour'; there are trace_level,"),
        ({}, "nobody", FailureKind.INVALID_ARGUMENT, "Request for unknown model : nobody"),
    ],
)
def test_what_cannot_be_traced(asked: dict[str, Any], model: str, kind: FailureKind, says: str) -> None:
    with pytest.raises(InferenceError) as caught:
        trace().change(asked, model)
    assert (caught.value.failure.kind, says in str(caught.value)) == (kind, True)


# Over HTTP


def ask(data: bytes, *, may_change: bool = True) -> Reply:
    catalog = Catalog()
    catalog.add(served(EchoService(PLAIN)))
    rows = SettingRoutes(LogSettings(may_change=may_change), TraceSettings(catalog)).rows()
    app = OipApp(catalog, HttpLimits(), clock=lambda: 0.0, server_timing=False, more=rows)
    return Wire(app).feed(data).replies[0]


def test_the_routes(kept: Kept) -> None:
    shown = ask(request("/v2/logging")).json()
    assert list(shown) == ["log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"]
    assert ask(post("/v2/logging", b'{"log_info":false}')).json() == {**shown, "log_info": False}
    assert ask(post("/v2/logging", b'{"log_verbose_level":0}'), may_change=False).status == 200
    assert ask(post("/v2/logging", b'{"log_verbose_level":1}'), may_change=False).status == 403
    assert ask(request("/v2/logging", "PUT")).status == 405
    for path in ("/v2/trace/setting", "/v2/models/m/trace/setting"):
        assert ask(request(path)).json() == TRACE
        assert ask(post(path, b'{"trace_level":["OFF"]}')).json() == TRACE
        assert ask(post(path, b'{"trace_level":["TENSORS"]}')).status == 400
    assert ask(request("/v2/models/nobody/trace/setting")).error == "Request for unknown model : nobody"
    for broken in (b"", b"{", b"[1]", b"3", b"\xff", b"[" * 5000):
        for path in ("/v2/logging", "/v2/trace/setting"):
            assert ask(post(path, broken)).status == 400


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**40), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
NAMES = st.sampled_from(["log_file", "log_info", "log_error", "log_verbose_level", "log_format", *TRACE, "x"])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["/v2/logging", "/v2/trace/setting"]), st.dictionaries(NAMES, JSON, max_size=3))
def test_any_settings_are_answered(kept: Kept, path: str, asked: dict[str, Any]) -> None:
    assert ask(post(path, msgspec.json.encode(asked))).status in (200, 400, 501)
