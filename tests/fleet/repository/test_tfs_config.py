"""TensorFlow Serving's models.config: the models that it lists, and the line of what is wrong."""

import pytest

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.tfs_config import ListedModel, read_models_config
from dlproxy.fleet.repository.version_policy import VersionPolicy

LIST = """
# Two at the same time
model_config_list {
  config {
    name: 'first'
    base_path: '/models/first'
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'canary' value: 43 }
    logging_config { sampling_config { sampling_rate: 0.5 } custom_logging_config { type_url: 'a/b' } }
  },
  config: < name: "sec" "ond"; base_path: "s3://bucket/second" >
}
"""


def test_all_that_a_list_says() -> None:
    assert read_models_config(LIST, "models.config") == [
        ListedModel("first", "/models/first", VersionPolicy(specific=("42", "43")), {"stable": "42", "canary": "43"}),
        ListedModel("second", "s3://bucket/second", None, {}),
    ]


@pytest.mark.parametrize("text", ["", "model_config_list { }", "model_config_list: { config: [ ] }"])
def test_no_models(text: str) -> None:
    assert read_models_config(text, "models.config") == []


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", None),
        ("{ }", None),
        ("{ latest { } }", VersionPolicy(latest=1)),
        ("{ latest { num_versions: 4 } }", VersionPolicy(latest=4)),
        ("{ all: { } }", VersionPolicy(latest=0)),
        ("{ specific { versions: [ 3 ] } }", VersionPolicy(specific=("3",))),
    ],
)
def test_versions(policy: str, expected: VersionPolicy | None) -> None:
    text = f"model_config_list {{ config {{ name: 'm' base_path: '/m' {'model_version_policy' * bool(policy)} {policy} }} }}"
    (model,) = read_models_config(text, "models.config")
    assert model.policy == expected


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("name: 'm'", "^models.config:3: model 'm': it has no base_path"),
        ("base_path: '/m'", "^models.config:3: model '': it has no name"),
        ("", "^models.config:2: model '': it has no name"),
        (
            "name: 'm' base_path: '/m' model_platform: 'other'",
            "^models.config:3: model 'm': its platform is other; dlproxy takes",
        ),
        ("name: 'm' base_path: '/m' model_type: OTHER", "^models.config:3: model 'm': its platform is OTHER"),
        ("name: 'm' base_path: '/m' model_version_policy { specific { } }", "^models.config:3: model 'm': specific names no"),
        ("name: 'm' base_path: '/m' version_label { }", "^models.config:3: .*Did you mean version_labels"),
        ("name: 'm' base_path: '/m' version_labels { key: 'a' value: '1' }", "^models.config:3: "),
        (
            "name: 'm' base_path: '/m' model_version_policy { all { } latest { } }",
            "^models.config:3: .*another member of oneof",
        ),
        ("name: 'm' base_path: '/m", "^models.config:3: .*missing ending quote"),
    ],
)
def test_the_line_of_a_mistake_is_named(inside: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_models_config(f"model_config_list {{\n  config {{\n    {inside}\n  }}\n}}\n", "models.config")


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^models\.config:2: dlproxy takes a model_config_list only"):
        read_models_config("#\ncustom_model_config { type_url: 'a/b' }", "models.config")
