"""A published CellViT taken over: the same maps through the study's own way, and every misfit told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests.cellvit_recipe import key_list, weights

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.config.model import EncoderConfig, Head
from slideloom.decoders.cellvit import expand_blocks
from slideloom.decoders.cellvit_model import CellViT, load_cellvit
from slideloom.encoders.base import RGB, Encoder, EncoderSpec, encoder_record
from slideloom.encoders.cellvit.encoder import CellViTEncoder
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel, ClassTable, read_classes
from slideloom.training.checkpoint import load_decoder
from slideloom.training.history import HISTORY
from slideloom.training.pretrained import match_classes, use_pretrained

NAMES = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
SETTINGS: dict[str, Any] = {f"dataset_config.nuclei_types.{name}": number for number, name in enumerate(NAMES)}
SETTINGS |= {"model.num_heads": 3, "model.extract_layers": [1, 2, 3, 4], "data.dataset": "PanNuke"}
SETTINGS |= {"data.train_folds": [0, 1], "transformations.normalize.mean": [0.5, 0.4, 0.6]}
GRID = {"image": "he", "tile_px": 64, "mpp_um": 0.25}
HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes")
OUTPUTS: dict[Head, str] = {"nucleus": "nuclei_binary_map", "hv": "hv_map", "classes": "nuclei_type_map"}


def table(*names: str, aliases: tuple[tuple[str, ...], ...] = ()) -> ClassTable:
    ids = tuple(range(1, len(names) + 1))
    return ClassTable(ids, names, ((0, 0, 0),) * len(ids), aliases or ((),) * len(ids))


#: By id, the file's classes 5, 1, 2, 3, 4.
STUDY = table(
    "epithelial", "Tumour", "inflammatory", "stroma", "dead", aliases=((), ("neoplastic",), (), ("Connective",), ())
)
ORDER = [0, 5, 1, 2, 3, 4]


class Published:
    """A checkpoint on disk, the model in it, and its encoder as a study builds it."""

    def __init__(self, shared: Path, folder: Path, keys: str, arch: str) -> None:
        self.path = folder / f"{keys}-x40.pth"
        torch.save({"arch": arch, "config": SETTINGS, "model_state_dict": weights(key_list(shared, keys))}, self.path)
        self.model: CellViT = load_cellvit(self.path)[0]
        self.config = EncoderConfig(model="cellvit/vit", grid="g", checkpoint=self.path)
        self.encoder: Encoder
        if arch.startswith("CellViTVirchow"):  # a study names these by their published sizes
            about = self.model.about
            spec = EncoderSpec("tiny", "rgb", 14, 48, 4, (1, 2, 3, 4), 1, about.mpp_um, about.mean, about.std)
            self.encoder = CellViTEncoder(self.model.encoder, spec, spec.blocks, f"sha256:{file_sha256(self.path)}")
        else:
            self.encoder = build_encoder(self.config, [Channel(colour, "") for colour in RGB])

    def take(self, place: Path, **changes: Any) -> Path:
        """Take it over, all being well but for the changes."""
        asked: dict[str, Any] = {
            "experiment": "published",
            "fold": "0",
            "classes": STUDY,
            "heads": HEADS,
            "encoder": encoder_record(self.encoder, self.config),
            "grid": GRID,
            "blocks": self.encoder.blocks,
            "place": place,
        }
        return use_pretrained(self.path, **asked | changes)


@pytest.fixture(scope="module")
def make(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Published]:
    made: dict[str, Published] = {}

    def get(keys: str = "tiny_vit", arch: str = "CellViT") -> Published:
        if keys not in made:
            made[keys] = Published(shared, tmp_path_factory.mktemp(keys), keys, arch)
        return made[keys]

    return get


@pytest.fixture(scope="module")
def vit(make: Callable[..., Published]) -> Published:
    return make()


# ---- the same maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "arch"),
    [
        ("tiny_vit", "CellViT"),
        ("tiny_vit_regression", "CellViT"),
        ("tiny_vit_shared", "CellViTShared"),
        ("tiny_virchow2", "CellViTVirchow2"),
    ],
)
def test_the_studys_way_gives_the_published_models_maps(
    make: Callable[..., Published], tmp_path: Path, keys: str, arch: str
) -> None:
    published = make(keys, arch)
    decoder, meta = load_decoder(published.take(tmp_path))
    encoder, side = published.encoder, 64
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = encoder.preprocess(pixels, None)
    mean, std = torch.tensor([0.5, 0.4, 0.6])[:, None, None], 0.5
    torch.testing.assert_close(images, (pixels / 255 - mean) / std)
    tokens = encoder.encode(images)
    with torch.inference_mode():
        maps = decoder(expand_blocks([tokens[b].permute(0, 3, 1, 2) for b in meta.blocks]), images, (side, side))
        whole = published.model(images)
    assert set(maps) == set(HEADS)
    whole["nuclei_type_map"] = whole["nuclei_type_map"][:, ORDER]
    for head, name in OUTPUTS.items():
        torch.testing.assert_close(maps[head], whole[name], atol=1e-5, rtol=0)
    assert (meta.patch_px, meta.upsampling, meta.image_channels) == (encoder.patch_px, 16, 3)
    assert ("regression" in keys) == any("regression" in note for note in meta.training["notes"])


@pytest.mark.parametrize("keys", ["tiny_vit", "tiny_vit_shared"])
def test_some_heads_only(make: Callable[..., Published], tmp_path: Path, keys: str) -> None:
    published = make(keys, "CellViTShared" if "shared" in keys else "CellViT")
    # Without the class head the study's classes need not be the file's.
    place = published.take(tmp_path, heads=("hv", "nucleus"), classes=table("lymphocyte"))
    decoder, meta = load_decoder(place)
    assert decoder.heads == meta.heads == ("nucleus", "hv")
    assert not any("type" in name for name in decoder.state_dict())
    whole = published.model.decoding.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in decoder.state_dict().items())


def test_what_the_decoders_file_says(vit: Published, tmp_path: Path) -> None:
    place = vit.take(tmp_path)
    assert place == tmp_path / "decoder.safetensors"
    _, meta = load_decoder(place)
    digest = vit.encoder.weights.removeprefix("sha256:")
    assert meta.training["pretrained"] == {"file": "tiny_vit-x40.pth", "sha256": digest, "arch": "CellViT"}
    assert (meta.training["epochs"], meta.training["n_train_slides"]) == (0, 0)
    assert meta.training["class_order"] == ORDER
    assert "90 % of all three folds of PanNuke" in meta.training["notes"][0]
    assert "training folds 0, 1" in meta.training["notes"][0]
    assert meta.encoder == json.loads(json.dumps(encoder_record(vit.encoder, vit.config)))
    assert (meta.blocks, meta.classes, meta.grid, meta.statistics) == ((1, 2, 3, 4), STUDY, GRID, None)
    history = read_table(HISTORY, tmp_path / "history.parquet")
    assert history.num_rows == 0
    assert history.column_names == [column.name for column in HISTORY.columns]
    assert table_metadata(history)["made_from"]["pretrained"] == f"sha256:{digest}"
    assert pq.read_table(tmp_path / "history.parquet").to_pylist() == []
    again = vit.take(tmp_path / "again")
    assert again.read_bytes() == place.read_bytes()


# ---- misfits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"heads": ("nucleus", "boundary")}, "pretrained_heads", "no head boundary"),
        ({"blocks": (1, 2, 4)}, "pretrained_blocks", "the blocks 1, 2, 4 .expected 1, 2, 3, 4"),
        ({"grid": GRID | {"mpp_um": 0.5}}, "pretrained_resolution", "0.5 um/px .expected 0.2 to 0.3"),
        ({"classes": table("tumour")}, "pretrained_classes", "names no class Neoplastic"),
    ],
)
def test_misfits(vit: Published, tmp_path: Path, changes: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(SlideloomError, match=message) as caught:
        vit.take(tmp_path, **changes)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_tokens_of_another_file_or_normalised(vit: Published, tmp_path: Path) -> None:
    record = encoder_record(vit.encoder, vit.config)
    with pytest.raises(SlideloomError, match=r"the weights random:3 .expected sha256:") as caught:
        vit.take(tmp_path, encoder=record | {"weights": "random:3"})
    assert caught.value.code == "pretrained_encoder"
    with pytest.raises(SlideloomError, match="the last one normalised") as caught:
        vit.take(tmp_path, encoder=record | {"spec": record["spec"] | {"final_norm": True}})
    assert caught.value.code == "pretrained_blocks"


def test_another_resolution_on_purpose(vit: Published, tmp_path: Path) -> None:
    config = vit.config.model_copy(update={"off_resolution": True})
    assert vit.take(tmp_path, grid=GRID | {"mpp_um": 1.0}, encoder=encoder_record(vit.encoder, config)).is_file()


# ---- classes ------------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_and_alias() -> None:
    assert list(match_classes(NAMES, STUDY, "f")) == ORDER
    assert match_classes(NAMES, table(*NAMES[1:]), "f") == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (table("neoplastic", "inflammatory", "connective", "dead"), "it names no class Epithelial$"),
        (table(*NAMES[1:], "plasma"), "the model has no class plasma$"),
        (
            table("immune", "connective", "dead", "epithelial", aliases=(("neoplastic", "inflammatory"), (), (), ())),
            "Neoplastic and Inflammatory all mean immune$",
        ),
        (ClassTable(), "names no class Neoplastic, Inflammatory, Connective, Dead, Epithelial$"),
    ],
)
def test_classes_that_do_not_match_get_the_table_that_would(classes: ClassTable, message: str, tmp_path: Path) -> None:
    with pytest.raises(SlideloomError) as caught:
        match_classes(NAMES, classes, "CellViT-256-x40.pth")
    assert caught.value.code == "pretrained_classes"
    message = message.removesuffix("$")
    assert caught.value.what.endswith(message)
    lines = caught.value.hint.splitlines()
    (tmp_path / "classes.tsv").write_text("\n".join(lines[1:]) + "\n")
    needed, problems = read_classes(tmp_path / "classes.tsv")
    assert not problems
    assert match_classes(NAMES, needed, "f") == (0, 1, 2, 3, 4, 5)
    assert len(set(needed.colours)) == 5


def test_classes_without_a_name() -> None:
    with pytest.raises(SlideloomError, match="does not name its classes") as caught:
        match_classes((), STUDY, "f")
    assert caught.value.code == "pretrained_classes"


def test_many_classes_get_colours_of_their_own(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(13))
    with pytest.raises(SlideloomError) as caught:
        match_classes(names, STUDY, "f")
    (tmp_path / "classes.tsv").write_text("\n".join(caught.value.hint.splitlines()[1:]) + "\n")
    needed, problems = read_classes(tmp_path / "classes.tsv")
    assert not problems
    assert len(set(needed.colours)) == 12
