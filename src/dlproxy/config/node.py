"""The table's rows for a server as one of several: what others find it by, and how it finds those behind it.

Taken in by knobs.py. Not aware of: models, Redis.
"""

import re
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from dlproxy.config.redis_address import parse_redis
from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob
from dlproxy.config.values import ConfigError

_FOUND = (Only("registry", but=("",)),)

Members = Annotated[
    Literal["static", "dns", "srv", "redis"],
    _knob(
        "who says which servers the path means: static: the path itself; dns, srv: the addresses, or SRV records, of its host, "
        "which come and go; redis: the nodes that announce themselves as the group that stands where a host does",
        cost="reload",
        only=(Only("run", ("upstream",)),),
    ),
]
"""A knob of models."""


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[node]: this server as one of several, before others or behind them."""

    name: Annotated[str, _knob("what other nodes call it, where requests go in a circle; empty: the machine's name")] = ""
    zone: Annotated[
        str,
        _knob("where it is, such as a rack or an availability zone: those of one zone count as next door; empty: not known"),
    ] = ""
    registry: Annotated[
        str,
        _knob(
            "Redis or Valkey where nodes announce themselves and find each other, as redis://USER:PASSWORD@HOST:PORT/DB "
            "(rediss:// with TLS); empty: none"
        ),
    ] = ""
    group: Annotated[
        str, _knob("announce this node there, as one of this group, while it serves; empty: it is not announced", only=_FOUND)
    ] = ""
    address: Annotated[
        str,
        _knob(
            "host by which others reach it; empty: host in [server], or where that is every interface, the one by which it "
            "reaches the registry",
            only=(Only("group", but=("",)),),
        ),
    ] = ""
    refresh_s: Annotated[
        float,
        _knob("seconds between two looks at who the members of an upstream are", unit="s", log=True, ge=0.1, le=3600),
    ] = 5.0
    leave_s: Annotated[
        float,
        _knob(
            "seconds for which it says that it is not ready, but still takes what comes, before it drains: balancers without "
            "a look at each answer stop first then",
            unit="s",
            ge=0,
            le=600,
        ),
    ] = 0.0


def check_node(node: NodeConfig) -> None:
    """Raises ConfigError for names that cannot travel, and for an address that is none."""
    for knob in ("name", "zone", "group"):
        value = getattr(node, knob)
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,60}", value):
            raise ConfigError(
                f"{knob} = {value!r} is not understood; it takes up to 60 letters, digits, '.', '_' and '-'", knob
            )
    if node.registry:
        parse_redis(node.registry, "registry")
    if not re.fullmatch(r"[A-Za-z0-9.:-]*", node.address):
        raise ConfigError(
            f"address = {node.address!r} is no host; write it like 10.0.0.5 or gpu1.internal, without a port", "address"
        )


def check_members(members: str, path: str) -> None:
    """Raises ConfigError where a path cannot be followed in this way."""
    if members == "static":
        return
    paths = path.split(",")
    hosts = [urlsplit(each.strip()).hostname or "" for each in paths]
    if members == "redis" and len(paths) > 1:
        raise ConfigError("members = 'redis' takes one address, with the name of a group for a host", "members")
    if members in ("dns", "srv"):
        for host in filter(_is_ip, hosts):
            raise ConfigError(
                f"members = '{members}': {host} in the path is an address already, and no name to ask for", "members"
            )


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
