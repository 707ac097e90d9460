"""`dlproxy bench`: load on a server of the Open Inference Protocol, and the comparison of two results.

Not aware of: how load is made (lab/load), how a report looks (lab/report).
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.bar import Bar
from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.durations import seconds, span
from dlproxy.cli.terminal import FAILED, INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from collections.abc import Collection

    from dlproxy.lab.load.run import Interrupt, LoadTest
    from dlproxy.lab.load.settings import Settings
    from dlproxy.lab.report.result import Result, Trial

COMPARE = "compare"
OWN_HEADERS = (
    *("content-length", "content-type", "content-encoding", "transfer-encoding", "host", "connection", "expect", "upgrade"),
    "inference-header-content-length",
)


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    bench = commands.add_parser(
        "bench",
        help="send load to a server and measure it",
        usage="dlproxy bench URL --model NAME [options]\n       dlproxy bench compare A.json B.json",
        description="Send inference requests to any server of the Open Inference Protocol and measure how it answers. "
        "Latency counts from when a request was due.",
    )
    bench.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8000; or the word compare")
    bench.add_argument("files", nargs="*", default=[], metavar="FILE", help="with compare: two results that --json wrote")
    bench.add_argument("--model", metavar="NAME", help="the model to send requests to; optional if the server has only one")
    _add_load(bench.add_argument_group("load", "a closed loop of 64 clients, unless --rate or --trace asks for an open loop"))
    _add_requests(bench.add_argument_group("requests"))
    generator = bench.add_argument_group("generator and report")
    generator.add_argument("--processes", type=int, default=1, metavar="N", help="processes that send requests (default 1)")
    generator.add_argument(
        "--max-connections", type=int, metavar="N", help="limit on an open loop's connections, in total (default 1024)"
    )
    generator.add_argument("--drain", metavar="SECONDS", help="how long to wait for the last answers (default 5)")
    generator.add_argument("--objective", metavar="p99=20ms", help="answers within this latency count as good")
    generator.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    generator.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts")
    add_credentials(bench)
    bench.set_defaults(command=_bench)


def _add_load(load: Any) -> None:
    load.add_argument("--concurrency", type=int, metavar="N", help="closed loop: requests in flight at a time (default 64)")
    load.add_argument("--rate", type=float, metavar="R", help="open loop: requests per second, however slow the answers are")
    load.add_argument(
        "--arrivals", metavar="KIND", help="with --rate: poisson (default), constant, gamma:cv=4, mmpp:high=5, daily:peak=3"
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="open loop: arrival times from a CSV file")
    load.add_argument("--speed", type=float, metavar="X", help="with --trace: replay it X times as fast (default 1)")
    load.add_argument("--duration", metavar="SECONDS", help="time to measure (default 10, or the length of the trace)")
    load.add_argument("--warmup", metavar="SECONDS", help="load before the measurement begins (default 1; 0 for a trace)")
    load.add_argument(
        "--find-peak",
        metavar="p99=20ms",
        help="search for the highest Poisson rate that meets this objective; --rate says where to begin",
    )
    load.add_argument("--trials", type=int, metavar="N", help="with --find-peak: the most runs to make (default 30)")
    load.add_argument("--seed", type=int, default=0, help="the same seed gives the same arrivals and requests (default 0)")


def _add_requests(requests: Any) -> None:
    requests.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help=".npy with samples, or .npz with an array per input (default: made-up inputs)",
    )
    requests.add_argument("--rows", type=int, metavar="K", help="rows in each request (default 1)")
    requests.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:D,D",
        help="sizes of an input's variable dimensions, without the batch axis",
    )
    requests.add_argument("--keys", type=int, metavar="N", help="distinct requests (default 64, or every sample in the file)")
    requests.add_argument("--zipf", type=float, metavar="S", help="pick them by Zipf's law with this exponent, not in turn")
    requests.add_argument("--protocol", default="binary", metavar="KIND", help="tensors as binary (default) or json")
    requests.add_argument("--deadline", metavar="50ms", help="timeout parameter of each request")
    requests.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="sent with each request; may be repeated"
    )


def _bench(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.report.result import ResultError

    try:
        if args.url == COMPARE:
            return _compare(args.files, args.given)
        if args.files:
            raise LoadError(f"unexpected argument '{args.files[0]}': give one URL, and everything else as options")
        return _load(args)
    except (ConfigError, LoadError, ResultError) as error:
        complain(str(error))
        return USER_ERROR


def _compare(files: list[str], options: "Collection[str]") -> int:
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.report.compare import compare
    from dlproxy.lab.report.result import load

    if len(files) != 2:
        raise LoadError("compare takes two results: dlproxy bench compare A.json B.json")
    if options:
        raise LoadError(f"compare prints its comparison and has no options; omit {', '.join(sorted(options))}")
    say(compare(load(Path(files[0])), load(Path(files[1]))))
    return OK


def _load(args: argparse.Namespace) -> int:
    from dlproxy.lab.load.run import Interrupt, LoadTest
    from dlproxy.lab.report.result import ensure_writable

    settings = _settings(args)
    ensure_writable(args.json, args.html)
    test = LoadTest(settings)
    with Interrupt() as interrupt:
        if args.find_peak is not None:
            return _find_peak(args, test, interrupt)
        with Bar(test.settings.ramp_s + test.settings.length_s) as bar:
            result = test.run(interrupt, bar.watch)
        _report(result, args)
        if result.interrupted:
            return INTERRUPTED
        return OK if result.ok and not test.gave_up else FAILED


def _find_peak(args: argparse.Namespace, test: "LoadTest", interrupt: "Interrupt") -> int:
    from dlproxy.lab.load.peak import MAX_TRIALS, Search
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.report.wording import duration, rate

    objective_s = seconds(args.find_peak, "--find-peak")
    assert objective_s is not None
    most = MAX_TRIALS if args.trials is None else args.trials
    if most < 2:
        raise LoadError(f"--trials {most} is out of range: a search takes at least 2")
    number = 0

    def tell(trial: "Trial") -> None:
        nonlocal number
        number += 1
        p99 = "no answers" if trial.p99_ms is None else f"p99 {duration(trial.p99_ms)}"
        verdict = "passed" if trial.passed else f"failed: {trial.reason}"
        say(f"trial {number:>2}  {rate(trial.rate):>11} for {duration(trial.duration_s * 1e3):>7}  {p99:>12}  {verdict}")

    search = Search(test, objective_s, interrupt, tell, _keep_going)
    result = search.run(args.rate, most)
    say("")
    _report(result, args)
    say("")
    if result.peak_rps is None:
        say(f"peak         not found for p99 = {duration(objective_s * 1e3)}")
        return INTERRUPTED if result.interrupted else FAILED
    confirmed = f"with p99 = {duration(objective_s * 1e3)}, confirmed over {duration(result.duration_s * 1e3)}"
    say(f"peak         {result.peak_rps:,.6g} requests/s {confirmed}")
    return OK


def _settings(args: argparse.Namespace) -> "Settings":
    """Raises ConfigError and LoadError."""
    from dlproxy.config.secrets import with_key
    from dlproxy.lab.load.settings import DRAIN_S, MAX_CONNECTIONS, LoadError, Settings, check

    peak = args.find_peak is not None
    for option in ("concurrency", "trace", "arrivals", "objective"):
        if peak and getattr(args, option) is not None:
            raise LoadError(f"--find-peak tries Poisson rates against its own objective; omit --{option}")
    if args.trials is not None and not peak:
        raise LoadError("--trials only has a meaning with --find-peak")
    drain_s, asks = span(args.drain, "--drain"), credentials_of(args)
    settings = Settings(
        url=args.url,
        model=args.model,
        concurrency=args.concurrency,
        rate=args.rate,
        arrivals=args.arrivals,
        trace=args.trace,
        speed=args.speed,
        duration_s=span(args.duration, "--duration"),
        warmup_s=span(args.warmup, "--warmup"),
        drain_s=DRAIN_S if drain_s is None else drain_s,
        seed=args.seed,
        input=args.input,
        rows=args.rows,
        shapes=dict(shape(text) for text in args.shape),
        keys=args.keys,
        zipf=args.zipf,
        protocol=args.protocol,
        headers=tuple(with_key(dict(_headers(args.header)), asks.api_key).items()),
        ca_file=asks.ca_file,
        cert_file=asks.cert_file,
        key_file=asks.key_file,
        deadline_s=seconds(args.deadline, "--deadline"),
        objective_s=seconds(args.find_peak, "--find-peak") if peak else seconds(args.objective, "--objective"),
        processes=args.processes,
        max_connections=MAX_CONNECTIONS if args.max_connections is None else args.max_connections,
    )
    if "--seed" in args.given and args.input is not None and args.zipf is None and args.rate is None and not peak:
        raise LoadError("--seed changes nothing here: requests come from --input in turn, and no arrival times are drawn")
    if args.max_connections is not None and not settings.open_loop and not peak:
        raise LoadError("--max-connections is for an open loop; a closed loop has as many connections as its --concurrency")
    return check(settings)


def _headers(texts: list[str]) -> tuple[tuple[str, str], ...]:
    from dlproxy.lab.load.settings import LoadError

    headers = {}
    for name, value in map(_header, texts):
        if name.lower() in headers:
            raise LoadError(f"--header {name} is given twice; join its values with commas in one")
        headers[name.lower()] = name, value
    return tuple(headers.values())


def _header(text: str) -> tuple[str, str]:
    from dlproxy.lab.load.settings import LoadError

    name, colon, value = text.partition(":")
    fit = re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) and value.isascii() and value.isprintable()
    if not colon or not fit:
        raise LoadError(f"--header {text!r} is not a header; write it like x-tenant-id:shop")
    if name.lower() in OWN_HEADERS:
        raise LoadError(f"--header {name} cannot be given, because the load test sets it itself")
    return name, value.strip()


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An option like tokens:128 as a name and sizes. Raises LoadError."""
    from dlproxy.lab.load.settings import LoadError

    name, colon, sizes = text.rpartition(":")
    if not colon or not name or not re.fullmatch(r"\d{1,9}(,\d{1,9})*", sizes) or "0" in sizes.split(","):
        raise LoadError(f"--shape {text} is not understood; write it like --shape tokens:128 or --shape image:224,224,3")
    return name, tuple(map(int, sizes.split(",")))


def _report(result: "Result", args: argparse.Namespace) -> None:
    """Show it first, so that a file that cannot be written loses nothing."""
    from dlproxy.lab.report.result import save
    from dlproxy.lab.report.table import table

    say(table(result))
    if args.json is not None:
        save(result, args.json)
    if args.html is not None:
        from dlproxy.lab.report.html import save_html

        save_html(result, args.html)


def _keep_going(progress: Any) -> bool:
    return True
