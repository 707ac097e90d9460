"""What it costs to be looked at: dlproxy with its dashboard open, and with traces, beside one that nobody looks at, in one run:
`python -m benchmarks.dashboard`.

The servers share one core, wrk and the readers have another. Exits with 1 if an answer is wrong or a goal is missed. `--write`
writes DASHBOARD.md.
"""

import http.client
import selectors
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from msgspec import Struct

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.live import Live, Served
from benchmarks.harness.options import add_rounds, minute, options_of, utc_now
from benchmarks.harness.processes import BenchmarkError, Children, Cores, stay_off_the_servers_core
from benchmarks.harness.running import find, wrk_is_missing
from benchmarks.harness.sample import ANSWER_SECONDS, Sample, sample_for
from benchmarks.harness.turns import beside_the_first, in_turn
from benchmarks.harness.wrk import Load, rate_and_cost, wrk_is_installed
from benchmarks.models import build_mlp

PAGE = Path(__file__).with_name("DASHBOARD.md")
TITLE = "A small network, one row a request, 64 connections"
CONNECTIONS = 64
PLAIN = "nobody looks"
ONE, TWENTY, TRACED = "a page is open", "20 pages are open", "traces, 1 % of the requests"
GOALS = {ONE: 0.98, TWENTY: 0.95, TRACED: 0.95}  # of the rate of who is not looked at


class Side(Struct):
    """A server, and how many pages of it are open. `rates` and `costs` (CPU seconds a request): of each round."""

    name: str
    served: Served
    pages: int = 0
    rates: list[float] = []
    costs: list[float] = []


class Collector(BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def open_pages(control_url: str, pages: int) -> Iterator[None]:
    """So many read what the dashboard is told. Raises BenchmarkError if one of them hears nothing."""
    address = control_url.removeprefix("http://")
    host, _, port = address.partition(":")
    heard = [0] * pages
    with ExitStack() as stack:
        selector, (wake, woken) = stack.enter_context(selectors.DefaultSelector()), socket.socketpair()
        stack.enter_context(closing(wake)), stack.enter_context(closing(woken))
        selector.register(woken, selectors.EVENT_READ, -1)
        for page in range(pages):
            reader = stack.enter_context(socket.create_connection((host, int(port)), ANSWER_SECONDS))
            reader.sendall(f"GET /dashboard/feed HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n".encode())
            selector.register(reader, selectors.EVENT_READ, page)

        def read() -> None:
            while True:
                for key, _ in selector.select():
                    if key.data < 0:
                        return
                    heard[key.data] += len(key.fileobj.recv(1 << 16))  # type: ignore[union-attr]

        reading = Thread(target=read, daemon=True)
        reading.start()
        yield
        wake.send(b"x")
        reading.join()
    if not all(heard):
        raise BenchmarkError(f"{heard.count(0)} of {pages} pages heard nothing")


def _check(side: Side, sample: Sample) -> None:
    """Raises BenchmarkError unless the answer is right."""
    with closing(http.client.HTTPConnection(side.served.url.removeprefix("http://"), timeout=ANSWER_SECONDS)) as connection:
        sample.ask(connection)
        sample.judge(connection)


def _round(side: Side, sample: Sample, seconds: int, cores: Cores, folder: Path) -> None:
    _check(side, sample)
    with open_pages(side.served.control_url, side.pages):
        load = Load(CONNECTIONS, seconds, sample)
        rate, cost = rate_and_cost(side.served.child, f"{side.served.url}{sample.path}", load, cores, folder)
    side.rates.append(rate)
    side.costs += cost


def _measure(sides: list[Side], sample: Sample, repeats: int, seconds: int, cores: Cores, folder: Path) -> Findings:
    for side in sides:  # warm-up
        _round(side, sample, 2, cores, folder)
        side.rates, side.costs = [], []
    for number in range(repeats):
        for side in in_turn(sides, number):
            _round(side, sample, seconds, cores, folder)
            print(f"  {side.name}: {side.rates[-1]:,.0f}/s", flush=True)
    findings = Findings(TITLE)
    beside_the_first(findings, sides, GOALS)
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("dashboard", __doc__)
    add_rounds(parser, seconds=4, repeats=7)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)
    if not wrk_is_installed():
        return wrk_is_missing()

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        stay_off_the_servers_core(cores)
        model, live = build_mlp(folder / "mlp.onnx"), Live(children, cores, folder)
        toml = f'[models.{model.stem}]\npath = "{model}"\n'
        with ExitStack() as stack:
            endpoint = stack.enter_context(collector())
            plain = stack.enter_context(live.serve(toml))
            traced = stack.enter_context(live.serve(f'{toml}[tracing]\nendpoint = "{endpoint}"\nsample = 0.01\n'))
            sides = [
                Side(PLAIN, plain),
                Side(ONE, plain, 1),
                Side(TWENTY, plain, 20),
                Side(TRACED, traced),
            ]
            yield _measure(sides, sample_for(model), options.repeats, options.seconds, cores, folder)

    return find("dashboard", measure, lambda found, machine: PAGE.write_text(_page(*found, machine)) if options.write else None)


def _page(findings: Findings, machine: str) -> str:
    about = f"""\
784-256-128-10 in FP32, binary tensors over HTTP/1.1, {CONNECTIONS} connections that stay open, by wrk. A page that is open is a
reader of `/dashboard/feed`; a browser's own work is not in it. Spans go to a collector that forgets them. What is kept of slow
requests (`dlproxy why`) and the dashboard's hour are in all of them. Ratios within a round, in which all are measured in turn:
medians, and the lowest to the highest."""
    lead = ["# What it costs to be looked at", "", f"`python -m benchmarks.dashboard` on {minute(utc_now())}; {machine}."]
    return as_page(lead, [(findings.title, about, findings.checks, findings.details)])


if __name__ == "__main__":
    sys.exit(main())
