"""A case study from what was asked to its record: finds out what the machine can do, gives each side its day, round by round.

Called by cli/casestudy.py. Not aware of: the command line, how a study is shown.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from platform import processor, python_version
from time import monotonic, process_time, thread_time
from typing import Any, Protocol

import numpy as np
import onnxruntime
from msgspec import Struct

from dlproxy import __version__
from dlproxy.cores import usable_cores
from dlproxy.lab.casestudy import servers
from dlproxy.lab.casestudy.day import LOAD, PRIORITIES, Day, Kind, make_day
from dlproxy.lab.casestudy.figures import PIXELS
from dlproxy.lab.casestudy.record import DayRecord, Study, Turn, append
from dlproxy.lab.casestudy.replay import Item, Replayed, busiest_rps, replay
from dlproxy.lab.casestudy.servers import Counted, Served
from dlproxy.lab.casestudy.steps import FASTAPI, NAME, SIZE, TAKES, WHOLE, WORDS, Goods, configuration, ladder, possible
from dlproxy.lab.evaluate.server import process_cpu_s
from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import Interrupt, Watch
from dlproxy.lab.load.settings import LoadError
from dlproxy.steps.image import Decode, Normalise, Resize

CLIENTS = 8
TRIED = 64  # pictures by which the machine is measured
OBJECTIVES, LEAST_OBJECTIVE_MS = 8.0, 50.0  # times what one client alone gets at the median
SAMPLES = 40
STAT = Path("/proc/stat")
LEAST_REQUESTS = 50
SECOND_S = 1.0


class Asked(Struct, frozen=True, kw_only=True):
    """What to do. `ablation`: each step by itself and on top of those before, beside the two ends. `objective_ms`: None: by
    what the machine can do. `agent`: file of a trained one. `pictures`: so many, for a seed.
    """

    case: str
    out: Path
    rounds: int
    length_s: float
    seed: int
    ablation: bool
    objective_ms: float | None
    agent: Path | None
    goods: Goods
    pictures: Callable[[int, int], Sequence[Item]]
    kept: Callable[[str, Path], AbstractContextManager[None]]
    """Entered for a day of dlproxy's, with its control port: what it tells of itself goes into a folder."""


class Shown(Protocol):
    """Where one sees how far it is."""

    watch: Watch

    def part(self, name: str) -> None: ...


def sides(asked: Asked) -> list[tuple[str, frozenset[str]]]:
    """What takes turns besides FastAPI: names, and the steps of each."""
    names = possible(asked.goods, asked.agent)
    whole, rungs = (WHOLE, frozenset(names)), ladder(names)
    return [*rungs[:-1], whole] if asked.ablation else [rungs[0], whole]


def run(asked: Asked, interrupt: Interrupt, shown: Shown) -> Study:
    """What was measured until it was over or interrupted, which lies in the folder as runs.jsonl. Raises LoadError, ResultError
    and ServerError.
    """
    asked.out.mkdir(parents=True, exist_ok=True)
    shown.part("what this machine can do")
    record, day, pictures = _prepare(asked)
    path = asked.out / "runs.jsonl"
    append(path, record)
    study = Study(day=record, turns=[])
    turns: list[tuple[str, frozenset[str] | None]] = [(FASTAPI, None), *sides(asked)]
    with suppress(KeyboardInterrupt):  # at a second Ctrl-C: what was measured counts
        for number in range(asked.rounds):
            first = number % len(turns)
            for side, steps in [*turns[first:], *turns[:first]]:
                if interrupt.pressed:
                    return study
                shown.part(f"{side} ({number + 1} of {asked.rounds})")
                turn = _turn(asked, study, day, pictures, side, steps, number, interrupt, shown)
                if not interrupt.pressed:  # else it was cut short
                    study.turns.append(turn)
                    append(path, turn)
    return study


def _prepare(asked: Asked) -> tuple[DayRecord, Day, Sequence[Item]]:
    tried = asked.pictures(TRIED, asked.seed)
    service_ms = service_times(asked.goods, tried)
    with servers.fastapi(asked.goods) as served:
        _, alone = busiest_rps(served.door, cycle(tried), clients=1, seconds=2.0)
        busiest, _ = busiest_rps(served.door, cycle(tried), clients=CLIENTS, seconds=4.0)
    if not alone.count or busiest <= 0.0:
        raise LoadError("the shop's server answered nothing, so no load can be chosen")
    day = make_day(mean_rps=LOAD * busiest, length_s=asked.length_s, seed=asked.seed)
    if day.at_s.size < LEAST_REQUESTS:
        raise LoadError(f"a day of {asked.length_s:g} s has {day.at_s.size} requests on this machine; give a longer --length")
    pictures = asked.pictures(day.pictures, asked.seed)
    usual_ms = float(f"{max(OBJECTIVES * alone.quantile_s(0.5) * 1e3, LEAST_OBJECTIVE_MS):.1g}")
    record = DayRecord(
        case=asked.case,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={
            "dlproxy": __version__,
            "python": python_version(),
            "processor": processor(),
            "onnxruntime": onnxruntime.__version__,
        },
        cores=usable_cores(),
        seed=asked.seed,
        length_s=day.length_s,
        sale_s=day.sale_s,
        mean_rps=day.mean_rps,
        busiest_rps=busiest,
        objective_ms=asked.objective_ms or usual_ms,
        service_ms=service_ms,
        at_s=np.round(day.at_s, 5).tolist(),
        kind=day.kind.tolist(),
        picture=day.picture.tolist(),
        right=[pictures[number].right for number in day.picture.tolist()],
    )
    return record, day, pictures


