"""Train the built-in encoder: `python recipes/builtin/train.py --arch vit --out DIR`.

Self-supervised, from pixels that the recipe makes. A clean tower (teacher.py) first learns the
undisturbed training digits by contrast. The encoder then sees each glyph pasted on clutter and must
give the clean tower's embedding of it (CLS token), and the glyph's mask (patch tokens). Labels are
never read here; the test writers' digits are read by --evaluate alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import SIZE_PX, build, load, save
from evaluation import evaluate, normalise
from glyphs import distort, enlarge, letters, scribbles
from safetensors.torch import load_file, save_file
from teacher import Teacher, train_teacher
from torch import Generator, Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
    normalize,
)

from dinoprobe.demo.render import Pose, digit_parts, paste, render_background

BATCH = 256
POOL = 2048  # backgrounds kept; 32 of them are new at each step
MASK_SIDE = 8  # each patch token predicts the glyph's cover of its own patch at 8 x 8


@dataclass(frozen=True)
class Stage:
    """A part of the schedule: until which share of the time, scene side, and pose."""

    until: float
    size_px: int
    pose: Pose


STAGES = {
    "vit": (
        Stage(0.65, 48, Pose(scale_min=0.70, scale_max=1.05)),
        Stage(1.0, 64, Pose(scale_min=0.57, scale_max=0.88)),
    ),
    "convnext": (Stage(1.0, 64, Pose(scale_min=0.62, scale_max=0.92)),),
}


class Backgrounds:
    """A pool of cluttered backgrounds, renewed a few at a time, flipped and recoloured."""

    def __init__(self, size_px: int, generator: Generator) -> None:
        self.size_px, self.generator, self.next = size_px, generator, 0
        parts = [render_background(128, size_px, generator) for _ in range(POOL // 128)]
        self.images = torch.cat(parts)

    def draw(self, n: int) -> Tensor:
        """Return n backgrounds `(n, 3, s, s)`."""
        fresh = render_background(32, self.size_px, self.generator)
        self.images[self.next : self.next + 32] = fresh
        self.next = (self.next + 32) % POOL
        chosen = self.images[torch.randint(0, POOL, (n,), generator=self.generator)]
        chosen = chosen[:, torch.randperm(3, generator=self.generator)]
        turned = torch.rot90(chosen, int(torch.randint(0, 4, (), generator=self.generator)), (2, 3))
        return turned.flip(3) if torch.rand((), generator=self.generator) < 0.5 else turned


class Student(nn.Module):
    """The encoder with the two heads that only training uses."""

    def __init__(self, encoder: Any, dimension: int) -> None:
        super().__init__()
        self.encoder = encoder
        config = encoder.config
        width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
        self.prefix = 1 + getattr(config, "num_register_tokens", 0)
        self.project = nn.Sequential(nn.Linear(width, 384), nn.GELU(), nn.Linear(384, dimension))
        self.mask = nn.Linear(width, MASK_SIDE**2)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors `(n, dimension)` and mask logits `(n, patches, 64)`."""
        out = self.encoder(pixel_values=pixel_values)
        tokens = out.last_hidden_state[:, self.prefix :]
        return self.project(out.pooler_output), self.mask(tokens)


def mask_targets(cover: Tensor, patches: int) -> Tensor:
    """Return cover `(n, 1, s, s)` as `(n, patches, 64)`: the 8 x 8 picture of each patch."""
    side = math.isqrt(patches)
    fine = interpolate(cover, size=side * MASK_SIDE, mode="area").squeeze(1)
    cells = fine.view(-1, side, MASK_SIDE, side, MASK_SIDE)
    return cells.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def agreement(found: Tensor, goal: Tensor) -> Tensor:
    """Return how far found `(n, d)` is from the teacher's goal `(n, d)`, both unit vectors.

    Cosine distance, plus the cross-entropy between the batch similarities of teacher and student
    (as SEED, arXiv:2101.04731, equation 5, with the batch as its queue).
    """
    with torch.no_grad():
        target = (goal @ goal.T / 0.1).softmax(1)
    relation = cross_entropy(found @ goal.T / 0.1, target)
    return 2 * (1 - (found * goal).sum(1)).mean() + relation


