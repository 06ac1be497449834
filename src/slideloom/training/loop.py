"""Train a decoder on stored embeddings.

Everything random follows from the job's seed and the epoch's number, so a run that was killed and goes on where it
stopped ends with the very weights of a run that was never interrupted. On a CPU, two runs with the same number of
threads give equal bytes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slideloom._version import __version__
from slideloom.artefacts.keys import canonical, digest_text
from slideloom.artefacts.tables import write_table
from slideloom.decoders.cellvit import CellViTDecoder, build_decoder
from slideloom.errors import SlideloomError
from slideloom.training.checkpoint import DecoderMeta, save_decoder
from slideloom.training.data import Batch, PatchData, batches_in_order, epoch_order, prefetched
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.resume import TrainState, load_state, save_state
from slideloom.training.scheduler import cosine_warm_restarts
from slideloom.training.scores import PooledScores
from slideloom.training.stored import Needs, StoredSlide, open_slides
from slideloom.training.terms import class_weights, terms_of, total_loss

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


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
        should choose the best epoch has no value; and what :mod:`slideloom.training.stored`,
        :mod:`slideloom.training.data` and :func:`slideloom.training.terms.terms_of` refuse.

    Notes
    -----
    AdamW, cosine annealing with warm restarts by epoch, early stopping on ``training.monitor``. Without validation
    slides the training loss chooses the best epoch.
    """
    with _threads(job.threads), torch.random.fork_rng(devices=_cuda_devices(job.device)):
        return _Training(job).run()


