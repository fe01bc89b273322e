"""Options of the weightings: what cannot be meant is refused by key and method, and never taken for something else."""

import math
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from mtlcar.config import conf_dir
from mtlcar.errors import UserError
from mtlcar.weightings.options import flag, number, whole
from tests.weighting_net import TASKS

NO_NUMBERS = (True, False, "abc", "0.5", None, math.nan, math.inf, -math.inf, [0.5], 10**400)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("bounds", [{}, {"above": -1}, {"least": -1, "most": 2}])
def test_what_is_no_finite_number_is_refused(value: object, bounds: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^weighting\.alpha \(fairgrad\) should be a .*number.* Found "):
        number("fairgrad", "alpha", value, **bounds)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({"above": 0}, (1e-300, 7), (0, -0.0, -1), "a number above 0"),
        ({"least": 0}, (0, 1), (-1e-9,), "a number of at least 0"),
        ({"below": 1}, (0.999, -5), (1, 2), "a number below 1"),
        ({"most": 1}, (1, -5), (1.001,), "a number at most 1"),
        ({"above": 0, "most": 1}, (0.5, 1), (0, 1.5), "a number above 0 and at most 1"),
        ({"least": -1, "below": 1}, (-1, 0), (1, -1.5), "a number of at least -1 and below 1"),
    ],
)
def test_bounds_hold_and_are_named(
    bounds: dict[str, float], inside: tuple[float, ...], outside: tuple[float, ...], words: str
) -> None:
    for value in inside:
        found = number("m", "key", value, **bounds)
        assert found == value
        assert isinstance(found, float)
    for value in outside:
        with pytest.raises(UserError) as error:
            number("m", "key", value, **bounds)
        assert str(error.value) == f"weighting.key (m) should be {words}. Found {value!r}."


def test_without_bounds_every_finite_number_will_do() -> None:
    assert number("m", "key", -3) == -3.0
    with pytest.raises(UserError, match=r"should be a finite number\. Found 'x'\."):
        number("m", "key", "x")


def test_a_flag_is_true_or_false() -> None:
    assert flag("m", "normalize", True) is True
    assert flag("m", "normalize", False) is False
    for value in ("off", "no", "false", "", 0, 1, None, 1.0):
        with pytest.raises(UserError, match=r"weighting\.normalize \(m\) should be true or false\. Found "):
            flag("m", "normalize", value)


def test_a_count_is_a_whole_number() -> None:
    assert whole("m", "epochs", 4, least=0) == 4
    for value in (-1, 1.5, 4.0, True, "4", None):
        with pytest.raises(UserError, match=r"weighting\.epochs \(m\) should be a whole number of at least 0\. Found "):
            whole("m", "epochs", value, least=0)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dwa", "tau"), ("stch", "mu"), ("stch", "warmup_epochs"), ("famo", "lr"), ("famo", "decay"),
        ("moco", "beta0"), ("moco", "gamma0"), ("moco", "rho"), ("db_mtl", "beta"), ("graddrop", "leak"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [True, False, "abc", None, math.nan, math.inf])
def test_every_own_option_is_checked(name: str, key: str, value: Any) -> None:
    cls = get_class(OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")._target_)
    with pytest.raises(UserError, match=rf"weighting\.{key} .*Found"):
        cls(TASKS, **{key: value})
