"""Builds the sdist and the wheel, looks into both, and tries the wheel as its users will: `make release`. Publishes nothing.

Needs the tools of .venv-peers/release. Writes dist/packages/ (what is published), dist/sbom.cdx.json and dist/notes.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

from fresh import FailedError, Fresh
from onnx import TensorProto, helper, save

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PACKAGES = DIST / "packages"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PYTHONS = [line.rsplit(" ", 1)[1] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
MOST_BYTES = 12 << 20  # of the wheel, of which the shop of the case study takes 10: more means that something came along


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters to try; none: each that is found here")
    try:
        release(parser.parse_args().pythons)
    except FailedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def release(named: list[str]) -> None:
    """Raises FailedError."""
    pythons = interpreters(named)
    shutil.rmtree(DIST, ignore_errors=True)
    version = stated_version()
    with step(f"sdist of {version}, and the wheel out of it"):
        wheel, sdist = built(version)
    with step("twine check, check-wheel-contents"):
        tool("twine", "check", "--strict", str(wheel), str(sdist))
        tool("check_wheel_contents", str(wheel))
    with step("what is in them"):
        check_contents(wheel, sdist)
    for number, python in pythons.items():
        with step(f"Python {number}: installed, demonstrated, asked"), tempfile.TemporaryDirectory() as folder:
            try_out(wheel, version, python, Path(folder))
    with step("pipx run"), tempfile.TemporaryDirectory() as folder:
        try_pipx(wheel, Path(folder))
    missing = [number for number in PYTHONS if number not in pythons]
    if missing:
        print(f"not tried, as there is no such Python here: {', '.join(missing)}")
    print("\n".join(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB" for path in sorted(DIST.rglob("*.*"))))


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    print(f"{what} … ", end="", flush=True)
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:.1f} s", flush=True)


def tool(module: str, *arguments: str) -> str:
    """What it printed. Raises FailedError."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"{module} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def interpreters(named: list[str]) -> dict[str, str]:
    """Those that are named, else those on the PATH and pyenv's, by version. Raises FailedError for a name that is none."""
    found: dict[str, str] = {}
    for number in PYTHONS if not named else [""]:
        kept = sorted(Path.home().glob(f".pyenv/versions/{number}.*/bin/python"), reverse=True) if number else []
        for python in named or [f"python{number}", *map(str, kept)]:
            try:
                asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
                told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            except (OSError, subprocess.CalledProcessError):
                if named:
                    raise FailedError(f"{python} is no Python that runs") from None
            else:
                found.setdefault(told, python)
    if not found:
        raise FailedError(f"there is no Python of {', '.join(PYTHONS)} here")
    return found


