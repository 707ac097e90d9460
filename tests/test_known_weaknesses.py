"""No version with a published vulnerability is allowed beside dlproxy; what scanners say of the code (`make prove-locks`)."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SCANNERS = os.environ.get("DLPROXY_SCANNERS", "")
by_scanners = pytest.mark.skipif(not SCANNERS, reason="needs scanners: make prove-locks")

# (package, the last versions that have it, what it is). pip-audit knows more, where it can ask.
VULNERABLE = (
    ("brotli", "1.1.0", "CVE-2025-6176: a small body may become endless; its output cannot be bounded"),
    ("cryptography", "44.0.0", "CVE-2024-12797: a bundled OpenSSL that takes servers with unproven raw keys"),
    ("cryptography", "46.0.4", "CVE-2026-26007: points outside of the curve's subgroup are taken"),
    ("grpcio", "1.56.1", "CVE-2023-33953: HPACK without bounds"),
    ("h11", "0.14.0", "CVE-2025-43859: chunks with wrong ends are taken, so requests can be smuggled"),
    ("h2", "4.2.0", "CVE-2025-57804: header values with line ends are taken"),
    ("keras", "3.8.0", "CVE-2025-1550: a .keras file runs code in spite of safe_mode"),
    ("keras", "3.10.0", "CVE-2025-8747: the same, another way"),
    ("keras", "3.11.3", "CVE-2025-12058: loading a .keras file reads other files and addresses"),
    ("onnx", "1.15.0", "CVE-2024-27318: external data outside of the model's folder"),
    ("onnx", "1.17.0", "CVE-2025-51480: external data is saved outside of the model's folder"),
    ("protobuf", "4.25.7 5.29.4 6.30.2 6.31.0", "CVE-2025-4565: nested messages exhaust the stack"),
    ("PyJWT", "2.3.0", "CVE-2022-29217: a public key passes for a shared secret"),
    ("PyJWT", "2.10.0", "CVE-2024-53861: a part of the issuer passes for it"),
    ("PyJWT", "2.11.0", "CVE-2026-32597: critical headers that are not understood are ignored"),
    ("redis", "4.5.3", "CVE-2023-28859: answers of one request may go to another"),
    ("scikit-learn", "1.4.2", "CVE-2024-5206: TfidfVectorizer keeps all words that it has seen"),
    ("starlette", "0.40.0 0.47.1", "CVE-2025-54121: large forms block the event loop"),
    ("starlette", "0.49.0", "CVE-2025-62727: a Range header costs quadratic time"),
    ("torch", "2.5.1", "CVE-2025-32434: torch.load(weights_only=True) runs code"),
    ("tqdm", "4.66.2", "CVE-2024-34062: arguments of its command line run code"),
    ("uvicorn", "0.11.6", "CVE-2020-7695: line ends in the header of an answer"),
)


def _requirements() -> Iterator[Requirement]:
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    return (Requirement(text) for group in groups for text in group)


@pytest.mark.parametrize(("package", "versions", "what"), VULNERABLE, ids=lambda text: text.partition(":")[0])
def test_bounds_leave_out_what_is_vulnerable(package: str, versions: str, what: str) -> None:
    bounds = [wanted.specifier for wanted in _requirements() if wanted.name == package]
    assert bounds, f"{package} is no dependency any more: drop its row"
    for bad in versions.split():
        assert not any(bound.contains(bad) for bound in bounds), f"{package} {bad}: {what}"


@pytest.mark.parametrize("wanted", sorted({str(wanted) for wanted in _requirements()}))
def test_every_dependency_has_a_lower_bound_and_what_is_installed_is_within(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert any(part.operator == ">=" for part in requirement.specifier)
    try:
        installed = Version(version(requirement.name))
    except PackageNotFoundError:
        pytest.skip("not installed")
    assert requirement.specifier.contains(installed, prereleases=True)


def test_nothing_that_must_not_be_guessed_comes_of_a_generator_that_can_be() -> None:
    """`secrets` is for that: bandit would tell (B311), but not from simulations, whose numbers have to repeat."""
    for path in [*(ROOT / "src" / "dlproxy" / "wire").rglob("*.py"), *(ROOT / "src" / "dlproxy" / "cli").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name in ("random", "numpy.random") for name in names), path


@by_scanners
def test_bandit_finds_nothing() -> None:
    command = [f"{SCANNERS}/bandit", "--quiet", "--configfile", str(ROOT / "pyproject.toml"), "--recursive", str(ROOT / "src")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]


@by_scanners
@pytest.mark.parametrize("which", ["oldest", "installed"])
def test_pip_audit_knows_of_no_vulnerability(which: str, tmp_path: Path) -> None:
    """Of the oldest versions that the bounds allow, and of all that is installed here."""
    pins = {f"{wanted.name}=={_lowest(wanted)}" for wanted in _requirements()}
    if which == "installed":
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"], capture_output=True, text=True
        )
        pins = {line for line in listed.stdout.split() if "==" in line}
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(sorted(pins)))
    command = [f"{SCANNERS}/pip-audit", "--requirement", str(path), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--cache-dir", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True)
    if "ConnectionError" in said.stderr:
        pytest.skip("pip-audit could not ask for known vulnerabilities: there is no connection to its service")
    assert said.stdout.startswith("{"), said.stderr[-2000:]
    found = json.loads(said.stdout)["dependencies"]
    vulnerable = {f"{one['name']} {one['version']}: {bad['id']}" for one in found for bad in one.get("vulns", ())}
    assert not vulnerable
    if unasked := [one["name"] for one in found if "skip_reason" in one]:
        pytest.skip(f"pip-audit could not ask for known vulnerabilities of {len(unasked)} of {len(pins)} packages")


def _lowest(wanted: Requirement) -> str:
    return next(part.version for part in wanted.specifier if part.operator == ">=")
