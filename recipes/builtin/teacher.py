"""The clean tower: a small convolutional net that sees only undisturbed glyphs.

It learns by instance discrimination (InfoNCE, SimCLR's loss, arXiv:2002.05709, equation 1): two
distortions of one training digit must agree against all others of the batch. Labels are not used.
Its embeddings are what the encoder must find again in a cluttered scene. Trained alone it takes
minutes, where contrast between two cluttered scenes needs hours for the same features.
"""

from __future__ import annotations

import time

import torch
from glyphs import distort
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

DIMENSION = 128
TEMPERATURE = 0.5
STEPS = 300
BATCH = 512


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.GELU())


class Teacher(nn.Module):
    """Map glyphs `(n, 32, 32)` to unit vectors `(n, 128)`."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AvgPool2d(2),
            _block(1, width, 1),
            _block(width, 2 * width, 2),
            _block(2 * width, 4 * width, 2),
            nn.Flatten(),
            nn.Linear(4 * width * 16, 256),
            nn.BatchNorm1d(256),
            nn.GELU(),
            nn.Linear(256, DIMENSION),
        )

    def forward(self, glyphs: Tensor) -> Tensor:
        """Return unit vectors `(n, 128)`."""
        return normalize(self.body(glyphs.unsqueeze(1)), dim=1)


def contrast(one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of unit vectors `(n, d)`, row i of one against row i of two."""
    target = torch.arange(len(one))
    logits = one @ two.T / temperature
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def train_teacher(glyphs: Tensor, seed: int, steps: int = STEPS) -> Teacher:
    """Return a teacher trained on glyphs `(n, 32, 32)`, in evaluation mode and frozen."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    teacher, started = Teacher(), time.monotonic()
    optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        chosen = glyphs[torch.randperm(len(glyphs), generator=generator)[:BATCH]]
        views = torch.cat([distort(chosen, generator), distort(chosen, generator)])
        one, two = teacher(views).chunk(2)
        loss = contrast(one, two, TEMPERATURE)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"teacher {step + 1} loss {loss:.3f} {time.monotonic() - started:.0f} s")
    return teacher.eval().requires_grad_(requires_grad=False)
