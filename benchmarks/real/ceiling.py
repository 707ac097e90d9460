"""What no server can exceed on MiniLM: the engine alone on every core, if a call cost nothing but its tokens.

Called by embedding.py, shown by page.py. Not aware of: servers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.ort_loop import Feed, measure, open_session

LENGTHS = 5
SECONDS = 0.3  # of each length in a round
ROUNDS = 5  # of which the quickest counts: whatever else runs can only make it slower


@dataclass(frozen=True)
class Ceiling:
    """A call takes `fixed_s` and `per_token_s` for each token, with one thread on each core and all cores at work."""

    cores: int
    fixed_s: float
    per_token_s: float
    mean_tokens: float

    @property
    def rate(self) -> float:
        """Requests a second without the fixed part, as in batches without end and without padding."""
        return self.cores / (self.per_token_s * self.mean_tokens)

    @property
    def words(self) -> str:
        return (
            f"Ceiling: ONNX Runtime alone, one thread on each of {self.cores} cores and all at work, takes "
            f"{self.fixed_s * 1e3:.2g} ms and {self.per_token_s * 1e3:.2g} ms a token; with {self.mean_tokens:.1f} tokens on "
            f"average and no fixed part that is {self.rate:,.0f}/s. *At most* is this over the other's rate: no server can "
            "have a higher ratio, and a goal above it cannot be reached."
        )


def fit(tokens: Sequence[int], seconds: Sequence[float], cores: int, mean_tokens: float) -> Ceiling:
    """A line through what calls of these lengths took."""
    per_token_s, fixed_s = np.polyfit(tokens, seconds, 1)
    return Ceiling(cores, float(fixed_s), float(per_token_s), mean_tokens)


def find_ceiling(model: Path, feeds: Sequence[Feed], name: str, cores: int) -> Ceiling:
    """By texts of several lengths; `name`: of the input that has the tokens."""
    by_length = sorted(feeds, key=lambda feed: feed[name].size)
    chosen = [by_length[round(place)] for place in np.linspace(0, len(feeds) - 1, LENGTHS)]
    sessions = [open_session(model) for _ in range(cores)]
    rounds = [[cores / measure(sessions, [feed], cores, SECONDS)["requests_per_s"] for feed in chosen] for _ in range(ROUNDS)]
    seconds = [min(of_length) for of_length in zip(*rounds, strict=True)]
    mean_tokens = float(np.mean([feed[name].size for feed in feeds]))
    return fit([feed[name].size for feed in chosen], seconds, cores, mean_tokens)
