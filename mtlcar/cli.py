"""The command `mtlcar`. Nothing heavy is imported before a command needs it."""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from mtlcar import __version__
from mtlcar.cli_trained import add_trained, run_trained
from mtlcar.errors import UserError, did_you_mean

TRAIN_EPILOG = """\
Overrides are Hydra's: group=choice picks a part, key=value changes one of its keys, a,b lists values of a sweep.

  mtlcar train data=stanford_cars data.root=DIR backbone=resnet50 architecture=cascade head.dropout=0.25
  mtlcar train -m architecture=single,parallel,cascade seed=0,1,2 sweep=first
  mtlcar train -m experiment=paper_a/stanford_cars data.root=DIR
"""
RESUME_EPILOG = """\
In a sweep directory the commands that were given there are given again, from where they were given; finished runs are
skipped. Runs of no recorded command go on one by one. Overrides may be of what cannot change a result.

  mtlcar resume runs/first
  mtlcar resume runs/first hydra/launcher=joblib hydra.launcher.n_jobs=4
  mtlcar resume runs/first/4f0c81aa2b17 logger=csv data.root=ELSEWHERE
"""
BENCH_EPILOG = """\
weightings, step: steps are interleaved in one process, each next to one under `equal` (weightings) or of `parallel`
(step), on a random batch: no dataset is read. ResNet-18, 64 px, batch 16 unless overrides say otherwise;
weighting.KEY=VALUE, or architecture.KEY=VALUE, reaches those that have the key. `step` also counts parameters and
multiply-adds, and times one image: all tasks, and each task alone.

pipeline: images a second of one training step, by turns on one resident batch (model), from mtlcar's loader, and from a
DataLoader with torchvision's transforms (plain), of a dataset: synthetic_cars unless overrides say otherwise. Measured
twice: flip 0.5 and crop_scale [0.5,1]; and with colour jitter 0.4, 0.4, 0.4, 0.1; data.augment.KEY=VALUE measures the
dataset's own augmentation with that instead. data.cache=false decodes while training.

startup: seconds of what a run does before its first step. sweep: a small sweep, with --jobs runs at once.

  mtlcar bench weightings --tasks 2 3 --only pcgrad cagrad
  mtlcar bench weightings --json backbone=resnet50 data.image_size=224 data.batch_size=32
  mtlcar bench step --only parallel,cascade weighting=uncertainty data.image_size=128
  mtlcar bench pipeline data=stanford_cars data.root=DIR data.image_size=128 data.batch_size=32 backbone=resnet50
"""
BENCH_ROUNDS = {"weightings": 12, "step": 12, "pipeline": 7, "startup": 5, "sweep": 1}
BENCH_OPTIONS = {
    "tasks": ("weightings", "step"),
    "only": ("weightings", "step"),
    "peers": ("weightings",),
    "workers": ("pipeline",),
    "jobs": ("sweep",),
}
"""Which of the measurements read an option."""
RUNS_EPILOG = """\
Nothing is changed. Runs are given by directory, or by the beginning of a fingerprint or of SWEEP/FINGERPRINT.

  mtlcar runs list architecture=cascade seed=0,1 --sort best
  mtlcar runs list OTHER_RUNS --state killed
  mtlcar runs show 4f0c
  mtlcar runs diff 4f0c 81aa
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mtlcar", description="How should one network learn several related tasks?")
    top.add_argument("--version", action="version", version=f"mtlcar {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, **more: object) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **more)  # type: ignore[arg-type]
        sub.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
        sub.set_defaults(parser=sub)
        return sub

    train = add(
        "train",
        "One run, or with -m a sweep.",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("-m", "--multirun", action="store_true", help="one run for every combination of listed values")
    train.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    train.add_argument("--choices", action="store_true", help="list every group and its choices and stop")
    train.add_argument("overrides", nargs="*", help="key=value or group=choice")

    again = add(
        "resume", "Go on with what was begun in sweep or run directories.", epilog=RESUME_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    again.add_argument("overrides", nargs="+", metavar="DIR|KEY=VALUE", help="directories, then overrides for them")

    evaluate = add("evaluate", "Test a run again from its best checkpoint.")
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("overrides", nargs="*", help="key=value, for keys of the run's config.yaml")
    evaluate.add_argument("--json", action="store_true", help="print the metrics as JSON")

    report = add("report", "Compare finished runs: HTML, Markdown, figures, CSV and LaTeX.")
    report.add_argument("dirs", nargs="+", metavar="DIR", help="run or sweep directories")
    report.add_argument("-o", "--output", help="folder of the report (default: DIR/report)")
    report.add_argument(
        "--watch",
        nargs="?",
        const=30.0,
        type=float,
        metavar="SECONDS",
        help="build it again as runs finish, looking every SECONDS (30), until all have",
    )
    report.add_argument("--wandb", action="store_true", help="lay out a workspace and a report in W&B, too")

    add_runs(
        add(
            "runs",
            "Find, show and compare runs.",
            epilog=RUNS_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )

    add_trained(add)

    data = add("data", "List, prepare, verify or show datasets.")
    data.add_argument("action", choices=("list", "prepare", "verify", "show"))
    data.add_argument("name", nargs="?", help="dataset, as in data=NAME")
    data.add_argument("overrides", nargs="*", help="such as data.root=DIR data.image_size=128")
    data.add_argument("-o", "--output", help="show: PNG to write (default: NAME.png)")
    data.add_argument("-n", type=int, default=48, help="show: number of images")
    data.add_argument("--augmented", action="store_true", help="show: images as training sees them")

    bench = add(
        "bench",
        "Measure mtlcar's speed here.",
        epilog=BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "what",
        choices=tuple(BENCH_ROUNDS),
        help="a training step under every weighting, or of every architecture; the input pipeline beside the model; a "
        "run's start; a sweep",
    )
    bench.add_argument("overrides", nargs="*", help="such as backbone=tiny data.batch_size=8 threads=1")
    bench.add_argument("--json", action="store_true", help="print the rows as JSON")
    defaults = ", ".join(f"{what} {n}" for what, n in BENCH_ROUNDS.items())
    bench.add_argument("--rounds", type=int, help=f"times that each is measured (default: {defaults})")
    bench.add_argument("--tasks", nargs="+", metavar="N", help="numbers of tasks (default: weightings 2 3, step 2)")
    bench.add_argument("--only", nargs="+", metavar="NAME", help="weightings, step: these of them (default: all)")
    bench.add_argument(
        "--peers", action="store_true", help="weightings: LibMTL's and TorchJD's too, where they can be imported"
    )
    bench.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="pipeline: processes of the plain loader (default: one a core, at most 8)",
    )
    bench.add_argument("--jobs", nargs="+", metavar="N", help="sweep: numbers of runs at once (default: powers of two)")

    return top


def add_runs(runs: argparse.ArgumentParser) -> None:
    actions = runs.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str, *, markdown: bool = True) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(parser=sub)
        if markdown:
            sub.add_argument("--markdown", action="store_true", help="print Markdown")
        return sub

    listing = add("list", "One line a run, with the settings that differ between them.")
    listing.add_argument("overrides", nargs="*", metavar="DIR|KEY=VALUE", help="folders (default: runs), and filters")
    listing.add_argument("--sort", metavar="KEY", help="column, setting or metric, such as best or test/model/accuracy")
    listing.add_argument(
        "--state",
        choices=("finished", "failed", "running", "interrupted", "killed", "unstarted"),
        help="runs in this state alone",
    )
    show = add("show", "All there is to know of one run.", markdown=False)
    show.add_argument("run", help="run directory, or the beginning of a fingerprint")
    diff = add("diff", "What tells runs apart, whether they may be compared, and their results.")
    diff.add_argument("overrides", nargs="+", metavar="RUN", help="two runs or more")
    for sub in (show, diff):
        sub.add_argument("--runs", default="runs", metavar="DIR", help="where fingerprints are looked up")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, 2 for what the user can repair, 1 for failed runs, 75 busy elsewhere, 128 + signal stopped."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    # argparse stops collecting overrides at the first option; those after it are overrides too.
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "overrides")):
        refuse(args.parser, rest)
    if rest and args.command == "data" and args.name is None:
        args.name = rest.pop(0)
    if rest:
        args.overrides = [*args.overrides, *rest]
    try:
        return run(args)
    except UserError as error:
        if args.traceback:
            raise
        print(f"mtlcar: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mtlcar ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush at exit
        return 0
    except Exception as error:
        if args.traceback:
            raise
        print(f"mtlcar: unexpected {type(error).__name__}: {error}\n--traceback shows where.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mtlcar: interrupted; the same command goes on", file=sys.stderr)
        return 130


def refuse(command: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Ends the process with the command's own usage and what it does not know of `words`."""
    known = re.findall(r"--[a-z][a-z-]*", command.format_help())
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not options:
        command.error(f"there is no place for: {' '.join(words)}")
    command.error("; ".join(f"there is no option {option}.{did_you_mean(option, known)}" for option in options))


