"""Whether a W&B run goes online: known without a prompt and without the network."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from mtlcar.errors import UserError


def has_api_key() -> bool:
    """Whether W&B would find credentials in the places it looks in: environment, settings files, netrc.

    Never prompts, never uses the network, and the key goes nowhere.
    """
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if settings.api_key:
        return True
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    host = urlsplit(settings.base_url).netloc
    # api.wandb.ai is what netrc files call the public service, also in versions that reach it under another host.
    hosts = [host, "api.wandb.ai"] if host.endswith(("wandb.ai", "coreweave.com")) else [host]
    for file in files:
        try:
            entries = netrc.netrc(file.expanduser())
        except (OSError, netrc.NetrcParseError):
            continue
        return any((found := entries.authenticators(h)) is not None and bool(found[2]) for h in hosts)
    return False


def choose_mode(mode: str) -> str:
    """`online`, `offline` or `disabled`: the mode asked for, else WANDB_MODE (or `wandb offline`), else by the key.

    Raises:
        UserError: unknown mode, online asked for where no API key is found, or a key or setting that W&B refuses.
    """
    from wandb.errors import UsageError

    if mode not in ("auto", "online", "offline", "disabled"):
        raise UserError(f"logger.mode should be auto, online or offline. Found {mode!r}.")
    try:
        return _choose(mode)
    except UsageError as error:  # a key with a blank at its end, for one
        raise UserError(
            f"W&B refuses its settings: {error}\n"
            "Look at WANDB_API_KEY and the other WANDB_* variables, or log in again with `wandb login --relogin`."
        ) from error


def _choose(mode: str) -> str:
    import wandb

    asked = mode
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE") or ("offline" if wandb.setup().settings.mode == "offline" else "")
        asked = {"dryrun": "offline", "run": "online"}.get(asked, asked)
    if asked in ("offline", "disabled"):
        return asked
    if has_api_key():
        return "online"
    if asked:
        raise UserError(
            f"W&B mode {asked!r} was asked for, but no API key was found in WANDB_API_KEY, netrc or W&B's settings.\n"
            "Log in once with `wandb login`, or use logger.mode=offline and upload later with `wandb sync`."
        )
    return "offline"
