"""Pictures written by a random grammar, with a coarse and a fine label of known difficulty, made on first use."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.car_levels import check_levels
from mtlcar.data.drawn import drawn_folder
from mtlcar.data.hierarchy_grammar import GrammarSize
from mtlcar.data.hierarchy_pictures import MAX_VOCABULARY, HierarchySet, write_pictures
from mtlcar.errors import UserError
from mtlcar.options import flag, number, whole
from mtlcar.tasks import Task, TaskSet

VERSION = 1
"""Part of the folder's name: raise it with every change that alters a picture or a label."""
LEVELS = ("superclass", "class", "unrelated")


def read(
    root: Path | None,
    *,
    levels: Iterable[str] | None = None,
    classes: int = 8,
    superclasses: int = 4,
    vocabulary: int = 8,
    synonyms: int = 4,
    depth: int = 2,
    branching: int = 4,
    shared_rules: float = 1.0,
    unrelated: bool = False,
    images: int = 4000,
    size: int = 32,
    noise: float = 0.0,
    draw_seed: int = 0,
) -> tuple[Annotations, TaskSet]:
    """The pictures under `root`, made there first if they are not there yet.

    The Random Hierarchy Model (Cagnetta, Petrini, Tomasini, Favero, Wyart: How Deep Neural Networks Learn Compositional
    Data, arXiv 2307.02129): a class is replaced by one of its m tuples of s symbols, each of these by one of its own m
    tuples, and so on, L times; all rules of a level are different, so that a picture has one class only. The paper
    finds that deep networks learn the class from about n_c m^L examples: from fewer they do not see which tuples are
    synonyms. The paper's data are strings; here the s = 4 symbols of a tuple lie in a square of 2 x 2 and the s^L
    symbols of the last level are patches of one colour each, so that a picture is a quadtree.

    Ours, to ask when a second task helps:

    - `superclass`: consecutive classes together. With shared_rules=1 its classes have nothing in common but what all
      have, so it needs the hidden symbols that the class needs, and labels of one teach what the other needs. It is a
      symbol with m n_c / superclasses rules, so the paper's argument (which has no such task) gives it the same
      n_c m^L. With shared_rules=0 every superclass writes its symbols with tuples of its own: any one tuple of the
      last level tells the superclass, no synonyms need be known, and it teaches little of what the class needs.
    - `unrelated`: the class of another picture, written by an independent grammar of the same size and laid over the
      first as a pattern in each patch. Nothing that one task needs is of use to the other.

    The split is given: 70/10/20 with every class in each part, and no two pictures are written alike.

    Args:
        root: folder for generated sets; each lies in a folder named after the digest of its options, with the rules
            in grammar.json.
        levels: tasks in order, of superclass, class and unrelated; None: all there are.
        classes, vocabulary, synonyms, depth, branching: n_c, v, m, L and s.
        superclasses: at least 2, a divisor of `classes` below it.
        shared_rules: share of the m rules of each symbol below the class that all superclasses have; the others are a
            superclass's own.
        unrelated: lay the second grammar over the pictures, whether or not it is one of the levels.
        size: side of the pictures in pixels, a multiple of sqrt(s)^L (twice that with `unrelated`).
        noise: standard deviation of what is added to every pixel and channel, as a share of the range.
        draw_seed: of everything random, the grammars included.

    Raises:
        UserError: an option out of range, more pictures than can be written, no room, or a folder that cannot be
            written.
    """
    made = _checked(
        classes=classes,
        superclasses=superclasses,
        vocabulary=vocabulary,
        synonyms=synonyms,
        depth=depth,
        branching=branching,
        shared_rules=shared_rules,
        unrelated=unrelated,
        images=images,
        size=size,
        noise=noise,
        draw_seed=draw_seed,
    )
    there = LEVELS if made.unrelated else LEVELS[:2]
    names = there if levels is None else check_levels(levels, LEVELS)
    if set(names) - set(there):
        raise UserError("data.levels has unrelated, and no such pattern is drawn. Set data.unrelated=true as well.")
    if root is None:
        raise UserError("random_hierarchy: data.root should be a folder to draw into. Found null.")
    folder = drawn_folder("random_hierarchy", Path(root), made, VERSION, write_pictures)
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tasks = _tasks(names, made.grammar)
    annotations = Annotations(
        root=folder,
        paths=tuple(row["file"] for row in rows),
        targets={name: np.array([int(row[name]) for row in rows], dtype=np.int64) for name in names},
        split=np.array([row["split"] for row in rows]),
    )
    return annotations.check(tasks), tasks


def _tasks(names: tuple[str, ...], grammar: GrammarSize) -> TaskSet:
    each = grammar.classes // grammar.superclasses
    parent = [c // each for c in range(grammar.classes)]
    known = {
        "superclass": Task("superclass", "classification", classes=tuple(f"s{k}" for k in range(grammar.superclasses))),
        "class": Task(
            "class",
            "classification",
            classes=tuple(f"s{k}c{c % each}" for c, k in enumerate(parent)),
            parent="superclass" if "superclass" in names else None,
        ),
        "unrelated": Task("unrelated", "classification", classes=tuple(f"u{c}" for c in range(grammar.classes))),
    }
    return TaskSet(
        (known[name] for name in names), {"class": parent} if {"class", "superclass"} <= set(names) else None
    )


def _checked(**options: Any) -> HierarchySet:
    """The options, each in range and possible together."""
    ranges = {
        "classes": (4, 1000),
        "superclasses": (2, 500),
        "vocabulary": (2, MAX_VOCABULARY),
        "synonyms": (1, 1000),
        "depth": (2, 4),  # of one level there is nothing to learn: the rules of a class have nothing in common
        "branching": (4, 9),
        "images": (1, 999_999),
        "size": (4, 512),
        "draw_seed": (0, 2**63 - 1),
    }
    found = {key: whole(f"data.{key}", options[key], least=a, most=b) for key, (a, b) in ranges.items()}
    share = number("data.shared_rules", options["shared_rules"], least=0, most=1)
    sizes = ("classes", "vocabulary", "synonyms", "depth", "branching", "superclasses")
    grammar = GrammarSize(**{key: found[key] for key in sizes}, shared_rules=share)
    unrelated = flag("data.unrelated", options["unrelated"])
    if grammar.superclasses == grammar.classes:
        raise UserError(f"data.superclasses should be fewer than data.classes. Found {grammar.classes} of both.")
    step = grammar.side * (2 if unrelated else 1)
    if found["size"] % step:
        raise UserError(
            f"data.size should be a multiple of {step} pixels: {grammar.side} patches along a side"
            f"{', of two halves each for the pattern of the unrelated grammar' if unrelated else ''}. "
            f"Found {found['size']}."
        )
    fewest, most = 4 * grammar.classes, grammar.classes * grammar.squares_per_class
    if fewest > most:
        raise UserError(
            f"data.synonyms={grammar.synonyms} and data.depth={grammar.depth} give each class "
            f"{grammar.squares_per_class} different pictures, too few for three splits. Use more of either."
        )
    if not fewest <= found["images"] <= most:
        raise UserError(
            f"data.images should be from {fewest} (4 a class, so that each split has every class) to {most} (no two "
            f"are written alike, and a class can be written in {grammar.squares_per_class} ways). "
            f"Found {found['images']}."
        )
    noise = number("data.noise", options["noise"], least=0, most=1)
    return HierarchySet(grammar, unrelated, found["images"], found["size"], noise, found["draw_seed"])
