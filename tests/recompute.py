"""The numbers of a report once more, from each run's predictions.parquet alone and in the plainest way: nothing here
imports mtlcar's metrics or report. For two levels (a model and its make) and values.

`python -m tests.recompute REPORT RUNS` checks a report that exists, RUNS being the folder of its sweeps.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats


class Predicted:
    """A run's predictions, its classes, and the make of each model."""

    def __init__(self, run: Path) -> None:
        self.df = pd.read_parquet(run / "predictions.parquet")
        found = json.loads((run / "tasks.json").read_text())
        self.classes = {task["name"]: task["classes"] for task in found["tasks"]}
        self.parents = {task["name"]: task["parent"] for task in found["tasks"]}
        self.table = {name: np.array(table) for name, table in found["parent_of"].items()}
        child = next((name for name, parent in self.parents.items() if parent), None)
        self.pair = None if child is None else (self.parents[child], child)
        self.seed = next(
            int(line.split(":")[1])
            for line in (run / "config.yaml").read_text().splitlines()
            if line.startswith("seed:")
        )

    def column(self, name: str) -> np.ndarray:
        return self.df[name].to_numpy()

    def metric(self, name: str, said: dict[str, np.ndarray] | None = None) -> float | None:
        """None where these predictions do not have it. `said`: other predictions of the levels."""
        owner, _, kind = name.rpartition("/")
        said = said or {t: self.column(f"{t}/prediction") for t in self.classes if f"{t}/prediction" in self.df}
        true = {t: self.column(f"{t}/target") for t in said}
        if kind == "accuracy":
            return float(np.mean([a == b for a, b in zip(said[owner], true[owner], strict=True)]))
        if owner == "hierarchy" or kind == "implied_accuracy":
            assert self.pair is not None
            make, model = self.pair
            implied = np.array([self.table[model][m] for m in said[model]])
            truth = np.array([self.table[model][m] for m in true[model]])
            if kind == "implied_accuracy":
                return float(np.mean(implied == truth))
            if kind == "distance":
                return float(np.mean((said[model] != true[model]) * 1 + (implied != truth) * 1))
            if kind == "mistake_severity":
                wrong = said[model] != true[model]
                return float(np.mean(1 + (implied != truth)[wrong]))
            own = said.get(make, implied)
            if kind == "consistency":
                return float(np.mean(implied == own))
            return float(np.mean((own == truth) & (said[model] == true[model])))
        error = np.abs(self.column(f"{owner}/prediction").astype(float) - self.column(f"{owner}/target").astype(float))
        relative = error / np.abs(self.column(f"{owner}/target").astype(float))
        if kind == "mape_if_right":
            classes = next(
                t for t in self.classes if self.classes[t] and not any(p == t for p in self.parents.values())
            )
            right = said[classes] == true[classes]
            return float(100 * relative[right].mean()) if right.any() else None
        return float({"mae": error, "mse": error**2, "mape": 100 * relative, "within_8": relative <= 0.08}[kind].mean())

    def decoded(self, how: str) -> dict[str, np.ndarray]:
        """Levels by trying every path of every image."""
        assert self.pair is not None
        make, model = self.pair
        table = self.table[model]
        p, q = (np.stack(self.column(f"{t}/scores")).astype(float) for t in self.pair)
        makes, models = [], []
        for image in range(len(p)):
            first = int(self.column(f"{make}/prediction")[image])
            best = int(self.column(f"{model}/prediction")[image])
            if how == "top_down":
                first = int(p[image].argmax())
                best = max((m for m in range(len(table)) if table[m] == first), key=lambda m: (q[image, m], -m))
            elif how == "marginal":
                first = max(range(p.shape[1]), key=lambda k: (q[image, table == k].sum(), -k))
            elif how == "joint":
                best = max(range(len(table)), key=lambda m: (p[image, table[m]] * q[image, m], -m))
                first = int(table[best])
            makes.append(first)
            models.append(best)
        return {make: np.array(makes), model: np.array(models)}

    def calibration(self, task: str) -> dict[str, float]:
        scores = np.stack(self.column(f"{task}/scores")).astype(float)
        confidence = self.column(f"{task}/confidence").astype(float)
        true = self.column(f"{task}/target")
        right = self.column(f"{task}/prediction") == true
        ece = 0.0
        for low in range(15):
            inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
            if inside.any():
                ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        each = scores[np.arange(len(true)), true]
        brier = (scores**2).sum(1) - 2 * each + 1
        return {
            "accuracy": float(right.mean()),
            "confidence": float(confidence.mean()),
            "ece": float(ece),
            "gap": float(confidence.mean() - right.mean()),
            "brier": float(brier.mean()),
            "nll": float(-np.log(each).mean()),
        }


