"""`python -m fuzz TARGET`: atheris on one target, for some minutes or until it finds something."""

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "corpus"
TARGETS = sorted(p.stem for p in (Path(__file__).parent / "targets").glob("*.py") if p.stem != "__init__")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz one target with atheris.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--max-len", type=int, default=65536, help="bytes of the longest input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="folder for inputs that broke something")
    args = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("Fuzzing needs atheris: pip install 'mtlcar[fuzz]'")

    # What is not instrumented is imported before: instrumenting torch takes minutes and guides nobody.
    import lightning  # noqa: F401
    import torch  # noqa: F401

    for name in [name for name in sys.modules if name.split(".")[0] == "mtlcar"]:
        del sys.modules[name]
    packages = instrumented(args.target)
    with atheris.instrument_imports(include=list(packages)):
        target = importlib.import_module(f"fuzz.targets.{args.target}")
    args.found.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))
    for number, data in enumerate(target.seeds()):
        (work / f"seed-{number}").write_bytes(data)
    for file in (CORPUS / args.target).glob("*"):
        shutil.copyfile(file, work / file.name)
    options = [
        f"-max_total_time={int(args.minutes * 60)}",
        f"-max_len={args.max_len}",
        f"-seed={args.seed}",
        "-len_control=0",  # long inputs from the start: minutes are few
        f"-artifact_prefix={args.found}/{args.target}-",
        "-print_final_stats=1",
        "-timeout=60",
        "-rss_limit_mb=6000",
    ]
    atheris.Setup([sys.argv[0], *options, str(work)], target.try_one)
    atheris.Fuzz()  # ends the process


def instrumented(target: str) -> tuple[str, ...]:
    """`INSTRUMENT` of a target, read from its source: importing it would import what it names."""
    import ast

    tree = ast.parse((Path(__file__).parent / "targets" / f"{target}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "INSTRUMENT" for t in node.targets):
            return tuple(ast.literal_eval(node.value))
    return ("mtlcar",)


if __name__ == "__main__":
    main()
