"""The bench measures what it says: FLOPs by hand, photographs from a seed, one document."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoints import save_vit
from typer.testing import CliRunner

from dinoprobe.api import embed as embed_images
from dinoprobe.bench import EmbedBench, run_embed_bench
from dinoprobe.bench.limits import flops_of_image, matrix_ceiling
from dinoprobe.bench.synthetic import LARGE, photo, write_photos
from dinoprobe.bench.tutorial import tutorial_features
from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.cli.app import app
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.encoder.families import FAMILIES
from dinoprobe.errors import ConfigurationError, DatasetError
from dinoprobe.preprocess import decode

DESCRIBED = set(
    re.findall(r"`([a-z_0-9]+)`", (Path(__file__).parents[2] / "docs" / "json.md").read_text())
)


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [
        ("vits16", 9.4), ("vits16plus", 12.2), ("vitb16", 35.9), ("vitl16", 125.7),
        ("vith16plus", 344), ("vit7b16", 2726), ("convnext-tiny", 8.9),
    ],
)  # fmt: skip
def test_flops_are_the_published_ones(name: str, gigaflops: float) -> None:
    """timm's gmacs times two, at 224 pixels; within 1 %, for norms are left out."""
    entry = CHECKPOINTS[name]
    config = FAMILIES[entry.model_type].config_class()(**entry.config)
    assert flops_of_image(config, (224, 224)) == pytest.approx(gigaflops * 1e9, rel=0.01)


def test_the_ceiling_is_a_sane_number() -> None:
    assert 1e9 < matrix_ceiling(torch.float32, torch.device("cpu")) < 1e15


def test_photographs_come_from_a_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_photos(tmp_path / "a", 6)
    second = write_photos(tmp_path / "b", 6)
    assert [Path(p).read_bytes() for p in first] == [Path(p).read_bytes() for p in second]
    assert len({decode(Path(path).read_bytes()).pixels.shape for path in first}) > 1


@pytest.mark.parametrize("pooling", ["mean", "cls+mean", "blocks2", "blocks2+mean"])
def test_the_tutorials_loop_pools_as_the_encoder_does(tmp_path: Path, pooling: str) -> None:
    """But for the resize, which is of whole grey levels in the engine and of floats in the loop."""
    settings = EncoderSettings(
        name=str(save_vit(tmp_path / "vit")), device="cpu", pooling=pooling, exact=True
    )
    encoder = open_encoder(settings)
    paths = write_photos(tmp_path, 3)
    plainly = tutorial_features(paths, encoder)
    engine = embed_images([Path(path) for path in paths], encoder, store=str(tmp_path / "store"))
    assert engine.X.shape == plainly.shape == (3, encoder.dimension)
    np.testing.assert_allclose(engine.X, plainly, atol=1e-2)


def test_photographs_have_the_detail_of_real_ones() -> None:
    """0.4 bytes for a pixel at quality 90: flat pictures would have a tenth of it."""
    content = photo(np.random.default_rng(0), (500, 375))
    assert 70_000 < len(content) < 100_000
    assert decode(content).pixels.shape == (375, 500, 3)


def test_a_share_is_large(tmp_path: Path) -> None:
    paths = write_photos(tmp_path, 4, large_share=0.25)
    shapes = [decode(Path(path).read_bytes()).pixels.shape[:2] for path in paths]
    assert shapes.count((LARGE[1], LARGE[0])) == 1


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    bench = EmbedBench(
        encoder=EncoderSettings(name="builtin", device="cpu", dtype="bfloat16"),
        images=16,
        rounds=1,
    )
    return run_embed_bench(bench)


def test_the_document_holds_what_is_described(found: dict[str, object]) -> None:
    assert set(found) <= DESCRIBED
    assert found["images_per_second"] > 0  # type: ignore[operator]
    assert 0.99 < found["cosine_min"] <= found["cosine_mean"] < 1  # type: ignore[operator]
    assert found["precision"] == "bfloat16"
    assert json.loads(json.dumps(found)) == found


def test_the_ratio_is_that_of_its_two_sides(found: dict[str, object]) -> None:
    ratio = found["images_per_second"] / found["tutorial_images_per_second"]  # type: ignore[operator]
    assert found["ratio_to_tutorial"] == pytest.approx(ratio)


def test_the_command_line_prints_a_table_and_a_document(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 3)
    arguments = ["bench", "embed", str(tmp_path / "photos"), "--encoder", "builtin"]
    arguments += ["--images", "8", "--rounds", "1", "--no-tutorial", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "files to features" in result.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document["schema"] == "dinoprobe.bench-embed/1"
    assert document["ratio_to_tutorial"] is None


def test_random_weights_need_a_published_shape() -> None:
    bench = EmbedBench(encoder=EncoderSettings(name="builtin"), random_weights=True, images=8)
    with pytest.raises(ConfigurationError, match="'builtin' is none"):
        run_embed_bench(bench)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    bench = EmbedBench(encoder=EncoderSettings(name="builtin"), folder=str(tmp_path))
    with pytest.raises(DatasetError, match=r"no \.jpg file"):
        run_embed_bench(bench)


def test_a_folder_and_rendered_ones_exclude_each_other(tmp_path: Path) -> None:
    arguments = ["bench", "embed", str(tmp_path), "--encoder", "builtin", "--synthetic"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
