"""Requests for inference, good and bad, that both servers get in all forms of asking.py. A table: what it is; the request."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tests.conformance.asking import Ask, Given, Wanted
from tests.conformance.models import TOO_MUCH

A = Given("A", "FP32", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8])
B = Given("B", "FP32", [2, 4], [0.5, -1, 0, 1e30, -0.0, 0.1, 3, 2])
PAIR = Ask("add_sub", [A, B])


def one(datatype: str, data: Sequence[Any], **changes: Any) -> Given:
    """X of shape [1, 2]."""
    return replace(Given("X", datatype, [1, 2], data), **changes)


def rows(count: int, name: str = "A") -> Given:
    return Given(name, "FP32", [count, 4], [float(n) for n in range(4 * count)])


def pair(a: Given = A, b: Given = B, **changes: Any) -> Ask:
    return replace(Ask("add_sub", [a, b]), **changes)


def a_with(**changes: Any) -> Ask:
    return pair(replace(A, **changes))


def wide(**changes: Any) -> Ask:
    return replace(Ask("wide", [one("INT64", [3, -4])]), **changes)


GOOD: dict[str, Ask] = {
    "two rows": PAIR,
    "an id": pair(id="r-7"),
    "an id of other letters": pair(id='ä "q" \\ 1'),
    "a version": pair(version="1"),
    "one output of two": pair(outputs=[Wanted("DIFF")]),
    "outputs in another order": pair(outputs=[Wanted("DIFF"), Wanted("SUM")]),
    "inputs in another order": Ask("add_sub", [B, A]),
    "the largest batch": pair(rows(8), rows(8, "B")),
    "parameters of the client's own": pair(parameters={"tag": "x", "n": 3, "yes": True}),
    "a float among the parameters": pair(parameters={"ratio": 0.5}),
    "a priority": pair(parameters={"priority": 1}),
    "a priority beyond all": pair(parameters={"priority": 99}),
    "priority 0": pair(parameters={"priority": 0}),
    "a timeout": pair(parameters={"timeout": 5_000_000}),
    "a sequence id of a model without sequences": wide(parameters={"sequence_id": 7, "sequence_start": True}),
    "sequence id 0": wide(parameters={"sequence_id": 0}),
    "strings": Ask("upper", [Given("TEXT", "BYTES", [2, 2], ["ab", "", "x y", "z"])]),
    "strings of other letters": Ask("upper", [Given("TEXT", "BYTES", [1, 2], ["ä€", "\u0000\n"])]),
    "a model without batches": Ask("fixed", [Given("M", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]),
    "a free size": Ask("varied", [Given("X", "FP64", [2, 3], [0.1, 0.2, 0.3, 1e300, -1, 5])]),
    "int64 at its ends": wide(inputs=[one("INT64", [-(2**63), 2**63 - 1])]),
    "bool": Ask("flags", [one("BOOL", [True, False])]),
    "uint8 at its ends": Ask("small", [one("UINT8", [0, 255])]),
    "fp16": Ask("half", [one("FP16", [0.5, -2])]),
    "a model that takes a while": Ask("slow", [Given("MS", "UINT8", [1], [2])]),
    "a timeout that passes meanwhile": Ask("slow", [Given("MS", "UINT8", [1], [100])], parameters={"timeout": 20_000}),
    "text and a number": Ask("say", [Given("text_input", "BYTES", [1], ["ab"]), Given("times", "INT32", [1], [3])], id="t"),
    "classification": wide(outputs=[Wanted("Y", {"classification": 1})]),
    "classification of more than there is": wide(outputs=[Wanted("Y", {"classification": 5})]),
    "classification of rows": pair(outputs=[Wanted("SUM", {"classification": 2}), Wanted("DIFF")]),
}

BAD: dict[str, Ask] = {
    "unknown model": pair(model="nobody"),
    "unknown version": pair(version="9"),
    "unknown version of an unknown model": pair(model="nobody", version="2"),
    "a version that is no number": pair(version="latest"),
    "no inputs": pair(inputs=[]),
    "an input missing": pair(inputs=[A]),
    "an input missing, with an id": pair(inputs=[A], id="r7"),
    "an input too many": pair(inputs=[A, B, replace(A, name="C")]),
    "an input misnamed": pair(b=replace(B, name="b")),
    "an input given twice": pair(b=A),
    "all inputs and one twice": pair(inputs=[A, B, B]),
    "an input without a name": pair(b=replace(B, name="")),
    "another datatype": pair(replace(A, datatype="INT64", data=[1, 2, 3, 4, 5, 6, 7, 8])),
    "a datatype that is none": a_with(datatype="FP31", stored_as="FP32"),
    "a datatype in small letters": a_with(datatype="fp32", stored_as="FP32"),
    "no datatype": a_with(datatype="", stored_as="FP32"),
    "another size": a_with(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]),
    "a dimension less": wide(inputs=[one("INT64", [3, 4], shape=[2])]),
    "a dimension more": wide(inputs=[one("INT64", [3, 4], shape=[1, 1, 2])]),
    "a dimension less in one of two inputs": a_with(shape=[4], data=[1, 2, 3, 4]),
    "no dimensions": a_with(shape=[], data=[1]),
    "a negative size": wide(inputs=[one("INT64", [3, 4], shape=[-1, 2])]),
    "two negative sizes": wide(inputs=[one("INT64", [3, 4], shape=[-1, -2])]),
    "no rows": pair(replace(A, shape=[0, 4], data=[]), replace(B, shape=[0, 4], data=[])),
    "size 0 of a free one": Ask("varied", [Given("X", "FP64", [1, 0], [])]),
    "a huge size": Ask("varied", [Given("X", "FP64", [1, 1 << 40], [1.0])]),
    "sizes whose product is too large": Ask("varied", [Given("X", "FP64", [1 << 40, 1 << 40], [1.0])]),
    "rows that disagree": pair(rows(3)),
    "too many rows": pair(rows(9), rows(9, "B")),
    "too little data": a_with(data=[1, 2, 3, 4, 5, 6, 7]),
    "too much data": a_with(data=[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "no data": a_with(data=[]),
    "another size without batches": Ask("fixed", [Given("M", "FP32", [3, 2], [1, 2, 3, 4, 5, 6])]),
    "too little data of strings": Ask("upper", [Given("TEXT", "BYTES", [2, 2], ["ab", "c", "d"])]),
    "too much data of strings": Ask("upper", [Given("TEXT", "BYTES", [1, 2], ["ab", "c", "d"])]),
    "unknown output": pair(outputs=[Wanted("SUM"), Wanted("Z")]),
    "an output asked for twice": pair(outputs=[Wanted("SUM"), Wanted("SUM")]),
    "an output without a name": pair(outputs=[Wanted("")]),
    "a model that fails": Ask("faulty", [Given("X", "FP32", [1, 1], [TOO_MUCH * 2])]),
    "a model that fails, with an id": Ask("faulty", [Given("X", "FP32", [1, 1], [TOO_MUCH * 2])], id="f-1"),
    "a model that answers in parts": Ask("count", [Given("N", "INT32", [1], [2])]),
    "a timeout that is a text": pair(parameters={"timeout": "soon"}),
    "a priority that is a text": pair(parameters={"priority": "high"}),
    "a negative priority": pair(parameters={"priority": -1}),
    "a sequence id that is a bool": wide(parameters={"sequence_id": True}),
    "a sequence start that is a number": wide(parameters={"sequence_id": 7, "sequence_start": 1}),
    "classification 0": wide(outputs=[Wanted("Y", {"classification": 0})]),
    "classification that is a text": wide(outputs=[Wanted("Y", {"classification": "all"})]),
    "a reserved parameter": pair(parameters={"triton_mine": 1}),
    "an input in shared memory that is not registered": wide(
        inputs=[one("INT64", [], parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16})]
    ),
    "an input in shared memory without a size": wide(inputs=[one("INT64", [], parameters={"shared_memory_region": "r"})]),
    "an output into shared memory that is not registered": wide(
        outputs=[Wanted("Y", {"shared_memory_region": "r", "shared_memory_byte_size": 16})]
    ),
}

ASKS = {**GOOD, **BAD}
