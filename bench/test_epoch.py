"""One epoch over 60,000 images: every case by every contender; ours per array library, plan and dtype."""

from __future__ import annotations

import pytest

from bench.cases import CASES, case
from bench.conftest import Train
from bench.contender import CONTENDERS


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("name", CASES)
def test_epoch(train: Train, name: str, contender: str) -> None:
    """Time one epoch."""
    train(case(name), contender)
