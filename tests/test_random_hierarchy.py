"""The Random Hierarchy Model: a parser that knows only the rules reads every label off the pixels, in one way."""

import hashlib
import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2, chi2_contingency, chisquare
from torch import nn

from mtlcar.config import compose_config
from mtlcar.data.annotations import Annotations
from mtlcar.data.commands import list_datasets, verify
from mtlcar.data.hierarchy_grammar import GrammarSize, different_choices, draw_grammar
from mtlcar.data.hierarchy_pictures import palette, patterns
from mtlcar.data.options import read_annotations
from mtlcar.data.random_hierarchy import read
from mtlcar.errors import UserError
from tests.layout_samples import output_with_hash_seed

SMALL: dict[str, Any] = {"classes": 4, "superclasses": 2, "vocabulary": 4, "synonyms": 2, "images": 64, "size": 16}


def digest(folder: Path) -> str:
    """Of all files' names and bytes under a folder."""
    h = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        h.update(f"{file.relative_to(folder)}".encode() + file.read_bytes())
    return h.hexdigest()


def symbols(picture: np.ndarray, side: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour and pattern of each patch, read off the pixels: two squares [side, side]."""
    patch = len(picture) // side
    colour, pattern = np.zeros((side, side), int), np.zeros((side, side), int)
    for y, x in product(range(side), repeat=2):
        block = picture[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].astype(float)
        half = patch // 2
        quarters = np.array([block[a : a + half, b : b + half].mean((0, 1)) for a, b in product((0, half), repeat=2)])
        guesses = [
            (np.abs(quarters - (c + 24 * np.ravel(p)[:, None])).sum(), i, j)
            for i, c in enumerate(palette(vocabulary))
            for j, p in enumerate(patterns()[:vocabulary])
        ]
        flat = [(np.abs(quarters - c).sum(), i, -1) for i, c in enumerate(palette(vocabulary))]
        _, colour[y, x], pattern[y, x] = min(guesses + flat)
    return colour, pattern


def parse(square: np.ndarray, rules: list[dict[tuple[int, ...], set[tuple[int, int]]]], branch: int) -> set[int]:
    """All symbols that some sequence of rules turns into `square`, by trying everything, from the leaves up.

    rules: a level, top first -> {tuple: {(superclass, symbol)}}.
    """

    def readings(part: np.ndarray, level: int) -> set[tuple[int | None, int]]:
        if level == len(rules):
            return {(None, int(part[0, 0]))}
        step = len(part) // branch
        blocks = [part[a : a + step, b : b + step] for a, b in product(range(0, len(part), step), repeat=2)]
        found: set[tuple[int | None, int]] = set()
        for combination in product(*(readings(block, level + 1) for block in blocks)):
            below = {owner for owner, _ in combination if owner is not None}
            for owner, symbol in rules[level].get(tuple(s for _, s in combination), ()):
                if below <= {owner}:
                    found.add((owner, symbol))
        return found

    return {symbol for _, symbol in readings(square, 0)}


def rules_of(grammar: dict[str, Any], superclasses: int) -> list[dict[tuple[int, ...], set[tuple[int, int]]]]:
    """grammar.json's tables the other way round."""
    each = len(grammar["top"]) // superclasses
    levels: list[dict[tuple[int, ...], set[tuple[int, int]]]] = [{}]
    for symbol, tuples in enumerate(grammar["top"]):
        for t in tuples:
            levels[0].setdefault(tuple(t), set()).add((symbol // each, symbol))
    for table in grammar["below"]:
        levels.append({})
        for owner, rows in enumerate(table):
            for symbol, tuples in enumerate(rows):
                for t in tuples:
                    levels[-1].setdefault(tuple(t), set()).add((owner, symbol))
    return levels


def pixels(annotations: Annotations, i: int) -> np.ndarray:
    with Image.open(annotations.file(i)) as image:
        return np.asarray(image)


# --- the grammar ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({}, 64),
        ({"shared_rules": 0.5, "unrelated": True}, 64),
        ({"shared_rules": 0.0, "depth": 3, "unrelated": True, "draw_seed": 3}, 24),
        ({"depth": 4, "size": 64, "draw_seed": 9}, 4),
        ({"branching": 9, "vocabulary": 2, "synonyms": 3, "size": 36, "shared_rules": 1 / 3}, 12),
        ({"vocabulary": 16, "synonyms": 5, "noise": 0.02, "unrelated": True, "size": 32}, 8),
        ({"vocabulary": 2, "synonyms": 4, "classes": 4, "size": 8, "depth": 2}, 64),  # every tuple is a rule
    ],
    ids=str,
)
def test_a_parser_reads_the_labels_off_every_picture_in_one_way(
    tmp_path: Path, options: dict[str, Any], checked: int
) -> None:
    options = {**SMALL, **options}
    annotations, tasks = read(tmp_path, **options)
    grammars = json.loads((annotations.root / "grammar.json").read_text())
    branch = 3 if options.get("branching") == 9 else 2
    side = branch ** options.get("depth", 2)
    main = rules_of(grammars["class"], options["superclasses"])
    for i in range(0, len(annotations), len(annotations) // checked):
        colour, pattern = symbols(pixels(annotations, i), side, options["vocabulary"])
        label = annotations.targets["class"][i]
        assert parse(colour, main, branch) == {label}
        assert annotations.targets["superclass"][i] == label // (options["classes"] // options["superclasses"])
        if options.get("unrelated"):
            found = parse(pattern, rules_of(grammars["unrelated"], 1), branch)
            assert found == {annotations.targets["unrelated"][i]}
    assert tasks.parent_of["class"] == tuple(c // 2 for c in range(4))


@pytest.mark.parametrize("common", [0, 1, 3, 4])
def test_the_rules_of_a_level_are_all_different_and_the_shared_ones_common(common: int) -> None:
    size = GrammarSize(6, 5, 4, 3, 4, superclasses=3, shared_rules=common / 4)
    grammar = draw_grammar(size, np.random.default_rng(1))
    assert grammar.top.shape == (6, 4, 4)
    assert len({tuple(t) for t in grammar.top.reshape(-1, 4).tolist()}) == 24
    assert len(grammar.below) == 2
    for table in grammar.below:
        assert table.shape == (3, 5, 4, 4)
        assert table.min() >= 0
        assert table.max() < 5
        seen = Counter(tuple(t) for t in table.reshape(-1, 4).tolist())
        assert Counter(seen.values()) == Counter({3: 5 * common, 1: 3 * 5 * (4 - common)}) - Counter()
    other = draw_grammar(size, np.random.default_rng(2))
    assert (other.top != grammar.top).any()


def test_without_shared_rules_one_tuple_tells_the_superclass_and_with_them_none_does(tmp_path: Path) -> None:
    for share, certain in ((0.0, True), (1.0, False)):
        annotations, _ = read(tmp_path, **{**SMALL, "images": 128, "shared_rules": share})
        owners: dict[tuple[int, ...], set[int]] = {}
        for i in range(len(annotations)):
            square, _ = symbols(pixels(annotations, i), 4, 4)
            for y, x in product((0, 2), repeat=2):
                block = tuple(square[y : y + 2, x : x + 2].ravel().tolist())
                owners.setdefault(block, set()).add(int(annotations.targets["superclass"][i]))
        assert all(len(found) == 1 for found in owners.values()) == certain
        assert max(len(found) for found in owners.values()) == (1 if certain else 2)


def test_every_square_of_a_class_comes_once_and_then_none() -> None:
    size = GrammarSize(4, 4, 2, 2)
    assert (size.choices, size.squares_per_class, size.sample_complexity) == (5, 32, 16)
    rows = {tuple(row.tolist()) for row in different_choices(size, np.random.default_rng(0))}
    assert rows == set(product(range(2), repeat=5))
    grammar = draw_grammar(size, np.random.default_rng(0))
    chosen = np.array(sorted(rows))
    squares = np.concatenate([grammar.write(np.full(32, c), chosen) for c in range(4)])
    assert len({square.tobytes() for square in squares}) == 4 * 32  # P_max of the paper: n_c m^((s^L - 1) / (s - 1))


def test_all_rules_are_used_equally_often() -> None:
    size = GrammarSize(4, 8, 4, 3)
    rng = np.random.default_rng(0)
    rows = np.array([row for row, _ in zip(different_choices(size, rng), range(3000), strict=False)])
    for column in (0, 3, 20):
        assert chisquare(np.bincount(rows[:, column], minlength=4)).pvalue > 1e-3


# --- the set -------------------------------------------------------------------------------------------------------


def test_the_same_options_give_the_same_bytes_and_others_others(tmp_path: Path) -> None:
    options = {**SMALL, "unrelated": True, "noise": 0.05}
    one, _ = read(tmp_path / "a", **options)
    two, _ = read(tmp_path / "b", **options)
    assert digest(one.root) == digest(two.root)
    assert one.root.name == two.root.name
    other, _ = read(tmp_path / "a", **{**options, "draw_seed": 1})
    assert other.root != one.root
    assert (pixels(one, 0) != pixels(other, 0)).any()
    code = (
        "from pathlib import Path; from mtlcar.data.random_hierarchy import read\n"
        f"print(read(Path({str(tmp_path / 'c')!r}), **{options!r})[0].digest())"
    )
    assert output_with_hash_seed(code, 5).strip() == one.digest()
    assert digest(tmp_path / "c" / one.root.name) == digest(one.root)


def test_a_picture_and_its_labels_stay_when_more_are_asked_for(tmp_path: Path) -> None:
    options = {**SMALL, "unrelated": True, "noise": 0.05}
    few, _ = read(tmp_path, **options)
    many, _ = read(tmp_path, **{**options, "images": 101})
    for i in range(len(few)):
        assert few.file(i).read_bytes() == many.file(i).read_bytes()
    for name in ("superclass", "class", "unrelated"):
        np.testing.assert_array_equal(few.targets[name], many.targets[name][: len(few)])
    np.testing.assert_array_equal(few.split, many.split[: len(few)])


def test_classes_are_balanced_no_two_pictures_are_alike_and_the_second_label_is_independent(tmp_path: Path) -> None:
    options = {**SMALL, "synonyms": 4, "vocabulary": 6, "images": 1200, "unrelated": True}
    annotations, tasks = read(tmp_path, **options)
    assert tasks.names == ("superclass", "class", "unrelated")
    for task in tasks:
        for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            counts = np.bincount(annotations.targets[task.name][annotations.split == split])
            assert set(counts.tolist()) == {round(share * 1200 / len(task.classes))}
    table = np.zeros((4, 4))
    np.add.at(table, (annotations.targets["class"], annotations.targets["unrelated"]), 1)
    # each turn of 4 classes is a permutation, whose cells vary 4/3 as much as those of a table with these margins
    statistic = chi2_contingency(table).statistic * 3 / 4
    assert chi2.sf(statistic, df=9) > 0.01
    assert (table > 0).all()
    squares = [symbols(pixels(annotations, i), 4, 6) for i in range(0, 1200, 4)]
    for layer in (0, 1):
        assert len({pair[layer].tobytes() for pair in squares}) == 300


def test_a_folder_that_was_left_unfinished_is_made_again(tmp_path: Path) -> None:
    whole, _ = read(tmp_path, **SMALL)
    before = digest(whole.root)
    whole.file(7).unlink()
    (tmp_path / f"{whole.root.name}.part999").mkdir()
    again, _ = read(tmp_path, **SMALL)
    assert digest(again.root) == before
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": 5}, "multiple of data.superclasses"),
        ({"superclasses": 4}, "fewer than data.classes"),
        ({"vocabulary": 17}, "from 2 to 16"),
        ({"vocabulary": 2, "synonyms": 5}, r"20 rules need as many different tuples, and there are 2\^4 = 16"),
        ({"vocabulary": 3, "synonyms": 20, "shared_rules": 0.0}, r"120 rules \(data.superclasses times"),
        ({"branching": 5}, "square number"),
        ({"shared_rules": 0.3}, "one of 0, 0.5, 1"),
        ({"shared_rules": 1.5}, "at most 1"),
        ({"depth": 1}, "depth should be a whole number from 2 to 4"),
        ({"size": 18}, "multiple of 4 pixels"),
        ({"size": 12, "unrelated": True}, "multiple of 8 pixels"),
        ({"images": 12}, "from 16 "),
        ({"images": 129}, "to 128"),
        ({"synonyms": 1}, "too few for three splits"),
        ({"noise": -0.1}, "at least 0"),
        ({"unrelated": 1}, "true or false"),
        ({"draw_seed": 1.5}, "whole number"),
        ({"levels": ["class", "unrelated"]}, "data.unrelated=true"),
        ({"levels": ["clas"]}, "Did you mean 'class'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path / "cache", **{**SMALL, **changes})
    assert not (tmp_path / "cache").exists()


def test_levels_choose_the_tasks_and_not_the_pictures(tmp_path: Path) -> None:
    both, _ = read(tmp_path, **SMALL, unrelated=True)
    one, tasks = read(tmp_path, **SMALL, unrelated=True, levels=["class", "unrelated"])
    assert one.root == both.root
    assert tasks.names == ("class", "unrelated")
    assert tasks["class"].parent is None


def test_it_is_listed_read_and_verified_like_any_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_datasets()
    assert "random_hierarchy" in capsys.readouterr().out
    changes = [f"data.{key}={value}" for key, value in SMALL.items()]
    cfg = compose_config(["data=random_hierarchy", *changes, "data.image_size=16", "data.batch_size=8"])
    annotations, tasks = read_annotations(cfg.data, tmp_path)
    assert len(annotations) == 64
    assert tasks.finest().name == "class"
    assert verify(cfg.data, tmp_path) == 0
    out = capsys.readouterr().out
    assert "64 images opened, 0 left out, no fault found." in out
    assert "pixel for pixel in train" not in out


def test_a_small_network_learns_it_from_a_few_times_its_sample_complexity(tmp_path: Path) -> None:
    """n_c m^L = 4 x 3^2 = 36; trained on 550 of the 972 pictures there are, tested on others."""
    options = {**SMALL, "synonyms": 3, "vocabulary": 4, "images": 800, "size": 8}
    annotations, _ = read(tmp_path, **options)
    x = torch.from_numpy(np.stack([pixels(annotations, i) for i in range(800)])).permute(0, 3, 1, 2).float() / 128 - 1
    y = torch.from_numpy(annotations.targets["class"])
    train = torch.from_numpy(annotations.split == "train")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 4, 4), nn.ReLU(), nn.Conv2d(64, 64, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[train]), y[train]).backward()
        optimizer.step()
    accuracy = float((network(x[~train]).argmax(1) == y[~train]).float().mean())
    assert accuracy > 0.8
