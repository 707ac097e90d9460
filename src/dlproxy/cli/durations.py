"""Durations as options take them: 20ms, p99=20ms, or a bare number of seconds. Called by commands."""


def seconds(text: str | None, option: str) -> float | None:
    """Seconds of an option's value, None if it was not given. Raises ConfigError, which names the option."""
    from dlproxy.config import ConfigError, parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text.strip().removeprefix("p99="))
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def span(text: str | None, option: str) -> float | None:
    """Seconds of an option's value that may do without its unit, None if it was not given. Raises ConfigError."""
    from dlproxy.config import ConfigError, parse_duration

    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        try:
            return parse_duration(text.strip())
        except ConfigError:
            raise ConfigError(f"{option} {text} is not a duration; write it like 10, 10s or 500ms") from None


def budget(text: str, least_s: float) -> float:
    """Seconds that a command may take, which may be given in minutes, too. Raises ConfigError."""
    from dlproxy.config import ConfigError

    minutes, unit = text.strip().removesuffix("m"), text.strip().endswith("m")
    try:
        found = 60.0 * float(minutes) if unit else span(text, "--budget")
    except ValueError:
        found = None
    if found is None or not least_s <= found < float("inf"):
        raise ConfigError(f"--budget {text} is out of range: give {least_s:g}s or more, such as 90s or 5m")
    return found
