"""Squares of symbols as pictures: a colour for each symbol, a pattern for each symbol of a second grammar."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
from PIL import Image

from mtlcar.data.drawn import file_name
from mtlcar.data.hierarchy_grammar import Grammar, GrammarSize, different_choices, draw_grammar

SPLITS = ("train", "test", "train", "val", "train", "train", "test", "train", "train", "train")
"""Split of a class's 1st, 2nd, ... picture, over and over: four are enough for all three."""
LEVELS_OF_COLOUR = (40, 128, 216)
CONTRAST = 24
"""Grey levels by which a pattern darkens or lightens a patch: less than half of what is between two colours."""
MAX_VOCABULARY = 16
"""As many symbols as there are patterns."""
AT_ONCE = 256
RULES, CHOICES, OTHER_RULES, OTHER_CHOICES, OTHER_LABELS, NOISE = range(6)


@dataclass(frozen=True)
class HierarchySet:
    """What is drawn: `images` pictures of `size` px, the classes in turn.

    Every kind of randomness has a generator of its own, so that a picture does not depend on how many others there are.

    Attributes:
        grammar: of the classes.
        unrelated: whether a second grammar of the same size, without superclasses, is laid over the first.
        noise: standard deviation added to every pixel and channel, as a share of the range.
    """

    grammar: GrammarSize
    unrelated: bool
    images: int
    size: int
    noise: float
    draw_seed: int

    def rng(self, stream: int, number: int = 0) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.draw_seed, stream, number)))

    @property
    def classes(self) -> np.ndarray:
        """int64 [images]."""
        return np.arange(self.images) % self.grammar.classes

    @property
    def other_classes(self) -> np.ndarray:
        """int64 [images], of the second grammar: each once while the classes take a turn, in a random order."""
        rng, turns = self.rng(OTHER_LABELS), -(-self.images // self.grammar.classes)
        return np.concatenate([rng.permutation(self.grammar.classes) for _ in range(turns)])[: self.images]

    def rules(self) -> Grammar:
        return draw_grammar(self.grammar, self.rng(RULES))

    def other_rules(self) -> Grammar:
        g = self.grammar
        size = GrammarSize(g.classes, g.vocabulary, g.synonyms, g.depth, g.branching)
        return draw_grammar(size, self.rng(OTHER_RULES))

    def squares(self, grammar: Grammar, classes: np.ndarray, stream: int) -> np.ndarray:
        """Symbols uint8 [images, side, side] of these classes, no two squares alike."""
        choices = np.empty((self.images, grammar.size.choices), dtype=np.int32)
        for c in range(grammar.size.classes):
            rows = np.flatnonzero(classes == c)
            choices[rows] = list(islice(different_choices(grammar.size, self.rng(stream, c)), len(rows)))
        parts = [slice(i, i + AT_ONCE) for i in range(0, self.images, AT_ONCE)]
        return np.concatenate([grammar.write(classes[p], choices[p]).astype(np.uint8) for p in parts])

    def pictures(self) -> Iterator[np.ndarray]:
        """uint8 [size, size, 3], one after the other."""
        patch = self.size // self.grammar.side
        colours, cells = palette(self.grammar.vocabulary), patterns()
        squares = self.squares(self.rules(), self.classes, CHOICES)
        others = self.squares(self.other_rules(), self.other_classes, OTHER_CHOICES) if self.unrelated else None
        for i, square in enumerate(squares):
            image = colours[square].repeat(patch, 0).repeat(patch, 1)
            if others is not None:
                half = cells[others[i]].transpose(0, 2, 1, 3).reshape(2 * len(square), 2 * len(square))
                image = image + CONTRAST * half.repeat(patch // 2, 0).repeat(patch // 2, 1)[..., None]
            if self.noise:
                image = image + np.rint(255 * self.noise * self.rng(NOISE, i).standard_normal(image.shape))
            yield image.clip(0, 255).astype(np.uint8)

    def rows(self) -> Iterator[dict[str, object]]:
        """The lines of the label file."""
        for i, (c, other) in enumerate(zip(self.classes.tolist(), self.other_classes.tolist(), strict=True)):
            labels = {"superclass": c // (self.grammar.classes // self.grammar.superclasses), "class": c}
            if self.unrelated:
                labels["unrelated"] = other
            yield {"file": file_name(i), **labels, "split": SPLITS[i // self.grammar.classes % len(SPLITS)]}


def palette(count: int) -> np.ndarray:
    """int64 [count, 3]: colours far apart, each the one farthest from those before it."""
    grid = np.array(list(product(LEVELS_OF_COLOUR, repeat=3)))
    chosen = [0]
    while len(chosen) < count:
        distance = np.linalg.norm(grid[:, None] - grid[chosen], axis=2).min(axis=1)
        chosen.append(int(distance.argmax()))
    return grid[chosen]


def patterns() -> np.ndarray:
    """int64 [16, 2, 2] of -1 and 1: every way to darken and lighten the quarters of a patch."""
    bits = np.arange(MAX_VOCABULARY)[:, None] >> np.arange(4) & 1
    return (2 * bits - 1).reshape(MAX_VOCABULARY, 2, 2)


def write_pictures(made: HierarchySet, folder: Path) -> None:
    """All pictures to `folder/images`, their labels to `labels.csv`, the rules to `grammar.json`."""
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(made.pictures()):
        Image.fromarray(image).save(folder / file_name(i), compress_level=1)
    rows = list(made.rows())
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    grammars = {"class": made.rules(), **({"unrelated": made.other_rules()} if made.unrelated else {})}
    rules = {name: {"top": g.top.tolist(), "below": [t.tolist() for t in g.below]} for name, g in grammars.items()}
    (folder / "grammar.json").write_text(json.dumps(rules) + "\n", encoding="utf-8")
