"""Rules: the batch times that were measured, a queueing model on top, and the knobs that this says miss the objective least.

A KnobPolicy. Not aware of: whether its proposals are tried, and how.
"""

from collections.abc import Iterator, Mapping
from math import exp, expm1, inf

from msgspec import Struct

from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from dlproxy.policy.tuning.window import Window, fitted

Way = tuple[int, int]  # instances, threads of each

NEWEST = 0.5  # weight of the newest window in what batches of the present way cost
ANOTHER = 1.5  # times what batches took before: the model or the machine has changed
FEWEST_BATCHES = 5  # in a window that tells what batches cost
PARALLEL = 0.7  # of a batch's work can be shared among threads, as long as nothing is known (Amdahl's law)
PAYS = 0.005  # of the requests: smaller promised gains are within what the model does not know
DESPERATE = 5.0  # times what may miss the objective: from there on ways are tried of which nothing good is known
CLOSE = 1.2  # times as many misses as in the best way that is known: a guess that is so near may be wrong
ROOM = 1.2  # times the capacity: worth a change even while the objective is met
SPREAD = 0.15  # by which the lane takes a batch's p99 to lie above its mean, or so
SERVICE_CV2 = 0.1  # of batch times around their line
EASY = 0.3  # of what is tolerated: fewer cores must be predicted to miss no more than this


class Cost(Struct, frozen=True):
    """L(b) = base_s + row_s * b seconds of a batch, in one way of running."""

    base_s: float
    row_s: float

    def seconds(self, rows: float) -> float:
        return self.base_s + self.row_s * rows

    def times(self, factor: float) -> "Cost":
        return Cost(self.base_s * factor, self.row_s * factor)


class Load(Struct, frozen=True):
    """Requests per second, rows of each, dispersion of their arrivals (1: Poisson)."""

    rate: float
    rows: float
    dispersion: float


def load_in(window: Window) -> Load:
    rows = window.rows / window.answered if window.answered else 1.0
    return Load(window.arrived / window.seconds, max(rows, 1.0), max(window.dispersion, 1.0))


def share_missed(cost: Cost, instances: int, load: Load, objective_s: float, *, max_batch: int, wait_s: float = 0.0) -> float:
    """Of the requests, those late or refused: what spills over a queue that holds no more than can be in time.

    A Brownian motion between two barriers (Harrison, "Brownian Motion and Stochastic Flow Systems", 1985, 5.4): arrivals of
    this dispersion, batches of the size that lane.batching makes, room for what is done before the objective has passed.
    """
    batch = batch_within(cost, objective_s, max_batch)
    batch_s = cost.seconds(batch)
    slack_s = objective_s - batch_s - wait_s
    if slack_s <= 0.0:
        return 1.0
    capacity = instances * batch / batch_s / load.rows
    if load.rate <= 0.0:
        return 0.0
    drift = load.rate - capacity
    variance = load.rate * load.dispersion + min(load.rate, capacity) * SERVICE_CV2
    room = capacity * slack_s
    exponent = 2.0 * drift * room / variance
    if abs(exponent) < 1e-6:
        return min(variance / (2.0 * room * load.rate), 1.0)
    if exponent > 0.0:
        return min(drift / load.rate / -expm1(-exponent), 1.0)
    return min(-drift / load.rate * exp(exponent) / -expm1(exponent), 1.0)


def batch_within(cost: Cost, objective_s: float, max_batch: int) -> int:
    """The largest batch that the lane makes at this objective."""
    if cost.row_s <= 0.0:
        return max_batch
    return int(max(min((SLO_SHARE * objective_s - cost.base_s) / cost.row_s, max_batch), 1))


