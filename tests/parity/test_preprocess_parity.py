"""Our preprocessing against what the DINOv3 processor of transformers computes.

The processor needs torchvision, so its arithmetic is written out here a second time, from
transformers 5.23 (image_processing_dinov3_vit.py, image_processing_backends.py) and torchvision's
v2 functionals, which call torch's interpolate: stack, rescale, resize antialiased in float32,
centre crop, subtract the mean, divide by the deviation. The tolerance is zero.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dinoprobe.preprocess import Preprocessing, prepare, to_pixel_values

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def processor(images, size, mode="bilinear", shortest_edge=None):
    """`(n, 3, *size)` of arrays `(height, width, 3)` of one shape."""
    stacked = torch.stack([torch.from_numpy(i).permute(2, 0, 1).contiguous() for i in images])
    stacked = stacked * 0.00392156862745098
    height, width = stacked.shape[-2:]
    target = size
    if shortest_edge is not None:
        short, long = min(height, width), max(height, width)
        new_long = int(shortest_edge * long / short)
        target = (shortest_edge, new_long) if height <= width else (new_long, shortest_edge)
    if target != (height, width):
        stacked = torch.nn.functional.interpolate(
            stacked, size=target, mode=mode, align_corners=False, antialias=True
        )
    top, left = int((target[0] - size[0]) / 2.0), int((target[1] - size[1]) / 2.0)
    stacked = stacked[:, :, top : top + size[0], left : left + size[1]]
    mean = torch.as_tensor(MEAN, dtype=torch.float32).view(-1, 1, 1)
    std = torch.as_tensor(STD, dtype=torch.float32).view(-1, 1, 1)
    return stacked.sub(mean).div_(std)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ours(images, preprocessing):
    batch = torch.stack([prepare(image, preprocessing) for image in images])
    return to_pixel_values(batch, preprocessing, dtype=torch.float32, device="cpu")


SHAPES = [(375, 500), (500, 375), (64, 48), (224, 224), (1, 1), (3, 700), (1500, 1100), (223, 225)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_exact_mode_has_the_processors_bits(shape, mode):
    images = [noise(*shape, seed) for seed in range(2)]
    exact = Preprocessing(arithmetic="exact", interpolation=mode)
    assert torch.equal(ours(images, exact), processor(images, (224, 224), mode))


@pytest.mark.parametrize(
    "shape", [(375, 500), (500, 375), (300, 300), (97, 64), (224, 300)], ids=str
)
def test_exact_crop_has_the_bits_of_shortest_edge_and_centre_crop(shape):
    images = [noise(*shape)]
    exact = Preprocessing(arithmetic="exact", resize="crop", shortest_edge=256)
    assert torch.equal(ours(images, exact), processor(images, (224, 224), shortest_edge=256))
    same = Preprocessing(arithmetic="exact", resize="crop")
    assert torch.equal(ours(images, same), processor(images, (224, 224), shortest_edge=224))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_bit_mode_is_at_most_one_grey_level_away(shape):
    """The design's limit, on noise, which is the hardest case: both in whole grey levels."""
    images = [noise(*shape)]
    exact = processor(images, (224, 224)) * torch.tensor(STD).view(-1, 1, 1)
    levels = ((exact + torch.tensor(MEAN).view(-1, 1, 1)) * 255).round()
    assert (prepare(images[0], Preprocessing()).float() - levels).abs().max() <= 1


def test_an_encoded_file_goes_the_same_way():
    pixels = noise(120, 160)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    decoded = np.array(Image.open(buffer).convert("RGB"))
    exact = Preprocessing(arithmetic="exact", size=(64, 64))
    assert torch.equal(ours([buffer.getvalue()], exact), processor([decoded], (64, 64)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixel_values_are_rounded_once(dtype):
    batch = torch.from_numpy(noise(8, 8)).permute(2, 0, 1)[None]
    full = to_pixel_values(batch, Preprocessing(), dtype=torch.float32, device="cpu")
    half = to_pixel_values(batch, Preprocessing(), dtype=dtype, device="cpu")
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))
    assert batch.dtype == torch.uint8
