"""What only HTTP has: routes, verbs, bodies, JSON, binary data by its sizes, compression. A table: name, request."""

import gzip
import json
import zlib
from typing import Any

from tests.conformance.asking import Ask, Given, Http, Request, as_json, get, post, with_binary
from tests.conformance.asks import PAIR

LONG = Ask("upper", [Given("TEXT", "BYTES", [1, 2], ["ab" * 500, "c" * 500])])
INFER = "/v2/models/wide/infer"
GZIPPED = gzip.compress(as_json(PAIR).body, mtime=0)
X = {"name": "X", "shape": [1, 2], "datatype": "INT64"}
BYTES_16 = (3).to_bytes(8, "little") + (4).to_bytes(8, "little")
SIZE_16 = {**X, "parameters": {"binary_data_size": 16}}


def wide(data: str, more: str = "") -> Http:
    """The data of one input written out, so that it may be anything."""
    return post(INFER, f'{{"inputs":[{{"name":"X","shape":[1,2],"datatype":"INT64","data":{data}}}]{more}}}')


def of(model: str, datatype: str, data: str, shape: str = "[1,2]", name: str = "X") -> Http:
    tensor = f'{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":{data}}}'
    return post(f"/v2/models/{model}/infer", f'{{"inputs":[{tensor}]}}')


def sized(size: Any, rest: bytes, head_size: int | None = None) -> Http:
    return with_binary(INFER, {"inputs": [{**X, "parameters": {"binary_data_size": size}}]}, rest, head_size)


def without(key: str) -> Http:
    return post(INFER, {"inputs": [{name: value for name, value in {**X, "data": [3, 4]}.items() if name != key}]})


def inputs(value: Any) -> Http:
    return post(INFER, {"inputs": value})


def raw(model: str, body: bytes, size: str = "0") -> Http:
    return Http("POST", f"/v2/models/{model}/infer", body, {"Inference-Header-Content-Length": size})


ROUTES: dict[str, Request] = {
    "live": get("/v2/health/live"),
    "ready": get("/v2/health/ready"),
    "server metadata": get("/v2"),
    "server metadata with a slash at its end": get("/v2/"),
    "metadata": get("/v2/models/add_sub"),
    "metadata with a slash at its end": get("/v2/models/add_sub/"),
    "metadata of a version": get("/v2/models/add_sub/versions/1"),
    "metadata without batches": get("/v2/models/fixed"),
    "metadata of strings": get("/v2/models/upper"),
    "metadata of a free size": get("/v2/models/varied"),
    "metadata of a stream": get("/v2/models/count"),
    "metadata of an unknown model": get("/v2/models/nobody"),
    "metadata of an unknown version": get("/v2/models/add_sub/versions/9"),
    "metadata of a version that is no number": get("/v2/models/add_sub/versions/one"),
    "model ready": get("/v2/models/add_sub/ready"),
    "version ready": get("/v2/models/add_sub/versions/1/ready"),
    "unknown model ready": get("/v2/models/nobody/ready"),
    "unknown version ready": get("/v2/models/add_sub/versions/9/ready"),
    "config": get("/v2/models/add_sub/config"),
    "config of a stream": get("/v2/models/count/config"),
    "config of strings without batches": get("/v2/models/say/config"),
    "config of an unknown model": get("/v2/models/nobody/config"),
    "stats": get("/v2/models/add_sub/stats"),
    "stats of a version": get("/v2/models/add_sub/versions/1/stats"),
    "stats of all": get("/v2/models/stats"),
    "stats of an unknown model": get("/v2/models/nobody/stats"),
    "stats of an unknown version": get("/v2/models/add_sub/versions/9/stats"),
    "a path that is none": get("/v2/nothing"),
    "the root": get("/"),
    "another version of the protocol": get("/v3"),
    "a path of a model that is none": get("/v2/models/add_sub/nothing"),
    "a query": get("/v2/models/add_sub?a=b"),
    "two slashes": get("/v2//models/add_sub"),
    "a percent-encoded name": get("/v2/models/add%5Fsub"),
    "GET of infer": get("/v2/models/add_sub/infer"),
    "PUT of infer": Http("PUT", "/v2/models/add_sub/infer", as_json(PAIR).body),
    "POST of metadata": post("/v2/models/add_sub", {}),
    "DELETE of a model": Http("DELETE", "/v2/models/add_sub"),
    "POST of live": post("/v2/health/live", {}),
    "POST of server metadata": post("/v2", {}),
    "POST of stats": post("/v2/models/stats", {}),
    "GET of the index": get("/v2/repository/index"),
    "GET of load": get("/v2/repository/models/spare/load"),
}

