"""Every case by its name, in the order in which servers are asked. Called by record.py and the test."""

from collections.abc import Mapping

from tests.conformance import control_cases, grpc_cases, http_cases
from tests.conformance.asking import FORMS, Grpc, Request
from tests.conformance.asks import ASKS

_HTTP: Mapping[str, Mapping[str, Request]] = {
    "http": http_cases.ROUTES,
    "body": http_cases.JSON,
    "sizes": http_cases.BINARY,
    "encoding": http_cases.COMPRESSED,
    "repository": control_cases.REPOSITORY,
    "shared memory": control_cases.SHARED_MEMORY,
    "settings": control_cases.SETTINGS,
    "generate": control_cases.GENERATE,
}
_GRPC: Mapping[str, Mapping[str, Request]] = {
    "grpc": grpc_cases.METHODS,
    "contents": grpc_cases.CONTENTS,
    "stream": grpc_cases.STREAMS,
    "grpc control": grpc_cases.CONTROL,
}

CASES: dict[str, Request] = {
    **{f"{form}: {name}": make(ask) for form, make in FORMS.items() for name, ask in ASKS.items()},
    **{
        f"{table}: {name}": case for tables in (_HTTP, _GRPC) for table, cases in tables.items() for name, case in cases.items()
    },
}


def is_grpc(name: str) -> bool:
    return isinstance(CASES[name], Grpc)
