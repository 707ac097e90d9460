"""The audit log: a flood of refusals is counted instead of written, and nobody can write lines or secrets into it."""

import json
import logging

import pytest

from dlproxy.cli.logs import JsonLines, TextLines
from dlproxy.message import Failure, FailureKind, Principal
from dlproxy.testing import ManualClock
from dlproxy.wire.audit import MOST_KINDS, WINDOW_S, Audit, shown

WRONG = Failure(FailureKind.UNAUTHENTICATED, "the API key is not known")
KEY = "dlp_abcdefgh_" + "S" * 43


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "dlproxy.audit")
    return caplog


def outcomes(written: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    told = [record.request for record in written.records]  # type: ignore[attr-defined]
    return [(one["who"], one["from"], one["what"]) for one in told]


def test_a_deed_says_who_from_where_what_and_how_it_ended(written: pytest.LogCaptureFixture) -> None:
    Audit().deed(Principal("ops"), "10.0.0.1", "POST /models/m/unload", "answered 200")
    assert written.messages == ["ops from 10.0.0.1: POST /models/m/unload: answered 200"]


def test_of_refusals_that_are_alike_the_first_is_written_and_the_rest_counted(written: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    audit = Audit(clock)
    for _ in range(10_000):
        audit.refusal(WRONG, "10.0.0.1", "GET /v2")
    audit.refusal(WRONG, "10.0.0.2", "GET /v2")
    audit.refusal(Failure(FailureKind.FORBIDDEN, "no"), "10.0.0.1", "GET /v2/models/m", Principal("ann"))
    audit.flush()
    assert outcomes(written) == [
        ("anonymous", "10.0.0.1", "GET /v2"),
        ("anonymous", "10.0.0.2", "GET /v2"),
        ("ann", "10.0.0.1", "GET /v2/models/m"),
    ]
    clock.advance(WINDOW_S)
    audit.flush()
    assert outcomes(written)[3:] == [("anonymous", "10.0.0.1", "9999 more requests")]
    audit.flush()
    audit.refusal(WRONG, "10.0.0.1", "GET /v2")
    assert len(written.records) == 5, "the next window begins"


def test_a_flood_from_everywhere_is_bounded_too_and_nothing_goes_uncounted(written: pytest.LogCaptureFixture) -> None:
    audit = Audit(ManualClock())
    for number in range(5_000):
        audit.refusal(WRONG, f"10.{number // 250}.{number % 250}.1", "GET /v2")
    audit.flush(now=True)
    assert len(written.records) == MOST_KINDS + 1
    assert outcomes(written)[-1] == ("others", "elsewhere", f"{5_000 - MOST_KINDS} more requests")


def test_addresses_of_one_network_of_ipv6_are_alike(written: pytest.LogCaptureFixture) -> None:
    audit = Audit(ManualClock())
    for number in range(100):
        audit.refusal(WRONG, f"2001:db8::{number:x}", "GET /v2")
    assert outcomes(written) == [("anonymous", "2001:db8::0", "GET /v2")]


HOSTILE = "a\r\n2026-01-01 INFO dlproxy.audit: ops from 10.0.0.1: all fine\x1b[2J\x00\x7f\x9b31m\u202e\u2028"


def test_a_client_cannot_write_lines_of_its_own_nor_speak_to_the_terminal(written: pytest.LogCaptureFixture) -> None:
    Audit().deed(Principal(HOSTILE), HOSTILE, HOSTILE, HOSTILE)
    for formatter in (TextLines("%(message)s"), JsonLines()):
        line = formatter.format(written.records[0])
        assert line.isprintable()
    assert json.loads(line)["who"].startswith("a\\r\\n2026")


@pytest.mark.parametrize("what", [f"GET /predict/{KEY}", f"x{KEY}", f"the key {KEY} is wrong", "GET /eyJhbGciOi.eyJzdWIi.c2ln"])
def test_what_looks_like_a_key_or_a_token_is_not_written(what: str) -> None:
    if not what.startswith("x"):
        assert "SSSS" not in shown(what)
        assert "c2ln" not in shown(what)
    assert len(shown(what * 1000)) <= 400


def test_what_looks_like_a_key_is_in_no_log_line() -> None:
    record = logging.makeLogRecord(
        {"msg": "GET /v2?key=%s", "args": (KEY,), "request": {"target": f"/v2?key={KEY}"}, "exc_info": None}
    )
    for formatter in (TextLines("%(message)s"), JsonLines()):
        line = formatter.format(record)
        assert "SSSS" not in line
        assert "dlp_abcdefgh_***" in line


def test_a_record_of_any_logger_is_one_record_to_who_reads_it() -> None:
    record = logging.makeLogRecord({"msg": "model %s failed", "args": (HOSTILE,), "levelname": "ERROR", "name": "x"})
    first, *others = TextLines("%(levelname)s %(message)s").format(record).split("\n")
    assert first == "ERROR model a\\r"
    assert all(line.startswith("    ") for line in others)
    assert not {*"\x1b\x00\x7f\x9b\r"} & set("".join(others))
