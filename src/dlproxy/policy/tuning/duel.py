"""Two policies of knobs: a champion, and a challenger that must show, first beside it and then in turns, that it is better.

A KnobPolicy, told of every window by the pilot, whose guard rails are around both. Not aware of: what the two policies are.
"""

from collections import Counter, deque
from math import inf, sqrt
from typing import Literal

from msgspec import Struct, field, structs

from dlproxy.policy.tuning.evidence import AGREEING, FEWEST, MATTERS, Evidence
from dlproxy.policy.tuning.pilot import Decision, Kind
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Notifier, Proposal, Space, cores_of
from dlproxy.policy.tuning.rules import CostBook, load_in
from dlproxy.policy.tuning.window import Window

SHADOW_S = 300.0  # at least, and so many questions, before a challenger may propose
SHADOW_ASKED = 60
MOST_BREACHES = 3  # proposals that go beyond what is allowed
HARMFUL = 0.02  # of all requests, which the queueing model expects to miss the objective more than with the champion's advice
BLOCK_S = 120.0  # of either side: some decisions and what comes of them
SETTLE_S = 10.0  # in which whoever takes over can do nothing yet: it counts for whoever left things so
LOSS = 0.02  # of a block's requests: if so many more miss the objective than is usual with the champion, its turn ends at once
WORST = 1.5  # times as many as in the champion's own worst stretch, where that is more: loads come in bursts
STRIKES = 3  # such turns, after which the champion did better
FEWEST_PAIRS, MOST_PAIRS = 6, 32  # of blocks
SURELY = 4.0  # standard errors of a mean over so few pairs, looked at after each of them (Student's t, five degrees of freedom)
CHEAPER = 0.95  # times the champion's cores
AGAIN_S = 4.0 * 3600.0  # until who was turned down is heard again; then twice as long, and so on
MOST_S = 7 * 24 * 3600.0

Phase = Literal["shadow", "trial", "rest"]


class Side(Struct, frozen=True):
    """A policy, and what it is called."""

    name: str
    policy: KnobPolicy


class Advice(Struct):
    """What a challenger said while nobody acted on it. `expected`: summed over the `predicted` answers, by which share of all
    requests fewer miss the objective by its advice than by the champion's, says the queueing model.
    """

    asked: int = 0
    agreed: int = 0
    proposed: int = 0
    breaches: int = 0
    expected: float = 0.0
    predicted: int = 0
    wanted: Counter[str] = field(default_factory=Counter)


class _Usual:
    """How the champion fares: on average, and in its worst stretch beside that (a cumulative sum: Page, 1954)."""

    def __init__(self, *, by_rate: bool) -> None:
        self.seen = Evidence(by_rate=by_rate)
        self.worst = 0.0
        self._sum = 0.0

    def add(self, window: Window) -> None:
        self.seen.add(window, new=False)
        self._sum = max(self._sum + self.excess(window), 0.0)
        self.worst = max(self.worst, self._sum)

    def excess(self, window: Window) -> float:
        """Requests that missed the objective beyond what is usual; by rate: answers in time that are wanting."""
        usual = self.seen.old
        if self.seen.by_rate:
            return usual.rate * window.seconds - window.in_time
        return window.missed + window.failed - usual.share * window.ended

    @property
    def most(self) -> float:
        """More than this is no chance."""
        usual = self.seen.old
        return max(LOSS * BLOCK_S * usual.ended / max(usual.seconds, 1e-9), WORST * self.worst)


class _Block:
    def __init__(self, number: int, since: float, *, challenger: bool, by_rate: bool) -> None:
        self.number = number
        self.since = since
        self.challenger = challenger
        self.evidence = Evidence(by_rate=by_rate)
        self.core_s = 0.0
        self.excess = 0.0

    def add(self, window: Window, knobs: Knobs) -> None:
        self.evidence.add(window, new=self.challenger)
        self.core_s += cores_of(knobs) * window.seconds

    @property
    def seconds(self) -> float:
        return self.evidence.old.seconds + self.evidence.new.seconds

    @property
    def ended(self) -> int:
        return self.evidence.old.ended + self.evidence.new.ended


