"""Checks of the numbers and switches that a weighting is configured with; see `mtlcar.options`."""

from mtlcar import options


def number(method: str, key: str, value: object, **bounds: float) -> float:
    """`weighting.<key>` of a method as a finite number within the bounds above, least, below, most."""
    return options.number(f"weighting.{key} ({method})", value, **bounds)


def whole(method: str, key: str, value: object, *, least: int) -> int:
    """`weighting.<key>` of a method as an int of at least `least`."""
    return options.whole(f"weighting.{key} ({method})", value, least=least)


def flag(method: str, key: str, value: object) -> bool:
    """`weighting.<key>` of a method as a bool."""
    return options.flag(f"weighting.{key} ({method})", value)
