"""Examples that might have been: images moved, turned, mirrored, lighter or paler; series with noise, or of another pace.

Called by training.py and by other parts, with the batches of a training. Not aware of: networks, data sets.
"""

import math
from typing import Any

import torch
from msgspec import Struct
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.networks.fit import Augment


class Changes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far each example is changed at random, 0: not at all. Images are of 0 to 1, series have a deviation of 1.

    `shift`: pixels; `rotate`: degrees; `zoom`, `brightness`, `contrast`, `stretch` (of time): 0.1 is a tenth less or more;
    `flip`: the share that is mirrored left to right; `jitter`: the deviation of the noise.
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    jitter: float = 0.0
    stretch: float = 0.0


_MOST = {"shift": 100.0, "rotate": 180.0, "jitter": 100.0, "zoom": 0.9, "stretch": 0.9}
_OF = {"image": {"shift", "rotate", "zoom", "flip", "brightness", "contrast"}, "series": {"stretch"}, "table": set[str]()}

_MANY = {"image": "images", "series": "series", "table": "tables"}


def augment(changes: Changes, kind: str, shape: tuple[int, ...]) -> Augment | None:
    """Of examples of this kind (data.py) and shape; images may come in batches of another shape, such as [n, pixels].

    None if nothing changes. Raises LearnError.
    """
    wanted = {name for name in changes.__struct_fields__ if getattr(changes, name) != 0.0}
    for name in wanted:
        if not 0.0 <= getattr(changes, name) <= _MOST.get(name, 1.0):
            raise LearnError(f"augment: {name} {getattr(changes, name):g} is out of range: give 0 to {_MOST.get(name, 1.0):g}")
        if name not in _OF[kind] | {"jitter"}:
            raise LearnError(
                f"augment: {name} changes nothing of {_MANY[kind]}, which take {', '.join(sorted(_OF[kind] | {'jitter'}))}"
            )
    if not wanted:
        return None

    def change(inputs: Any, _targets: Any) -> Any:
        changed = inputs
        if kind == "image":
            changed = images(inputs.reshape(-1, *shape), changes).reshape(inputs.shape)
        elif changes.stretch:
            changed = stretched(inputs, changes.stretch)
        return changed + changes.jitter * torch.randn_like(changed) if changes.jitter else changed

    return change


def images(given: Any, changes: Changes) -> Any:
    """[n, channels, height, width] of 0 to 1; what comes in from outside is 0."""
    found = given
    if changes.flip:
        mirrored = torch.rand(len(found), 1, 1, 1) < changes.flip
        found = torch.where(mirrored, found.flip(-1), found)
    if changes.shift or changes.rotate or changes.zoom:
        found = _moved(found, changes)
    if changes.contrast:
        middle = found.mean((1, 2, 3), keepdim=True)
        found = middle + (found - middle) * (1.0 + _either_way(len(found), changes.contrast))
    if changes.brightness:
        found = found + _either_way(len(found), changes.brightness)
    return found.clamp(0.0, 1.0)


def stretched(given: Any, most: float) -> Any:
    """Series [n, steps, channels], each at another pace about its middle; its ends last where it has become shorter."""
    count, steps, channels = given.shape
    pace = 1.0 + torch.empty(count, 1).uniform_(-most, most)
    at = ((torch.arange(steps) - (steps - 1) / 2) * pace + (steps - 1) / 2).clamp(0, steps - 1)
    before = at.floor().long().clamp(max=max(steps - 2, 0))
    share = (at - before).unsqueeze(-1)
    first = torch.gather(given, 1, before.unsqueeze(-1).expand(-1, -1, channels))
    second = torch.gather(given, 1, (before + 1).clamp(max=steps - 1).unsqueeze(-1).expand(-1, -1, channels))
    return first * (1 - share) + second * share


def _moved(given: Any, changes: Changes) -> Any:
    count, _, height, width = given.shape
    angle = torch.empty(count).uniform_(-1, 1) * math.radians(changes.rotate)
    zoom = 1.0 + torch.empty(count, 2).uniform_(-1, 1) * changes.zoom
    shift = torch.empty(count, 2).uniform_(-1, 1) * changes.shift * torch.tensor([2.0 / width, 2.0 / height])
    cosine, sine = angle.cos(), angle.sin()
    rows = (torch.stack([cosine * zoom[:, 0], -sine, shift[:, 0]], 1), torch.stack([sine, cosine * zoom[:, 1], shift[:, 1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(given.shape), align_corners=False)
    return F.grid_sample(given, grid, align_corners=False)


def _either_way(count: int, most: float) -> Any:
    return torch.empty(count, 1, 1, 1).uniform_(-most, most)
