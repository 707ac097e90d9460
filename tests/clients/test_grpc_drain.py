"""SIGTERM under load over gRPC: whoever has a second server to go to loses no call, by what gRPC's client does by itself."""

import re
import threading
from collections import Counter

import grpc

from dlproxy.protos.grpc_services import HEALTH
from tests import models
from tests.clients.server import ServerProcess

THREADS = 8


def _grpc_port(server: ServerProcess) -> str:
    found = re.search(r"^gRPC +\S+:(\d+)", server.report, re.MULTILINE)
    assert found is not None, server.report
    return found[1]


def test_no_call_is_lost_at_sigterm() -> None:
    with ServerProcess(models.DIGITS) as first, ServerProcess(models.DIGITS) as second:
        addresses = ",".join(f"127.0.0.1:{_grpc_port(server)}" for server in (first, second))
        ended: Counter[str] = Counter()
        enough, stop = threading.Semaphore(0), threading.Event()
        with grpc.insecure_channel(f"ipv4:{addresses}") as channel:
            check = channel.unary_unary(f"{HEALTH}/Check")

            def load() -> None:
                while not stop.is_set():
                    try:
                        check(b"", timeout=10)
                        ended["answered"] += 1
                    except grpc.RpcError as error:
                        ended[f"{error.code()} {error.details()}"] += 1
                    enough.release()

            threads = [threading.Thread(target=load) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for _ in range(200):
                assert enough.acquire(timeout=10)
            code = first.stop()
            for _ in range(1000):
                assert enough.acquire(timeout=10)
            stop.set()
            for thread in threads:
                thread.join()
        assert code == 0
        assert set(ended) == {"answered"}, ended
        assert second.stop() == 0


def test_health_of_a_real_server() -> None:
    with ServerProcess(models.DIGITS) as server, grpc.insecure_channel(f"127.0.0.1:{_grpc_port(server)}") as channel:
        check = channel.unary_unary(f"{HEALTH}/Check")
        for request in (b"", b"\x0a\x06digits"):
            assert check(request, timeout=10) == b"\x08\x01"
