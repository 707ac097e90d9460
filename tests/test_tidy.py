"""House rules that no linter knows: banned calls with what to use instead, lengths, module docstrings, links, documented knobs.

Reads source text only. Every exception is listed here with its reason.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dlproxy.config import Config, ModelConfig, TenantConfig, load
from dlproxy.config.knobs import SECTIONS
from dlproxy.config.security import GrantConfig
from dlproxy.config.table import tuned_knobs

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "benchmarks", "examples", "docs")
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_DOCSTRING_LINES = 6

# (call, folders it is banned in, what to use instead)
BANS = (
    ("time.time", ("src", "tests"), "time.monotonic, or the `now` that is passed in"),
    ("random.", ("src", "tests"), "random.Random(seed): the global generator is nobody's and everybody's"),
    ("print", ("src",), "sys.stdout.write in cli/ and lab/, logging elsewhere"),
    ("asyncio.sleep", ("tests",), "an event to wait for, or looptime; asyncio.sleep(0) is fine"),
    ("unittest.mock.", ("src", "tests"), "a fake from dlproxy.testing, or a small one beside the test"),
)
EXCEPTIONS = {
    (
        "src/dlproxy/telemetry/stats.py",
        "time.time",
    ): "the statistics extension reports the wall-clock time of the last inference",
    ("src/dlproxy/telemetry/prometheus.py", "time.time"): "an exemplar has the wall-clock time of its request",
    ("src/dlproxy/telemetry/exemplars.py", "time.time"): "people look for a slow request by the time of day at which it came",
    ("tests/wire/fixtures.py", "asyncio.sleep"): "the one helper that waits until a condition holds on real sockets",
    ("tests/wire/grpc/fixtures.py", "asyncio.sleep"): "as above",
    ("tests/wire/test_http_sockets.py", "asyncio.sleep"): "real sockets: no event says that bytes have arrived, or have not",
}
FINE = ("random.Random", "random.SystemRandom")

PYTHON = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py") if "results" not in path.parts)
MARKDOWN = sorted([*ROOT.glob("*.md"), *(path for folder in CODE for path in (ROOT / folder).rglob("*.md"))])
TEXT = [*PYTHON, *MARKDOWN, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_python_keeps_the_rules() -> None:
    """All files and all rules at once: a tree is large, and each file is parsed a single time."""
    wrong: list[str] = []
    for path in PYTHON:
        text = path.read_text("utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        wrong += [*_banned_calls(path, nodes), *_lengths(path, text, nodes), *_missing_words(path, nodes)]
    assert not wrong, "\n" + "\n".join(wrong)


def _banned_calls(path: Path, nodes: list[ast.AST]) -> Iterator[str]:
    folder = _name(path).partition("/")[0]
    for line, call, argument in _calls(nodes):
        for banned, folders, instead in BANS:
            hit = call.startswith(banned) and call not in FINE if banned.endswith(".") else call == banned
            if not hit or folder not in folders or (call == "asyncio.sleep" and argument == 0):
                continue
            if (_name(path), banned) not in EXCEPTIONS:
                yield f"{_name(path)}:{line}: {call} is banned; use {instead}"


def test_every_exception_is_still_needed() -> None:
    for name, banned in EXCEPTIONS:
        nodes = list(ast.walk(ast.parse((ROOT / name).read_text("utf-8"))))
        assert banned in {call for _, call, _ in _calls(nodes)}, f"{name} no longer calls {banned}"


def _lengths(path: Path, text: str, nodes: list[ast.AST]) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{_name(path)} has {lines} lines, at most {MAX_FILE_LINES} are allowed: split it"
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{_name(path)}:{node.lineno}: {node.name} has {length} lines: split it"


def _missing_words(path: Path, nodes: list[ast.AST]) -> Iterator[str]:
    module = nodes[0]
    assert isinstance(module, ast.Module)
    if path.name == "__init__.py" and not module.body:
        return
    docstring = ast.get_docstring(module)
    if not docstring:
        yield f"{_name(path)} has no module docstring: what is it, what calls it, what is it not aware of?"
    elif (lines := len(docstring.splitlines())) > MAX_DOCSTRING_LINES:
        yield f"{_name(path)}: the docstring has {lines} lines; move the detail to docs/internals"


def test_links_resolve() -> None:
    wrong = [fault for path in MARKDOWN for fault in _broken_links(path)]
    assert not wrong, "\n" + "\n".join(wrong)


def _broken_links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists():
            yield f"{_name(path)} links to {target}, which does not exist"
        elif anchor and anchor not in _anchors(linked):
            yield f"{_name(path)} links to {target}: no such heading"


def test_every_knob_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8")
    for struct in SECTIONS.values():
        for knob in struct.__struct_fields__:
            assert f"| `{knob}` |" in page, f"{knob} of {struct.__name__} is not in docs/reference; run: make docs"
    sections = tuple(name for name in SECTIONS if name != "pipelines")  # which are among the models
    assert Config.__struct_fields__ == sections, "a section of Config is not among config/knobs.py: SECTIONS"


def test_the_references_toml_is_the_default_configuration(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8")
    (tmp_path / "dlproxy.toml").write_text(page.partition("```toml\n")[2].partition("```")[0], "utf-8")
    read = load(tmp_path / "dlproxy.toml")
    model = ModelConfig(path=str(tmp_path / "digits.onnx"), pinned=list(tuned_knobs()))
    grants = {"shops": GrantConfig(who="cert:shop-*")}
    assert msgspec.to_builtins(read) == msgspec.to_builtins(
        Config(models={"digits": [model]}, tenants={"shop": TenantConfig()}, grants=grants)
    )


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "dlproxy").iterdir()), ids=_name)
def test_architecture_names_every_room(path: Path) -> None:
    if not path.name.startswith("__") and path.suffix in ("", ".py"):
        text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
        assert f"{path.stem}" in re.findall(r"\w+", text), f"ARCHITECTURE.md does not mention {_name(path)}"


def test_names_no_machine() -> None:
    wrong = []
    for path in TEXT:
        text = path.read_text("utf-8")
        for found in re.finditer(r"(?<![\w.])/(?:home|Users|root|work)/\w.*", text):
            line = text.count("\n", 0, found.start()) + 1
            wrong.append(f"{_name(path)}:{line}: an absolute path of one machine: {found[0]}")
    assert not wrong, "\n" + "\n".join(wrong)


def _calls(nodes: list[ast.AST]) -> Iterator[tuple[int, str, object]]:
    """(line, dotted name with import aliases resolved, first argument if constant) of every call."""
    aliases: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Call) and (name := _dotted(node.func)):
            first, _, rest = name.partition(".")
            argument = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if first in aliases or not rest:
                yield node.lineno, ".".join(filter(None, (aliases.get(first, first), rest))), argument


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def _without_code(path: Path) -> str:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
