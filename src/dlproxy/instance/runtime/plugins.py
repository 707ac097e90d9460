"""Formats, and kinds of devices and instances, that installed packages add: found by entry point, imported when wanted.

Called by formats.py, devices.py and fleet/supervised.py if nothing of their own is meant. Not aware of: what was found.
"""

from typing import TypeVar

from dlproxy.instance.runtime import ModelError

Wanted = TypeVar("Wanted")


def plugin(group: str, name: str, wanted: type[Wanted]) -> Wanted | None:
    """What the entry point gives, None if there is none. Raises ModelError that names the package at fault."""
    from importlib.metadata import entry_points

    points = {point.dist.name if point.dist else "?": point for point in entry_points(group=group, name=name)}
    if not points:
        return None
    if len(points) > 1:
        raise ModelError(f"{name!r} is added by several packages, {', '.join(sorted(points))}: uninstall all but one")
    ((package, point),) = points.items()
    try:
        found = point.load()
    except Exception as error:
        raise ModelError(
            f"{name!r} is added by the package {package}, but its {point.value} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, wanted):
        raise ModelError(f"{name!r} is added by the package {package}, but its {point.value} is no {wanted.__name__}")
    return found
