"""FastCAR and its baselines: every experiment fits together, and one multirun of them ends in one report."""

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from mtlcar.checks.parts import check_parts
from mtlcar.config import compose_config, finish
from mtlcar.runs.files import read_json
from mtlcar.tasks import Task, TaskSet
from tests.cli import mtlcar

METHODS = ("class_conditional", "class_mean", "constant", "fastcar", "interval_softmax", "two_heads", "two_heads_raw")
STEEL = TaskSet(
    [Task("class", "classification", tuple("012345")), Task("property", "regression", unit="HV")],
)


@pytest.mark.parametrize("form", ["", "quick/"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_together_in_both_forms(method: str, form: str) -> None:
    cfg = finish(compose_config([f"experiment=paper_b/{form}{method}", "data.image_size=64"]))
    OmegaConf.resolve(cfg)
    check_parts(cfg, STEEL)
    names = ("resnet18", "adam", "plateau", 100) if not form else ("efficientnet_lite0", "adamw", "onecycle", 5)
    assert (cfg.backbone.name, cfg.optimizer.name, cfg.scheduler.name, cfg.trainer.max_epochs) == names
    assert cfg.method
    assert cfg.loss.standardize is (method != "two_heads_raw")


def test_fastcar_is_the_papers_in_its_full_form() -> None:
    cfg = compose_config(["experiment=paper_b/fastcar"])
    assert (cfg.label_transform.scale, cfg.label_transform.gradient_limit) == (1.0, 2.0)
    assert (cfg.head.name, cfg.data.image_size, cfg.data.split) == ("linear", 224, "official")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-3, 1e-4)


def test_one_multirun_over_methods_is_one_report(tmp_path: Path) -> None:
    chosen = ("class_mean", "class_conditional")
    words = (
        f"experiment={','.join(f'paper_b/quick/{m}' for m in chosen)}", "data=synthetic_cars",
        "data.levels=[model,weight]", "data.makes=2", "data.models_per_make=2", "data.images=160", "data.size=48",
        "data.image_size=32", "data.batch_size=16", "backbone=tiny", "backbone.pretrained=false", "trainer=cpu",
        "trainer.max_epochs=1", "threads=1", "logger=none", f"paths.runs={tmp_path / 'runs'}",
        f"paths.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    mtlcar("train", "-m", *words)
    sweep = tmp_path / "runs" / "paper_b_quick"
    found = {read_json(p)["fingerprint"]: read_json(p) for p in sweep.glob("*/metrics.json")}
    assert len(found) == 2
    for metrics in found.values():
        assert {"model/accuracy", "weight/mse", "weight/mape", "weight/within_8"} <= set(metrics["test"])
    mtlcar("report", str(sweep))
    table = pd.read_csv(sweep / "report" / "table.csv").set_index("method")
    assert set(table.index) == {"class mean", "class-conditional"}
    assert "architecture" not in table.columns  # what a method is made of is folded into its name
    # the lookup is a function of the class, and its test error follows from the two labels and the predictions alone
    ours = next(f.parent for f in sweep.glob("*/overrides.txt") if "class_mean" in f.read_text())
    df = pd.read_parquet(ours / "predictions.parquet")
    assert df.groupby("model/prediction")["weight/prediction"].nunique().max() == 1
    constants = read_json(ours / "metrics.json")["findings"]["label_transform"]["constants"]["weight"]["mean"]
    expected = pd.Series(constants)[df["model/prediction"]].to_numpy()
    assert df["weight/prediction"].to_numpy() == pytest.approx(expected, rel=1e-6)
