"""Finds out how a model is best cut: measures it, plans, writes the parts, measures those, and proves that their answers stand.

Called by cli/split.py. Not aware of: the command line, what serves the parts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dlproxy.compress import CompressError
from dlproxy.compress.data import Array, read
from dlproxy.compress.recipe import Context, Source
from dlproxy.compress.recipes import graphs
from dlproxy.compress.split.files import PartFile, Transfer, part_files, save, sent_bytes
from dlproxy.compress.split.graph import Network, constants_of
from dlproxy.compress.split.handing import measured_handing
from dlproxy.compress.split.linears import Share, shared, shares_of
from dlproxy.compress.split.plan import Chain, Floats, Layout, choose, cut, shapes, stage_costs
from dlproxy.compress.split.probing import Examples, carried_by, node_seconds, seconds_of, session_of
from dlproxy.instance.runtime.declared import written
from dlproxy.instance.runtime.onnx import OnnxRuntime

SEGMENTS = 8  # of which each is measured as it will run, fused, before anything is planned
ROUNDS = 4  # of cutting, measuring the stages and cutting again
AGAIN = 0.01  # of the model's time, which nodes may take that run in several stages
NEAR = 0.1  # of the nodes, by which a cut is moved
EQUAL = 1e-4  # of the largest value
DRAWS, PROVED_ROWS = 3, (1, 2, 3)
MOST_SHARES = 4  # products: each takes processes of its own
LEAST_GAIN = 0.05  # of the model's time, for the same reason

Tell = Callable[[str], None]


class Asked(Struct, frozen=True, kw_only=True):
    """`stages`, `parts`: 0 for whatever is best on `cores`. `rows`: of a batch. `most_error`: of the largest value, what
    `transfer` may change. `least`: times as quick as one process. `most_weights`: bytes of a core's processes, 0 for any.
    """

    model: Path
    name: str
    data: Path | None = None
    stages: int = 0
    parts: int = 0
    cores: int = 0
    latency: bool = False
    rows: int = 1
    transfer: Transfer = ""
    most_error: float = EQUAL
    least: float = 1.15
    most_weights: int = 0


class Stage(Struct, frozen=True, kw_only=True):
    """A part that was made. `stage`: counted from 1; `lane`: its share of products, 0 for what is whole. `seconds`: of CPU
    for a batch, measured; `handing_s`: of its tensors; `bytes_in`: of a row.
    """

    name: str
    stage: int
    lane: int
    nodes: int
    seconds: float
    handing_s: float
    bytes_in: float
    weights: int


class Found(Struct, frozen=True, kw_only=True):
    """`whole_s`: the model's CPU time for a batch, its tensors included. `slowest`: the node that takes longest, with its share
    of that. `layout`: the chosen one, as measured. `error`: of the largest value, over `proved` batches. `tied`: bytes of
    weights that several parts have, stored once. `files`: none for replicas alone.
    """

    asked: Asked
    whole_s: float
    weights: int
    nodes: int
    slowest: tuple[str, float]
    layouts: list[Layout]
    layout: Layout
    gain: float
    stages: list[Stage] = field(default_factory=list)
    files: list[PartFile] = field(default_factory=list)
    error: float = 0.0
    proved: int = 0
    tied: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)


class _Tried(Struct, frozen=True):
    """Cut at these places: its stages, and the seconds of each piece of them."""

    layout: Layout
    places: list[int]
    stages: list[list[PartFile]]
    pieces: list[list[float]]


def _slowest(one: _Tried) -> float:
    return one.layout.slowest_s


def find(asked: Asked, folder: Path, made: Path, tell: Tell) -> Found:
    """`folder`: for what is temporary; `made`: for the parts. Raises CompressError for what cannot be cut, or does not pay."""
    return _Search(asked, folder, tell).found(made)


class _Search:
    def __init__(self, asked: Asked, folder: Path, tell: Tell) -> None:
        self.asked, self.folder, self.tell = asked, folder, tell
        tell("looking at the model")
        runtime = OnnxRuntime(asked.model, threads=1)
        samples: list[dict[str, Array]] = []
        if asked.data is not None:
            given = read(asked.data, inputs=runtime.signature.inputs, tell=tell).inputs
            count = len(next(iter(given.values())))
            samples = [{name: array[row : row + 1] for name, array in given.items()} for row in range(min(count, 64))]
        del runtime
        self.examples = Examples(asked.model, samples)
        if asked.rows > 1 and not self.examples.batched:
            raise CompressError(
                f"--batch {asked.rows}: its rows cannot share a batch ({self.examples.why_alone or 'it has no axis for them'})"
            )
        context = Context(folder=folder, training=None, metric="")  # type: ignore[arg-type]
        model = graphs.optimise(graphs.read(Source(asked.model), upgrade=True), context, "whole", "BASIC")
        graphs.name_nodes(model)
        self.feed = self.examples.batch(asked.rows)
        tell("running it to see its tensors")
        self.network = Network(model, carried_by(model, self.examples))
        self._refuse_what_is_no_graph()
        self.handing = measured_handing()
        self.sizes = {weight.name: len(weight.raw_data) for weight in model.graph.initializer}
        tell(f"profiling {len(self.network.nodes)} nodes")
        self.seconds = np.asarray(node_seconds(model, self.feed, folder))
        self.whole_s = self._whole_s()
        self.seconds *= self.whole_s / max(self.seconds.sum(), 1e-12)
        row_bytes = {name: one.row_bytes for name, one in self.network.carried.items()}
        self.shares = shares_of(model, row_bytes)
        self._calibrate()

    def _refuse_what_is_no_graph(self) -> None:
        network = self.network
        if not network.nodes:
            raise CompressError("it has no nodes")
        direct = [name for name in network.outputs if name not in network.producer]
        if direct:
            raise CompressError(f"its output '{direct[0]}' is an input or a constant, which no part gives")
        odd = [name for name in (*network.inputs, *network.outputs) if "|" in name]
        if odd:
            raise CompressError(f"'{odd[0]}' has a | in its name, which a pipeline cannot say")

    def _handing_s(self, name: str) -> float:
        carried = self.network.carried.get(name)
        if carried is None:  # an output without rows of its own, which no cut parts
            return 0.0
        inner = name in self.network.producer
        return self.handing.byte_s * self.asked.rows * sent_bytes(carried, self.asked.transfer if inner else "")

    def _whole_s(self) -> float:
        """Of the model in one process, its tensors handed over, too."""
        edges = [*self.network.inputs, *self.network.outputs]
        return seconds_of(session_of(self.network.model), self.feed) + self.handing.hop_s + sum(map(self._handing_s, edges))

    # What is planned with

    def _chosen_shares(self, parts: int) -> list[Share]:
        """Those that pay in so many parts, the dearest first."""
        if parts < 2:
            return []
        gains = {
            share.number: float(self.seconds[share.number]) - self._shared_s(share, parts)
            for share in self.shares
            if share.way(parts)
        }
        pay = [share for share in self.shares if gains.get(share.number, 0.0) >= LEAST_GAIN * self.whole_s]
        return sorted(pay, key=lambda share: -gains[share.number])[:MOST_SHARES]

    def _shared_s(self, share: Share, parts: int) -> float:
        """Of a product in parts: the longest way through it."""
        sent = 2 * self.handing.byte_s * self.asked.rows * share.sent_bytes(parts)
        return float(self.seconds[share.number]) / parts + sent + 2 * self.handing.hop_s

    def _seconds_in(self, parts: int) -> Floats:
        seconds = self.seconds.copy()
        for share in self._chosen_shares(parts):
            seconds[share.number] = self._shared_s(share, parts)
        return seconds

    def _chain(self, parts: int) -> Chain:
        network, seconds = self.network, self._seconds_in(parts)
        sources = [sorted({one for name in names for one in network.needed(name)[0]}) for names in network.reads]
        last = {name: number for number, names in enumerate(sources) for name in names}
        last |= dict.fromkeys(network.outputs, len(network.nodes))
        reads = [[(network.producer.get(name, -1), name, self._handing_s(name)) for name in names] for names in sources]
        sent = network.carried.keys() | set(network.outputs)
        gives = [
            [(last[name], self._handing_s(name)) for name in node.output if name in sent and name in last]
            for node in network.nodes
        ]
        inner = [place for place in range(1, len(network.nodes)) if self._may_cut(place, seconds)]
        return Chain(seconds, [0, *inner, len(network.nodes)], reads, gives)

    def _may_cut(self, place: int, seconds: Floats) -> bool:
        again = frozenset[int]()
        for name in self.network.crossing(place):
            if name not in self.network.carried:
                again |= self.network.needed(name)[1]
        return float(seconds[list(again)].sum()) <= AGAIN * float(seconds.sum())

    def _weights(self, start: int, end: int, parts: int) -> int:
        """Bytes of one process of this stage."""
        names = constants_of(self.network.model, self.network.nodes[start:end])
        split = sum(
            share.linear.weights.nbytes for share in self._chosen_shares(parts) if start <= share.number < end and parts > 1
        )
        return sum(self.sizes[name] for name in names) - split + split // parts

    def _layout(self, replicas: int, stages: int, parts: int) -> tuple[Layout, list[int]]:
        """As it is planned, with the places of its cuts. Raises CompressError where there are not so many stages."""
        chain = self._chain(parts)
        costs = stage_costs(chain)
        try:
            places = [chain.may[place] for place in cut(costs, stages)]
        except ValueError as error:
            why = "a cut is possible where all that crosses it is dense tensors with their rows on axis 0"
            raise CompressError(f"it cannot be cut into {stages} stages, but {error}: {why}") from None
        index = {place: number for number, place in enumerate(chain.may)}
        each = [self.handing.hop_s + float(costs[index[start], index[end]]) for start, end in pairwise(places)]
        weights = max(self._weights(start, end, parts) for start, end in pairwise(places))
        if stages * parts == 1:
            each = [self.whole_s]
        layout = Layout(
            replicas=replicas, stages=stages, parts=parts, slowest_s=max(each), latency_s=sum(each), weights=weights
        )
        return layout, places

    def _calibrate(self) -> None:
        """Nodes that run fused take other shares of the time than one by one: segments are measured as they will run."""
        chain = self._chain(1)
        costs = stage_costs(chain)
        for segments in range(min(SEGMENTS, len(chain.may) - 1), 1, -1):
            with suppress(ValueError):
                places = [chain.may[place] for place in cut(costs, segments)]
                break
        else:
            return
        self.tell(f"measuring {segments} segments")
        self._scale(places, self._measured(self._files(places, 1))[0])
        self.seconds *= self.whole_s / max(self.seconds.sum(), 1e-12)

    def _scale(self, places: Sequence[int], seconds: Sequence[float], parts: int = 1) -> None:
        planned = self._seconds_in(parts)
        for (start, end), measured_s in zip(pairwise(places), seconds, strict=True):
            self.seconds[start:end] *= measured_s / max(float(planned[start:end].sum()), 1e-12)

    # What is made

    def _files(self, places: Sequence[int], parts: int) -> list[list[PartFile]]:
        """By stage, of every piece of it."""
        network, lanes = self.network, [(number, 0) for number in range(len(self.network.nodes))]
        if chosen := self._chosen_shares(parts):
            model, lanes = shared(network.model, chosen, parts)
            graphs.name_nodes(model)
            network = Network(model, carried_by(model, self.examples))
        groups: list[tuple[list[int], int]] = []
        counts = []
        for start, end in pairwise(places):
            before = len(groups)
            numbers = [new for new, (old, _) in enumerate(lanes) if start <= old < end]
            for whole, run in groupby(numbers, key=lambda new: lanes[new][1] == 0):
                some = list(run)
                of_lane = {
                    lane: [new for new in some if lanes[new][1] == lane] for lane in sorted({lanes[one][1] for one in some})
                }
                groups += [(some, 0)] if whole else [(inside, lane) for lane, inside in of_lane.items()]
            counts.append(len(groups) - before)
        made = iter(part_files(network, network.parts(groups), self.asked.transfer))
        return [[next(made) for _ in range(count)] for count in counts]

    def _measured(self, stages: Sequence[Sequence[PartFile]]) -> tuple[list[float], list[list[float]]]:
        """CPU seconds of each stage, of shares side by side the longest, and of each piece."""
        values: dict[str, Array] = dict(self.feed)
        pieces = []
        for stage in stages:
            found = []
            for file in stage:
                session = session_of(file.model)
                fed = {one.name: values[one.name] for one in session.get_inputs()}
                found.append(seconds_of(session, fed))
                values |= zip([one.name for one in session.get_outputs()], session.run(None, fed), strict=True)
            pieces.append(found)
        return [_longest(stage, found) for stage, found in zip(stages, pieces, strict=True)], pieces

    def found(self, made: Path) -> Found:
        asked = self.asked
        layouts = self._layouts()
        chosen = choose(layouts, latency=self._by_latency)
        if chosen.stages * chosen.parts == 1:
            return self._with(layouts, chosen)
        self.tell(f"cutting: {chosen.stages} stages, products in {chosen.parts}")
        layout, stages, pieces = self._refined(chosen)
        self.whole_s = min(self.whole_s, self._whole_s())  # again, as close to the stages as can be
        self._check_gain(layout)
        files = [file for stage in stages for file in stage]
        flat = [one for stage in pieces for one in stage]
        numbers = [number for number, stage in enumerate(stages, 1) for _ in stage]
        names = _names(asked.name, stages)
        described = [
            self._stage(name, number, file, seconds)
            for name, number, file, seconds in zip(names, numbers, files, flat, strict=True)
        ]
        found = self._with(layouts, layout, stages=described, files=files)
        tied = save(files, names, made)
        self.tell("comparing answers")
        error, proved = self._proved([made / f"{name}.onnx" for name in names])
        return replace(found, tied=tied, error=error, proved=proved)

    @property
    def _by_latency(self) -> bool:
        return self.asked.latency or (self.asked.stages < 2 and self.asked.parts > 1)

    def _with(self, layouts: list[Layout], layout: Layout, **more: Any) -> Found:
        slowest = int(self.seconds.argmax())
        node = self.network.nodes[slowest]
        gain = self.whole_s / layout.latency_s if self._by_latency else self.whole_s * layout.batches_per_s
        specs = self.examples.signature.inputs
        return Found(
            asked=self.asked,
            whole_s=self.whole_s,
            weights=sum(self.sizes.values()),
            nodes=len(self.network.nodes),
            slowest=(f"{node.op_type} {node.name}", float(self.seconds[slowest] / self.seconds.sum())),
            layouts=layouts,
            layout=layout,
            gain=gain,
            inputs={spec.name: written(spec) for spec in specs if spec.name in self.network.inputs},
            outputs=self.network.outputs,
            **more,
        )

    def _layouts(self) -> list[Layout]:
        asked = self.asked
        fixed = (1, max(asked.stages, 1), max(asked.parts, 1))
        tried = list(shapes(asked.cores, stages=asked.stages, parts=asked.parts)) if asked.cores else [fixed]
        if not tried:
            raise CompressError(f"{asked.stages or 1} stages of {asked.parts or 1} parts take more than {asked.cores} cores")
        found, why = [], ""
        for replicas, stages, parts in tried:
            if parts > 1 and not self._chosen_shares(parts):
                why = self._no_share(parts)
                continue
            try:
                found.append(self._layout(replicas, stages, parts)[0])
            except CompressError as error:
                why = str(error)
        light = [one for one in found if not asked.most_weights or one.weights <= asked.most_weights]
        if found and not light:
            least = min(one.weights for one in found) / 2**20
            raise CompressError(
                f"the processes of a core would hold {least:.0f} MiB of weights at least: allow that, or more cores"
            )
        if not light:
            raise CompressError(why)
        return light

    def _no_share(self, parts: int) -> str:
        if not self.shares:
            return "it has no product with a constant matrix (MatMul, Gemm) that could be computed in parts"
        share = max(self.shares, key=lambda one: float(self.seconds[one.number]))
        took_s, in_parts_s = float(self.seconds[share.number]), self._shared_s(share, parts)
        return (
            f"no product is so large that {parts} parts would pay: the longest, node {self.network.nodes[share.number].name}, "
            f"takes {took_s * 1e3:.3g} ms of {self.whole_s * 1e3:.3g}, and would take {in_parts_s * 1e3:.3g} ms with "
            "the way to other processes and back"
        )

    def _refined(self, chosen: Layout) -> tuple[Layout, list[list[PartFile]], list[list[float]]]:
        """Cut, measure, and cut again with what was seen; of those the best as measured."""
        best = self._tried(chosen, self._layout(chosen.replicas, chosen.stages, chosen.parts)[1])
        seen = [best.places]
        for _ in range(ROUNDS - 1):
            _, places = self._layout(chosen.replicas, chosen.stages, chosen.parts)
            if places in seen:
                break
            seen.append(places)
            best = min(best, self._tried(chosen, places), key=_slowest)
        for places in self._beside(best.places):
            if places not in seen:
                seen.append(places)
                best = min(best, self._tried(chosen, places), key=_slowest)
        return best.layout, best.stages, best.pieces

    def _tried(self, chosen: Layout, places: list[int]) -> "_Tried":
        stages = self._files(places, chosen.parts)
        seconds, pieces = self._measured(stages)
        each = [one + self._stage_handing_s(stage) for one, stage in zip(seconds, stages, strict=True)]
        self.tell(f"stages measured: {', '.join(f'{one * 1e3:.3g}' for one in each)} ms")
        self._scale(places, seconds, chosen.parts)
        return _Tried(replace(chosen, slowest_s=max(each), latency_s=sum(each)), places, stages, pieces)

    def _beside(self, places: Sequence[int]) -> list[list[int]]:
        """With one cut moved to the next place, on either side, that fewer tensors cross: there no fused nodes are parted."""
        found = []
        for number, place in enumerate(places[1:-1], 1):
            for step in (-1, 1):
                other = place + step
                while places[number - 1] < other < places[number + 1] and abs(other - place) <= NEAR * len(self.network.nodes):
                    if len(self.network.crossing(other)) == 1:
                        found.append([*places[:number], other, *places[number + 1 :]])
                        break
                    other += step
        return found

    def _stage_handing_s(self, stage: Sequence[PartFile]) -> float:
        """Of all its pieces one after the other; of those side by side, of the longest."""
        return _longest(stage, [self._file_handing_s(file) for file in stage])

    def _file_handing_s(self, file: PartFile) -> float:
        return self.handing.seconds(self.asked.rows * sum(file.row_bytes))

    def _stage(self, name: str, number: int, file: PartFile, seconds: float) -> Stage:
        return Stage(
            name=name,
            stage=number,
            lane=file.part.lane,
            nodes=len(file.model.graph.node),
            seconds=seconds,
            handing_s=self._file_handing_s(file),
            bytes_in=file.row_bytes[0],
            weights=sum(len(weight.raw_data) for weight in file.model.graph.initializer),
        )

    # Whether it may stand

    def _check_gain(self, layout: Layout) -> None:
        found = self._with([], layout)
        if found.gain >= self.asked.least:
            return
        name, share = found.slowest
        limit = f"; node {name} alone takes {share:.0%} of the time, so no cut can be more than {1 / share:.2g} times as quick"
        what = "quick, for one batch," if self._by_latency else "much throughput"
        raise CompressError(
            f"the slowest stage takes {layout.slowest_s * 1e3:.3g} ms of {self.whole_s * 1e3:.3g}: {found.gain:.2f} times as "
            f"{what} as one process, and {self.asked.least:g} was asked (--target)"
            + (limit if share > 1 / (2 * layout.stages) else "")
        )

    def _proved(self, paths: Sequence[Path]) -> tuple[float, int]:
        """The largest difference of an answer, of the largest value, and over how many batches. Raises CompressError."""
        whole = OnnxRuntime(self.asked.model, threads=1)
        parts = [OnnxRuntime(path, threads=1) for path in paths]
        worst, count = 0.0, 0
        for rows in sorted({*PROVED_ROWS, self.asked.rows}) if self.examples.batched else (1,):
            for draw in range(DRAWS):
                free = self.examples.other_size() if draw == DRAWS - 1 and self.examples.stretches else 0
                feed = self.examples.batch(rows, draw=draw + 1, free=free)
                right = dict(zip(_outputs(whole), whole.run([feed[name] for name in _inputs(whole)]), strict=True))
                worst = max(worst, _difference(right, _through(parts, feed)))
                count += 1
        bound = self.asked.most_error if self.asked.transfer else EQUAL
        if not worst <= bound:
            what = f"--transfer {self.asked.transfer} changes" if self.asked.transfer else "the parts change"
            allowed = f"--max-error {bound:g} allows" if self.asked.transfer else f"{bound:g} is allowed"
            raise CompressError(f"{what} answers by {worst:.2g} of the largest value, and {allowed}: nothing is written")
        return worst, count


def _longest(stage: Sequence[PartFile], seconds: Sequence[float]) -> float:
    """Of pieces one after the other, but for shares, which are side by side."""
    total = 0.0
    for whole, run in groupby(zip(stage, seconds, strict=True), key=lambda pair: pair[0].part.lane == 0):
        some = [one for _, one in run]
        total += sum(some) if whole else max(some)
    return total


def _names(name: str, stages: Sequence[Sequence[PartFile]]) -> list[str]:
    """Of models: by stage, and by piece where it has several."""
    names = []
    for number, stage in enumerate(stages, 1):
        step, last = 0, 0
        for file in stage:
            lane = file.part.lane
            step += lane == 0 or last == 0 or lane <= last
            last = lane
            piece = f"-{step}" + (f"-share{lane}" if lane else "") if len(stage) > 1 else ""
            names.append(f"{name}-stage{number}{piece}")
    return names


def _inputs(runtime: OnnxRuntime) -> list[str]:
    return [spec.name for spec in runtime.signature.inputs]


def _outputs(runtime: OnnxRuntime) -> list[str]:
    return [spec.name for spec in runtime.signature.outputs]


def _through(parts: Sequence[OnnxRuntime], feed: Mapping[str, Array]) -> dict[str, Array]:
    values = dict(feed)
    for part in parts:
        values |= zip(_outputs(part), part.run([values[name] for name in _inputs(part)]), strict=True)
    return values


def _difference(right: Mapping[str, Array], given: Mapping[str, Any]) -> float:
    """The largest, of the largest value; infinite where other than floats differ, or shapes."""
    worst = 0.0
    for name, one in right.items():
        other = given[name]
        if one.shape != other.shape or one.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(one, other) else np.inf)
            continue
        off = np.abs(one.astype(np.float64) - other).max(initial=0.0)
        worst = max(worst, float(off / max(float(np.abs(one).max(initial=0.0)), 1e-30))) if np.isfinite(off) else np.inf
    return worst