def stated_version() -> str:
    """The package's; the changelog and the chart must say the same. Writes dist/notes.md. Raises FailedError."""
    version = re.findall(r'^__version__ = "(.+)"$', (ROOT / "src/dlproxy/__init__.py").read_text("utf-8"), re.MULTILINE)[0]
    released = re.split(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    if len(released) < 3 or released[1] != version:
        raise FailedError(f"the newest version in CHANGELOG.md is {released[1:2]}, the package is {version}")
    if f'\nappVersion: "{version}"\n' not in (ROOT / "deploy/helm/dlproxy/Chart.yaml").read_text("utf-8"):
        raise FailedError(f"deploy/helm/dlproxy/Chart.yaml names another appVersion than {version}")
    DIST.mkdir(exist_ok=True)
    (DIST / "notes.md").write_text(re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", released[2]).strip() + "\n", "utf-8")
    return version


def built(version: str) -> tuple[Path, Path]:
    """Wheel and sdist. The wheel is built from what is in the sdist, so that one does."""
    tool("build", "--outdir", str(PACKAGES), str(ROOT))
    return PACKAGES / f"dlproxy-{version}-py3-none-any.whl", PACKAGES / f"dlproxy-{version}.tar.gz"


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every file of the package that the repository tracks, the licences, and nothing else. Raises FailedError."""
    stem = sdist.name.removesuffix(".tar.gz")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    package = {name.removeprefix("src/") for name in listed if name.startswith("src/")}
    about = {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        *(f"licenses/{one}" for one in PROJECT["project"]["license-files"]),
    }
    wanted = package | {f"{stem}.dist-info/{name}" for name in about}
    with ZipFile(wheel) as archive:
        compare(wheel, set(archive.namelist()), wanted)
        metadata = archive.read(f"{stem}.dist-info/METADATA").decode()
    if f"\nRequires-Python: {PROJECT['project']['requires-python']}\n" not in metadata:
        raise FailedError(f"{wheel.name} does not say for which Pythons it is")
    if wheel.stat().st_size > MOST_BYTES:
        raise FailedError(f"{wheel.name} has {wheel.stat().st_size:,} bytes, at most {MOST_BYTES:,} are allowed")
    kept = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    source = {name for name in listed if name in kept or name.split("/")[0] in kept} | {"PKG-INFO", ".gitignore"}
    with tarfile.open(sdist) as packed:
        compare(
            sdist, {name for name in packed.getnames() if not packed.getmember(name).isdir()}, {f"{stem}/{n}" for n in source}
        )


def compare(archive: Path, names: set[str], wanted: set[str]) -> None:
    """Raises FailedError."""
    if names != wanted:
        raise FailedError(f"{archive.name}: too much: {sorted(names - wanted)}; missing: {sorted(wanted - names)}")


def try_out(wheel: Path, version: str, python: str, folder: Path) -> None:
    """In an environment and a folder of its own. The first one's packages become the SBOM. Raises FailedError."""
    fresh = Fresh(folder)
    fresh.make(python)
    fresh.run(f"python -m pip --disable-pip-version-check -q install {wheel} && python -m pip check")
    expect(fresh.run("dlproxy --version"), f"dlproxy {version}\n")
    expect(fresh.run("dlproxy demo --seconds 2 --exit"), "accuracy")
    double(fresh.home / "own.onnx")
    with fresh.serving("dlproxy serve own.onnx --http-port 0 --grpc-port 0 --control-port 0") as said:
        url = re.findall(r"^inference +(http://[^/]+)/v2", said, re.MULTILINE)[0]
        expect(fresh.run(f"dlproxy infer {url} own 'x=[[1,2,3],[4,5,6]]' --format json"), "[[2.0,4.0,6.0],[8.0,10.0,12.0]]")
    if not (DIST / "sbom.cdx.json").exists():
        fresh.run("python -m pip --disable-pip-version-check -q uninstall --yes pip setuptools")
        write_sbom(fresh.env, version)


def double(path: Path) -> None:
    """A model that is nobody's but the caller's: y = x + x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def expect(said: str, part: str) -> None:
    """Raises FailedError."""
    if part not in said and part not in "".join(said.split()):
        raise FailedError(f"expected {part!r}, got:\n{said}")


def write_sbom(env: Path, version: str) -> None:
    """CycloneDX, of what is installed there. Raises FailedError where a dependency is missing, or a path of ours is in it."""
    path = DIST / "sbom.cdx.json"
    options = ("--pyproject", "pyproject.toml", "--mc-type", "application", "--output-reproducible", "--output-format", "JSON")
    tool("cyclonedx_py", "environment", *options, "--output-file", str(path), str(env))
    bom = json.loads(path.read_bytes())
    bom["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/dlproxy@{version}"}
    for component in (bom["metadata"]["component"], *bom["components"]):
        references = component.get("externalReferences", [])
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    path.write_text(json.dumps(bom, indent=1, ensure_ascii=False) + "\n", "utf-8")
    names = {component["name"].lower().replace("_", "-") for component in bom["components"]}
    needed = {re.split(r"[^\w-]", one)[0].lower() for one in PROJECT["project"]["dependencies"]}
    if missing := needed - names:
        raise FailedError(f"the SBOM lacks {sorted(missing)}")
    if str(env.parent) in path.read_text("utf-8"):
        raise FailedError(f"the SBOM names {env.parent}")


def try_pipx(wheel: Path, folder: Path) -> None:
    """As `pipx run dlproxy demo` from an index, with nothing of pipx's own kept. Raises FailedError."""
    fresh = Fresh(folder, {"PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")})
    said = fresh.run(f"{sys.executable} -m pipx run --no-cache --spec {wheel} dlproxy demo --seconds 3 --exit")
    expect(said, "accuracy")


if __name__ == "__main__":
    sys.exit(main())
