"""The fleet of invented cars: makes differ by style, the models of a make by their proportions."""

from dataclasses import dataclass, fields, replace

import numpy as np

from mtlcar.data.car_details import BADGES, GRILLES, LAMPS, RIMS
from mtlcar.errors import UserError

MAX_MAKES, MAX_MODELS = 24, 12

MAKE_NAMES = (
    *("Aurelan", "Borvane", "Caldis", "Dravik", "Estoria", "Fenmoor", "Galvani-Ost", "Hestrel"),
    *("Ivenna", "Jorvald", "Kestova", "Lumeria", "Mordane", "Nordhal", "Orvesta", "Pellandra"),
    *("Quorra", "Rostavik", "Solvang-Lee", "Tamarind", "Ustrava", "Verolux", "Wexhall", "Zephiro"),
)
_STEMS = (
    *("Al", "Bri", "Cor", "Del", "Em", "Fal", "Gar", "Hal", "Im", "Jun", "Kel", "Lor"),
    *("Mar", "Nim", "Or", "Per", "Ques", "Rin", "Sol", "Tar", "Ul", "Ven", "Wil", "Zan"),
)
_ENDINGS = ("tano", "deva", "mix", "bira", "sario", "gon", "lette", "pura", "quin", "rado", "via", "zenn")


@dataclass(frozen=True)
class MakeStyle:
    """What every model of a make shares, in every view.

    `grille`, `lamp`, `badge`, `rim` name shapes of car_details.py; the rest is geometry: `roof_arch` and
    `roof_slope` in m (height of the roof's curve, drop towards the rear), `kick` in m (rise of the window line to the
    rear), `squareness` is the superellipse exponent of the plan view, `chrome` and `two_tone` are finishes.
    """

    grille: str
    lamp: str
    badge: str
    rim: str
    roof_arch: float
    roof_slope: float
    kick: float
    squareness: float
    crease: float
    chrome: bool
    dark_roof: bool