def run(args: argparse.Namespace) -> int:
    if args.command == "train":
        return run_train(args)
    if args.command == "resume":
        from mtlcar.runs.output import lasting_output
        from mtlcar.sweeps.resume import resume
        from mtlcar.sweeps.worker import others_folder

        with lasting_output(), others_folder():
            return resume(args.overrides, show_traceback=args.traceback)
    if args.command == "evaluate":
        from mtlcar.runs.evaluate import evaluate

        return evaluate(args.run, args.overrides, as_json=args.json)
    if args.command == "report":
        from mtlcar.report import command

        if args.watch is not None and not args.watch > 0:
            raise UserError(f"--watch should be a number of seconds above 0. Found {args.watch:g}.")
        if args.watch is not None and args.wandb:
            raise UserError("--watch and --wandb exclude each other; lay out W&B once the runs are there.")
        return command(args.dirs, args.output, watched=args.watch, wandb=args.wandb)
    if args.command in ("predict", "explain", "export", "diagnose"):
        return run_trained(args)
    if args.command == "bench":
        return run_bench(args)
    if args.command == "runs":
        return run_runs(args)
    return run_data(args)


def run_train(args: argparse.Namespace) -> int:
    if args.choices:
        from mtlcar.config import groups

        for group, names in groups().items():
            print(f"{group}: {', '.join(names)}")
        return 0
    if args.cfg:
        from omegaconf import OmegaConf

        from mtlcar.config import compose_config

        print(OmegaConf.to_yaml(compose_config(args.overrides)), end="")
        return 0
    from mtlcar.sweeps.spare import SPARE

    if not any(word.startswith(("hydra/launcher=", "hydra/sweeper=")) for word in args.overrides):
        SPARE.expect(1)
    try:
        from mtlcar.runs.output import lasting_output
        from mtlcar.sweeps.launch import train

        if os.getcwd() not in sys.path:  # noqa: PTH109
            sys.path.append(os.getcwd())  # noqa: PTH109 - the user's own code, which the job's `python -m` finds there too
        with lasting_output():
            return train(args.overrides, multirun=args.multirun, show_traceback=args.traceback)
    finally:
        SPARE.expect(0)


