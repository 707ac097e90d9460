"""`dlproxy casestudy`: what is asked wrongly is refused in one line, before anything is started."""

from pathlib import Path

import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.lab.casestudy import servers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rounds", "0"), "--rounds 0 is out of range: give 1 or more"),
        (("--length", "1s"), "--length 1s is out of range: give 5s or more"),
        (("--length", "soon"), "--length soon is not a duration"),
        (("--slo", "p99=quick"), "--slo"),
        (("--seed", "-1"), "--seed -1 is out of range"),
        (("--agent", "nowhere.onnx"), "--agent nowhere.onnx: there is no such file; dlproxy learn train agent-dqn writes one"),
    ],
)
def test_what_cannot_be(
    options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(servers, "missing", lambda case: [])
    monkeypatch.chdir(tmp_path)
    assert main(["casestudy", "promotion", *options]) == USER_ERROR
    out, error = capsys.readouterr()
    assert error.startswith(f"dlproxy: {said}")
    assert not out
    assert not list(tmp_path.iterdir())


def test_without_fastapi_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(servers, "missing", lambda case: ["fastapi"])
    assert main(["casestudy", "promotion"]) == USER_ERROR
    assert capsys.readouterr().err == "dlproxy: the case study needs fastapi: pip install 'dlproxy[casestudy]'\n"


def test_a_case_that_is_mistyped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["casestudy", "promotoin"])
    assert ended.value.code == USER_ERROR
    assert "there is no case 'promotoin'; did you mean promotion?" in capsys.readouterr().err
