"""BYTES are opaque: no element is shortened, re-encoded or taken for text between the wire and a model, wherever that runs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy import FailureKind, InferenceError, Model, Proxy
from dlproxy.config import HttpLimits
from dlproxy.instance.batch import run_batch
from dlproxy.instance.runtime.python import PythonRuntime
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.tensors import elements_of, join_elements
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.oip.http import OipApp
from tests.wire.fixtures import Reply, Wire, post

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) + b"\xff\xd9"
LONG = bytes(range(256)) * 400 + b"\0\0"  # more than is copied out of a worker's slot
ANY = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\0", b"\xff", b"a\0", b"PK\x05\x06\0\0\0", "zwölf".encode(), "zwölf".encode("utf-16"), JPEG, LONG]),
)
MODEL = """
import numpy as np

class Echo:
    inputs, outputs = {"x": "BYTES[-1,1]"}, {"y": "BYTES[-1,1]", "bytes": "INT32[-1]"}

    def predict(self, batch):
        assert set(map(type, batch["x"].ravel())) <= {bytes}
        return {"y": batch["x"], "bytes": np.array([len(row[0]) for row in batch["x"]], np.int32)}

class Text:
    inputs, outputs = {"x": "TEXT[-1,1]"}, {"y": (str, (-1, 1))}

    def predict(self, batch):
        assert set(map(type, batch["x"].ravel())) <= {str}
        return {"y": batch["x"]}
"""
KINDS = ["inline", "thread", "process"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "echo.py"
    path.write_text(MODEL, "utf-8")
    return path


def _app(proxy: Proxy) -> OipApp:
    catalog = Catalog()
    for loaded in proxy.models:
        catalog.add(loaded.served)
    return OipApp(catalog, HttpLimits(), clock=monotonic, server_timing=False)


async def _ask(app: OipApp, data: bytes) -> Reply:
    wire = Wire(app).feed(data)
    async with asyncio.timeout(10.0):
        while not wire.transport.written:  # noqa: ASYNC110  (a fake transport has no event)
            await asyncio.sleep(0.0)
    (reply,) = wire.take()
    return reply


def _infer(model: str, elements: list[bytes], *, binary_output: bool = True) -> bytes:
    data = join_elements(elements)
    described = {"name": "x", "datatype": "BYTES", "shape": [len(elements), 1], "parameters": {"binary_data_size": len(data)}}
    head = msgspec.json.encode({"inputs": [described], "parameters": {"binary_data_output": binary_output}})
    return post(f"/v2/models/{model}/infer", head + data, **{"Inference-Header-Content-Length": str(len(head))})


def _outputs(reply: Reply) -> dict[str, bytes]:
    """The binary outputs of a reply by name."""
    assert reply.status == 200, reply.body
    at = int(reply.headers["inference-header-content-length"])
    found = {}
    for output in msgspec.json.decode(reply.body[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = reply.body[at : at + size]
        at += size
    return found


def _elements(data: bytes) -> list[bytes]:
    return [bytes(element) for element in elements_of(data)]


def _with(model: Model, ask: Callable[[Proxy, asyncio.Runner], None]) -> None:
    """Calls `ask` while a proxy serves the model on the runner's loop."""
    with asyncio.Runner() as runner:
        proxy = Proxy([model])
        runner.run(_entered(proxy.__aenter__))
        try:
            ask(proxy, runner)
        finally:
            runner.run(_entered(lambda: proxy.__aexit__(None, None, None)))


async def _entered(step: Callable[[], Awaitable[Any]]) -> None:
    await step()


@pytest.mark.parametrize("run", KINDS)
def test_any_bytes_come_back_as_they_went_in(file: Path, run: str) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        app = _app(proxy)

        @settings(max_examples=30, deadline=None)
        @given(st.lists(st.lists(ANY, min_size=1, max_size=4), min_size=1, max_size=4))
        def echoes(requests: list[list[bytes]]) -> None:
            async def both() -> tuple[list[Any], list[Reply]]:
                calls = (proxy.infer("echo", {"x": [[element] for element in elements]}) for elements in requests)
                asked = (_ask(app, _infer("echo", elements)) for elements in requests)
                return await asyncio.gather(*calls), await asyncio.gather(*asked)

            answers, replies = runner.run(both())
            for elements, answer, reply in zip(requests, answers, replies, strict=True):
                assert answer["y"].ravel().tolist() == elements
                assert answer["bytes"].tolist() == list(map(len, elements))
                assert _elements(_outputs(reply)["y"]) == elements

        echoes()

    _with(Model(f"{file}:Echo", run=run), ask)