JSON: dict[str, Request] = {
    "empty body": post(INFER),
    "no JSON": post(INFER, "{"),
    "text behind the JSON": post(INFER, '{"inputs":[]} x'),
    "a list": post(INFER, "[]"),
    "a number": post(INFER, "3"),
    "not UTF-8": post(INFER, b'{"inputs":"\xff"}'),
    "no inputs": post(INFER, "{}"),
    "inputs null": inputs(None),
    "inputs an object": inputs({}),
    "an input that is no object": inputs([3]),
    "an input without a name": without("name"),
    "an input without a shape": without("shape"),
    "an input without a datatype": without("datatype"),
    "an input without data": without("data"),
    "a name that is a number": inputs([{**X, "name": 3, "data": [3, 4]}]),
    "a shape that is a text": inputs([{**X, "shape": "[1,2]", "data": [3, 4]}]),
    "a shape of texts": inputs([{**X, "shape": ["1", "2"], "data": [3, 4]}]),
    "a shape of floats": inputs([{**X, "shape": [1.5, 2], "data": [3, 4]}]),
    "a datatype that is a number": inputs([{**X, "datatype": 3, "data": [3, 4]}]),
    "an id that is a number": post(INFER, {"id": 3, "inputs": [{**X, "data": [3, 4]}]}),
    "an empty id": post(INFER, {"id": "", "inputs": [{**X, "data": [3, 4]}]}),
    "parameters that are a list": wide("[3,4]", ',"parameters":[]'),
    "a parameter that is a list": wide("[3,4]", ',"parameters":{"a":[1]}'),
    "a parameter that is null": wide("[3,4]", ',"parameters":{"a":null}'),
    "outputs that are an object": wide("[3,4]", ',"outputs":{}'),
    "outputs null": wide("[3,4]", ',"outputs":null'),
    "no outputs": wide("[3,4]", ',"outputs":[]'),
    "an output that is a text": wide("[3,4]", ',"outputs":["Y"]'),
    "keys of the client's own": wide("[3,4]", ',"more":{"a":1}'),
    "binary_data_output a text": wide("[3,4]", ',"parameters":{"binary_data_output":"yes"}'),
    "binary_data a text": wide("[3,4]", ',"outputs":[{"name":"Y","parameters":{"binary_data":"yes"}}]'),
    "nested data": wide("[[3,4]]"),
    "data nested too deeply": wide("[[[3,4]]]"),
    "data nested otherwise": wide("[[3],[4]]"),
    "ragged data": wide("[[3],4]"),
    "data that is a number": wide("3"),
    "data null": wide("null"),
    "data an object": wide('{"a":1}'),
    "text for a number": wide('["3",4]'),
    "null for a number": wide("[null,4]"),
    "a float for an integer": wide("[3.0,4]"),
    "a fraction for an integer": wide("[3.5,4]"),
    "a bool for an integer": wide("[true,4]"),
    "an integer too large": wide(f"[{2**63},4]"),
    "an integer far too large": wide(f"[{10**30},4]"),
    "256 as uint8": of("small", "UINT8", "[1,256]"),
    "-1 as uint8": of("small", "UINT8", "[1,-1]"),
    "1 as bool": of("flags", "BOOL", "[1,0]"),
    "a text as bool": of("flags", "BOOL", '["true",false]'),
    "integers as fp64": of("varied", "FP64", "[1,2]"),
    "NaN": of("varied", "FP64", "[NaN,2]"),
    "too large for fp64": of("varied", "FP64", "[1e999,2]"),
    "too large for fp32": of("spare", "FP32", "[1e39]", "[1,1]"),
    "a bool as fp64": of("varied", "FP64", "[true,2]"),
    "a number as bytes": of("upper", "BYTES", "[1,2]", name="TEXT"),
    "null as bytes": of("upper", "BYTES", '[null,"a"]', name="TEXT"),
    "bytes as text with escapes": of("upper", "BYTES", r'["\u00e4\n","\"a"]', name="TEXT"),
    "a scalar's shape": of("slow", "UINT8", "[1]", "[]", "MS"),
}

