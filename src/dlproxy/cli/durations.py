"""Durations as options take them: 20ms or p99=20ms. Called by cli/bench.py and cli/simulate.py."""


def seconds(text: str | None, option: str) -> float | None:
    """Seconds of an option's value, None if it was not given. Raises ConfigError, which names the option."""
    from dlproxy.config import ConfigError, parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text.strip().removeprefix("p99="))
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
