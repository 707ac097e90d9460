"""What nodes tell each other about a request: which it came through, who runs it again, and how busy the one that answers is.

Read by wire/terms.py, written by instance/remote, and the other way round for answers. What is missing, malformed or of a later
version means what it meant before there was any of it. Not aware of: protocols.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import isfinite

from msgspec import Struct

VIA = "x-dlproxy-via"  # how many nodes it came through, and which: "2; a, b"
RETRIES = "x-dlproxy-retries"  # "0": a node before this one runs it again, if anybody does
LOAD = "x-dlproxy-load"  # of an answer to a request that came from a node
MOST_HOPS = 8  # nodes in a row: a loop through processes that share a name ends here
MOST_IDS = 32  # nodes that one batch tells of; its requests may have come through many
MOST_ID = 100  # characters of one


class Way(Struct, frozen=True):
    """`hops`: nodes in a row, of the request that came through most. `ids`: those of all of its requests."""

    hops: int = 0
    ids: tuple[str, ...] = ()


class Load(Struct, frozen=True):
    """How one more request would find a node: `rows` wait or run there, and it would take `wait_s` seconds; -1: not known.

    `zone`: where it is, empty for not known. `leaves`: it is about to stop, and wants no more. `distance_s`: seconds that the
    way there and back takes, where that is not next door; the node that answers cannot know it.
    """

    rows: int = -1
    wait_s: float = 0.0
    zone: str = ""
    leaves: bool = False
    distance_s: float = 0.0


NO_WAY = Way()
NO_LOAD = Load()


@lru_cache
def way_in(text: str) -> Way:
    """What a VIA header says; NO_WAY for what is none. Fields that later versions add after another semicolon are ignored."""
    count, _, rest = text.partition(";")
    names = rest.partition(";")[0].split(",")
    if not (count.strip().isdecimal() and len(count) <= 9):
        return NO_WAY
    ids = [name.strip() for name in names]
    return Way(int(count), tuple(name for name in ids if name and len(name) <= MOST_ID)[:MOST_IDS])


def way_on(own: str, texts: Iterable[str]) -> str:
    """The VIA header of a batch of requests that came with these, for the next node. `own`: the id of this one."""
    hops, ids = 0, dict[str, None]()
    for text in dict.fromkeys(texts):
        way = way_in(text)
        hops = max(hops, way.hops)
        ids.update(dict.fromkeys(way.ids))
    ids.pop(own, None)
    return f"{hops + 1}; {', '.join([*[*ids][1 - MOST_IDS :], own])}"


def why_refused(own: str, text: str) -> str:
    """Why a request that came this way goes no further here, in words; empty if it may."""
    way = way_in(text)
    if own and own in way.ids:
        others = [name for name in way.ids if name != own]
        through = f" through {', '.join(others)}" if others else ""
        return f"the request has come back to {own}{through}: these upstreams form a loop; take one of them out"
    if way.hops >= MOST_HOPS:
        return f"the request came through {way.hops} nodes, {MOST_HOPS} at most may be in a row: do upstreams form a loop?"
    return ""


def load_text(load: Load, *, leaves: bool = False) -> str:
    """As a header of an answer."""
    parts = [f"rows={load.rows}", f"wait={load.wait_s:.6f}"]
    if load.zone:
        parts.append(f"zone={load.zone}")
    if load.leaves or leaves:
        parts.append("leaves")
    return "; ".join(parts)


def load_in(text: str) -> Load:
    """What such a header says; unknown and malformed fields say nothing."""
    said = dict[str, str]()
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        said.setdefault(name, value)
    rows, wait_s = _number(said.get("rows", "")), _number(said.get("wait", ""))
    if rows is None or wait_s is None:
        rows, wait_s = -1.0, 0.0
    return Load(int(rows), wait_s, said.get("zone", "")[:MOST_ID], "leaves" in said)


def left_s(patience_s: float, distance_s: float) -> float:
    """Seconds that the next node has, if the last client waits so long: less by what the way there and back takes.

    At least half of what there is, as distances are measured at other times.
    """
    return max(patience_s - distance_s, patience_s / 2)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and 0.0 <= value < 1e12 else None
