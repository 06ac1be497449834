"""What a decoder is and how it learns: the part of the config below ``experiments``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from slideloom.config.fields import Count, Fraction, Positive, Strict, Weight

__all__ = [
    "AdapterConfig",
    "AugmentationConfig",
    "DecoderConfig",
    "Head",
    "HeadLossConfig",
    "LossConfig",
    "SamplingConfig",
    "TrainingConfig",
]

Head = Literal["nucleus", "hv", "classes", "boundary", "distance", "three_class", "instanseg", "instanseg_cells"]


class AdapterConfig(Strict):
    """A trainable front that maps the channels of an image to those that a network reads."""

    kind: Literal["channelnet", "channel_adapter", "pass_through"] = Field(
        "channelnet",
        description="channelnet: the same weights on every channel, which then exchange their largest values: any "
        "number of channels in any order; channel_adapter: convolutions from a fixed number of channels; pass_through: "
        "channels as they are, normalised, without a weight.",
    )
    out_channels: Count = Field(3, description="Channels that it gives.")
    aggregation: Literal["concat", "sum", "none"] = Field(
        "concat",
        description="How channels hear of each other (channelnet): the largest value beside a channel's own, added to "
        "it, or (none: the ablated model) not before the last layer.",
    )
    widths: tuple[Count, Count, Count] = Field(
        (8, 16, 32), description="Features at full, half and quarter resolution (channelnet)."
    )
    norm: Literal["batch", "instance", "none"] = Field("batch", description="Normalisation layers (channelnet).")
    original: bool = Field(
        False,
        description="channelnet: channels that pad a batch of different panels count as the original program counts "
        "them, as images of zeros; else they are left out.",
    )
    in_channels: Count = Field(
        32, description="channel_adapter: channels that it reads; a panel with fewer is repeated until they are full."
    )


class DecoderConfig(Strict):
    """The CellViT decoder and its variants."""

    kind: Literal["cellvit", "linear", "unet", "hovernet", "instanseg"] = Field(
        "cellvit",
        description="cellvit: convolutions from the tokens up; linear: one 1×1 convolution of the tokens, brought up "
        "bilinearly, which shows what the tokens alone hold. Whole networks that read the image and no tokens: unet, "
        "hovernet (Preact-ResNet50), instanseg (InstanSeg's U-Net).",
    )
    width: Annotated[float, Field(gt=0, le=4)] = Field(1.0, description="Multiplier of every channel count.")
    skips: bool = Field(True, description="Feed the encoder's intermediate blocks to the decoder.")
    image_skip: bool = Field(True, description="Feed the input image to the last decoder stage.")
    branches: Literal["separate", "shared"] = Field(
        "separate", description="One decoder a head, or one for all with a 1×1 convolution a head."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout rate.")
    global_context: bool = Field(False, description="Self-attention over the whole tile at the bottleneck.")
    masked_attention: bool = Field(
        False, description="Self-attention among the pixels of the predicted foreground at the last stage, in windows."
    )
    attention_window_px: Annotated[int, Field(ge=2, le=64)] = Field(
        16, description="Side of the windows of masked_attention, pixels."
    )
    backbone: str = Field("resnet34", description="unet: its encoder, by its name in segmentation_models_pytorch.")
    mode: Literal["fast", "original"] = Field(
        "fast", description="hovernet: kernels and padding of its fast (256 px in, 164 out) or original mode."
    )
    widths: tuple[Count, ...] = Field(
        (32, 64, 128, 256), description="instanseg: features at each resolution, the finest first."
    )
    multihead: bool = Field(False, description="instanseg: one decoder for each group of outputs, not one for all.")

    @property
    def whole(self) -> bool:
        """Whether it is a network of its own, which reads the image and no tokens."""
        return self.kind in ("unet", "hovernet", "instanseg")

    @property
    def reads_image(self) -> bool:
        """Whether it reads the image's values."""
        return self.whole or (self.kind == "cellvit" and self.image_skip)


