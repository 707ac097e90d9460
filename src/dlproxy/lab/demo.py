"""`dlproxy demo`: serves the packaged digits model in a child process, sends it real images, shows what it read and how fast.

Called by cli/. Exit codes: 0 all answered (and Ctrl-C while it serves on), 1 errors, 2 the user can mend it, 130 interrupted.
Not aware of: how dlproxy works inside; it is an ordinary client of an ordinary server.
"""

import asyncio
import http.client
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dlproxy.hosts import authority
from dlproxy.lab.child_server import Addresses, ChildServer, ServerError
from dlproxy.lab.demo_client import Load, LoadError, Results
from dlproxy.serve.event_loop import loop_factory

DIGITS = Path(__file__).with_name("digits")
SHADES = " .:-=+*#%@"
OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class DemoError(Exception):
    """The demo cannot go on; `code` is its exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def run(*, seconds: float, concurrency: int, keep_serving: bool) -> int:
    """Run the demo and return its exit code."""
    if not 0 < seconds < float("inf") or concurrency < 1:
        sys.stderr.write("dlproxy demo: --seconds must be above 0, and --concurrency at least 1\n")
        return USER_ERROR
    demo = _Demo(seconds, concurrency, keep_serving)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(demo.run())
    except (asyncio.CancelledError, KeyboardInterrupt):
        return OK if demo.serving_on else INTERRUPTED
    except (DemoError, LoadError) as error:
        sys.stderr.write(f"dlproxy demo: {error}\n")
        return error.code if isinstance(error, DemoError) else USER_ERROR


class _Demo:
    def __init__(self, seconds: float, concurrency: int, keep_serving: bool) -> None:
        self._seconds = seconds
        self._concurrency = concurrency
        self._keep_serving = keep_serving
        with np.load(DIGITS / "heldout.npz") as heldout:
            self._images: NDArray[np.uint8] = heldout["images"]
            self._labels: list[int] = heldout["labels"].tolist()
        self.serving_on = False

    async def run(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        server, addresses = await _start()
        try:
            return await self._with(server, addresses)
        finally:
            await _end(server)

    async def _with(self, server: ChildServer, addresses: Addresses) -> int:
        _say(*server.about, "")
        results = Results(self._labels)
        before = await asyncio.to_thread(_stats, addresses)
        interrupted = await self._send(addresses, results)
        if server.process.poll() is not None:
            raise DemoError(f"the server stopped during the load\n{server.tail()}")
        after = await asyncio.to_thread(_stats, addresses)
        _say(*self._pictures(results), "", *_table(results, before, after, self._concurrency))
        if interrupted:
            return INTERRUPTED
        code = FAILED if results.errors or not results.answered else OK
        if self._keep_serving:
            _say("", *_invitation(addresses, self._images[0], self._labels[0]))
            self.serving_on = True
            await asyncio.to_thread(server.process.wait)
            raise DemoError(f"the server has stopped\n{server.tail()}")
        return code

    async def _send(self, addresses: Addresses, results: Results) -> bool:
        """Whether it was interrupted, which ends the load early; what came back until then counts."""
        what = f"sending {len(self._labels)} handwritten digits over {self._concurrency} connections"
        load = Load(self._images, results)
        bar = "{desc}: {percentage:3.0f}% |{bar}| {postfix}"
        with tqdm(total=self._seconds, desc=what, bar_format=bar, disable=None) as progress:
            if progress.disable:
                _say(f"{what} for {self._seconds:g} s")
            showing = asyncio.create_task(_show(progress, results))
            try:
                await load.run(addresses.host, addresses.http_port, connections=self._concurrency, seconds=self._seconds)
            except asyncio.CancelledError:
                return True
            finally:
                showing.cancel()
            progress.update(self._seconds - progress.n)
        return False

    def _pictures(self, results: Results) -> list[str]:
        """A digit that was read right beside one that was not (or, if all were, the one that the model was least sure of)."""
        said = {image: probabilities for image, probabilities in enumerate(results.said) if probabilities is not None}
        if not said:
            return []
        hard = min(results.wrong or said, key=lambda image: max(said[image]))
        easy = next((image for image in said if image not in results.wrong), hard)
        pictures = []
        for image in dict.fromkeys((easy, hard)):
            sure = max(said[image])
            digit, label = said[image].index(sure), self._labels[image]
            verdict = "right" if digit == label else f"wrong, it is {label}"
            pictures.append([*_draw(self._images[image]), f"read as {digit}, {sure:.1%} sure", verdict])
        return ["", *("   ".join(f"   {line:<24}" for line in lines).rstrip() for lines in zip(*pictures, strict=True))]


async def _start() -> tuple[ChildServer, Addresses]:
    """A ready server; on other ports than the usual ones if those are taken. Raises DemoError."""
    _say("starting: dlproxy serve digits.onnx")
    for ports in ([], ["--http-port", "0", "--control-port", "0"]):
        server = ChildServer([str(DIGITS / "digits.onnx"), *ports])
        try:
            return server, await asyncio.to_thread(server.wait_until_ready)
        except ServerError as error:
            await _end(server)
            if ports or "cannot listen on" not in str(error):
                raise DemoError(str(error), USER_ERROR if error.mendable else FAILED) from None
        except BaseException:
            server.kill()  # whoever waits for it in the thread sees that
            raise
        _say("port 8000 or 8002 is in use; the demo picks free ones")
    raise AssertionError("the second round returns or raises")


async def _end(server: ChildServer) -> None:
    """Let the child drain; if that is interrupted, kill it."""
    try:
        await asyncio.to_thread(server.end)
    except asyncio.CancelledError:
        server.kill()
        raise


async def _show(progress: "tqdm[Any]", results: Results) -> None:
    started_at = asyncio.get_running_loop().time()
    while True:
        elapsed_s = asyncio.get_running_loop().time() - started_at
        progress.set_postfix_str(f"{results.answered:,} answered", refresh=False)
        progress.update(min(elapsed_s, progress.total) - progress.n)
        await asyncio.sleep(0.1)


def _stats(addresses: Addresses) -> dict[str, int]:
    connection = http.client.HTTPConnection(addresses.host, addresses.http_port, timeout=10)
    try:
        connection.request("GET", "/v2/models/digits/stats")
        stats: dict[str, int] = json.load(connection.getresponse())["model_stats"][0]
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        raise DemoError(f"the server's statistics cannot be read: {error}") from None
    finally:
        connection.close()
    return stats


def _table(results: Results, before: dict[str, int], after: dict[str, int], connections: int) -> list[str]:
    rows, batches = (after[key] - before[key] for key in ("inference_count", "execution_count"))
    latencies = [results.latency_s(quantile) * 1e3 for quantile in (0.5, 0.9, 0.99)] if results.answered else []
    milliseconds = " / ".join(f"{latency:.2f}" for latency in latencies) or "-"
    errors = ", ".join(f"{number} x {what}" for what, number in results.errors.items())
    table = [
        ("accuracy", f"{results.right / max(results.seen, 1):.2%}", f"{results.right} of {results.seen} held-out images"),
        ("requests/s", f"{results.requests_per_s:,.0f}", f"{results.answered:,} answered in {results.seconds:.1f} s"),
        ("latency", milliseconds, f"ms: p50 / p90 / p99, seen by {connections} clients on this machine"),
        ("mean batch", f"{rows / max(batches, 1):.1f}", f"rows; {batches:,} batches"),
        ("errors", f"{sum(results.errors.values())}", errors),
    ]
    width = max(len(value) for _, value, _ in table)
    return [f"{name:<12}{value:>{width}}  {note}".rstrip() for name, value, note in table]


def _draw(image: NDArray[np.uint8]) -> list[str]:
    """Eight lines; a pixel is two characters wide because characters are about twice as high as wide."""
    top = len(SHADES) - 1
    return ["".join(2 * SHADES[round(grey / 16 * top)] for grey in row) for row in image[0].tolist()]


def _invitation(addresses: Addresses, image: NDArray[np.uint8], label: int) -> list[str]:
    body = json.dumps({"inputs": [image.tolist()]}, separators=(",", ":"))
    http, control = (authority(addresses.host, port) for port in (addresses.http_port, addresses.control_port))
    return [
        f"Next steps: send the digit {label} with curl; probability number {label}, counting from 0, comes back close to 1.",
        "",
        f"curl -sw '\\n' http://{http}/predict/digits -d '{body}'",
        "",
        f"inference  http://{http}/v2/models/digits",
        f"dashboard  http://{control}/",
        f"metrics    http://{control}/metrics",
        "serving; press Ctrl-C to stop",
    ]


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
