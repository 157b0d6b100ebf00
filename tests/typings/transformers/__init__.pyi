"""The type checker does not read transformers: that took a third of its time, and found nothing."""

from typing import Any

def __getattr__(name: str) -> Any: ...
