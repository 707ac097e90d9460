"""What operators do is done, and then told."""

from collections.abc import Mapping
from typing import Any

import pytest

from dlproxy.config import ConfigError
from dlproxy.wire.dashboard.operators import ToldOperations, ToldPilots

from ..test_control_http import Pilots, Port


@pytest.mark.parametrize(
    ("action", "arguments", "told"),
    [
        ("scale", {"instances": 3, "version": ""}, ("m", "knobs", "an operator: scale instances 3")),
        ("set", {"version": "2", "knobs": {"speed": 7}}, ("m", "knobs", "an operator: set version 2, speed = 7")),
        ("pin", {"knobs": ["max_batch"], "values": {"lanes": 2}}, ("m", "knobs", "an operator: pin max_batch, lanes = 2")),
        ("canary", {"version": "2", "share": 0.1}, ("m", "canary", "an operator: canary version 2, share 0.1")),
        ("rollback", {}, ("m", "canary", "an operator: rollback")),
        ("load", {"path": "m.onnx"}, None),
    ],
)
async def test_an_action_is_told_in_words(action: str, arguments: Mapping[str, Any], told: tuple[str, ...] | None) -> None:
    heard: list[tuple[str, ...]] = []
    port = Port()
    await ToldOperations(port, lambda *what: heard.append(what)).act("m", action, arguments)
    assert port.acted == [("m", action, arguments)]
    assert heard == ([] if told is None else [told])


async def test_what_was_refused_is_not_told() -> None:
    heard: list[tuple[str, ...]] = []
    with pytest.raises(ConfigError):
        await ToldOperations(Port(), lambda *what: heard.append(what)).act(
            "m", "set", {"version": "1", "knobs": {"speed": "x"}}
        )
    assert heard == []


async def test_the_autopilot_s_pauses_and_challengers_are_told() -> None:
    heard: list[tuple[str, ...]] = []
    pilots = ToldPilots(inner := Pilots(), lambda *what: heard.append(what))
    pilots.pause("m")
    pilots.resume()
    await pilots.challenge("a.onnx", "m")
    assert inner.told == [("pause", "m"), ("resume", ""), ("a.onnx", "m")]
    assert heard == [
        ("m", "autopilot", "an operator pauses the autopilot"),
        ("", "autopilot", "an operator has the autopilot go on"),
        ("m", "autopilot", "an operator has it challenged by a.onnx"),
    ]
