"""Every knob once (knobs.py), and how dlproxy.toml and the environment give them values (reading.py).

Called by all that reads a configuration. Not aware of: what the values steer.
"""

from dlproxy.config.autopilot import AutopilotConfig
from dlproxy.config.cache import CacheConfig
from dlproxy.config.effects import check
from dlproxy.config.goals import Goal, parse_goal
from dlproxy.config.knobs import Config, LaneSettings, ModelConfig
from dlproxy.config.limits import HttpLimits, TenantConfig
from dlproxy.config.messages import explain
from dlproxy.config.paths import DEVICES, SLEEP, is_address, parse_devices, python_place
from dlproxy.config.reading import load, model_of
from dlproxy.config.server import ServerConfig
from dlproxy.config.values import ConfigError, parse_duration

__all__ = [
    "DEVICES",
    "SLEEP",
    "AutopilotConfig",
    "CacheConfig",
    "Config",
    "ConfigError",
    "Goal",
    "HttpLimits",
    "LaneSettings",
    "ModelConfig",
    "ServerConfig",
    "TenantConfig",
    "check",
    "explain",
    "is_address",
    "load",
    "model_of",
    "parse_devices",
    "parse_duration",
    "parse_goal",
    "python_place",
]
