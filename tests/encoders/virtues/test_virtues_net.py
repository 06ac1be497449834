"""VirTues' layers against tensors that the published code gave, and the laws that they obey."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slideloom.encoders.checkpoints.weights import read_weights
from slideloom.encoders.virtues import blocks as virtues_blocks
from slideloom.encoders.virtues.blocks import Block, Layout, rope_turns
from slideloom.encoders.virtues.net import Architecture, VirTuesNet, drawn_net
from slideloom.encoders.virtues.weights import LoadedVirTues, load_virtues

CASES = (
    "case_a_5ch_40x40",
    "case_b_9ch_24x40",
    "case_c_batch_mixed_24x24",
    "case_d_masked_recon_40x24",
    "case_e_unmasked_recon_24x24",
    "case_f_registers_24x24",
)
DEPTH = 8
#: The fixtures' README: against the published code in float32.
ATOL = 1e-4
#: Of the laws: only the order of sums changes.
SAME = 1e-5


@dataclass
class Case:
    model: LoadedVirTues
    tensors: dict[str, Tensor]
    images: list[Tensor]
    markers: list[Tensor]
    masks: list[Tensor] | None

    def run(self, **wanted: Any) -> Any:
        with torch.inference_mode():
            return self.model.net(self.images, self.markers, self.masks, **wanted)


@pytest.fixture(scope="module")
def case(shared: Path) -> Callable[[str], Case]:
    place = shared / "fixtures" / "virtues"
    embeddings = load_file(place / "marker_embeddings.safetensors")["marker_embeddings"]
    models = {
        name: load_virtues(read_weights(place / f"{name}.safetensors"), "tiny", decoder=True)
        for name in ("tiny_model", "tiny_model_registers")
    }

    def load(name: str) -> Case:
        model = models["tiny_model_registers" if "registers" in name else "tiny_model"]
        tensors = load_file(place / f"{name}.safetensors")
        count = sum(key.startswith("in.image.") for key in tensors)
        images = [tensors[f"in.image.{index}"] for index in range(count)]
        with torch.inference_mode():
            markers = [
                model.net.encode_markers(embeddings[tensors[f"in.channel_ids.{index}"]]) for index in range(count)
            ]
        masks = [tensors[f"in.mask.{i}"].bool() for i in range(count)] if "in.mask.0" in tensors else None
        return Case(model, tensors, images, markers, masks)

    return load


def close(got: Tensor, expected: Tensor, atol: float = SAME) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_published_numbers(case: Callable[[str], Case], name: str) -> None:
    it = case(name)
    tokens = it.run(blocks=range(1, DEPTH + 1), channels=True)
    for index in range(len(it.images)):
        close(tokens.final[index], it.tensors[f"out.pss.{index}"], ATOL)
        close(tokens.channels[index], it.tensors[f"out.channel_tokens.{index}"], ATOL)
    for block in range(1, DEPTH + 1):
        close(tokens.after[block].flatten(1, 2), it.tensors[f"pss_after_block.{block}"], ATOL)


@pytest.mark.parametrize("name", CASES)
def test_published_tokens_of_every_row(case: Callable[[str], Case], name: str) -> None:
    it = case(name)
    seen: list[tuple[Tensor, Layout]] = []
    hooks = [
        block.register_forward_hook(lambda module, given, result: seen.append((result, given[1])))
        for block in it.model.net.blocks
    ]
    hooks.append(it.model.net.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given)))
    try:
        it.run(channels=True)
    finally:
        for hook in hooks:
            hook.remove()
    names = ["state.tokens_in"] + [f"state.tokens_after_block_{block}" for block in range(1, DEPTH + 1)]
    for (tokens, layout), key in zip(seen, names, strict=True):
        expected = it.tensors[key]
        # Groups interleave the rows of their samples; the file has sample after sample.
        rows, start = [], 0
        for count, samples in layout.groups:
            block = torch.arange(start, start + count * samples).view(samples, count)
            rows.append(block.T.flatten())
            start += count * samples
        expected = expected[torch.cat(rows)]
        close(tokens, layout.pack(expected), ATOL)


@pytest.mark.parametrize("name", [name for name in CASES if "recon" in name])
def test_published_reconstructions(case: Callable[[str], Case], name: str) -> None:
    it = case(name)
    tokens = it.run(channels=True)
    with torch.inference_mode():
        images = it.model.decoder(tokens.final, tokens.channels)
    for index, image in enumerate(images):
        close(image, it.tensors[f"recon.{index}"], ATOL)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", range(1, DEPTH + 1))
def test_the_deepest_block_may_work_on_summaries_alone(case: Callable[[str], Case], name: str, block: int) -> None:
    it = case(name)
    close(it.run(blocks=[block], final=False).after[block].flatten(1, 2), it.tensors[f"pss_after_block.{block}"], ATOL)


def test_final_summaries_are_the_normed_last_ones(case: Callable[[str], Case]) -> None:
    it = case(CASES[0])
    tokens = it.run(blocks=[DEPTH])
    close(it.model.net.norm(tokens.after[DEPTH]), tokens.final)


@pytest.mark.parametrize(("dtype", "most", "mean"), [(torch.float16, 2e-2, 2e-3), (torch.bfloat16, 1e-1, 1e-2)])
@pytest.mark.parametrize("name", CASES[:4])
def test_half_precision(case: Callable[[str], Case], name: str, dtype: torch.dtype, most: float, mean: float) -> None:
    it = case(name)
    with torch.autocast("cpu", dtype):
        tokens = it.run(blocks=range(1, DEPTH + 1), channels=name == CASES[3])
    for index in range(len(it.images)):
        away = (tokens.final[index] - it.tensors[f"out.pss.{index}"]).abs()
        assert away.max() <= most
        assert away.mean() <= mean
    assert {value.dtype for value in (tokens.final, *tokens.after.values())} == {torch.float32}


def test_channel_order_does_not_matter(case: Callable[[str], Case]) -> None:
    it = case(CASES[1])
    before = it.run(channels=True)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    it.images, it.markers = [it.images[0][order]], [it.markers[0][order]]
    after = it.run(channels=True)
    close(after.final, before.final)
    close(after.channels[0], before.channels[0][order])


def test_a_masked_channel_is_as_if_it_were_not_there(case: Callable[[str], Case]) -> None:
    it = case(CASES[1])
    it.masks = [torch.zeros(9, 3, 5, dtype=torch.bool)]
    it.masks[0][4] = True
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    masked = it.run(blocks=(1, 4, 8), channels=True)
    summaries = it.run(blocks=(1, 4, 8))
    it.images, it.markers, it.masks = [it.images[0][kept]], [it.markers[0][kept]], None
    dropped = it.run(blocks=(1, 4, 8), channels=True)
    for tokens in (masked, summaries):
        close(tokens.final, dropped.final)
        for block in (1, 4, 8):
            close(tokens.after[block], dropped.after[block])
    close(masked.channels[0][kept], dropped.channels[0])


def test_masked_tokens_leave_as_they_came(case: Callable[[str], Case]) -> None:
    it = case(CASES[3])
    net = it.model.net
    tokens = it.run(channels=True)
    with torch.inference_mode():
        for got, markers, mask in zip(tokens.channels, it.markers, it.masks, strict=True):
            expected = net.norm(net.masked_token + markers)[:, None, None].expand_as(got)
            close(got[mask], expected[mask])


def test_a_mask_that_hides_nothing_is_no_mask(case: Callable[[str], Case]) -> None:
    it = case(CASES[0])
    before = it.run()
    it.masks = [torch.zeros(5, 5, 5, dtype=torch.bool)]
    assert torch.equal(it.run().final, before.final)


def test_a_sample_does_not_feel_its_batch(case: Callable[[str], Case]) -> None:
    it = case(CASES[2])
    images, markers = it.images, it.markers
    # Groups that are not in the order of the samples.
    it.images, it.markers = [images[k] for k in (0, 1, 0, 2, 1)], [markers[k] for k in (0, 1, 0, 2, 1)]
    together = it.run(blocks=(3, 8), channels=True)
    for index, sample in enumerate((0, 1, 0, 2, 1)):
        it.images, it.markers = [images[sample]], [markers[sample]]
        alone = it.run(blocks=(3, 8), channels=True)
        close(together.final[index], alone.final[0])
        close(together.after[3][index], alone.after[3][0])
        close(together.channels[index], alone.channels[0])


def test_only_differences_of_positions_matter(case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    it = case(CASES[1])
    before = it.run()

    def elsewhere(height: int, width: int, device: torch.device) -> Tensor:
        rows, cols = torch.meshgrid(torch.arange(height) + 70, torch.arange(width) + 11, indexing="ij")
        return rope_turns(rows.flatten(), cols.flatten(), 16)

    monkeypatch.setattr(it.model.net, "_turns", elsewhere)
    close(it.run().final, before.final)


def test_isolated_patches_are_patches_by_themselves(case: Callable[[str], Case]) -> None:
    it = case(CASES[1])
    image = it.images[0]
    isolated = it.run(blocks=(3, 8), isolated=True)
    contextual = it.run()
    it.images = [image[:, row : row + 8, col : col + 8] for row in range(0, 24, 8) for col in range(0, 40, 8)]
    it.markers *= 15
    patches = it.run(blocks=(3, 8))
    close(isolated.final[0].flatten(0, 1), patches.final.flatten(0, 2))
    close(isolated.after[3][0].flatten(0, 1), patches.after[3].flatten(0, 2))
    assert (isolated.final - contextual.final).abs().max() > 0.1


def test_one_token_attends_to_itself_alone() -> None:
    block = Block(32, 2, 64, "space")
    tokens = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    turned = rope_turns(torch.tensor([5]), torch.tensor([2]), 16)
    with torch.inference_mode():
        close(block(tokens, Layout.of(((6, 1),), 1, None, None)), block(tokens, Layout.of(((6, 1),), 1, turned, None)))


def test_a_call_of_many_segments_is_cut(case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CASES[2], CASES[3]):
        it = case(name)
        whole = it.run(channels=True)
        with monkeypatch.context() as patch:
            patch.setattr(virtues_blocks, "_MAX_SEGMENTS", 4)
            cut = it.run(channels=True)
        close(cut.final, whole.final)


def test_calls_side_by_side_do_not_mix(case: Callable[[str], Case]) -> None:
    cases = [case(name) for name in CASES[:4]] * 3
    expected = [it.run().final for it in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda it: it.run().final, cases), expected, strict=True):
            close(got, want)


def test_a_forward_pass_can_be_differentiated(case: Callable[[str], Case]) -> None:
    it = case(CASES[3])
    it.run()
    net = VirTuesNet(it.model.net.architecture)
    net.load_state_dict(it.model.net.state_dict())
    tokens = net([image.clone() for image in it.images], [each.clone() for each in it.markers], it.masks)
    tokens.final.square().mean().backward()
    assert all(part.grad is not None for name, part in net.blocks[0].named_parameters())


def test_images_that_do_not_go_together_are_refused(case: Callable[[str], Case]) -> None:
    net = case(CASES[0]).model.net
    markers = torch.zeros(2, 64)
    with pytest.raises(ValueError, match="multiples of 8"):
        net(torch.zeros(1, 2, 12, 16), markers)
    with pytest.raises(ValueError, match="one size"):
        net([torch.zeros(2, 8, 8), torch.zeros(2, 16, 8)], markers)
    with pytest.raises(ValueError, match="3 channels"):
        net(torch.zeros(1, 3, 8, 8), markers)
    with pytest.raises(ValueError, match="masks"):
        net(torch.zeros(1, 2, 8, 8), markers, [torch.ones(3, 1, 1, dtype=torch.bool)])


def test_drawn_weights_are_the_seeds() -> None:
    sizes = Architecture(width=64, heads=4, feedforward=128, pattern="hv", registers=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    nets = [drawn_net(sizes, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected), "the global generator was used"
    first, again, other = (net.state_dict() for net in nets)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["blocks.0.qkv.weight"], other["blocks.0.qkv.weight"])
    # Xavier: each projection is a matrix of its own.
    assert first["blocks.1.qkv.weight"].std() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert first["blocks.1.inner.weight"].std() == pytest.approx((2 / 192) ** 0.5, rel=0.05)
    assert first["register_tokens"].std() == pytest.approx(64**-0.5, rel=0.3)
    assert not any(first[key].any() for key in first if key.endswith("bias"))
