"""What the texts of knobs mean: durations, origins.

Called by the rest of config/, and by whatever takes such texts from users. Not aware of: knobs, files.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from math import inf

ORIGIN = r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"  # as browsers send it
_DURATION = re.compile(r"\s*([0-9.]+)\s*(us|ms|s)\s*")
_EXPONENTS = {"us": -6, "ms": -3, "s": 0}


class ConfigError(Exception):
    """A configuration that cannot be used; the message says where, what is wrong and what would be right.

    `knob`: whose value is at fault, if it is one's.
    """

    def __init__(self, message: str, knob: str = "") -> None:
        super().__init__(message)
        self.knob = knob


def parse_duration(text: str) -> float:
    """Seconds of a duration like "20ms", above 0. Raises ConfigError."""
    seconds = seconds_of(text)
    if seconds <= 0.0:
        raise ConfigError(f"duration {text!r} is not understood; write it like 20ms (us, ms or s)")
    return seconds


def check_origins(origins: Iterable[str]) -> None:
    """Raises ConfigError for one that no browser would send."""
    for origin in origins:
        if not re.fullmatch(ORIGIN, origin):
            raise ConfigError(
                f"{origin!r} is not an origin; write it in lower case like https://shop.example:8443, without a path or a "
                'slash at the end, or "*" for every one',
                "cors_origins",
            )


def seconds_of(text: str) -> float:
    """0 for what is no duration, or too long for a number."""
    match = _DURATION.fullmatch(text)
    try:
        value = float(f"{match[1]}e{_EXPONENTS[match[2]]}") if match else 0.0
    except ValueError:
        return 0.0
    return value if value < inf else 0.0


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for whoever has mistyped a name."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
