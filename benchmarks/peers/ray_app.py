"""Ray Serve with serve.batch, one replica, HAProxy in front. Run by the benchmark: `-m ... MODEL PORT`."""

import os
import signal
import sys
import threading
from pathlib import Path

# Read when Ray is imported. HAProxy instead of the Python proxy, and fewer hops and threads in a replica: what the
# documentation advises for throughput (20 times as fast here). One HAProxy thread, for there is one core.
# https://docs.ray.io/en/master/serve/advanced-guides/performance.html
folder = Path(os.environ["PEER_FOLDER"])
os.environ |= {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
    "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    "RAY_USAGE_STATS_ENABLED": "0",
}

import numpy as np  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

from benchmarks.peers import MAX_BATCH  # noqa: E402
from benchmarks.peers.onnx_session import Rows, open_session  # noqa: E402

# The default waits 10 ms for a batch to fill. 0 takes what has arrived.
# https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
BATCH_WAIT_S = 0.0
# Far above the connections of the load, or requests would queue outside the replica, where they cannot be batched.
MAX_ONGOING_REQUESTS = 1024


@serve.deployment(
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False},
)
class OnnxDeployment:
    def __init__(self, model: str) -> None:
        self.session = open_session(model)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def answers(self, bodies: list[bytes]) -> list[Rows]:
        return list(self.session.run(np.concatenate([self.session.item(body) for body in bodies])))

    async def __call__(self, request: Request) -> Response:
        answer = await self.answers(await request.body())
        return Response(answer.tobytes(), media_type="application/octet-stream")


def main(model: str, port: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stop.set())
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(folder))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(OnnxDeployment.bind(model))
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