class CostBook:
    """What batches cost in each way of running that was seen, and a guess at the others."""

    def __init__(self) -> None:
        self._seen: dict[Way, Cost] = {}
        self._last: Way | None = None

    def observe(self, way: Way, window: Window) -> None:
        if sum([batches for batches, _ in window.costs.values()]) < FEWEST_BATCHES:
            return
        now, before = Cost(*fitted(window.costs)), self._seen.get(way)
        if before is not None:
            took_s = sum([seconds for _, seconds in window.costs.values()])
            expected_s = sum([batches * before.seconds(rows) for rows, (batches, _) in window.costs.items()])
            if not 1.0 / ANOTHER < took_s / expected_s < ANOTHER:
                self._seen.clear()  # what was seen of other ways tells nothing any more
            else:
                keep = 1.0 - NEWEST
                now = Cost(NEWEST * now.base_s + keep * before.base_s, NEWEST * now.row_s + keep * before.row_s)
        self._seen[way] = now
        self._last = way

    def knows(self, way: Way) -> bool:
        return way in self._seen

    def cost(self, way: Way, cores: int) -> Cost | None:
        """As seen, or as the one seen last is to be scaled to these threads on these cores."""
        if way in self._seen or self._last is None:
            return self._seen.get(way)
        known = next((other for other in self._seen if other[1] == way[1]), self._last)
        factor = _stretch(way, cores) / _stretch(known, cores)
        return self._seen[known].times(factor)

    def missed(self, knobs: Knobs, load: Load, space: Space) -> float:
        """Share of the requests, predicted. Of a way that has been seen, or after any has."""
        way = int(knobs["instances"]), int(knobs["threads"])
        cost = self.cost(way, space.cores)
        assert cost is not None
        wait_s = float(knobs["max_wait_s"])
        batch = batch_within(cost, space.objective_s, int(knobs["max_batch"]))
        wait_s = min(wait_s, batch / max(load.rate * load.rows, 1e-9))
        return share_missed(cost, way[0], load, space.objective_s, max_batch=int(knobs["max_batch"]), wait_s=wait_s)

    def capacity(self, knobs: Knobs, space: Space) -> float:
        """Rows per second that can be done with these. Under the same condition."""
        way = int(knobs["instances"]), int(knobs["threads"])
        cost = self.cost(way, space.cores)
        assert cost is not None
        batch = batch_within(cost, space.objective_s, int(knobs["max_batch"])) if space.objective_s < inf else 1
        return way[0] * batch / cost.seconds(batch)


def _stretch(way: Way, cores: int) -> float:
    """Of a batch on one thread alone."""
    instances, threads = way
    return (1.0 - PARALLEL + PARALLEL / threads) * max(instances * threads / cores, 1.0)


