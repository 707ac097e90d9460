"""One server for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlproxy.message import DType
from tests import models
from tests.clients.server import ServerProcess, write_config


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves digits, simple (two int32 in, two out), text, half, brain and wide (identities of BYTES, FP16, BF16, INT64)."""
    folder: Path = tmp_path_factory.mktemp("models")
    settings = models.settings_of(
        folder,
        simple=models.two_in_two_out(),
        text=models.identity(DType.BYTES, ("N", 2)),
        half=models.identity(DType.FP16),
        brain=models.identity(DType.BF16),
        wide=models.identity(DType.INT64, ("N", "M")),
    )
    settings["simple"] |= {"max_batch": 8, "max_request_rows": 8, "version": "3"}
    settings["digits"] = {"path": models.DIGITS, "threads": 1}
    with ServerProcess("--config", write_config(folder / "dlproxy.toml", settings)) as process:
        yield process
