from typing import Any
def canonicalise(mod: Any) -> Any:
    return mod
