"""The autopilot on random scenarios, beside the best static configuration of each: `python -m benchmarks.autopilot`.

`--steady` asks instead whether it leaves things alone under a constant load, `--shared` how well it shares out cores, `--live`
runs servers. `--write` writes RESULTS.md, STEADY.md, SHARED.md or LIVE.md. About a minute for each scenario, seconds once its
static configurations are cached.
"""

import argparse
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.autopilot.compare import CACHE, Comparison, Sharing, Steadiness, compare, share, steady
from benchmarks.autopilot.live import MODELS, Phase, as_live_table, live_page
from benchmarks.autopilot.live import measure as measure_live
from benchmarks.autopilot.page import as_shared_table, as_steady_table, as_table, failures, line, page, shared_page, steady_page
from benchmarks.harness.options import Names, minute, options_of, positive, utc_now
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.running import INTERRUPTS, run
from dlproxy.policy.tuning import KNOB_POLICIES

FOLDER = Path(__file__).parent
SCENARIOS, STEADY_SCENARIOS, SHARED_SCENARIOS = 200, 20, 12
Found = Comparison | Steadiness | Sharing


def measure(options: argparse.Namespace, found: list[Found]) -> None:
    CACHE.mkdir(exist_ok=True)
    task = steady if options.steady else share if options.shared else partial(compare, again=options.again)
    name = "steady" if options.steady else "shared" if options.shared else "compared"
    failed = []
    with (
        ProcessPoolExecutor(options.jobs, initializer=_end_at_once) as pool,
        (CACHE / f"{name}-{options.policy}-seed{options.seed}.jsonl").open("wb") as kept,
    ):
        under_way = {pool.submit(task, number, options.seed, options.policy): number for number in numbers(options)}
        try:
            for future in as_completed(under_way):
                if error := future.exception():
                    failed.append(f"#{under_way[future]}: {error!r}")
                    continue
                found.append(future.result())
                print(line(found[-1]), flush=True)
                kept.write(msgspec.json.encode(found[-1]) + b"\n")
                kept.flush()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    found.sort(key=lambda one: one.number)
    if failed:
        raise BenchmarkError("\n".join(failed))


def _end_at_once() -> None:
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_DFL)


def numbers(options: argparse.Namespace) -> list[int]:
    few = STEADY_SCENARIOS if options.steady else SHARED_SCENARIOS
    count = options.scenarios or (few if options.steady or options.shared else SCENARIOS)
    return options.only or list(range(1, count + 1))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("autopilot", __doc__)
    parser.add_argument("--scenarios", type=positive(int), help=f"how many; {SCENARIOS} if nothing else is asked")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these scenarios instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=positive(int), default=2, help="processes; 2")
    parser.add_argument("--policy", choices=KNOB_POLICIES, default=KNOB_POLICIES[0])
    parser.add_argument("--steady", action="store_true", help="a constant load for 20 minutes: how many changes are kept")
    parser.add_argument("--shared", action="store_true", help="models that share two cores: what the shares bring")
    parser.add_argument("--live", action="store_true", help="servers on this machine")
    parser.add_argument("--models", action=Names, known=MODELS, help="of these models, with --live (default: all)")
    parser.add_argument("--again", action="store_true", help="run static configurations again that are in .cache")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md, STEADY.md, SHARED.md or LIVE.md")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write needs a run of everything: leave out --only")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.live:
        return _live(options)
    found: list[Found] = []
    code = run(lambda: measure(options, found))
    compared = [one for one in found if isinstance(one, Comparison)]
    steadied = [one for one in found if isinstance(one, Steadiness)]
    shared = [one for one in found if isinstance(one, Sharing)]
    if found:
        print(as_table(compared) if compared else as_steady_table(steadied) if steadied else as_shared_table(shared))
        print(failures(found))
    if code or not options.write:
        return code
    command = f"python -m benchmarks.autopilot --scenarios {len(found)} --seed {options.seed} --policy {options.policy}"
    about = {"policy": options.policy, "date": minute(utc_now())}
    if options.steady:
        (FOLDER / "STEADY.md").write_text(steady_page(steadied, **about, command=f"{command} --steady"), "utf-8")
    elif options.shared:
        (FOLDER / "SHARED.md").write_text(shared_page(shared, **about, command=f"{command} --shared"), "utf-8")
    else:
        (FOLDER / "RESULTS.md").write_text(page(compared, **about, command=command), "utf-8")
    return 0


def _live(options: argparse.Namespace) -> int:
    phases: list[Phase] = []
    code = run(lambda: measure_live(options.models, phases))
    if phases:
        print(as_live_table(phases))
    if options.write and not code:
        command = f"python -m benchmarks.autopilot --live --models {','.join(options.models)}"
        (FOLDER / "LIVE.md").write_text(live_page(phases, date=minute(utc_now()), command=command), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
