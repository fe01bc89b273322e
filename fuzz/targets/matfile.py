"""Bytes of a MATLAB file -> Stanford Cars' annotations, class names, or both in the older layout's one file."""

import io
from collections.abc import Iterable

import numpy as np
import scipy.io

from fuzz.folders import folder
from mtlcar.data import stanford_cars
from mtlcar.errors import UserError

INSTRUMENT = ("mtlcar.data", "scipy.io.matlab")
NAMES = ("Acura RL Sedan 2012", "Land Rover LR2 SUV 2012", "smart fortwo Convertible 2012")

root = folder("matfile")
for name in ("new/devkit", "new/cars_train", "names/devkit", "names/cars_train", "old/car_ims"):
    (root / name).mkdir(parents=True)
for name in ("new/cars_train/1.jpg", "new/cars_train/2.jpg", "old/car_ims/1.jpg", "old/car_ims/2.jpg"):
    (root / name).touch()
for name in ("names/cars_train/1.jpg", "names/cars_train/2.jpg"):
    (root / name).touch()


def annotations(old: bool) -> np.ndarray:
    """Two of them, as savemat wants them."""
    corners = [(f"bbox_{c}", object) for c in ("x1", "y1", "x2", "y2")]
    fields = [("relative_im_path" if old else "fname", object), *corners, ("class", object)]
    fields += [("test", object)] if old else []
    place = "car_ims/" if old else ""
    rows = [(f"{place}{i}.jpg", 1, 1, 30, 20, i, *([i - 1] if old else [])) for i in (1, 2)]
    return np.array(rows, dtype=fields)


def packed(content: dict[str, object], compress: bool = True) -> bytes:
    out = io.BytesIO()
    scipy.io.savemat(out, content, do_compression=compress)
    return out.getvalue()


CLASSES = np.array(NAMES, dtype=object)
(root / "new/devkit/cars_meta.mat").write_bytes(packed({"class_names": CLASSES}))
(root / "names/devkit/cars_train_annos.mat").write_bytes(packed({"annotations": annotations(old=False)}))


def try_one(data: bytes) -> None:
    for place in ("new/devkit/cars_train_annos.mat", "names/devkit/cars_meta.mat", "old/cars_annos.mat"):
        (root / place).write_bytes(data)
        try:
            found, tasks = stanford_cars.read(
                root / place.split("/")[0], levels=("make", "model", "year"), max_missing=0.5
            )
        except UserError as error:
            said = str(error)
            assert len(said) < 4000
        else:
            assert len(found) in (1, 2)
            assert found.boxes is not None
            assert np.isfinite(found.boxes).all()
            assert all(not path.startswith("/") and ".." not in path.split("/") for path in found.paths)
            found.check(tasks)


def seeds() -> Iterable[bytes]:
    for compress in (False, True):
        yield packed({"annotations": annotations(old=False)}, compress)
        yield packed({"class_names": CLASSES}, compress)
        yield packed({"annotations": annotations(old=True), "class_names": CLASSES}, compress)
    out = io.BytesIO()
    scipy.io.savemat(out, {"annotations": np.arange(6.0), "class_names": "text"}, format="4")
    yield out.getvalue()
    yield packed({"annotations": np.array([[1, 2]]), "class_names": np.array(["a", "b"])}, False)
