"""What to say of a value or a name that is wrong, and the nearest that would be right.

Called by the rest of config/. Not aware of: where values come from.
"""

import difflib
import re
from collections.abc import Collection

import msgspec
from msgspec import Struct

from dlproxy.config.table import knobs
from dlproxy.config.values import nearest


def explain(what: str, struct: type[Struct], knob: str) -> str:
    """msgspec's complaint about a knob, and what the knob takes, or the nearest of its choices."""
    wrong = re.match(r"""Invalid enum value ['"](.*)['"]""", what)
    if wrong is None or knob not in knobs(struct):
        return what[:1].lower() + what[1:]
    choices = list(map(str, knobs(struct)[knob].choices))
    near = difflib.get_close_matches(wrong[1], choices, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(choices)}"
    return f"'{wrong[1]}' is not one of its values; {hint}"


def what_and_where(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec's complaint, and the knob that it is about, if it is about one."""
    what, _, where = str(error).partition(" - at ")
    knob = re.match(r"`\$\.(\w+)", where)
    return what, knob[1] if knob else ""


def unknown_key(key: str, known: Collection[str], where: str = "") -> str:
    return f"unknown key '{key}'{where}; {nearest(key, known)}"
