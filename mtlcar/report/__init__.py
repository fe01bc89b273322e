"""Tables, figures and one HTML page from run directories."""

from pathlib import Path


def build_report(dirs: list[Path], output: Path) -> Path:
    """Compare the finished runs at or below `dirs`; gives the path of `<output>/report.html`.

    Raises:
        UserError: a folder is missing, or none has a finished run.
    """
    from mtlcar.report.build import build

    return build(dirs, output)[0]


def command(dirs: list[str], output: str | None = None, *, watched: float | None = None, wandb: bool = False) -> int:
    """`mtlcar report DIR... [-o OUTPUT]`: build the report (default: in `<first DIR>/report`), print its table.

    Args:
        watched: build it again whenever a run has finished, looking every so many seconds, until all have.
        wandb: lay out a workspace and a report in W&B too, or write what they would be.
    """
    from rich.console import Console

    from mtlcar.report.build import build
    from mtlcar.report.terminal import print_comparison

    folders = [Path(d) for d in dirs]
    target = Path(output) if output else folders[0] / "report"
    if watched is not None:
        from mtlcar.report.watch import watch

        return watch(lambda: build(folders, target, refresh=watched)[0], folders, every=watched)
    page, comparisons, found = build(folders, target)
    console = Console()
    if not console.is_terminal:
        console.width = 300  # a log has no width; 80 would fold the table
    for comparison in comparisons:
        print_comparison(console, comparison)
    if found.left_out:
        console.print(f"Left out (unfinished or unreadable, see the report): {len(found.left_out)}", markup=False)
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
    if wandb:
        from mtlcar.report.dashboard import dashboard

        for sentence in dashboard(found, comparisons, target)[1]:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return 0
