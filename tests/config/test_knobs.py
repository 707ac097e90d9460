"""The table of knobs: every row is complete, and what is taken from it follows it."""

import re
from typing import Any, get_args

import msgspec
import pytest

from dlproxy.config import (
    AutopilotConfig,
    Config,
    ConfigError,
    HttpLimits,
    LaneSettings,
    ModelConfig,
    ServerConfig,
    TenantConfig,
    check,
)
from dlproxy.config.effects import without_effect
from dlproxy.config.knobs import SECTIONS, Place
from dlproxy.config.table import Dimension, knobs, live_knobs, option_help, space
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.serve.control import BOUNDS

ALL = [(section, knob) for section, struct in SECTIONS.items() for knob in knobs(struct).values()]
every_knob = pytest.mark.parametrize(("section", "knob"), ALL, ids=lambda part: getattr(part, "name", part))
GOALS = ("slo", "slo_by_priority", "autopilot", "pinned", "weight", "variants", "accuracy", "variant")
SEQUENCES = ("sequence_idle_s", "max_sequences")
UNBOUNDED = {"pad_value"}  # any number may stand for "nothing" in an input


@every_knob
def test_numbers_have_a_range_that_typos_leave(section: str, knob: Any) -> None:
    if knob.type not in (int, float) or knob.name in UNBOUNDED:
        return
    assert knob.low is not None
    assert knob.high is not None
    assert knob.low <= knob.default <= knob.high < 1e12
    table = {"path": "a"} if section == "models" else {}
    with pytest.raises(msgspec.ValidationError, match=f"{knob.name}"):
        msgspec.convert({**table, knob.name: knob.type(1e12)}, SECTIONS[section])


@every_knob
def test_what_stands_for_something_else_is_outside_the_range_of_a_log_scale(section: str, knob: Any) -> None:
    if knob.traits.tuned and knob.scale == "log":
        dimension = next(one for one in space(SECTIONS[section]) if one.name == knob.name)
        assert dimension.low is not None
        assert 0 < dimension.low <= (knob.default or dimension.low) <= knob.high
        assert dimension.choices == ((0,) if knob.low == 0 else ())


@every_knob
def test_conditions_name_knobs_and_values_that_there_are(section: str, knob: Any) -> None:
    for only in knob.traits.only:
        other = knobs(SECTIONS[section])[only.knob]
        values = get_args(Place) if only.knob == "run" else other.choices or ("cpu", 0.0, "")
        assert bool(only.among) != bool(only.but)
        assert set(only.alternatives) <= set(knobs(SECTIONS[section]))
        assert set(only.among + only.but) <= set(values)


@every_knob
def test_what_the_control_port_changes_needs_no_reload(section: str, knob: Any) -> None:
    if knob.live:
        assert section == "models"
        assert knob.name in (*GOALS, *BOUNDS, *SEQUENCES) or knob.name in LaneKnobs.__struct_fields__


def test_every_setting_of_a_lane_can_be_changed_while_it_serves() -> None:
    assert set(live_knobs()) == {*GOALS, *BOUNDS, *SEQUENCES, *LaneSettings.__struct_fields__}


def test_a_lane_that_is_made_without_a_file_has_the_same_defaults() -> None:
    model, lane = ModelConfig(path="a"), LaneKnobs()
    assert {name: getattr(lane, name) for name in LaneSettings.__struct_fields__} == {
        name: getattr(model, name) for name in LaneSettings.__struct_fields__
    }


def test_the_space_of_a_tuner_is_plain_data() -> None:
    dimensions = {dimension.name: dimension for dimension in space(ModelConfig)}
    assert dimensions["max_batch"] == Dimension("max_batch", "log", "nothing", True, 1, 65536)
    assert dimensions["max_wait_s"] == Dimension("max_wait_s", "log", "nothing", False, 1e-4, 60, (0,))
    assert dimensions["retry_budget"] == Dimension("retry_budget", "linear", "nothing", False, 0, 1)
    assert dimensions["hedge"].choices == (False, True)
    assert dimensions["threads"].cost == "reload"
    assert dimensions["balancer"].choices[:2] == ("peak-ewma", "round-robin")
    assert msgspec.json.decode(msgspec.json.encode(space(ModelConfig)), type=list[Dimension])[0].name == "instances"


