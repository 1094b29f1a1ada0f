"""The classes that replace those of SDKs in the tests have the names and bases of the real ones."""

from __future__ import annotations

import pytest

from support.lookalikes import LOOKALIKES, classes_of, importorskip


@pytest.mark.parametrize("module", LOOKALIKES)
def test_a_lookalike_has_the_bases_of_the_real_class_in_their_order(module: str) -> None:
    real_module = importorskip(module)
    for name, lookalike in classes_of(module).items():
        real = getattr(real_module, name)
        assert real.__module__.partition(".")[0] == module.partition(".")[0]
        names = iter(base.__name__ for base in real.__mro__)
        missing = [base.__name__ for base in lookalike.__mro__ if base.__name__ not in names]
        assert missing == []
