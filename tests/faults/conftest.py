"""One server with models that are slow, fussy or large, for the faults that it must survive."""

from collections.abc import Iterator

import pytest

from dlproxy.message import DType
from tests import models
from tests.clients.server import ServerProcess, write_config


@pytest.fixture(scope="session")
def fault_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """slow: 35 ms a row on a thread, small queue; lookup: fails for indexes above 7; wide: identity of any size; digits."""
    folder = tmp_path_factory.mktemp("faults")
    config = write_config(
        folder / "dlproxy.toml",
        {
            "slow": {
                "path": models.save(models.slow(), folder / "slow.onnx"),
                "threads": 1,
                "instances": 1,
                "max_queue_rows": 24,
            },
            "lookup": {"path": models.save(models.lookup(), folder / "lookup.onnx"), "threads": 1},
            "wide": {"path": models.save(models.identity(DType.INT64, ("N", "M")), folder / "wide.onnx"), "threads": 1},
            "digits": {"path": models.DIGITS, "threads": 1},
        },
    )
    with ServerProcess("--config", config) as process:
        yield process