def run_bench(args: argparse.Namespace) -> int:
    overrides = list(args.overrides)
    for words in (args.tasks or [], args.only or [], args.jobs or []):  # these take all words up to the next option
        overrides += [word for word in words if "=" in word]
        words[:] = [part for word in words if "=" not in word for part in word.split(",") if part]
    for option, readers in BENCH_OPTIONS.items():
        given = getattr(args, option)
        if given is not None and given is not False and args.what not in readers:
            others = " and ".join(f"`mtlcar bench {reader}`" for reader in readers)
            raise UserError(f"--{option} is of {others}, not of `mtlcar bench {args.what}`.")
    rounds = BENCH_ROUNDS[args.what] if args.rounds is None else args.rounds
    if rounds < 1:  # said before anything heavy is imported
        raise UserError(f"--rounds should be at least 1. Found {rounds}.")
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers should be a number of processes, 0 or more. Found {args.workers}.")
    if args.what == "pipeline":
        from mtlcar.bench import pipeline

        return pipeline.command(overrides, rounds=rounds, workers=args.workers, as_json=args.json)
    if args.what == "startup":
        from mtlcar.bench import startup

        return startup.command(overrides, rounds=rounds, as_json=args.json)
    if args.what == "sweep":
        from mtlcar.bench import jobs

        at_once = whole_numbers("--jobs", args.jobs, "of runs at once, such as --jobs 1 2") if args.jobs else None
        return jobs.command(overrides, rounds=rounds, at_once=at_once, as_json=args.json)
    default = ["2", "3"] if args.what == "weightings" else ["2"]
    tasks = whole_numbers("--tasks", default if args.tasks is None else args.tasks, "of tasks, such as --tasks 2 3")
    if args.what == "step":
        from mtlcar.bench import step

        return step.command(overrides, tasks=tasks, rounds=rounds, only=args.only, as_json=args.json)

    from mtlcar.bench import weightings

    return weightings.command(
        overrides, tasks=tasks, rounds=rounds, only=args.only, peers=args.peers, as_json=args.json
    )


def whole_numbers(option: str, words: Sequence[str], what: str) -> list[int]:
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise UserError(f"{option} should be numbers {what}. Found {wrong[0]!r}.")
    return [int(word) for word in words]


def run_runs(args: argparse.Namespace) -> int:
    if args.action == "list":
        from mtlcar.listing import listing

        return listing.command(
            args.overrides, sort=args.sort, state=args.state, as_json=args.json, markdown=args.markdown
        )
    if args.action == "show":
        from mtlcar.listing import showing

        return showing.command(args.run, runs=args.runs, as_json=args.json)
    from mtlcar.listing import diffing

    return diffing.command(args.overrides, runs=args.runs, as_json=args.json, markdown=args.markdown)


def run_data(args: argparse.Namespace) -> int:
    from pathlib import Path

    if args.name is None and args.action != "list":
        raise UserError(f"mtlcar data {args.action} needs the name of a dataset; `mtlcar data list` prints them.")
    from mtlcar.config import compose_config, finish

    cfg = None if args.action == "list" else finish(compose_config([f"data={args.name}", *args.overrides]))
    from mtlcar.data import commands  # imports torch: mistakes come first

    if cfg is None:
        return commands.list_datasets()
    cache = Path(cfg.paths.cache)
    if args.action == "prepare":
        return commands.prepare(cfg.data, cache)
    if args.action == "verify":
        return commands.verify(cfg.data, cache)
    output = Path(args.output or f"{args.name}.png")
    return commands.show(cfg.data, cache, output=output, n=args.n, augmented=args.augmented)


if __name__ == "__main__":
    sys.exit(main())
