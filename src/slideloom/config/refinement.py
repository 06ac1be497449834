"""What may mend an experiment's maps and nuclei: a network behind the decoder, a splitter, a verifier; all off."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from slideloom.config.fields import Count, Fraction, Positive, Strict, Weight

__all__ = ["RefineConfig", "RefineNetworkConfig", "RefineSplitConfig", "RefineVerifyConfig"]


class RefineNetworkConfig(Strict):
    """A small network that reads the decoder's maps once more, and mends them; trained along with the decoder."""

    width: Count = Field(16, description="Channels at the maps' own resolution; doubled with each halving.")
    depth: Annotated[int, Field(ge=1, le=6)] = Field(2, description="How often height and width are halved.")
    image: bool = Field(True, description="Whether it reads the image, too.")
    token_channels: Annotated[int, Field(ge=0)] = Field(
        8, description="Channels that the deepest tokens are brought to before it reads them; 0: it reads none."
    )


class RefineSplitConfig(Strict):
    """Nuclei that look like several are split by where their pixels' HV maps point to."""

    min_part_um2: Positive = Field(
        8.0, description="No part is smaller, µm²; nuclei smaller than two of these are not looked at."
    )
    max_solidity: Fraction = Field(
        0.92, description="Nuclei more solid than this are not looked at, unless their HV maps say otherwise."
    )
    max_hv_fit: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.9, description="Nuclei whose HV maps fit one nucleus better are not, unless their shape says otherwise."
    )
    most: Annotated[int, Field(ge=2, le=16)] = Field(4, description="Parts at most.")
    silhouette: Fraction = Field(0.7, description="How well parted the clusters of pixels must be.")
    apart_um: Positive = Field(2.0, description="How far apart the clusters' centres are at least, µm.")


class RefineVerifyConfig(Strict):
    """A small model, fitted on the fold's validation slides, drops what it doubts; off where it gains nothing."""

    hidden: Annotated[int, Field(ge=0, le=256)] = Field(
        8, description="Units of its hidden layer; 0: logistic regression."
    )
    weight_decay: Weight = Field(0.01, description="Of its weights, on standardised features.")
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="Parts that the patients are put into to find out what it gains on those it has not seen."
    )
    least: Annotated[int, Field(ge=2)] = Field(
        20, description="Nuclei that there must be of each kind, true and false; with fewer it is off."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of weights, parts and intervals.")
    threshold: Fraction | None = Field(
        None,
        description="Drop what is less probable, whatever that gains; when left out: the threshold with the best F1 on "
        "patients it has not seen, and nothing is dropped where that gains nothing.",
    )


class RefineConfig(Strict):
    """What mends maps and nuclei of an experiment; each part is off unless it is given, such as `verify: {}`."""

    network: RefineNetworkConfig | None = Field(None, description="A network behind the decoder.")
    split: RefineSplitConfig | None = Field(None, description="Merged nuclei are split.")
    verify: RefineVerifyConfig | None = Field(None, description="False nuclei are dropped.")

    @property
    def after(self) -> bool:
        """Whether anything is done to the nuclei once they are found."""
        return self.split is not None or self.verify is not None