class Recomputed:
    """Compares each number of a report's CSV files; `checked` counts them by file."""

    def __init__(self, tables: Path, runs: Path) -> None:
        self.tables, self.runs, self.checked = tables, runs, dict[str, int]()
        results = pd.read_csv(tables / "results.csv")
        fixed = [c for c in results if c in ("data", "split", "n", "runs")]
        names = [c for c in results.columns[: list(results.columns).index("n")] if c not in fixed]
        self.metrics = [c for c in results.columns[list(results.columns).index("runs") + 1 :] if "/" in c]
        self.metrics = [c for c in self.metrics if not c.endswith(("/low", "/high"))]
        self.results = results
        self.cells: dict[str, list[Predicted]] = {}
        for _, row in results.iterrows():
            label = " · ".join(str(row[name]) for name in names if str(row[name]) != "-") or "all runs"
            self.cells[label] = [Predicted(runs / name) for name in row["runs"].split()]

    def same(self, table: str, found: float, expected: float | None, what: str) -> None:
        assert expected is not None, f"{table}: {what} is not in the predictions"
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-6), f"{table}: {what}: {found} != {expected}"
        self.checked[table] = self.checked.get(table, 0) + 1

    def all(self) -> dict[str, int]:
        for check in (self.main, self.decodings, self.pairs, self.gain, self.calibration, self.confusions, self.others):
            check()
        return self.checked

    def main(self) -> None:
        for (_, row), runs in zip(self.results.iterrows(), self.cells.values(), strict=True):
            for metric in self.metrics:
                if math.isnan(row[metric]):
                    continue
                values = [v for v in (run.metric(metric) for run in runs) if v is not None]
                self.same("results", row[metric], float(np.mean(values)), f"{metric} of {row['runs']}")
                if len(values) > 1 and np.std(values) > 0:
                    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
                    self.same("results", row[f"{metric}/low"], low, f"{metric} low")
                    self.same("results", row[f"{metric}/high"], high, f"{metric} high")

    def decodings(self) -> None:
        if not (self.tables / "decodings.csv").is_file():
            return
        table = pd.read_csv(self.tables / "decodings.csv")
        for (label, how), rows in table.groupby(["cell", "decoding"]):
            said = [(run, run.decoded(str(how))) for run in self.cells[str(label)]]
            for _, row in rows.iterrows():
                values = [run.metric(row["metric"], levels) for run, levels in said]
                self.same(
                    "decodings", row["mean"], float(np.mean([v for v in values if v is not None])), str(dict(row))
                )

    def pairs(self) -> None:
        for file in self.tables.glob("pairs_*.csv"):
            for _, row in pd.read_csv(file).iterrows():
                a, b = ({run.seed: run for run in self.cells[row[c]]} for c in "ab")
                seeds = sorted(set(a) & set(b))
                each = [(a[s].metric(row["metric"]) or 0) - (b[s].metric(row["metric"]) or 0) for s in seeds]
                self.same("pairs", row["difference"], float(np.mean(each)), str(dict(row)))
                if row["over"] == "seeds" and np.std(each) > 0:
                    self.same("pairs", row["p"], float(stats.ttest_1samp(each, 0).pvalue), f"p of {dict(row)}")
                owner, _, kind = row["metric"].rpartition("/")
                if kind == "accuracy":
                    only = []
                    for s in seeds:
                        x, y = ((r.column(f"{owner}/prediction") == r.column(f"{owner}/target")) for r in (a[s], b[s]))
                        only.append([(x & ~y).sum(), (y & ~x).sum()])
                    for name, mean in zip(("only a right", "only b right"), np.mean(only, axis=0), strict=True):
                        self.same("pairs", row[name], float(mean), name)

    def gain(self) -> None:
        """Against the single-task networks of this comparison, told apart by the one loss they have."""
        file = self.tables / "delta_m.csv"
        if not file.is_file():
            return
        for _, row in pd.read_csv(file).iterrows():
            if "/" not in row["gain of"]:
                continue
            single = {
                run.seed: run
                for label, runs in self.cells.items()
                for run in runs
                if label.startswith("single") and f"{row['gain of'].split('/')[0]}/scores" in run.df
            }
            own = {run.seed: run for run in self.cells[row["cell"]]}
            each = []
            for seed in sorted(set(own) & set(single)):
                m, base = own[seed].metric(row["gain of"]), single[seed].metric(row["gain of"])
                assert m is not None
                assert base
                each.append((100 if row["gain of"].endswith("accuracy") else -100) * (m - base) / base)
            self.same("delta_m", row["percent"], float(np.mean(each)), str(dict(row)))

    def calibration(self) -> None:
        for file in self.tables.glob("calibration_*.csv"):
            for (label, task), rows in pd.read_csv(file).groupby(["cell", "task"]):
                found = [run.calibration(str(task)) for run in self.cells[str(label)]]
                for _, row in rows.iterrows():
                    if row["metric"] in found[0]:
                        mean = float(np.mean([values[row["metric"]] for values in found]))
                        self.same("calibration", row["mean"], mean, str(dict(row)))

    def confusions(self) -> None:
        for file in self.tables.glob("confusions*.csv"):
            for _, row in pd.read_csv(file, dtype={"true": str, "predicted": str}).iterrows():
                runs = self.cells[row["cell"]]
                task = next(t for t, names in runs[0].classes.items() if row["true"] in names)
                names = runs[0].classes[task]
                true, said = (
                    np.concatenate([run.column(f"{task}/{c}") for run in runs]) for c in ("target", "prediction")
                )
                both = (true == names.index(row["true"])) & (said == names.index(row["predicted"]))
                self.same("confusions", row["times"], float(both.sum()), str(dict(row)))
                self.same("confusions", row["of"], float((true == names.index(row["true"])).sum()), str(dict(row)))

    def others(self) -> None:
        """Tables that repeat means of cells under their metrics' names."""
        for name in ("pareto",):
            file = self.tables / f"{name}.csv"
            if not file.is_file():
                continue
            for (_, row), metric in itertools.product(pd.read_csv(file).iterrows(), self.metrics):
                if metric in row and not pd.isna(row[metric]):
                    values = [v for v in (run.metric(metric) for run in self.cells[row["cell"]]) if v is not None]
                    self.same(name, row[metric], float(np.mean(values)), f"{metric} of {row['cell']}")


if __name__ == "__main__":
    print(Recomputed(Path(sys.argv[1]) / "tables", Path(sys.argv[2])).all())
