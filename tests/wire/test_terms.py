"""What headers, parameters and arguments say of a request reaches its ticket, or is refused with a clear 400."""

import string
from collections.abc import Mapping, Sequence
from itertools import count
from math import inf, nan
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlproxy.message import ANONYMOUS, DType, FailureKind, InferenceError, Principal, Request, Tensor, Ticket
from dlproxy.wire.endpoint import Endpoint
from dlproxy.wire.terms import (
    DEADLINE,
    GRPC_TIMEOUT,
    MOST_DEADLINE_MS,
    MOST_TENANT,
    NO_TERMS,
    PRIORITY,
    HeaderTerms,
    Terms,
    by_level,
    of_arguments,
    of_parameters,
)

from .fixtures import PLAIN, EchoService, Reply, Wire, app_of, post, served

NOW = 100.0  # of the fixtures' clock
INFER, PREDICT = "/v2/models/m/infer", "/predict/m"
TARGETS = pytest.mark.parametrize("target", [INFER, PREDICT])


def a_request(*data: bytes) -> Request:
    inputs = [Tensor(f"x{index}", DType.UINT8, (len(piece),), piece) for index, piece in enumerate(data or (b"abc",))]
    return Request(Ticket(1, NOW), "m", inputs, (0,))


def submitted(
    headers: dict[bytes, bytes],
    request: Request | None = None,
    *,
    body: Terms = NO_TERMS,
    principal: Principal = ANONYMOUS,
    sticky: str = "",
    wanted: Sequence[str] = (),
    slo_s: float | None = None,
    own: Mapping[int, float] = MappingProxyType({}),
    tenant_header: str = "X-Tenant-Id",
) -> Request:
    """The request as the model's service gets it. `own`: objectives of priorities."""
    service = EchoService(PLAIN)
    model = served(service, slo_s=slo_s)
    model.slo_s_by_level = by_level(slo_s, own)
    model.sticky, model.headers = sticky, wanted
    endpoint = Endpoint(model, count(1), lambda: NOW, tenant_header)
    endpoint.submit(request or a_request(), Ignored(), endpoint.read_headers(headers, principal).over(body))
    return service.requests[0]


class Ignored:
    """A ReplyTo for what nobody waits for."""

    def completed(self, response: object) -> None: ...

    def failed(self, failure: object) -> None: ...


def applied(headers: dict[bytes, bytes], request: Request | None = None, **how: Any) -> Ticket:
    """The ticket after the headers had their say."""
    return submitted(headers, request, **how).ticket


def fields(ticket: Ticket) -> tuple[object, ...]:
    return tuple(getattr(ticket, name) for name in Ticket.__struct_fields__)


# Deadlines


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"250", 0.25),
        (b"0.5", 0.0005),
        (b"1e3", 1.0),
        (b"+7", 0.007),
        (b".5", 0.0005),
        (b"5.", 0.005),
        (b"1e-9", 1e-12),
        (b"1e12", 1e9),
        (b"000000000000000000000001", 0.001),
    ],
)
def test_a_deadline_counts_from_now(value: bytes, seconds: float) -> None:
    ticket = applied({DEADLINE: value})
    assert ticket.deadline_at == ticket.answer_by == pytest.approx(NOW + seconds)


NO_DEADLINES = [
    *(b"", b" ", b"soon", b"0", b"-0", b"-1", b"-1e-9", b"0.0", b"nan", b"-nan", b"inf", b"-inf", b"Infinity", b"1e400"),
    *(b"1e-400", b"1_000", b"0x10", b"1,000", b"10ms", b"5 5", b"5, 5", b"1e13", b"9" * 400, b"1e", b"--5", b"5\x00", b"\x005"),
    *("١٠".encode(), "½".encode(), b"\xb2", b"\xff\xfe", "５".encode(), b"true", b"null", b"[5]"),  # noqa: RUF001
]


