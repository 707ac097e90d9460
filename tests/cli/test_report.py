"""`dlproxy report` on a real server: it writes one page; mistakes are one line and exit code 2."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import OK, USER_ERROR
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = write_config(tmp_path_factory.mktemp("report") / "dlproxy.toml", {"digits": {"path": "sleep:base=1ms"}})
    with ServerProcess("--config", config) as process:
        yield process


def test_a_page_of_the_last_hour_is_written(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"inputs": [[1.0]]}).encode()
    with urlopen(Request(f"http://{server.address}/predict/digits", body), timeout=HANG_S) as reply:
        assert reply.status == 200
    page = tmp_path / "page.html"
    for _ in range(100):
        assert main(["report", "--out", str(page), "--control", f"http://127.0.0.1:{server.control_port}"]) == OK
        answered, written = capsys.readouterr().out.splitlines()
        assert written == f"written to {page}"
        if answered.startswith("1 request answered"):  # within a second
            break
    assert answered.startswith("1 request answered in ")
    assert "digits" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "/no/such/folder/page.html"], "cannot write /no/such/folder/page.html"),
        (["--control", "http://127.0.0.1:1"], "is dlproxy running there?"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == USER_ERROR
    assert words in only_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("minutes", ["0", "90", "x", "1.5"])
def test_more_than_an_hour_is_not_kept(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--minutes", minutes])
    assert f"'{minutes}' is not a whole number from 1 to 60" in capsys.readouterr().err


def test_the_inference_port_is_told_to_be_the_wrong_one(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--out", str(tmp_path / "p.html"), "--control", f"http://{server.address}"]) == USER_ERROR
    assert "is an inference port" in only_line(capsys)
