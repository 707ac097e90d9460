"""A result in a file: the same when read back, and one line about whatever is wrong with it."""

import re
from pathlib import Path

import msgspec
import pytest

from dlproxy.lab.report.result import FORMAT, Result, ResultError, ensure_writable, load, save
from tests.lab.report import results

DAMAGED = {
    "empty": b"",
    "no JSON": b"not json",
    "cut": b'{"format":1,',
    "no object": b"[]",
    "no UTF-8": b'{"format":1,"kind":"\xff"}',
    "binary": b"\x00\xff\xfe\x80",
    "other JSON": b'{"format":1,"name":"x"}',
    "a wrong type": b'{"format":"one"}',
    "nested": b'{"format":1,"setup":' + b'{"a":' * 100_000,
}


@pytest.mark.parametrize(
    "result", [results.ran(), results.all_failed(), results.nothing_sent(), results.one_request(), results.hostile()]
)
def test_what_was_saved_is_read_back(result: Result, tmp_path: Path) -> None:
    result.instances = result.instances or results.fleet(3)
    result.interrupted = True
    save(result, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == result
    assert msgspec.json.decode((tmp_path / "run.json").read_bytes())["kind"] == result.kind


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=re.escape(str(path))) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_a_damaged_histogram_is_refused(tmp_path: Path) -> None:
    result = results.ran()
    result.histogram = result.histogram[:-10]
    save(result, tmp_path / "run.json")
    with pytest.raises(ResultError, match="damaged"):
        load(tmp_path / "run.json")


def test_another_format_is_named_even_if_nothing_else_is_known_of_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"format": {FORMAT + 1}, "all": "new"}}')
    with pytest.raises(ResultError, match=f"has format {FORMAT + 1}; this version reads {FORMAT}"):
        load(tmp_path / "run.json")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "run.json", tmp_path):
        with pytest.raises(ResultError, match="cannot read"):
            load(path)
        with pytest.raises(ResultError, match="cannot write"):
            save(results.one_request(), path)
        with pytest.raises(ResultError, match="cannot write"):
            ensure_writable(path)


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").write_text("earlier")
    ensure_writable(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == "earlier"
