"""What a report takes for a setting that differs: not one that is switched off, nor one that old runs do not have."""

from typing import Any

import pytest

from mtlcar.report.varied import settings, varied
from tests.run_dirs import config


def of(label_fraction: Any = None, **loss: Any) -> dict[str, Any]:
    made = config(loss={"name": "default", "matching": 0.0, "matching_kind": "js", **loss})
    made["data"]["label_fraction"] = label_fraction
    return settings(made, ["make", "model"])


def old() -> dict[str, Any]:
    return settings(config(loss={"name": "default"}), ["make", "model"])


@pytest.mark.parametrize("other", [of(), of(matching=0), of(matching_kind="kl")])
def test_a_key_that_is_off_is_no_setting(other: dict[str, Any]) -> None:
    assert other == old()
    assert varied([old(), other]) == []


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (of({"model": 0.5}), ["data.label_fraction"]),
        (of(matching=0.5), ["loss.matching", "loss.matching_kind"]),
    ],
)
def test_a_key_that_is_on_is_one(other: dict[str, Any], keys: list[str]) -> None:
    assert varied([old(), other]) == keys
    assert varied([of(matching=1.0), of(matching=1.0, matching_kind="kl")]) == ["loss.matching_kind"]