@pytest.mark.parametrize(
    "name", ["slo", "batching", "padding", "pad_value", "memory_limit_mb", "starvation_s", "samples", "path"]
)
def test_a_tuner_leaves_promises_and_answers_alone(name: str) -> None:
    assert name not in {dimension.name for dimension in space(ModelConfig)}


def test_options_take_their_words_from_the_table() -> None:
    assert option_help("http_port") == "port for inference; 0 picks a free one (default 8000)"
    assert option_help("autopilot").endswith("on: it changes it (default off)")
    assert option_help("event_log") == "record every lane event and command in this folder, to replay; empty: off"


@pytest.mark.parametrize("struct", [ServerConfig, HttpLimits, AutopilotConfig, TenantConfig])
def test_defaults_always_have_an_effect(struct: type[msgspec.Struct]) -> None:
    assert check(struct()) == []


UPSTREAM = {"path": "http://other:8000/v2/models/m"}
LOCAL = {"path": "m.onnx", "run": "thread"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sticky": "tenant"}, "sticky = 'tenant' has no effect: it needs balancer = 'consistent-hash', not 'peak-ewma'"),
        (
            {**LOCAL, "pin": True},
            "pin = true has no effect: it needs batches that run in a process of their own, not on a thread",
        ),
        ({**LOCAL, "memory_limit_mb": 500}, "memory_limit_mb = 500 .*in a process of their own, not on a thread"),
        ({"device": "cpu", "gpu_memory_limit_mb": 500}, "gpu_memory_limit_mb = 500 .* it needs another device than 'cpu'$"),
        (
            {"upstream_headers": {"authorization": "s3cret"}},
            "^upstream_headers has no effect: .* on another server, not on the event",
        ),
        ({"max_instances": 2}, "max_instances = 2 has no effect: it needs another autoscale than 'off'"),
        ({"scale_to_zero_s": 60.0}, "scale_to_zero_s = 60.0 has no effect: it needs another autoscale than 'off'"),
        ({"autoscale": "utilisation", "target_in_flight": 4.0}, "target_in_flight = 4.0 .* autoscale = 'in-flight', not"),
        ({"autoscale": "utilisation", "forecast": "daily"}, "forecast = 'daily' .* autoscale = 'in-flight', not"),
        ({"autoscale": "in-flight", "run": "inline"}, "autoscale = 'in-flight' .*, not on the event loop"),
        ({**UPSTREAM, "autoscale": "in-flight"}, "autoscale = 'in-flight' .* here"),
        ({"autoscale": "in-flight", "min_instances": 3, "max_instances": 2}, "min_instances = 3 is above max_instances = 2"),
        ({"autoscale": "in-flight", "instances": 3, "max_instances": 2}, "instances = 3, to start with, must be 1 to 2"),
        ({"autoscale": "in-flight", "instances": 3, "min_instances": 4}, "instances = 3, to start with, must be 4 or more"),
        ({"run": "inline", "instances": 2}, "instances = 2 .*, not on the event loop"),
        ({**UPSTREAM, "instances": 2}, "instances = 2 has no effect: it needs batches that run here, not on another server"),
        ({**UPSTREAM, "threads": 2}, "threads = 2 .* here"),
        ({**UPSTREAM, "run": "process"}, "run = 'process' .* here"),
        ({**UPSTREAM, "device": "cuda"}, "device = 'cuda' .* here"),
        ({**UPSTREAM, "samples": "x.npz"}, "samples = 'x.npz' .* here"),
        ({**UPSTREAM, "padding": "on"}, "padding = 'on' .* here"),
        ({**UPSTREAM, "inputs": {"x": "FP32[-1]"}}, "inputs has no effect"),
    ],
)
def test_what_is_surely_a_mistake_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(ModelConfig(**{"path": "m.onnx", **settings}))
    assert caught.value.knob in settings
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("knob", ["cores", "reserved_cores"])
def test_cores_without_an_arbiter_are_refused(knob: str) -> None:
    with pytest.raises(ConfigError, match=f"{knob} = 2 has no effect: it needs another arbiter than 'off'"):
        check(ServerConfig(**{knob: 2}))
    assert check(ServerConfig(**{knob: 2, "arbiter": "auto"})) == []


