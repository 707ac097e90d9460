"""Tables of fields become protobuf message classes. Called by the tables beside it. Not aware of: which services there are.

Why no generated code: docs/adr/0010-grpc-upstreams.md.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from msgspec import Struct

BOOL = FieldDescriptorProto.TYPE_BOOL
BYTES = FieldDescriptorProto.TYPE_BYTES
DOUBLE = FieldDescriptorProto.TYPE_DOUBLE
FLOAT = FieldDescriptorProto.TYPE_FLOAT
INT32 = FieldDescriptorProto.TYPE_INT32  # also of enums, which are the same on the wire
INT64 = FieldDescriptorProto.TYPE_INT64
STRING = FieldDescriptorProto.TYPE_STRING
UINT32 = FieldDescriptorProto.TYPE_UINT32
UINT64 = FieldDescriptorProto.TYPE_UINT64


class Field(Struct, frozen=True):
    """`kind`: one of the types above, or the full name of a message."""

    number: int
    kind: Any
    repeated: bool = False
    keyed: bool = False


def one(number: int, kind: Any) -> Field:
    """A single value, or none."""
    return Field(number, kind)


def many(number: int, kind: Any) -> Field:
    """A list of them."""
    return Field(number, kind, repeated=True)


def by_name(number: int, kind: Any) -> Field:
    """A map from strings."""
    return Field(number, kind, repeated=True, keyed=True)


def messages(packages: Mapping[str, Mapping[str, Mapping[str, Field]]]) -> SimpleNamespace:
    """The classes of all top-level messages by their bare names; package -> message -> field.

    "Outer.Inner" stands after its "Outer". A package may use those before it. The classes share a pool of their own: the
    same messages in another library of the process (TensorFlow, tritonclient) do not clash with these.
    """
    pool = DescriptorPool()
    classes = SimpleNamespace()
    earlier: list[str] = []
    for package, tables in packages.items():
        file = FileDescriptorProto(name=f"dlproxy/{package}.proto", package=package, syntax="proto3", dependency=earlier)
        for name, fields in tables.items():
            outer, _, inner = name.rpartition(".")
            siblings = (
                next(each for each in file.message_type if each.name == outer).nested_type if outer else file.message_type
            )
            _fill(siblings.add(name=inner), f"{package}.{name}", fields)
        pool.Add(file)
        earlier.append(file.name)
        for name in tables:
            if "." not in name:
                message = pool.FindMessageTypeByName(f"{package}.{name}")
                setattr(classes, name, message_factory.GetMessageClass(message))
    return classes


def _fill(message: DescriptorProto, full_name: str, fields: Mapping[str, Field]) -> None:
    for name, field in fields.items():
        kind = field.kind
        if field.keyed:
            entry = f"{name.title().replace('_', '')}Entry"  # the name that protoc gives it
            nested = message.nested_type.add(name=entry)
            _fill(nested, f"{full_name}.{entry}", {"key": one(1, STRING), "value": one(2, kind)})
            nested.options.map_entry = True
            kind = f"{full_name}.{entry}"
        label = FieldDescriptorProto.LABEL_REPEATED if field.repeated else FieldDescriptorProto.LABEL_OPTIONAL
        added = message.field.add(name=name, number=field.number, label=label)
        if isinstance(kind, str):
            added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{kind}"
        else:
            added.type = kind