def _is_challengers(number: int) -> bool:
    """Whose block this is, by the Thue-Morse sequence (0 1 1 0 1 0 0 1 ...): each pair has one of either side, and no trend or
    period of the load is always on the same one.
    """
    return number.bit_count() % 2 == 1


class Duel:
    """`phase`: "shadow", the champion acts, and the challenger is only asked; "trial", they take turns as the one who may
    propose, each from what the other left (a switchback experiment, see evidence.py); "rest": the champion alone. After a
    promotion the former champion challenges the new one, in its time. `advises`: nothing is done about what anybody says.
    """

    def __init__(self, champion: Side, challenger: Side | None = None) -> None:
        self.champion = champion
        self.challenger = challenger
        self.phase: Phase = "rest"
        self.advises = False
        self.advice = Advice()
        self.log: deque[Decision] = deque(maxlen=100)
        self.book = CostBook()
        self._rest_until = -inf
        self._again_s = AGAIN_S
        self._since = 0.0
        self._proposer = champion
        self._proven = False  # the challenger was champion before
        self._blocks: list[_Block] = []  # of the pair that is not complete, the present one last
        self._pairs: list[tuple[_Block, _Block]] = []  # champion's, challenger's
        self._left: _Block | None = None  # the one before the present one
        self._suspect: _Block | None = None  # was cut short
        self._strikes = 0
        self._before: Knobs | None = None  # the challenger's turn
        self._restore: tuple[Knobs, float] | None = None  # what held before it, and what it cost not to have that
        self._by_rate = False
        self._usual = _Usual(by_rate=False)

    def challenge(self, challenger: Side | None) -> None:
        """Another one, or none, in place of the present challenger; it begins anew."""
        self.challenger = challenger
        self.phase, self._rest_until, self._again_s, self._proven = "rest", -inf, AGAIN_S, False

    # A KnobPolicy

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        self._by_rate = space.prefers == "rate"
        self.book.observe(_way(knobs), window)
        if self.challenger is None:
            return self._asked(self.champion, window, knobs, space, now)
        if self.phase == "rest" and now >= self._rest_until:
            self._begin_shadow(self.challenger, now)
        if self.phase == "shadow":
            proposal = self._asked(self.champion, window, knobs, space, now)
            if self.phase == "shadow":  # else the champion has failed
                self._listen(self.challenger, proposal, window, knobs, space, now)
            return proposal
        if self.phase == "trial":
            self._take_turns(knobs, space, now)
        if self._restore is not None and (restored := self._restored(*self._restore, knobs, space)) is not None:
            return restored
        if self.phase != "trial":
            return self._asked(self.champion, window, knobs, space, now)
        side = self.challenger if self._blocks[-1].challenger else self.champion
        proposal = self._asked(side, window, knobs, space, now)
        return proposal and structs.replace(proposal, reason=f"{side.name}: {proposal.reason}")

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self._proposer.policy.learn(knobs, window, kept=kept)

    def watch(self, window: Window, knobs: Knobs, now: float) -> None:
        """Counts for whoever's turn it is, or was a moment ago."""
        if self.phase == "shadow":
            self._usual.add(window)
        if self.phase != "trial":
            return
        block, left = self._blocks[-1], self._left
        if left is not None and now < block.since + SETTLE_S:
            left.add(window, knobs)
            return
        block.add(window, knobs)
        if not block.challenger:
            self._usual.add(window)
            return
        block.excess = max(block.excess + self._usual.excess(window), 0.0)
        if block.excess > self._usual.most and _both_of(self._usual.seen, block.evidence).verdict() == "worse":
            self._hand_back(block, now)

    # Who is asked

    def _asked(self, side: Side, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        """A challenger that fails is out; a champion that fails gives way to the former one, or raises."""
        try:
            proposal = side.policy.act(window, knobs, space, now)
        except Exception as error:
            if side is self.champion:
                if self.challenger is None or not self._proven:
                    raise
                self.champion, self.challenger, self._proven = self.challenger, self.champion, False
            self._end("demotes", f"it failed: {type(error).__name__}: {error}", now)
            return None
        self._proposer = side
        if isinstance(side.policy, Notifier):
            while side.policy.notices:
                self._note("notices", f"{side.name}: {side.policy.notices.popleft()}", now)
        return proposal

    def _listen(
        self, challenger: Side, theirs: Proposal | None, window: Window, knobs: Knobs, space: Space, now: float
    ) -> None:
        """What the challenger would do in place of what the champion does."""
        proposal = self._asked(challenger, window, knobs, space, now)
        if self.phase != "shadow":
            return  # it failed
        self._proposer = self.champion
        advice, mine = self.advice, knobs if proposal is None else proposal.knobs
        advice.asked += 1
        if proposal is not None and not structs.replace(space, closed=frozenset()).allows(mine, knobs):
            advice.breaches += 1
            if advice.breaches >= MOST_BREACHES:
                self._end("demotes", f"{advice.breaches} of its proposals went beyond what is allowed", now)
            return
        other = knobs if theirs is None else theirs.knobs
        changes = {name: value for name, value in mine.items() if knobs[name] != value}
        advice.proposed += bool(changes)
        advice.agreed += dict(mine) == dict(other)
        advice.wanted.update([", ".join(f"{name} = {value}" for name, value in changes.items())] if changes else [])
        if dict(mine) != dict(other) and space.objective_s < inf and self.book.cost(_way(knobs), space.cores) is not None:
            load = load_in(window)
            advice.expected += self.book.missed(other, load, space) - self.book.missed(mine, load, space)
            advice.predicted += 1
        self._end_shadow(now)

    # Phases

    def _begin_shadow(self, challenger: Side, now: float) -> None:
        self.phase, self._since, self.advice, self._usual = "shadow", now, Advice(), _Usual(by_rate=self._by_rate)
        self._note("shadows", f"{challenger.name} is asked beside {self.champion.name}, and changes nothing yet", now)

    def _end_shadow(self, now: float) -> None:
        advice = self.advice
        if self.advises or advice.asked < SHADOW_ASKED or now < self._since + SHADOW_S:
            return
        gain = advice.expected / max(advice.asked, 1)
        if gain < -HARMFUL:
            self._end(
                "demotes", f"{-gain:.1%} of the requests more would miss the objective by its advice, it is expected", now
            )
            return
        self.phase, self._pairs, self._blocks, self._left, self._suspect = "trial", [], [], None, None
        self._strikes = 0
        self._note("compares", "they take turns from now on as the one who may propose", now, self.advice_in_words())
        self._begin_block(0, now, challenger=False)

    def _begin_block(self, number: int, now: float, *, challenger: bool) -> None:
        self._left = self._blocks[-1] if self._blocks else self._left
        if len(self._blocks) == 2:
            self._blocks = []
        self._blocks.append(_Block(number, now, challenger=challenger, by_rate=self._by_rate))

    def _take_turns(self, knobs: Knobs, space: Space, now: float) -> None:
        """Nothing is on trial: another block may begin."""
        block = self._blocks[-1]
        if now < block.since + BLOCK_S or block.ended < FEWEST:
            return
        if self._suspect is not None and (seen := _both(block, self._suspect)).verdict() == "worse":
            self._strikes += 1
            if self._strikes >= STRIKES:
                self._end("demotes", f"it did harm: {seen.words()}", now)
                return
        number, self._suspect = block.number + 1, None
        if len(self._blocks) == 2:
            one, other = self._blocks
            self._pairs.append((other, one) if one.challenger else (one, other))
            self._judge(space, now)
        if self.phase == "trial":
            if _is_challengers(number) and not block.challenger:
                self._before = knobs
            self._begin_block(number, now, challenger=_is_challengers(number))

    def _hand_back(self, block: _Block, now: float) -> None:
        """The champion takes over at once, and its block says whether it was the load."""
        seen = _both_of(self._usual.seen, block.evidence)
        self._suspect = block
        if self._before is not None:
            self._restore = self._before, -seen.difference
        self._note("hands back", f"{self.champion.name} takes over, and shows whether it was the load", now, seen.words())
        self._blocks = [block]
        self._begin_block(block.number | 1, now, challenger=False)  # the next pair is the one after

    def _restored(self, before: Knobs, gain: float, knobs: Knobs, space: Space) -> Proposal | None:
        """What held before the challenger did harm."""
        self._restore = None
        if dict(before) == dict(knobs) or not structs.replace(space, closed=frozenset()).allows(before, knobs):
            return None
        self._proposer = self.champion
        return Proposal(knobs=before, reason="as it was before the challenger's turn", gain=gain, harmless=True, again=True)

    def _judge(self, space: Space, now: float) -> None:
        """After each pair."""
        whole = Evidence(by_rate=self._by_rate)
        for pair in self._pairs:
            whole.join(_both(*pair))
        differences = [_both(*pair).difference for pair in self._pairs]
        count = len(differences)
        mean = sum(differences) / count
        error = sqrt(sum([(one - mean) ** 2 for one in differences]) / max(count - 1, 1) / count)
        either = max(error, whole.error)
        worse = count > 1 and whole.verdict() == "worse" and mean < -SURELY * error
        if worse:
            self._end("demotes", f"it did harm: {whole.words()}", now)
        elif count < FEWEST_PAIRS:
            return
        elif whole.verdict() == "better" and mean > SURELY * error:
            self._promote(f"it is better: {whole.words()}", now)
        elif mean - AGREEING * either > -max(MATTERS, space.tolerated / 2.0) and self._cores(1) < CHEAPER * self._cores(0):
            self._promote(
                f"it is as good with {self._cores(1):.3g} cores instead of {self._cores(0):.3g}: {whole.words()}", now
            )
        elif count >= MOST_PAIRS or mean + AGREEING * either < MATTERS:
            self._end("demotes", f"it is no better: {whole.words()}", now)

    def _cores(self, side: int) -> float:
        return sum([pair[side].core_s for pair in self._pairs]) / max(sum([pair[side].seconds for pair in self._pairs]), 1e-9)

    def _promote(self, reason: str, now: float) -> None:
        assert self.challenger is not None
        self.champion, self.challenger = self.challenger, self.champion
        self._again_s, self._proven = AGAIN_S, True
        self._rest(now)
        self._note("promotes", f"{self.champion.name} in place of {self.challenger.name}, as {reason}", now)

    def _end(self, kind: Kind, reason: str, now: float) -> None:
        """The challenger is heard no more for long."""
        assert self.challenger is not None
        self._note(kind, f"{self.challenger.name}, which is asked again in {self._again_s / 3600.0:g} hours: {reason}", now)
        self._rest(now)
        self._again_s = min(2.0 * self._again_s, MOST_S)

    def _rest(self, now: float) -> None:
        self.phase, self._rest_until = "rest", now + self._again_s
        self._blocks, self._suspect = [], None

    # What it says

    def advice_in_words(self) -> str:
        advice = self.advice
        said = f"asked {advice.asked} times, it agreed in {advice.agreed / max(advice.asked, 1):.0%}"
        wanted = ", ".join(f"{what} ({count} times)" for what, count in advice.wanted.most_common(3))
        gain = advice.expected / max(advice.asked, 1)
        expected = f"; expected: {abs(gain):.2%} of the requests {'fewer' if gain >= 0.0 else 'more'} miss the objective"
        broke = f"; {advice.breaches} proposals went beyond what is allowed" if advice.breaches else ""
        return said + (f", and wanted {wanted}" if wanted else "") + (expected if advice.predicted else "") + broke

    @property
    def state(self) -> str:
        """In words: who decides, and how the challenger fares."""
        if self.challenger is None:
            return self.champion.name
        name = self.challenger.name
        if self.phase == "shadow":
            return f"{self.champion.name}, beside it {name}: {self.advice_in_words()}"
        if self.phase == "trial":
            turn = name if self._blocks[-1].challenger else self.champion.name
            return f"{self.champion.name} and {name} in turns, now {turn}, after {len(self._pairs)} pairs of blocks"
        return f"{self.champion.name}; {name} waits"

    def _note(self, kind: Kind, reason: str, now: float, measured: str = "") -> None:
        self.log.append(Decision(at=now, kind=kind, reason=reason, measured=measured))


def _way(knobs: Knobs) -> tuple[int, int]:
    return int(knobs["instances"]), int(knobs["threads"])


def _both(champions: _Block, challengers: _Block) -> Evidence:
    return _both_of(champions.evidence, challengers.evidence)


def _both_of(one: Evidence, other: Evidence) -> Evidence:
    evidence = Evidence(by_rate=one.by_rate)
    evidence.join(one)
    evidence.join(other)
    return evidence
