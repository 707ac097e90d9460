"""Each thing that instance/evidence.py tries is needed: left out, it lets wrong answers through, and random graphs show them.

So the graphs of test_random_graphs.py are hostile enough to find a fault in the evidence, were somebody to make one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis.errors import FlakyFailure

from dlproxy.instance import evidence
from dlproxy.instance.made_up import KINDS as ROW_KINDS
from tests.instance.graphs.court import Court, WrongAnswerError
from tests.instance.graphs.kinds import BY_ID

UNTIL_FOUND = 60  # graphs within which a fault must show
SOUND = 3  # graphs that show nothing as long as it is not left out


def _without(*names: str) -> tuple[Any, ...]:
    assert all(any(kind.name == name for kind in ROW_KINDS) for name in names), names
    return tuple(kind for kind in ROW_KINDS if kind.name not in names)


@dataclass(frozen=True)
class Weakness:
    """`left_out`: what is, as fields of Tries; `beside`: what would find the same, and is left out from the first.

    `kind`: graphs that are answered wrongly without it, and rightly with it.
    """

    name: str
    left_out: dict[str, Any]
    kind: str
    beside: dict[str, Any] = field(default_factory=dict)


NO_GRAPH = {"graph": False}
NO_MARKS = {"padded_marks": False}
FEW_ROWS = {"graph": False, "many_rows": False}  # many rows, each drawn by itself, meet by chance what others are made for
WEAKNESSES = (
    Weakness("the graph", NO_GRAPH, "rarely mixing/if_certain"),
    Weakness("rows of next to nothing", {"kinds": _without("zeros", "small")}, "rarely mixing/if_zeros", NO_GRAPH),
    Weakness("large values", {"kinds": _without("large")}, "rarely mixing/if_spread", NO_GRAPH),
    Weakness("negative rows", {"kinds": _without("negative")}, "rarely mixing/if_negative", NO_GRAPH),
    Weakness("rows of ones", {"kinds": _without("ones")}, "rarely mixing/if_a_one", NO_GRAPH),
    Weakness("rows that are no numbers", {"kinds": _without("nan")}, "rarely mixing/if_anything_is_nan", NO_GRAPH),
    Weakness("inputs that are not hostile together", {"crossed": False}, "rarely mixing/if_any_mark_is_set", FEW_ROWS),
    Weakness("equal rows", {"kinds": _without("same")}, "rarely mixing/if_equal", FEW_ROWS),
    Weakness("more than two rows", {"kinds": ROW_KINDS[:2], "many_rows": False}, "rarely mixing/if_three_rows", NO_GRAPH),
    Weakness("many rows", {"many_rows": False}, "rarely mixing/if_ten_rows", NO_GRAPH),
    Weakness("other lengths", {"more_lengths": False}, "rarely mixing/if_short", NO_GRAPH),
    Weakness("high ids", {"ids": False}, "rarely mixing/if_id_is_rare", NO_GRAPH),
    Weakness("padded rows", {"padding": False}, "changed by padding/mask_that_leaks"),
    Weakness("batches of other lengths", {"padded_lengths": False}, "changed by padding/if_padded_short", NO_MARKS),
    Weakness("rows that hide some of themselves", {"padded_marks": False}, "changed by padding/last_that_is_seen"),
)
NOT_SHOWN = {"twice"}  # a row that is not the same twice is not the same in a batch either; without it the reason is another


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    court = Court(tmp_path_factory.mktemp("graphs"))
    yield court
    court.close()


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=lambda weakness: weakness.name)
def test_what_is_left_out_is_missed(court: Court, weakness: Weakness, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, whole = BY_ID[weakness.kind], evidence.Tries
    monkeypatch.setattr(evidence, "Tries", partial(whole, **weakness.beside))
    court.prove(kind, SOUND, explain=False)
    monkeypatch.setattr(evidence, "Tries", partial(whole, **weakness.beside, **weakness.left_out))
    with pytest.raises((WrongAnswerError, FlakyFailure)) as found:
        court.prove(kind, UNTIL_FOUND, explain=False)
    if isinstance(found.value, FlakyFailure):  # asked once more, the requests did not meet in a batch
        assert found.group_contains(WrongAnswerError)


def test_nothing_that_is_tried_is_forgotten_here() -> None:
    left_out = {name for weakness in WEAKNESSES for name in weakness.left_out}
    assert left_out | NOT_SHOWN == set(evidence.Tries.__struct_fields__)
    kept = [set(weakness.left_out["kinds"]) for weakness in WEAKNESSES if "kinds" in weakness.left_out]
    assert set.intersection(*kept) == set(ROW_KINDS[:2]), "two rows are needed to compare at all; what do the others show?"
