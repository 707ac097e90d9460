"""What turns knobs while a model serves: windows of telemetry in, values of knobs out. Pure."""

from collections.abc import Callable

from dlproxy.policy.tuning.bandit import Bandit
from dlproxy.policy.tuning.climb import Climb
from dlproxy.policy.tuning.protocol import KnobPolicy
from dlproxy.policy.tuning.rules import Rules

__all__ = ["KNOB_POLICIES", "make_knob_policy"]

_MAKERS: dict[str, Callable[[], KnobPolicy]] = {"rules": Rules, "bandit": Bandit, "climb": Climb}
KNOB_POLICIES: tuple[str, ...] = tuple(_MAKERS)  # the first is the default


def make_knob_policy(name: str) -> KnobPolicy:
    """The policy of this name. Raises ValueError for an unknown name."""
    if name not in _MAKERS:
        raise ValueError(f"no policy of knobs '{name}'; there are {', '.join(KNOB_POLICIES)}")
    return _MAKERS[name]()
