"""VirTues as an encoder: preprocessing, panels, embeddings, and what a config may get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideloom.config.catalogue import find_entry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.registry import build_encoder
from slideloom.encoders.virtues.encoder import VirTues, blur
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.slides.tables import Channel

PANEL = {"CD3": "P07766", "CD8": "P01732", "DNA": "", "CD45RO": "P08575-4", "blank": ""}


def panel(*markers: str) -> list[Channel]:
    return [Channel(name=f"{marker} raw", marker=marker, uniprot=PANEL[marker]) for marker in markers or PANEL]


def tiny(channels: list[Channel], **settings: Any) -> VirTues:
    settings = {"model": "virtues/tiny", "grid": "g", **settings}
    if "checkpoint" not in settings:
        settings.setdefault("random", 3)
    encoder = build_encoder(EncoderConfig(**settings), channels)
    assert isinstance(encoder, VirTues)
    return encoder


def refused(channels: list[Channel], **settings: Any) -> SlideloomError:
    with pytest.raises(SlideloomError) as caught:
        tiny(channels, **settings)
    return caught.value


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "virtues"


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    drawn = torch.randn(3, 640, generator=torch.Generator().manual_seed(1))
    held = dict(zip(("P07766", "P01732", "P68431"), drawn, strict=True))
    save_file({name: vector.clone() for name, vector in held.items()}, tmp_path / "vectors.safetensors")
    return tmp_path / "vectors.safetensors"


def test_preprocessing_of_the_published_weights(fixtures: Path) -> None:
    held = load_file(fixtures / "preprocess_5ch_40x48.safetensors")
    columns = [tuple(held[key].double().tolist()) for key in ("upper_quantile_q99", "mean_log1p", "std_log1p")]
    markers = tuple("abcde")
    channels = [Channel(name=marker, marker=marker, uniprot=marker) for marker in markers]
    encoder = tiny(channels)
    values = encoder.preprocess(held["raw"][None], ChannelStatistics(markers, *columns, log1p=True))
    torch.testing.assert_close(blur(values)[0], held["out_log1p_standardised"], atol=1e-5, rtol=0)


def test_published_tokens(fixtures: Path, tmp_path: Path) -> None:
    held = load_file(fixtures / "case_a_5ch_40x40.safetensors")
    table = load_file(fixtures / "marker_embeddings.safetensors")["marker_embeddings"]
    ids = held["in.channel_ids.0"].tolist()
    save_file({f"P{index}": table[index].clone() for index in ids}, tmp_path / "v.safetensors")
    channels = [Channel(name=str(index), marker=f"m{index}", uniprot=f"P{index}") for index in ids]
    files = {"checkpoint": fixtures / "tiny_model.safetensors", "marker_embeddings": tmp_path / "v.safetensors"}
    encoder = tiny(channels, blocks=[3, 8], final_norm=True, **files)
    assert encoder.weights.startswith("sha256:")
    assert "decoder" in " ".join(encoder.notes)
    assert encoder.spec.final_norm
    encoder.net.forward = _unblurred(encoder, held["in.image.0"][None])  # type: ignore[method-assign]
    tokens = encoder.encode(held["in.image.0"][None])
    assert list(tokens) == [3, 8]
    torch.testing.assert_close(tokens[3].flatten(1, 2), held["pss_after_block.3"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens[8][0], held["out.pss.0"], atol=1e-4, rtol=0)
    plain = tiny(channels, blocks=[8], model="virtues", **files)
    plain.net.forward = _unblurred(plain, held["in.image.0"][None])  # type: ignore[method-assign]
    last = plain.encode(held["in.image.0"][None])[8]
    torch.testing.assert_close(last.flatten(1, 2), held["pss_after_block.8"], atol=1e-4, rtol=0)


def _unblurred(encoder: VirTues, images: Tensor) -> Callable[..., Any]:
    """The forward pass, given these images instead of blurred ones: the cases' images are not blurred."""
    run = encoder.net.forward

    def forward(blurred: Tensor, *rest: Any, **wanted: Any) -> Any:
        torch.testing.assert_close(blurred, blur(images))
        return run(images, *rest, **wanted)

    return forward


