"""dlproxy beside a real Triton: hundreds of requests over HTTP and gRPC, good and bad, and what Triton was seen to answer.

Triton's answers are recorded in triton.json (`make prove-triton` asks it again). What differs stands in differences.py.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.server import ServerProcess, write_config
from tests.conformance.answers import Answer, Asker
from tests.conformance.asking import post
from tests.conformance.cases import CASES
from tests.conformance.comparison import compare, differs_as_said
from tests.conformance.differences import DIFFERENCES, EVERYWHERE, differences_of
from tests.conformance.models import MODELS
from tests.conformance.record import ask_triton, read
from tests.conformance.repository import for_dlproxy

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "from-triton.md"
PYTHON = os.environ.get("DLPROXY_TRITON", "")
"""The interpreter of an environment with Triton, which is asked now instead of what is recorded."""


SETTINGS = {"repository_mode": "explicit", "shared_memory": True, "client_log_settings": True}
"""Triton's own; the last two are off by default here."""


@pytest.fixture(scope="module")
def triton() -> dict[str, Answer]:
    return ask_triton(Path(PYTHON))[1] if PYTHON else read()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answer]]:
    """Of one server, asked in the order of the cases, as Triton was."""
    repository = for_dlproxy(tmp_path_factory.mktemp("repository"))
    config = write_config(tmp_path_factory.mktemp("config") / "dlproxy.toml", {}, repository=repository, **SETTINGS)
    with config.open("a", encoding="utf-8") as file:
        file.write("[http]\ncompress_above_bytes = 512\n")
    process = ServerProcess("--config", config, "--grpc-port", "0")
    with process as server, Asker(server.http_port, server.grpc_port) as asker:
        for model in MODELS:
            assert asker.ask(post(f"/v2/repository/models/{model}/load"))["status"] == 200
        yield {name: asker.ask(case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_answers_as_triton(name: str, answers: dict[str, Answer], triton: dict[str, Answer]) -> None:
    listed = differences_of(name)
    if not listed:
        compare(name, answers[name], triton[name])
        return
    for difference, here in listed:
        differs_as_said(answers[name], triton[name], difference, here)
    with pytest.raises(AssertionError):  # else it differs no more: take it off the list
        compare(name, answers[name], triton[name])


def test_what_is_recorded_are_these_cases() -> None:
    assert list(read()) == list(CASES), "cases have changed: make prove-triton RECORD=1"


def test_every_difference_is_about_a_case() -> None:
    seen = {difference.what for name in CASES for difference, _ in differences_of(name)}
    assert [each.what for each in DIFFERENCES if each.what not in seen] == []


def test_the_guide_lists_the_differences() -> None:
    section = GUIDE.read_text("utf-8").partition("## What differs\n")[2].partition("\n## ")[0]
    listed = [re.sub(r"\s+", " ", line).strip() for line in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    assert listed == [*EVERYWHERE, *(difference.what for difference in DIFFERENCES)]
