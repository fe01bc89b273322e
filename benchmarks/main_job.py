"""`python benchmarks/main_job.py CARS_ROOT WEIGHTS [--epochs 8]`: the plain loop, then mtlcar on the same images.

Prints the wall-clock seconds of both whole processes, start to end, and their ratio. Run it on an idle machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

p = argparse.ArgumentParser()
p.add_argument("root", type=Path)
p.add_argument("weights", type=Path)
p.add_argument("--epochs", type=int, default=8)
args = p.parse_args()


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


here = Path(__file__).parent
plain = seconds(
    [sys.executable, str(here / "plain_loop.py"), str(args.root), str(args.weights), f"--epochs={args.epochs}"]
)
with tempfile.TemporaryDirectory() as folder:  # an empty cache as well: decoding counts
    overrides = [
        "data=stanford_cars",
        f"data.root={args.root}",
        "data.image_size=128",
        "data.batch_size=32",
        "backbone=efficientnet_lite0",
        f"backbone.weights={args.weights}",
        "architecture=parallel",
        "head.dropout=0.25",
        "weighting=fixed",
        "weighting.weights={make:0.1,model:0.9}",
        f"trainer.max_epochs={args.epochs}",
        "logger.mode=offline",
        f"paths.runs={folder}/runs",
        f"paths.cache={folder}/cache",
    ]
    ours = seconds([sys.executable, "-m", "mtlcar", "train", *overrides])
print(f"plain loop {plain:.1f} s, mtlcar {ours:.1f} s, ratio {ours / plain:.3f}")
