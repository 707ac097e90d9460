"""Protobuf's text as plain data: whatever is set arrives, whatever is wrong is a ConfigError with its line, nothing hangs."""

import re
from time import process_time
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from tritonclient.grpc import model_config_pb2

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.text_format import read_text
from dlproxy.fleet.repository.tfs_config import read_models_config
from dlproxy.fleet.repository.triton_config import TritonConfig, read_triton_config, read_triton_json
from dlproxy.protos.triton_config import triton_config

NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_STRING: st.text(max_size=8),
}
NAMES = [field.name for field in model_config_pb2.ModelConfig.DESCRIPTOR.fields]
INNER = (
    "dims data_type kind key value string_value preferred_batch_size model_config_list config version_labels TYPE_FP32 KIND_GPU"
)
SIGNS = "{ } < > [ ] : , ; - . \" ' # \n \\ 0 1 -1 0x1f 017 1e9 inf nan 1.5f true \\x41 \\u00e9 \"a\" 'b' é \0 \ud800 [a.b/c] ?"
WORDS = [*NAMES, *re.split(" ", INNER), *re.split(" ", SIGNS)]


def read(reader: Any, *given: Any) -> tuple[Any, str]:
    """What it gives, or None and its refusal, which a log can take; it may raise nothing else."""
    try:
        return reader(*given), ""
    except ConfigError as error:
        return None, str(error).encode().decode()


def field_of(field: Any) -> Any:
    """Values of one field."""
    if field.message_type is not None:
        return message_of(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return NUMBERS[field.cpp_type]


def message_of(kind: Any) -> Any:
    """Messages as dicts with few of the fields, one of each choice."""

    def build(names: list[str]) -> Any:
        fields: dict[str, Any] = {}
        for name in names:
            field = kind.fields_by_name[name]
            choice = field.containing_oneof
            if choice is not None and any(other.name in fields for other in choice.fields):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                entry = field.message_type.fields_by_name
                fields[name] = st.dictionaries(field_of(entry["key"]), field_of(entry["value"]), max_size=2)
            else:
                fields[name] = st.lists(field_of(field), max_size=2) if is_list(field) else field_of(field)
        return st.fixed_dictionaries(fields)

    return (
        st.lists(st.sampled_from(sorted(kind.fields_by_name)), max_size=4, unique=True).flatmap(build)
        if (kind.fields)
        else st.just({})
    )


def is_list(field: Any) -> bool:
    return bool(field.is_repeated)


def unlike(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Where what was read differs from the message that was printed."""
    if isinstance(ours, Struct):
        return [
            where
            for name in ours.__struct_fields__
            if (name != "others" or place)
            for where in unlike_field(getattr(ours, name), theirs, name, f"{place}.{name}")
        ]
    if isinstance(ours, tuple):
        pairs = zip(ours, theirs, strict=True)
        return [where for one, other in pairs for where in unlike(one, other, place)]
    return [] if ours == theirs else [f"{place}: {ours!r} is not {theirs!r}"]


def unlike_field(ours: Any, theirs: Message, name: str, place: str) -> list[str]:
    field = theirs.DESCRIPTOR.fields_by_name.get(name)
    if field is None:  # of outputs alone, or of inputs
        return [f"{place} is set"] if ours else []
    value = getattr(theirs, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        same_keys = [] if set(ours) == set(value) else [f"{place}: {set(ours)} are not {set(value)}"]
        return same_keys or [where for key, one in ours.items() for where in unlike(one, value[key], place)]
    if ours is None or isinstance(ours, dict):
        return [] if (ours is not None) == theirs.HasField(name) else [f"{place} is there, or is not"]
    if isinstance(ours, tuple) and ours and isinstance(ours[0], dict):
        return [] if len(ours) == len(value) else [f"{place} has another length"]
    if field.enum_type is not None:
        value = field.enum_type.values_by_number[value].name
    return unlike(ours, value, place)


def names_of(kind: Any, seen: dict[str, Any], place: str = "") -> dict[str, Any]:
    """All fields of a message and of those in it, with what tells them apart in text."""
    for field in kind.fields:
        values = {value.name: value.number for value in field.enum_type.values} if field.enum_type else None
        choice = field.containing_oneof.name if field.containing_oneof else ""
        seen[f"{place}.{field.name}"] = (field.number, field.type, is_list(field), choice, values)
        if field.message_type is not None:
            names_of(field.message_type, seen, f"{place}.{field.name}")
    return seen


def test_the_table_of_fields_is_that_of_tritons_own_client() -> None:
    ours, theirs = names_of(triton_config.DESCRIPTOR, {}), names_of(model_config_pb2.ModelConfig.DESCRIPTOR, {})
    assert ours == theirs
    assert len(ours) > 150


@settings(max_examples=40, deadline=None)
@given(message_of(model_config_pb2.ModelConfig.DESCRIPTOR), st.booleans(), st.booleans(), st.booleans())
def test_what_is_printed_is_read(fields: dict[str, Any], one_line: bool, brackets: bool, ascii_only: bool) -> None:
    message = model_config_pb2.ModelConfig(**fields)
    text = text_format.MessageToString(
        message,
        as_one_line=one_line,
        pointy_brackets=brackets,
        use_short_repeated_primitives=brackets,
        as_utf8=not ascii_only,
    )
    config, others = read_text(text, "config.pbtxt", triton_config, TritonConfig)
    assert unlike(config, message) == []
    known = set(TritonConfig.__struct_fields__) - {"others"}
    assert {field.name for field, _ in message.ListFields()} - known == {name for name in others if "." not in name}


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.text(), st.tuples(st.sampled_from(["", " "]), st.lists(st.sampled_from(WORDS))).map(lambda one: one[0].join(one[1]))
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    for reader in (read_triton_config, read_models_config):
        found, refusal = read(reader, text, "some.pbtxt")
        assert found is not None or refusal.startswith("some.pbtxt:")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*WORDS, "maxBatchSize"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_any_json_is_read_or_refused(data: dict[str, Any]) -> None:
    found, refusal = read(read_triton_json, data, "the configuration given")
    assert found is not None or refusal.startswith("the configuration given: ")


@pytest.mark.parametrize(
    "text",
    [
        "input {" * 50_000,
        "input [" * 50_000,
        "[" * 100_000,
        'name: "' + '\\"' * 100_000,
        "'\\q" * 100_000,
        'name: "' + "\\x41" * 100_000 + '"',
        "name: " + '"a" ' * 50_000,
        "max_batch_size: " + "9" * 100_000,
        "#" * 1_000_000,
        "\n" * 200_000 + "x",
        'name: "\ud800"',
        "input { dims: [" + "1," * 50_000 + "1] }",
    ],
    ids=lambda text: f"{text[:12]!r}",
)
def test_no_text_takes_long(text: str) -> None:
    began_s = process_time()
    _, refusal = read(read_triton_config, text, "some.pbtxt")
    assert len(refusal) < 500
    assert process_time() - began_s < 5.0