BINARY: dict[str, Request] = {
    "binary in, JSON out": sized(16, BYTES_16),
    "JSON in, binary out": wide("[3,4]", ',"parameters":{"binary_data_output":true}'),
    "an output as binary": wide("[3,4]", ',"outputs":[{"name":"Y","parameters":{"binary_data":true}}]'),
    "an output as JSON where binary is the default": wide(
        "[3,4]", ',"parameters":{"binary_data_output":true},"outputs":[{"name":"Y","parameters":{"binary_data":false}}]'
    ),
    "data and binary data": with_binary(INFER, {"inputs": [{**SIZE_16, "data": [5, 6]}]}, BYTES_16),
    "size below the shape": sized(8, BYTES_16[:8]),
    "size above the shape": sized(24, BYTES_16 + bytes(8)),
    "size beyond the body": sized(16, BYTES_16[:15]),
    "bytes left over": sized(16, BYTES_16 + b"x"),
    "size negative": sized(-16, BYTES_16),
    "size a float": sized(16.0, BYTES_16),
    "size a text": sized("16", BYTES_16),
    "size 0": sized(0, b""),
    "header length beyond the body": sized(16, BYTES_16, head_size=9999),
    "header length too short": sized(16, BYTES_16, head_size=20),
    "header length negative": raw("wide", BYTES_16, "-1"),
    "header length a word": raw("wide", BYTES_16, "ten"),
    "no header length": post(INFER, json.dumps({"inputs": [SIZE_16]}).encode() + BYTES_16),
    "no header length, binary data promised": post(INFER, {"inputs": [SIZE_16]}),
    "raw": raw("wide", BYTES_16),
    "raw, two rows": raw("wide", BYTES_16 * 2),
    "raw, too little": raw("wide", BYTES_16[:15]),
    "raw, nothing": raw("wide", b""),
    "raw, too many rows": raw("wide", BYTES_16 * 9),
    "raw bytes": raw("tell", b"ab"),
    "raw bytes of two elements": raw("upper", b"ab"),
    "raw without batches": raw("fixed", bytes(24)),
    "raw of a free size": raw("varied", bytes(16)),
    "raw of two inputs": raw("add_sub", bytes(32)),
    "raw of an unknown model": raw("nobody", bytes(32)),
    "bytes of which an element is cut off": with_binary(
        "/v2/models/upper/infer",
        {"inputs": [{"name": "TEXT", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}]},
        b"\1\0\0\0a\2\0\0\0",
    ),
    "bytes that are not UTF-8, answered as binary": with_binary(
        "/v2/models/upper/infer",
        {
            "inputs": [{"name": "TEXT", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}}],
            "parameters": {"binary_data_output": True},
        },
        b"\1\0\0\0a\1\0\0\0\xff",
    ),
    "fp16 in, JSON out": with_binary(
        "/v2/models/half/infer",
        {"inputs": [{"name": "X", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}]},
        bytes(4),
    ),
}

COMPRESSED: dict[str, Request] = {
    "gzip": post(PAIR.path, GZIPPED, **{"Content-Encoding": "gzip"}),
    "deflate": post(PAIR.path, zlib.compress(as_json(PAIR).body), **{"Content-Encoding": "deflate"}),
    "identity": post(PAIR.path, as_json(PAIR).body, **{"Content-Encoding": "identity"}),
    "an encoding that is none": post(PAIR.path, as_json(PAIR).body, **{"Content-Encoding": "snappy"}),
    "two encodings": post(PAIR.path, GZIPPED, **{"Content-Encoding": "gzip, gzip"}),
    "gzip that is none": post(PAIR.path, as_json(PAIR).body, **{"Content-Encoding": "gzip"}),
    "gzip that is cut off": post(PAIR.path, GZIPPED[:-9], **{"Content-Encoding": "gzip"}),
    "an answer in gzip": post(PAIR.path, as_json(PAIR).body, **{"Accept-Encoding": "gzip"}),
    "an answer in deflate": post(PAIR.path, as_json(PAIR).body, **{"Accept-Encoding": "deflate"}),
    "a long answer in gzip": post(LONG.path, as_json(LONG).body, **{"Accept-Encoding": "gzip"}),
    "a long answer in deflate": post(LONG.path, as_json(LONG).body, **{"Accept-Encoding": "deflate"}),
    "a long answer in the encoding that is liked better": post(
        LONG.path, as_json(LONG).body, **{"Accept-Encoding": "gzip;q=0.5, deflate"}
    ),
    "metadata in gzip": get("/v2/models/add_sub", **{"Accept-Encoding": "gzip"}),
    "an answer in an encoding that is none": post(PAIR.path, as_json(PAIR).body, **{"Accept-Encoding": "snappy"}),
}
