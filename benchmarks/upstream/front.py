"""A dlproxy that serves an upstream's model as `model`: `python -m benchmarks.upstream.front URL PORT MAX_BATCH CAPACITY`."""

import asyncio
import gc
import socket
import sys
from functools import partial
from time import monotonic

from dlproxy.config import HttpLimits
from dlproxy.instance.remote import RemoteInstance, RemoteSettings, calibrate_upstream, parse_address
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.serve.event_loop import loop_factory
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.http_server import HttpServer
from dlproxy.wire.oip_http import OipApp


async def serve(url: str, port: int, max_batch: int, capacity: int) -> None:
    instance = RemoteInstance("model-0", parse_address(url), RemoteSettings(capacity=capacity))
    await instance.start()
    calibration = await calibrate_upstream(instance)
    signature = instance.model.signature
    most = min(max_batch, instance.model.max_batch or max_batch) if signature.batched else 1
    lane = Lane(LaneKnobs(max_batch=most, max_queue_rows=8192), list(calibration.points))
    stats = ModelStats()
    driver = Driver(model="model", version="1", signature=signature, lane_on=lane.on, stats=stats, clock=monotonic)
    instance.on_lost = partial(driver.lose_instance, instance.name)
    instance.on_up = partial(driver.add_instance, instance)
    driver.add_instance(instance)
    catalog = Catalog()
    catalog.add(
        ServedModel(
            name="model",
            version="1",
            signature=signature,
            service=driver,
            stats=stats,
            max_batch=most,
            slo_s=None,
            is_ready=lambda: driver.ready,
            queued_rows=lambda: lane.queue.rows,
            batch_limit=lambda: lane.batching.limit,
        )
    )
    limits = HttpLimits()
    server = HttpServer(OipApp(catalog, limits, clock=monotonic, server_timing=True), limits)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    await server.start(listener)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
