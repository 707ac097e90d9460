"""The dashboard's files without a browser: what is vendored is what it says, modules import what there is, no other host."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

import dlproxy.wire.dashboard

PAGE = Path(dlproxy.wire.dashboard.__file__).parent / "page"
VENDOR = PAGE / "vendor"
MODULES = {path.name: path.read_text("utf-8") for path in PAGE.glob("*.js")}
OURS = {path.name: path.read_text("utf-8") for path in PAGE.iterdir() if path.is_file()}
NAMESPACES = {"http://www.w3.org/2000/svg"}
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([^"]+)";', re.MULTILINE)


def test_what_is_vendored_has_the_stated_checksums() -> None:
    stated = dict(reversed(line.split("  ")) for line in (VENDOR / "SHA256SUMS").read_text("utf-8").splitlines())
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir() if path.name != "SHA256SUMS"}
    assert found == stated
    assert "LICENSE" in found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_import_what_others_export_and_they_use(name: str) -> None:
    text = MODULES[name]
    assert len(IMPORT.findall(text)) == len(re.findall(r"^import\b|\bimport\(", text, re.MULTILINE))
    for names, other in IMPORT.findall(text):
        exported = re.findall(r"^export (?:async )?(?:function\*?|const|class) (\w+)", MODULES[other], re.MULTILINE)
        rest = IMPORT.sub("", text)
        for imported in filter(None, (each.strip() for each in names.split(","))):
            assert imported in exported, f"{other} does not export {imported}"
            assert re.search(rf"\b{imported}\b", rest), f"{imported} is imported and not used"


@pytest.mark.parametrize("name", sorted(OURS))
def test_no_other_host_is_named_and_no_markup_is_made_of_text(name: str) -> None:
    text = OURS[name]
    assert set(re.findall(r"\w+://[^\s\"'`<>)]*", text)) <= NAMESPACES
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"\sstyle=|\son\w+=\"|<style|<script(?![^>]*\ssrc=)", text)


def test_the_page_names_files_that_there_are() -> None:
    named = re.findall(r'(?:src|href)="dashboard/static/([^"]+)"', OURS["index.html"])
    assert named
    assert [name for name in named if not (PAGE / name).is_file()] == []
    imported = {other for text in MODULES.values() for _, other in IMPORT.findall(text)}
    assert MODULES.keys() == imported | {name for name in named if name in MODULES}
