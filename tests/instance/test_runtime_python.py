"""Models that are Python classes: what they may be, and plain words for every mistake."""

import asyncio
import re
import sys
from pathlib import Path
from textwrap import dedent
from threading import Thread, get_ident

import msgspec
import numpy as np
import pytest

from dlproxy.instance.batch import BatchResult, run_batch
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.runtime.python import LOOKED_AT, PythonRuntime
from dlproxy.instance.runtime.specs import PythonSpec, load
from dlproxy.instance.warmup import calibrate
from dlproxy.message import DType, TensorSpec
from tests.instance import small_network
from tests.instance.small_network import assert_a_line, request

X2 = np.array([[1, 2], [3, 4]], np.float32)
DECLARED = 'inputs, outputs = {"x": "FP32[-1,2]"}, {"y": "FP32[-1,2]"}'


@pytest.fixture(autouse=True)
def _import_path() -> object:
    before, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def _write(folder: Path, body: str, *, declared: str = DECLARED, before: str = "import numpy as np") -> str:
    """A file with the class Model, whose body is given."""
    lines = [before, "class Model:", *(f"    {line}" for line in [declared, *dedent(body).strip().splitlines()])]
    (folder / "model.py").write_text("\n".join(lines) + "\n", "utf-8")
    return f"{folder / 'model.py'}:Model"


def _error(path: str) -> str:
    with pytest.raises(ModelError) as caught:
        PythonRuntime(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _run_error(runtime: PythonRuntime) -> str:
    result = run_batch(runtime, [request(("x", DType.FP32, X2))])
    assert result.error is not None
    assert "\n" not in result.error
    return result.error


def test_the_small_network_as_a_class_and_as_onnx(tmp_path: Path) -> None:
    runtime = PythonRuntime(small_network.save_python(tmp_path))
    small_network.assert_right(runtime)
    small_network.assert_right_from_two_threads(runtime)
    small_network.assert_right(OnnxRuntime(small_network.save_onnx(tmp_path), threads=1))


def test_a_spec_for_a_worker_process_loads_it(tmp_path: Path) -> None:
    options = {"path": small_network.save_python(tmp_path), "threads": 1, "inputs": {"x": "FP32[-1,8]"}}
    small_network.assert_right(load(PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options)))


def test_warm_up_measures_a_class(tmp_path: Path) -> None:
    calibration = calibrate(PythonRuntime(small_network.save_python(tmp_path)))
    assert calibration.independent_rows
    assert len(calibration.points) > 2


def test_a_module_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_words.py").write_text("TWO = 2\n")
    _write(tmp_path, "def predict(self, batch): return {'y': batch['x'] * their_words.TWO}", before="import their_words")
    (tmp_path / "model.py").rename(tmp_path / "their_model.py")
    runtime = PythonRuntime("their_model:Model")
    assert runtime.run([X2])[0].tolist() == [[2, 4], [6, 8]]
    assert runtime.signature.platform == "python"


