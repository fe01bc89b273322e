"""Whether a W&B run goes online."""

import os
from pathlib import Path

import pytest

from mtlcar.errors import UserError
from mtlcar.logs.wandb_mode import choose_mode, has_api_key
from tests.log_rows import start

SECRET = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without W&B credentials, and wandb's cached settings as in a fresh process."""
    import wandb

    for name in [k for k in os.environ if k.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    return tmp_path


def test_without_a_key_the_mode_is_offline_and_online_is_refused(no_key: Path) -> None:
    assert not has_api_key()
    assert choose_mode("auto") == "offline"
    with pytest.raises(UserError, match="wandb login"):
        choose_mode("online")
    with pytest.raises(UserError, match="auto, online or offline"):
        choose_mode("of")


def test_a_key_is_found_where_wandb_keeps_it(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = no_key / ".netrc"
    netrc.write_text("machine api.elsewhere.org\n login user\n password x\n")
    assert choose_mode("auto") == "offline"
    netrc.write_text(f"machine api.wandb.ai\n login user\n password {SECRET}\n")
    assert choose_mode("auto") == "online"
    netrc.write_text("machine")
    assert choose_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert choose_mode("auto") == "online"


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_with_a_blank_at_its_end_is_a_clear_error(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{SECRET} ")
    with pytest.raises(UserError, match="WANDB_API_KEY") as error:
        choose_mode(mode)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(("value", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_wandb_mode_is_respected(no_key: Path, monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode("auto") == mode
    assert choose_mode("online") == "online", "what the configuration says outright goes first"
    if mode == "disabled":
        assert start(no_key, "wandb").wandb is None