class HeadLossConfig(Strict):
    """Weights of the loss terms of one head; 0 switches a term off."""

    cross_entropy: Weight = Field(0.0, description="Cross-entropy.")
    dice: Weight = Field(0.0, description="Dice.")
    focal: Weight = Field(0.0, description="Focal loss.")
    tversky: Weight = Field(0.0, description="Tversky.")
    focal_tversky: Weight = Field(0.0, description="Focal Tversky.")
    lovasz_softmax: Weight = Field(0.0, description="Lovász-softmax.")
    lovasz_hinge: Weight = Field(0.0, description="Lovász-hinge; nucleus and boundary heads.")


class LossConfig(Strict):
    """Weights of the loss terms; 0 switches a term off."""

    cross_entropy: Weight = Field(0.4, description="Cross-entropy, nucleus and class heads.")
    dice: Weight = Field(0.4, description="Dice, nucleus and class heads.")
    focal: Weight = Field(0.0, description="Focal loss, nucleus and class heads.")
    tversky: Weight = Field(0.0, description="Tversky, nucleus and class heads.")
    focal_tversky: Weight = Field(0.2, description="Focal Tversky, nucleus and class heads.")
    lovasz_softmax: Weight = Field(0.0, description="Lovász-softmax, nucleus and class heads.")
    lovasz_hinge: Weight = Field(0.0, description="Lovász-hinge, nucleus head.")
    hv_mse: Weight = Field(1.0, description="Mean squared error of the HV maps.")
    hv_msge: Weight = Field(0.1, description="Mean squared error of the HV maps' gradients, inside nuclei.")
    boundary: Weight = Field(1.0, description="Binary cross-entropy and Dice of the boundary head.")
    distance: Weight = Field(1.0, description="Mean absolute error of the distance head.")
    three_class: Weight = Field(1.0, description="Cross-entropy and Dice of the three_class head.")
    instanseg_instance: Weight = Field(
        1.5,
        description="InstanSeg's loss of instances: Lovász-hinge of the crops around seeds (heads instanseg and "
        "instanseg_cells; half for each where there are both).",
    )
    instanseg_seed: Weight = Field(1.0, description="InstanSeg's loss of the seed map (likewise).")
    instanseg_hot_start: Annotated[int, Field(ge=0)] = Field(
        10,
        description="Epochs in which InstanSeg's seeds learn by binary cross-entropy and its instances by Dice, before "
        "the distance and Lovász-hinge.",
    )
    instanseg_window_px: Annotated[int, Field(ge=8, le=512)] = Field(
        128, description="Side of the crop around a seed that InstanSeg's loss of instances looks at, pixels."
    )
    instanseg_seed_loss: Literal["l1_distance", "l2_distance", "binary", "distance_and_binary"] = Field(
        "l1_distance", description="Loss of InstanSeg's seed map after the hot start."
    )
    heads: dict[Literal["nucleus", "classes", "boundary"], HeadLossConfig] = Field(
        default_factory=dict, description="A head's own weights, which stand for all of those above."
    )
    class_weights: bool = Field(
        False, description="Weight the class head's cross-entropy by inverse root frequency in the training slides."
    )
    focal_gamma: Weight = Field(2.0, description="Exponent of the focal loss.")
    tversky_alpha: Weight = Field(0.7, description="Weight of missed pixels, Tversky and focal Tversky.")
    tversky_beta: Weight = Field(0.3, description="Weight of invented pixels, Tversky and focal Tversky.")
    tversky_gamma: Positive = Field(4 / 3, description="Exponent of focal Tversky.")
    original: bool = Field(
        False,
        description="CellViT's arithmetic with its defects (docs/decisions/0009), only to reproduce its training.",
    )


class SamplingConfig(Strict):
    """How often each patch is seen."""

    gamma: Fraction = Field(
        0.0, description="0: every patch once an epoch; up to 1: drawn with replacement, those with rare classes more."
    )
    by: Literal["classes", "group", "classes+group"] = Field(
        "classes", description="What should become even: classes of nuclei, a sheet column's values, or both."
    )
    column: str = Field("platform", description="The sheet's column (by: group), such as a tissue type.")
    formula: Literal["cellvit", "report"] = Field(
        "cellvit",
        description="cellvit: N is the number of (patch, class) pairs; report: equation 2 of the SP/H&E report as "
        "printed, where N is the number of nuclei, to the power of gamma.",
    )


