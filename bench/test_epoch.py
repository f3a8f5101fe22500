"""One epoch over 60,000 images: the headline cases by every contender; ours per array library, plan and dtype.

The other cases are `bench.map`'s.
"""

from __future__ import annotations

import pytest

from bench.cases import case
from bench.conftest import Train
from bench.contender import CONTENDERS

CASES = ("full-batch", "mini-batch", "wide", "deep", "narrow", "dense-random", "half-dense")


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("name", CASES)
def test_epoch(train: Train, name: str, contender: str) -> None:
    """Time one epoch."""
    train(case(name), contender)
