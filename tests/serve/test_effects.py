"""A knob that has no effect where the model turns out to run is refused or warned of before anything is loaded."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.serve.assemble import load_model, unload_model
from tests import models


@pytest.mark.parametrize("knob", [{"pin": True}, {"memory_limit_mb": 1000}])
async def test_an_onnx_model_runs_in_no_process_of_its_own_unless_it_is_told_to(knob: dict[str, Any]) -> None:
    (name,) = knob
    with pytest.raises(ConfigError, match=f"model m: {name} = .* process of their own, not on the event loop or on a thread"):
        await load_model("m", ModelConfig(path=str(models.DIGITS), **knob), ticket_ids=count(1))


async def test_a_python_class_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.py").write_text(
        "class M:\n    inputs = {'x': 'FP32[-1,1]'}\n    outputs = {'y': 'FP32[-1,1]'}\n\n"
        "    def predict(self, batch):\n        return {'y': batch['x']}\n"
    )
    model = await load_model("m", ModelConfig(path=f"{tmp_path / 'm.py'}:M", pin=True, quarantine_s=3.0), ticket_ids=count(1))
    await unload_model(model, drain_s=1.0)
    assert "has no effect" not in caplog.text


async def test_what_may_have_a_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig(path="sleep:base=1ms", run="thread", quarantine_s=3.0, discipline="fcfs", starvation_s=1.0)
    await unload_model(await load_model("m", config, ticket_ids=count(1)), drain_s=1.0)
    warnings = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [warning.partition(" = ")[0] for warning in warnings] == ["model m: quarantine_s", "model m: starvation_s"]