def parameter_groups(student: Student) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weight matrices inside the blocks, and everything else."""
    inside: list[nn.Parameter] = []
    outside: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        chosen = parameter.ndim == 2 and name.startswith("encoder.model.")
        (inside if chosen else outside).append(parameter)
    return inside, outside


class Trainer:
    """One run: the student, its moving average, the optimisers and the schedule."""

    def __init__(self, encoder: Any, arch: str, teacher: Teacher, glyphs: Tensor) -> None:
        self.arch, self.teacher, self.glyphs = arch, teacher, glyphs
        self.generator = Generator().manual_seed(torch.initial_seed())
        if arch == "vit":  # CPU SDPA: half of the step is its backward pass
            encoder.set_attn_implementation("eager")
        self.student = Student(encoder, 128).train()
        self.average = copy.deepcopy(self.student.encoder).eval()
        inside, outside = parameter_groups(self.student)
        muon = torch.optim.Muon(inside, lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(outside, lr=1.0, weight_decay=0.02, betas=(0.9, 0.98))
        self.optimizers: tuple[tuple[Any, float], ...] = ((muon, 2e-3), (adam, 1.5e-3))
        with torch.no_grad():
            self.middle = teacher(glyphs[:1200]).mean(0)
        self.backgrounds: Backgrounds | None = None
        self.steps = 0

    def batch(self, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """Return scenes `(n, 3, s, s)`, their covers, and the teacher's goals `(n, 128)`."""
        if self.backgrounds is None or self.backgrounds.size_px != stage.size_px:
            self.backgrounds = Backgrounds(stage.size_px, self.generator)
        chosen = torch.randint(0, len(self.glyphs), (BATCH,), generator=self.generator)
        glyphs = distort(self.glyphs[chosen], self.generator, 0.9)
        background = self.backgrounds.draw(BATCH)
        with torch.no_grad():
            goal = normalize(self.teacher(glyphs) - self.middle, dim=1)
            scenes, cover = paste(glyphs, background, self.generator, stage.pose)
        return scenes, cover, goal

    def step(self, share: float) -> dict[str, float]:
        """Take one step at this share of the run in [0, 1] and return the losses."""
        stage = next(s for s in STAGES[self.arch] if share <= s.until)
        scenes, cover, goal = self.batch(stage)
        size = SIZE_PX[self.arch] if self.arch == "convnext" else stage.size_px
        if scenes.shape[-1] != size:
            scenes = interpolate(scenes, size=size, mode="bilinear")
        with torch.autocast("cpu", torch.bfloat16):
            found, masks = self.student(normalise(scenes))
        global_loss = agreement(normalize(found.float(), dim=1), goal)
        targets = mask_targets(cover, masks.shape[1])
        local_loss = binary_cross_entropy_with_logits(masks.float(), targets)
        self.update(global_loss + 2 * local_loss, share)
        return {"global": global_loss.item(), "mask": local_loss.item()}

    def update(self, loss: Tensor, share: float) -> None:
        """Step both optimisers at the rate of this share, and the moving average."""
        rate = min(1.0, (self.steps + 1) / 60) * (0.5 * (1 + math.cos(math.pi * share)) + 0.01)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.student.parameters(), 2.0)
        for optimizer, peak in self.optimizers:
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        decay = min(0.99, self.steps / (self.steps + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.student.encoder.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)


def train(trainer: Trainer, out: Path, seconds: float, steps: int | None) -> None:
    """Run until the seconds or steps are spent; write the averaged encoder every 3 minutes."""
    started = saved = time.monotonic()
    share = 0.0
    while share < 1.0:
        losses = trainer.step(share)
        now = time.monotonic()
        share = trainer.steps / steps if steps else (now - started) / seconds
        if trainer.steps % 20 == 0:
            text = " ".join(f"{k} {v:.3f}" for k, v in losses.items())
            print(f"step {trainer.steps} {now - started:.0f} s {text}", flush=True)
        if now - saved > 180:
            save(trainer.average, trainer.arch, out)
            saved = now
    save(trainer.average, trainer.arch, out)


def training_glyphs(seed: int) -> Tensor:
    """Return the instances `(n, 32, 32)`: first the 1,200 training digits, then others."""
    digits = enlarge(digit_parts()[0])
    return torch.cat([digits, letters(), letters(), scribbles(200, seed)])


def get_teacher(glyphs: Tensor, seed: int, path: Path | None) -> Teacher:
    """Return the clean tower, from path if it is there, else trained (and written there)."""
    if path is not None and path.exists():
        teacher = Teacher()
        teacher.load_state_dict(load_file(path))
        return teacher.eval().requires_grad_(requires_grad=False)
    teacher = train_teacher(glyphs[:1200], seed)
    if path is not None:
        save_file(teacher.state_dict(), path)
    return teacher


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=("vit", "convnext"), default="vit")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=1500, help="time of the encoder's training"
    )
    parser.add_argument("--steps", type=int, help="number of steps, instead of --seconds")
    parser.add_argument("--init", type=Path, help="folder of an encoder to go on from")
    parser.add_argument("--teacher", type=Path, help="file to keep the clean tower in")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="print figures, train nothing")
    return parser.parse_args()


def main() -> None:
    """Train an encoder, or print its figures as JSON."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        torch.manual_seed(args.seed)
        encoder = load(args.arch, args.out)
        print(json.dumps(evaluate(encoder, build(args.arch), SIZE_PX[args.arch]), indent=2))
        return
    glyphs = training_glyphs(args.seed)
    teacher = get_teacher(glyphs, args.seed, args.teacher)
    torch.manual_seed(args.seed)
    encoder = load(args.arch, args.init) if args.init else build(args.arch)
    train(Trainer(encoder, args.arch, teacher, glyphs), args.out, args.seconds, args.steps)


if __name__ == "__main__":
    main()