@pytest.mark.parametrize("value", NO_DEADLINES)
def test_what_is_no_deadline_is_refused_and_said_to_be_none(value: bytes) -> None:
    with pytest.raises(InferenceError, match=r"x-request-deadline-ms is .*milliseconds") as caught:
        applied({DEADLINE: value})
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
    assert len(str(caught.value)) < 200, "the value is the client's, its length is not"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"7u", 7e-6),
        (b"1n", 1e-9),
        (b"0S", 0.0),
        (b"99999999S", 99999999.0),
        (b"99999999H", inf),  # eleven thousand years
    ],
)
def test_the_time_out_of_grpc_is_a_deadline(value: bytes, seconds: float) -> None:
    assert applied({GRPC_TIMEOUT: value}).answer_by == pytest.approx(NOW + seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"5", b"-1S", b"1.5S", b"5s", b"123456789S", b" 5S", b"5S, 5S", "٣S".encode()])
def test_what_is_no_time_out_of_grpc_is_refused(value: bytes) -> None:
    with pytest.raises(InferenceError, match=r"grpc-timeout is .*8 digits") as caught:
        applied({GRPC_TIMEOUT: value})
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT


def test_the_shorter_of_both_deadlines_holds() -> None:
    for own, grpc, seconds in ((b"100", b"1S", 0.1), (b"2000", b"1S", 1.0)):
        assert applied({DEADLINE: own, GRPC_TIMEOUT: grpc}).answer_by == pytest.approx(NOW + seconds)


@pytest.mark.parametrize(
    ("slo_s", "timeout_s", "header", "answer_by", "deadline_at"),
    [
        (None, inf, None, inf, inf),
        (0.1, inf, None, inf, 100.1),
        (None, 0.02, None, 100.02, 100.02),
        (None, inf, b"50", 100.05, 100.05),
        (None, 0.02, b"50", 100.02, 100.02),
        (None, 0.08, b"50", 100.05, 100.05),
        (0.1, 0.08, b"50", 100.05, 100.05),
        (0.01, 0.08, b"50", 100.05, 100.01),
        (0.1, inf, b"1e12", 100.0 + 1e9, 100.1),
        (0.1, 0.0, None, 100.0, 100.0),
        (0.1, -5.0, b"50", 95.0, 95.0),
    ],
)
def test_the_clients_own_deadline_is_kept_and_the_earliest_is_aimed_at(
    slo_s: float | None, timeout_s: float, header: bytes | None, answer_by: float, deadline_at: float
) -> None:
    headers = {} if header is None else {DEADLINE: header}
    ticket = applied(headers, body=Terms(timeout_s), slo_s=slo_s)
    assert (ticket.answer_by, ticket.deadline_at) == (pytest.approx(answer_by), pytest.approx(deadline_at))


# Priorities


@pytest.mark.parametrize(("value", "priority"), [(b"1", 1), (b"0", 0), (b"7", 7), (b"007", 7), (b"999999999", 999_999_999)])
def test_a_priority_is_taken(value: bytes, priority: int) -> None:
    assert applied({PRIORITY: value}, body=Terms(priority=3)).priority == priority, "also in place of the parameter's"
    assert applied({}, body=Terms(priority=3)).priority == 3


NO_PRIORITIES = [
    *(
        b"",
        b" ",
        b"high",
        b"-1",
        b"+1",
        b"1.0",
        b"1e3",
        b"nan",
        b"inf",
        b"1_0",
        b"0x1",
        b"1 2",
        b"1, 2",
        b"9" * 10,
        b"9" * 5000,
    ),
    *("²".encode("latin-1"), "١".encode(), b"\xff", b"1\x00", b"\x00", b"true"),  # noqa: RUF001
]


@pytest.mark.parametrize("value", NO_PRIORITIES)
def test_what_is_no_priority_is_refused_and_said_to_be_none(value: bytes) -> None:
    with pytest.raises(InferenceError, match=r"x-request-priority is .*1 \(most urgent\)") as caught:
        applied({PRIORITY: value})
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
    assert len(str(caught.value)) < 200


