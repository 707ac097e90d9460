"""Agents that were trained: an ONNX file that scores the moves of policy/tuning/moves.py, as a policy of knobs.

Read by agents.py, asked by a pilot. Whatever is wrong with the network, the rules decide in its place. Not aware of: training.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.own import read_network
from dlproxy.message import text_of
from dlproxy.policy.tuning.agent import Eyes, best
from dlproxy.policy.tuning.familiar import Bounds, Familiarity
from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from dlproxy.policy.tuning.rules import CostBook
from dlproxy.policy.tuning.window import Window

if TYPE_CHECKING:
    from dlproxy.instance.runtime.onnx import OnnxRuntime

SLOW_S = 0.001  # for a decision
MOST_SLOW = 20  # more than quick ones
FEATURES, MOVES_OF, SEEN, ADVISED = "dlproxy.features", "dlproxy.moves", "dlproxy.seen", "dlproxy.advised"
"""Metadata of a file: what it was trained to see and do, least and most of each feature in training (JSON), and "no" if it was
trained without the rules' advice. The first two must be as they are here.
"""

log = logging.getLogger(__name__)


class Network:
    """One session on one thread, for all models. `trouble`: why nobody asks it any more."""

    def __init__(self, name: str, runtime: "OnnxRuntime") -> None:
        """Raises ModelError for a file that is of another version, or no agent."""
        self.name = name
        self.trouble = ""
        self.advised = runtime.metadata.get(ADVISED, "yes") != "no"
        self._runtime = runtime
        _check(name, runtime)
        self.bounds = _bounds(name, runtime.metadata.get(SEEN, ""))

    def __deepcopy__(self, memo: object) -> "Network":
        return self  # a session is not copied

    def scores(self, state: Sequence[float]) -> list[float]:
        """One for each of MOVES."""
        found: list[float] = self._runtime.run([np.asarray([state], np.float32)])[0][0].tolist()
        return found

    def fail(self, trouble: str) -> None:
        if not self.trouble:
            self.trouble = trouble
            log.error("agent %s: %s; the rules decide in its place", self.name, trouble)


def read_agent(path: str, trust: Trust) -> Network:
    """As signed or encrypted, where [integrity] wants that. Raises ModelError."""
    return Network(Path(path).name, read_network(path, trust))


def _check(name: str, runtime: "OnnxRuntime") -> None:
    metadata, signature = runtime.metadata, runtime.signature
    again = "train it again with this dlproxy (`dlproxy learn train`)"
    for key, known in ((FEATURES, NAMES), (MOVES_OF, [move.name for move in MOVES])):
        if key not in metadata:
            raise ModelError(f"{name} is no agent: its metadata has no {key}; give a file that `dlproxy learn train` made")
        found = metadata[key].split(",")
        if found != list(known):
            other = next((mine for mine in found if mine not in known), "") or f"{len(found)} of them"
            raise ModelError(f"agent {name} is of another version: {key} has {other}, and {len(known)} are known here; {again}")
    inputs, outputs = [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
    widths = [spec.shape[-1] for spec in (*signature.inputs, *signature.outputs)]
    if (inputs, outputs, widths) != (["state"], ["scores"], [len(NAMES), len(MOVES)]):
        raise ModelError(f"agent {name} takes {inputs} and gives {outputs} of widths {widths}; {again}")


def _bounds(name: str, text: str) -> Bounds | None:
    try:
        bounds = msgspec.json.decode(text, type=list[tuple[float, float]]) if text else None
    except msgspec.MsgspecError as error:
        raise ModelError(f"agent {name}: {SEEN} of its metadata is not understood: {error}") from None
    if bounds is not None and len(bounds) != len(NAMES):
        raise ModelError(
            f"agent {name}: {SEEN} of its metadata has bounds of {len(bounds)} features, and there are {len(NAMES)}"
        )
    return bounds


class Learnt:
    """A KnobPolicy. `notices`: what somebody should hear, until they have."""

    def __init__(self, network: Network, clock: Callable[[], float] = perf_counter) -> None:
        self.notices: deque[str] = deque(maxlen=10)
        self._network = network
        self._eyes = Eyes(advised=network.advised)
        self._familiarity = None if network.bounds is None else Familiarity(NAMES, network.bounds)
        self._clock = clock
        self._slow = 0
        self._told = False

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        network = self._network
        if network.trouble:
            if not self._told:
                self._told = True
                self.notices.append(f"{network.trouble}; the rules decide in its place")
            return self._eyes.rules.act(window, knobs, space, now)
        sight = self._eyes.see(window, knobs, space, now)
        if not self._eyes.rules.book.knows((int(knobs["instances"]), int(knobs["threads"]))) or not window.arrived:
            return None
        if self._familiarity is not None and (strange := self._familiarity.see(sight.state)):
            self.notices.append(strange)
        began_at = self._clock()
        try:
            scores = network.scores(sight.state)
        except Exception as error:  # whatever a session raises
            network.fail(f"it cannot be run: {text_of(error)}")
            return self.act(window, knobs, space, now)
        self._slow = max(self._slow + (1 if self._clock() - began_at > SLOW_S else -1), 0)
        if self._slow > MOST_SLOW:
            network.fail(f"it takes more than {SLOW_S * 1e3:g} ms to decide")
        if not all(map(isfinite, scores)):
            network.fail("its scores are no numbers")
            return self.act(window, knobs, space, now)
        number = best(scores, sight.possible)
        proposal = sight.options[number]
        if proposal is None:
            return None
        above = scores[number] - scores[0]
        saw = f"{window.arrived / window.seconds:.4g} requests/s, {window.missed / max(window.ended, 1):.1%} missed"
        hopes = f"saw {saw}; hopes for {MOVES[number]}, {above:.3g} above leaving all as it is"
        return msgspec.structs.replace(proposal, reason=hopes)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self._eyes.learn(knobs, window, kept=kept)

    @property
    def book(self) -> CostBook:
        """What batches cost, as it has seen."""
        return self._eyes.rules.book
