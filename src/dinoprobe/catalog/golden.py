"""Published outputs of the DINOv3 checkpoints, for checking weights on a user's own machine.

From transformers' conversion scripts (convert_dinov3_vit_to_hf.py,
convert_dinov3_convnext_to_hf.py): the first five numbers of the CLS token (ConvNeXt: the pooled
output) and of the first patch token, for the picture 000000039769 of COCO val2017, squashed to 224
x 224 by an antialiased bilinear resize in float, ImageNet's mean and deviation (for the satellite
weights too), float32. Tolerance 1e-3, absolute and relative, as stated there.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

GOLDEN_IMAGE_URL = "http://images.cocodataset.org/val2017/000000039769.jpg"
GOLDEN_IMAGE_SIZE = (480, 640)  # height, width
GOLDEN_TOLERANCE = 1e-3


class Golden(NamedTuple):
    """The first five numbers of two tokens."""

    cls: tuple[float, ...]
    patch: tuple[float, ...]


GOLDEN = MappingProxyType(
    {
        "vits16": Golden(
            (0.463561, -0.415609, 0.408236, -0.126613, -0.286636),
            (-0.038754, -0.250895, -0.016392, -0.455473, 0.571582),
        ),
        "vits16plus": Golden(
            (-0.471349, -1.365778, -0.317983, 0.377219, -0.769085),
            (0.144551, -0.388117, -0.393433, -0.157695, -0.600380),
        ),
        "vitb16": Golden(
            (1.034643, -0.180609, -0.341018, -0.066376, -0.011383),
            (-0.082523, -0.456272, -0.728029, -0.430680, -0.152880),
        ),
        "vitl16": Golden(
            (0.484527, -0.582214, 0.480636, 0.592040, 0.945166),
            (-0.211367, -0.490863, -0.257131, 0.101763, 0.154511),
        ),
        "vith16plus": Golden(
            (-0.064575, -0.148866, -0.621524, 0.634878, 0.152695),
            (-0.093817, 0.287407, -0.050036, 0.428043, 0.094561),
        ),
        "vit7b16": Golden(
            (0.275439, -0.261353, 0.067772, 0.049936, -0.158747),
            (0.044442, -0.052542, 0.070777, -0.065111, -0.026546),
        ),
        "vitl16-sat493m": Golden(
            (-0.33235, 0.34052, -0.22087, 0.21434, 0.09003),
            (0.18488, 0.30309, -0.20689, 0.12848, 0.06207),
        ),
        "vit7b16-sat493m": Golden(
            (-0.19779, 0.11819, -0.00581, -0.21055, -0.03971),
            (-0.12423, 0.07879, -0.10057, 0.02835, -0.11727),
        ),
        "convnext-tiny": Golden(
            (-6.372119, 1.300791, 2.074303, -0.079975, 0.607205),
            (0.490530, -3.713466, 1.848513, -1.040319, -1.090818),
        ),
        "convnext-small": Golden(
            (-0.903914, 1.412183, 0.287465, 0.175296, -2.397940),
            (-1.081114, 0.637362, 3.748765, 0.170179, 1.445153),
        ),
        "convnext-base": Golden(
            (0.155366, -0.378771, -0.735157, -2.818718, 0.015095),
            (3.039118, 0.778155, -1.961322, -1.607147, -2.411941),
        ),
        "convnext-large": Golden(
            (-2.219094, -0.594451, -2.300294, -0.957415, -0.520473),
            (-1.477349, -0.217038, -3.128137, 0.418962, 0.334949),
        ),
    }
)
