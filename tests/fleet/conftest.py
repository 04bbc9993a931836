"""What tests of the fleet share."""

from __future__ import annotations

import pytest
from botocore.retries.standard import ExponentialBackoff


@pytest.fixture(autouse=True)
def _repeat_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore pauses for up to some seconds between its attempts; what comes of them doesn't depend on it."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.001)
