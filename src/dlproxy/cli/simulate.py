"""`dlproxy simulate`: the production lanes in virtual time, under load of any kind, on any number of nodes; or a log replayed.

Not aware of: how time passes in it (lab/simulate), how a report looks (lab/report).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli import what_if
from dlproxy.cli.durations import seconds, span
from dlproxy.cli.parser import among, near
from dlproxy.cli.terminal import FAILED, INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig
    from dlproxy.lab.load.arrivals import Arrivals
    from dlproxy.lab.report.result import Result
    from dlproxy.lab.simulate.engine import LoopCosts
    from dlproxy.lab.simulate.run import ModelPlan, Scenario
    from dlproxy.lab.simulate.what_if import Today

RECORDED = "recorded"
OF_REPLAYS = {"--replay", "--objective", "--json", "--html"}
MOST_NODES = 100_000
MOST_KEYS = 10_000_000
MOST_ZIPF = 10.0  # of a million keys practically the first alone
MOST_REQUESTS = 1_000_000_000  # hours of a core


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    simulate = commands.add_parser(
        "simulate",
        help="run the same scheduling in virtual time",
        description="Run made-up requests through the production scheduling code in virtual time, to answer what-if questions.",
    )
    simulate.add_argument("models", nargs="*", metavar="MODEL", help="a model file, or NAME=PATH")
    simulate.add_argument("--config", type=Path, metavar="FILE", help="a dlproxy.toml with the models")
    simulate.add_argument("--slo", metavar="p99=20ms", help="latency objective of the models given on the command line")
    simulate.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAME=TIMES",
        help="service times: NAME=base=10ms,row=0.5ms,cv=0.1 or NAME=EVENT.dlog of a live run (default: load the model here "
        "and measure it)",
    )
    simulate.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="PIPELINE.STEP=WHAT",
        help="of a step of a pipeline in --config: how many items it runs for, how often its condition is true, how long its "
        "code takes: ocr.read=items=1-20,chance=0.3,time=5ms",
    )
    load = simulate.add_argument_group("load")
    load.add_argument("--rate", type=float, metavar="R", help="requests per second over all nodes")
    load.add_argument("--duration", metavar="SECONDS", help="virtual seconds (default 60, or the length of the trace)")
    load.add_argument(
        "--arrivals", metavar="KIND", help="with --rate: poisson (default), constant, gamma:cv=4, mmpp:…, daily:…"
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="arrival times from a CSV file instead")
    load.add_argument("--speed", type=float, metavar="X", help="with --trace: replay it X times as fast (default 1)")
    load.add_argument("--rows", type=int, default=1, metavar="K", help="rows in each request (default 1)")
    load.add_argument(
        "--mix",
        metavar="A=3,B=1",
        help="how much of the load each model gets (default: equal shares, but none for models that pipelines ask)",
    )
    load.add_argument("--deadline", metavar="50ms", help="deadline of each request, if earlier than its model's objective")
    load.add_argument(
        "--objective", metavar="20ms", help="answers within this latency count as good (default: the deadline, else --slo)"
    )
    load.add_argument("--keys", type=int, metavar="N", help="distinct requests for each model (default: all are distinct)")
    load.add_argument("--zipf", type=float, metavar="S", help="with --keys: pick by Zipf's law with this exponent, not in turn")
    load.add_argument("--seed", type=int, default=0, help="the same seed gives the same output (default 0)")
    _add_fleet(simulate)
    what_if.add_to(simulate)
    simulate.add_argument("--replay", type=Path, metavar="EVENT.dlog", help="replay a recorded live run instead, and compare")
    simulate.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    simulate.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts")
    simulate.set_defaults(command=_simulate)


def _add_fleet(simulate: argparse.ArgumentParser) -> None:
    fleet = simulate.add_argument_group("fleet")
    fleet.add_argument("--nodes", type=int, default=1, metavar="N", help="dlproxy nodes behind one balancer (default 1)")
    fleet.add_argument(
        "--balancer",
        metavar="NAME",
        help="with --nodes: peak-ewma (default), round-robin, weighted-round-robin, least-connections, fastest-response, "
        "consistent-hash, power-of-two, prequal",
    )
    fleet.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="FAULT",
        help="slow:node=node-0,at=10,for=30,factor=12, or die:… or fail:…; may be repeated",
    )
    fleet.add_argument(
        "--cache",
        metavar="s3-fifo:answers=1000",
        help="with --keys: remember answers, on each node so many of each model; or sieve, lru, lfu, w-tinylfu, gdsf",
    )
    fleet.add_argument(
        "--cold-start",
        metavar="5s",
        help="how long a further instance takes to start, for models with autoscale in --config (default 5s)",
    )
    fleet.add_argument(
        "--loop",
        metavar="read=20us,write=15us,path=100us,shared",
        help="time that a request takes on a node's event loop and on the network; shared: the loop and the batches run on "
        "one core; recorded: shared, with the times found in the EVENT.dlog of --service",
    )


def _simulate(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError
    from dlproxy.lab.load.arrivals import ArrivalsError
    from dlproxy.lab.report.result import ResultError, ensure_writable, save
    from dlproxy.lab.report.table import table
    from dlproxy.lab.simulate.faults import FaultError
    from dlproxy.telemetry.event_log import LogError

    try:
        ensure_writable(args.json, args.html)
        if what_if.wanted(args) and not args.replay:
            return what_if.run(args, lambda: _today(args))
        result = _replay(args) if args.replay else _run(args)
        say(table(result))
        if args.json is not None:
            save(result, args.json)
        if args.html is not None:
            from dlproxy.lab.report.html import save_html

            save_html(result, args.html)
    except (ArrivalsError, ConfigError, FaultError, LogError, ModelError, ResultError) as error:
        complain(str(error))
        return USER_ERROR
    if args.replay:
        return FAILED if result.warnings else OK
    return INTERRUPTED if result.interrupted else OK


def _replay(args: argparse.Namespace) -> "Result":
    from dlproxy.config import ConfigError
    from dlproxy.lab.simulate.recording import replayed

    unused = [*args.models, *sorted(args.given - OF_REPLAYS)]
    if unused:
        raise ConfigError(f"--replay takes its requests and its model from the recording; omit {', '.join(unused)}")
    return replayed(args.replay, objective_s=seconds(args.objective, "--objective"))


def _run(args: argparse.Namespace) -> "Result":
    from tqdm import tqdm

    from dlproxy.lab.simulate.run import simulate

    scenario = _scenario(args)
    form = "{l_bar}{bar}| {n:.1f}/{total:.1f} virtual seconds, {remaining} left"
    with tqdm(total=scenario.duration_s, bar_format=form, disable=None, leave=False, delay=1.0) as progress:
        return simulate(scenario, lambda seconds: progress.update(seconds - progress.n) and None)


def _today(args: argparse.Namespace) -> "Today":
    """The load that the options describe. Raises as _scenario does."""
    from msgspec import structs

    from dlproxy.lab.simulate.what_if import Today

    base = _scenario(args)
    measured = [model.parallel for model in base.models.values() if model.parallel is not None]
    parallel = args.parallel if args.parallel is not None else min(measured, default=base.parallel)

    def at(times: float, seed: int, slo_s: object) -> "Scenario":
        values = {**vars(args), "seed": seed}
        option = "rate" if args.trace is None else "speed"
        values[option] = (getattr(args, option) or 1.0) * times
        if args.trace is not None and args.duration is not None:
            values["duration"] = str((span(args.duration, "--duration") or 0.0) / times)
        arrivals, duration_s = _arrivals(argparse.Namespace(**values))
        return structs.replace(base, arrivals=arrivals, duration_s=duration_s, seed=seed, parallel=parallel)

    rows = dict.fromkeys(base.models, (args.rows, args.rows))
    return Today(at, rate=base.arrivals.rate, rows=rows, aims=args.objective is None and args.deadline is None)


def _scenario(args: argparse.Namespace) -> "Scenario":
    """Raises ArrivalsError, ConfigError, FaultError, LogError, ModelError."""
    from math import inf

    from dlproxy.config import ConfigError
    from dlproxy.lab.simulate import faults
    from dlproxy.lab.simulate.run import Scenario
    from dlproxy.policy.balancing import BALANCERS

    if not 1 <= args.nodes <= MOST_NODES:
        raise ConfigError(f"--nodes {args.nodes} is out of range: give 1 to {MOST_NODES}")
    if args.rows < 1:
        raise ConfigError(f"--rows {args.rows} is out of range: a request has at least one row")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is out of range: give 0 or more")
    balancer = args.balancer or "peak-ewma"
    if balancer not in BALANCERS:
        raise ConfigError(f"there is no balancer '{balancer}'; {near(balancer, BALANCERS) or among(list(BALANCERS))}")
    if args.balancer is not None and args.nodes == 1:
        raise ConfigError("--balancer chooses among nodes, and there is only one; give --nodes 2 or more")
    planned_faults = [faults.parse(text) for text in args.fault]
    arrivals, duration_s = _arrivals(args)
    configs = _models(args)
    for fault in planned_faults:
        if fault.at_s >= duration_s:
            raise ConfigError(f"fault '{fault.text}' would never begin: the run ends after {duration_s:g} s")
    shares = _shares(args.mix, configs)
    if shares and len(configs) == 1:
        raise ConfigError("--mix divides the load among several models, and there is only one")
    recorded = args.loop == RECORDED
    if recorded and len(configs) > 1:
        raise ConfigError("--loop recorded works with one model only, because each costs the loop a different time")
    models = _planned(args, configs, without_loop=recorded)
    for name, share in shares.items():
        models[name].share = share
    for name, model in models.items():
        if args.rows > model.most_rows and model.share:
            raise ConfigError(f"--rows {args.rows} is more than the {model.most_rows} that a request for model {name} may have")
    deadline_s = seconds(args.deadline, "--deadline")
    aims = {(model.plan.knobs.slo_s, model.quantile) for model in models.values() if model.share}
    objective_s, share = aims.pop() if len(aims) == 1 else (None, 0.99)
    if deadline_s is not None or args.objective is not None:
        objective_s, share = deadline_s if args.objective is None else seconds(args.objective, "--objective"), 0.99
    return Scenario(
        models=models,
        arrivals=arrivals,
        duration_s=duration_s,
        nodes=args.nodes,
        balancer=balancer,
        costs=_recorded_costs(models) if recorded else _loop_costs(args.loop),
        rows=args.rows,
        timeout_s=inf if deadline_s is None else deadline_s,
        objective_s=objective_s,
        objective_share=share,
        faults=planned_faults,
        seed=args.seed,
        zipf=args.zipf,
        **_repetition(args),
    )


def _repetition(args: argparse.Namespace) -> dict[str, Any]:
    """How many distinct requests there are, and the cache that knows them again."""
    from dlproxy.config import ConfigError
    from dlproxy.policy.caching import POLICIES

    if args.keys is None:
        for option, given in (("--zipf", args.zipf), ("--cache", args.cache)):
            if given is not None:
                raise ConfigError(f"{option} only has a meaning where requests repeat: give --keys N")
        return {}
    if not 1 <= args.keys <= MOST_KEYS:
        raise ConfigError(f"--keys {args.keys} is out of range: give 1 to {MOST_KEYS:,}")
    if args.zipf is not None and not 0.0 <= args.zipf <= MOST_ZIPF:
        raise ConfigError(f"--zipf {args.zipf:g} is out of range: give 0 to {MOST_ZIPF:g}")
    if args.cache is None:
        return {"keys": args.keys}
    policy, _, size = args.cache.partition(":")
    if policy not in POLICIES:
        raise ConfigError(f"there is no cache policy '{policy}'; {near(policy, POLICIES) or among(list(POLICIES))}")
    answers = size.removeprefix("answers=")
    if not answers.isdecimal() or not 10 <= int(answers) <= MOST_KEYS:
        raise ConfigError(f"--cache {args.cache}: say for how many answers, 10 to {MOST_KEYS:,}, as in {policy}:answers=1000")
    return {"keys": args.keys, "cache": (policy, int(answers))}


def _planned(args: argparse.Namespace, configs: "dict[str, ModelConfig]", *, without_loop: bool) -> "dict[str, ModelPlan]":
    from dlproxy.config import Config, ConfigError, load
    from dlproxy.config.pipelines import PIPELINE
    from dlproxy.instance.integrity.settings import read_trust
    from dlproxy.lab.simulate.run import START_S, plan_model, plan_pipeline

    trust = read_trust((load(args.config) if args.config else Config()).integrity)
    services = _named(args.service, configs, "--service")
    start_s = seconds(args.cold_start, "--cold-start")
    if start_s is None:
        start_s = START_S
    elif all(config.autoscale == "off" for config in configs.values()):
        raise ConfigError("--cold-start only has a meaning for a model that scales: set its autoscale in --config")
    pipelines = {name: config for name, config in configs.items() if config.path == PIPELINE}
    known = {f"{name}.{step}": config for name, config in pipelines.items() for step in config.steps}
    if args.step and not known:
        raise ConfigError("--step is for steps of pipelines, and --config names none")
    texts = _named(args.step, known, "--step")
    planned = {
        name: plan_model(name, config, services.get(name, ""), without_loop=without_loop, start_s=start_s, trust=trust)
        for name, config in configs.items()
        if name not in pipelines
    }
    for name, config in pipelines.items():
        of_steps = {step: texts[f"{name}.{step}"] for step in config.steps if f"{name}.{step}" in texts}
        plan = planned[name] = plan_pipeline(name, config, of_steps, configs.keys() - pipelines.keys())
        assert plan.pipeline is not None
        for step in plan.pipeline.steps.values():
            if step.model:
                planned[step.model].share = 0.0  # unless --mix says otherwise
    return planned


def _arrivals(args: argparse.Namespace) -> "tuple[Arrivals, float]":
    from math import inf

    from dlproxy.config import ConfigError
    from dlproxy.lab.load.arrivals import make_arrivals, read_trace

    duration_s = span(args.duration, "--duration")
    if duration_s is not None and not 0.0 < duration_s < inf:
        raise ConfigError(f"--duration {duration_s:g} is out of range: give seconds above 0")
    if args.trace is not None:
        if args.rate is not None or args.arrivals is not None:
            raise ConfigError("--trace says when requests arrive; omit --rate and --arrivals (--speed changes its rate)")
        trace = read_trace(args.trace, speed=1.0 if args.speed is None else args.speed)
        assert trace.duration_s is not None
        return trace, duration_s or trace.duration_s + 1e-9  # the last arrival belongs to it
    if args.speed is not None:
        raise ConfigError("--speed only has a meaning with --trace; change --rate instead")
    if args.rate is None:
        raise ConfigError("no load given; try --rate 500 --duration 60, or --trace FILE")
    arrivals, duration_s = make_arrivals(args.arrivals or "poisson", rate=args.rate, seed=args.seed), duration_s or 60.0
    if args.rate * duration_s > MOST_REQUESTS:
        raise ConfigError(
            f"--rate {args.rate:g} for {duration_s:g} s is out of range: give at most {MOST_REQUESTS:,} requests in all"
        )
    return arrivals, duration_s


def _models(args: argparse.Namespace) -> "dict[str, ModelConfig]":
    from dlproxy.cli.model_names import add_models
    from dlproxy.config import Config, load

    config = load(args.config) if args.config else Config()
    models = add_models(config.models, args.models, args.slo or "", command="simulate")
    return {
        name if len(versions) == 1 else f"{name}:{model.version}": model
        for name, versions in models.items()
        for model in versions
    }


def _named(pairs: list[str], known: "dict[str, ModelConfig]", option: str) -> dict[str, str]:
    from dlproxy.config import ConfigError

    named = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in known or not equals or not value:
            what = "step" if option == "--step" else "model"
            raise ConfigError(f"{option} {pair}: begin with a {what}'s name and '='; the {what}s are {', '.join(known)}")
        if name in named:
            raise ConfigError(f"{option} names {name} twice")
        named[name] = value
    return named


def _shares(text: str | None, known: "dict[str, ModelConfig]") -> dict[str, float]:
    from math import inf

    from dlproxy.config import ConfigError

    shares = {}
    for name, value in _named(text.split(",") if text else [], known, "--mix").items():
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = 0.0
        if not 0.0 < shares[name] < inf:
            raise ConfigError(f"--mix {text}: the share of {name} must be a number above 0")
    return shares


def _recorded_costs(models: "dict[str, ModelPlan]") -> "LoopCosts":
    from dlproxy.lab.simulate.engine import LoopCosts

    return LoopCosts(read_s=sum(model.arrival_s or 0.0 for model in models.values()), shares_core=True)


def _loop_costs(text: str | None) -> "LoopCosts":
    from dlproxy.config import ConfigError
    from dlproxy.lab.simulate.engine import LoopCosts

    parts = list(filter(None, (text or "").split(",")))
    shares_core = "shared" in parts
    costs = {}
    for name, _, value in (part.partition("=") for part in parts if part != "shared"):
        if name not in ("read", "write", "path"):
            raise ConfigError(
                f"--loop {text}: '{name}' is not understood; write it like read=20us,write=15us,path=100us,shared, or recorded"
            )
        costs[f"{name}_s"] = seconds(value, f"--loop {name}") or 0.0
    return LoopCosts(**costs, shares_core=shares_core)
