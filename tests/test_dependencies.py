"""No version with a published vulnerability may be installed beside dlproxy, and the environment here has none either."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))

# (package, the last versions that have it, what it is). What concerns packages that only pip-audit knows: `make prove-locks`.
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
