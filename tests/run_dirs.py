"""Run directories as `mtlcar train` leaves them (DESIGN sections 5 and 6), of made-up networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mtlcar.tasks import Task, TaskSet

MAKES, PER_MAKE = 6, 4
CARS = TaskSet(
    (
        Task("make", "classification", tuple(f"Make {i}" for i in range(MAKES))),
        Task(
            "model",
            "classification",
            tuple(f"Make {i // PER_MAKE} M{i}" for i in range(MAKES * PER_MAKE)),
            parent="make",
        ),
        Task("weight", "regression", unit="kg"),
    ),
    {"model": [i // PER_MAKE for i in range(MAKES * PER_MAKE)]},
)


def config(architecture: str = "parallel", seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """A composed configuration; `overrides` are dotted keys with `__` for the dot."""
    extra: dict[str, dict[str, Any]] = {
        "cascade": {"feed": "logits", "combine": "concat"},
        "parallel": {},
        "single": {"task": None},
    }
    made: dict[str, Any] = {
        "data": {
            "_target_": "mtlcar.data.datamodule.MultiTaskData",
            "name": "synthetic_cars",
            "root": None,
            "image_size": 64,
            "batch_size": 32,
            "split": "stratified",
            "fractions": [0.8, 0.1, 0.1],
            "split_seed": 0,
        },
        "backbone": {"_target_": "x", "name": "tiny", "weights": None},
        "architecture": {
            "_target_": f"mtlcar.architectures.{architecture}.{architecture.title()}",
            "name": architecture,
            **extra.get(architecture, {}),
        },
        "head": {"name": "linear", "dropout": 0.0},
        "weighting": {"name": "fixed", "weights": {"make": 0.5, "model": 0.5}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "trainer": {"name": "default", "max_epochs": 4, "precision": "32-true"},
        "logger": {"name": "none"},
        "seed": seed,
        "sweep": "test",
        "monitor": "val/model/accuracy",
        "paths": {"runs": "runs"},
    }
    for key, value in overrides.items():
        node = made
        *parents, last = key.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    return made


def predictions(skill: float, n: int = 300, seed: int = 0, tasks: TaskSet = CARS) -> pd.DataFrame:
    """A test set of `n` images (the same for each seed) and what a network of this skill says of them."""
    truth, rng = np.random.default_rng(99), np.random.default_rng(seed)
    model = truth.integers(0, MAKES * PER_MAKE, n)
    kg = truth.normal(1500, 200, n).astype(np.float32)
    table = np.asarray(tasks.parent_of["model"])
    guess = np.where(rng.random(n) < skill, model, rng.integers(0, MAKES * PER_MAKE, n))
    make = np.where(rng.random(n) < skill, table[model], rng.integers(0, MAKES, n))
    columns: dict[str, Any] = {"index": np.arange(1000, 1000 + n), "path": [f"{i}.jpg" for i in range(n)]}
    for name, target, prediction in (("make", table[model], make), ("model", model, guess)):
        columns[f"{name}/target"], columns[f"{name}/prediction"] = target, prediction
        columns[f"{name}/confidence"] = rng.random(n).astype(np.float32)
        scores = rng.random((n, len(tasks[name].classes))).astype(np.float32)
        columns[f"{name}/scores"] = list(scores / scores.sum(1, keepdims=True))
    columns["weight/target"] = kg
    columns["weight/prediction"] = kg + rng.normal(0, 100 * (1.1 - skill), n).astype(np.float32)
    return pd.DataFrame(columns)


def plain_metrics(df: pd.DataFrame, tasks: TaskSet = CARS) -> dict[str, float]:
    """The metrics of such predictions, computed the plain way."""
    table = np.asarray(tasks.parent_of["model"])
    implied = table[df["model/prediction"]]
    right_make, right_model = df["make/target"] == df["make/prediction"], df["model/target"] == df["model/prediction"]
    error = df["weight/prediction"].astype(float) - df["weight/target"].astype(float)
    return {
        "make/accuracy": float(right_make.mean()),
        "model/accuracy": float(right_model.mean()),
        "make/implied_accuracy": float((implied == df["make/target"]).mean()),
        "hierarchy/consistency": float((implied == df["make/prediction"]).mean()),
        "hierarchy/full_path_accuracy": float((right_make & right_model).mean()),
        "weight/mae": float(error.abs().mean()),
        "weight/mse": float((error**2).mean()),
        "weight/mape": float(100 * (error.abs() / df["weight/target"].astype(float)).mean()),
        "weight/within_8": float((error.abs() / df["weight/target"].astype(float) <= 0.08).mean()),
    }


def write_run(
    folder: Path, made: dict[str, Any], skill: float = 0.8, *, done: bool = True, parameters: int = 7_204_981
) -> Path:
    """Write one run directory; its name is a number within the sweep folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / f"{len(list(folder.iterdir())):012x}"
    run.mkdir()
    seed = int(made["seed"])
    (run / "config.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    (run / "tasks.json").write_text(json.dumps(CARS.to_dict()))
    if not done:
        return run
    df = predictions(skill, seed=1000 * seed + int(skill * 100))
    df.to_parquet(run / "predictions.parquet")
    trained = ["model"] if made["architecture"]["name"] == "single" else list(CARS.names)
    metrics: dict[str, Any] = {
        "schema": 1,
        "fingerprint": run.name,
        "status": "finished",
        "best": {"epoch": 3, "step": 40, "monitor": "val/model/accuracy", "value": skill},
        "val": {},
        "test": plain_metrics(df) | {f"{name}/loss": 1.0 for name in trained},
        "timing": {"fit_seconds": 90.0 + seed, "epochs": 4},
        "cost": {"parameters": parameters},
        "versions": {"torch": "2.15"},
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    epochs = np.arange(made["trainer"]["max_epochs"])
    history = {"epoch": epochs, "step": 10 * (epochs + 1), "seconds": 1.5, "lr": 1e-3}
    history["val/model/accuracy"] = skill * (1 - 0.8 ** (epochs + 1)) + 0.01 * seed
    history["val/weight/mae"] = 100 * 0.7**epochs
    pd.DataFrame(history).to_csv(run / "history.csv", index=False)
    (run / "DONE").touch()
    return run


STEEL = TaskSet((Task("class", "classification", ("soft", "mid", "hard")), Task("property", "regression", unit="HV")))
HARDNESS = {"soft": 200.0, "mid": 400.0, "hard": 800.0}


def tiles(*rows: tuple[str, str, float, str | None, float]) -> pd.DataFrame:
    """Predictions of tiles (specimen, class, value, predicted class or None, predicted value)."""
    groups, classes, values, guesses, predicted = zip(*rows, strict=True)
    names = STEEL["class"].classes
    return pd.DataFrame(
        {
            "index": np.arange(len(rows)),
            "path": [f"{group}____{i}.tif" for i, group in enumerate(groups)],
            "group": groups,
            "class/target": [names.index(name) for name in classes],
            "class/prediction": [-1 if name is None else names.index(name) for name in guesses],
            "property/target": np.array(values, np.float32),
            "property/prediction": np.array(predicted, np.float32),
        }
    )


def steel(error: float = 10.0, seed: int = 0, wrong: int = 1) -> pd.DataFrame:
    """Four tiles of each of six specimens; errors of this standard deviation, and so many tiles of the wrong class."""
    rng, names = np.random.default_rng(seed), STEEL["class"].classes
    rows = []
    for i in range(24):
        name = names[i // 8]
        true = HARDNESS[name] + 20 * (i // 4 % 2)
        guess = names[(i // 8 + 1) % 3] if i < wrong else name
        rows.append((f"{name}{i // 4 % 2}", name, true, guess, true + error * rng.standard_normal()))
    return tiles(*rows)


def write_steel(folder: Path, df: pd.DataFrame | None = None, method: str | None = None, **overrides: Any) -> Path:
    """A run on Advanced Steel with these predictions; `overrides` as for `config`."""
    made = config(**{"data__name": "advanced_steel", "data__split": "official", **overrides})
    if method is not None:
        made["method"] = method
    run = write_run(folder, made)
    df = steel(seed=int(made["seed"])) if df is None else df
    df.to_parquet(run / "predictions.parquet")
    (run / "tasks.json").write_text(json.dumps(STEEL.to_dict()))
    metrics = json.loads((run / "metrics.json").read_text())
    error = (df["property/prediction"].astype(float) - df["property/target"].astype(float)).abs()
    metrics["test"] = {
        "class/accuracy": float((df["class/target"] == df["class/prediction"]).mean()),
        "property/mae": float(error.mean()),
        "property/mse": float((error**2).mean()),
        "property/mape": float(100 * (error / df["property/target"].astype(float)).mean()),
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run
