"""Where dlproxy answers otherwise than Triton on purpose: what, why, and what it answers. The one place of truth.

The guide (docs/guides/from-triton.md) has a line for each `what`, which the test compares. Called by comparison.py.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from msgspec import Struct

FINE = "fine"
STREAMED = "streamed"
ID = "[request id: <id_unknown>]"

EVERYWHERE = (
    "Errors over HTTP are `application/json`, and may go on after Triton's text with what would be right; Triton's note about "
    "`max_batch_size` is left out.",
    "The server calls itself `dlproxy` and names the extensions that it has.",
    "Configurations hold what dlproxy knows of a model; `version_policy` names the one version.",
)


class Difference(Struct, frozen=True):
    """`cases`: tables and names of cases, as "table,table: name | name" with *, and how the error begins here, after its status
    or code if that is not Triton's; FINE if there is no error, STREAMED if it is in a message.
    """

    what: str
    cases: Mapping[str, str]


DIFFERENCES = (
    Difference(
        "Health and readiness over HTTP come with JSON, where Triton sends no body: KServe's client reads it.",
        {"http: live | ready | model ready | version ready": FINE},
    ),
    Difference(
        "Of a model that is not there readiness and statistics say 404, as everything else does; Triton says 400.",
        {
            "http: unknown model ready | unknown version ready": "404 Request for unknown model",
            "http: stats of an unknown model | stats of an unknown version": "404 Request for unknown model",
            "repository: ready when it is unloaded | stats when it is unloaded": "404 Request for unknown model",
            "grpc: stats of an unknown model": "NOT_FOUND Request for unknown model",
        },
    ),
    Difference(
        "A model that is unloaded is unknown like any other; Triton says that it has no available versions.",
        {
            "repository: infer when it is unloaded | metadata when it is unloaded": "Request for unknown model: 'spare' is",
            "grpc control: infer when it is unloaded": "Request for unknown model: 'spare' is not found",
        },
    ),
    Difference(
        "JSON that cannot be read, or is not what it should be, is the client's mistake: 400, and where it is wrong. "
        "Triton says 500.",
        {
            "body: no JSON | text behind the JSON": "400 malformed JSON: ",
            "sizes: header length too short | no header length": "400 malformed JSON: ",
            "body: a list | a number | not UTF-8 | no inputs | inputs *": "400 not an inference request",
            "body: an input without a *": "400 not an inference request",
            "body: an input that is no object | a name that * | a shape * | a datatype that * | an id that *": (
                "400 not an inference request"
            ),
            "body: parameters that * | outputs that * | an output that * | binary_data a text": "400 not an inference request",
            "sizes: size a float | size a text": "400 not an inference request",
            "sizes: size negative": "400 input 'X': binary_data_size is -16",
            "json,binary: classification that is a text": "400 ",
            "body: binary_data_output a text": "400 parameter 'binary_data_output' is 'yes'",
            "json,binary: a timeout that is a text": "400 parameter 'timeout' is 'soon'",
            "json,binary: a priority that is a text | a negative priority": "400 parameter 'priority' is ",
            "repository: * bad body | index of a list | index, ready a text": "400 the body is not understood: ",
            "shared memory: register a bad body | register nothing": "400 the body is not understood: ",
            "settings: * bad body": "400 the body is not a JSON object",
            "settings: set logging to what is none": "400 expect boolean for 'log_info'",
            "generate: * bad body | generate of nothing": "400 not a generate request",
            "repository: load with a configuration that is no JSON": "400 the parameter config is not JSON",
            "grpc control: load with a configuration that is no JSON": "INVALID_ARGUMENT the parameter config is not JSON",
            "repository: load with a parameter that is none": "400 unrecognized load parameter 'colour'",
        },
    ),
    Difference(
        "Data in JSON that does not suit its type or shape is the client's mistake, too; a shape may be told before "
        "Triton's own check of the data.",
        {
            "body: data that is a number | data null | data an object | *for a number": "400 input 'X': ",
            "body: * for an integer | an integer * too large | an integer too large": "400 input 'X': ",
            "body: -1 as uint8 | 1 as bool | a text as bool | a bool as fp64 | too large for fp64": "400 input 'X': ",
            "body: a number as bytes | null as bytes": "400 input 'TEXT': ",
            "generate: generate with a text for a number": "400 input 'times': '2' is not an integer",
            "generate: generate with a number for a text": "400 input 'text_input': 3 is not a string",
            "json: too little data | too much data": "400 input 'A': the data has shape",
            "json: too little data of strings | too much data of strings": "input 'TEXT': the data has shape",
            "json: a negative size | two negative sizes": "400 input 'X': shape [-1, ",
            "binary: a negative size | two negative sizes": f"400 {ID} input 'X': shape [-1, ",
        },
    ),
    Difference(
        "Numbers in JSON are taken exactly. Triton wraps 256 to 0 as UINT8, makes infinity of what is too large for FP32, "
        "and reads and writes NaN, which JSON does not have.",
        {"body: 256 as uint8 | too large for fp32": "400 input 'X': ", "body: NaN": "400 malformed JSON: "},
    ),
    Difference(
        "Data in JSON is flat or nested as its shape says; Triton takes any nesting.",
        {"body: data nested too deeply | data nested otherwise | ragged data": "400 input 'X': the data has shape"},
    ),
    Difference(
        "Outputs come in the order in which they are asked for, and one that is asked for twice comes twice.",
        {"json,typed,raw: outputs in another order | an output asked for twice": FINE},
    ),
    Difference(
        "`binary_data_output` holds for every output that does not say otherwise; Triton answers those that are listed as "
        "JSON.",
        {
            "binary: one output of two | outputs in another order | an output asked for twice": FINE,
            "binary: classification | classification of * | classification 0": FINE,
        },
    ),
    Difference(
        "Versions may be asked for by label, so one that is no number is looked for.",
        {
            "json,binary: a version that is no number": "404 Request for unknown model",
            "http: metadata of a version that is no number": "404 Request for unknown model",
            "typed,raw: a version that is no number": "NOT_FOUND Request for unknown model",
            "grpc: metadata of a version that is no number": "NOT_FOUND Request for unknown model",
        },
    ),
    Difference(
        "A model that fails is told by its class, the error and the line; Triton sends the stack with the server's paths.",
        {
            "json,binary,typed,raw: a model that fails*": "Faulty.predict raised ValueError: that is too much (",
            "generate: * a model that fails": "500 Faulty.predict raised ValueError: that is too much (",
            "stream: a model that fails": STREAMED,
        },
    ),
    Difference(
        "Of several inputs the first in the model's order is named; Triton's order is that of a hash table.",
        {
            "*: an input too many": f"{ID} expected 2 inputs but got 3 inputs for model 'add_sub'",
            "*: rows that disagree": f"{ID} input 'B' batch size does not match other inputs for 'add_sub'",
            "*: a dimension less in one of two inputs": f"{ID} unexpected shape for input 'A' for model 'add_sub'",
        },
    ),
    Difference(
        "Negative sizes and requests without rows are told as what they are. Triton takes a row of -1 for a free size, "
        "and misses the bytes of a row that there is not.",
        {
            "typed,raw: a negative size | two negative sizes": f"{ID} input 'X': shape [-1, ",
            "typed: no rows": f"{ID} input 'A': shape [0, 4] has no rows",
        },
    ),
    Difference(
        "Sizes are multiplied exactly and compared with the data before anything is allocated. Triton's products "
        "overflow, and one such request ends its process.",
        {
            "json: a huge size": "400 input 'X': the data has shape",
            "json: sizes whose product is too large": "input 'X': the data has shape",
            "binary,typed,raw: sizes whose product is too large": f"{ID} input byte size mismatch for input 'X'",
        },
    ),
    Difference(
        "A request of a [sequence](sequences.md) is refused where the model keeps no state between requests. Triton runs it.",
        {
            "json,binary: a sequence id * | a sequence start *": "501 parameter 'sequence_id' is ",
            "typed,raw: a sequence id * | a sequence start *": "UNIMPLEMENTED parameter 'sequence_id' is ",
        },
    ),
    Difference(
        "A timeout or a priority of a wrong kind is told in the same words over HTTP and gRPC.",
        {
            "typed,raw: a timeout that is a text": "parameter 'timeout' is 'soon'",
            "typed,raw: a priority that is a text | a negative priority": "parameter 'priority' is ",
        },
    ),
    Difference(
        "Parameters that mean nothing here are left alone; Triton refuses lists and null, and names that begin with `triton_`.",
        {"*: a reserved parameter": FINE, "body: a parameter that is * | outputs null": FINE},
    ),
    Difference(
        "A raw body holds as many rows as its bytes make; Triton takes one.",
        {
            "sizes: raw, two rows": FINE,
            "sizes: raw, too little": "a raw binary request for 'wide' must be a multiple of 16 bytes",
            "sizes: raw, nothing": f"{ID} input 'X': shape [0, 2] has no rows",
            "sizes: raw, too many rows": f"{ID} inference request batch-size must be <= 8",
            "sizes: raw of a free size": "400 a raw binary request leaves the shape of input 'X', [-1,-1], open",
            "sizes: raw bytes of two elements": f"{ID} unexpected shape for input 'TEXT'",
        },
    ),
    Difference(
        "An empty body, a header length that is no number, and a body that is not compressed as it says are told; Triton "
        "takes the first two for a raw body, and what it can of the last.",
        {
            "body: empty body": "malformed JSON: ",
            "sizes: header length a word": "400 Inference-Header-Content-Length is 'ten'",
            "sizes: header length negative": "Inference-Header-Content-Length is '-1'",
            "encoding: gzip that is none": "the body is not valid gzip",
            "encoding: gzip that is cut off": "400 the gzip body is truncated",
            "sizes: bytes of which an element is cut off": f"{ID} input 'TEXT': the length prefix at offset 5",
        },
    ),
    Difference(
        "A slash at the end of a path and percent-encoded letters change nothing, and `/` says what is served; to Triton "
        "these are other paths.",
        {"http: *with a slash at its end | the root | a percent-encoded name": FINE},
    ),
    Difference(
        "Loading and unloading a model that there is not is a mistake of the client, not of the server, and never a "
        "success; files cannot be sent with a request.",
        {
            "repository: load an unknown model": "400 failed to load 'nobody', no model 'nobody' in the repository",
            "grpc control: load an unknown model": "INVALID_ARGUMENT failed to load 'nobody', no model",
            "repository: unload again | unload an unknown model | unload with dependents": "404 failed to unload '",
            "grpc control: unload an unknown model": "NOT_FOUND failed to unload 'nobody', it is not loaded",
            "repository: load with a file and no configuration": "501 files in a load request are not supported",
        },
    ),
    Difference(
        "A region that cannot be opened is a mistake of the client, 400.",
        {
            "shared memory: register what is not there": "400 Unable to open shared memory region: '/none'",
            "grpc control: register what is not there": "INVALID_ARGUMENT Unable to open shared memory region: '/none'",
        },
    ),
    Difference(
        "Requests are not traced, and trace settings that would have it otherwise are refused; so are settings that there "
        "are not, which Triton leaves unread.",
        {
            "settings: set trace | set trace to what is none": "400 Attempting to set invalid trace setting",
            "settings: set a trace setting that is none": "400 there is no trace setting 'colour'",
            "settings: set a logging setting that is none": "400 there is no log setting 'colour'",
            "grpc control: set trace to what is none": "INVALID_ARGUMENT Attempting to set invalid trace setting",
            "grpc control: set a trace setting that is none": "INVALID_ARGUMENT there is no trace setting 'colour'",
            "grpc control: set a logging setting that is none": "INVALID_ARGUMENT there is no log setting 'colour'",
        },
    ),
    Difference(
        "generate of a model that answers in parts is an error with the status of one; Triton says 200.",
        {"generate: generate of many parts": "501 generate expects model to produce exactly 1 response"},
    ),
    Difference(
        "An answer has at least one part: a model that yields none has failed. Triton sends nothing, and says that all is "
        "well.",
        {"generate: * no parts": "500 the model ended its answer before the first part", "stream: no parts": STREAMED},
    ),
    Difference(
        "A request's timeout is the time until its answer; Triton's is the time until its model begins.",
        {
            "json,binary: a timeout that passes meanwhile": "504 Request timeout expired",
            "typed,raw: a timeout that passes meanwhile": "DEADLINE_EXCEEDED Request timeout expired",
        },
    ),
    Difference(
        "Answers are compressed above 64 KiB (`compress_above_bytes`), and where that makes them smaller.",
        {"encoding: an answer in gzip | an answer in deflate": FINE},
    ),
    Difference(
        "A datatype that is none is told as what it is; Triton does so for JSON data alone.",
        {
            "binary: * datatype* none | a datatype in small letters | no datatype": "400 invalid datatype for input A",
            "typed,raw: * datatype* none | a datatype in small letters | no datatype": "input 'A': datatype '",
        },
    ),
    Difference(
        "Empty typed contents beside a region are none.",
        {"typed: an input in shared memory that is not registered": "NOT_FOUND Unable to find shared memory region: 'r'"},
    ),
    Difference(
        "More raw contents than inputs are refused; Triton leaves the rest unread.",
        {"contents: more raw than inputs": "INVALID_ARGUMENT the request has 2 raw_input_contents for 1 inputs"},
    ),
)


def differences_of(name: str) -> list[tuple[Difference, str]]:
    """Those that are about a case, and what is answered here."""
    return [(each, here) for each in DIFFERENCES for pattern, here in each.cases.items() if _is_about(pattern, name)]


def _is_about(pattern: str, name: str) -> bool:
    tables, _, names = pattern.partition(": ")
    table, _, case = name.partition(": ")
    in_table = any(fnmatchcase(table, each) for each in tables.split(","))
    return in_table and any(fnmatchcase(case, each) for each in names.split(" | "))
