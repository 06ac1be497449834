"""A decoder and the network that mends its maps, trained together and read back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slideloom.config.model import DecoderConfig, RefineNetworkConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.refinement import RefinedDecoder
from slideloom.training.checkpoint import load_decoder
from slideloom.training.job import TrainJob
from slideloom.training.loop import train

MakeJob = Callable[..., TrainJob]
NETWORK = RefineNetworkConfig(width=4, depth=1, token_channels=2)


def test_both_are_trained_from_the_first_step_and_read_back(make_job: MakeJob) -> None:
    # The decoder itself reads no image here: the network does.
    plain = DecoderConfig(width=0.1, branches="shared", image_skip=False)
    job = make_job(network=NETWORK, decoder=plain)
    assert job.reads_image
    decoder, meta = load_decoder(train(job))
    assert isinstance(decoder, RefinedDecoder)
    assert decoder.needs_image
    assert meta.recipe["refinement"] == NETWORK.model_dump() | {"frozen": False}
    assert decoder.last.weight.abs().max() > 0, "it began at zero"
    inner = build_decoder(
        plain, job.heads, job.n_classes, meta.token_width, meta.patch_px, meta.image_channels, seed=job.training.seed
    )
    trained = decoder.inner.state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in inner.state_dict().items())


def test_without_one_a_training_is_what_it_was(make_job: MakeJob) -> None:
    decoder, meta = load_decoder(train(make_job(training={"epochs": 1})))
    assert not isinstance(decoder, RefinedDecoder)
    assert "refinement" not in meta.recipe
