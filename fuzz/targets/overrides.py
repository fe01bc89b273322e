"""Text of any kind as the words behind `mtlcar train`: composed and checked, nothing read, nothing started."""

from collections.abc import Iterable

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlcar.checks.names import known_keys
from mtlcar.checks.values import check
from mtlcar.config import composed, finish
from mtlcar.errors import UserError

LINES = 25


def bounded(error: UserError) -> None:
    """AssertionError for a message that says nothing, or too much for a terminal."""
    assert 1 <= len(str(error).splitlines()) <= LINES, error


def seeds() -> Iterable[bytes]:
    for key in known_keys([])[1][::6]:
        yield f"{key}=1".encode()
    for line in (
        "data=stanford_cars\nbackbone=resnet50",
        "experiment=demo",
        "weighting.weights={make:0.1}",
        "seed=1,2,3",
        "~data.root",
        "+callbacks.x._target_=y",
        "data.fractions=[0.8,0.1,0.1]",
        "hydra/launcher=joblib",
        "trainer.precision='${seed}'",
        "data.augment.flip=${oc.env:HOME}",
    ):
        yield line.encode()


def try_one(data: bytes) -> None:
    words = data.decode("utf-8", "replace").split("\n")[:4]
    cfg, problems = composed(words)
    for problem in problems:
        assert problem.strip()
    if cfg is None:
        assert problems
        return
    try:
        OmegaConf.resolve(cfg)  # as CellMaker does before it checks anything
    except OmegaConfBaseException:
        return
    try:
        check(finish(cfg))
    except UserError as error:
        bounded(error)
