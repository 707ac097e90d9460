"""Examples of lanes are drawn alike in every process, whatever else it has imported."""

from collections.abc import Iterator

import pytest
from hypothesis.internal.conjecture import providers


@pytest.fixture(autouse=True, scope="package")
def no_constants_of_modules() -> Iterator[None]:
    """Hypothesis mixes constants of all code of ours into what it draws: of the modules that the tests before have imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", providers.Constants)
        providers.CONSTANTS_CACHE.cache.clear()
        yield
    providers.CONSTANTS_CACHE.cache.clear()
