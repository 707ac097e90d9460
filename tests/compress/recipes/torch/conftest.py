"""The networks that several files make candidates of, trained once."""

from collections.abc import Callable
from functools import cache

import pytest

from dlproxy.compress.recipe import Source

EPOCHS = {"cnn": 6, "lstm": 15, "transformer": 12, "fixed": 1, "deep": 15, "resnet": 4}


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """By name, see digits.py."""

    @cache
    def make(name: str) -> Source:
        from tests.compress.recipes.torch import digits

        return digits.trained(tmp_path_factory.mktemp(name), name, epochs=EPOCHS[name])

    return make