def test_a_neighbour_does_not_replace_the_library(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the neighbour')\n")
    PythonRuntime(_write(tmp_path, "def predict(self, batch): return {'y': batch['x']}", before="import colorsys"))


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    runtimes = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        runtimes.append(PythonRuntime(_write(folder, f"def predict(self, batch): return {{'y': batch['x'] * {number}}}")))
    assert [runtime.run([X2])[0].tolist() for runtime in runtimes] == [X2.tolist(), (2 * X2).tolist()]


@pytest.mark.parametrize(
    "declared",
    [
        'inputs, outputs = {"x": "fp32[ -1, 2 ]"}, {"y": "float32[-1,2]"}',
        'inputs, outputs = {"x": (np.float32, (None, 2))}, {"y": ("FP32", [-1, 2])}',
        "def signature(self): return {'x': 'FP32[-1,2]'}, {'y': np.dtype('f4').name + '[-1,2]'}",
        "def load(self): self.inputs, self.outputs = {'x': 'FP32[-1,2]'}, {'y': 'FP32[-1,2]'}",
    ],
)
def test_ways_to_declare(tmp_path: Path, declared: str) -> None:
    signature = PythonRuntime(
        _write(tmp_path, "def predict(self, batch): return {'y': batch['x']}", declared=declared)
    ).signature
    assert signature.inputs == (TensorSpec("x", DType.FP32, (-1, 2)),)
    assert signature.outputs == (TensorSpec("y", DType.FP32, (-1, 2)),)
    assert signature.batched


def test_the_configuration_declares_for_a_class_that_does_not(tmp_path: Path) -> None:
    path = _write(tmp_path, "def predict(self, batch): return {'y': batch['x']}", declared="pass")
    x, y = TensorSpec("x", DType.FP32, (-1, 2)), TensorSpec("y", DType.FP32, (-1, 2))
    assert PythonRuntime(path, inputs=[x], outputs=[y]).run([X2])[0].tolist() == X2.tolist()
    path = _write(tmp_path, "def predict(self, batch): return {'y': batch['x']}")
    with pytest.raises(ModelError, match=r"inputs are x FP32\[-1,2\] in the class, but x FP32\[-1,3\] in the configuration"):
        PythonRuntime(path, inputs=[TensorSpec("x", DType.FP32, (-1, 3))])


def test_texts_and_bf16_bits_pass(tmp_path: Path) -> None:
    runtime = PythonRuntime(
        _write(
            tmp_path,
            "def predict(self, batch): return {'u': np.array([text.upper() for text in batch['t']], object), 'c': batch['b']}",
            declared='inputs, outputs = {"t": "TEXT[-1]", "b": "BF16[-1]"}, {"u": (str, (-1,)), "c": "BF16[-1]"}',
        )
    )
    u, c = runtime.run([np.array(["a", "zwölf"], object), np.array([1, 2], np.uint16)])
    assert (u.tolist(), u.dtype, c.tolist()) == ([b"A", "ZWÖLF".encode()], np.dtype(object), [1, 2])


def test_a_model_that_counts_no_rows(tmp_path: Path) -> None:
    declared = 'inputs, outputs = {"x": "FP32[2,2]"}, {"y": "FP32[]"}'
    runtime = PythonRuntime(
        _write(tmp_path, "def predict(self, batch): return {'y': batch['x'].sum(keepdims=False)[...]}", declared=declared)
    )
    assert not runtime.signature.batched
    assert runtime.run([X2])[0].shape == ()


def test_the_batch_is_the_models_to_write_to(tmp_path: Path) -> None:
    runtime = PythonRuntime(_write(tmp_path, "def predict(self, batch): batch['x'] *= 2; return {'y': batch['x']}"))
    x = X2.copy()
    x.flags.writeable = False
    assert runtime.run([x])[0].tolist() == (2 * X2).tolist()
    assert x.tolist() == X2.tolist()


# Where it runs


def test_an_async_predict_keeps_one_loop_and_runs_inside_another(tmp_path: Path) -> None:
    runtime = PythonRuntime(
        _write(
            tmp_path,
            """
            async def load(self): self.loop = asyncio.get_running_loop()
            async def predict(self, batch):
                assert asyncio.get_running_loop() is self.loop
                await asyncio.sleep(0)
                return {'y': batch['x'] + 1}
            async def unload(self): self.gone = asyncio.get_running_loop() is self.loop
            """,
            before="import asyncio",
        )
    )

    async def inline() -> list[list[float]]:
        return runtime.run([X2])[0].tolist()  # type: ignore[no-any-return]

    assert asyncio.run(inline()) == runtime.run([X2])[0].tolist() == (X2 + 1).tolist()
    threads = [Thread(target=runtime.run, args=([X2],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    runtime.close()
    runtime.close()
    assert runtime._model.gone


@pytest.mark.parametrize(("safe", "most"), [(False, 1), (True, 2)])
def test_calls_are_made_one_at_a_time_unless_the_class_is_thread_safe(tmp_path: Path, safe: bool, most: int) -> None:
    body = f"""
        thread_safe = {safe}
        inside, most, meeting = 0, 0, Barrier(2)
        def predict(self, batch):
            Model.inside += 1
            Model.most = max(Model.most, Model.inside)
            if self.thread_safe:
                self.meeting.wait(10)
            Model.inside -= 1
            return {{'y': batch['x']}}
    """
    runtime = PythonRuntime(_write(tmp_path, body, before="from threading import Barrier"))
    threads = [Thread(target=runtime.run, args=([X2],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert runtime._class.most == most


def test_unload_is_called_once(tmp_path: Path) -> None:
    body = """
        unloaded = 0
        def predict(self, batch): return {'y': batch['x']}
        def unload(self): self.unloaded += 1
    """
    runtime = PythonRuntime(_write(tmp_path, body))
    runtime.close()
    runtime.close()
    assert runtime._model.unloaded == 1


def test_a_plain_predict_runs_on_the_callers_thread(tmp_path: Path) -> None:
    body = "def predict(self, batch): self.thread = threading.get_ident(); return {'y': batch['x']}"
    runtime = PythonRuntime(_write(tmp_path, body, before="import threading"))
    runtime.run([X2])
    assert runtime._model.thread == get_ident()


# Mistakes in the class


def test_a_class_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, "def predict(self, batch): ...")
    file = path.removesuffix(":Model")
    assert _error(f"{file}:Modle") == f"{file} has no class Modle; did you mean Model?"
    assert _error(f"{file}:np") == f"{file}:np: np is a module; dlproxy wants a class with predict(self, batch)"
    assert _error(file) == f"'{file}' names no class; write {path}"
    assert _error(f"{tmp_path}/no.py:Model") == f"model file {tmp_path}/no.py does not exist"
    assert _error(f"{tmp_path}/modle.py:Model") == f"model file {tmp_path}/modle.py does not exist; did you mean {file}?"
    assert _error("nowhere_at_all:Model").endswith("or among the installed packages")
    monkeypatch.chdir(tmp_path)
    assert (
        _error("modle:Model") == f"there is no module modle in {tmp_path} or among the installed packages; did you mean model?"
    )
    assert _error("./modle:Model") == "model file ./modle does not exist; did you mean model.py?"
    assert "write my_module:MyModel" in _error("nonsense")


@pytest.mark.parametrize(
    ("body", "clue"),
    [
        ("def forecast(self): ...", "Model has no method predict(self, batch)"),
        ("predict = 3", "Model has no method predict(self, batch)"),
        ("def __init__(self, size): ...\ndef predict(self, b): ...", "Model() wants size; dlproxy calls it without arguments"),
        ("def __init__(self): self.a = {}['b']\ndef predict(self, b): ...", "Model() raised KeyError: 'b' (model.py, line 4)"),
        ("def load(self): open('/no/where')\ndef predict(self, b): ...", "Model.load() raised FileNotFoundError: [Errno 2]"),
        ("async def load(self): 1 / 0\ndef predict(self, b): ...", "Model.load() raised ZeroDivisionError: division by zero"),
        ("def load(self): raise SystemExit(3)\ndef predict(self, b): ...", "Model.load() raised SystemExit: 3"),
        ("def signature(self): 1 / 0\ndef predict(self, b): ...", "Model.signature() raised ZeroDivisionError"),
        (
            "def signature(self): return 3\ndef predict(self, b): ...",
            'its signature is 3; declare inputs = {"x": "FP32[-1,784]"}',
        ),
    ],
)
def test_a_class_that_cannot_be_a_model(tmp_path: Path, body: str, clue: str) -> None:
    path = _write(tmp_path, body)
    message = _error(path)
    assert clue in message
    assert_a_line(message, path)


@pytest.mark.parametrize(
    ("declared", "clue"),
    [
        ("pass", "it declares no inputs; declare inputs = {"),
        ('inputs = {"x": "FP32[-1]"}', "it declares no outputs"),
        ('inputs = ["x"]', "its signature is (['x'], {}); declare"),
        ('inputs = {"x": "FP32"}', "'x' is declared as 'FP32'; write it like FP32[-1,784]"),
        ('inputs = {"x": "FP32[-1,3.5]"}', "sizes are whole numbers, or -1 or a name for any"),
        ('inputs = {"x": "FP32[-2]"}', "'x' is declared with the size -2"),
        ('inputs = {"x": "FP23[-1]"}', "the element type 'FP23'; did you mean FP32?"),
        ('inputs = {"x": (None, (-1,))}', "the element type None; known are BOOL"),
        ('inputs = {"x": ("complex64", (-1,))}', "'x' is declared as complex64, which no protocol can carry"),
        ('inputs = {"x": ("FP32", (-1, "n"))}', "'x' is declared with the size 'n'"),
        ('inputs = {"x": 32}', "'x' is declared as 32; write 'FP32[-1,784]' or ('FP32', (-1, 784))"),
    ],
)
def test_a_declaration_that_is_not_understood(tmp_path: Path, declared: str, clue: str) -> None:
    path = _write(tmp_path, "def predict(self, batch): ...", declared=declared)
    message = _error(path)
    assert clue in message
    assert_a_line(message, path)


@pytest.mark.parametrize(
    ("content", "clue"),
    [
        (
            "import nowhere_at_all",
            "raised ModuleNotFoundError: No module named 'nowhere_at_all'; install it where dlproxy runs",
        ),
        ("x = 1\n1 / 0", "raised ZeroDivisionError: division by zero (model.py, line 2)"),
        ("import sys\nsys.exit('no')", "raised SystemExit: no (model.py, line 2)"),
        ("class Model:\n  def predict(:", "raised SyntaxError: invalid syntax"),
        ("\0", "raised SyntaxError: source code string cannot contain null bytes"),
        ("\udcff", "raised SyntaxError:"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, content: str, clue: str) -> None:
    file = tmp_path / "model.py"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    message = _error(f"{file}:Model")
    assert clue in message
    assert_a_line(message, file)
    assert not [name for name in sys.modules if name.startswith("dlproxy_model_model_")], "a broken module stayed behind"


# Answers in parts

GROWS = 'inputs, outputs = {"x": "FP32[-1,2]"}, {"y": "FP32[-1,-1]", "n": "INT64[-1]"}'
KINDS = pytest.mark.parametrize("word", ["def", "async def"])


@KINDS
def test_parts_are_laid_end_to_end_and_what_cannot_grow_keeps_its_last_value(tmp_path: Path, word: str) -> None:
    body = f"""
        {word} predict(self, batch):
            piece = np.zeros((len(batch['x']), 1), np.float32)
            for step in range(3):
                piece[:] = batch['x'][:, :1] * step
                yield {{'y': piece}}
                yield {{'n': np.full(len(batch['x']), step)}}
            yield {{}}
            yield {{'y': batch['x']}}
    """
    runtime = PythonRuntime(_write(tmp_path, body, declared=GROWS))
    y, n = runtime.run([X2])
    assert y.tolist() == [[0, 1, 2, 1, 2], [0, 3, 6, 3, 4]], "a buffer that is filled again is no excuse"
    assert (y.dtype, n.tolist()) == (np.float32, [2, 2])
    runtime.close()


def test_a_predict_that_returns_a_generator_is_one(tmp_path: Path) -> None:
    body = """
        def predict(self, batch): return self.steps(batch) if batch['x'][0, 0] else {'y': batch['x']}
        async def steps(self, batch):
            for _ in range(2):
                await asyncio.sleep(0)
                yield {'y': batch['x'] + 1}
    """
    runtime = PythonRuntime(_write(tmp_path, body, before="import asyncio"))
    assert [runtime.run([x])[0].tolist() for x in (X2, 0 * X2)] == [(X2 + 1).tolist(), (0 * X2).tolist()]
    runtime.close()


@pytest.mark.parametrize(
    ("declared", "pieces", "joined"),
    [
        ("FP32[-1,-1,2]", "[[[1, 2]]], [[[3, 4]]]", [[[1, 2], [3, 4]]]),
        ("FP32[-1,2,-1]", "[[[1], [2]]], [[[3], [4]]]", [[[1, 3], [2, 4]]]),
        ("FP32[-1,-1,-1]", "[[[1, 2]]], [[[3, 4]]]", [[[1, 2], [3, 4]]]),
        ("FP32[-1,2]", "[[1, 2]], [[3, 4]]", [[3, 4]]),
    ],
)
def test_the_first_open_axis_after_the_rows_is_the_one_that_grows(
    tmp_path: Path, declared: str, pieces: str, joined: object
) -> None:
    body = f"def predict(self, batch):\n    for piece in ({pieces}): yield {{'y': np.array(piece, np.float32)}}"
    declares = f'inputs, outputs = {{"x": "FP32[-1,2]"}}, {{"y": "{declared}"}}'
    runtime = PythonRuntime(_write(tmp_path, body, declared=declares))
    assert runtime.run([X2[:1]])[0].tolist() == joined
    runtime.signature = msgspec.structs.replace(runtime.signature, batched=False)  # as warm-up does for rows that depend
    assert runtime.run([X2[:1]])[0].tolist() == joined


def test_without_rows_the_first_open_axis_grows(tmp_path: Path) -> None:
    declared = 'inputs, outputs = {"x": "FP32[2,2]"}, {"words": "BYTES[-1]", "score": "FP32[]"}'
    body = """
        def predict(self, batch):
            for number, word in enumerate(['zwölf', 'b', 'c']):
                yield {'words': np.array([word], object), 'score': np.array(number, np.float32)}
    """
    words, score = PythonRuntime(_write(tmp_path, body, declared=declared)).run([X2])
    assert (words.tolist(), words.dtype, score.tolist()) == (["zwölf".encode(), b"b", b"c"], np.dtype(object), 2.0)


@KINDS
@pytest.mark.parametrize(
    ("yields", "clue"),
    [
        ("return", "predict ended without yielding y, n"),
        ("yield {'y': x}", "predict ended without yielding n"),
        ("yield x", "part 1 of the answer: predict gave a ndarray; it must give a dict of output names to numpy arrays"),
        ("yield {}; yield {'z': x}", "part 2 of the answer: there is no output 'z'; the model declares y, n"),
        ("yield {'y': x.tolist()}", "part 1 of the answer: output 'y' is a list; predict must give numpy arrays"),
        (
            "yield {'y': x}; yield {'y': x[:1]}",
            "part 2 of the answer: output 'y' is FP32[1,2] after FP32[2,2] in an earlier part",
        ),
        ("yield {'y': x}; yield {'y': x > 1}", "part 2 of the answer: output 'y' is BOOL[2,2] where the model declares FP32"),
        ("yield {'n': x}", "part 1 of the answer: output 'n' is FP32[2,2] where the model declares INT64[-1]"),
        ("yield {'y': x}; {}['k']", "Model.predict raised KeyError: 'k' (model.py, line 8)"),
        ("yield {'y': x}; exit(3)", "Model.predict raised SystemExit: 3 (model.py, line 8)"),
    ],
)
def test_parts_that_go_wrong_say_how_and_the_generator_is_closed(tmp_path: Path, word: str, yields: str, clue: str) -> None:
    body = f"""
        closed = 0
        {word} predict(self, batch):
            x = batch['x']
            try:
                {yields}
                yield {{}}
            finally:
                self.closed += 1
                {"await asyncio.sleep(0)" if word == "async def" else ""}
    """
    runtime = PythonRuntime(_write(tmp_path, body, declared=GROWS, before="import asyncio"))
    assert clue in _run_error(runtime)
    assert runtime._model.closed == 1
    runtime.close()


def test_pieces_may_differ_only_where_they_are_joined(tmp_path: Path) -> None:
    body = """
        def predict(self, batch):
            yield {'y': np.zeros((2, 3, 2), np.float32)}
            yield {'y': np.zeros((2, 1, 4), np.float32)}
    """
    declared = 'inputs, outputs = {"x": "FP32[-1,2]"}, {"y": "FP32[-1,-1,-1]"}'
    assert _run_error(PythonRuntime(_write(tmp_path, body, declared=declared))) == (
        "part 2 of the answer: output 'y' is FP32[2,1,4] after FP32[2,3,2] in an earlier part; "
        "parts are joined along axis 1, and only there may they differ"
    )


async def test_an_answer_without_end_costs_the_worker_its_life(tmp_path: Path) -> None:
    body = """
        def predict(self, batch):
            yield {'y': batch['x']}
            while batch['x'][0, 0]: yield {}
    """
    options = {"path": _write(tmp_path, body)}
    spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options)
    instance = ProcessInstance("m-0", spec, WorkerSettings(batch_timeout_s=0.2))
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    instance.on_lost = lost.set_result
    await instance.start()
    ended: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    instance.run([request(("x", DType.FP32, 0 * X2))], ended.set_result)
    assert (await asyncio.wait_for(ended, 30)).outputs[0].tolist() == (0 * X2).tolist()
    results: list[BatchResult] = []
    instance.run([request(("x", DType.FP32, X2))], results.append)
    assert await asyncio.wait_for(lost, 30) == "it did not finish a batch within 0.2 s (batch_timeout_s)"
    await instance.stop()
    assert not results


# Mistakes of a batch


@pytest.mark.parametrize(
    ("returned", "clue"),
    [
        ("None", "predict gave a NoneType; it must give a dict of output names to numpy arrays"),
        ("batch['x']", "predict gave a ndarray"),
        ("{}", "the model gave nothing where it declares y"),
        ("{'z': batch['x']}", "the model gave z where it declares y"),
        ("{'y': batch['x'], 'z': batch['x']}", "the model gave y, z where it declares y"),
        ("{'y': batch['x'].tolist()}", "output 'y' is a list; predict must give numpy arrays"),
        ("{'y': batch['x'].astype('f8')}", "output 'y' is FP64[2,2] where the model declares FP32[-1,2]"),
        ("{'y': batch['x'].astype('>f4')}", "output 'y' is >f4[2,2] where"),
        ("{'y': batch['x'][:, :1]}", "output 'y' is FP32[2,1] where"),
        ("{'y': batch['x'].ravel()}", "output 'y' is FP32[4] where"),
        ("{'y': batch['x']['a']}", "Model.predict raised IndexError"),
        ("{}['k']", "Model.predict raised KeyError: 'k' (model.py, line 4)"),
        ("exit(4)", "Model.predict raised SystemExit: 4"),
        ("(batch for _ in [1])", "part 1 of the answer: there is no output 'x'; the model declares y"),
    ],
)
@pytest.mark.parametrize("word", ["def", "async def"])
def test_a_batch_that_goes_wrong_says_how_and_the_next_one_runs(tmp_path: Path, word: str, returned: str, clue: str) -> None:
    body = f"{word} predict(self, batch): return {returned} if batch['x'][0, 0] else {{'y': batch['x']}}"
    runtime = PythonRuntime(_write(tmp_path, body))
    assert clue in _run_error(runtime)
    assert runtime.run([0 * X2])[0].tolist() == (0 * X2).tolist()
    runtime.close()


def test_an_empty_message_leaves_the_errors_type(tmp_path: Path) -> None:
    runtime = PythonRuntime(_write(tmp_path, "def predict(self, batch): raise TimeoutError"))
    assert re.search(r"raised TimeoutError \(model\.py, line 4\)$", _run_error(runtime))


STREAMS = 'inputs, outputs = {"x": "FP32[-1,2]"}, {"y": "FP32[-1,2]"}; streams = True'


@KINDS
def test_a_class_that_streams_gives_each_part_as_it_comes(tmp_path: Path, word: str) -> None:
    body = f"""
        made = closed = 0
        {word} predict(self, batch):
            y = batch['x']
            try:
                while True:
                    Model.made += 1
                    y += 1
                    yield {{'y': y}}
            finally:
                Model.closed += 1
    """
    runtime = PythonRuntime(_write(tmp_path, body, declared=STREAMS))
    assert runtime.signature.streams
    steps = runtime.steps([X2])
    parts = [next(steps)[0] for _ in range(3)]
    assert [part.tolist() for part in parts] == [(X2 + step).tolist() for step in (1, 2, 3)]
    assert (runtime._class.made, runtime._class.closed) == (3, 0)
    steps.close()
    assert runtime._class.closed == 1
    assert runtime.run([X2])[0].tolist() == (X2 + LOOKED_AT).tolist(), "warm-up sees the first ones of an answer without an end"
    runtime.close()


def test_what_a_class_that_streams_gives_at_once_is_its_only_part(tmp_path: Path) -> None:
    runtime = PythonRuntime(_write(tmp_path, "def predict(self, batch): return {'y': batch['x']}", declared=STREAMS))
    assert [[array.tolist() for array in part] for part in runtime.steps([X2])] == [[X2.tolist()]]


@KINDS
@pytest.mark.parametrize(
    ("wrong", "clue"),
    [
        ("{}", "part 2 of the answer: the model gave nothing where it declares y"),
        ("{'y': x > 1}", "part 2 of the answer: output 'y' is BOOL[2,2] where the model declares FP32"),
        ("x", "part 2 of the answer: predict gave a ndarray"),
        ("{}['k']", "Model.predict raised KeyError: 'k' (model.py, line"),
        ("exit(3)", "Model.predict raised SystemExit: 3 (model.py, line"),
    ],
)
def test_a_part_of_a_stream_that_goes_wrong_says_how(tmp_path: Path, word: str, wrong: str, clue: str) -> None:
    body = f"{word} predict(self, batch):\n    x = batch['x']\n    yield {{'y': x}}\n    yield {wrong}"
    runtime = PythonRuntime(_write(tmp_path, body, declared=STREAMS))
    steps = runtime.steps([X2])
    next(steps)
    with pytest.raises((RuntimeError, ValueError), match=re.escape(clue)):
        next(steps)
    runtime.close()
