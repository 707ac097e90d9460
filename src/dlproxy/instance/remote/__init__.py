"""Models that other servers run: upstreams as instances of a lane. Made by fleet/upstreams.py.

Not aware of: lanes, drivers, whoever serves beside it.
"""

from dlproxy.instance.remote.address import Address, parse_address, parse_addresses
from dlproxy.instance.remote.calibration import calibrate_upstream
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.remote import RemoteInstance, start_upstreams
from dlproxy.instance.remote.settings import RemoteSettings

__all__ = [
    "Address",
    "RemoteInstance",
    "RemoteSettings",
    "UpstreamError",
    "calibrate_upstream",
    "parse_address",
    "parse_addresses",
    "start_upstreams",
]