def test_a_burst_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"burst_s = 2.0 .* it needs another requests_per_s or rows_per_s than 0\.0"):
        check(TenantConfig(burst_s=2.0))
    assert check(TenantConfig(burst_s=2.0, rows_per_s=1.0)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discipline": "fcfs", "starvation_s": 3.0}, "it needs discipline = 'edf', 'sjf' or 'mlfq', not 'fcfs'"),
        ({"discipline": "fair", "ageing_s": 3.0}, "it needs discipline = 'edf' or 'priority', not 'fair'"),
        ({"balancer": "round-robin", "slow_start_s": 3.0}, "it needs another balancer than 'round-robin'"),
        ({"batching": "off", "max_wait_s": 0.1}, "it needs another batching than 'off'"),
        ({"padding": "off", "pad_value": 0.1}, "it needs another padding than 'off'"),
        (
            {**LOCAL, "batch_timeout_s": 3.0},
            "in a process of their own, in an actor of Ray or on another server, not on a thread",
        ),
        ({**LOCAL, "quarantine_s": 3.0}, "in a process of their own or in an actor of Ray, not on a thread"),
        ({**UPSTREAM, "outage_wait_s": 3.0}, "in a process of their own or in an actor of Ray, not on another server"),
        ({"run": "inline", "hedge": True}, "not on the event loop"),
        ({"retry_budget": 0.0, "hedge": True}, "it needs another retry_budget than 0.0"),
    ],
)
def test_what_may_have_a_reason_is_warned_of(settings: dict[str, Any], message: str) -> None:
    (warning,) = check(ModelConfig(**{"path": "m.onnx", **settings}))
    assert "has no effect" in warning
    assert message in warning


@pytest.mark.parametrize(
    "settings",
    [
        {"pin": True},  # which run = "auto" may heed
        {"run": "inline", "instances": 1},
        {**LOCAL, "quarantine_s": 0.0, "outage_wait_s": 0.0},
        {**UPSTREAM, "padding": "off", "upstream_headers": {"a": "b"}},
        {"batching": "off", "padding": "off"},
        {"run": "process", "memory_limit_mb": 500, "pin": True, "batch_timeout_s": 1.0},
    ],
)
def test_what_says_what_is_so_is_fine(settings: dict[str, Any]) -> None:
    assert check(ModelConfig(**{"path": "m.onnx", **settings})) == []


def test_shares_need_a_model_that_heeds_them() -> None:
    tenants = {"a": TenantConfig(weight=2.0), "b": TenantConfig(rows_per_s=1.0)}
    plain, fair = ModelConfig(path="m.onnx"), ModelConfig(path="m.onnx", discipline="fair")
    (warning,) = without_effect(Config(models={"m": [plain]}, tenants=tenants))
    assert warning == "tenants.a: weight = 2 has no effect: it needs a model with discipline = 'fair'"
    assert without_effect(Config(models={"m": [plain, fair]}, tenants=tenants)) == []


@pytest.mark.parametrize(
    ("mode", "settings", "said"),
    [
        ("on", {}, True),
        ("advise", {"slo": "rate>=100"}, True),
        ("off", {"autopilot": "on"}, True),
        ("on", {"autopilot": "off"}, False),
        ("on", {"slo": "p99=20ms"}, False),
        ("on", {"slo": "max rate"}, False),
        ("off", {}, False),
    ],
)
def test_an_autopilot_without_an_objective_is_told_of(mode: Any, settings: dict[str, Any], said: bool) -> None:
    model = ModelConfig(**{"path": "m.onnx", **settings})
    warnings = without_effect(Config(models={"m": [model]}, autopilot=AutopilotConfig(mode=mode)))
    assert [bool(re.match("models.m: .* --slo p99=20ms", warning)) for warning in warnings] == [True] * said


def test_where_a_model_runs_may_be_known_better() -> None:
    with pytest.raises(ConfigError, match=r"pin = true .*, not on the event loop or on a thread"):
        check(ModelConfig(path="m.onnx", pin=True), ("inline", "thread"))
