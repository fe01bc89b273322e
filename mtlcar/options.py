"""Checks of the numbers and switches that a part is configured with; `where` names the key, `head.hidden` say."""

import math

from mtlcar.errors import UserError


def number(
    where: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """A finite number within the given bounds.

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
    raise UserError(f"{where} should be {wanted}. Found {value!r}.")


def whole(where: str, value: object, *, least: int, most: int | None = None, because: str = "") -> int:
    """An int within the bounds.

    Raises:
        UserError: anything else, a float or a bool too; `because` stands behind the bounds.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most):
        return value
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UserError(f"{where} should be a whole number {bounds}{because}. Found {value!r}.")


def flag(where: str, value: object) -> bool:
    """A bool.

    Raises:
        UserError: anything else: the strings 'off' and 'no' are true in Python.
    """
    if isinstance(value, bool):
        return value
    raise UserError(f"{where} should be true or false. Found {value!r}.")
