"""Checks of the numbers and switches that a weighting is configured with."""

import math

from mtlcar.errors import UserError


def number(
    method: str,
    key: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """`weighting.<key>` of a method as a finite number within the given bounds.

    Args:
        above: what it must exceed.
        least: the least it may be.
        below: what it must stay under.
        most: the most it may be.

    Raises:
        UserError: anything else, such as a string, a bool (which Python takes for 0 or 1), NaN or infinity.
    """
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            found = float(value)
        except OverflowError:  # an int beyond float64
            found = math.inf
        if (
            math.isfinite(found)
            and (above is None or found > above)
            and (least is None or found >= least)
            and (below is None or found < below)
            and (most is None or found <= most)
        ):
            return found
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("above", above), ("of at least", least), ("below", below), ("at most", most))
        if bound is not None
    ]
    wanted = " ".join(["a finite number" if not bounds else "a number", " and ".join(bounds)]).rstrip()
    raise UserError(f"weighting.{key} ({method}) should be {wanted}. Found {value!r}.")


def whole(method: str, key: str, value: object, *, least: int) -> int:
    """`weighting.<key>` of a method as an int of at least `least`.

    Raises:
        UserError: anything else, a float or a bool too.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise UserError(f"weighting.{key} ({method}) should be a whole number of at least {least}. Found {value!r}.")


def flag(method: str, key: str, value: object) -> bool:
    """`weighting.<key>` of a method as a bool.

    Raises:
        UserError: anything else: the strings 'off' and 'no' are true in Python.
    """
    if isinstance(value, bool):
        return value
    raise UserError(f"weighting.{key} ({method}) should be true or false. Found {value!r}.")
