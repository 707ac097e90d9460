"""Tables of fields become protobuf message classes. Called by the tables beside it. Not aware of: which services there are.

Why no generated code: docs/adr/0010-grpc-upstreams.md.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    OneofDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from msgspec import Struct

BOOL = FieldDescriptorProto.TYPE_BOOL
BYTES = FieldDescriptorProto.TYPE_BYTES
DOUBLE = FieldDescriptorProto.TYPE_DOUBLE
FLOAT = FieldDescriptorProto.TYPE_FLOAT
INT32 = FieldDescriptorProto.TYPE_INT32  # also of enums whose names do not matter: they are the same on the wire
INT64 = FieldDescriptorProto.TYPE_INT64
STRING = FieldDescriptorProto.TYPE_STRING
UINT32 = FieldDescriptorProto.TYPE_UINT32
UINT64 = FieldDescriptorProto.TYPE_UINT64


class Field(Struct, frozen=True):
    """`kind`: one of the types above, or the full name of a message or, after "enum ", of an enum.

    `key`: the type of a map's keys. `choice`: fields that share one exclude each other.
    """

    number: int
    kind: Any
    repeated: bool = False
    key: Any = None
    choice: str = ""


Fields = Mapping[str, Field]


class Values(dict[str, int]):
    """Of an enum."""


Tables = Mapping[str, Fields | Values]  # by the names of messages and enums


def one(number: int, kind: Any) -> Field:
    """A single value, or none."""
    return Field(number, kind)


def many(number: int, kind: Any) -> Field:
    """A list of them."""
    return Field(number, kind, repeated=True)


def by_name(number: int, kind: Any) -> Field:
    """A map from strings."""
    return Field(number, kind, repeated=True, key=STRING)


def by_number(number: int, kind: Any) -> Field:
    """A map from whole numbers."""
    return Field(number, kind, repeated=True, key=UINT64)


def choice(name: str, **fields: Field) -> dict[str, Field]:
    """At most one of these."""
    return {field: msgspec.structs.replace(one, choice=name) for field, one in fields.items()}


def messages(packages: Mapping[str, Tables]) -> SimpleNamespace:
    """The classes of all top-level messages by their bare names; package -> message or enum -> field or value.

    "Outer.Inner" stands after its "Outer". A package may use those before it. The classes share a pool of their own: the
    same messages in another library of the process (TensorFlow, tritonclient) do not clash with these.
    """
    pool = DescriptorPool()
    classes = SimpleNamespace()
    earlier: list[str] = []
    for package, tables in packages.items():
        file = FileDescriptorProto(name=f"dlproxy/{package}.proto", package=package, syntax="proto3", dependency=earlier)
        for name, rows in tables.items():
            outer, _, inner = name.rpartition(".")
            parent = next(each for each in file.message_type if each.name == outer) if outer else file
            if isinstance(rows, Values):
                values = [EnumValueDescriptorProto(name=value, number=number) for value, number in rows.items()]
                parent.enum_type.add(name=inner, value=values)
            else:
                nested = parent.nested_type if outer else parent.message_type
                _fill(nested.add(name=inner), f"{package}.{name}", rows)
        pool.Add(file)
        earlier.append(file.name)
        for each in file.message_type:
            message = pool.FindMessageTypeByName(f"{package}.{each.name}")
            setattr(classes, each.name, message_factory.GetMessageClass(message))
    return classes


def _fill(message: DescriptorProto, full_name: str, fields: Fields) -> None:
    choices = list(dict.fromkeys(field.choice for field in fields.values() if field.choice))
    message.oneof_decl.extend(OneofDescriptorProto(name=name) for name in choices)
    for name, field in fields.items():
        kind = field.kind
        if field.key is not None:
            entry = f"{name.title().replace('_', '')}Entry"  # the name that protoc gives it
            nested = message.nested_type.add(name=entry)
            _fill(nested, f"{full_name}.{entry}", {"key": one(1, field.key), "value": one(2, kind)})
            nested.options.map_entry = True
            kind = f"{full_name}.{entry}"
        label = FieldDescriptorProto.LABEL_REPEATED if field.repeated else FieldDescriptorProto.LABEL_OPTIONAL
        added = message.field.add(name=name, number=field.number, label=label)
        if field.choice:
            added.oneof_index = choices.index(field.choice)
        if isinstance(kind, str):
            enum = kind.startswith("enum ")
            added.type = FieldDescriptorProto.TYPE_ENUM if enum else FieldDescriptorProto.TYPE_MESSAGE
            added.type_name = f".{kind.removeprefix('enum ')}"
        else:
            added.type = kind
