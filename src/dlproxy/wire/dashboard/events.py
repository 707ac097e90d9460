"""What has happened, found by comparing one second with the one before, as lines for the time line of the page.

Called by feed.py. Not aware of: who does such things; what begins and ends within a second shows by its counters alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from dlproxy.policy.planner import VersionState

Kind = Literal["instance", "load", "unload", "knobs", "autopilot", "canary", "alarm", "circuit"]
Key: TypeAlias = tuple[str, str]
Event: TypeAlias = tuple[str, Kind, str]
"""A model's name (empty: about the server), the kind, and what happened in words."""

CIRCUITS = {"ejected": "gets no batches for a while, as it fails", "on probation": "gets one batch, to see whether it works"}
STATES = {"up": "is up", "starting": "is being started", "waiting": "waits for its next start", "lost": "was lost"}


def of_versions(before: Mapping[Key, VersionState], after: Mapping[Key, VersionState]) -> Iterator[Event]:
    """Loads, unloads, shares of the requests."""
    had_default = {one.name for one in before.values() if one.default}
    for key, one in after.items():
        known = before.get(key)
        yield from _of_phase(one, known)
        yield from _of_shares(one, known, first=one.name not in had_default)
    for name, version in before.keys() - after.keys():
        yield name, "unload", f"version {version} is gone"


def _of_phase(one: VersionState, known: VersionState | None) -> Iterator[Event]:
    name, phase, was = one.name, one.phase, "" if known is None else known.phase
    version, reason = f"version {one.version}", "" if known is not None and known.reason == one.reason else one.reason
    if phase == "failed" and (reason or was != phase):
        yield name, "load", f"{version} could not be loaded: {one.reason}"
    elif reason and phase == "serving":
        yield name, "load", f"{version} stays as it is: {reason}"
    elif phase == was or (was == "changing" and phase == "serving"):
        return
    elif phase == "serving":
        yield name, "load", f"{version} is up"
    elif phase == "loading":
        yield name, "load", f"{version} is being loaded"
    elif phase == "leaving":
        yield name, "unload", f"{version} is being unloaded"
    elif phase == "wanted" and was in ("serving", "leaving"):
        yield name, "unload", f"{version} is unloaded, until it is asked for"


def _of_shares(one: VersionState, known: VersionState | None, *, first: bool) -> Iterator[Event]:
    """`first`: no version of the model was its default before."""
    was_default, share = known is not None and known.default, 0.0 if known is None or known.default else known.share
    if one.default:
        if not first and known is not None and not was_default:
            yield one.name, "canary", f"version {one.version} answers whoever names no version"
    elif one.share != share:
        told = f"{one.share * 100.0:.3g} % of the requests that name no version" if one.share else "no share of them any more"
        yield one.name, "canary", f"version {one.version} gets {told}"


def of_instances(name: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """As the page has them."""
    was = {one["name"]: one["state"] for one in before}
    for one in after:
        instance, state = one["name"], one["state"]
        known = was.pop(instance, "")
        if state == known:
            continue
        if state in CIRCUITS:
            yield name, "circuit", f"instance {instance} {CIRCUITS[state]}"
        elif known in CIRCUITS and state == "up":
            yield name, "circuit", f"instance {instance} is trusted again"
        else:
            reason = f": {one['problem']}" if state == "lost" and one["problem"] else ""
            yield name, "instance", f"instance {instance} {STATES.get(state, state)}{reason}"
    for instance in was:
        yield name, "instance", f"instance {instance} is gone"