def test_tokens_are_those_of_the_blurred_tile(images: Tensor) -> None:
    encoder = tiny(panel("CD3", "CD8", "CD45RO"), blocks=[2, 5])
    tokens = encoder.encode(images)
    assert {block: value.shape for block, value in tokens.items()} == dict.fromkeys((2, 5), (3, 3, 5, 64))
    with torch.inference_mode():
        expected = encoder.net(blur(images), encoder._markers, blocks=(2, 5), final=False).after
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_batches_are_cut_without_a_trace(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny(panel("CD3", "CD8", "CD45RO"))
    whole = encoder.encode(images)
    monkeypatch.setattr("slideloom.encoders.virtues.encoder._CPU_TOKENS", 1)
    torch.testing.assert_close(encoder.encode(images), whole, atol=1e-5, rtol=0)


def test_context_patch_encodes_each_patch_alone(images: Tensor) -> None:
    channels = panel("CD3", "CD8", "CD45RO")
    alone, tile = tiny(channels, context="patch"), tiny(channels)
    tokens = alone.encode(images)
    patches = blur(images).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    with torch.inference_mode():
        expected = tile.net(patches, tile._markers, blocks=alone.blocks, final=False).after
    for block in alone.blocks:
        torch.testing.assert_close(tokens[block].flatten(0, 2), expected[block].flatten(0, 2), atol=1e-5, rtol=0)
    assert (tokens[8] - tile.encode(images)[8]).abs().max() > 0.05


def test_what_it_declares() -> None:
    encoder = tiny(panel("CD3", "CD8"))
    entry = find_entry("virtues/tiny")
    assert entry is not None
    assert (encoder.width, encoder.patch_px, encoder.image_channels) == (entry.width, entry.token_px, 2)
    assert (encoder.spec.depth, encoder.blocks, encoder.markers) == (entry.depth, (2, 4, 6, 8), ("CD3", "CD8"))
    assert (encoder.weights, encoder.dropped, encoder.spec.tile_multiple_px) == ("random:3", (), 8)
    assert "DRAWN" in encoder.notes[0]
    published = find_entry("virtues/sp31")
    assert published is not None
    assert published.mpp_um == (0.9, 1.1)


def test_seeds_settle_weights_and_embeddings(images: Tensor) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again = tiny(panel("CD3", "CD8", "CD45RO")), tiny(panel("CD45RO", "CD8", "CD3"))
    other = tiny(panel("CD3", "CD8", "CD45RO"), random=4)
    assert torch.equal(torch.rand(1), expected), "the global generator was used"
    tokens = first.encode(images)[8]
    torch.testing.assert_close(again.encode(images.flip(1))[8], tokens, atol=1e-5, rtol=0)
    assert (other.encode(images)[8] - tokens).abs().max() > 0.1


def test_drawn_embeddings_are_as_large_as_real_ones(fixtures: Path) -> None:
    from slideloom.encoders.virtues.encoder import _drawn

    real = load_file(fixtures / "orion_esm2_150M.safetensors")
    drawn = torch.stack([_drawn(name, 0, 640) for name in real])
    assert float(drawn.std()) == pytest.approx(float(torch.stack(list(real.values())).std()), rel=0.1)


def test_markers_follow_config(vectors: Path) -> None:
    encoder = tiny(panel(), markers=["CD8", "DNA"], marker_ids={"DNA": "P68431"}, marker_embeddings=vectors)
    assert encoder.markers == ("CD8", "DNA")
    held = load_file(vectors)
    with torch.inference_mode():
        expected = encoder.net.encode_markers(torch.stack([held["P01732"], held["P68431"]]))
    torch.testing.assert_close(encoder._markers, expected)
    assert [note.split(":")[0] for note in encoder.notes] == ["marker embeddings sha256"]
    # What the config says goes before what the markers table says.
    same = tiny(panel("CD8", "CD3"), marker_ids={"CD8": "P07766"}, marker_embeddings=vectors)
    assert torch.equal(same._markers[0], same._markers[1])


def test_markers_without_embedding_are_all_listed(vectors: Path) -> None:
    error = refused(panel(), marker_embeddings=vectors)
    assert error.code == "marker_embedding"
    listed = "DNA (no UniProt accession), CD45RO (P08575-4: no embedding), blank (no UniProt accession)"
    assert listed in str(error)
    for way in ("marker_ids: {DNA: P68431}", "unknown_markers: drop", "<accession>.pt", "markers"):
        assert way in error.hint
    # Drawn ones need an accession, too.
    assert "DNA" in str(refused(panel("CD3", "DNA")))


def test_markers_without_embedding_may_be_dropped(vectors: Path) -> None:
    encoder = tiny(panel(), marker_embeddings=vectors, unknown_markers="drop")
    assert (encoder.markers, encoder.dropped) == (("CD3", "CD8"), ("DNA", "CD45RO", "blank"))
    assert "CD45RO (P08575-4: no embedding)" in encoder.notes[0]
    error = refused(panel("DNA", "blank"), marker_embeddings=vectors, unknown_markers="drop")
    assert error.code == "marker_embedding"
    assert "no other marker is left" in str(error)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"markers": ["CD99"]}, "missing_marker"),
        ({"patch_px": 16}, "encoder_patch_px"),
        ({"blocks": [9]}, "encoder_blocks"),
        ({"marker_embeddings": Path("nowhere")}, "marker_embeddings"),
        ({"checkpoint": Path("nowhere.safetensors")}, "missing_checkpoint"),
    ],
)
def test_refused_configs(settings: dict[str, Any], code: str) -> None:
    with pytest.raises((SlideError, SlideloomError)) as caught:
        tiny(panel("CD3", "CD8"), **settings)
    assert caught.value.code == code


