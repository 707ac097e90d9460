"""Extensions of the Open Inference Protocol that Triton has, and HTTP and gRPC share: regions, log and trace settings.

Made by serve/server.py, for both. Not aware of: inference.
"""

from msgspec import Struct

from dlproxy.config import HttpLimits
from dlproxy.config.server import ServerConfig
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http_routes import Row
from dlproxy.wire.regions import Regions
from dlproxy.wire.regions_http import RegionRoutes
from dlproxy.wire.settings import LogSettings, TraceSettings
from dlproxy.wire.settings_http import SettingRoutes


class Extensions(Struct, frozen=True):
    """Of one server."""

    regions: Regions
    logs: LogSettings
    trace: TraceSettings

    @property
    def names(self) -> list[str]:
        """What clients may count on; there is nothing to trace, and no CUDA memory."""
        return ["system_shared_memory"] * self.regions.on + ["logging"] * self.logs.may_change

    def rows(self) -> list[Row]:
        return [*RegionRoutes(self.regions).rows(), *SettingRoutes(self.logs, self.trace).rows()]


def extensions_of(server: ServerConfig, limits: HttpLimits, catalog: Catalog) -> Extensions:
    """As the knobs say. Inputs in regions may be as large as those in a body."""
    regions = Regions(on=server.shared_memory, most_bytes=limits.max_body_bytes)
    return Extensions(regions, LogSettings(may_change=server.client_log_settings), TraceSettings(catalog))