class _Training:
    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.device = torch.device(job.device)
        self.term_names = tuple(terms_of(job.heads, job.loss))
        needs = Needs(job.heads, job.decoder.skips, job.decoder.image_skip, job.n_classes)
        shuffle_seed = job.training.seed if job.training.shuffle_targets else None
        self.data = PatchData(_opened(job, needs), shuffle_seed)
        self.val = PatchData(open_slides(job.val, needs, "validation"))
        held = self.data.hold(job.memory_bytes)
        self.val.hold(job.memory_bytes - held)
        self.monitor = _monitor(job, self.val.n)
        self.weights = self._class_weights()
        self.model = self._model()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=job.training.lr,
            betas=job.training.betas,
            weight_decay=job.training.weight_decay,
            fused=True,
        )
        self.meta = self._meta()
        self.saved_at = time.monotonic()
        self.waited_s = self.wait_share = 0.0

    def run(self) -> Path:
        job, training = self.job, self.job.training
        resume = job.place / "resume.pt"
        state = self._resumed(resume)
        begun_at, began_with = time.monotonic(), state.epochs_done
        while state.epochs_done < training.epochs and not self._patience_spent(state):
            self._epoch(state)
            self._report(state, begun_at, began_with)
            if time.monotonic() - self.saved_at >= job.save_every_s:
                save_state(resume, state, self.model, self.optimiser)
                self.saved_at = time.monotonic()
        if self._patience_spent(state):
            _LOG.info("%s: no better epoch for %s; stopped", job.name, training.patience)
        done = {"epochs": state.epochs_done, "best_epoch": state.best_epoch, "best": state.best}
        meta = self.meta | {"training": self.meta["training"] | done}
        place = job.place / "decoder.safetensors"
        save_decoder(state.best_weights, DecoderMeta(**meta), place)
        for row in state.rows:
            row["is_best"] = row["epoch"] == state.best_epoch
        made_from = {"study": job.study, "experiment": job.experiment, "fold": job.fold, "monitor": self.monitor}
        write_table(HISTORY, state.rows, job.place / "history.parquet", made_from=made_from)
        resume.unlink(missing_ok=True)
        return place

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def _epoch(self, state: TrainState) -> None:
        epoch, training = state.epochs_done, self.job.training
        start, self.waited_s = time.perf_counter(), 0.0
        rate = cosine_warm_restarts(epoch, training.lr, training.t_0, training.eta_min)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(_epoch_seed(training.seed, epoch))
        losses = self._train_epoch(epoch)
        trained_s = time.perf_counter() - start
        self.wait_share = self.waited_s / trained_s
        row: dict[str, Any] = {"epoch": epoch, "lr": rate, "train_patches_per_s": self.data.n / trained_s}
        row |= {f"train_{name}": value for name, value in losses.items()}
        row |= self._validate(epoch) if self.val.n else {}
        row["seconds"] = time.perf_counter() - start
        state.rows.append(row)
        state.epochs_done = epoch + 1
        self._judge(state, row)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        training = self.job.training
        self.model.train()
        order = epoch_order(self.data.n, training.batch_size, training.seed, epoch)
        sums = _Sums(("loss", *self.term_names), self.device)
        batches = prefetched(self.data, order, self.device, workers=self.job.read_threads)
        for batch in self._timed(batches):
            self.optimiser.zero_grad(set_to_none=True)
            with self._arithmetic():
                outputs = self.model(batch.tokens, batch.image, batch.size)
            loss, terms = total_loss(outputs, batch.targets, self.job.loss, self.weights)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            # A step late, so that a GPU need not be waited for.
            self._check_finite(sums.last, epoch, "training")
            sums.add({"loss": loss.detach(), **terms}, batch.n)
        self._check_finite(sums.last, epoch, "training")
        self._check_weights(epoch)
        return sums.means()

    @torch.no_grad()
    def _validate(self, epoch: int) -> dict[str, float | None]:
        self.model.eval()
        sums = _Sums(("loss", *self.term_names), self.device)
        scores = PooledScores(self.job.heads, self.job.n_classes, self.device)
        order = batches_in_order(self.val.n, self.job.training.batch_size)
        for batch in prefetched(self.val, order, self.device, workers=self.job.read_threads):
            with self._arithmetic():
                outputs = self.model(batch.tokens, batch.image, batch.size)
            loss, terms = total_loss(outputs, batch.targets, self.job.loss, self.weights)
            self._check_finite(sums.last, epoch, "validation")
            sums.add({"loss": loss, **terms}, batch.n)
            scores.add(outputs, batch.targets)
        self._check_finite(sums.last, epoch, "validation")
        row: dict[str, float | None] = {f"val_{name}": value for name, value in sums.means().items()}
        return row | {f"val_{name}": value for name, value in scores.figures().items()}

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that they are waited for added up."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        half = self.job.training.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            yield

    # ---- judgement ------------------------------------------------------------------------------------------------

    def _judge(self, state: TrainState, row: Mapping[str, Any]) -> None:
        value = row[self.monitor]
        if value is None:
            raise SlideloomError(
                f"{self.monitor} has no value: no validation pixel is annotated with what it scores",
                where=self.job.name,
                hint="Choose another training.monitor, or validate on slides that hold nuclei",
                code="monitor_undefined",
            )
        gain = -value if self.monitor.endswith("loss") else value
        best = None if state.best is None else (-state.best if self.monitor.endswith("loss") else state.best)
        if best is None or gain > best:
            state.best, state.best_epoch = value, state.epochs_done - 1
            state.best_weights = {name: part.detach().cpu().clone() for name, part in self.model.state_dict().items()}

    def _patience_spent(self, state: TrainState) -> bool:
        patience = self.job.training.patience
        return patience is not None and state.epochs_done - 1 - state.best_epoch >= patience and state.best is not None

    def _check_finite(self, last: Mapping[str, float], epoch: int, part: str) -> None:
        if all(math.isfinite(value) for value in last.values()):
            return
        told = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
        _LOG.error("%s epoch %d: %s loss is not finite: %s", self.job.name, epoch, part, told)
        raise self._diverged(f"the {part} loss is not finite in epoch {epoch}: {told}")

    def _check_weights(self, epoch: int) -> None:
        spoilt = [name for name, part in self.model.state_dict().items() if not bool(torch.isfinite(part).all())]
        if spoilt:
            _LOG.error("%s epoch %d: weights are not finite: %s", self.job.name, epoch, ", ".join(spoilt))
            raise self._diverged(f"{len(spoilt)} weights are not finite after epoch {epoch}, such as {spoilt[0]}")

    def _diverged(self, what: str) -> SlideloomError:
        hint = "Lower training.lr, or look at the inputs: one wild channel is enough"
        return SlideloomError(what, where=self.job.name, hint=hint, code="diverged")

    def _report(self, state: TrainState, begun_at: float, began_with: int) -> None:
        row, job = state.rows[-1], self.job
        done, left = state.epochs_done - began_with, job.training.epochs - state.epochs_done
        eta_s = round((time.monotonic() - begun_at) / done * left)
        parts = [f"train {row['train_loss']:.4f}"]
        for name in ("val_loss", "val_dice_binary", "val_dice_macro"):
            value = row.get(name)
            parts += [f"{name.replace('val_', 'val ', 1)} {value:.4f}"] if value is not None else []
        best = "best" if state.best_epoch == row["epoch"] else f"best was {state.best_epoch + 1}"
        rate = f"{row['train_patches_per_s']:.1f} patches/s ({self.wait_share:.1%} waiting for data), "
        rate += f"{row['seconds']:.1f} s"
        left_text = f"at most {eta_s // 3600}:{eta_s // 60 % 60:02d}:{eta_s % 60:02d} left"
        _LOG.info(
            "%s epoch %d/%d: %s (%s), %s, %s",
            job.name, state.epochs_done, job.training.epochs, ", ".join(parts), best, rate, left_text,
        )  # fmt: skip

    # ---- set-up ---------------------------------------------------------------------------------------------------

    def _class_weights(self) -> Tensor | None:
        if not self.job.loss.class_weights or "classes" not in self.job.heads:
            return None
        weights = class_weights(self.data.class_pixels())
        _LOG.info("%s: class weights %s", self.job.name, np.round(weights, 3).tolist())
        return torch.from_numpy(weights).to(self.device)

    def _model(self) -> CellViTDecoder:
        first = self.data.slides[0]
        model = build_decoder(
            self.job.decoder,
            self.job.heads,
            self.job.n_classes,
            token_width=int(first.embeddings.width),
            upsampling=int(first.embeddings.patch_px),
            image_channels=len(first.channels),
            seed=self.job.training.seed,
        )
        model.to(self.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _meta(self) -> dict[str, Any]:
        job, first = self.job, self.data.slides[0]
        return {
            "recipe": self.model.recipe(),
            "classes": job.classes,
            "blocks": first.blocks,
            "encoder": first.encoder | {"notes": _every_note(self.data.slides)},
            "statistics": _common([slide.embeddings.attributes["statistics"] for slide in self.data.slides]),
            "grid": job.grid.model_dump(mode="json"),
            "training": {
                "study": job.study,
                "experiment": job.experiment,
                "fold": job.fold,
                "seed": job.training.seed,
                "config": job.training.model_dump(mode="json"),
                "loss": job.loss.model_dump(mode="json"),
                "monitor": self.monitor,
                "class_weights": None if self.weights is None else self.weights.cpu().tolist(),
                "n_train_slides": len(self.data.slides),
                "n_train_patches": self.data.n,
                "n_val_slides": len(self.val.slides),
                "n_val_patches": self.val.n,
                "slideloom_version": __version__,
            },
        }

    def _resumed(self, resume: Path) -> TrainState:
        job = self.job
        slides = [[slide.slide_id, slide.n] for part in (self.data, self.val) for slide in part.slides]
        key = digest_text(canonical(DecoderMeta(**self.meta).as_dict()), canonical(slides), job.inputs_key, job.device)
        state = load_state(resume, key, self.model, self.optimiser)
        if state is None:
            return TrainState(key=key)
        _LOG.info("%s: goes on after epoch %d", job.name, state.epochs_done)
        return state


class _Sums:
    """Means of the terms over patches, kept on the device."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self._total = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._count = 0
        self._last: Tensor | None = None

    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        self._last = torch.stack([values[name] for name in self._names]).double()
        self._total += self._last * count
        self._count += count

    @property
    def last(self) -> dict[str, float]:
        """Values of the latest batch; waits for the device."""
        return {} if self._last is None else dict(zip(self._names, self._last.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        return dict(zip(self._names, (self._total / max(1, self._count)).tolist(), strict=True))


def _opened(job: TrainJob, needs: Needs) -> list[StoredSlide]:
    slides = open_slides(job.train, needs, "training")
    if not slides:
        raise SlideloomError(
            f"none of {len(job.train)} training slides can be trained on",
            where=job.name,
            expected="at least one slide with annotation, patches and embeddings",
            hint="The log says what each slide lacks",
            code="no_training_slides",
        )
    return slides


def _monitor(job: TrainJob, n_val: int) -> str:
    wanted = f"val_{job.training.monitor}"
    if wanted == "val_dice_macro" and "classes" not in job.heads:
        raise SlideloomError(
            "training.monitor dice_macro needs the classes head",
            where=job.name,
            hint="Add the head, or monitor loss or dice_binary",
            code="monitor_undefined",
        )
    if n_val:
        return wanted
    _LOG.warning("%s: no validation slides; the training loss chooses the best epoch", job.name)
    return "train_loss"


def _common(values: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    return values[0] if all(value == values[0] for value in values) else None


def _every_note(slides: Sequence[StoredSlide]) -> list[str]:
    """What is to be known of the encoders' tokens, of all slides, each once."""
    records = [record for slide in slides for record in (slide.encoder, *slide.encoder.get("fused", ()))]
    return list(dict.fromkeys(note for record in records for note in record["notes"]))


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
