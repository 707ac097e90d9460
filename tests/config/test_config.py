"""Every knob has a sane default and a range, and a mistake in dlproxy.toml is answered with its line and its remedy."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dlproxy.cli.model_names import add_models
from dlproxy.config import (
    Config,
    ConfigError,
    HttpLimits,
    ModelConfig,
    ServerConfig,
    TenantConfig,
    load,
    parse_duration,
)
from dlproxy.config.reading import from_environment
from dlproxy.policy.balancing import BALANCERS
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.models import make_quotas


def _load(text: str | bytes, folder: Path) -> Config:
    path = folder / "dlproxy.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def _mistake(text: str | bytes, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(text, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / "dlproxy.toml") in message
    return message


def _assert_told(message: str, line: int, clues: list[str]) -> None:
    assert f"dlproxy.toml:{line}: " in message
    assert not [clue for clue in clues if clue not in message], message


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert _load("", tmp_path) == Config()


@pytest.mark.parametrize("struct", [ServerConfig, HttpLimits, TenantConfig])
def test_defaults_are_within_their_own_ranges(struct: type[msgspec.Struct]) -> None:
    assert msgspec.convert(msgspec.to_builtins(struct()), struct) == struct()


@pytest.mark.parametrize("struct", [ServerConfig, HttpLimits, ModelConfig, TenantConfig])
def test_every_knob_is_described(struct: type[msgspec.Struct]) -> None:
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[union-attr, attr-defined]
        extra = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
        assert extra, f"{field.name} has no description"
        assert extra["description"], field.name


def test_values_are_read(tmp_path: Path) -> None:
    config = _load(
        """
        [server]
        host = "0.0.0.0"
        http_port = 0
        server_timing = false
        drain_s = 5
        [autopilot]
        mode = "on"
        [http]
        max_connections = 10
        [models.digits]
        path = "digits.onnx"
        slo = "p99=20ms"
        [models."a.b"]
        path = "/models/ab.onnx"
        version = "7"
        run = "thread"
        """,
        tmp_path,
    )
    assert (config.server.host, config.server.http_port, config.server.drain_s) == ("0.0.0.0", 0, 5.0)
    assert config.server.server_timing is False
    assert config.autopilot.mode == "on"
    assert config.http.max_connections == 10
    assert config.models["digits"][0].slo_s == pytest.approx(0.02)
    assert config.models["a.b"][0].slo_s is None
    assert (config.models["a.b"][0].version, config.models["a.b"][0].run) == ("7", "thread")


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    config = _load('[models.a]\npath = "sub/a.onnx"\n[models.b]\npath = "/abs/b.onnx"\n', tmp_path)
    assert Path(config.models["a"][0].path) == tmp_path / "sub" / "a.onnx"
    assert config.models["b"][0].path == "/abs/b.onnx"


def test_files_of_locks_are_beside_the_file_and_a_url_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "dlproxy.toml"
    for jwks, found in (("jwks.json", str(tmp_path / "jwks.json")), ("https://a/jwks.json", "https://a/jwks.json")):
        path.write_text(f'[auth]\nkeys = "keys.toml"\njwks = "{jwks}"\njwt_issuer = "a"\njwt_audience = "b"\n')
        auth = load(path).auth
        assert (auth.keys, auth.jwks) == (str(tmp_path / "keys.toml"), found)


def test_files_of_agents_are_beside_the_file_and_names_of_policies_stay(tmp_path: Path) -> None:
    path = tmp_path / "dlproxy.toml"
    path.write_text('[autopilot]\npolicy = "bandit"\nchallenger = "agent.onnx"\nwatch = "seen.onnx"\nrecord = "seen"\n')
    autopilot = load(path).autopilot
    assert (autopilot.policy, autopilot.challenger) == ("bandit", str(tmp_path / "agent.onnx"))
    assert autopilot.watch == str(tmp_path / "seen.onnx")
    assert autopilot.record == str(tmp_path / "seen")


def test_a_model_that_only_takes_time_has_no_path_to_complete(tmp_path: Path) -> None:
    config = _load("[models.a]\npath = 'sleep:base=10ms,row=1ms'\n[models.b]\npath = 'sleep.onnx'\n", tmp_path)
    assert config.models["a"][0].path == "sleep:base=10ms,row=1ms"
    assert Path(config.models["b"][0].path) == tmp_path / "sleep.onnx"


# Mistakes


@pytest.mark.parametrize(
    ("text", "line", "clues"),
    [
        ("[sever]\nhost = 'x'\n", 1, ["unknown key 'sever'", "did you mean 'server'?"]),
        ("\n[server]\nhttp_prot = 80\n", 3, ["unknown key 'http_prot' in [server]", "did you mean 'http_port'?"]),
        ("[http]\n\nmax_conections = 3\n", 3, ["unknown key 'max_conections' in [http]", "'max_connections'"]),
        ("[models.a]\npath = 'a'\nmaxbatch = 3\n", 3, ["unknown key 'maxbatch' in [models.a]", "did you mean 'max_batch'?"]),
        ("[server]\nzzz = 80\n", 2, ["unknown key 'zzz' in [server]", "known are host, http_port"]),
        (
            "port = 80\n",
            1,
            ["unknown key 'port'", "known are server, http, tls, auth, integrity, autopilot, cache, tracing"],
        ),
        (
            "[models.a]\npath = 'a'\n[models.b]\npath = 'b'\nmax_bach = 1\n",
            5,
            ["unknown key 'max_bach' in [models.b]", "did you mean 'max_batch'?"],
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(
    tmp_path: Path, text: str, line: int, clues: list[str]
) -> None:
    _assert_told(_mistake(text, tmp_path), line, clues)


@pytest.mark.parametrize(
    ("text", "line", "clues"),
    [
        ("[server]\nhttp_port = 70000\n", 2, ["server.http_port", "65535"]),
        ("[server]\nhttp_port = '80'\n", 2, ["server.http_port", "int", "str"]),
        ("[server]\ndrain_s = -1\n", 2, ["server.drain_s", ">= 0"]),
        ("[http]\nidle_timeout_s = 0\n", 2, ["http.idle_timeout_s", "> 0"]),
        ("[models.a]\npath = 'a'\nmax_batch = 0\n", 3, ["models.a.max_batch", ">= 1"]),
        ("[models.a]\npath = 'a'\nversion = 1\n", 3, ["models.a.version", "str", "int"]),
        ("[models.a]\npath = 'a'\nversion = 'one'\n", 3, ["models.a.version", "[0-9]"]),
        ("[models.a]\npath = 'a'\nrun = 'gpu'\n", 3, ["run = 'gpu'", "it takes auto, inline, thread, process"]),
        ("[models.a]\nmax_batch = 4\n", 1, ["models.a", "path"]),
        ("[models.a]\npath = 'a'\nstarvation_s = 0\n", 3, ["models.a.starvation_s", "> 0"]),
        ("[models.a]\npath = 'a'\nretry_budget = 1.5\n", 3, ["models.a.retry_budget", "<= 1"]),
        ("[models.a]\npath = 'a'\nretry_budget = nan\n", 3, ["models.a.retry_budget"]),
        ("[models.a]\npath = 'a'\nsticky = 'header:'\n", 3, ["models.a.sticky", "header:[A-Za-z0-9-]+"]),
        ("[server]\ncores = -1\n", 2, ["server.cores", ">= 0"]),
        ("[server]\ntenant_header = 'x tenant'\n", 2, ["server.tenant_header", "[A-Za-z0-9_-]+"]),
        ("[server]\ntenant_header = '顧客'\n", 2, ["server.tenant_header", "[A-Za-z0-9_-]+"]),
        ("[tenants.a]\nweight = 1\n[tenants.b]\nrows_per_s = -1\n", 4, ["tenants.b.rows_per_s", ">= 0"]),
        ("[tenants.a]\nweight = 0\n", 2, ["tenants.a.weight", ">= 0.001"]),
        ("[tenants.a]\nweight = inf\n", 2, ["tenants.a.weight", "<= 1000"]),
        ("[tenants.a]\nburst_s = nan\n", 2, ["tenants.a.burst_s", "> 0"]),
        ("[tenants]\na = 5\n", 2, ["tenants.a", "object", "int"]),
        ("[models]\na = 'a.onnx'\n", 2, ["models.a", "object", "str"]),
        ("models = 3\n", 1, ["models", "object", "int"]),
        ("[server]\n[[models.a]]\npath = 'a'\n", 2, ["models.a", "object", "array"]),
        (
            "[models.a]\npath = 'a'\nmax_batch = 4\n[models.b]\npath = 'b'\nmax_batch = -4\n",
            6,
            ["models.b.max_batch", ">= 1"],
        ),
    ],
)
def test_a_value_out_of_range_is_named_with_its_line(tmp_path: Path, text: str, line: int, clues: list[str]) -> None:
    _assert_told(_mistake(text, tmp_path), line, clues)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[http]\nmax_headers = 20\n[server]\ndrain_s = 1\n\nhttp_port = 70000\n", 6),
        ("http.max_headers = 20\nserver . http_port = 70000\n", 2),
        ("[http]\nmax_headers = 20\n[server]\n'http_port' = 70000\n", 4),
        ("http = {max_headers = 20}\nserver = { drain_s = 1, http_port = 70000 }\n", 2),
        ("[models]\nhttp_port = {path = 'a'}\n[server]\nhttp_port = 70000\n", 4),
        ("[models.m]\npath = 'a'\nslo = 'p99=1s' # http_port = 1\n[server]\nhttp_port = 70000\n", 5),
    ],
)
def test_a_line_is_found_however_a_table_is_written(tmp_path: Path, text: str, line: int) -> None:
    message = _mistake(text, tmp_path)
    assert f"dlproxy.toml:{line}: server.http_port" in message


@pytest.mark.parametrize(
    ("text", "line", "clues"),
    [
        ("[models.a]\npath = 'a'\nrun = 'tread'\n", 3, ["run = 'tread'", "did you mean 'thread'?"]),
        (
            "[models.a]\npath = 'a'\nrun = 'ray'\nray_address = 'head'\n",
            4,
            ["ray_address = 'head'", "HOST:PORT of the cluster's"],
        ),
        ("[models.a]\npath = 'a'\nray_cpus = 2\n", 3, ["ray_cpus = 2", "it needs batches that run in an actor of Ray"]),
        ("[models.a]\npath = 'a'\nrun = 'ray'\nray_resources = {tpu = 0}\n", 4, ["ray_resources.tpu is above 0, not 0"]),
        ("[models.a]\npath = 'a'\nrun = 'ray'\nray_placement = 'strict_pack'\n", 4, ["did you mean 'strict-pack'?"]),
        ("[models.a]\npath = 'a'\ndiscipline = 'EDF'\n", 3, ["models.a.discipline: 'EDF'", "it takes edf, fcfs, sjf"]),
        ("[models.a]\npath = 'a'\ndiscipline = 'prority'\n", 3, ["did you mean 'priority'?"]),
        ("[models.a]\npath = 'a'\nbalancer = 'round_robin'\n", 3, ["models.a.balancer", "did you mean 'round-robin'?"]),
        ("[models.a]\npath = 'a'\nbalancer = \"it's\"\n", 3, ["'it's' is not one of its values", "peak-ewma"]),
        ("[models.a]\npath = 'a'\nbalancer = \"a\\nb\"\n", 3, ["'a\\nb' is not one of its values"]),
        ("[server]\narbiter = 'yes'\n", 2, ["server.arbiter: 'yes'", "it takes auto, on, off"]),
        ("[server]\narbiter_discipline = 'fare'\n", 2, ["server.arbiter_discipline", "did you mean 'fair'?"]),
        ("[tenants.a]\nweigth = 2\n", 2, ["unknown key 'weigth' in [tenants.a]", "did you mean 'weight'?"]),
        ("[tennants.a]\nweight = 2\n", 1, ["unknown key 'tennants'", "did you mean 'tenants'?"]),
    ],
)
def test_a_wrong_choice_is_named_with_the_nearest_right_one(tmp_path: Path, text: str, line: int, clues: list[str]) -> None:
    _assert_told(_mistake(text, tmp_path), line, clues)


@pytest.mark.parametrize("sticky", ["tenant", "input", "header:X-User"])
def test_stickiness_without_the_balancer_that_keeps_to_it_is_named_with_its_line(tmp_path: Path, sticky: str) -> None:
    text = f"[models.a]\npath = 'a'\nbalancer = 'prequal'\nsticky = '{sticky}'\n"
    message = _mistake(text, tmp_path)
    assert "dlproxy.toml:4: " in message
    assert "needs balancer = 'consistent-hash', not 'prequal'" in message
    config = _load(text.replace("prequal", "consistent-hash"), tmp_path)
    assert config.models["a"][0].sticky == sticky


@pytest.mark.parametrize(("field", "choices"), [("discipline", DISCIPLINES), ("balancer", tuple(BALANCERS))])
def test_the_choices_are_those_that_there_are(field: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert getattr(msgspec.convert({"path": "a", field: choice}, ModelConfig), field) == choice
    schema = msgspec.json.schema(ModelConfig)["$defs"]["ModelConfig"]["properties"][field]
    assert set(schema["enum"]) == set(choices)
    for choice in msgspec.json.schema(ServerConfig)["$defs"]["ServerConfig"]["properties"]["arbiter_discipline"]["enum"]:
        assert choice in DISCIPLINES


def test_tenants_are_read_and_quotas_are_theirs(tmp_path: Path) -> None:
    config = _load('[tenants.a]\nrequests_per_s = 5\n[tenants."*"]\nrows_per_s = 2.5\n[tenants.b]\nweight = 3\n', tmp_path)
    assert config.tenants == {
        "a": TenantConfig(requests_per_s=5.0),
        "*": TenantConfig(rows_per_s=2.5),
        "b": TenantConfig(weight=3.0),
    }
    assert make_quotas(config.tenants) is not None
    assert make_quotas({"b": config.tenants["b"]}) is None
    assert make_quotas({}) is None


@pytest.mark.parametrize("knob", ["requests_per_s", "rows_per_s"])
def test_a_quota_that_never_admits_is_refused(knob: str) -> None:
    with pytest.raises(ConfigError, match=f"tenants.a: {knob} is 1e-09.*0 for no limit"):
        make_quotas({"a": TenantConfig(**{knob: 1e-9})})


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("[server\nhost = 1\n", "line 1"),
        ("[server]\nhost = 'a'\nhost = 'b'\n", "line 3"),
        ("[server]\nhost = \n", "line 2"),
        ("[server]\n[server]\n", "line 2"),
    ],
)
def test_a_syntax_error_is_named_with_its_line(tmp_path: Path, text: str, clue: str) -> None:
    message = _mistake(text, tmp_path)
    assert "is not TOML" in message
    assert clue in message


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in _mistake(b"\xff\xfe\x00", tmp_path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"{path} cannot be read"):
            load(path)


# Durations, and objectives in a file


@pytest.mark.parametrize(
    ("text", "seconds"), [("20ms", 0.02), ("0.5s", 0.5), (" 250 us ", 250e-6), ("1.5ms", 1.5e-3), ("3600s", 3600.0)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "20", "ms", "0ms", "-5ms", "1e3s", ".ms", "1.2.3ms", "20 min", "p99=20ms", "nans", "infs"]
)
def test_a_duration_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 20ms"):
        parse_duration(text)


def test_a_wrong_objective_in_a_file_is_named_with_its_own_line(tmp_path: Path) -> None:
    text = "[models.a]\npath = 'a'\nslo = 'p99=5ms'\n[models.b]\npath = 'b'\nslo = 'quick'\n"
    message = _mistake(text, tmp_path)
    assert "dlproxy.toml:6: " in message
    assert "'quick'" in message


# Versions


def test_a_version_has_the_knobs_of_its_model_but_for_its_own(tmp_path: Path) -> None:
    config = _load(
        """
        [models.digits]
        path = "a.onnx"
        slo = "p99=20ms"
        max_batch = 8
        [models.digits.versions.2]
        path = "b.onnx"
        [models.digits.versions.10]
        max_batch = 16
        [models.other]
        path = "c.onnx"
        """,
        tmp_path,
    )
    served = [(name, model.version, Path(model.path).name, model.max_batch, model.slo_s) for name, model in config.served()]
    assert served == [
        ("digits", "1", "a.onnx", 8, 0.02),
        ("digits", "2", "b.onnx", 8, 0.02),
        ("digits", "10", "a.onnx", 16, 0.02),
        ("other", "1", "c.onnx", 256, None),
    ]


def test_a_model_without_a_path_is_what_its_versions_have_in_common(tmp_path: Path) -> None:
    text = "[models.m]\nmax_batch = 8\n[models.m.versions.3]\npath = 'a'\n[models.m.versions.4]\npath = 'b'\n"
    models = _load(text, tmp_path).models["m"]
    assert [(model.version, model.max_batch) for model in models] == [("3", 8), ("4", 8)]


@pytest.mark.parametrize(
    ("below", "line", "clues"),
    [
        ("[models.m.versions.2]\nmax_bach = 3\n", 4, ["unknown key 'max_bach' in [models.m.versions.2]", "'max_batch'"]),
        ("[models.m.versions.2]\n\nmax_batch = 0\n", 5, ["models.m.versions.2.max_batch", ">= 1"]),
        ("[models.m.versions.2]\nslo = 'fast'\n", 4, ["'fast'", "p99=20ms"]),
        ("[models.m.versions.two]\npath = 'b'\n", 3, ["models.m.versions.two: a version is a number"]),
        ("[models.m.versions.1]\npath = 'b'\n", 3, ["[models.m] is version 1, too", "give it another version, or no path"]),
        ("[models.m.versions.2]\nversion = '3'\n", 4, ["[models.m.versions.2] is version 2: leave version out"]),
        ("versions = 3\n", 3, ["models.m.versions", "object", "int"]),
        ("[models.m.versions]\n2 = 'b.onnx'\n", 4, ["models.m.versions.2", "object", "str"]),
        ("[models.m.versions.2.versions.3]\npath = 'b'\n", 3, ["unknown key 'versions' in [models.m.versions.2]"]),
        ("versions.2.max_batch = 0\n", 3, ["models.m.versions.2.max_batch"]),
        ("versions = {2 = {max_batch = 0}}\n", 3, ["models.m.versions.2.max_batch"]),
    ],
)
def test_a_mistake_in_a_version_is_named_with_its_line(tmp_path: Path, below: str, line: int, clues: list[str]) -> None:
    _assert_told(_mistake(f"[models.m]\npath = 'a'\n{below}", tmp_path), line, clues)


def test_a_mistake_that_versions_inherit_is_named_where_it_stands(tmp_path: Path) -> None:
    message = _mistake("[models.m]\nmax_batch = 0\n[models.m.versions.2]\npath = 'b'\n", tmp_path)
    assert "dlproxy.toml:2: models.m.max_batch" in message


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        (["m=a", "m:2=b"], [("m", "1", "a"), ("m", "2", "b")]),
        (["m:7=a", "n=b", "m:2=c"], [("m", "7", "a"), ("m", "2", "c"), ("n", "1", "b")]),
        (["sleep:2=a"], [("sleep", "2", "a")]),
        (["sleep:base=1ms"], [("sleep", "1", "sleep:base=1ms")]),
        (["file.py:MyModel"], [("file", "1", "file.py:MyModel")]),
        (["a:b:3=x"], [("a:b", "3", "x")]),
        (["m:2=http://h:1/v2/models/x?a=1"], [("m", "2", "http://h:1/v2/models/x?a=1")]),
        (["http://h:80/v2/models/m:2=b"], [("m", "1", "http://h:80/v2/models/m:2=b")]),
    ],
)
def test_versions_on_the_command_line(arguments: list[str], served: list[tuple[str, str, str]]) -> None:
    models = add_models({}, arguments, "", command="serve")
    assert [(name, model.version, model.path) for name, model in Config(models=models).served()] == served


def test_the_command_line_adds_versions_to_those_of_the_file(tmp_path: Path) -> None:
    config = _load("[models.m]\npath = 'a'\n", tmp_path)
    models = add_models(config.models, ["m:2=b"], "", command="serve")
    assert [model.version for model in models["m"]] == ["1", "2"]
    assert len(config.models["m"]) == 1
    with pytest.raises(
        ConfigError, match="two models are named 'm' in version 1; give them names, NAME=PATH, or versions, NAME:2"
    ):
        add_models(config.models, ["m=b"], "", command="serve")


# The environment


def _told(environment: dict[str, str], path: Path | None = None) -> tuple[Config, list[str]]:
    return from_environment(path, {"PATH": "/bin", **environment})


def test_without_variables_there_are_the_defaults() -> None:
    assert _told({}) == (Config(), [])


def test_variables_are_read_as_the_knobs_take_them() -> None:
    config, warnings = _told(
        {
            "DLPROXY_HOST": "0.0.0.0",
            "DLPROXY_HTTP_PORT": "80",
            "DLPROXY_DRAIN_S": "2.5",
            "DLPROXY_SERVER_TIMING": "false",
            "DLPROXY_ARBITER": "auto",
            "DLPROXY_CORES": "2",
            "DLPROXY_MAX_HEADERS": "20",
            "DLPROXY_CORS_ORIGINS": "https://a.example, https://b.example",
            "DLPROXY_AUTOPILOT": "advise",
        }
    )
    assert config.server == ServerConfig(
        host="0.0.0.0", http_port=80, drain_s=2.5, server_timing=False, arbiter="auto", cores=2
    )
    assert config.autopilot.mode == "advise"
    assert config.http == HttpLimits(max_headers=20, cors_origins=["https://a.example", "https://b.example"])
    assert warnings == []


def test_variables_hold_over_the_file_and_one_names_it(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("[server]\nhttp_port = 1\ndrain_s = 1\n[models.m]\npath = '/a'\n")
    (tmp_path / "two.toml").write_text("[server]\nhttp_port = 2\n")
    config, _ = _told({"DLPROXY_CONFIG": str(tmp_path / "one.toml"), "DLPROXY_HTTP_PORT": "3"})
    assert (config.server.http_port, config.server.drain_s, list(config.models)) == (3, 1.0, ["m"])
    config, _ = _told({"DLPROXY_CONFIG": str(tmp_path / "one.toml")}, tmp_path / "two.toml")
    assert config.server.http_port == 2
    assert _told({"DLPROXY_CONFIG": ""})[0] == Config()
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        _told({"DLPROXY_CONFIG": "nowhere.toml"})


@pytest.mark.parametrize(
    ("name", "text", "clues"),
    [
        ("DLPROXY_HTTP_PORT", "eighty", ["'eighty' is not a whole number"]),
        ("DLPROXY_HTTP_PORT", "", ["'' is not a whole number"]),
        ("DLPROXY_DRAIN_S", "30s", ["'30s' is not a number"]),
        ("DLPROXY_HTTP_PORT", "70000", ["65535"]),
        ("DLPROXY_SERVER_TIMING", "maybe", ["'maybe' is not true or false"]),
        ("DLPROXY_ARBITER", "onn", ["'onn' is not one of its values", "did you mean 'on'?"]),
        ("DLPROXY_AUTOPILOT", "onn", ["'onn' is not one of its values", "did you mean 'on'?"]),
        ("DLPROXY_CORES", "2", ["needs another arbiter than 'off'"]),
        ("DLPROXY_MAX_BODY_BYTES", "1000000000000", ["68719476736"]),
        ("DLPROXY_CORS_ORIGINS", "shop.example", ["'shop.example' is not an origin"]),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, text: str, clues: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        _told({name: text})
    assert str(caught.value).startswith(f"{name}: ")
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


def test_an_unknown_variable_is_warned_of_with_the_nearest() -> None:
    _, warnings = _told({"DLPROXY_HTTP_PROT": "80", "DLPROXYS": "1"})
    assert warnings == ["the environment variable DLPROXY_HTTP_PROT sets nothing; did you mean 'DLPROXY_HTTP_PORT'?"]


def test_no_variable_sets_two_knobs() -> None:
    assert not set(ServerConfig.__struct_fields__) & {*HttpLimits.__struct_fields__, "config"}
    assert not {"config"} & set(HttpLimits.__struct_fields__)


def test_config_is_frozen() -> None:
    config: Any = Config()
    with pytest.raises(AttributeError):
        config.server = ServerConfig()
