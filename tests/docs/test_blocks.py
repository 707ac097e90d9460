"""Every fenced block of the documentation: programs run, settings are read, JSON is JSON, and commands are understood.

What runs commands is in test_commands.py.
"""

import argparse
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest

from dlproxy.cli import whole_parser
from dlproxy.config import load, paths
from dlproxy.config.cluster import load_cluster
from dlproxy.lab.learn.experiment import read
from tests.clients.server import ServerProcess
from tests.docs import given
from tests.docs.given import ELSEWHERE, replaced
from tests.docs.pages import PAGES, ROOT, SHELL, Block, blocks, commands, spans, with_blocks, words

PARSER = whole_parser()
LANGUAGES = {*SHELL, "python", "toml", "json", "text", "ini", "promql"}
EXTRAS = {"docs/learning.md": "gymnasium", "docs/guides/models.md": "torch", "docs/guides/from-fastapi.md": "fastapi"}
OTHERS = {
    ".",
    "./generate.sh",
    "cat",
    "cd",
    "docker",
    "grpc-health-probe",
    "grpcurl",
    "helm",
    "torch-model-archiver",
    "unzip",
    "uvicorn",
}
"""Programs of which nothing is known here."""
REFUSED = {"dlproxy serv resnet.onnx"}
"""Commands whose refusal a page shows."""
PRINTED = {
    "docs/guides/client.md": r"\[\d \d\]\nFailureKind\.LATE .*\n",
    "docs/guides/python-api.md": r"\[\d(, \d)*\]\nFailureKind\.LATE .*\n",
}
"""What a page's programs print, where the page does not show it."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page: str) -> None:
    known = LANGUAGES | {"py"} if page == "docs/reference/api.md" else LANGUAGES  # signatures, which cannot run
    assert [block.where for block in blocks(page) if block.language not in known] == []


# Settings


@pytest.mark.parametrize("page", with_blocks("toml"))
def test_settings_are_read(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        file = tmp_path / f"line-{block.line}.toml"
        file.write_text(block.code, "utf-8")
        if "[project." in block.code:
            groups = set(tomllib.loads(block.code)["project"]["entry-points"])
            assert groups == {paths.RUNTIMES, paths.DEVICE_KINDS, paths.INSTANCE_KINDS}
        elif block.code.startswith("kind"):
            read(file)
        elif "[place]" in block.code:
            load_cluster(file)
        else:
            load(file)


@pytest.mark.parametrize("page", with_blocks("json"))
def test_json_is_json(page: str) -> None:
    for block in blocks(page, "json"):
        json.loads(block.code)


# Commands


@pytest.mark.parametrize("page", with_blocks(*SHELL))
def test_commands_are_understood(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for block in blocks(page, *SHELL):
        for command in commands(block):
            try:
                wrong += [f"{block.where}: {command}\n{fault}" for program in words(command) for fault in _faults(program)]
            except SystemExit as end:
                if not end.code or command in REFUSED:
                    continue
                wrong.append(f"{block.where}: {command}\n{capsys.readouterr().err}")
    assert not wrong, "\n" + "\n".join(wrong)


def _faults(program: list[str]) -> Iterator[str]:
    """SystemExit: dlproxy refuses the arguments, and stderr says why."""
    name, *arguments = program
    name = "python" if name == "python3" else name
    if name == "dlproxy":
        PARSER.parse(arguments)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        yield from (f"make has no target {word}" for word in arguments if "=" not in word and word not in targets)
    elif name == "pip":
        told = (ROOT / "pyproject.toml").read_text("utf-8")
        extras = {extra for word in arguments for extra in re.findall(r"dlproxy\[(.*)\]", word)}
        yield from (f"there is no extra {extra}" for extra in extras if f"\n{extra} = [" not in told)
    elif name == "python" and arguments[0] == "-c":
        compile(arguments[1], shlex.join(program), "exec")
    elif name == "python":
        found = importlib.util.find_spec(arguments[1]) if arguments[0] == "-m" else (ROOT / arguments[0]).is_file()
        yield from [] if found else [f"there is no {arguments}"]
    elif name == "curl":
        for body in (value for option, value in pairwise(arguments) if option == "-d" and value[0] != "@"):
            json.loads(body)
    elif name not in OTHERS:
        yield f"nobody knows the program {name}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_exist(page: str) -> None:
    said = [span for span in spans(page) if span.startswith("dlproxy ")]
    assert {span: unknown for span in said if (unknown := next(_unknown(span), ""))} == {}


@pytest.mark.parametrize(
    ("said", "unknown"),
    [
        ("dlproxy models lod m", "lod"),
        ("dlproxy serve m.onnx --slow=p99=1ms", "--slow"),
        ("dlproxy models load NAME …", ""),
    ],
)
def test_a_mistake_in_a_sentence_is_found(said: str, unknown: str) -> None:
    assert next(_unknown(said), "") == unknown


def _unknown(said: str) -> Iterator[str]:
    """Names of commands and options that do not exist; in a sentence the rest may be left out, or be dots."""
    parser: argparse.ArgumentParser = PARSER
    for word in re.split(r"[ =|]", said.removeprefix("dlproxy ")):
        choices = next((each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)), {})
        if word in choices:
            parser = choices[word]
        elif (choices and re.match("[a-z]", word)) or (
            re.match("--?[a-z]", word) and word not in parser._option_string_actions
        ):
            yield word


# Programs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    given.files(folder, "README.md")
    with ServerProcess("--config", folder / "given.toml") as process:
        yield process


def _marked(page: str) -> object:
    return pytest.param(page, marks=pytest.mark.extras) if page in EXTRAS else page


@pytest.mark.parametrize("page", [_marked(page) for page in with_blocks("python")])
def test_programs_run(page: str, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, each with what those before it have made; what a page shows below one is what it prints."""
    given.files(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    addresses = {"127.0.0.1:8000": server.address, "127.0.0.1:8001": server.grpc_address}
    names = given.names(page, tmp_path)
    printed = ""
    for block, after in pairwise([*blocks(page), Block(page, 0, "", "")]):
        if block.language != "python":
            continue
        code = replaced(block.code, addresses)
        program = compile("\n" * block.line + code, page, "exec")
        if page not in ELSEWHERE:
            with redirect_stdout(StringIO()) as out:
                exec(program, names)
            printed += out.getvalue()
            assert after.language != "text" or out.getvalue() == after.code, after.where
    assert page not in PRINTED or re.fullmatch(PRINTED[page], printed)