class Rules:
    """A KnobPolicy."""

    def __init__(self) -> None:
        self.book = CostBook()

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        way = int(knobs["instances"]), int(knobs["threads"])
        self.book.observe(way, window)
        if not self.book.knows(way) or not window.arrived:
            return None
        load = load_in(window)
        options = [option for option in self._options(knobs, space) if space.allows(option[0], knobs)]
        if space.prefers == "rate":
            return self._quickest(options, knobs, space)
        here = self.book.missed(knobs, load, space)
        if window.missed > space.tolerated * window.ended:
            better = self._better(options, here, load, space, _cores(knobs))
            seen = max(here, window.missed / window.ended)
            if better is not None or seen < DESPERATE * space.tolerated:
                return better
            return self._unknown(options, seen, load, space) or _other_order(knobs, space)
        if space.prefers == "cores":
            return self._cheaper(options, knobs, load, space)
        return self._roomier(options, knobs, load, space)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self.book.observe((int(knobs["instances"]), int(knobs["threads"])), window)

    # Which knobs there are

    def _options(self, knobs: Knobs, space: Space) -> Iterator[tuple[Knobs, str]]:
        """The best that is known of batching, ways of running, and both together; each with the reason for it."""
        batching: dict[str, float | int] = {}
        if "max_wait_s" not in space.pinned and float(knobs["max_wait_s"]) > 0.0:
            batching["max_wait_s"] = 0.0
        if "max_batch" not in space.pinned and int(knobs["max_batch"]) < space.max_batch:
            batching["max_batch"] = space.max_batch
        if batching:
            yield {**knobs, **batching}, "batches fill while others run, and the lane bounds them by what they cost"
        if {"instances", "threads"} & space.pinned:
            return
        for instances, threads in space.ways:
            if (instances, threads) != (knobs["instances"], knobs["threads"]):
                way = {"instances": instances, "threads": threads}
                reason = f"{instances} x {threads} threads suit this load"
                yield {**knobs, **way}, reason
                if batching:
                    yield {**knobs, **batching, **way}, f"{reason}, and batches fill while others run"

    # What they would do

    def _better(self, options: list[tuple[Knobs, str]], here: float, load: Load, space: Space, used: int) -> Proposal | None:
        """What misses the objective least. With fewer cores than are used it is kept also if it misses as much."""
        best, best_missed = None, here - PAYS
        for knobs, reason in options:
            missed = self.book.missed(knobs, load, space)
            if missed < best_missed:
                best_missed = missed
                best = Proposal(knobs=knobs, reason=reason, gain=here - missed, harmless=_cores(knobs) < used)
        return best

    def _unknown(self, options: list[tuple[Knobs, str]], here: float, load: Load, space: Space) -> Proposal | None:
        """The model knows nothing better, and the objective is missed: then a way that was never seen, if it may be near."""
        guesses = [
            (self.book.missed(knobs, load, space), _cores(knobs), knobs)
            for knobs, _ in options
            if not self.book.knows((int(knobs["instances"]), int(knobs["threads"])))
        ]
        for missed, _, knobs in sorted(guesses, key=lambda guess: guess[:2]):
            if missed < CLOSE * here and 1.0 - missed > (1.0 - here) / CLOSE:
                return Proposal(knobs=knobs, reason="the objective is missed, and this was never tried")
        return None

    def _roomier(self, options: list[tuple[Knobs, str]], knobs: Knobs, load: Load, space: Space) -> Proposal | None:
        """What could bear more, and is no slower now: for when more comes."""
        here, missed = self.book.capacity(knobs, space), self.book.missed(knobs, load, space)
        for option, reason in options:
            same_way = (knobs["instances"], knobs["threads"]) == (option["instances"], option["threads"])
            if same_way and float(knobs["max_wait_s"]) > float(option["max_wait_s"]):
                return Proposal(knobs=option, reason=reason, harmless=True)
            if (
                self.book.capacity(option, space) >= ROOM * here
                and self.book.missed(option, load, space) <= missed + PAYS / 10.0
            ):
                return Proposal(knobs=option, reason=f"room for more load: {reason}", harmless=True)
        return None

    def _cheaper(self, options: list[tuple[Knobs, str]], knobs: Knobs, load: Load, space: Space) -> Proposal | None:
        """What does with fewer cores."""
        used = _cores(knobs)
        fewer = [(_cores(option), option) for option, _ in options if _cores(option) < used]
        for cores, option in sorted(fewer, key=lambda pair: pair[0]):
            if self.book.missed(option, load, space) < EASY * space.tolerated:
                return Proposal(knobs=option, reason=f"{cores} cores do instead of {used}", harmless=True)
        return None

    def _quickest(self, options: list[tuple[Knobs, str]], knobs: Knobs, space: Space) -> Proposal | None:
        """What answers the most."""
        here = self.book.capacity(knobs, space)
        capacities = [(self.book.capacity(option, space), option, reason) for option, reason in options]
        for capacity, option, reason in sorted(capacities, key=lambda one: -one[0]):
            if capacity > (1.0 + PAYS) * here:
                return Proposal(knobs=option, reason=reason, gain=capacity / here - 1.0)
        return None


def _other_order(knobs: Knobs, space: Space) -> Proposal | None:
    """Nothing makes more room: then short requests first, so that more of them are in time."""
    if knobs.get("discipline", "sjf") == "sjf" or "discipline" in space.pinned:
        return None
    return Proposal(knobs={**knobs, "discipline": "sjf"}, reason="more comes than can be done: what is short goes first")


def _cores(knobs: Mapping[str, object]) -> int:
    return int(str(knobs["instances"])) * int(str(knobs["threads"]))