@pytest.mark.parametrize("run", KINDS)
def test_a_picture_goes_raw(file: Path, run: str) -> None:
    """Header length 0: all of the body is the one element."""

    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        for picture in (JPEG, JPEG + b"\0\0", b"\xff", LONG):
            data = post("/v2/models/echo/infer", picture, **{"Inference-Header-Content-Length": "0"})
            assert _elements(_outputs(runner.run(_ask(_app(proxy), data)))["y"]) == [picture]

    _with(Model(f"{file}:Echo", run=run), ask)


def test_json_carries_text_only(file: Path) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        app = _app(proxy)
        body = msgspec.json.encode({"inputs": [["zwölf\0"], [""]]})
        assert runner.run(_ask(app, post("/predict/echo", body))).json()["outputs"]["y"] == [["zwölf\0"], [""]]
        reply = runner.run(_ask(app, _infer("echo", [JPEG], binary_output=False)))
        assert (reply.status, "is not valid UTF-8; request it as binary" in reply.error) == (500, True)

    _with(Model(f"{file}:Echo", run="inline"), ask)


# Text


@pytest.mark.parametrize("run", KINDS)
def test_text_is_str_and_refuses_what_is_none(file: Path, run: str) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        app = _app(proxy)
        texts = ["zwölf", "", "a\0", "\0"]
        assert runner.run(proxy.infer("echo", {"x": [[text] for text in texts]}))["y"].ravel().tolist() == texts
        assert _elements(_outputs(runner.run(_ask(app, _infer("echo", [text.encode() for text in texts]))))["y"]) == [
            text.encode() for text in texts
        ]
        for wrong in (JPEG, b"\xff", "zwölf".encode("latin-1")):
            reply = runner.run(_ask(app, _infer("echo", [b"fine", wrong])))
            assert (reply.status, "input 'x': element 1 is not valid UTF-8" in reply.error) == (400, True)
            with pytest.raises(InferenceError, match="element 1 is not valid UTF-8"):
                runner.run(proxy.infer("echo", {"x": [[b"fine"], [wrong]]}))

    _with(Model(f"{file}:Text", run=run), ask)


def test_clients_see_bytes_either_way(file: Path) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        described = runner.run(_ask(_app(proxy), b"GET /v2/models/echo HTTP/1.1\r\nHost: test\r\n\r\n")).json()
        assert [tensor["datatype"] for tensor in described["inputs"] + described["outputs"]] == ["BYTES", "BYTES"]

    _with(Model(f"{file}:Text", run="inline"), ask)


# What a model may give


def _runtime(folder: Path, given: str, *, declared: str = "BYTES") -> PythonRuntime:
    path = folder / "gives.py"
    path.write_text(
        f"import numpy as np\nfrom tests.instance.test_bytes import objects\nclass Gives:\n"
        f"    inputs, outputs = {{'x': 'FP32[-1]'}}, {{'y': '{declared}[-1]'}}\n"
        f"    def predict(self, batch): return {{'y': {given}}}\n",
        "utf-8",
    )
    return PythonRuntime(f"{path}:Gives")


