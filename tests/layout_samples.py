"""Small trees of each publisher's layout and the real data, for the readers' tests."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import scipy.io

from mtlcar.data.car_drawing import fleet
from mtlcar.data.layout_cars import DrawnCar, draw_cars

REPO = Path(__file__).resolve().parents[1]


@cache
def sample_cars() -> tuple[DrawnCar, ...]:
    """3 makes x 3 models x 3 cars x 4 pictures, 32 px."""
    return tuple(draw_cars(fleet(3, 3, 0), cars_per_model=3, pictures_per_car=4, size=32, seed=0))


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says why."""
    base = Path(os.environ.get("MTLCAR_DATA") or REPO.parent / "shared" / "data")
    if not (base / name).is_dir():
        pytest.skip(f"no {name} under {base} (set MTLCAR_DATA)")
    return base / name


def copy_of(tree: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tree, tmp_path / "copy"))


def edit_mat(file: Path, **changes: object) -> None:
    """Replaces variables of a MATLAB file; None removes one."""
    content = {k: v for k, v in scipy.io.loadmat(file).items() if not k.startswith("__")} | changes
    scipy.io.savemat(file, {k: v for k, v in content.items() if v is not None})


def output_with_hash_seed(code: str, seed: int) -> str:
    """What `code` prints in a Python with this PYTHONHASHSEED."""
    env = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=REPO, capture_output=True, text=True, check=True)
    return result.stdout
