"""Every fuzzing target on its seeds, on mutations of them, and on what once broke it. `python -m fuzz` goes further."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import fuzz

CORPUS = Path(__file__).parent / "corpus"
TARGETS = sorted(p.stem for p in (Path(fuzz.__file__).parent / "targets").glob("*.py") if p.stem != "__init__")
MUTATIONS = {"overrides": 12, "values": 20, "fingerprint": 50, "run_dir": 15, "label_transforms": 60}
"""Mutations tried, where one takes long; else 150."""
PLANTED = {
    "checkpoint": "fuzz.targets.checkpoint.read_point",
    "fingerprint": "fuzz.targets.fingerprint.fingerprint",
    "image": "mtlcar.data.decode.ImageDecoder.__call__",
    "image_lists": "mtlcar.data.compcars_lists.read_lists",
    "label_transforms": "fuzz.targets.label_transforms.make",
    "matfile": "mtlcar.data.stanford_cars.read",
    "overrides": "fuzz.targets.overrides.composed",
    "run_dir": "fuzz.targets.run_dir.collect",
    "steel_sheet": "mtlcar.data.advanced_steel.read_sheet",
    "values": "fuzz.targets.values.check",
}
"""What each target tries, broken on purpose."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy with some bytes changed, cut out, doubled, or the end torn off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        to = min(len(out), at + rng.choice((1, 2, 4, 16, 64)))
        kind = rng.randrange(5)
        if kind == 0:
            out[at:to] = rng.randbytes(to - at)
        elif kind == 1:
            del out[at:to]
        elif kind == 2:
            out[at:at] = out[at:to]
        elif kind == 3:
            out[at:to] = bytes([rng.choice((0, 1, 127, 255))]) * (to - at)
        else:
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_an_answer_escapes(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    try_one: Callable[[bytes], None] = target.try_one
    seeds = list(target.seeds())
    assert seeds
    for data in (b"", *seeds):
        try_one(data)
    rng = random.Random(0)
    for _ in range(MUTATIONS.get(name, 150)):
        try_one(mutated(rng.choice(seeds), rng))


@pytest.mark.parametrize("name", TARGETS)
def test_a_planted_fault_escapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing above could fail."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    target = importlib.import_module(f"fuzz.targets.{name}")
    monkeypatch.setattr(PLANTED[name], broken)
    seeds = list(target.seeds())

    def try_all() -> None:
        for data in seeds:
            target.try_one(data)

    with pytest.raises(ZeroDivisionError):
        try_all()


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*")), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_what_was_found_stays_mended(file: Path) -> None:
    importlib.import_module(f"fuzz.targets.{file.parent.name}").try_one(file.read_bytes())
