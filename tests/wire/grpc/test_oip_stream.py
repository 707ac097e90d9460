"""ModelStreamInfer without a connection: order, parts as the client takes them, errors, ends, and clients that leave."""

from typing import Any

import msgspec
import numpy as np

from dlproxy.message import DType, Failure, FailureKind
from dlproxy.protos.oip import oip
from dlproxy.wire.grpc.call import Status

from ..fixtures import EchoService, echo_signature, served
from .oip_fixtures import FakeCall, PartsService, open_stream, parameter, part, raw, service

ONE = echo_signature(("x", DType.FP32, (-1, 1)))
IN_PARTS = msgspec.structs.replace(ONE, streams=True)
BROKEN = Failure(FailureKind.MODEL_FAILED, "it broke")


def ask(name: str, model: str = "whole", **parameters: Any) -> bytes:
    given = {key: parameter(value) for key, value in parameters.items()}
    message: bytes = raw(np.ones((1, 1), np.float32), names="x", id=name, model=model, parameters=given).SerializeToString()
    return message


class Setting:
    """A stream with the models whole and parts."""

    def __init__(self, headers: dict[bytes, bytes] | None = None, **limits: Any) -> None:
        self.whole = EchoService(ONE, model="whole")
        self.parts = PartsService(IN_PARTS, model="parts")
        self.call: FakeCall = open_stream(service(served(self.whole), served(self.parts), **limits), headers)

    def answers(self) -> list[tuple[str, str, bool]]:
        """Id, error and finality of each since the last time."""
        return [
            (
                answer.infer_response.id,
                answer.error_message,
                answer.infer_response.parameters["triton_final_response"].bool_param,
            )
            for answer in self.call.take()
        ]


# Whole answers


def test_one_request_one_final_answer() -> None:
    setting = Setting()
    setting.call.receive(ask("a"))
    setting.whole.answer()
    (answer,) = setting.call.take()
    assert answer == oip.ModelStreamInferResponse(
        infer_response={
            "model_name": "whole",
            "model_version": "1",
            "id": "a",
            "parameters": {"triton_final_response": parameter(True)},
            "outputs": [{"name": "out_x", "datatype": "FP32", "shape": (1, 1)}],
            "raw_output_contents": [np.ones(1, np.float32).tobytes()],
        }
    )
    assert not setting.call.ended


def test_answers_leave_in_the_order_of_their_requests() -> None:
    setting = Setting()
    setting.call.receive(ask("a"), ask("b"), ask("c"), ask("d", model="nobody"))
    setting.whole.answer(1)
    assert setting.answers() == []
    setting.whole.answer(0)
    assert [name for name, *_ in setting.answers()] == ["a", "b"]
    setting.whole.answer(0)
    assert [(name, error[:30]) for name, error, _ in setting.answers()] == [("c", ""), ("d", "Request for unknown model: 'no")]


def test_an_error_ends_its_request_and_not_the_stream() -> None:
    setting = Setting()
    setting.call.receive(ask("a"), b"\xff", ask("b", sequence_id=7), ask("c"))
    setting.whole.waiting.popleft()[1].failed(BROKEN)
    setting.whole.answer()
    answers = setting.answers()
    assert [(name, error.partition(",")[0]) for name, error, _ in answers] == [
        ("a", "it broke"),
        ("", "the message cannot be read as inference.ModelInferRequest: no number ends at offset 1"),
        ("b", "parameter 'sequence_id' is 7"),
        ("c", ""),
    ]
    assert not setting.call.ended


def test_a_client_may_want_its_call_to_end_with_the_first_error() -> None:
    setting = Setting({b"triton_grpc_error": b"true"})
    setting.call.receive(ask("a"), ask("b", model="parts"), ask("c", model="nobody"))
    assert (setting.call.status, setting.call.text[:46]) == (Status.NOT_FOUND, "Request for unknown model: 'nobody' is not fou")
    assert [request.id for request in setting.whole.cancelled + setting.parts.cancelled] == ["a", "b"]
    assert setting.answers() == []


def test_an_error_quotes_no_more_of_the_client_s_than_fits() -> None:
    setting = Setting()
    setting.call.receive(ask("a", model="x" * 5000))
    ((_, error, _),) = setting.answers()
    assert len(error) == 1001


def test_no_more_than_max_pipelined_requests_are_worked_on() -> None:
    setting = Setting(max_pipelined=3)
    setting.call.receive(*map(ask, "abcdefgh"))
    assert len(setting.whole.waiting) == 3
    setting.whole.answer(1)  # which waits for a
    assert len(setting.whole.waiting) == 2
    setting.whole.answer(0)
    assert len(setting.whole.waiting) == 3
    while setting.whole.waiting:
        setting.whole.answer()
    assert [name for name, *_ in setting.answers()] == list("abcdefgh")


def test_many_that_are_refused_at_once_need_no_more_stack_than_one() -> None:
    setting = Setting(max_pipelined=2)
    setting.call.receive(ask("first"), *[ask(str(number), model="nobody") for number in range(3000)])
    assert setting.answers() == []
    setting.whole.answer()
    assert len(setting.answers()) == 3001


def test_the_call_ends_when_the_client_has_and_all_is_answered() -> None:
    setting = Setting(max_pipelined=1)
    setting.call.receive(ask("a"), ask("b"))
    setting.call.half_close()
    setting.whole.answer()
    assert not setting.call.ended
    setting.whole.answer()
    assert setting.call.status is Status.OK
    assert len(setting.answers()) == 2


