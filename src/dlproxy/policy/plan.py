"""How a model's lane is made, served or simulated: its knobs, and what it knows of latency at the start.

Called by serve/assemble.py and lab/simulate. Not aware of: configuration files, how latency was measured.
"""

from collections.abc import Mapping, Sequence
from math import inf
from types import MappingProxyType

import msgspec
from msgspec import Struct

from dlproxy.config.knobs import LaneSettings, ModelConfig
from dlproxy.policy.knobs import LaneKnobs

HOLD_S = 1e-3  # a batch may hold the event loop this long: every other connection and model waits meanwhile
AIM_S = 0.8e-3  # what such batches are made for at p99: made for HOLD_S itself, two in a thousand would exceed it
MAX_PADDING = 0.5  # of a batch: less makes p99 a third longer, more gains nothing (docs/internals/batching.md)
EMPTY: Mapping[str, float] = MappingProxyType({})


class LanePlan(Struct, frozen=True):
    """What `Lane` takes, and the names of the instances that it is to have. `inline`: they hold the event loop.

    `most_batch`: what max_batch may become, and rows that a request may have; the knobs may begin with less.
    """

    knobs: LaneKnobs
    prior: list[tuple[int | float, ...]]
    instances: Sequence[str]
    inline: bool
    most_batch: int


def plan_lane(
    config: ModelConfig,
    prior: Sequence[tuple[int | float, ...]],
    *,
    instances: Sequence[str],
    inline: bool,
    batched: bool,
    pads: bool = False,
    tenant_weights: Mapping[str, float] = EMPTY,
) -> LanePlan:
    """The model's knobs that LaneKnobs has too, under the same name, are the lane's; it begins with those of `start`.

    `batched`, `pads`: as the model's signature has it.
    """
    knobs = msgspec.convert(config.begun(LaneSettings.__struct_fields__), LaneKnobs, from_attributes=True)
    knobs = msgspec.structs.replace(
        knobs,
        max_batch=knobs.max_batch if batched else 1,
        max_batch_s=longest_s(inline=inline),
        tenant_weights=dict(tenant_weights),
        max_padding=MAX_PADDING if pads else 0.0,
    )
    return LanePlan(knobs, list(prior), instances, inline, config.max_batch if batched else 1)


def longest_s(*, inline: bool) -> float:
    """How long a batch may take without an objective to keep, beside the rule that batching has for it."""
    return AIM_S if inline else inf
