"""How large each loss term is, how hard it pulls at what the heads share, and what it costs.

A narrow decoder with shared branches is trained on stored patches of a study (``make demo`` makes those of the
defaults). At some steps of the training each term stands alone on the same batches: its value, and the norm of its
gradient at the weights of the last convolution that all heads share. At the end: the time of each term, forwards and
backwards, on the maps of a batch. With ``--compare``, the decoder is trained anew for each pair of weights of the HV
terms, and its validation scores are printed, so that one sees which head drowns.

Run: ``python benchmarks/bench_losses.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.learning import DecoderConfig, Head, HeadLossConfig, LossConfig
from slideloom.decoders.build import build_decoder
from slideloom.training.batch import Batch
from slideloom.training.data import PatchData
from slideloom.training.scores import PooledScores
from slideloom.training.stored import Needs, SlideData, open_slides
from slideloom.training.terms import TERMS, total_loss

HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes", "boundary")
WRONG_AXES = "hv_msge, wrong axes"


def only(term: str) -> LossConfig:
    """A config in which one term alone has a weight."""
    if term == WRONG_AXES:
        return LossConfig(hv_mse=0, hv_msge=1, original=True)
    head, name = term.split("_", 1)
    if head == "hv":
        return LossConfig.model_validate({"hv_mse": 0, "hv_msge": 0, term: 1})
    return LossConfig.model_validate({"heads": {head: HeadLossConfig.model_validate({name: 1})}})


class Bench:
    """A decoder that is being trained."""

    def __init__(self, options: argparse.Namespace, heads: tuple[Head, ...]) -> None:
        self.options, self.heads = options, heads
        needs = Needs(heads, True, True, options.classes)
        results = Path(options.results)

        def opened(names: Sequence[str]) -> PatchData:
            kinds = {"patches": options.grid, "targets": options.grid, "embeddings": options.encoder}
            places = [results / kind / key for kind, key in kinds.items()]
            slides = open_slides([SlideData(n, *(p / f"{n}.zarr" for p in places)) for n in names], needs, "bench")
            data = PatchData(slides)
            data.hold(4 << 30)
            return data

        names = sorted(place.stem for place in (results / "targets" / options.grid).glob("*.zarr"))
        self.val = opened(names[:: options.every])
        self.train = opened([name for name in names if name not in names[:: options.every]])
        self.reset()

    def reset(self) -> None:
        """Weights and order as in the beginning."""
        first = self.train.slides[0]
        width, patch_px = int(first.embeddings.width), int(first.embeddings.patch_px)  # type: ignore[attr-defined]
        config = DecoderConfig(width=self.options.width, branches="shared")
        self.model = build_decoder(
            config, self.heads, self.options.classes, width, patch_px, len(first.channels), seed=self.options.seed
        ).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.options.lr)
        self.drawn = np.random.default_rng(self.options.seed)

    def batch(self, size: int) -> Batch:
        """Patches of the training slides, drawn anew."""
        return self.train.batch(self.drawn.choice(self.train.n, size, replace=self.train.n < size)).to(
            torch.device("cpu")
        )

    def outputs(self, batch: Batch) -> dict[Head, Tensor]:
        """Maps of a batch."""
        maps: dict[Head, Tensor] = self.model(batch.tokens, batch.image, batch.size)
        return maps

    def steps(self, count: int, config: LossConfig) -> None:
        """Go on training, with a cosine to nothing over the whole."""
        self.model.train()
        for step in range(count):
            for group in self.optimiser.param_groups:
                group["lr"] = self.options.lr * (0.5 + 0.5 * np.cos(np.pi * step / count))
            batch = self.batch(self.options.batch)
            loss, _ = total_loss(self.outputs(batch), batch.targets, config)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()

    def scores(self) -> dict[str, float | None]:
        """Validation scores, and the error of the HV maps' gradients, mean over batches."""
        self.model.eval()
        scores = PooledScores(self.heads, self.options.classes, torch.device("cpu"))
        slopes: list[float] = []
        with torch.no_grad():
            for part in np.array_split(np.arange(self.val.n), -(-self.val.n // self.options.batch)):
                batch = self.val.batch(part).to(torch.device("cpu"))
                outputs = self.outputs(batch)
                scores.add(outputs, batch.targets)
                slopes.append(total_loss({"hv": outputs["hv"]}, batch.targets, only("hv_msge"))[0].item())
        return scores.figures() | {"hv_msge": float(np.mean(slopes))}

    def pulls(self, terms: Sequence[str], batches: int) -> dict[str, tuple[float, float]]:
        """Value and gradient norm at the last shared convolution, of each term, mean over batches."""
        self.model.train()
        shared = [module for module in self.model.get_submodule("decoder").modules() if isinstance(module, nn.Conv2d)]
        found: dict[str, list[tuple[float, float]]] = {term: [] for term in terms}
        for _ in range(batches):
            batch = self.batch(self.options.batch)
            outputs = self.outputs(batch)
            for term in terms:
                head: Head = term.split("_")[0]  # type: ignore[assignment]
                loss, _ = total_loss({head: outputs[head]}, batch.targets, only(term))
                (slope,) = torch.autograd.grad(loss, shared[-1].weight, retain_graph=True)
                found[term].append((loss.item(), slope.norm().item()))
        mean = {term: np.mean(values, axis=0) for term, values in found.items()}
        return {term: (float(value), float(norm)) for term, (value, norm) in mean.items()}


def times(bench: Bench, terms: Sequence[str]) -> None:
    """Print the time of each term on the maps of a batch of 16."""
    batch = bench.batch(16)
    with torch.no_grad():
        outputs = bench.outputs(batch)
    print(f"\nprocessor time forwards and backwards, least of 5, on maps of {tuple(outputs['classes'].shape)}")
    for term in terms:
        head: Head = term.split("_")[0]  # type: ignore[assignment]
        least = float("inf")
        for _ in range(5):
            output = outputs[head].contiguous().requires_grad_()
            start = time.process_time()
            loss, _ = total_loss({head: output}, batch.targets, only(term))
            loss.backward()  # type: ignore[no-untyped-call]
            least = min(least, time.process_time() - start)
        print(f"{term:<26} {least * 1e3:8.1f} ms")


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="demo/results", help="results folder of a study that has been run")
    parser.add_argument("--grid", default="sp120")
    parser.add_argument("--encoder", default="mean_marker")
    parser.add_argument("--classes", type=int, default=10, help="classes of the study, with background")
    parser.add_argument("--every", type=int, default=4, help="every so many slides one is for validation")
    parser.add_argument("--width", type=float, default=0.125, help="decoder width multiplier")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--at", type=int, nargs="*", default=[0, 30, 150], help="steps at which the terms are measured")
    parser.add_argument("--batches", type=int, default=6, help="batches that a measurement is the mean of")
    parser.add_argument("--hv", default="1,0.1", help="weights of hv_mse and hv_msge of the training between them")
    parser.add_argument("--compare", nargs="*", default=[], help="pairs of hv_mse,hv_msge, such as 2.5,8")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training (--compare)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)

    def config(pair: str) -> LossConfig:
        mse, msge = (float(part) for part in pair.split(","))
        return LossConfig(hv_mse=mse, hv_msge=msge)

    if options.at:
        bench = Bench(options, HEADS)
        terms = [*TERMS, WRONG_AXES]
        columns, done = [], 0
        for step in options.at:
            bench.steps(step - done, config(options.hv))
            columns.append(bench.pulls(terms, options.batches))
            done = step
        print(f"value and gradient norm after {', '.join(map(str, options.at))} steps")
        for term in terms:
            print(f"{term:<26}" + "".join(f" {value:10.4f} {norm:9.4f}" for value, norm in (c[term] for c in columns)))
        times(bench, terms)
    if options.compare:
        bench = Bench(options, ("nucleus", "hv", "classes"))
        print(f"\nvalidation after {options.steps} steps, by hv_mse,hv_msge")
        for pair in options.compare:
            bench.reset()
            bench.steps(options.steps, config(pair))
            found = bench.scores()
            print(
                f"{pair:<12}" + "".join(f"  {name} {value:.4f}" for name, value in found.items() if value is not None)
            )


if __name__ == "__main__":
    main()
