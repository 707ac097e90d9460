"""Where dlproxy answers otherwise than Triton on purpose: what, why, and what it answers. The one place of truth.

The guide (docs/guides/triton-config.md) has a line for each `what`, which the test compares. Called by comparison.py.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

FINE = "fine"  # it is answered, not refused

EVERYWHERE = (
    "Errors over HTTP are `application/json`, and may go on after Triton's text with what would be right; Triton's note about "
    "`max_batch_size` is left out.",
    "The server calls itself `dlproxy` and names the extensions that it has.",
    "Configurations hold what dlproxy knows of a model; `version_policy` names the one version.",
)


class Difference(Struct, frozen=True):
    """`cases`: patterns of names, and how the error begins here: with another status or code than Triton's first, if it is
    another; FINE if there is no error.
    """

    what: str
    cases: Mapping[str, str]


def _all(answer: str, prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {f"{prefix}: {name}": answer for name in names}


_NOT_AS_IT_SHOULD_BE = "400 not an inference request: "
_MALFORMED = "400 malformed JSON: "
_UNREAD = "400 the body is not understood: "
_UNKNOWN = "404 Request for unknown model: "

DIFFERENCES = (
    Difference(
        "Health and readiness over HTTP come with JSON, where Triton sends no body: KServe's client reads it.",
        _all(FINE, "http", ("live", "ready", "model ready", "version ready")),
    ),
    Difference(
        "Of a model that is not there readiness and statistics say 404, as everything else does; Triton says 400.",
        {
            **_all(_UNKNOWN, "http", ("unknown model ready", "unknown version ready")),
            **_all(_UNKNOWN, "http", ("stats of an unknown model", "stats of an unknown version")),
            **_all(_UNKNOWN, "repository", ("ready when it is unloaded", "stats when it is unloaded")),
            "grpc: stats of an unknown model": "NOT_FOUND Request for unknown model: ",
        },
    ),
    Difference(
        "A model that is unloaded is unknown like any other; Triton says that it has no available versions.",
        {"repository: * when it is unloaded": "Request for unknown model: 'spare' is not found", "grpc control: infer when it is unloaded": "Request for unknown model: 'spare' is not found"},
    ),
    Difference(
        "JSON that cannot be read, or is not a request, is the client's mistake: 400 and where it is wrong. Triton says 500.",
        {
            **_all(_MALFORMED, "body", ("no JSON", "text behind the JSON")),
            **_all(_NOT_AS_IT_SHOULD_BE, "body", ("a list", "a number", "not UTF-8", "no inputs", "inputs *")),
            **_all(_NOT_AS_IT_SHOULD_BE, "body", ("an input without a name", "an input without a shape", "an input without a datatype")),
            **_all(_NOT_AS_IT_SHOULD_BE, "body", ("a name that is *", "a shape *", "a datatype that is a number", "an id that is a number")),
            **_all(_NOT_AS_IT_SHOULD_BE, "body", ("parameters that are a list", "outputs that are an object", "an output that is a text")),
            **_all(_NOT_AS_IT_SHOULD_BE, "body", ("an input that is no object", "binary_data a text")),
            "body: binary_data_output a text": "400 parameter 'binary_data_output' is 'yes'",
            **_all(_NOT_AS_IT_SHOULD_BE, "sizes", ("size a float", "size a text")),
            "sizes: size negative": "400 input 'X': binary_data_size is -16",
            **_all(_MALFORMED, "sizes", ("header length too short", "no header length")),
            **_all(_UNREAD, "repository", ("index of a bad body", "index, ready a text", "load with a bad body")),
            "repository: load with a configuration that is no JSON": "400 the parameter config is not JSON",
            "grpc control: load with a configuration that is no JSON": "INVALID_ARGUMENT the parameter config is not JSON",
            "repository: load with a parameter that is none": "400 unrecognized load parameter 'colour'",
        },
    ),
    Difference(
        "Data in JSON that does not suit its type or shape is the client's mistake, too: 400 and what is wrong.",
        {
            **_all("400 input 'X': ", "body", ("data that is a number", "data null", "data an object", "text for a number")),
            **_all("400 input 'X': ", "body", ("null for a number", "a float *", "a fraction *", "a bool *", "an integer * too large")),
            **_all("400 input 'X': ", "body", ("an integer too large", "-1 as uint8", "1 as bool", "a text as bool", "too large for fp64")),
            **_all("400 input 'TEXT': ", "body", ("a number as bytes", "null as bytes")),
            **_all("400 input 'A': the data has shape", "json", ("too little data", "too much data")),
            **_all("400 input 'TEXT': the data has shape", "json", ("too little data of strings", "too much data of strings")),
            "json: *negative size*": "400 input 'X': shape [-1, ",
            "binary: *negative size*": "400 [request id: <id_unknown>] input 'X': shape [-1, ",
        },
    ),
    Difference(
        "Numbers in JSON are taken exactly, where Triton wraps 256 to 0 as UINT8, makes infinity of what is too large for FP32, "
        "and reads and writes NaN, which JSON does not have.",
        {**_all("400 input 'X': ", "body", ("256 as uint8", "too large for fp32")), "body: NaN": _MALFORMED},
    ),
    Difference(
        "Data in JSON is flat or nested as its shape says; Triton takes any nesting.",
        _all("400 input 'X': the data has shape", "body", ("data nested too deeply", "data nested otherwise", "ragged data")),
    ),
    Difference(
        "Outputs come in the order in which they are asked for, one that is asked for twice comes twice.",
        {"*: outputs in another order": FINE, "*: an output asked for twice": FINE},
    ),
    Difference(
        "`binary_data_output` holds for every output that does not say otherwise, as Triton's text about it has it; "
        "Triton answers outputs that are listed as JSON.",
        _all(FINE, "binary", ("one output of two", "outputs in another order", "an output asked for twice")),
    ),
    Difference(
        "Versions may be asked for by label, so one that is no number is looked for.",
        {
            "json: a version that is no number": "Request for unknown model: ",
            "binary: a version that is no number": "Request for unknown model: ",
            "http: metadata of a version that is no number": "Request for unknown model: ",
            "grpc: metadata of a version that is no number": "NOT_FOUND Request for unknown model: ",
            "typed: a version that is no number": "NOT_FOUND Request for unknown model: ",
            "raw: a version that is no number": "NOT_FOUND Request for unknown model: ",
        },
    ),
    Difference(
        "A model that fails is told by its class, the error and the line; Triton sends the stack with the server's paths.",
        {"*: a model that fails*": "Faulty.predict raised ValueError: that is too much (models.py, line "},
    ),
    Difference(
        "Where several inputs are wrong, or one too many, they are named in the model's order; Triton's is that of a hash table.",
        {
            "*: an input too many": "[request id: <id_unknown>] expected 2 inputs but got 3 inputs for model 'add_sub'. Got input(s) [",
            "*: rows that disagree": "[request id: <id_unknown>] input 'B' batch size does not match other inputs for 'add_sub'",
            "*: a dimension less in one of two inputs": "[request id: <id_unknown>] unexpected shape for input 'A'",
        },
    ),
    Difference(
        "Negative sizes, and requests without a row, are told as what they are. Triton compares -1 with what it expects, and finds "
        "that bytes are missing.",
        {
            "typed: *negative size*": "[request id: <id_unknown>] input 'X': shape [-1, ",
            "raw: *negative size*": "[request id: <id_unknown>] input 'X': shape [-1, ",
            "typed: no rows": "[request id: <id_unknown>] input 'A': shape [0, 4] has no rows",
        },
    ),
    Difference(
        "Sizes are multiplied exactly, however large, and compared with the data before anything is allocated; Triton overflows, "
        "and one such request ends its process.",
        {
            "json: a huge size": "400 input 'X': the data has shape",
            "json: sizes whose product is too large": "input 'X': the data has shape",
            **{f"{form}: sizes whose product is too large": "[request id: <id_unknown>] input byte size mismatch for input 'X'" for form in ("binary", "typed", "raw")},
        },
    ),
    Difference(
        "Sequences are not served, so a request that belongs to one is refused, where Triton runs it without its state if the "
        "model has none.",
        {
            **{f"{form}: a sequence id *": "501 parameter 'sequence_id' is " for form in ("json", "binary")},
            **{f"{form}: a sequence start *": "501 parameter 'sequence_id' is " for form in ("json", "binary")},
            **{f"{form}: a sequence id *": "UNIMPLEMENTED parameter 'sequence_id' is " for form in ("typed", "raw")},
            **{f"{form}: a sequence start *": "UNIMPLEMENTED parameter 'sequence_id' is " for form in ("typed", "raw")},
        },
    ),
    Difference(
        "A timeout or priority of a wrong kind is told in the same words over HTTP and gRPC; over HTTP Triton says 500.",
        {
            **{f"{form}: a timeout that is a text": f"{code}parameter 'timeout' is 'soon'" for form, code in (("json", "400 "), ("binary", "400 "), ("typed", ""), ("raw", ""))},
            **{f"{form}: *priority*": f"{code}parameter 'priority' is " for form, code in ()},
        },
    ),
    Difference(
        "Parameters of kinds and names that mean nothing here are left alone; Triton refuses lists, null, and names that begin with "
        "`triton_`.",
        {"*: a reserved parameter": FINE, **_all(FINE, "body", ("a parameter that is *", "outputs null"))},
    ),
)
