"""CompCars (Yang, Luo, Loy and Tang, CVPR 2015), web-nature and surveillance-nature images.

Web (under the root or `data/` in it; `misc/` may lie beside `data/`):

    image/<make>/<model>/<year|unknown>/<name>.jpg  label/<same>.txt
    train_test_split/classification/{train,test}.txt
    misc/make_model_name.mat  misc/car_type.mat  misc/attributes.txt

Surveillance (under the root or `sv_data/` in it):

    image/<model>/<name>.jpg  {train,test}_surveillance.txt  sv_make_model_name.mat  color_list.mat

Ids count from 1. Classes are the cars that the lists name, in the order of their ids.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mtlcar.data import compcars_surveillance, compcars_web
from mtlcar.data.annotations import Annotations
from mtlcar.data.car_levels import check_levels
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet


def read(
    root: Path | str | None,
    *,
    part: str = "web",
    levels: Iterable[str] = ("make", "model"),
    model_class: str = "model",
    attributes: Sequence[str] = (),
    views: Sequence[str] | None = None,
    unseen: str = "keep",
    max_missing: float = 0.01,
) -> tuple[Annotations, TaskSet]:
    """The images of the publisher's classification lists; web images have boxes in pixels.

    Args:
        root: the folder of the data as published.
        part: `web` or `surveillance`.
        levels: tasks in order: make, model, year, type (web); make, model, color (surveillance). The model's parent
            is the make, else the type where every model has one, else (triples only) the year.
        model_class: `model`: the publisher's models (431 in the lists); `triple`: (make, model, year) as in arXiv
            2603.01746, images of an unknown year having no model label then.
        attributes: more tasks, web only: maximum_speed (km/h) and displacement (litres) as regressions, door_number
            and seat_number as classifications.
        views: web only: the viewpoints to keep, of front, rear, side, front-side, rear-side, unknown; None: all.
        unseen: `drop` leaves out test images of a class that no training image has (the official split has such
            (make, model, year) triples); `keep` keeps them, and the official split then refuses.
        max_missing: share of listed images that may be missing from the disk: published lists name some that are.

    Raises:
        UserError: for a missing or damaged copy.
    """
    if unseen not in ("keep", "drop"):
        raise UserError(f"data.unseen should be keep or drop. Found {unseen!r}.")
    if model_class not in ("model", "triple"):
        raise UserError(f"data.model_class should be model or triple. Found {model_class!r}.")
    if part == "web":
        wanted = check_levels(levels, compcars_web.LEVELS)
        views = None if views is None else check_views(views)
        triple, drop = model_class == "triple", unseen == "drop"
        more = (attributes,) if isinstance(attributes, str) else tuple(attributes)
        annotations, tasks = compcars_web.read_web(root, wanted, triple, more, views, drop, max_missing)
    elif part == "surveillance":
        if model_class != "model" or attributes or views is not None:
            raise UserError("CompCars' surveillance images have no year, attributes or viewpoints: use data.part=web.")
        wanted = check_levels(levels, compcars_surveillance.LEVELS)
        annotations, tasks = compcars_surveillance.read_surveillance(root, wanted, unseen == "drop", max_missing)
    else:
        raise UserError(f"data.part should be web or surveillance. Found {part!r}.")
    return annotations.check(tasks), tasks


def check_views(views: Sequence[str]) -> tuple[str, ...]:
    """The viewpoints asked for. Raises a UserError on an unknown one or none."""
    names = (views,) if isinstance(views, str) else tuple(str(v) for v in views)
    known = tuple(compcars_web.VIEWS.values())
    if not names or any(v not in known for v in names):
        raise UserError(f"data.views should be a list of {', '.join(known)}. Found {list(names)}.")
    return names