# Tenants and affinities


@pytest.mark.parametrize(
    ("value", "tenant"),
    [
        (b"shop", "shop"),
        (b"", ""),
        (b"a b/c", "a b/c"),
        ("zürich".encode(), "zürich"),
        ("zürich".encode("latin-1"), "zürich"),
        (b"t" * 10_000, "t" * MOST_TENANT),
    ],
)
def test_a_tenant_is_what_its_header_says(value: bytes, tenant: str) -> None:
    assert applied({b"x-tenant-id": value}).tenant == tenant


def test_the_tenants_header_is_the_configured_one() -> None:
    assert applied({b"x-shop": b"a", b"x-tenant-id": b"b"}, tenant_header="X-Shop").tenant == "a"


@pytest.mark.parametrize(
    ("principal", "header", "tenant"),
    [
        (Principal("ann", "shop"), b"bank", "shop"),
        (Principal("ann", "shop"), None, "shop"),
        (Principal("ann"), b"bank", "bank"),
        (Principal("ann"), None, ""),
        (ANONYMOUS, b"bank", "bank"),
    ],
)
def test_a_principals_tenant_cannot_be_replaced_by_a_header(principal: Principal, header: bytes | None, tenant: str) -> None:
    request = submitted({} if header is None else {b"x-tenant-id": header}, principal=principal, sticky="tenant")
    assert request.principal is principal
    assert (request.ticket.tenant, request.ticket.affinity) == (tenant, tenant)


@pytest.mark.parametrize(
    ("sticky", "headers", "affinity"),
    [
        ("", {b"x-tenant-id": b"shop", b"x-user": b"u1"}, ""),
        ("tenant", {b"x-tenant-id": b"shop", b"x-user": b"u1"}, "shop"),
        ("tenant", {b"x-user": b"u1"}, ""),
        ("header:X-User", {b"x-tenant-id": b"shop", b"x-user": b"u1"}, "u1"),
        ("header:X-User", {b"x-tenant-id": b"shop"}, ""),
        ("header:X-User", {b"x-user": b"u" * 1000}, "u" * MOST_TENANT),
        ("header:tenant", {b"x-tenant-id": b"shop", b"tenant": b"other"}, "other"),
    ],
)
def test_a_request_sticks_to_what_the_knob_says(sticky: str, headers: dict[bytes, bytes], affinity: str) -> None:
    assert applied(headers, sticky=sticky).affinity == affinity


@given(
    first=st.lists(st.binary(max_size=8), min_size=1, max_size=3),
    second=st.lists(st.binary(max_size=8), min_size=1, max_size=3),
)
@example(first=[b"abc"], second=[b"abd"])
@example(first=[b"abc", b""], second=[b"abc", b""])
def test_equal_inputs_stick_together_and_different_ones_do_not(first: list[bytes], second: list[bytes]) -> None:
    one, other = (applied({}, a_request(*data), sticky="input").affinity for data in (first, second))
    assert one, "never empty: that would stick to nothing"
    assert one == applied({}, a_request(*first), sticky="input").affinity
    assert one == applied({}, a_request(*[memoryview(piece) for piece in first]), sticky="input").affinity  # type: ignore[arg-type]
    if b"".join(first) != b"".join(second):
        assert one != other


def test_headers_that_a_model_asks_for_are_carried_and_no_others() -> None:
    headers = {b"x-lang": "dé".encode(), b"x-other": b"1", b"x-latin": b"\xe9"}
    assert submitted(headers, wanted=["X-Lang", "x-latin", "x-none"]).headers == {"x-lang": "dé", "x-latin": "é"}
    assert submitted(headers, wanted=["X-Lang"], body=Terms(priority=2)).headers == {"x-lang": "dé"}
    assert not submitted(headers).headers


def test_without_headers_a_ticket_stays_as_it_is() -> None:
    request = a_request()
    before = fields(request.ticket)
    assert fields(applied({b"host": b"a", b"x-request-id": b"5", b"priority": b"u=1"}, request)) == before
    assert request.principal is ANONYMOUS