def test_a_stream_without_requests_ends_with_the_client() -> None:
    setting = Setting()
    setting.call.half_close()
    assert setting.call.status is Status.OK


# Answers in parts


def test_parts_are_sent_as_they_come_and_none_before_it_is_asked_for() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"))
    setting.parts.answer()
    (rest,) = setting.parts.rests
    assert setting.answers() == [("a", "", False)]
    for value in (2.0, 3.0):
        rest.take().part(part(value))
        (answer,) = setting.call.take()
        assert answer.infer_response.raw_output_contents == [np.array([value], np.float32).tobytes()]
        assert (answer.infer_response.model_name, answer.infer_response.model_version) == ("parts", "1")
    rest.take().ended()
    assert setting.answers() == []
    setting.call.half_close()
    assert setting.call.status is Status.OK


def test_the_end_is_a_message_of_its_own_for_who_wants_it() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts", triton_enable_empty_final_response=True))
    setting.parts.answer()
    assert setting.answers() == [("a", "", False)]
    setting.parts.rests[0].take().ended()
    (answer,) = setting.call.take()
    response = answer.infer_response
    assert (response.id, response.model_name, response.model_version, list(response.outputs)) == ("a", "parts", "1", [])
    assert response.parameters["triton_final_response"].bool_param
    setting.call.receive(ask("b", triton_enable_empty_final_response=True))
    setting.whole.answer()
    assert setting.answers() == [("b", "", True)]


def test_an_answer_without_further_parts_is_final() -> None:
    setting = Setting()
    setting.parts.in_parts = False
    setting.call.receive(ask("a", "parts", triton_enable_empty_final_response=True))
    setting.parts.answer()
    assert setting.answers() == [("a", "", True)]
    setting.call.half_close()
    assert setting.call.status is Status.OK


def test_parts_and_whole_answers_do_not_wait_for_each_other() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"), ask("b"), ask("c", "parts"), ask("d"))
    setting.parts.answer_all()
    setting.whole.answer(1)
    first, second = setting.parts.rests
    second.take().part(part(1.0))
    first.take().part(part(1.0))
    setting.whole.answer()
    assert [name for name, *_ in setting.answers()] == ["a", "c", "c", "a", "b", "d"]


def test_a_failure_on_the_way_says_whose_it_is() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"), ask("b", "parts"))
    setting.parts.answer()
    setting.parts.waiting.popleft()[1].failed(BROKEN)
    setting.parts.rests[0].take().failed(BROKEN)
    assert setting.answers() == [("a", "", False), ("b", "it broke", False), ("a", "it broke", False)]
    setting.call.half_close()
    assert setting.call.status is Status.OK


def test_a_slow_reader_holds_the_model_back() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"), ask("b", "parts"))
    setting.call.stuck = True
    setting.parts.answer_all()
    first, second = setting.parts.rests
    assert (first.asks, second.asks) == (0, 0)
    setting.call.read()
    assert (first.asks, second.asks) == (1, 1)
    setting.call.stuck = True
    first.take().part(part(1.0))
    second.take().part(part(1.0))
    assert (first.asks, second.asks) == (1, 1)


def test_a_reader_that_takes_little_gets_of_each_in_turn() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"), ask("b", "parts"))
    setting.call.stuck = True
    setting.parts.answer_all()
    setting.answers()
    asked = []
    for _ in range(4):
        rests = setting.parts.rests
        before = [rest.asks for rest in rests]
        for rest in rests:
            rest.ask = _sticking(setting, rest)  # type: ignore[method-assign]
        setting.call.read()
        asked += [name for name, rest, was in zip("ab", rests, before, strict=True) if rest.asks > was]
    assert asked == ["a", "b", "a", "b"]


def _sticking(setting: Setting, rest: Any) -> Any:
    """A part is there at once, and with it the client has enough."""

    def ask(to: Any) -> None:
        rest.asks += 1
        setting.call.stuck = True
        to.part(part(1.0))

    return ask


# Clients that leave


def test_a_client_that_leaves_stops_everything() -> None:
    setting = Setting()
    setting.call.receive(ask("a"), ask("b", "parts"), ask("c", "parts"), ask("d"))
    setting.parts.answer()
    setting.answers()
    setting.call.leave()
    assert [request.id for request in setting.whole.cancelled] == ["a", "d"]
    assert [request.id for request in setting.parts.cancelled] == ["c"]
    assert setting.parts.rests[0].stopped
    setting.parts.rests[0].take().part(part(1.0))
    assert setting.answers() == []


def test_a_call_that_the_connection_has_ended_stops_at_its_next_part() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"), ask("b"))
    setting.parts.answer()
    setting.call.end(Status.INVALID_ARGUMENT, "a message that is too large")
    setting.parts.rests[0].take().part(part(1.0))
    assert setting.parts.rests[0].stopped
    assert [request.id for request in setting.whole.cancelled] == ["b"]


def test_an_answer_that_comes_too_late_is_let_go_of() -> None:
    setting = Setting()
    setting.call.receive(ask("a", "parts"))
    _, reply = setting.parts.waiting[0]
    request = setting.parts.requests[0]
    setting.parts.waiting.clear()  # it is on its way
    setting.call.leave()
    reply.completed(setting.parts.echo(request))
    assert setting.parts.rests[0].stopped
    assert setting.answers() == []
