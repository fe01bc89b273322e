"""Stanford Cars: the real annotations, both layouts written by ourselves, and damaged copies."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from mtlcar.data import stanford_cars
from mtlcar.data.layouts import class_name, write_stanford_cars
from mtlcar.data.stanford_cars import body_type, parse_name
from mtlcar.errors import UserError
from tests.layout_samples import copy_of, edit_mat, output_with_hash_seed, real_data, sample_cars


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford_cars(tmp_path_factory.mktemp("sc") / "new", sample_cars())


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford_cars(tmp_path_factory.mktemp("sc") / "old", sample_cars(), layout="old")


def test_real_data_has_the_published_classes_and_whole_picture_boxes():
    annotations, tasks = stanford_cars.read(real_data("stanford_cars"), levels=["make", "model", "year", "type"])
    assert len(annotations) == 6509
    assert [len(t.classes) for t in tasks] == [49, 196, 16, 9]
    assert np.bincount(annotations.targets["model"], minlength=196).min() > 0
    assert tasks["model"].classes[0] == "AM General Hummer SUV 2000"
    assert tasks["model"].classes[-1] == "smart fortwo Convertible 2012"
    assert tasks["model"].parent == "make"
    assert annotations.boxes is not None
    assert annotations.boxes.min() == 0
    assert annotations.boxes.max() == 160
    assert (annotations.split == "train").all()


def test_real_boxes_are_the_whole_pictures():
    from PIL import Image

    annotations, _ = stanford_cars.read(real_data("stanford_cars"))
    assert annotations.boxes is not None
    for i in range(0, len(annotations), 97):
        with Image.open(annotations.file(i)) as image:
            assert annotations.boxes[i].tolist() == [0, 0, *image.size]


def test_pairs_are_189_and_seven_hold_two_years():
    root = real_data("stanford_cars")
    triples, pairs = (stanford_cars.read(root, levels=["model"], model_class=c)[1]["model"] for c in ("triple", "pair"))
    assert len(pairs.classes) == 189
    names = [parse_name(c).pair for c in triples.classes]
    assert sorted(c for c in pairs.classes if names.count(c) == 2) == [
        "Audi S4 Sedan",
        "Bentley Continental GT Coupe",
        "Dodge Caliber Wagon",
        "Dodge Durango SUV",
        "Ford F-150 Regular Cab",
        "Honda Odyssey Minivan",
        "Volkswagen Golf Hatchback",
    ]


@pytest.mark.parametrize(
    ("levels", "model_class", "parent"),
    [
        (["make", "model"], "triple", "make"),
        (["type", "model"], "triple", "type"),
        (["type", "model"], "pair", "type"),
        (["make", "type", "model"], "triple", "make"),
        (["model", "year"], "triple", "year"),
        (["model", "year"], "pair", None),
        (["model"], "triple", None),
    ],
)
def test_levels_come_in_the_order_given_with_the_models_parent(new, levels, model_class, parent):
    annotations, tasks = stanford_cars.read(new, levels=levels, model_class=model_class)
    assert list(tasks.names) == levels
    assert [t.parent for t in tasks if t.name != "model"] == [None] * (len(levels) - 1)
    assert tasks["model"].parent == parent
    if parent:
        table = np.asarray(tasks.parent_of["model"])
        assert (table[annotations.targets["model"]] == annotations.targets[parent]).all()


@pytest.mark.parametrize(
    ("name", "make", "pair", "kind"),
    [
        ("AM General Hummer SUV 2000", "AM General", "AM General Hummer SUV", "SUV"),
        ("HUMMER H2 SUT Crew Cab 2009", "HUMMER", "HUMMER H2 SUT Crew Cab", "Pickup"),
        ("Aston Martin V8 Vantage Coupe 2012", "Aston Martin", "Aston Martin V8 Vantage Coupe", "Coupe"),
        ("Land Rover LR2 SUV 2012", "Land Rover", "Land Rover LR2 SUV", "SUV"),
        ("Ram C/V Cargo Van Minivan 2012", "Ram", "Ram C/V Cargo Van Minivan", "Minivan"),
        ("Dodge Ram Pickup 3500 Crew Cab 2010", "Dodge", "Dodge Ram Pickup 3500 Crew Cab", "Pickup"),
        ("smart fortwo Convertible 2012", "smart", "smart fortwo Convertible", "Convertible"),
        ("Ford E-Series Wagon Van 2012", "Ford", "Ford E-Series Wagon Van", "Van"),
        ("Infiniti G Coupe IPL 2012", "Infiniti", "Infiniti G Coupe IPL", "Coupe"),
        ("Chevrolet TrailBlazer SS 2009", "Chevrolet", "Chevrolet TrailBlazer SS", "SUV"),
    ],
)
def test_names_with_traps_are_parsed(name, make, pair, kind):
    parts = parse_name(name)
    assert (parts.make, parts.pair, parts.year, body_type(name)) == (make, pair, name[-4:], kind)


@pytest.mark.parametrize("name", ["Acura RL Sedan", "Acura 2012", "2012", "Land Rover 2012", ""])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UserError, match="make"):
        parse_name(name)


@pytest.mark.parametrize("layout", ["new", "old"])
def test_both_layouts_give_back_what_was_drawn(layout, request):
    root = request.getfixturevalue(layout)
    annotations, tasks = stanford_cars.read(root)
    cars = sample_cars()
    assert len(annotations) == len(cars)
    assert annotations.boxes is not None
    found = sorted(
        (tasks["model"].classes[m], tasks["make"].classes[k], *box.astype(int).tolist())
        for m, k, box in zip(annotations.targets["model"], annotations.targets["make"], annotations.boxes, strict=True)
    )
    assert found == sorted((class_name(c.model), c.model.make, *c.box) for c in cars)
    assert (annotations.split == "test").sum() == len(cars) // 2
    assert all(annotations.file(i).is_file() for i in range(len(annotations)))


def test_the_folder_above_and_nested_archives_are_found(tmp_path):
    copy = tmp_path / "stanford_cars"
    write_stanford_cars(copy, sample_cars())
    (copy / "devkit").rename(copy / "x")
    (copy / "car_devkit").mkdir()
    (copy / "x").rename(copy / "car_devkit" / "devkit")
    (copy / "cars_train").rename(copy / "y")
    (copy / "cars_train").mkdir()
    (copy / "y").rename(copy / "cars_train" / "cars_train")
    annotations, _ = stanford_cars.read(tmp_path)
    assert annotations.root == copy
    assert len(annotations) == len(sample_cars())


def test_subset_train_leaves_the_publishers_test_images_out(new):
    annotations, _ = stanford_cars.read(new, subset="train")
    assert set(annotations.split) == {"train"}
    assert len(annotations) == len(sample_cars()) // 2


def test_test_images_without_labels_stay_out(new, tmp_path):
    copy = copy_of(new, tmp_path)
    (copy / "cars_test_annos_withlabels.mat").rename(copy / "devkit" / "cars_test_annos_withlabels.mat")
    assert len(stanford_cars.read(copy)[0]) == len(sample_cars())
    (copy / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    assert set(stanford_cars.read(copy)[0].split) == {"train"}


def test_labels_of_the_test_images_are_found_in_a_nested_devkit_and_missed_aloud(new, tmp_path, caplog):
    copy = copy_of(new, tmp_path)
    (copy / "car_devkit").mkdir()
    for name in ("devkit", "cars_test_annos_withlabels.mat"):
        (copy / name).rename(copy / "car_devkit" / name)
    assert len(stanford_cars.read(copy)[0]) == len(sample_cars())
    assert not caplog.records
    (copy / "car_devkit" / "cars_test_annos_withlabels.mat").unlink()
    stanford_cars.read(copy, subset="train")
    assert not caplog.records
    assert set(stanford_cars.read(copy)[0].split) == {"train"}
    assert "no cars_test_annos_withlabels.mat" in caplog.text


def test_missing_images_are_an_error_or_left_out_on_request(new, tmp_path):
    copy = copy_of(new, tmp_path)
    for n in (3, 5):
        (copy / "cars_train" / f"{n:05d}.jpg").unlink()
    with pytest.raises(UserError, match=r"2 of the 108 images.*cars_train/00003\.jpg, cars_train/00005\.jpg"):
        stanford_cars.read(copy)
    with pytest.raises(UserError, match="max_missing"):
        stanford_cars.read(copy, max_missing=0.01)
    assert len(stanford_cars.read(copy, max_missing=0.02)[0]) == 106


def test_a_missing_data_set_says_what_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"(?s)devkit/cars_train_annos\.mat.*cars_annos\.mat.*download.*dead"):
        stanford_cars.read(tmp_path)
    with pytest.raises(UserError, match="No such folder"):
        stanford_cars.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root is not set"):
        stanford_cars.read(None)


def test_the_annotation_file_without_labels_is_refused_by_its_field(new, tmp_path):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_train_annos.mat"
    annos = scipy.io.loadmat(file)["annotations"]
    keep = [n for n in annos.dtype.names if n != "class"]
    edit_mat(file, annotations=annos[keep].astype([(n, object) for n in keep]))
    with pytest.raises(UserError, match=r"(?s)cars_train_annos\.mat.*field 'class'. Found bbox_x1"):
        stanford_cars.read(copy)


def test_a_file_without_annotations_or_with_plain_numbers_is_refused(new, tmp_path):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_train_annos.mat"
    edit_mat(file, annotations=None, other=np.ones(3))
    with pytest.raises(UserError, match=r"variable 'annotations'. Found other"):
        stanford_cars.read(copy)
    edit_mat(file, annotations=np.ones(3))
    with pytest.raises(UserError, match="no fields"):
        stanford_cars.read(copy)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None])
def test_a_damaged_mat_file_is_refused(new, tmp_path, content):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_train_annos.mat"
    file.write_bytes(file.read_bytes()[:3000] if content is None else content)
    with pytest.raises(UserError, match=r"cars_train_annos\.mat cannot be read as a MATLAB file"):
        stanford_cars.read(copy)


def test_missing_class_names_are_named(new, tmp_path):
    copy = copy_of(new, tmp_path)
    (copy / "devkit" / "cars_meta.mat").unlink()
    with pytest.raises(UserError, match=r"No file .*cars_meta\.mat"):
        stanford_cars.read(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class", 10, r"00005\.jpg: found class 10, expected 1 to 9"),
        ("class", 0, "found class 0, expected 1 to 9"),
        ("class", 1.5, r"'class' of row 5 should be a whole number. Found 1\.5"),
        ("class", "two", "'class' of row 5 should be a whole number"),
        ("bbox_x2", 1, r"1 boxes are inverted.*00005\.jpg"),
        ("bbox_y1", -3, "inverted, empty or negative"),
        ("fname", "../../etc/passwd", "without '..'"),
        ("fname", "..\\x.jpg", "without '..'"),
        ("fname", 7, "should be text"),
        ("fname", "00004.jpg", "listed more than once"),
    ],
)
def test_a_bad_annotation_names_its_image(new, tmp_path, field, value, message):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_train_annos.mat"
    annos = scipy.io.loadmat(file)["annotations"]
    if field == "bbox_x2":
        annos["bbox_x1"][0, 4] = 20
    annos[field][0, 4] = value
    edit_mat(file, annotations=annos)
    with pytest.raises(UserError, match=message):
        stanford_cars.read(copy)


def test_a_box_at_pixel_zero_starts_at_the_edge(new, tmp_path):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_train_annos.mat"
    annos = scipy.io.loadmat(file)["annotations"]
    annos["bbox_x1"][0, 0] = 0
    annos["bbox_x1"][0, 1] = 1
    edit_mat(file, annotations=annos)
    boxes = stanford_cars.read(copy)[0].boxes
    assert boxes is not None
    assert boxes[:2, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ["make", "modle"]}, "Did you mean 'model'"),
        ({"levels": []}, "at least one"),
        ({"levels": ["make", "make"]}, "each level once"),
        ({"model_class": "both"}, "triple or pair"),
        ({"subset": "test"}, "all or train"),
        ({"max_missing": 2}, "from 0 to 1"),
    ],
)
def test_bad_options_are_refused(new, options, message):
    with pytest.raises(UserError, match=message):
        stanford_cars.read(new, **options)


def test_a_body_type_that_no_name_says_is_refused_only_when_asked_for(new, tmp_path):
    copy = copy_of(new, tmp_path)
    file = copy / "devkit" / "cars_meta.mat"
    names = scipy.io.loadmat(file)["class_names"]
    names[0, 0] = "Aurelan Altano GT 2012"
    edit_mat(file, class_names=names)
    assert len(stanford_cars.read(copy)[1]["model"].classes) == 9
    with pytest.raises(UserError, match="no body type is known for Aurelan Altano GT 2012"):
        stanford_cars.read(copy, levels=["type", "model"])


def test_class_order_does_not_depend_on_the_hash_seed(new):
    code = (
        "from mtlcar.data import stanford_cars as s\n"
        f"a, t = s.read({str(new)!r}, levels=['type', 'year', 'make', 'model'], model_class='pair')\n"
        "print(a.digest(), [k.classes for k in t], t.parent_of)"
    )
    assert output_with_hash_seed(code, 1) == output_with_hash_seed(code, 2)
