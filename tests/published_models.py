"""Tiny files in the forms in which whole networks are published, with weights from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slideloom.adapters.build import build_adapter
from slideloom.config.model import AdapterConfig, DecoderConfig, Head
from slideloom.decoders.build import build_decoder
from slideloom.decoders.instanseg_head import PixelClassifier

HOVERNET = Path(__file__).resolve().parent / "data" / "hovernet_published.npz"
WIDTHS = (4, 6)


class Scripted(nn.Module):
    """What the published archive is from outside; its own forward pass must never run here."""

    def __init__(self, fcn: nn.Module, classifier: nn.Module, cells: bool = True, size: float = 0.5) -> None:
        super().__init__()
        self.fcn, self.pixel_classifier = fcn, classifier
        self.cells_and_nuclei, self.pixel_size = cells, size
        self.n_sigma, self.dim_coords, self.dim_seeds = 2, 2, 1
        self.default_mask_threshold, self.default_seed_threshold = 0.53, 0.7
        self.default_overlap_threshold, self.default_peak_distance = 0.3, 5
        self.default_window_size, self.default_cleanup_fragments = 32, True

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[0] == 0, "the scripted post-processing was run"
        return self.fcn(image)


def tiny_program(
    channels: int = 5, cells: bool = False, classifier: nn.Module | None = None, **about: Any
) -> nn.Module:
    """A program with the right names around a network of one convolution."""
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, channels, 1)).eval(), torch.rand(1, 3, 16, 16))
    made = Scripted(traced, PixelClassifier() if classifier is None else classifier, cells)
    for name, value in about.items():
        setattr(made, name, value)
    return made


def saved_program(module: nn.Module, path: Path) -> Path:
    """A module on disk as a program."""
    torch.jit.script(module).save(str(path))
    return path


class Plain(nn.Module):
    """A network without a ChannelNet, as the published program traces it: one tensor out, names of the published."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder, self.decoders = network.encoder, network.decoders
        self.pixel_classifier = network.pixel_classifier

    def forward(self, image: Tensor) -> Tensor:
        levels = []
        for block in self.encoder:
            image = block(image)
            levels.append(image)
        return torch.cat([part for way in self.decoders for part in way(levels)], dim=1)


def program(path: Path, *heads: Head, seed: int = 0, **about: Any) -> Any:
    """An InstanSeg of three channels as a program on disk; returns the network, in evaluation."""
    config = DecoderConfig(kind="instanseg", widths=WIDTHS)
    network: Any = build_decoder(config, heads or ("instanseg",), 2, 1, 16, 3, seed=seed).eval()
    traced = torch.jit.trace(Plain(network).eval(), torch.rand(1, 3, 32, 32), check_trace=False)
    made = Scripted(traced, network.pixel_classifier, cells="instanseg_cells" in heads)
    for name, value in about.items():
        setattr(made, name, value)
    saved_program(made, path)
    return network


def instanseg(path: Path, *heads: Head, channels: int = 3, channelnet: bool = False, seed: int = 0) -> Any:
    """Weights of an InstanSeg, on disk as its program leaves them; returns adapter and network, in evaluation."""
    config = DecoderConfig(kind="instanseg", widths=WIDTHS)
    network = build_decoder(config, heads or ("instanseg",), 2, 1, 16, channels, seed=seed).eval()
    adapter = build_adapter(AdapterConfig(widths=(2, 3, 4)), seed=seed).eval() if channelnet else None
    state = {f"model.{name}" if channelnet else name: value for name, value in network.state_dict().items()}
    if adapter is not None:
        state |= {f"model.AdaptorNet.{name}": value for name, value in adapter.state_dict().items()}
    torch.save({"model_state_dict": state, "f1_score": 0.5, "epoch": 3, "optimizer_state_dict": {}}, path)
    return adapter, network


def hovernet(path: Path, classes: bool = True) -> Path:
    """Weights of a HoVer-Net of four classes, mode fast, as published; every channel has weights of one value."""
    with np.load(HOVERNET) as held:
        lines = bytes(held["fast_keys"]).decode().splitlines()
    drawn, state = torch.Generator().manual_seed(0), {}
    for line in lines:
        key, _, sides = line.partition(" ")
        shape = tuple(map(int, sides.split(","))) if sides else ()
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("unpool_mat"):
            state[key] = torch.ones(2, 2)
        elif len(shape) == 4:  # repeated in the file's memory, so that it is small
            own = torch.rand(shape[0], 1, 1, 1, generator=drawn) - 0.5
            state[key] = (own / shape[1] / shape[2]).expand(shape)
        else:
            state[key] = torch.rand(shape, generator=drawn) / 4 + (0.5 if key.endswith(("weight", "var")) else 0)
    if not classes:
        state = {key: value for key, value in state.items() if ".tp." not in key}
    torch.save({"desc": state}, path)
    return path
