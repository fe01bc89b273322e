"""The Random Hierarchy Model: a random grammar in which a class writes a square of symbols, level by level."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtlcar.errors import UserError

BLOCK = 256
"""Derivations drawn at a time: fixed, so that the first of them do not depend on how many are asked for."""


@dataclass(frozen=True)
class GrammarSize:
    """How large a grammar is, in the letters of arXiv 2307.02129 where it has one.

    Attributes:
        classes: n_c.
        vocabulary: v, symbols of each level below the class.
        synonyms: m, rules of each symbol, all equally likely.
        depth: L, levels of rules.
        branching: s, symbols on the right of a rule, a square number: they lie in a square.
        superclasses: groups of equally many consecutive classes; 1: none.
        shared_rules: share of the rules below the classes' own that all superclasses have in common (ours).

    Raises:
        UserError: a grammar of that size would be ambiguous, or superclasses or shared rules are no whole numbers.
    """

    classes: int
    vocabulary: int
    synonyms: int
    depth: int
    branching: int = 4
    superclasses: int = 1
    shared_rules: float = 1.0

    def __post_init__(self) -> None:
        if math.isqrt(self.branching) ** 2 != self.branching:
            raise UserError(f"data.branching should be a square number (4 or 9). Found {self.branching}.")
        if self.classes % self.superclasses:
            raise UserError(
                f"data.classes should be a multiple of data.superclasses, so that all have equally many. "
                f"Found {self.classes} and {self.superclasses}."
            )
        if abs(self.common - self.shared_rules * self.synonyms) > 1e-9:
            possible = ", ".join(f"{i / self.synonyms:g}" for i in range(self.synonyms + 1))
            raise UserError(
                f"data.shared_rules times data.synonyms should be a whole number of rules: with data.synonyms="
                f"{self.synonyms} one of {possible}. Found {self.shared_rules:g}."
            )
        possible_tuples = self.vocabulary**self.branching
        what = f"{self.vocabulary}^{self.branching} = {possible_tuples} tuples of data.branching symbols"
        if self.classes * self.synonyms > possible_tuples:
            raise UserError(
                f"data.classes x data.synonyms = {self.classes * self.synonyms} rules need as many different tuples, "
                f"and there are {what}. Choose fewer, or a larger data.vocabulary."
            )
        if self.depth > 1 and self.rules_below > possible_tuples:
            own = "" if self.common == self.synonyms else " (data.superclasses times those that are not shared)"
            raise UserError(
                f"A level below the classes has {self.rules_below} rules{own}, which need as many different tuples, "
                f"and there are {what}. Choose fewer data.synonyms, or a larger data.vocabulary."
            )

    @property
    def common(self) -> int:
        """Rules of a symbol that all superclasses have."""
        return round(self.shared_rules * self.synonyms)

    @property
    def rules_below(self) -> int:
        """Different rules of a level below the classes' own."""
        return self.vocabulary * (self.common + self.superclasses * (self.synonyms - self.common))

    @property
    def choices(self) -> int:
        """Rules that are applied to write one square, (s^L - 1) / (s - 1)."""
        return sum(self.branching**level for level in range(self.depth))

    @property
    def squares_per_class(self) -> int:
        """Different squares of one class, m^choices; times n_c they are the paper's P_max."""
        return int(self.synonyms**self.choices)

    @property
    def side(self) -> int:
        """Symbols along a side of the square."""
        return int(math.isqrt(self.branching) ** self.depth)

    @property
    def sample_complexity(self) -> int:
        """n_c m^L: the order of the number of training examples from which deep networks learn the class, found in the
        paper for one set of rules (shared_rules=1)."""
        return int(self.classes * self.synonyms**self.depth)


@dataclass(frozen=True)
class Grammar:
    """The rules themselves.

    Attributes:
        size: how many of everything.
        top: int64 [classes, m, s], what a class becomes.
        below: depth - 1 tables int64 [superclasses, v, m, s], what a symbol of a level becomes in each superclass; its
            first `size.common` rules are the same in all.
    """

    size: GrammarSize
    top: np.ndarray
    below: tuple[np.ndarray, ...]

    def superclass(self, classes: np.ndarray) -> np.ndarray:
        """Classes [N] -> their superclasses [N]."""
        return classes // (self.size.classes // self.size.superclasses)

    def write(self, classes: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """The squares int64 [N, side, side] of classes [N] whose rules are `choices` [N, size.choices] in 0..m-1.

        A symbol becomes a square of sqrt(s) x sqrt(s), row by row; choices are taken level by level, row by row.
        """
        n, r = len(classes), math.isqrt(self.size.branching)
        owner = self.superclass(classes)[:, None, None]
        square, used = classes[:, None, None], 0
        for level in range(self.size.depth):
            side = square.shape[1]
            chosen = choices[:, used : used + side * side].reshape(n, side, side)
            used += side * side
            parts = self.top[square, chosen] if level == 0 else self.below[level - 1][owner, square, chosen]
            parts = parts.reshape(n, side, side, r, r).transpose(0, 1, 3, 2, 4)
            square = parts.reshape(n, side * r, side * r)
        return square


def draw_grammar(size: GrammarSize, rng: np.random.Generator) -> Grammar:
    """A random grammar (arXiv 2307.02129, section 2): at each level all rules have different right sides, drawn
    uniformly without replacement, so that a square can be read in one way only.

    With shared_rules < 1 (ours) every superclass has rules of its own below its classes. They too are different from
    all others of their level, so that a tuple still means one symbol; and the own ones tell the superclass.
    """
    v, m, s = size.vocabulary, size.synonyms, size.branching
    top = _tuples(size.classes * m, v, s, rng).reshape(size.classes, m, s)
    below = []
    for _ in range(size.depth - 1):
        tuples = _tuples(size.rules_below, v, s, rng)
        cut = v * size.common
        common = tuples[:cut].reshape(1, v, size.common, s)
        own = tuples[cut:].reshape(size.superclasses, v, m - size.common, s)
        below.append(np.concatenate([np.broadcast_to(common, (size.superclasses, *common.shape[1:])), own], axis=2))
    return Grammar(size, top, tuple(below))


def _tuples(count: int, vocabulary: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different tuples, int64 [count, length] in 0..vocabulary-1, in a random order."""
    codes = rng.choice(vocabulary**length, size=count, replace=False)
    powers = vocabulary ** np.arange(length - 1, -1, -1)
    return codes[:, None] // powers % vocabulary


def different_choices(size: GrammarSize, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Choices of rules [size.choices] for one class, all equally likely and never the same twice: `squares_per_class`
    of them, then none."""
    seen: set[bytes] = set()
    while len(seen) < size.squares_per_class:
        for row in rng.integers(size.synonyms, size=(BLOCK, size.choices), dtype=np.int32):
            key = row.tobytes()
            if key not in seen:
                seen.add(key)
                yield row
