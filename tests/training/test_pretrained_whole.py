"""Published whole networks taken over: the same maps through the study's own way, and every misfit told."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.published_models import WIDTHS, Scripted, hovernet, instanseg, program, saved_program, tiny_program

from slideloom.artefacts.tables import read_table
from slideloom.config.model import EncoderConfig, Head
from slideloom.decoders.hovernet_published import from_published
from slideloom.decoders.instanseg_head import PixelClassifier
from slideloom.encoders.base import RGB, encoder_record
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.encoders.checkpoints.weights import read_weights
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel, ClassTable
from slideloom.training.checkpoint import load_adapter, load_decoder
from slideloom.training.history import HISTORY
from slideloom.training.pretrained_whole import _classes, use_program, use_whole
from slideloom.training.published import Asked

#: Published models are TorchScript, whatever PyTorch would rather have.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
PLAIN = EncoderConfig(model="mean_rgb", grid="g")
ENCODER = build_encoder(PLAIN, [Channel(colour, "") for colour in RGB])
GRID = {"image": "sp", "tile_px": 32, "mpp_um": 0.5}
NUCLEI: tuple[Head, ...] = ("instanseg",)
CELLS: tuple[Head, ...] = ("instanseg", "instanseg_cells")
HOVER: tuple[Head, ...] = ("nucleus", "hv", "classes")
KIND = {"kind": "instanseg"}


def table(*names: str) -> ClassTable:
    count = len(names)
    return ClassTable(tuple(range(1, count + 1)), names, ((0, 0, 0),) * count, ((),) * count)


def asked(place: Path, heads: tuple[Head, ...] = NUCLEI, **changes: Any) -> Asked:
    own: dict[str, Any] = {
        "experiment": "x",
        "fold": "0",
        "classes": ClassTable(),
        "heads": heads,
        "encoder": encoder_record(ENCODER, PLAIN),
        "grid": GRID,
        "blocks": ENCODER.blocks,
        "place": place,
    }
    return Asked(**own | changes)


def image(channels: int = 3, side: int = 24) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def refused(code: str, told: str, work: Any) -> None:
    with pytest.raises(SlideloomError) as caught:
        work()
    assert caught.value.code == code
    assert told in str(caught.value), str(caught.value)


# ---- InstanSeg's weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [NUCLEI, CELLS], ids=len)
@pytest.mark.parametrize(("channels", "channelnet"), [(3, False), (3, True)], ids=["alone", "behind ChannelNet"])
def test_an_instansegs_maps(tmp_path: Path, heads: tuple[Head, ...], channels: int, channelnet: bool) -> None:
    file = tmp_path / "model_weights.pth"
    front, network = instanseg(file, *heads, channels=channels, channelnet=channelnet)
    place = use_whole(file, KIND | {"widths": list(WIDTHS)}, asked(tmp_path, heads))
    decoder, meta = load_decoder(place)
    adapter = load_adapter(place)
    assert adapter is not None
    assert (decoder.heads, meta.heads, meta.image_channels) == (heads, heads, channels)
    given = image(5) if channelnet else image()
    with torch.inference_mode():
        found = decoder([], adapter(given))
        wanted = network([], given if front is None else front(given))
    assert set(found) == set(heads)
    for head in heads:
        torch.testing.assert_close(found[head], wanted[head], rtol=0, atol=0)
    classifier = network.pixel_classifier.state_dict()
    assert all(torch.equal(value, classifier[key]) for key, value in decoder.pixel_classifier.state_dict().items())


def test_what_the_decoders_file_says(tmp_path: Path) -> None:
    file = tmp_path / "model_weights.pth"
    instanseg(file)
    place = use_whole(file, KIND, asked(tmp_path))
    _, meta = load_decoder(place)
    own = {"file": "model_weights.pth", "sha256": file_sha256(file), "arch": "InstanSeg"}
    assert meta.training["pretrained"] == own
    assert (meta.training["epochs"], meta.training["n_train_slides"], meta.statistics) == (0, 0, None)
    assert meta.encoder == json.loads(json.dumps(encoder_record(ENCODER, PLAIN)))
    assert ["not scores on unseen" in note for note in meta.training["notes"]] == [True, False]
    assert "published models were at 0.5 um/px, and the grid has 0.5 um/px" in meta.training["notes"][1]
    assert read_table(HISTORY, tmp_path / "history.parquet").num_rows == 0
    again = use_whole(file, KIND, asked(tmp_path / "again"))
    assert again.read_bytes() == place.read_bytes(), "equal files give equal decoders"


def test_misfits_of_an_instanseg(tmp_path: Path) -> None:
    file = tmp_path / "model_weights.pth"
    instanseg(file)
    place = tmp_path / "taken"
    misfits: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("pretrained_heads", "the heads instanseg, instanseg_cells", asked(place, CELLS), KIND),
        ("pretrained_decoder", "decoder.widths is [4, 8] (expected [4, 6]", asked(place), KIND | {"widths": [4, 8]}),
        ("pretrained_decoder", "decoder.multihead is True", asked(place), KIND | {"multihead": True}),
        ("checkpoint_arch", "no conv0./.weight", asked(place, HOVER), {"kind": "hovernet"}),
    ]
    other = encoder_record(ENCODER, PLAIN)
    other["spec"] |= {"name": "mean_marker"}
    misfits.append(("pretrained_encoder", "the encoder is mean_marker", asked(place, encoder=other), KIND))
    for code, told, by, decoder in misfits:
        refused(code, told, lambda by=by, decoder=decoder: use_whole(file, decoder, by))
    state = torch.load(file, weights_only=True)["model_state_dict"]
    for name, edited in (("short", state), ("long", state | {"more.weight": torch.zeros(2)})):
        if name == "short":
            edited = {key: value for key, value in state.items() if key != "pixel_classifier.fc1.bias"}
        torch.save({"model_state_dict": edited}, tmp_path / f"{name}.pth")
        refused("checkpoint_keys", "1 ", lambda name=name: use_whole(tmp_path / f"{name}.pth", KIND, asked(place)))
    refused("missing_checkpoint", "none.pth", lambda: use_whole(tmp_path / "none.pth", KIND, asked(place)))
    assert not place.exists(), "nothing is left of what was refused"


# ---- HoVer-Net -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hovernet(tmp_path_factory.mktemp("hovernet") / "hovernet_fast.tar")


def test_a_hovernet_is_given_rgb_from_0_to_1(tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = table("a", "b", "c", "d")
    place = use_whole(tar, {"kind": "hovernet", "mode": "fast"}, asked(tmp_path, HOVER, classes=classes))
    decoder, meta = load_decoder(place)
    assert load_adapter(place) is None
    assert (decoder.heads, meta.n_classes, meta.training["class_order"]) == (HOVER, 5, [0, 1, 2, 3, 4])
    assert meta.training["pretrained"]["arch"] == "HoVer-Net (fast)"
    assert "its numbers are taken for the study's: 1 a, 2 b, 3 c, 4 d" in meta.training["notes"][1]
    wanted = from_published(read_weights(tar).tensors).state_dict()
    own = decoder.state_dict()
    assert set(own) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in own.items())
    given: list[torch.Tensor] = []

    def maps(seen: torch.Tensor) -> dict[str, torch.Tensor]:
        given.append(seen)
        return {head: seen for head in HOVER}

    monkeypatch.setattr(decoder, "maps", maps)
    pixels = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    decoder([], ENCODER.preprocess(pixels, None))
    torch.testing.assert_close(given[0][..., 48:88, 48:88], pixels / 255, rtol=0, atol=1e-6)


def test_classes_of_pannuke_are_put_into_the_studys_order() -> None:
    whole = SimpleNamespace(n_classes=6)
    ours = table("epithelial", "neoplastic", "inflammatory", "connective", "dead")
    order, notes = _classes(whole, ours, Path("pannuke.tar"))  # type: ignore[arg-type]
    assert order == (0, 5, 1, 2, 3, 4)
    assert "taken for PanNuke's" in notes[0]
    order, notes = _classes(whole, table("a", "b", "c", "d", "e"), Path("own.tar"))  # type: ignore[arg-type]
    assert order == (0, 1, 2, 3, 4, 5)
    assert "its numbers are taken for the study's" in notes[0]
    known = table("tumour", "inflammatory", "connective", "dead", "epithelial")  # under PanNuke's own numbers
    assert _classes(whole, known, Path("own.tar"))[0] == (0, 1, 2, 3, 4, 5)  # type: ignore[arg-type]


def test_some_classes_of_pannuke_under_other_numbers_are_not_taken_by_number() -> None:
    ours = table("inflammatory", "tumour", "connective", "dead", "epithelial")
    told = "it names no class Neoplastic; the model has no class tumour"
    whole: Any = SimpleNamespace(n_classes=6)
    refused("pretrained_classes", told, lambda: _classes(whole, ours, Path("pannuke.tar")))


def test_misfits_of_a_hovernet(tar: Path, tmp_path: Path) -> None:
    kind, place = {"kind": "hovernet"}, tmp_path / "taken"
    three = asked(place, HOVER, classes=table("a", "b", "c"))
    refused("pretrained_classes", "the study has 3 classes (expected 4", lambda: use_whole(tar, kind, three))
    original = kind | {"mode": "original"}
    by = asked(place, ("nucleus", "hv"))
    refused("pretrained_decoder", "decoder.mode is original (expected fast", lambda: use_whole(tar, original, by))
    without = hovernet(tmp_path / "kumar.tar", classes=False)
    refused("pretrained_heads", "has no head classes", lambda: use_whole(without, kind, three))
    assert not place.exists()


def test_a_tar_that_is_an_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.add(tmp_path / "w.pth", "w.pth")
    by = asked(tmp_path / "taken", HOVER)
    refused("unreadable_checkpoint", "an archive of files", lambda: use_whole(tmp_path / "w.tar", KIND, by))


# ---- InstanSeg's program ---------------------------------------------------------------------------------------------


def test_a_program_is_kept_beside_the_decoder(tmp_path: Path) -> None:
    file = tmp_path / "brightfield.pt"
    network = program(file, default_seed_threshold=0.6)
    written = use_program(file, asked(tmp_path / "taken"))
    assert [path.name for path in written] == ["decoder.safetensors", "instanseg.pt"]
    assert written[1].read_bytes() == file.read_bytes()
    decoder, meta = load_decoder(written[0])
    adapter = load_adapter(written[0])
    assert adapter is not None
    assert (meta.recipe["torchscript"], meta.recipe["sha256"]) == ("instanseg.pt", file_sha256(file))
    thresholds = {"mask_threshold": 0.53, "seed_threshold": 0.6, "peak_distance_px": 5, "overlap_threshold": 0.3}
    thresholds |= {"window_px": 64, "cleanup": True}
    assert decoder.defaults == meta.training["pretrained"]["published"] == thresholds
    with torch.inference_mode():
        found = decoder([], adapter(image(1, 32)))["instanseg"]
        wanted = network([], image(1, 32).expand(2, 3, 32, 32))["instanseg"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    refused("adapter_channels", "4 channels", lambda: adapter(image(4)))
    refused("adapter_channels", "Name fewer markers in the encoder's 'markers'", lambda: adapter(image(4)))
    assert len(meta.training["notes"]) == 1, "the file says its pixel size"


def test_a_program_that_is_not_the_one_that_was_taken_over_is_not_loaded(tmp_path: Path) -> None:
    written = use_program(saved_program(tiny_program(), tmp_path / "a.pt"), asked(tmp_path / "taken"))
    saved_program(tiny_program(), written[1])
    refused("decoder_file", "is not the program that was taken over", lambda: load_decoder(written[0]))
    written[1].unlink()
    refused("decoder_file", "no file", lambda: load_decoder(written[0]))


def test_a_program_of_any_number_of_channels_gets_them_as_they_are(tmp_path: Path) -> None:
    class Any_(torch.nn.Module):
        """The largest of all channels, through weights of the names of a ChannelNet."""

        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            self.model.AdaptorNet = torch.nn.Conv2d(1, 5, 1)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.model.AdaptorNet(given.amax(1, keepdim=True))

    traced = torch.jit.trace(Any_().eval(), torch.rand(1, 4, 16, 16))
    file = saved_program(Scripted(traced, PixelClassifier(), cells=False), tmp_path / "any.pt")
    written = use_program(file, asked(tmp_path / "taken"))
    decoder, adapter = load_decoder(written[0])[0], load_adapter(written[0])
    assert adapter is not None
    for channels in (1, 3, 7):
        assert adapter(image(channels)).shape[1] == channels
        assert decoder([], adapter(image(channels)))["instanseg"].shape == (2, 5, 24, 24)


def test_misfits_of_a_program(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    file = saved_program(tiny_program(), tmp_path / "a.pt")
    refused("pretrained_heads", "the heads instanseg, instanseg_cells", lambda: use_program(file, asked(place, CELLS)))
    coarse, own = asked(place, grid=GRID | {"mpp_um": 0.25}), asked(place, grid=GRID | {"mpp_um": None})
    told = "0.4 to 0.6 um/px"
    refused("pretrained_resolution", told, lambda: use_program(file, coarse))
    refused("pretrained_resolution", "every image's own pixel size", lambda: use_program(file, own))
    odd = saved_program(tiny_program(default_mask_threshold=1.5), tmp_path / "odd.pt")
    refused("torchscript_model", "mask_threshold = 1.5", lambda: use_program(odd, asked(place)))
    state = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, state)
    refused("unreadable_checkpoint", "no TorchScript program", lambda: use_program(state, asked(place)))
    refused("missing_checkpoint", "none.pt", lambda: use_program(tmp_path / "none.pt", asked(place)))
    assert not place.exists()
    aside = encoder_record(ENCODER, PLAIN.model_copy(update={"off_resolution": True}))
    assert use_program(file, asked(place, grid=GRID | {"mpp_um": 2.0}, encoder=aside))[0].is_file()
