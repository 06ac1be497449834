from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.test_main import flat, process
from tests.published_models import hovernet, instanseg, program
from typer.testing import CliRunner, Result

from slideloom.cli.main import app
from slideloom.cli.weights import FileReport, describe_entry, examine_weights
from slideloom.config.catalogue import CATALOGUE
from slideloom.config.load import load_config
from slideloom.encoders.checkpoints.recognise import misfits, recognise
from slideloom.slides.tables import Channel

VIT = {
    "patch_embed.proj.weight": torch.zeros(192, 3, 16, 16),
    **{f"blocks.{k}.norm1.weight": torch.zeros(192) for k in range(12)},
}
CELLVIT = {f"encoder.{name}": value for name, value in VIT.items()}
DECODER = {"hv_map_decoder.decoder0_header.2.weight": torch.zeros(2, 64, 1, 1)}
VIRTUES = {
    "encoder.patch_summary_token": torch.zeros(64),
    "encoder.patch_encoder.weight": torch.zeros(64, 64),
    **{f"encoder.encoder.{k}.encoder_layer.layernorm1.weight": torch.zeros(64) for k in range(8)},
}
ENTRIES = """\
  vt: {model: virtues/tiny, grid: sp64, checkpoint: vt.safetensors, marker_embeddings: esm, statistics: holdout}
  cv: {model: cellvit/vit, grid: he64, checkpoint: cv.pth}
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def weighted(study: Path) -> Path:
    """The small study with three files of weights, all of them right."""
    text = study.read_text().replace("random: 0", "checkpoint: vit.safetensors")
    text = text.replace("splits:\n", f"{ENTRIES}splits:\n")
    study.write_text(text + "  pub: {encoder: cv, pretrained: cv.pth, split: holdout, heads: [nucleus, hv]}\n")
    save_file(VIT, "vit.safetensors")
    save_file(VIRTUES, "vt.safetensors")
    torch.save({"arch": "CellViT", "config": {}, "model_state_dict": CELLVIT | DECODER}, "cv.pth")
    Path("esm").mkdir()
    torch.save(torch.zeros(640), Path("esm", "P07766.pt"))
    return study


def reports(config: Path, digest: bool = True) -> dict[str, FileReport]:
    channels = (Channel("DAPI", "DNA", "", True), Channel("CD3", "CD3e", "P07766", False))
    return {one.where: one for one in examine_weights(load_config(config), channels, digest=digest)}


# ---- the catalogue ------------------------------------------------------------------------------------------------


def test_every_encoder_is_listed_without_torch(tmp_path: Path) -> None:
    done = process("weights")
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert not imported & {"torch", "timm", "pandas", "numpy", "pyarrow"}
    words = flat(done.stdout)
    for entry in CATALOGUE.values():
        assert f"{entry.name} {flat(entry.summary)[:30]}" in words
        assert all(file in words for file in entry.files)
        assert entry.source.split()[0].rstrip(";") in words
        assert entry.licence.split(";")[0] in words
        assert entry.gated in words


def test_an_entry_in_words() -> None:
    words = dict(describe_entry(CATALOGUE["virtues/sp31"]))
    assert words["reads"] == "any markers, tiles of 128 px, tokens of 8 px, 0.9 to 1.1 µm/px"
    assert words["scaled"] == "clipped at its own 0.99 quantile, log1p, the training slides' mean and deviation"
    assert "marker_embeddings" in words["needs"]
    assert words["licence"] == "MIT"


# ---- the files of a study -----------------------------------------------------------------------------------------


def test_a_study_with_all_its_files(weighted: Path) -> None:
    result = run("weights", weighted)
    assert result.exit_code == 0, result.output
    words = flat(result.output)
    assert "wrong" not in words
    assert "fine encoders.mm holds needs no weights" in words
    for name in ("vit.safetensors", "vt.safetensors", "cv.pth"):
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() in words
    assert "vision transformer, 192 wide, 12 blocks, tokens of 16 px" in words
    assert "VirTues, 64 wide, 8 blocks, tokens of 8 px" in words
    assert "CellViT: vision transformer, 192 wide, 12 blocks, tokens of 16 px, with a CellViT decoder" in words
    assert "vectors of 1 proteins; 1 of 2 markers have one" in words
    assert "none for DNA: slides that have them will fail" in words


def test_without_hash_nothing_is_read_through(weighted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("read through")

    monkeypatch.setattr("slideloom.cli.weights.check_checksums", fail)
    monkeypatch.setattr("slideloom.encoders.checkpoints.files.hashlib.file_digest", fail)
    assert run("weights", weighted, "--no-hash").exit_code == 0
    assert {one.sha256 for one in reports(weighted, digest=False).values()} == {""}


def test_a_seed_and_missing_weights_are_told(weighted: Path) -> None:
    text = weighted.read_text()
    weighted.write_text(text.replace("checkpoint: vit.safetensors", "random: 3"))
    assert "WITHOUT WEIGHTS (random: 3)" in flat(run("weights", weighted).output)
    weighted.write_text(text.replace(", checkpoint: vit.safetensors", ""))
    result = run("weights", weighted)
    assert result.exit_code == 1
    assert "needs weights, and none are named" in result.output


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("vit.safetensors", lambda path: path.unlink(), "no checkpoint at"),
        ("vit.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut short"),
        ("cv.pth", lambda path: path.write_bytes(path.read_bytes()[:-500]), "is cut short or damaged"),
        ("cv.pth", lambda path: _flip(path, path.stat().st_size // 2), "does not have its checksum"),
        ("cv.pth", lambda path: path.write_bytes(b"<html>"), "is a web page"),
        ("vit.safetensors", lambda path: save_file({}, path), "it holds no weights"),
        ("vt.safetensors", lambda path: save_file(VIT, path), "a vision transformer, not a VirTues"),
        ("cv.pth", lambda path: torch.save({"arch": "CellViT", "model": CELLVIT}, path), "no CellViT decoder"),
        ("esm/P07766.pt", lambda path: path.write_bytes(b""), "is empty"),
        ("esm/P07766.pt", lambda path: path.unlink(), "holds no vector"),
    ],
)
def test_what_is_missing_or_damaged_is_told(weighted: Path, name: str, spoil: object, told: str) -> None:
    spoil(Path(name))  # type: ignore[operator]
    result = run("weights", weighted)
    assert result.exit_code == 1
    assert told in flat(result.output)


def test_markers_that_were_asked_for_need_a_vector(weighted: Path) -> None:
    text = weighted.read_text()
    weighted.write_text(text.replace("marker_embeddings: esm", "marker_embeddings: esm, markers: [CD3e, DNA]"))
    found = reports(weighted)["encoders.vt.marker_embeddings"]
    assert found.fault == "there is none for DNA"
    mapped = "marker_embeddings: esm, markers: [CD3e, DNA], marker_ids: {DNA: P07766}"
    weighted.write_text(text.replace("marker_embeddings: esm", mapped))
    assert not reports(weighted)["encoders.vt.marker_embeddings"].fault
    weighted.write_text(text.replace("marker_embeddings: esm, ", ""))
    assert "none are named" in reports(weighted)["encoders.vt.marker_embeddings"].fault


# ---- what a checkpoint seems to be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "entry", "words"),
    [
        ("CellViT256", "cellvit/vit256", "vision transformer, 384 wide, 12 blocks, tokens of 16 px"),
        ("CellViTSAM-B", "cellvit/sam_b", "SAM image encoder, 768 wide, 12 blocks, tokens of 16 px"),
        ("CellViTSAM-L", "cellvit/sam_l", "SAM image encoder, 1024 wide, 24 blocks, tokens of 16 px"),
        ("CellViTSAM-H", "cellvit/sam_h", "SAM image encoder, 1280 wide, 32 blocks, tokens of 16 px"),
        ("CellViTUNI", "cellvit/uni", "vision transformer, 1024 wide, 24 blocks, tokens of 16 px"),
        ("CellViTVirchow", "cellvit/virchow", "vision transformer, 1280 wide, 32 blocks, tokens of 14 px"),
        ("CellViTVirchow2", "cellvit/virchow2", "vision transformer, 1280 wide, 32 blocks, tokens of 14 px"),
    ],
)
def test_published_cellvits_are_recognised(shared: Path, keys: str, entry: str, words: str) -> None:
    listed = json.loads((shared / "fixtures" / "cellvit" / f"keys_{keys}.json").read_text())["keys"]
    seen = recognise({name: tuple(shape) for name, shape, _ in listed}, keys)
    assert str(seen) == f"{keys}: {words}, with a CellViT decoder"
    assert misfits(seen, CATALOGUE[entry]) == ()
    others = {name for name, other in CATALOGUE.items() if other.family == "cellvit" and not misfits(seen, other)}
    assert others <= {entry, "cellvit/vit", "cellvit/virchow", "cellvit/virchow2"}, "only what has its very shapes"


def test_sam_within_its_own_file_and_other_names() -> None:
    sam = {f"image_encoder.{name}": tuple(value.shape) for name, value in VIT.items()}
    sam |= {"image_encoder.blocks.0.attn.rel_pos_h": (27, 64), "mask_decoder.transformer.layers.1.norm1.weight": (256,)}
    sam |= {"mask_decoder.blocks.30.weight": (1,)}
    assert str(recognise(sam)) == "SAM image encoder, 192 wide, 12 blocks, tokens of 16 px"
    library = {"embeddings.patch_embeddings.projection.weight": (768, 3, 16, 16), "encoder.layer.0.x": (1,)}
    assert str(recognise(library)) == "vision transformer, 768 wide, 1 blocks, tokens of 16 px"
    assert str(recognise({"conv.weight": (3, 3)})) == "a network that is not recognised"
    assert misfits(recognise({"conv.weight": (3, 3)}), CATALOGUE["cellvit/vit256"]) == ()


def test_virtues_is_recognised_at_its_real_size(shared: Path) -> None:
    listed = json.loads((shared / "fixtures" / "virtues" / "real_size_keys.json").read_text())
    shapes = {name: tuple(shape) for name, shape, *_ in listed["keys"]}
    seen = recognise(shapes)
    assert str(seen) == "VirTues, 512 wide, 16 blocks, tokens of 8 px"
    grouped = {re.sub(r"(encoder_layer)\.", r"\1.layers.0.", f"model.{name}"): shape for name, shape in shapes.items()}
    assert recognise(grouped) == seen
    assert misfits(seen, CATALOGUE["virtues/sp31"]) == ()
    assert misfits(seen, CATALOGUE["virtues/tiny"]) == ("512 wide, not 64", "16 blocks, not 8")


# ---- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_whole_networks_are_looked_at_as_they_would_be_taken_over(study: Path) -> None:
    whole = "{encoder: rgb, split: holdout, decoder: {kind: %s}, heads: [%s], %s}"
    experiments = {
        "weights": whole % ("instanseg", "instanseg", "pretrained: is.pth"),
        "hover": whole % ("hovernet", "nucleus, hv", "pretrained: hover.tar"),
        "other": whole % ("hovernet", "nucleus, hv", "pretrained: is.pth"),
        "program": whole % ("instanseg", "instanseg", "torchscript: is.pt"),
        "no_program": whole % ("instanseg", "instanseg", "torchscript: is.pth"),
    }
    text = study.read_text().replace("splits:\n", "  rgb: {model: mean_rgb, grid: he64}\nsplits:\n")
    study.write_text(text + "".join(f"  {name}: {body}\n" for name, body in experiments.items()))
    instanseg(Path("is.pth"))
    hovernet(Path("hover.tar"))
    program(Path("is.pt"))
    found = reports(study)
    assert found["experiments.weights.pretrained"].seems == "InstanSeg of 3 channels, widths [4, 6], heads instanseg"
    assert found["experiments.hover.pretrained"].seems == "HoVer-Net, mode fast, heads nucleus, hv, classes"
    assert "no conv0./.weight" in found["experiments.other.pretrained"].fault
    seen = found["experiments.program.torchscript"]
    assert (seen.sha256, seen.fault) == (hashlib.sha256(Path("is.pt").read_bytes()).hexdigest(), "")
    assert "which is code" in seen.seems
    assert found["experiments.no_program.torchscript"].fault == "it is no TorchScript program"
