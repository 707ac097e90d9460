"""`dlproxy keys`: what it writes, and what it shows of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from dlproxy.message import Quota
from dlproxy.wire.identity import key_file
from tests.clients.server import HANG_S, environment


def keys(*arguments: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlproxy", "keys", *arguments, "--file", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment(), check=False)


def test_a_quota_is_written_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    made = keys("create", "shop", "--rate", "50", "--rows", "2000", "--burst", "2", "--concurrent", "8", file=file)
    assert made.returncode == 0
    assert key_file.read(file)["shop"].quota == Quota(50.0, 2000.0, 2.0, 8)
    keys("create", "plain", file=file)
    head, shop, plain = keys("list", file=file).stdout.splitlines()
    assert head.split() == ["name", "id", "scopes", "models", "tenant", "quota", "state"]
    assert "50 requests/s, 2000 rows/s, 8 at a time" in shop
    assert plain.split()[-2:] == ["-", "valid"]
    assert made.stdout.strip() not in file.read_text()


@pytest.mark.parametrize(
    "wrong", [("--rate", "-1"), ("--rows", "nan"), ("--burst", "-1", "--rate", "1"), ("--concurrent", "-2")]
)
def test_a_quota_that_makes_no_sense_is_refused(tmp_path: Path, wrong: tuple[str, ...]) -> None:
    refused = keys("create", "shop", *wrong, file=tmp_path / "keys.toml")
    assert refused.returncode == 2
    assert "must be" in refused.stderr
    assert not (tmp_path / "keys.toml").exists()