def test_refused_checkpoints(fixtures: Path, vectors: Path, tmp_path: Path) -> None:
    given = {"checkpoint": fixtures / "tiny_model.safetensors", "marker_embeddings": vectors}
    error = refused(panel("CD3"), model="virtues/sp31", **given)
    assert error.code == "checkpoint_sizes"
    assert "8 blocks of width 64 with 4 heads (expected 16 blocks of width 512 with 8 heads)" in str(error)
    error = refused(panel("CD3"), checkpoint=given["checkpoint"])
    assert error.code == "marker_embeddings"
    state = {key: value for key, value in load_file(given["checkpoint"]).items() if "layer_norm" not in key}
    v1 = {
        key.replace("prior_embedding_", "protein_").replace("multiplex_decoder_mlp", "decoder_mlp"): value
        for key, value in state.items()
    }
    v1 = {f"mae_{key}" if key.startswith("decoder.") else key: value for key, value in v1.items()}
    tables = {
        end: v1[f"encoder.encoder.0.encoder_layer.multi_head_attention.pos_emb.rope1d.{end}"] for end in ("sin", "cos")
    }
    for block in (1, 3, 5, 7):
        for end, table in tables.items():
            v1[f"encoder.encoder.{block}.encoder_layer.multi_head_attention.pos_emb.rope1d.{end}"] = table.clone()
    save_file(v1, tmp_path / "v1.safetensors")
    assert tiny(panel("CD3"), **{**given, "checkpoint": tmp_path / "v1.safetensors"}).width == 64
    error = refused(panel("CD3"), final_norm=True, **{**given, "checkpoint": tmp_path / "v1.safetensors"})
    assert error.code == "encoder_final_norm"


def test_refused_input() -> None:
    encoder = tiny(panel("CD3", "CD8"))
    with pytest.raises(SlideloomError, match="12 px"):
        encoder.encode(torch.zeros(1, 2, 8, 12))
    with pytest.raises(SlideloomError, match="CD3, CD8") as caught:
        encoder.preprocess(torch.zeros(1, 2, 8, 8), None)
    assert caught.value.code == "encoder_statistics"


def test_autocast_gives_float32_tokens(images: Tensor) -> None:
    encoder = tiny(panel("CD3", "CD8", "CD45RO"), final_norm=True)
    exact = encoder.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        halved = encoder.encode(images)
    assert {value.dtype for value in halved.values()} == {torch.float32}
    away = (halved[8] - exact[8]).abs()
    assert 0 < away.max() <= 1e-1
    assert away.mean() <= 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same(images: Tensor) -> None:
    encoder = tiny(panel("CD3", "CD8", "CD45RO"))
    expected = encoder.encode(images)
    tokens = encoder.to("cuda").encode(images.cuda())
    for block, value in expected.items():
        torch.testing.assert_close(tokens[block].cpu(), value, atol=1e-4, rtol=0)
