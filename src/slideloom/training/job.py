"""What a training is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slideloom.config.model import (
    AdapterConfig,
    AugmentationConfig,
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    Head,
    LossConfig,
    RefineNetworkConfig,
    SamplingConfig,
    TrainingConfig,
)
from slideloom.encoders.base import Encoder
from slideloom.slides.tables import Channel, ClassTable
from slideloom.training.stored import SlideData

__all__ = ["BuildEncoder", "LiveEncoder", "TrainJob"]

#: As :func:`slideloom.encoders.registry.build_encoder`.
BuildEncoder = Callable[[EncoderConfig, Sequence[Channel]], Encoder]


@dataclass(frozen=True)
class LiveEncoder:
    """The encoder of a training that encodes as it goes (``training.input: live``).

    Attributes
    ----------
    config : EncoderConfig
        Its entry.
    uniprot : mapping of str to str
        Accessions by marker.
    statistics : Path, optional
        Channel statistics of the training slides, where it is normalised with them.
    adapter : AdapterConfig, optional
        What stands before it and is trained.
    build : callable
        Makes it, as :func:`slideloom.encoders.registry.build_encoder` does. It is given and not imported, so that
        training on stored tokens depends on the code of no encoder.
    """

    config: EncoderConfig
    uniprot: Mapping[str, str] = field(default_factory=dict)
    statistics: Path | None = None
    adapter: AdapterConfig | None = None
    build: BuildEncoder = field(kw_only=True)


@dataclass(frozen=True)
class TrainJob:
    """One decoder to train.

    Attributes
    ----------
    study, experiment, fold : str
        For provenance and the log.
    grid : GridConfig
        Of the patches; for provenance.
    classes : ClassTable
        The study's classes; may be empty when there is no class head.
    decoder : DecoderConfig
        What is built.
    heads : tuple of str
        Its outputs.
    loss : LossConfig
        Weights of the terms.
    training : TrainingConfig
        Optimiser and loop.
    train, val : tuple of SlideData
        Slides to learn from and to choose the best epoch by; ``val`` may be empty.
    place : Path
        Folder of ``decoder.safetensors`` and ``history.parquet``.
    device : str
        Such as ``cpu`` or ``cuda``.
    threads : int, optional
        Threads of the arithmetic, of all processes together; PyTorch's own choice when left out. On a CPU the last bits
        depend on it.
    memory_bytes : int
        Memory in which stored patches may be held between epochs, of all processes together; each holds its own.
    read_threads : int
        Threads that make batches ready.
    save_every_s : float
        Seconds between saves of the state that a killed run goes on from, or longer where a save takes long; 0: after
        each epoch.
    inputs_key : str
        Digest of the content of the stores; a saved state of other content is not gone on from.
    sampling : SamplingConfig
        How often each patch is seen.
    groups : mapping of str to str
        By slide, the value of ``sampling.column``.
    augmentation : AugmentationConfig
        Random changes of the training patches.
    network : RefineNetworkConfig, optional
        What mends the decoder's maps, trained along with it; nothing when left out.
    live : LiveEncoder, optional
        The encoder, where patches are encoded in every step; stored tokens are read when left out.
    processes : int
        Processes that share each batch, a GPU each where there are GPUs.
    """

    study: str
    experiment: str
    fold: str
    grid: GridConfig
    classes: ClassTable
    decoder: DecoderConfig
    heads: tuple[Head, ...]
    loss: LossConfig
    training: TrainingConfig
    train: tuple[SlideData, ...]
    val: tuple[SlideData, ...]
    place: Path
    device: str = "cpu"
    threads: int | None = None
    memory_bytes: int = 4 << 30
    read_threads: int = 1
    save_every_s: float = 30.0
    inputs_key: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    groups: Mapping[str, str] = field(default_factory=dict)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    network: RefineNetworkConfig | None = None
    live: LiveEncoder | None = None
    processes: int = 1

    @property
    def name(self) -> str:
        """Experiment and fold."""
        return f"{self.experiment}/{self.fold}"

    @property
    def reads_image(self) -> bool:
        """Whether the decoder, or what mends its maps, reads the image."""
        return self.decoder.reads_image or (self.network is not None and self.network.image)

    @property
    def n_classes(self) -> int:
        """Classes including background."""
        return len(self.classes) + 1