def objects(*elements: object) -> Any:
    """A flat array of them; numpy by itself would make numbers of a bytearray's bytes."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _run(runtime: PythonRuntime) -> Any:
    data = Tensor("x", DType.FP32, (2,), bytes(8))
    return run_batch(runtime, [Request(Ticket(0, 0.0, rows=2), "m", [data], (0,))])


@pytest.mark.parametrize("declared", ["BYTES", "TEXT"])
@pytest.mark.parametrize(
    "given",
    [
        "np.array([b'a\\0', b'bcd'], object)",
        "np.array(['a\\0', 'bcd'], object)",
        "objects('a\\0', b'bcd')",
        "objects(bytearray(b'a\\0'), memoryview(b'bcd'))",
        "objects(memoryview(b'a-\\0-')[::2], np.frombuffer(b'bcd', np.uint8).data)",
        "objects(np.bytes_(b'a\\0'), np.str_('bcd'))",
        "objects(np.str_('a\\0'), np.bytes_(b'bcd'))",
        "np.array(['a\\0', 'bcd'], np.dtypes.StringDType())",
        "np.array(['-', 'bcd', '-', 'a\\0'], object)[::-2]",
    ],
)
def test_every_element_comes_whole(tmp_path: Path, given: str, declared: str) -> None:
    result = _run(_runtime(tmp_path, given, declared=declared))
    assert result.error is None
    assert [bytes(element) for element in result.outputs[0]] == [b"a\0", b"bcd"]


@pytest.mark.parametrize(
    ("given", "clues"),
    [
        ("np.array([b'PK\\0\\0', b'PK\\0\\0'])", ["|S4", "zeros at the end", "dtype=object"]),
        ("np.array([b'ab', b'abcd'])", ["|S4", "dtype=object"]),
        ("np.array([b'ab', b'cd'])", ["|S2", "dtype=object"]),
        ("np.array(['a\\0', 'b\\0'])", ["<U2", "dtype=object"]),
        ("np.array(['cat', 'horse'])", ["<U5", "dtype=object"]),
        ("np.array(['cat', 'dog'])", ["<U3", "dtype=object"]),
        ("np.array([b'', b''])", ["|S1", "dtype=object"]),
        ("objects(1, b'')", ["1 cannot be an element of BYTES"]),
        ("objects(None, '')", ["None cannot be an element of BYTES"]),
        ("objects('\\ud800', '')", ["surrogates not allowed"]),
        ("objects(np.zeros(2), b'')", ["array([0., 0.]) cannot be an element of BYTES"]),
        ("np.zeros(2)", ["FP64[2]", "BYTES[-1]"]),
        ("np.array([b'ab', b'cd'], 'V2')", ["|V2", "BYTES[-1]"]),
    ],
)
def test_what_might_be_shortened_is_refused(tmp_path: Path, given: str, clues: list[str]) -> None:
    result = _run(_runtime(tmp_path, given))
    assert [clue for clue in ["output 'y'", *clues] if clue not in (result.error or "")] == []


@pytest.mark.parametrize("element", [JPEG, b"\xff", "zwölf".encode("latin-1")])
def test_a_model_that_gives_no_text_where_it_declares_it(tmp_path: Path, element: bytes) -> None:
    result = _run(_runtime(tmp_path, f"objects('fine', {element!r})", declared="TEXT"))
    assert "output 'y': element 1 is not UTF-8, as TEXT must be" in (result.error or "")


# What a caller of the library may give


@pytest.mark.parametrize(
    "value",
    [
        [[b"a\0"], [b"bcd"]],
        [["a\0"], ["bcd"]],
        ((b"a\0",), ("bcd",)),
        objects(b"a\0", "bcd").reshape(2, 1),
        objects(bytearray(b"a\0"), memoryview(b"bcd")).reshape(2, 1),
        [[np.bytes_(b"a\0")], [np.str_("bcd")]],
        np.array([["a\0"], ["bcd"]], np.dtypes.StringDType()),
    ],
)
def test_inputs_go_whole(file: Path, value: Any) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        assert runner.run(proxy.infer("echo", {"x": value}))["y"].tolist() == [[b"a\0"], [b"bcd"]]

    _with(Model(f"{file}:Echo", run="inline"), ask)


@pytest.mark.parametrize(
    ("value", "clue"),
    [
        (np.array([[b"a\0"], [b"bcd"]]), "dtype=object"),
        (np.array([["cat"], ["dog"]]), "dtype=object"),
        ([np.array([b"a\0"]), [b"bcd"]], "dtype=object"),
        ([[b"a"], [1]], "1 cannot be an element of BYTES"),
        ([[b"a"], ["\ud800"]], "surrogates not allowed"),
    ],
)
def test_inputs_that_might_be_shortened_are_refused(file: Path, value: Any, clue: str) -> None:
    def ask(proxy: Proxy, runner: asyncio.Runner) -> None:
        with pytest.raises(InferenceError, match=clue) as caught:
            runner.run(proxy.infer("echo", {"x": value}))
        assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT

    _with(Model(f"{file}:Echo", run="inline"), ask)