def test_headers_that_repeat_are_read_again_for_another_principal_and_after_a_refusal() -> None:
    reader = HeaderTerms(tenant_header="X-Tenant-Id", sticky="")
    repeated, wrong = {b"x-tenant-id": b"bank", DEADLINE: b"50"}, {DEADLINE: b"soon"}
    ann, bob = Principal("ann", "shop"), Principal("bob", "bakery")
    for principal, tenant in ((ann, "shop"), (ann, "shop"), (bob, "bakery"), (ANONYMOUS, "bank"), (ann, "shop")):
        for _ in range(2):
            terms = reader.read(repeated, principal)
            assert (terms.principal, terms.tenant, terms.timeout_s) == (principal, tenant, 0.05)
            with pytest.raises(InferenceError):
                reader.read(wrong, principal)
    assert reader.read({}) is reader.read({}) is NO_TERMS


@pytest.mark.parametrize(
    ("arguments", "clue"),
    [
        ({"timeout_s": nan}, "timeout_s"),
        ({"priority": -1}, "priority"),
        ({"priority": 1.0}, "priority"),
        ({"priority": 2**32}, "priority"),
    ],
)
def test_arguments_are_checked_like_parameters(arguments: dict[str, Any], clue: str) -> None:
    with pytest.raises(InferenceError, match=clue):
        of_arguments(**{"timeout_s": None, "priority": 0, "tenant": "", "affinity": "", **arguments})


@pytest.mark.parametrize("timeout_us", [1, 250_000, 2**63 - 1])
def test_a_timeout_parameter_is_in_microseconds_and_0_is_none(timeout_us: int) -> None:
    assert of_parameters({"timeout": timeout_us}).timeout_s == pytest.approx(timeout_us * 1e-6)
    assert of_parameters({"timeout": 0}).timeout_s == inf


# Over the wire


def body_of(target: str, **parameters: int) -> bytes:
    if target == PREDICT:
        return b'{"inputs":[[1,2]]}'
    told = ",".join(f'"{name}":{value}' for name, value in parameters.items())
    return b'{"parameters":{%b},"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}' % told.encode()


class Asked:
    """A server with one model, asked over one connection."""

    def __init__(self, *, slo_s: float | None = None, sticky: str = "") -> None:
        self.service = EchoService(PLAIN)
        self.model = served(self.service, slo_s=slo_s)
        self.model.sticky = sticky
        self.wire = Wire(app_of(self.model))

    def __call__(self, target: str, parameters: dict[str, int] | None = None, **headers: str) -> Reply:
        self.wire.feed(post(target, body_of(target, **(parameters or {})), **headers))
        self.service.answer_all()
        (reply,) = self.wire.take()
        return reply

    @property
    def ticket(self) -> Ticket:
        return self.service.requests[-1].ticket


@pytest.mark.parametrize(
    ("own", "deadlines"),
    [
        ({}, {b"1": 0.1, None: 0.1, b"9": 0.1}),
        ({1: 0.01}, {b"1": 0.01, b"2": 0.1, None: 0.1, b"0": 0.1, b"8": 0.1, b"999": 0.1}),
        ({1: 0.01, 8: 1.0}, {b"1": 0.01, b"7": 0.1, b"8": 1.0, b"999": 1.0}),
        ({4: 0.5}, {b"1": 0.1, b"4": 0.5, b"0": 0.5, None: 0.5}),
    ],
)
def test_a_priority_may_have_an_objective_of_its_own(own: dict[int, float], deadlines: dict[bytes | None, float]) -> None:
    for priority, seconds in deadlines.items():
        headers = {} if priority is None else {PRIORITY: priority}
        assert applied(headers, slo_s=0.1, own=own).deadline_at == pytest.approx(NOW + seconds)