@dataclass(frozen=True)
class Proportions:
    """Side and front proportions of a model; lengths in m.

    `cowl`, `roof_front`, `roof_rear`, `glass_rear` are distances from the nose as shares of the length: foot and head
    of the windscreen, head and foot of the rear window. `belt`, `nose`, `tail` are heights above the sill line as
    shares of the body height.
    """

    length: float
    width: float
    height: float
    wheelbase: float
    clearance: float
    wheel: float
    cowl: float
    roof_front: float
    roof_rear: float
    glass_rear: float
    belt: float
    nose: float
    tail: float

    def blend(self, other: "Proportions", share: float) -> "Proportions":
        """`share` of the way from these proportions to `other`'s."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Proportions(**{k: float(a + share * (b - a)) for k, (a, b) in pairs.items()})


#                         length width height w.base clear. wheel  cowl  r.front r.rear g.rear belt nose tail
TYPES: dict[str, Proportions] = {
    "hatchback": Proportions(4.05, 1.75, 1.49, 2.55, 0.17, 0.315, 0.22, 0.40, 0.86, 0.975, 0.60, 0.50, 0.62),
    "sedan": Proportions(4.65, 1.82, 1.45, 2.75, 0.16, 0.325, 0.27, 0.43, 0.69, 0.85, 0.60, 0.48, 0.63),
    "wagon": Proportions(4.75, 1.82, 1.48, 2.78, 0.16, 0.325, 0.26, 0.41, 0.89, 0.985, 0.60, 0.48, 0.62),
    "coupe": Proportions(4.35, 1.84, 1.32, 2.58, 0.13, 0.335, 0.32, 0.48, 0.63, 0.88, 0.62, 0.48, 0.66),
    "suv": Proportions(4.60, 1.90, 1.74, 2.72, 0.23, 0.375, 0.25, 0.37, 0.88, 0.98, 0.60, 0.54, 0.62),
    "pickup": Proportions(5.30, 1.92, 1.80, 3.20, 0.26, 0.385, 0.25, 0.355, 0.55, 0.585, 0.60, 0.55, 0.56),
    "van": Proportions(4.80, 1.92, 1.96, 2.95, 0.19, 0.335, 0.14, 0.29, 0.95, 0.99, 0.54, 0.42, 0.55),
}
"""Body types, in class order, with the proportions of their average car."""

AVERAGE = replace(TYPES["sedan"], height=1.55, roof_rear=0.77, glass_rear=0.92, cowl=0.25, roof_front=0.40)
"""What models are drawn towards as the difficulty grows."""

_DENSITY = {"hatchback": 118, "sedan": 126, "wagon": 128, "coupe": 142, "suv": 124, "pickup": 122, "van": 106}


@dataclass(frozen=True)
class CarModel:
    """One model of the fleet: labels, kerb weight of the base trim (kg) and drawing parameters."""

    make: str
    model: str
    type: str
    year: int
    weight: float
    make_index: int
    index: int
    doors: int
    style: MakeStyle
    shape: Proportions

    @property
    def name(self) -> str:
        """`<make> <model>`, unique in the fleet."""
        return f"{self.make} {self.model}"


def fleet(makes: int, models_per_make: int, seed: int) -> tuple[CarModel, ...]:
    """`makes * models_per_make` models, ordered by make, then model.

    A model depends on its make's number, its own number and `seed`, not on how many others are asked for; names do
    not depend on `seed` either.

    Raises:
        UserError: a number out of range.
    """
    for key, value, low, high in (
        ("makes", makes, 1, MAX_MAKES),
        ("models_per_make", models_per_make, 1, MAX_MODELS),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"synthetic_cars: {key} should be a whole number from {low} to {high}. Found {value!r}.")
    return tuple(
        _model(make, k, _style(make, seed), make * models_per_make + k, seed)
        for make in range(makes)
        for k in range(models_per_make)
    )


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))


def _style(make: int, seed: int) -> MakeStyle:
    """Every shape once among 8 makes; after that they pair up anew, so no two makes have more than one in common."""
    rng = _rng(seed, 11)
    lap = make // 8
    grille, lamp, badge, rim = (
        tuple(table)[int(rng.permutation(8)[(make + lap * step) % 8])]
        for table, step in ((GRILLES, 0), (LAMPS, 1), (BADGES, 2), (RIMS, 3))
    )
    own = _rng(seed, 12, make)
    return MakeStyle(
        grille=grille,
        lamp=lamp,
        badge=badge,
        rim=rim,
        roof_arch=float(own.uniform(0.015, 0.07)),
        roof_slope=float(own.uniform(0.0, 0.10)),
        kick=float(own.uniform(0.0, 0.09)),
        squareness=float(own.uniform(3.6, 5.5)),
        crease=float(own.uniform(0.35, 0.8)),
        chrome=bool(own.random() < 0.5),
        dark_roof=bool(make % 5 == 3),
    )


def _model(make: int, k: int, style: MakeStyle, index: int, seed: int) -> CarModel:
    rng = _rng(seed, 13, make, k)
    kinds = tuple(TYPES)
    # A make's first seven models are of seven types; the next ones come back larger or smaller.
    kind = kinds[int(_rng(seed, 14, make).permutation(len(kinds))[k % len(kinds)])]
    lap = k // len(kinds)
    size = float(rng.uniform(0.94, 1.06)) * (1.0, 0.88)[lap]
    base = TYPES[kind]
    shape = replace(
        base,
        length=base.length * size * float(rng.uniform(0.97, 1.03)),
        width=base.width * size**0.5,
        height=base.height * size**0.3 * float(rng.uniform(0.97, 1.03)),
        wheelbase=base.wheelbase * size * float(rng.uniform(0.97, 1.03)),
        wheel=base.wheel * float(rng.uniform(0.96, 1.05)),
        cowl=base.cowl + float(rng.uniform(-0.02, 0.02)),
        roof_front=base.roof_front + float(rng.uniform(-0.02, 0.02)),
        roof_rear=base.roof_rear + float(rng.uniform(-0.03, 0.02)),
        belt=base.belt + float(rng.uniform(-0.03, 0.03)),
        nose=base.nose + float(rng.uniform(-0.03, 0.03)),
        tail=base.tail + float(rng.uniform(-0.03, 0.03)),
    )
    doors = 2 if kind == "coupe" or (kind in ("hatchback", "pickup") and rng.random() < 0.4) else 4
    number = ((make * MAX_MODELS + k) * 115) % (MAX_MAKES * MAX_MODELS)  # 115 and 288 are coprime: no name twice
    stem, ending = divmod(number, len(_ENDINGS))
    return CarModel(
        make=MAKE_NAMES[make],
        model=_STEMS[stem] + _ENDINGS[(ending + 5 * stem) % len(_ENDINGS)],
        type=kind,
        year=int(rng.integers(2006, 2022)),
        weight=round(_DENSITY[kind] * shape.length * shape.width * shape.height, 0),
        make_index=make,
        index=index,
        doors=doors,
        style=style,
        shape=shape,
    )
