"""The suite's remembered composition is Hydra's: the same configuration, and the same refusals."""

import pytest
from hydra import compose as by_hydra
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mtlcar import config
from mtlcar.errors import UserError
from tests import composing

VALUES = ("data.image_size=32", "paths.runs=/tmp/a b", "head.dropout=0.5", "weighting.weights={make: 1, model: 2e-1}")


def both(*overrides: str) -> tuple[DictConfig, DictConfig]:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return composing.compose("train", overrides), by_hydra("train", list(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        VALUES,
        ("weighting=fixed", *VALUES, "architecture=cascade", "architecture.detach=true"),
        ("data=advanced_steel", "label_transform=fastcar", "monitor=null"),
        ("experiment=paper_b/quick/fastcar", "data.image_size=32", "backbone=tiny", "backbone.pretrained=false"),
        ("+callbacks.mine.patience=3", "head.dropout=0.1"),
        ("~logger", "seed=3"),
    ],
)
def test_it_is_what_hydra_composes(overrides: tuple[str, ...]) -> None:
    for _ in range(2):  # a copy that somebody changed leaves what is remembered as it was
        ours, hydras = both(*overrides)
        assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(hydras)
        assert list(ours) == list(hydras)
        assert OmegaConf.is_struct(ours)
        assert ours._metadata.flags == hydras._metadata.flags
        ours.seed = 77


def test_the_suite_composes_so_and_a_mistake_is_refused_in_hydras_words() -> None:
    assert config.compose is composing.compose
    for wrong in ("head.dropuot=0.1", "weighting=equel", "data.image_size.x=3"):
        with pytest.raises(UserError) as ours:
            config.compose_config([wrong])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "compose", by_hydra)
            with pytest.raises(UserError) as hydras:
                config.compose_config([wrong])
        assert str(ours.value) == str(hydras.value)