class AugmentationConfig(Strict):
    """Random changes of training patches.

    On stored tokens only flips and turns can be had, and only where the encoder stores its ``symmetries``; all else
    needs ``training.input: live``.
    """

    flips: Fraction = Field(0.0, description="Probability of each of the two flips.")
    turns: Fraction = Field(0.0, description="Probability of a random quarter, half or three-quarter turn.")
    colour_jitter: Fraction = Field(0.0, description="Probability of the four changes below (RGB).")
    brightness: Fraction = Field(0.25, description="Largest relative change of brightness.")
    contrast: Fraction = Field(0.25, description="Largest relative change of contrast.")
    saturation: Fraction = Field(0.1, description="Largest relative change of saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.05, description="Largest change of hue, in turns.")
    stain_jitter: Fraction = Field(
        0.0, description="Probability that haematoxylin, eosin and the residual are scaled and shifted (RGB)."
    )
    stain_sigma: Fraction = Field(0.1, description="Largest relative change of a stain's amount (stain_jitter).")
    channel_dropout: Fraction = Field(
        0.0, description="Probability that a marker channel is left out, 0 after normalisation."
    )
    intensity_scaling: Fraction = Field(0.0, description="Probability that a marker channel's counts are scaled.")
    intensity_sigma: Weight = Field(0.2, description="Deviation of the logarithm of the scale (intensity_scaling).")


class TrainingConfig(Strict):
    """The optimiser and the loop."""

    input: Literal["stored", "live"] = Field(
        "stored",
        description="stored: tokens from the disk; live: patches are augmented and encoded in every step, slower.",
    )
    epochs: Count = Field(100, description="Upper bound of epochs.")
    batch_size: Count = Field(16, description="Patches a step.")
    accumulate: Count = Field(1, description="Batches whose gradients are added up before a step of the optimiser.")
    optimiser: Literal["adamw", "adam"] = Field("adamw", description="Adam adds its weight decay to the gradient.")
    lr: Positive = Field(5e-4, description="Peak learning rate.")
    weight_decay: Weight = Field(1e-2, description="Weight decay.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="Adam's betas.")
    schedule: Literal["cosine", "plateau", "exponential", "constant"] = Field(
        "cosine",
        description="cosine: annealing with warm restarts every t_0 epochs; plateau: multiplied by decay when monitor "
        "has not improved for plateau_epochs; exponential: multiplied by decay every epoch; constant.",
    )
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(0, description="Epochs over which the rate first rises.")
    t_0: Count = Field(20, description="Epochs of a cosine period (schedule: cosine).")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Factor (schedule: plateau, exponential).")
    plateau_epochs: Count = Field(10, description="Epochs without improvement before decay (schedule: plateau).")
    eta_min: Weight = Field(1e-6, description="Lowest learning rate.")
    clip_norm: Positive | None = Field(None, description="Longest gradient; null: any.")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of a running mean of the weights, which is then judged and kept; null: none."
    )
    patience: Count | None = Field(30, description="Epochs without improvement before stopping; null: never.")
    monitor: Literal["loss", "dice_macro", "dice_binary", "hv_mse"] = Field(
        "loss", description="Validation figure that chooses the best epoch."
    )
    keep: Literal["best", "last"] = Field("best", description="Which epoch's weights are kept.")
    unfreeze_epoch: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Epoch from which the encoder is trained, too (input: live); null: never."
    )
    encoder_lr: Positive = Field(1e-5, description="Peak learning rate of the encoder's weights, where they train.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of weights, order, augmentation and dropout.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the forward pass; fp16 scales the loss, and needs a GPU."
    )
    shuffle_targets: bool = Field(
        False, description="Control: give every patch another patch's targets. Nothing can be learnt from it."
    )
