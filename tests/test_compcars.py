"""CompCars: trees written by ourselves (its licence forbids a copy here), and damaged ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from mtlcar.data import compcars
from mtlcar.data.compcars_lists import full_name, unique_names
from mtlcar.data.layout_cars import cells
from mtlcar.data.layouts import write_compcars
from mtlcar.data.splits import make_splits
from mtlcar.errors import UserError
from tests.layout_samples import copy_of, edit_mat, output_with_hash_seed, sample_cars

LISTS = "data/train_test_split/classification"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compcars(tmp_path_factory.mktemp("cc") / "web", sample_cars())


@pytest.fixture(scope="module")
def surveillance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compcars(tmp_path_factory.mktemp("cc") / "sv", sample_cars(), part="surveillance")


def first_image(root: Path) -> str:
    return (root / LISTS / "train.txt").read_text().split("\n")[0]


def test_web_images_come_back_with_labels_boxes_and_the_official_split(web):
    annotations, tasks = compcars.read(web, levels=["make", "model", "type"])
    cars = sample_cars()
    assert len(annotations) == len(cars)
    assert [len(t.classes) for t in tasks][:2] == [3, 9]
    assert tasks["model"].parent == "make"
    assert annotations.boxes is not None
    found = sorted(
        (tasks["model"].classes[m], tasks["make"].classes[k], *box.astype(int).tolist())
        for m, k, box in zip(annotations.targets["model"], annotations.targets["make"], annotations.boxes, strict=True)
    )
    assert found == sorted((c.model.name, c.model.make, *c.box) for c in cars)
    assert (annotations.split == "train").sum() == (annotations.split == "test").sum() == len(cars) // 2
    kinds = {tasks["type"].classes[t] for t in annotations.targets["type"]}
    assert kinds <= {"MPV", "SUV", "sedan", "hatchback", "estate", "pickup", "sports"}
    by_model = {c.model.name: c.model.type for c in cars}
    suv = [m for m, kind in by_model.items() if kind in ("suv", "van", "wagon")]
    assert all(tasks["type"].classes[t] in ("SUV", "MPV", "estate") for t in type_of(annotations, tasks, suv))


def type_of(annotations, tasks, models):
    rows = np.isin(annotations.targets["model"], [tasks["model"].classes.index(m) for m in models])
    return annotations.targets["type"][rows]


def test_models_are_in_the_order_of_their_ids(web):
    _, tasks = compcars.read(web)
    assert list(tasks["model"].classes) == list(dict.fromkeys(c.model.name for c in sample_cars()))


def test_misc_may_lie_at_the_root_and_the_data_folder_be_given(web, tmp_path):
    root = write_compcars(tmp_path / "beside", sample_cars(), misc_at_root=True)
    assert compcars.read(root)[0].digest() == compcars.read(web)[0].digest()
    assert compcars.read(web / "data")[0].digest() == compcars.read(web)[0].digest()


def test_an_unknown_year_is_a_missing_label(web):
    annotations, tasks = compcars.read(web, levels=["year", "make"])
    unknown = np.array(["/unknown/" in p for p in annotations.paths])
    assert unknown.any()
    assert ((annotations.targets["year"] == -1) == unknown).all()
    assert (annotations.targets["make"] >= 0).all()
    assert list(tasks["year"].classes) == sorted(tasks["year"].classes)


def test_triples_are_make_model_year(web):
    annotations, tasks = compcars.read(web, model_class="triple")
    for path, y in zip(annotations.paths, annotations.targets["model"], strict=True):
        year = path.split("/")[3]
        assert (y == -1) == (year == "unknown")
        assert y == -1 or tasks["model"].classes[y].endswith(f" {year}")
    assert compcars.read(web, levels=["model", "year"], model_class="triple")[1]["model"].parent == "year"


def test_type_is_the_models_parent_only_where_every_model_has_one(web, tmp_path):
    assert compcars.read(web, levels=["type", "model"])[1]["model"].parent == "type"
    copy = copy_of(web, tmp_path)
    file = copy / "data" / "misc" / "attributes.txt"
    lines = file.read_text().splitlines()
    lines[1] = lines[1].rsplit(" ", 1)[0] + " 0"
    file.write_text("\r\n".join(lines) + "\r\n")
    annotations, tasks = compcars.read(copy, levels=["type", "model"])
    assert tasks["model"].parent is None
    assert (annotations.targets["type"] == -1).sum() == 12


def test_attributes_are_tasks_with_units_and_missing_values(web):
    names = ["maximum_speed", "displacement", "door_number", "seat_number"]
    annotations, tasks = compcars.read(web, levels=["model"], attributes=names)
    assert list(tasks.names) == ["model", *names]
    assert [tasks[n].unit for n in names] == ["km/h", "L", "", ""]
    assert annotations.targets["maximum_speed"].dtype == np.float32
    assert (annotations.targets["maximum_speed"] >= 150).all()
    assert tasks["seat_number"].classes == ("4", "5", "7")
    assert ((annotations.targets["seat_number"] == -1) == (annotations.targets["model"] % 5 == 4)).all()


def test_views_are_filtered_by_name(web, tmp_path):
    everything, _ = compcars.read(web)
    views = [("front-side", 4), ("rear-side", 5)]
    sizes = [len(compcars.read(web, views=[v])[0]) if any(w == i for w in views_on_disk(web)) else 0 for v, i in views]
    assert sum(sizes) == len(everything)
    assert len(compcars.read(web, views=[v for v, _ in views])[0]) == len(everything)
    copy = copy_of(web, tmp_path)
    keep = [first_image(copy), *list_of_makes(copy)]
    for name in keep:
        label = copy / "data" / "label" / name.replace(".jpg", ".txt")
        label.write_text("1\n" + label.read_text().split("\n", 1)[1])
    only, _ = compcars.read(copy, levels=["make"], views=["front"])
    assert len(only) == len(set(keep))
    with pytest.raises(UserError, match="no listed image has a viewpoint"):
        compcars.read(web, views=["side"])


def views_on_disk(root: Path) -> set[int]:
    return {int(f.read_text().split("\n")[0]) for f in (root / "data" / "label").rglob("*.txt")}


def list_of_makes(root: Path) -> list[str]:
    """The last training image of each make."""
    lines = (root / LISTS / "train.txt").read_text().split()
    return list({line.split("/")[0]: line for line in lines}.values())


def test_test_images_of_unseen_classes_are_refused_by_the_official_split_and_left_out_on_request(web, tmp_path):
    copy = copy_of(web, tmp_path)
    lists = copy / LISTS
    train = [line for line in (lists / "train.txt").read_text().split() if line.split("/")[1] != "4"]
    (lists / "train.txt").write_text("\n".join(train))
    annotations, tasks = compcars.read(copy)
    with pytest.raises(UserError, match=r"Task 'model': 1 class \('.*'\) in the test split, never seen in training"):
        make_splits(annotations, tasks, "official", [0.8, 0.1, 0.1], 0)
    fewer, tasks = compcars.read(copy, unseen="drop")
    assert len(tasks["model"].classes) == 8
    assert len(fewer) == len(annotations) - 6
    rows = make_splits(fewer, tasks, "official", [0.8, 0.1, 0.1], 0)
    assert len(rows["test"]) == 48


def test_images_of_an_attribute_class_unseen_in_training_are_left_out_too(web, tmp_path):
    copy = copy_of(web, tmp_path)
    lists = copy / LISTS
    test = (lists / "test.txt").read_text().split()
    only = test[0].split("/")[1]
    train = [line for line in (lists / "train.txt").read_text().split() if line.split("/")[1] != only]
    (lists / "train.txt").write_text("\n".join(train))
    file = copy / "data" / "misc" / "attributes.txt"
    header, *lines = [line.split() for line in file.read_text().splitlines()]
    for k, line in enumerate(lines):
        line[header.index("seat_number")] = "9" if line[0] == only else str(4 + k % 2)
    file.write_text("\n".join(" ".join(line) for line in (header, *lines)))
    for option, classes in (("keep", ("4", "5", "9")), ("drop", ("4", "5"))):
        annotations, tasks = compcars.read(copy, levels=["make"], attributes=["seat_number"], unseen=option)
        assert tasks["seat_number"].classes == classes
    assert not any(path.split("/")[2] == only for path in annotations.paths)
    assert len(annotations) == len(train) + sum(line.split("/")[1] != only for line in test)


def test_a_few_listed_files_may_be_missing_but_not_many(web, tmp_path):
    copy = copy_of(web, tmp_path)
    (copy / "data" / "image" / first_image(copy)).unlink()
    assert len(compcars.read(copy)[0]) == 107
    with pytest.raises(UserError, match=f"1 of the 108 images.*{first_image(copy)}"):
        compcars.read(copy, max_missing=0.0)
    shutil.rmtree(copy / "data" / "label" / "2")
    with pytest.raises(UserError, match="max_missing"):
        compcars.read(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4\n1\n5 5 2 9\n", "1 boxes are inverted"),
        ("4\n1\n", "should have three lines"),
        ("4\n1\n1 2 3\n", "should have three lines"),
        ("front\n1\n1 2 3 4\n", "should have three lines"),
        ("7\n1\n1 2 3 4\n", "viewpoint should be one of"),
    ],
)
def test_a_damaged_label_file_is_named(web, tmp_path, text, message):
    copy = copy_of(web, tmp_path)
    name = first_image(copy).replace(".jpg", ".txt")
    (copy / "data" / "label" / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        compcars.read(copy)
    assert Path(name).stem in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1/2/2010", "line 1: expected 4 names"),
        ("../2/2010/x.jpg", "without '..'"),
        ("/1/2/2010/x.jpg", "line 1"),
        ("9/2/2010/a.jpg", "make id '9'; expected a number from 1 to 3"),
        ("1/99/2010/a.jpg", "model id '99'; expected a number from 1 to 18"),
        ("1/0/2010/a.jpg", "model id '0'"),
        ("1/x/2010/a.jpg", "model id 'x'"),
        ("3/2/2010/a.jpg", "model 2 under makes"),
    ],
)
def test_a_bad_line_of_a_list_is_named(web, tmp_path, line, message):
    copy = copy_of(web, tmp_path)
    for kind, suffix in (("image", "jpg"), ("label", "txt")):
        source = copy / "data" / kind / first_image(copy).replace("jpg", suffix)
        if not line.startswith(("/", "..")):
            target = copy / "data" / kind / line.replace("jpg", suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix:
                target.write_bytes(source.read_bytes())
    file = copy / LISTS / "train.txt"
    file.write_text(line + "\n" + file.read_text())
    with pytest.raises(UserError, match=message):
        compcars.read(copy)


def test_windows_lists_are_read(web, tmp_path):
    copy = copy_of(web, tmp_path)
    for name in ("train", "test"):
        file = copy / LISTS / f"{name}.txt"
        file.write_bytes(file.read_bytes().replace(b"/", b"\\").replace(b"\n", b"\r\n") + b"\r\n")
    assert compcars.read(copy)[0].digest() == compcars.read(web)[0].digest()


def test_an_image_in_both_lists_is_refused(web, tmp_path):
    copy = copy_of(web, tmp_path)
    with (copy / LISTS / "test.txt").open("a") as f:
        f.write(first_image(copy) + "\n")
    with pytest.raises(UserError, match="listed more than once"):
        compcars.read(copy)


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(f"{LISTS}/test.txt"), r"no list .*test\.txt"),
        (remove("data/misc/make_model_name.mat"), r"No file .*make_model_name\.mat"),
        (remove("data/misc/car_type.mat"), r"No file .*car_type\.mat"),
        (remove("data/misc/attributes.txt"), r"no file .*attributes\.txt"),
        (write("data/misc/make_model_name.mat", "<html>"), "cannot be read as a MATLAB file"),
        (write("data/misc/attributes.txt", "id speed\n1 2\n"), r"attributes\.txt: the first line should be 'model_id"),
        (
            write(
                "data/misc/attributes.txt", "model_id maximum_speed displacement door_number seat_number type\n2 1\n"
            ),
            "line 2: expected 6 numbers",
        ),
        (
            write(
                "data/misc/attributes.txt",
                "model_id maximum_speed displacement door_number seat_number type\n2 1 1 1 1 99\n",
            ),
            "body type 99; .* names only 12",
        ),
        (lambda root: edit_mat(root / "data/misc/make_model_name.mat", model_names=None), "variable 'model_names'"),
        (lambda root: edit_mat(root / "data/misc/car_type.mat", types=np.ones(3)), "'types' of row 1 should be text"),
    ],
)
def test_a_missing_or_damaged_file_is_named(web, tmp_path, damage, message):
    copy = copy_of(web, tmp_path)
    damage(copy)
    with pytest.raises(UserError, match=message):
        compcars.read(copy, levels=["make", "model", "type"])


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"(?s)data/train_test_split/classification/train\.txt.*sign its form"):
        compcars.read(tmp_path)
    with pytest.raises(UserError, match=r"(?s)sv_data/train_surveillance\.txt.*sign its form"):
        compcars.read(tmp_path, part="surveillance")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "both"}, "web or surveillance"),
        ({"levels": ["make", "colour"]}, "no level 'colour'"),
        ({"model_class": "pair"}, "model or triple"),
        ({"unseen": True}, "keep or drop"),
        ({"views": ["back"]}, "front, rear"),
        ({"attributes": ["displacment"]}, "Did you mean 'displacement'"),
        ({"part": "surveillance", "views": ["front"]}, "no year, attributes or viewpoints"),
        ({"part": "surveillance", "levels": ["year"]}, "no level 'year'"),
    ],
)
def test_bad_options_are_refused(web, options, message):
    with pytest.raises(UserError, match=message):
        compcars.read(web, **options)


def test_surveillance_images_come_back(surveillance):
    annotations, tasks = compcars.read(surveillance, part="surveillance", levels=["make", "model", "color"])
    cars = sample_cars()
    assert len(annotations) == len(cars)
    assert [len(t.classes) for t in tasks][:2] == [3, 9]
    assert tasks["model"].parent == "make"
    assert annotations.boxes is None
    models = sorted(tasks["model"].classes[m] for m in annotations.targets["model"])
    assert models == sorted(c.model.name for c in cars)
    assert (annotations.targets["color"] == -1).sum() == len(cars) // 9
    assert compcars.read(surveillance / "sv_data", part="surveillance")[0].paths == annotations.paths


def test_damaged_surveillance_files_are_named(surveillance, tmp_path):
    copy = copy_of(surveillance, tmp_path)
    file = copy / "sv_data" / "color_list.mat"
    colors = scipy.io.loadmat(file)["color_list"]
    colors[0, 1] = 12
    edit_mat(file, color_list=colors)
    with pytest.raises(UserError, match=r"colours should be -1 to 9\. Found -1 to 12"):
        compcars.read(copy, part="surveillance", levels=["color"])
    edit_mat(copy / "sv_data" / "sv_make_model_name.mat", sv_make_model_name=cells(["a", "b"]))
    with pytest.raises(UserError, match="expected columns make, model"):
        compcars.read(copy, part="surveillance")


def test_class_names_are_unique_and_never_empty():
    assert unique_names([0, 1, 2], ["X5", "X5", ""], "model") == {0: "X5 (1)", 1: "X5 (2)", 2: "model 3"}
    taken = unique_names([0, 1, 2], ["A", "A", "A (1)"], "model")
    assert taken == {0: "A (1) (1)", 1: "A (2)", 2: "A (1) (3)"}
    assert full_name("BMW", "BMW X5") == "BMW X5"
    assert full_name("BMW", "X5") == "BMW X5"


@pytest.mark.parametrize("part", ["web", "surveillance"])
def test_order_does_not_depend_on_the_hash_seed(part, request):
    root = request.getfixturevalue(part)
    levels = ["make", "model", "type", "year"] if part == "web" else ["make", "model", "color"]
    code = (
        "from mtlcar.data import compcars as s\n"
        f"a, t = s.read({str(root)!r}, part={part!r}, levels={levels}, unseen='drop')\nprint(a.digest(), t.to_dict())"
    )
    assert output_with_hash_seed(code, 1) == output_with_hash_seed(code, 2)