def test_an_objective_of_a_priority_is_a_deadline_that_its_request_can_only_shorten() -> None:
    ticket = applied({PRIORITY: b"1"}, body=Terms(0.005), own={1: 0.01})
    assert ticket.deadline_at == ticket.answer_by == pytest.approx(NOW + 0.005)
    ticket = applied({PRIORITY: b"1", DEADLINE: b"20"}, own={1: 0.01})
    assert (ticket.deadline_at, ticket.answer_by) == (pytest.approx(NOW + 0.01), pytest.approx(NOW + 0.02))
    assert applied({PRIORITY: b"2"}, own={1: 0.01}).deadline_at == inf


@TARGETS
def test_headers_of_any_case_reach_the_ticket(target: str) -> None:
    asked = Asked(sticky="tenant")
    terms = {"X-Request-Deadline-MS": "250", "x-request-priority": "2", "X-TENANT-ID": "shop"}
    assert asked(target, **terms).status == 200
    assert asked.ticket.deadline_at == pytest.approx(NOW + 0.25)
    assert (asked.ticket.priority, asked.ticket.tenant, asked.ticket.affinity) == (2, "shop", "shop")
    assert asked(target).status == 200, "and hold for that request only"
    assert (asked.ticket.deadline_at, asked.ticket.priority, asked.ticket.tenant, asked.ticket.affinity) == (inf, 0, "", "")


@TARGETS
def test_the_slo_of_the_model_is_a_deadline_that_a_header_can_only_shorten(target: str) -> None:
    asked = Asked(slo_s=0.1)
    for header, seconds in (("20", 0.02), ("500", 0.1)):
        asked(target, **{"x-request-deadline-ms": header})
        assert asked.ticket.deadline_at == pytest.approx(NOW + seconds)


@pytest.mark.parametrize(
    ("timeout_us", "header", "seconds"),
    [(50_000, "80", 0.05), (50_000, "20", 0.02), (0, "20", 0.02), (200_000, "300", 0.1)],
)
def test_the_earliest_of_header_parameter_and_slo_holds(timeout_us: int, header: str, seconds: float) -> None:
    asked = Asked(slo_s=0.1)
    asked(INFER, {"timeout": timeout_us}, **{"x-request-deadline-ms": header})
    assert asked.ticket.deadline_at == pytest.approx(NOW + seconds)
    asked.model.slo_s = 0.001
    asked(INFER, {"timeout": timeout_us}, **{"x-request-deadline-ms": header})
    assert asked.ticket.deadline_at == pytest.approx(NOW + 0.001), "an objective that has changed holds at once"


def test_the_header_wins_over_the_priority_parameter() -> None:
    asked = Asked()
    asked(INFER, {"priority": 5})
    assert asked.ticket.priority == 5
    asked(INFER, {"priority": 5}, **{"x-request-priority": "1"})
    assert asked.ticket.priority == 1
    asked(INFER, {"priority": 5}, **{"x-request-priority": "0"})
    assert asked.ticket.priority == 0


def test_equal_inputs_stick_together_whatever_they_are_written_as() -> None:
    asked = Asked(sticky="input")
    asked(INFER)
    first = asked.ticket.affinity
    asked(PREDICT)
    assert asked.ticket.affinity == first
    asked.wire.feed(post(PREDICT, b'{"inputs":[[1,3]]}'))
    assert asked.ticket.affinity != first


@TARGETS
@pytest.mark.parametrize(
    ("name", "value", "clue"),
    [
        ("x-request-deadline-ms", "soon", "milliseconds"),
        ("x-request-deadline-ms", "", "milliseconds"),
        ("x-request-deadline-ms", "9" * 300, "milliseconds"),
        ("x-request-priority", "high", "most urgent"),
        ("x-request-priority", "-1", "most urgent"),
    ],
)
def test_a_bad_value_is_a_400_after_which_the_connection_goes_on(target: str, name: str, value: str, clue: str) -> None:
    asked = Asked()
    reply = asked(target, **{name: value})
    assert (reply.status, reply.closes) == (400, False)
    assert name in reply.error
    assert clue in reply.error
    assert not asked.service.requests
    assert asked.model.stats.failures[FailureKind.INVALID_ARGUMENT] == 1
    assert asked(target, **{name: "1"}).status == 200


