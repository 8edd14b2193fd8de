# MindSpore's own annotations are wrong in many places (operators that return None, cells that cannot be called), so the
# type checker is told nothing about it.
from typing import Any

def __getattr__(name: str) -> Any: ...
