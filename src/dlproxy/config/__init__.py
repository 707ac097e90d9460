"""Every knob once (knobs.py), and how dlproxy.toml and the environment give them values (reading.py).

Called by all that reads a configuration. Not aware of: what the values steer.
"""

from dlproxy.config.effects import check
from dlproxy.config.knobs import Config, HttpLimits, LaneSettings, ModelConfig, ServerConfig, TenantConfig
from dlproxy.config.paths import DEVICES, SLEEP, is_address, parse_devices, python_place
from dlproxy.config.reading import explain, load, model_of
from dlproxy.config.values import ConfigError, parse_duration, parse_slo

__all__ = [
    "DEVICES",
    "SLEEP",
    "Config",
    "ConfigError",
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
    "parse_slo",
    "python_place",
]
