"""`mtlcar diagnose RUN`: what a run's tasks do to each other, and what its features hold."""


def command(run: str, *, batches: int, output: str | None, as_json: bool) -> int:
    """Writes conflict.csv, conflict.png, features.png and diagnosis.json to `output` (None: `<run>/diagnosis`) and
    prints tables, or the JSON with `as_json`.

    Args:
        batches: training batches whose gradients are compared, at least 1; at most an epoch of them.

    Raises:
        UserError: no such run, no checkpoint, its data is missing, a folder that cannot be written.
    """
    from mtlcar.diagnosis.diagnose import diagnose

    return diagnose(run, batches=batches, output=output, as_json=as_json)
