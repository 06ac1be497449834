"""Train a decoder, on stored tokens or on patches that are encoded as they come.

Everything random follows from the job's seed and the epoch's number, so a run that was killed and goes on where it
stopped ends with the very weights of a run that was never interrupted. On a CPU, two runs with the same number of
threads give equal bytes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slideloom.artefacts.tables import write_table
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.decoders.refinement import Refinement, refine_decoder
from slideloom.errors import SlideloomError
from slideloom.training.annotated import AnnotatedSlide, Needs
from slideloom.training.batch import layout_on
from slideloom.training.checkpoint import ADAPTER, save_decoder
from slideloom.training.data import PatchData
from slideloom.training.distributed import ALONE, World, launch, launched, member
from slideloom.training.ema import RunningMean
from slideloom.training.epoch import Passes
from slideloom.training.feed import Feed
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.judge import Judge
from slideloom.training.live import make_front
from slideloom.training.optimiser import Stepper, check_precision, make_optimiser
from slideloom.training.progress import Progress
from slideloom.training.provenance import describe, training_key
from slideloom.training.resume import Stateful, TrainState, load_state, save_state
from slideloom.training.sampling import draw_epoch
from slideloom.training.scheduler import learning_rate
from slideloom.training.stored import open_slides
from slideloom.training.survey import survey
from slideloom.training.terms import terms_of

__all__ = ["train"]

_LOG = logging.getLogger(__name__)
#: A save of the state may take this part of the time, no more.
_SAVE_SHARE = 0.05


def train(job: TrainJob) -> Path:
    """Train a decoder and write it with its history.

    Parameters
    ----------
    job : TrainJob
        What to do.

    Returns
    -------
    Path
        ``decoder.safetensors`` in ``job.place``; ``history.parquet`` lies beside it.

    Raises
    ------
    SlideloomError
        ``no_training_slides``; ``diverged``: a loss or a weight is not finite; ``monitor_undefined``: the figure that
        should choose the best epoch has no value; ``precision_needs_gpu``; of several processes also what
        :func:`slideloom.training.distributed.launch` raises; and what :mod:`slideloom.training.stored`,
        :mod:`slideloom.training.data`, :mod:`slideloom.training.sampling` and
        :func:`slideloom.training.terms.terms_of` refuse.

    Notes
    -----
    Learning rate by epoch, early stopping on ``training.monitor``. Without validation slides the training loss chooses
    the best epoch.

    With ``job.processes`` above 1 each of them trains on its share of every batch, with its share of ``job.threads``
    and ``job.memory_bytes``, and the weights of all stay equal. They are started here; a program that was itself
    started by ``torchrun`` with as many processes calls this function in each. Batch normalisation sees a process's own
    share, so the weights are close to those of one process, not equal.
    """
    check_precision(job.training.precision, torch.device(job.device))
    if not launched():
        return _train(job, ALONE) if job.processes == 1 else launch(train, job, job.processes, job.device)
    with member(job.processes, job.device) as (world, device):
        threads = max(1, (job.threads or torch.get_num_threads()) // world.size)
        memory_bytes = job.memory_bytes // world.size
        return _train(dataclasses.replace(job, device=device, threads=threads, memory_bytes=memory_bytes), world)


def _train(job: TrainJob, world: World) -> Path:
    with _threads(job.threads), torch.random.fork_rng(devices=_cuda_devices(job.device)):
        return _Training(job, world).run()


class _Training:
    def __init__(self, job: TrainJob, world: World) -> None:
        self.job, self.world, self.device = job, world, torch.device(job.device)
        training = job.training
        terms_of(job.heads, job.loss)
        needs = Needs(job.heads, job.decoder.skips, job.reads_image, job.n_classes)
        asked = {"training": job.train, "validation": job.val}
        parts = {role: open_slides(slides, needs, role) for role, slides in asked.items()}
        _require(parts["training"], job)
        self.front = make_front(job, [*parts["training"], *parts["validation"]], self.device)
        if self.front is not None:
            parts = {role: self.front.fitting(slides, role) for role, slides in parts.items()}
            _require(parts["training"], job)
        data = PatchData(parts["training"], training.seed if training.shuffle_targets else None)
        val = PatchData(parts["validation"])
        self.fed = {"train": data, "val": val}
        self.judge = Judge(job, val.n)
        mine = _with_own_draws(job, world.rank)
        self.feed, self.val_feed = (Feed(part, mine, self.device, self.front) for part in (data, val))
        held = data.hold(job.memory_bytes, symmetries=bool(job.augmentation.flips or job.augmentation.turns))
        val.hold(job.memory_bytes - held)
        # One process looks, as it may mean to read every target once.
        found = world.tell(survey(job, data) if world.first else None)
        assert found is not None
        self.patch_weights = found.patch_weights
        self.geometry = self.feed.geometry
        self.model = self._model()
        weights = None if found.class_weights is None else torch.from_numpy(found.class_weights).to(self.device)
        self.passes = Passes(job, self.model, weights, self.judge, world, self.device)
        may_train = self.front is not None and training.unfreeze_epoch is not None
        self.encoder = self.front.module if self.front is not None and may_train else None
        encoder = [] if self.encoder is None else list(self.encoder.parameters())
        self.adapter = None if self.front is None else self.front.adapter
        trained = [weight for network in self._heads.values() for weight in network.parameters()]
        optimiser = make_optimiser(training, trained, encoder)
        self.stepper = Stepper(optimiser, training, self.device, world)
        self.means: dict[str, RunningMean] = {}
        if training.ema is not None:
            networks = self._heads | ({} if self.encoder is None else {"encoder": self.encoder})
            self.means = {name: RunningMean(network, training.ema) for name, network in networks.items()}
        self.meta = describe(job, self.geometry, self.model.recipe(), self.judge.monitor, found, data, val)
        if self.adapter is not None:
            self.meta = dataclasses.replace(self.meta, adapter=self.adapter.recipe())
        self.key = training_key(job, self.meta, data, val, self.model)
        self.parts: dict[str, Stateful] = {"optimiser": optimiser, "scaler": self.stepper.scaler, **self._heads}
        self.parts |= {f"mean of {name}": mean for name, mean in self.means.items()}
        self.parts |= {} if self.encoder is None else {"encoder": self.encoder}

    @property
    def _heads(self) -> dict[str, nn.Module]:
        """What is trained from the first epoch on."""
        return {"decoder": self.model} | ({} if self.adapter is None else {"adapter": self.adapter})

    def run(self) -> Path:
        job, training, world = self.job, self.job.training, self.world
        resume = job.place / "resume.pt"
        state = self._resumed(resume)
        progress = Progress(job, state.epochs_done)
        saved_at, save_s = time.monotonic(), 0.0
        while state.epochs_done < training.epochs and not self.judge.patience_spent(state):
            self._epoch(state)
            if world.first:
                progress.report(state)
            # Saving may take long, when an encoder is saved, too.
            due_s = max(job.save_every_s, save_s / _SAVE_SHARE) if job.save_every_s else 0.0
            if world.first and time.monotonic() - saved_at >= due_s:
                start = time.monotonic()
                save_state(resume, state, self.parts)
                saved_at = time.monotonic()
                save_s = saved_at - start
        if self.judge.patience_spent(state):
            _LOG.info("%s: no better epoch for %s; stopped", job.name, training.patience)
        place = job.place / "decoder.safetensors"
        if world.first:
            self._write(state, place)
            resume.unlink(missing_ok=True)
        return place

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def _epoch(self, state: TrainState) -> None:
        epoch, job, feed = state.epochs_done, self.job, self.feed
        start, feed.waited_s, feed.encoded_s = time.perf_counter(), 0.0, 0.0
        encoder_trains = self.front is not None and self.front.train_from(epoch)
        row: dict[str, Any] = {"epoch": epoch} | self._set_rates(state, encoder_trains)
        torch.manual_seed(_epoch_seed(job.training.seed, epoch, self.world.rank))
        networks = self._heads | ({"encoder": self.encoder} if self.encoder is not None and encoder_trains else {})
        self.stepper.begin([value for network in networks.values() for value in _statistics(network)])
        order = draw_epoch(self.patch_weights, feed.n, job.training.batch_size, job.training.seed, epoch)
        means = [mean for name, mean in self.means.items() if name in networks]
        losses = self.passes.train(feed, order, epoch, self.stepper, means)
        self.judge.check_weights(epoch, networks)
        trained_s = time.perf_counter() - start
        row |= {f"train_{name}": value for name, value in losses.items()} | self.stepper.figures()
        row["train_patches_per_s"] = sum(indices.size for indices in order) / trained_s
        row["wait_share"] = feed.waited_s / trained_s
        row["encode_share"] = None if self.front is None else feed.encoded_s / trained_s
        if self.val_feed.n:
            with ExitStack() as stack:
                for mean in self.means.values():
                    stack.enter_context(mean.in_place())
                figures = self.passes.validate(self.val_feed, epoch)
            row |= {f"val_{name}": value for name, value in figures.items()}
        row["seconds"] = time.perf_counter() - start
        # Every process judges by the first one's figures: they all stop together.
        row = self.world.tell(row)
        state.rows.append(row)
        state.epochs_done = epoch + 1
        if self.judge.is_best(state, row) and self.world.first and job.training.keep == "best":
            state.best_weights, state.best_encoder = self._weights()

    def _set_rates(self, state: TrainState, encoder_trains: bool) -> dict[str, float | None]:
        training, judge = self.job.training, self.judge
        past = [row[judge.monitor] for row in state.rows]
        rates = [
            learning_rate(state.epochs_done, training, past, lower_is_better=judge.lower_is_better, peak=peak)
            for peak in (training.lr, training.encoder_lr)
        ]
        # The encoder's group is the second, where there is one.
        for group, rate in zip(self.stepper.optimiser.param_groups, rates, strict=False):
            group["lr"] = rate
        return {"lr": rates[0], "encoder_lr": rates[1] if encoder_trains else None}

    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is judged and kept, of decoder and adapter and, once it was trained, of the encoder; on the CPU."""

        def of(name: str, network: nn.Module | None) -> dict[str, Tensor]:
            if network is None:
                return {}
            weights = self.means[name].weights if name in self.means else network.state_dict()
            return {key: value.detach().cpu().clone() for key, value in weights.items()}

        trained = self.encoder if self.front is not None and self.front.trained else None
        adapter = {f"{ADAPTER}{key}": value for key, value in of("adapter", self.adapter).items()}
        return of("decoder", self.model) | adapter, of("encoder", trained)

    # ---- beginning and end ----------------------------------------------------------------------------------------

    def _model(self) -> Decoder:
        job, geometry = self.job, self.geometry
        model = build_decoder(
            job.decoder,
            job.heads,
            job.n_classes,
            token_width=geometry.token_width,
            upsampling=geometry.patch_px,
            image_channels=geometry.image_channels,
            seed=job.training.seed,
            n_blocks=len(geometry.blocks),
        )
        if job.network is not None:
            settings = Refinement(**job.network.model_dump(), frozen=False)
            model = refine_decoder(model, settings, seed=job.training.seed)
        model.to(self.device)
        model.to(memory_format=layout_on(self.device))  # type: ignore[call-overload]
        return model

    def _resumed(self, resume: Path) -> TrainState:
        state = load_state(resume, self.key, self.parts)
        if state is None:
            return TrainState(key=self.key)
        if self.front is not None and state.epochs_done:
            self.front.train_from(state.epochs_done - 1)
        _LOG.info("%s: goes on after epoch %d", self.job.name, state.epochs_done)
        return state

    def _write(self, state: TrainState, place: Path) -> None:
        job, judge = self.job, self.judge
        kept = judge.kept_epoch(state)
        weights, encoder = (state.best_weights, state.best_encoder) if job.training.keep == "best" else self._weights()
        done = {"epochs": state.epochs_done, "best_epoch": state.best_epoch, "best": state.best, "kept_epoch": kept}
        meta = dataclasses.replace(self.meta, training=self.meta.training | done)
        save_decoder(weights, meta, place, encoder or None)
        slides = {role: [one.slide_id for one in part.slides] for role, part in self.fed.items()}
        counts = {f"n_slides_{role}": len(names) for role, names in slides.items()}
        rows = [row | counts | {"is_best": row["epoch"] == kept} for row in state.rows]
        made_from: dict[str, Any] = {"study": job.study, "experiment": job.experiment, "fold": job.fold}
        made_from |= {"monitor": judge.monitor}
        made_from |= {
            "slides": slides,
            "encoder_weights": meta.encoder["weights"],
            "encoder_notes": meta.encoder.get("notes", []),
        }
        write_table(HISTORY, rows, job.place / "history.parquet", made_from=made_from)


