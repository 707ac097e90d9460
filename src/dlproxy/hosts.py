"""Hosts and ports as addresses write them. Not aware of: sockets, schemes."""

import ipaddress


def authority(host: str, port: int | None = None) -> str:
    """As URLs, Host headers and messages have it: an IPv6 address stands in brackets, or its last part would be the port."""
    host = plain_host(host)
    if ":" in host:
        host = f"[{host.replace('%', '%25')}]"  # the zone of a link-local address (RFC 6874)
    return host if port is None else f"{host}:{port}"


def plain_host(host: str) -> str:
    """As sockets take it: without the brackets, and with a zone behind '%'."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return bare.replace("%25", "%") if ":" in bare else bare


def nearby(host: str) -> str:
    """Where this machine itself reaches what listens on `host`: the same, but for those that stand for every interface."""
    bare = plain_host(host)
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "localhost"}.get(bare, bare)  # nosec B104 # nothing is bound to it


def client_of(address: str) -> str:
    """What counts as one client where addresses are counted: the address itself, but for IPv6 its /64, of which each customer
    has a whole one. IPv4 written as IPv6 is IPv4; what is no address, such as that of a Unix socket, stays as it is.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64"
