"""Errors that a user caused and can repair."""


class UserError(Exception):
    """A mistake found before training; the command prints the message alone and exits with status 2.

    The message says what is wrong, where, what was expected and what to do, in a few lines.
    """


def did_you_mean(name: str, choices: object) -> str:
    """` Did you mean 'x' or 'y'?` for the choices closest to `name`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(name), list(dict.fromkeys(str(c) for c in choices)), n=3, cutoff=0.5)  # type: ignore[attr-defined]
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
