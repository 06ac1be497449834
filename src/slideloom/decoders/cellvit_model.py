"""A whole CellViT: encoder, decoder and tissue head under the names of its published checkpoints.

Source: Hörst et al., "CellViT: Vision Transformers for precise cell segmentation and classification" (2024), and its
successor CellViT++. A study does not need this module: it embeds with the encoder and decodes with the decoder. It is
for taking a published file apart without losing a key, and for running a published model as its authors do.

Two differences from the originals, neither visible in the results: the skip ways are computed once, not once a branch,
and attention is fused. ``model.to(memory_format=torch.channels_last)`` makes the decoder faster still.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.cellvit import CellViTDecoder
from slideloom.encoders.base import DECODER_INPUTS
from slideloom.encoders.cellvit.encoder import encoder_module
from slideloom.encoders.cellvit.file import CellViTFile, describe_checkpoint
from slideloom.encoders.cellvit.sam import SAMEncoder
from slideloom.encoders.checkpoints.weights import Weights, load_strict, read_weights
from slideloom.errors import SlideloomError

__all__ = ["PUBLISHED_HEADS", "CellViT", "cellvit_from_weights", "load_cellvit"]

#: Heads of every published CellViT.
PUBLISHED_HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes")
#: Ending of the class names of models with one decoder for all heads.
_SHARED = "Shared"
_NAMES = {
    "nucleus": "nuclei_binary_map",
    "hv": "hv_map",
    "classes": "nuclei_type_map",
    "regression": "regression_map",
}


class CellViT(nn.Module):
    """Encoder, decoder and tissue head; names and order of its weights are those of the published files.

    Parameters
    ----------
    about : CellViTFile
        Architecture and sizes of the encoder, layers that the decoder reads, classes, regression, shared decoder. Its
        normalisation plays no part here.

    Attributes
    ----------
    about : CellViTFile
        As given.

    Raises
    ------
    SlideloomError
        ``cellvit_layers``: the layers are not four rising numbers within the encoder's depth.
    """

    def __init__(self, about: CellViTFile) -> None:
        super().__init__()
        encoder = encoder_module(about.arch, **about.sizes, tissue_classes=about.num_tissue_classes)
        _check_layers(about, encoder.depth)
        decoder = CellViTDecoder(
            DecoderConfig(branches="shared" if about.shared else "separate"),
            PUBLISHED_HEADS,
            about.num_nuclei_classes,
            token_width=encoder.width,
            upsampling=16,
            image_channels=3,
            patch_px=encoder.patch_px,
            regression=about.regression,
        )
        self.about = about
        self.encoder = encoder
        # The published names have no level for the decoder: its parts stand beside the encoder. In a tuple torch does
        # not see the decoder itself, and so each weight has one name.
        for name, part in decoder.named_children():
            self.add_module(name, part)
        self._unseen = (decoder,)
        self.classifier_head: nn.Module | None = None
        if isinstance(encoder, SAMEncoder) and encoder.neck is not None:
            self.classifier_head = nn.Linear(len(encoder.neck[-1].get_parameter("weight")), about.num_tissue_classes)

    @property
    def decoding(self) -> CellViTDecoder:
        """The decoder; its weights are this model's, not copies."""
        return self._unseen[0]

    def train(self, mode: bool = True) -> Self:
        """Set this model and its decoder to training or evaluation."""
        self.decoding.train(mode)
        return super().train(mode)

    def forward(
        self, images: Tensor, *, retrieve_tokens: bool = False, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> dict[str, Tensor]:
        """Run the model.

        Parameters
        ----------
        images : Tensor
            (n, 3, H, W) float32, normalised with ``about``'s mean and std; sides that the encoder takes.
        retrieve_tokens : bool
            Whether the deepest tokens are given, too.
        precision : {"fp32", "bf16"}
            Arithmetic of convolutions and matrix products.

        Returns
        -------
        dict of str to Tensor
            float32: ``tissue_types`` (n, tissues) logits; ``nuclei_binary_map`` (n, 2, H, W) logits, background first;
            ``hv_map`` (n, 2, H, W), x then y; ``nuclei_type_map`` (n, classes, H, W) logits; ``regression_map``
            (n, 2, H, W) of a model that has one; ``tokens`` (n, d, h, w) when asked for.
        """
        with torch.autocast(images.device.type, torch.bfloat16, precision == "bf16"):
            levels, tissue = self.encoder.run_all(images, self.about.extract_layers)
            if self.classifier_head is not None:
                tissue = self.classifier_head(tissue)
            tokens = [levels[layer].permute(0, 3, 1, 2) for layer in self.about.extract_layers]
            maps = self.decoding(tokens, images)
        outputs = {"tissue_types": tissue} | {_NAMES[head]: value for head, value in maps.items()}
        if retrieve_tokens:
            outputs["tokens"] = tokens[-1]
        return {name: value.float() for name, value in outputs.items()}


def cellvit_from_weights(weights: Weights) -> tuple[CellViT, CellViTFile]:
    """Build the CellViT that a checkpoint describes, and give it the weights: every key of both accounted for.

    Parameters
    ----------
    weights : Weights
        Of :func:`slideloom.encoders.checkpoints.weights.read_weights`.

    Returns
    -------
    model : CellViT
        On the CPU, in evaluation mode, frozen. It holds the very tensors of ``weights`` where they are float32.
    about : CellViTFile
        What the checkpoint says of itself.

    Raises
    ------
    SlideloomError
        As :func:`load_cellvit`.
    """
    about = describe_checkpoint(weights)
    _check_decoders(about, weights)
    with torch.device("meta"):
        model = CellViT(about)
    load_strict(model, weights, where=about.model)
    return model.eval().requires_grad_(False), about


def _check_decoders(about: CellViTFile, weights: Weights) -> None:
    """Refuse a checkpoint that has other decoders than its name says."""
    shared = weights.arch.endswith(_SHARED)
    if not weights.arch or shared == about.shared:
        return
    raise SlideloomError(
        f"it says that it is a {weights.arch}, but holds {'one decoder' if about.shared else 'three decoders'}",
        where=str(weights.path),
        expected="one" if shared else "three",
        hint="Use the checkpoint as the training wrote it",
        code="checkpoint_arch",
    )


def _check_layers(about: CellViTFile, depth: int) -> None:
    layers = about.extract_layers
    if (
        len(layers) != DECODER_INPUTS
        or list(layers) != sorted(set(layers))
        or not 1 <= layers[0] <= layers[-1] <= depth
    ):
        raise SlideloomError(
            f"extract layers {list(layers)}",
            where=about.model,
            expected=f"{DECODER_INPUTS} rising numbers from 1 to {depth}",
            code="cellvit_layers",
        )


def load_cellvit(path: Path) -> tuple[CellViT, CellViTFile]:
    """Load a published CellViT checkpoint, whole.

    Parameters
    ----------
    path : Path
        A ``.pth`` with ``arch``, ``config`` and ``model_state_dict``, or safetensors with the first two in its header.

    Returns
    -------
    model : CellViT
        On the CPU, in evaluation mode, frozen.
    about : CellViTFile
        What the checkpoint says of itself: layers, classes, normalisation, magnification.

    Raises
    ------
    SlideloomError
        What :func:`~slideloom.encoders.checkpoints.weights.read_weights` refuses; an architecture that is none of
        CellViT's; and ``checkpoint_keys``: keys missing, unexpected or of another shape than the architecture's.
    """
    return cellvit_from_weights(read_weights(path))
