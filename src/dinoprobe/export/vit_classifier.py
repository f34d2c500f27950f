"""DINOv3's ViT with a linear classifier on CLS and the mean of the patch tokens, for transformers.

Tensors are named `dinov3.*` and `classifier.*`. A head on CLS or on the mean alone has zeros for
the other half, so all three are one layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTModel,
    DINOv3ViTPreTrainedModel,
)


class DINOv3ViTForImageClassification(DINOv3ViTPreTrainedModel):  # type: ignore[misc]
    """Pixel values `(n, 3, height, width)` to logits `(n, labels)`."""

    base_model_prefix = "dinov3"
    accepts_loss_kwargs = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dinov3 = DINOv3ViTModel(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Logits, and the loss where `labels` are given."""
        kwargs.pop("return_dict", None)
        outputs = self.dinov3(pixel_values, **kwargs)
        tokens = outputs.last_hidden_state
        patches = tokens[:, 1 + self.config.num_register_tokens :]
        logits = self.classifier(torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
