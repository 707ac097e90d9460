"""Public fakes and contract suites, for dlproxy's own tests and for those of whoever extends it."""

from dlproxy.testing.clock import ManualClock
from dlproxy.testing.fake_instance import FakeInstance
from dlproxy.testing.fake_runtime import FakeRuntime
from dlproxy.testing.instance_contract import check_instance

__all__ = ["FakeInstance", "FakeRuntime", "ManualClock", "check_instance"]