def _with_own_draws(job: TrainJob, rank: int) -> TrainJob:
    """The job with another seed, so that processes do not all change their patches in one way."""
    if rank == 0:
        return job
    training = job.training.model_copy(update={"seed": _epoch_seed(job.training.seed, 0, rank)})
    return dataclasses.replace(job, training=training)


def _require(slides: Sequence[AnnotatedSlide], job: TrainJob) -> None:
    """Refuse to train on nothing."""
    if not slides:
        raise SlideloomError(
            f"none of {len(job.train)} training slides can be trained on",
            where=job.name,
            expected="at least one slide with annotation, patches and embeddings",
            hint="The log says what each slide lacks",
            code="no_training_slides",
        )
    if "instanseg_cells" in job.heads and not any(slide.has_cells for slide in slides):
        raise SlideloomError(
            f"none of {len(slides)} training slides has whole cells to learn the head 'instanseg_cells' from",
            where=job.name,
            expected="at least one slide whose annotation of cells could be read",
            hint="Mend what the sheet's column 'cells' names, or leave the head out",
            code="no_training_slides",
        )


def _statistics(network: nn.Module) -> list[Tensor]:
    """Running statistics of batch normalisation."""
    return [value for name, value in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    words = [seed, epoch] if rank == 0 else [seed, epoch, rank]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _cuda_devices(device: str) -> list[int]:
    kind = torch.device(device)
    return [kind.index or 0] if kind.type == "cuda" else []


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
