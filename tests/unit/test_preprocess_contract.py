import json
import subprocess
import sys

import pytest

from dinoprobe.errors import ConfigurationError, FormatError
from dinoprobe.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

DINOV3 = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "input_data_format": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "return_tensors": None,
    "size": {"height": 224, "width": 224},
}
DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}


def test_an_empty_config_and_dinov3s_own_are_the_default():
    assert Preprocessing.from_config({}) == Preprocessing()
    assert Preprocessing.from_config(DINOV3, patch_size=16) == Preprocessing()
    assert Preprocessing().mean == IMAGENET_MEAN
    assert Preprocessing().std == IMAGENET_STD


def test_dinov2s_config_is_a_shortest_edge_and_a_crop():
    assert Preprocessing.from_config(DINOV2, patch_size=14) == Preprocessing(
        resize="crop", interpolation="bicubic", shortest_edge=256
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 448}, {"size": (448, 448)}),
        ({"size": {"height": 96, "width": 128}}, {"size": (96, 128)}),
        ({"size": {"height": 96, "width": 128, "shortest_edge": None}}, {"size": (96, 128)}),
        ({"resample": None}, {}),
        ({"resample": 3}, {"interpolation": "bicubic"}),
        ({"do_rescale": False}, {"rescale": 1.0}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"image_mean": 0.5, "image_std": 0.5}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        (
            {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224},
            {"resize": "crop"},
        ),
        ({"do_pad": False, "size_divisor": None}, {}),
    ],
)
def test_forms_of_a_config(changes, expected):
    assert Preprocessing.from_config(DINOV3 | changes) == Preprocessing(**expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resample": 0}, "resample=0 (nearest)"),
        ({"resample": 1}, "lanczos"),
        ({"resample": True}, "resample=True"),
        ({"resample": [2]}, "resample=[2]"),
        ({"do_resize": False}, "do_resize=False"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": {"shortest_edge": 224}}, "shortest_edge=224 without do_center_crop"),
        ({"do_center_crop": True, "crop_size": 192}, "do_center_crop to (192, 192)"),
        ({"size": {"shortest_edge": 200}, "do_center_crop": True, "crop_size": 224}, "200"),
        ({"size": {"shortest_edge": "x"}, "do_center_crop": True, "crop_size": 224}, "'x'"),
        ({"size": "224"}, "size='224'"),
        ({"size": -1}, "-1"),
        ({"size": {"height": 1.5, "width": 2}}, "1.5"),
        ({"size": 10**9}, "1000000000"),
        ({"image_mean": [0.5, 0.5]}, "image_mean=[0.5, 0.5]"),
        ({"image_std": [0.5, 0.5, 0]}, "std"),
        ({"image_mean": ["a", 0, 0]}, "'a'"),
        ({"rescale_factor": "x"}, "'x'"),
        ({"do_pad": True}, "do_pad=True"),
        ({"crop_pct": 0.875}, "crop_pct=0.875"),
    ],
)
def test_a_config_that_can_not_be_reproduced_is_refused_by_name(changes, named):
    with pytest.raises(FormatError) as caught:
        Preprocessing.from_config(DINOV3 | changes)
    assert "preprocessor_config.json" in str(caught.value)
    assert named in str(caught.value)


def test_a_config_that_is_no_object():
    with pytest.raises(FormatError, match="list"):
        Preprocessing.from_config([])


def test_a_config_whose_size_the_patches_do_not_tile():
    with pytest.raises(FormatError, match="patch size 14"):
        Preprocessing.from_config({"size": 225}, patch_size=14)


def test_with_options():
    base = Preprocessing()
    assert base.with_options() == base
    changed = base.with_options(size=448, resize="pad", exact=True, bands=(4, 3, 2), patch_size=16)
    assert changed == Preprocessing(
        size=(448, 448), resize="pad", arithmetic="exact", bands=(4, 3, 2)
    )
    assert changed.with_options(exact=False).arithmetic == "uint8"


def test_another_size_keeps_the_share_that_is_cropped():
    cropped = Preprocessing(resize="crop", shortest_edge=256)
    assert cropped.with_options(size=448).shortest_edge == 512
    assert cropped.with_options(resize="squash").shortest_edge is None
    assert cropped.with_options(resize="crop").shortest_edge == 256


def test_a_size_that_patches_do_not_tile_names_the_nearest():
    with pytest.raises(ConfigurationError, match="224 or 240"):
        Preprocessing().with_options(size=230, patch_size=16)
    with pytest.raises(ConfigurationError, match=r"work: 16\."):
        Preprocessing().with_options(size=7, patch_size=16)


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "stretch"},
        {"bands": (1, 2)},
        {"bands": (0, 1, 2)},
        {"size": 0},
        {"size": 100_000},
    ],
)
def test_options_that_can_not_work(options):
    with pytest.raises(ConfigurationError):
        Preprocessing().with_options(**options)


def test_a_shortest_edge_only_with_crop():
    with pytest.raises(ConfigurationError, match="only resize 'crop'"):
        Preprocessing(shortest_edge=256)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(bands=(3, 2, 1), arithmetic="exact", resize="crop", shortest_edge=256),
    ],
)
def test_json_round_trip(preprocessing):
    again = Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())))
    assert again == preprocessing
    assert again.digest() == preprocessing.digest()


def test_the_digest_changes_with_every_field():
    base = Preprocessing(resize="crop", shortest_edge=256)
    others = [
        Preprocessing(),
        base.with_options(size=448),
        base.with_options(exact=True),
        base.with_options(bands=(3, 2, 1)),
        base.with_options(resize="crop", size=224, exact=False, bands=(1, 2, 3)),
        Preprocessing(interpolation="bicubic"),
        Preprocessing(mean=(0.5, 0.5, 0.5)),
        Preprocessing(std=(0.5, 0.5, 0.5)),
        Preprocessing(rescale=1.0),
        Preprocessing(resize="crop"),
    ]
    assert len({base.digest(), *(other.digest() for other in others)}) == 11


def test_the_digest_is_the_same_in_every_release():
    assert Preprocessing().digest() == "efd2a89203ae2e1d"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version 2"),
        ({"gamma": 1}, "gamma"),
        ({"size": [1, 2, 3]}, "size"),
        ({"size": [[1], 2]}, "size"),
        ({"resize": ["squash"]}, "resize"),
        ({"mean": None}, "mean"),
        ({"mean": [0, 0, float("nan")]}, "mean"),
        ({"std": [1, 1, -1]}, "std"),
        ({"rescale": 0}, "rescale"),
        ({"bands": "123"}, "bands"),
        ({"bands": 3}, "bands"),
        ({"shortest_edge": True}, "shortest_edge"),
    ],
)
def test_a_dict_that_was_not_written_here_is_refused(change, named):
    with pytest.raises(FormatError, match=named):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)


def test_a_dict_with_a_missing_key_or_no_dict():
    values = Preprocessing().to_dict()
    del values["resize"]
    with pytest.raises(FormatError, match="resize"):
        Preprocessing.from_dict(values)
    with pytest.raises(FormatError, match="list"):
        Preprocessing.from_dict([])


def test_the_import_loads_neither_torch_nor_pillow():
    code = "import sys, dinoprobe.preprocess; print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
