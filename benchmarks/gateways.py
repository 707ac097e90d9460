"""One gateway beside several, in one run, with a load that shares the same cores: `python -m benchmarks.gateways`.

Nothing is pinned: with one gateway the load has the other cores, with as many as there are cores all share them. Exits with 1
if an answer is wrong or a goal is missed. `--write` writes GATEWAYS.md.
"""

import http.client
import json
import os
import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.live import Live, Served
from benchmarks.harness.options import add_rounds, minute, options_of, utc_now
from benchmarks.harness.processes import Children, Cores
from benchmarks.harness.running import find, wrk_is_missing
from benchmarks.harness.sample import ANSWER_SECONDS, Sample, sample_for
from benchmarks.harness.turns import in_turn, spread
from benchmarks.harness.wrk import Load, rate_and_cost, wrk_is_installed
from benchmarks.models import build_mlp

PAGE = Path(__file__).with_name("GATEWAYS.md")
TITLE = "A small network, JSON bodies of 784 numbers, 64 connections"
CONNECTIONS = 64
ANYWHERE = Cores(None, None)
GOAL = 0.8  # of what the cores allow: n / (1 + g) of one gateway, which has a core of its own


class Side(Struct):
    """A server of so many gateways. CPU seconds a request: of the server (`costs`) and of wrk (`load_costs`)."""

    gateways: int
    served: Served
    rates: list[float] = []
    costs: list[float] = []
    load_costs: list[float] = []


def json_sample(path: Path) -> Sample:
    """The same request as `sample_for`'s, all in JSON."""
    binary = sample_for(path)
    body = json.loads(binary.json_header)
    (tensor,) = body["inputs"]
    del tensor["parameters"]
    tensor["data"] = np.frombuffer(binary.tensor, np.float32).tolist()
    return replace(binary, json_header=json.dumps(body).encode(), tensor=b"")


def _round(side: Side, sample: Sample, seconds: int, folder: Path) -> None:
    with closing(http.client.HTTPConnection(side.served.url.removeprefix("http://"), timeout=ANSWER_SECONDS)) as connection:
        sample.ask(connection)
        sample.judge(connection)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    load = Load(CONNECTIONS, seconds, sample)
    rate, costs = rate_and_cost(side.served.child, f"{side.served.url}{sample.path}", load, ANYWHERE, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    side.rates.append(rate)
    side.costs += costs
    side.load_costs.append(used_s / (rate * seconds))


def _measure(sides: list[Side], sample: Sample, repeats: int, seconds: int, folder: Path) -> Findings:
    for side in sides:  # warm-up
        _round(side, sample, 2, folder)
        side.rates, side.costs, side.load_costs = [], [], []
    for number in range(repeats):
        for side in in_turn(sides, number):
            _round(side, sample, seconds, folder)
            print(f"  {side.gateways}: {side.rates[-1]:,.0f}/s", flush=True)
    return judged(sides, os.cpu_count() or 1)


def judged(sides: list[Side], cores: int) -> Findings:
    findings = Findings(TITLE)
    one, *others = sides
    for side in others:
        shares = [mine / its for mine, its in zip(side.load_costs, side.costs, strict=True)]
        ratios = [mine / its for mine, its in zip(side.rates, one.rates, strict=True)]
        most = [min(side.gateways, cores / (1.0 + share)) for share in shares]
        found = [ratio / most_ratio for ratio, most_ratio in zip(ratios, most, strict=True)]
        what = f"{side.gateways} gateways: rate by that of one, of what the cores allow"
        findings.at_least(what, GOAL, statistics.median(found), note=spread(found))
        findings.details.append(
            f"- {side.gateways} gateways: {statistics.median(ratios):.2f} times the rate of one ({spread(ratios)}); the load "
            f"takes {statistics.median(shares):.2f} of the server's CPU, so the cores allow {statistics.median(most):.2f} times"
        )
    for side in sides:
        us = statistics.mean(side.costs) * 1e6
        findings.details.append(
            f"- {side.gateways}: {statistics.median(side.rates):,.0f} requests/s, {us:.1f} us of CPU a request in the server, "
            f"{statistics.mean(side.load_costs) * 1e6:.1f} us in wrk"
        )
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("gateways", __doc__)
    add_rounds(parser, seconds=3, repeats=9)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)
    if not wrk_is_installed():
        return wrk_is_missing()

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        model, live = build_mlp(folder / "mlp.onnx"), Live(children, ANYWHERE, folder)
        toml = f'[models.{model.stem}]\npath = "{model}"\n'
        counts = [count for count in (1, 2, 4, 8, 12) if count <= max(os.cpu_count() or 1, 2)]
        with ExitStack() as stack:
            sides = [Side(count, stack.enter_context(live.serve(toml, [f"gateways = {count}"]))) for count in counts]
            yield _measure(sides, json_sample(model), options.repeats, options.seconds, folder)

    return find("gateways", measure, lambda found, machine: PAGE.write_text(_page(*found, machine)) if options.write else None)


def _page(findings: Findings, machine: str) -> str:
    about = f"""\
784-256-128-10 in FP32, everything in JSON over HTTP/1.1, {CONNECTIONS} connections that stay open, by wrk, which shares the
cores with the server. g is wrk's CPU by the server's for a request; one gateway has a core, and wrk what it needs of another;
n cores then allow at most n / (1 + g) times one gateway's rate. Ratios within a round, in which all are measured in turn:
medians, and the lowest to the highest."""
    lead = ["# Several gateways", "", f"`python -m benchmarks.gateways` on {minute(utc_now())}; {machine}."]
    return as_page(lead, [(findings.title, about, findings.checks, findings.details)])


if __name__ == "__main__":
    sys.exit(main())
