"""`dlproxy casestudy`: a whole day of an online shop, served as teams do it and by dlproxy, side by side.

Not aware of: how days are made, sent and measured (lab/casestudy).
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from dlproxy.cli.bar import Bar
from dlproxy.cli.credentials import Credentials
from dlproxy.cli.durations import seconds, span
from dlproxy.cli.terminal import FAILED, INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlproxy.lab.casestudy.run import Asked

CASES = ("promotion", "advertisement")
USUAL_ROUNDS, QUICK_ROUNDS, STEPS_ROUNDS = 4, 2, 3
USUAL_S, QUICK_S, LEAST_S = 60.0, 15.0, 5.0
AROUND_S = 9.0  # of each day: its server starts, and the last answers are waited for


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    study = commands.add_parser(
        "casestudy",
        help="live through a shop's promotion day, on FastAPI and on dlproxy, step by step",
        description="An online shop's image classifier on the day of a promotion: the same requests to FastAPI, as teams serve "
        "it, and dlproxy, in turns on this machine. Writes report.html, RESULTS.md and what was measured (runs.jsonl). Takes "
        "a quarter of an hour, --quick two minutes; --steps, every step by itself and on top of others, an hour.",
    )
    study.add_argument(
        "case", choices=CASES, help="promotion: a picture in, its category out; advertisement: a picture and a text"
    )
    study.add_argument("--out", type=Path, default=Path("casestudy"), metavar="FOLDER", help="default: %(default)s")
    much = study.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="shorter days and fewer rounds: a look, no proof")
    much.add_argument("--steps", action="store_true", help="every step by itself and on top of those before")
    much.add_argument(
        "--full",
        action="store_true",
        help="that, of models that are trained first (needs dlproxy[learn,train,compress]; hours)",
    )
    study.add_argument("--rounds", type=int, metavar="N", help=f"in each, every side has its day (default {USUAL_ROUNDS})")
    study.add_argument("--length", metavar="60s", help=f"of a day (default {USUAL_S:g}s)")
    study.add_argument("--slo", metavar="p99=100ms", help="the objective (default: by what this machine can do)")
    study.add_argument("--seed", type=int, default=1, metavar="N", help="of the day and its pictures (default %(default)s)")
    study.add_argument("--agent", type=Path, metavar="FILE", help="an agent of dlproxy learn, for the step of that name")
    study.set_defaults(command=_casestudy)


def _casestudy(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.lab.casestudy import page
    from dlproxy.lab.casestudy.run import run, sides
    from dlproxy.lab.child_server import ServerError
    from dlproxy.lab.load.run import Interrupt
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.report.result import ResultError

    try:
        asked = _asked(args)
        days = 1 + len(sides(asked))
        about_s = asked.rounds * days * (asked.length_s + AROUND_S)
        say(f"rounds: {asked.rounds}, of {days} days of {asked.length_s:g} s each; about {max(about_s / 60.0, 1.0):.0f} min")
        with Interrupt() as interrupt, Bar(about_s) as bar:
            study = run(asked, interrupt, bar)
        if study.turns:
            paths = page.save(study, asked.out)
            for line in page.lines(study):
                say(line)
            say(f"written to {', '.join(map(str, paths))}")
    except ServerError as error:
        complain(str(error))
        return USER_ERROR if error.mendable else FAILED
    except (ConfigError, LoadError, ResultError) as error:
        complain(str(error))
        return USER_ERROR
    if interrupt.pressed:
        complain(f"stopped; {len(study.turns)} days were measured, and lie in {asked.out / 'runs.jsonl'}")
        return INTERRUPTED
    return OK


def _asked(args: argparse.Namespace) -> "Asked":
    """Raises ConfigError and LoadError."""
    from dlproxy.config import ConfigError
    from dlproxy.lab.casestudy import goods, servers
    from dlproxy.lab.casestudy.run import Asked

    if missing := servers.missing(args.case):
        raise ConfigError(f"the case study needs {', '.join(missing)}: pip install 'dlproxy[casestudy]'")
    usual = (
        (QUICK_ROUNDS, QUICK_S)
        if args.quick
        else (STEPS_ROUNDS, USUAL_S)
        if args.steps or args.full
        else (USUAL_ROUNDS, USUAL_S)
    )
    rounds = usual[0] if args.rounds is None else args.rounds
    length_s = span(args.length, "--length") or usual[1]
    slo_s = seconds(args.slo, "--slo")
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds} is out of range: give 1 or more")
    if length_s < LEAST_S:
        raise ConfigError(f"--length {args.length} is out of range: give {LEAST_S:g}s or more")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is out of range: give 0 or more")
    if args.agent is not None and not args.agent.is_file():
        raise ConfigError(f"--agent {args.agent}: there is no such file; dlproxy learn train agent-dqn writes one")
    if args.case == "advertisement":
        if args.full:
            raise ConfigError("--full trains the models of promotion; give --steps")
        shop, pictures = goods.of_advertisements(), goods.advertisements
    else:
        shop = goods.goods(goods.trained(args.out / "models", say)) if args.full else goods.goods()
        pictures = goods.pictures
    return Asked(
        case=args.case,
        out=args.out,
        rounds=rounds,
        length_s=length_s,
        seed=args.seed,
        ablation=args.steps or args.full,
        objective_ms=None if slo_s is None else slo_s * 1e3,
        agent=args.agent and args.agent.resolve(),
        goods=shop,
        pictures=pictures,
        kept=_kept,
    )


@contextmanager
def _kept(control_url: str, folder: Path) -> "Iterator[None]":
    """As `dlproxy record` and then `dlproxy report` would: day.jsonl and day.html. Raises LoadError and ResultError."""
    from dlproxy.cli.control_port import ControlError, ControlPort
    from dlproxy.cli.record import finish, follow
    from dlproxy.cli.report import LONGEST_MIN, hour_of
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.recording.recording import Writer
    from dlproxy.lab.report.hour import save_html

    port, over = ControlPort(control_url, Credentials()), Event()
    writer = Writer(folder / "day.jsonl", control_url)
    try:
        with ThreadPoolExecutor(1) as beside:
            recorded = beside.submit(follow, port, writer, over.is_set)
            try:
                yield
            finally:
                over.set()
        recorded.result()
        finish(port, writer)
        save_html(hour_of(port, LONGEST_MIN), folder / "day.html")
    except ControlError as error:
        raise LoadError(str(error)) from None
