"""Draws graphs of a kind and has each judged; keeps count of how they were served.

Used by tests of what the warm-up finds out about rows. Not aware of: what that is.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.instance.graphs.draft import Made
from tests.instance.graphs.judge import Verdict, judge
from tests.instance.graphs.kinds import KINDS, Kind, graphs

GRAPHS = int(os.environ.get("DLPROXY_GRAPHS", "0"))  # 0: one of each kind, the same in every run
OF_EACH = -(-GRAPHS // len(KINDS)) or 1
WORDS = ("batched", "alone", "refused", "wrong")


class WrongAnswerError(AssertionError):
    """Some request got another answer than it gets alone."""


class Court:
    """Judges graphs one after the other, on one event loop. `served`: how many, by kind and how."""

    def __init__(self, folder: Path) -> None:
        self.served: Counter[tuple[str, str]] = Counter()
        self._path = folder / "m.onnx"
        self._runner = asyncio.Runner()

    def judge(self, kind: Kind, made: Made, requests_seed: int) -> Verdict:
        """Raises WrongAnswerError, also where several requests share a batch that throws dice."""
        self._path.write_bytes(made.model.SerializeToString())
        verdict = self._runner.run(judge(made, self._path, requests_seed))
        self.served[kind.id, verdict.word] += 1
        wrong = verdict.wrong[:2] or (["throws dice, and yet is batched"] if made.random and verdict.batched else [])
        if wrong:
            raise WrongAnswerError("\n".join([f"{kind.id}: {made.words}", made.text, *wrong]))
        return verdict

    def prove(
        self, kind: Kind, count: int, check: Callable[[Made, Verdict], None] | None = None, *, explain: bool = True
    ) -> None:
        """Judges so many graphs of the kind. Raises the first failure; shrunk, if it is to be explained."""

        def judged(made: Made, requests_seed: int) -> None:
            verdict = self.judge(kind, made, requests_seed)
            if check is not None:
                check(made, verdict)

        phases = (Phase.generate, Phase.shrink) if explain else (Phase.generate,)
        slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
        how = settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=slow)
        test = how(given(graphs(kind), st.integers(0, 2**16))(judged))
        (test if GRAPHS and explain else seed(crc32(kind.id.encode()))(test))()

    def close(self) -> None:
        self._runner.close()

    def table(self) -> str:
        """By kind. Where a wrong answer was found, further graphs of the kind were drawn to explain it."""
        lines = [f"{'graphs of the kind':44}" + "".join(f"{word:>9}" for word in WORDS)]
        for row in (*dict.fromkeys(kind for kind, _ in self.served), ""):
            of_row = Counter[str]()
            for (kind, word), count in self.served.items():
                of_row[word] += count if row in ("", kind) else 0
            lines.append(f"{row or 'all':44}" + "".join(f"{of_row[word]:9}" for word in WORDS))
        return "\n".join(lines)