def service_times(goods: Goods, items: Sequence[Item]) -> dict[str, float]:
    """Milliseconds on one core, alone, one item at a time: of each model, and of what is uploaded to the model's inputs."""
    decode, resize, normalise = Decode(), Resize(size=SIZE), Normalise()

    tokenize = None if goods.tokenizer is None else _tokenizer(goods.tokenizer)

    def inputs_of(number: int) -> dict[str, Any]:
        item = items[number % len(items)]
        pixels = normalise(resize(decode(np.array([item.jpeg], object))["image"])["image"])["image"]
        words = {} if tokenize is None else {"words": tokenize(np.array([item.text.encode()], object))["input_ids"]}
        return {TAKES: pixels, **words}

    found = {PIXELS: _median_ms(inputs_of)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    inputs = [inputs_of(number) for number in range(8)]
    for name, path in goods.files.items():
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found[name] = _median_ms(partial(_ask, session, inputs))
    return found


def _tokenizer(file: Path) -> Any:
    from dlproxy.steps.tokens import Tokenize  # which needs a package that pictures do not

    return Tokenize(file=str(file), max_length=WORDS, multiple_of=WORDS)


def _ask(session: onnxruntime.InferenceSession, inputs: Sequence[Mapping[str, object]], number: int) -> object:
    return session.run(None, inputs[number % len(inputs)])


def _median_ms(work: Callable[[int], object]) -> float:
    took = []
    for number in range(SAMPLES):
        begun = thread_time()  # of this thread, which computes it: what other programs do is not in it
        work(number)
        took.append(thread_time() - begun)
    return float(np.median(took)) * 1e3


def _turn(
    asked: Asked,
    study: Study,
    day: Day,
    pictures: Sequence[Item],
    side: str,
    steps: frozenset[str] | None,
    number: int,
    interrupt: Interrupt,
    shown: Shown,
) -> Turn:
    """One side's day."""
    if steps is None:
        with servers.fastapi(asked.goods) as served:
            replayed, cores, others = _replay(served, day, pictures, interrupt, shown)
        answered = int((replayed.answer >= 0).sum())
        counted = Counted({"classifier": answered, NAME: answered}, 0, [])
        files = {"classifier": "classifier"}
    else:
        tables = configuration(steps, asked.goods, objective_ms=study.day.objective_ms, agent=asked.agent)
        by_path = {str(path): name for name, path in asked.goods.files.items()}
        files = {name.removeprefix("models."): by_path[table["path"]] for name, table in tables.items() if "path" in table}
        folder = asked.out / side.replace("+ ", "with-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        with servers.dlproxy(tables, folder) as served:
            assert served.control_url is not None
            before = servers.counted(served.url, served.control_url)
            with asked.kept(served.control_url, folder):
                replayed, cores, others = _replay(served, day, pictures, interrupt, shown)
            counted = servers.counted(served.url, served.control_url).since(before)
    begun_at = datetime.now(UTC).timestamp() - (monotonic() - replayed.start_at)
    return Turn(
        round=number,
        side=side,
        steps=sorted(steps or ()),
        latency_ms=np.round(np.nan_to_num(replayed.latency_s * 1e3, nan=-1.0), 2).tolist(),
        answer=replayed.answer.tolist(),
        variants=replayed.variants,
        errors=replayed.errors,
        said=replayed.said,
        cores=cores,
        others=round(others, 3),
        rows=_rows(counted.rows, files),
        hits=counted.hits,
        decisions=[(round(at - begun_at, 1), model, words) for at, model, words in counted.decisions],
        generator_share=replayed.cpu_share,
        late_p99_ms=replayed.late_p99_s * 1e3,
    )


def _rows(rows: Mapping[str, int], files: Mapping[str, str]) -> dict[str, int]:
    """By files: of models by theirs, of all pipelines as the pictures that became pixels."""
    found: dict[str, int] = {}
    for name, count in rows.items():
        file = files.get(name, PIXELS)
        found[file] = found.get(file, 0) + count
    return found


def _replay(
    served: Served, day: Day, pictures: Sequence[Item], interrupt: Interrupt, shown: Shown
) -> tuple[Replayed, list[float], float]:
    """With the cores that the server had busy in each second, and those that other programs had on average."""
    seen: list[tuple[float, float]] = []
    ours_s, all_s = process_time() + process_cpu_s(served.pid), _machine_s()

    def watch(progress: Progress) -> bool:
        now = monotonic()
        if not seen or now - seen[-1][0] >= SECOND_S:
            seen.append((now, process_cpu_s(served.pid)))
        return shown.watch(progress) and not interrupt.pressed

    def items() -> Iterator[tuple[Item, int]]:
        for kind, picture in zip(day.kind.tolist(), day.picture.tolist(), strict=True):
            yield pictures[picture], PRIORITIES[Kind(kind)]

    replayed = replay(served.door, day.at_s, items(), day.length_s, watch)
    end = replayed.start_at + day.length_s + SECOND_S
    pairs = [pair for pair in pairwise(seen) if pair[1][0] <= end]
    cores = [round((cpu - before) / (at - since), 3) for (since, before), (at, cpu) in pairs]
    others_s = _machine_s() - all_s - (process_time() + process_cpu_s(served.pid) - ours_s)
    return replayed, cores, max(others_s / max(monotonic() - replayed.start_at, 1e-3), 0.0)


def _machine_s() -> float:
    """Seconds that all cores together were busy so far, for whomever; 0 where the system does not say."""
    try:
        user, nice, system, _, _, interrupts, soft, stolen = map(int, STAT.read_text("ascii").split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
