"""`dlproxy demo`: serves the packaged digits model in a child process, sends it real images, shows what it read and how fast.

Called by cli/. Exit codes: 0 all answered (and Ctrl-C while it serves on), 1 errors, 2 the user can mend it, 130 interrupted.
Not aware of: how dlproxy works inside; it is an ordinary client of an ordinary server.
"""

import asyncio
import http.client
import json
import re
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from tqdm import tqdm

from dlproxy.hosts import authority, plain_host
from dlproxy.lab.demo_client import Load, LoadError, Results
from dlproxy.serve.event_loop import loop_factory

DIGITS = Path(__file__).with_name("digits")
START_S = 60.0  # far beyond a slow machine's second or two: only a server that hangs takes longer
STOP_S = 10.0
SHADES = " .:-=+*#%@"
OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class DemoError(Exception):
    """The demo cannot go on; `code` is its exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class _Addresses(Struct):
    """Where the child listens."""

    host: str
    http_port: int
    control_port: int


class _Started(Struct):
    process: Process
    addresses: _Addresses
    model: list[str]
    """What the server said about the model."""


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
        with tempfile.TemporaryFile() as log:
            server = await _start(log)
            try:
                return await self._with(server, log)
            finally:
                await _end(server.process)

    async def _with(self, server: _Started, log: BinaryIO) -> int:
        _say(*server.model, "")
        results = Results(self._labels)
        before = await asyncio.to_thread(_stats, server.addresses)
        interrupted = await self._send(server.addresses, results)
        if server.process.returncode is not None:
            raise DemoError(f"the server stopped during the load\n{_tail(log)}")
        after = await asyncio.to_thread(_stats, server.addresses)
        _say(*self._pictures(results), "", *_table(results, before, after, self._concurrency))
        if interrupted:
            return INTERRUPTED
        code = FAILED if results.errors or not results.answered else OK
        if self._keep_serving:
            _say("", *_invitation(server.addresses, self._images[0], self._labels[0]))
            self.serving_on = True
            await server.process.wait()
            raise DemoError(f"the server has stopped\n{_tail(log)}")
        return code

    async def _send(self, addresses: _Addresses, results: Results) -> bool:
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


async def _start(log: BinaryIO) -> _Started:
    """A ready server; on other ports than the usual ones if those are taken. Raises DemoError."""
    _say("starting: dlproxy serve digits.onnx")
    for ports in ([], ["--http-port", "0", "--control-port", "0"]):
        command = [sys.executable, "-m", "dlproxy", "serve", str(DIGITS / "digits.onnx"), *ports]
        # a session of its own: Ctrl-C in the terminal reaches us, and we end the child
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=log, start_new_session=True)
        try:
            async with asyncio.timeout(START_S):
                report = await _read_report(process)
            if report is not None:
                return _Started(process, *_addresses(report))
            code = await process.wait()
        except TimeoutError:
            await _end(process)
            raise DemoError(f"the server was not ready after {START_S:g} s\n{_tail(log)}") from None
        except BaseException:
            await _end(process)
            raise
        message = _tail(log)
        if ports or "cannot listen on" not in message:
            raise DemoError(f"the server did not start\n{message}", USER_ERROR if code == USER_ERROR else FAILED)
        _say("port 8000 or 8002 is in use; the demo picks free ones")
    raise AssertionError("the second round returns or raises")


async def _read_report(process: Process) -> list[str] | None:
    """What the server prints up to the line that says it is ready; None if it ends before."""
    assert process.stdout is not None
    lines: list[str] = []
    while line := (await process.stdout.readline()).decode():
        lines.append(line.rstrip())
        if line.startswith("ready"):
            return lines
    return None


def _addresses(report: list[str]) -> tuple[_Addresses, list[str]]:
    """Where the server listens, and the lines of its report before those that say so."""
    found = {
        match[1]: (number, match[2], int(match[3]))
        for number, line in enumerate(report)
        if (match := re.match(r"(inference|metrics) +http://(.+):(\d+)/", line))
    }
    if len(found) != 2:
        raise DemoError("the server did not report its addresses:\n" + "\n".join(report))
    number, host, http_port = found["inference"]
    return _Addresses(plain_host(host), http_port, found["metrics"][2]), report[:number]


async def _end(process: Process) -> None:
    """Let the child drain; if that is interrupted or takes too long, kill it."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _show(progress: "tqdm[Any]", results: Results) -> None:
    started_at = asyncio.get_running_loop().time()
    while True:
        elapsed_s = asyncio.get_running_loop().time() - started_at
        progress.set_postfix_str(f"{results.answered:,} answered", refresh=False)
        progress.update(min(elapsed_s, progress.total) - progress.n)
        await asyncio.sleep(0.1)


def _stats(addresses: _Addresses) -> dict[str, int]:
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


def _invitation(addresses: _Addresses, image: NDArray[np.uint8], label: int) -> list[str]:
    body = json.dumps({"inputs": [image.tolist()]}, separators=(",", ":"))
    http, control = (authority(addresses.host, port) for port in (addresses.http_port, addresses.control_port))
    return [
        f"Next steps: send the digit {label} with curl; probability number {label}, counting from 0, comes back close to 1.",
        "",
        f"curl -sw '\\n' http://{http}/predict/digits -d '{body}'",
        "",
        f"inference  http://{http}/v2/models/digits",
        f"metrics    http://{control}/metrics",
        "serving; press Ctrl-C to stop",
    ]


def _tail(log: BinaryIO) -> str:
    """The last of what the server wrote to stderr."""
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
