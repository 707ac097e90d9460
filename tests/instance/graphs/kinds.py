"""The kinds of graphs that are drawn: what each is sure to hold, in a family by how its rows ought to be served."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from tests.instance.graphs import entries, exits, mixing, padded, rows, whole
from tests.instance.graphs.draft import LARGE, NAMINGS, Draft, Made

ROW_WISE = "row-wise"
PADDED = "padded"


@dataclass(frozen=True)
class Kind:
    """`build` adds everything to an empty draft. `naming`: of open axes, those to draw from."""

    family: str
    name: str
    build: Callable[[Draft], None]
    namings: tuple[str, ...] = NAMINGS

    @property
    def id(self) -> str:
        return f"{self.family}/{self.name}"


def _rows_through(layer: rows.Layer) -> Kind:
    def build(draft: Draft) -> None:
        entry = draft.pick(entries.ENTRIES)
        draft.words.append(entry.__name__)
        x = rows.chain(draft, entry(draft), 1)
        draft.words.append(layer.__name__)
        y = rows.chain(draft, layer(draft, x), 2)
        draft.pick(exits.PLAIN)(draft, y)

    return Kind(ROW_WISE, layer.__name__, build)


def _rows_from(entry: Callable[[Draft], str]) -> Kind:
    def build(draft: Draft) -> None:
        draft.words.append(entry.__name__)
        draft.pick(exits.PLAIN)(draft, rows.chain(draft, entry(draft), 2))

    return Kind(ROW_WISE, entry.__name__, build)


def _rows_to(leave: Callable[[Draft, str], None]) -> Kind:
    def build(draft: Draft) -> None:
        entry = draft.pick(entries.ENTRIES)
        draft.words += [entry.__name__, leave.__name__]
        leave(draft, rows.chain(draft, entry(draft), 2))

    return Kind(ROW_WISE if leave in exits.PLAIN else "odd outputs", leave.__name__, build)


def _mixed_by(layer: mixing.Layer) -> Kind:
    def build(draft: Draft) -> None:
        entry = draft.pick(entries.ENTRIES)
        draft.words.append(entry.__name__)
        x = rows.chain(draft, entry(draft), 1)
        draft.words.append(layer.__name__)
        y = rows.chain(draft, layer(draft, x), 1)
        _leave_after_mixing(draft, x, y)

    return Kind("mixing", layer.__name__, build)


def _mixed_rarely_by(layer: mixing.Layer) -> Kind:
    """Straight from the input, so that what is rare arrives as it was sent."""

    def build(draft: Draft) -> None:
        draft.large = draft.pick([LARGE, 100 * LARGE])
        x = draft.pick(entries.OF_FLOATS)(draft)
        draft.words.append(layer.__name__)
        _leave_after_mixing(draft, x, rows.chain(draft, layer(draft, x), 1))

    return Kind("rarely mixing", layer.__name__, build)


def _leave_after_mixing(draft: Draft, x: str, y: str) -> None:
    """In one output, or only in the second of two."""
    draft.exact = False  # what is cut off from mixed values says nothing that they do not say
    if draft.pick([True, True, False]):
        draft.pick((*exits.PLAIN, *exits.ODD))(draft, y)
    else:
        draft.output("clean", x, exits.DType.FP32, (exits.ROWS, draft.width))
        exits.rows(draft, y)


def _as_it_is(form: whole.Form) -> Kind:
    namings = tuple(naming for naming in NAMINGS if (form, naming) not in whole.IMPOSSIBLE)
    return Kind(whole.FAMILIES[form], form.__name__, form, namings)


def _of_any_length(family: str) -> Callable[[padded.Form], Kind]:
    """Requests are close in length, so that it pays to pad them."""

    def kind(form: padded.Form) -> Kind:
        def build(draft: Draft) -> None:
            draft.close_lengths = True
            draft.words.append(form.__name__)
            form(draft)

        return Kind(family, form.__name__, build, ("alike",) if form in padded.NAMED else ("alike", "unnamed"))

    return kind


KINDS = (
    *map(_rows_from, entries.ENTRIES),
    *map(_rows_through, rows.LAYERS),
    *map(_rows_to, (*exits.PLAIN, *exits.ODD)),
    *map(_mixed_by, mixing.MIXERS),
    *map(_mixed_rarely_by, mixing.RARE),
    *map(_as_it_is, whole.FAMILIES),
    *map(_of_any_length(PADDED), padded.SAFE),
    *map(_of_any_length("not padded by itself"), padded.UNMARKED),
    *map(_of_any_length("changed by padding"), padded.UNSAFE),
)
BY_ID = {kind.id: kind for kind in KINDS}
HOSTILE = [
    kind
    for kind in KINDS
    if kind.family in ("mixing", "rarely mixing", "quantised") and kind.build is not whole.quantised_with_fixed_scales
]


@st.composite
def graphs(draw: st.DrawFn, kind: Kind) -> Made:
    """One of this kind."""
    naming = draw(st.sampled_from([*kind.namings, *(naming for naming in kind.namings if naming != "fixed")]))
    width = draw(st.sampled_from([4, 2, 3, 8]))
    draft = Draft(draw, np.random.default_rng(draw(st.integers(0, 2**16))), width)
    draft.plain = kind.family == ROW_WISE
    kind.build(draft)
    return draft.finish(naming)