@TARGETS
def test_a_header_given_twice_is_no_number(target: str) -> None:
    asked = Asked()
    assert asked(target, **{"x-request-priority": "1", "X-Request-Priority": "2"}).status == 400
    assert asked(target, **{"x-tenant-id": "a", "X-Tenant-Id": "b"}).status == 200
    assert asked.ticket.tenant == "a, b", "and so neither a nor b: nobody gets another's quota by it"


def test_a_nul_in_a_header_is_refused_before_anybody_reads_it() -> None:
    wire = Wire(app_of(served(EchoService(PLAIN))))
    wire.feed(
        b"POST /predict/m HTTP/1.1\r\nhost: a\r\nx-request-deadline-ms: 5\0\r\ncontent-length: 18\r\n\r\n" + body_of(PREDICT)
    )
    assert [reply.status for reply in wire.replies] == [400]


VALUES = st.one_of(
    st.binary(max_size=40),
    st.text(string.digits + "+-._eE xinfa", max_size=20).map(str.encode),
    st.floats().map(lambda number: repr(number).encode()),
    st.sampled_from([*NO_DEADLINES, *NO_PRIORITIES, b"5", b"1"]),
)


@settings(max_examples=75, deadline=None)
@given(
    name=st.sampled_from([DEADLINE, PRIORITY, b"x-tenant-id", b"x-user"]),
    value=VALUES,
    target=st.sampled_from([INFER, PREDICT]),
    sticky=st.sampled_from(["", "tenant", "input", "header:x-user"]),
)
def test_no_value_of_a_header_breaks_the_server(name: bytes, value: bytes, target: str, sticky: str) -> None:
    """200 or 400; what is allowed to reach the lane is a number that it can reckon with."""
    asked = Asked(sticky=sticky)
    value = value.replace(b"\r", b"").replace(b"\n", b"")
    body = body_of(target)
    head = b"POST %b HTTP/1.1\r\nhost: a\r\n%b: %b\r\ncontent-length: %d\r\n\r\n" % (target.encode(), name, value, len(body))
    asked.wire.feed(head + body)
    asked.service.answer_all()
    (reply,) = asked.wire.take()
    assert reply.status in (200, 400)
    if reply.status == 200:
        ticket = asked.ticket
        assert ticket.deadline_at == inf or NOW <= ticket.deadline_at <= NOW + MOST_DEADLINE_MS / 1e3
        assert 0 <= ticket.priority < 10**9
        assert max(len(ticket.tenant), len(ticket.affinity)) <= MOST_TENANT


# Of other nodes


def test_a_node_before_this_one_may_have_the_retries() -> None:
    assert submitted({b"x-dlproxy-retries": b"0"}).ticket.once
    for value in (b"", b"1", b"perhaps", b"00"):
        assert not submitted({b"x-dlproxy-retries": value}).ticket.once
    assert not submitted({}).ticket.once


def test_where_it_came_through_is_carried_on_where_it_goes_on() -> None:
    headers = {b"x-dlproxy-via": b"2; a, b"}
    assert submitted(headers, wanted=("x-dlproxy-via",)).headers == {"x-dlproxy-via": "2; a, b"}
    assert not submitted(headers).headers


@pytest.mark.parametrize(
    ("via", "refused"), [(b"1; own", True), (b"2; a, own", True), (b"1; other", False), (b"8; a", True), (b"own", False)]
)
def test_what_has_come_back_is_refused(via: bytes, refused: bool) -> None:
    read = HeaderTerms(tenant_header="t", sticky="", hop="own").read
    if not refused:
        assert read({b"x-dlproxy-via": via}).of_node
        return
    with pytest.raises(InferenceError) as caught:
        read({b"x-dlproxy-via": via})
    assert caught.value.failure.kind is FailureKind.LOOP
