"""Checkpoints: what is read, what is refused, and that nothing a file brings along is ever run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slideloom.encoders.checkpoints import files
from slideloom.encoders.checkpoints.files import check_checksums, check_file, file_sha256, read_header, vector_names
from slideloom.encoders.checkpoints.weights import Weights, load_strict, read_weights
from slideloom.errors import SlideloomError


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def state(width: int = 4) -> dict[str, Tensor]:
    return dict(network(width).state_dict())


def refused(path: Path) -> SlideloomError:
    with pytest.raises(SlideloomError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return caught.value


# ---- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"])
def test_a_state_dict_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state(), path)
    got = read_weights(path)
    assert set(got.tensors) == set(state())
    assert all(torch.equal(got.tensors[key], value) for key, value in state().items())
    assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (got.arch, dict(got.config), got.under, got.path) == ("", {}, "", path)


@pytest.mark.parametrize("under", ["state_dict", "model_state_dict", "model", "teacher", "student"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_within_a_larger_checkpoint(tmp_path: Path, under: str, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3, under: state()}, path, _use_new_zipfile_serialization=zipped)
    got = read_weights(path)
    assert got.under == under
    assert all(torch.equal(got.tensors[key], value) for key, value in state().items())


def test_of_dino_the_teacher_is_taken(tmp_path: Path) -> None:
    """The file as DINO's own program writes it: two networks, and its settings as an argparse.Namespace."""
    teacher = {key: value + 1 for key, value in state().items()}
    settings = argparse.Namespace(arch="vit_small", patch_size=16, lr=0.0005)
    torch.save({"student": state(), "teacher": teacher, "epoch": 1, "args": settings}, tmp_path / "a.pth")
    got = read_weights(tmp_path / "a.pth")
    assert got.under == "teacher"
    assert torch.equal(got.tensors["0.bias"], teacher["0.bias"])


def cellvit_like(**more: Any) -> dict[str, Any]:
    return {
        "arch": "CellViT256",
        "epoch": 129,
        "model_state_dict": state(),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 3e-4}]},
        "scheduler_state_dict": {"last_epoch": 3},
        "best_metric": np.float64(0.75),
        "config": {"data.num_nuclei_classes": 6, "logging.tags": ["Fold-1"], "agent": None},
        "scaler_state_dict": {"scale": 65536.0},
        **more,
    }


def as_numpy(module: str, path: Path) -> None:
    """Let a checkpoint name NumPy's scalars as the given version of NumPy does."""
    with zipfile.ZipFile(path) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts:
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in data or b"cnumpy.core.multiarray\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", f"c{module}\n".encode())
            archive.writestr(name, data)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_are_read_under_both_names(tmp_path: Path, module: str) -> None:
    config = {"lr": np.float64(3e-4), "n": np.int64(6), "on": np.bool_(True), "x": np.float32(0.5), "s": np.str_("µ")}
    path = tmp_path / "a.pth"
    torch.save(cellvit_like(config=config), path)
    as_numpy(module, path)
    got = read_weights(path)
    assert got.arch == "CellViT256"
    assert got.config == {"lr": 3e-4, "n": 6, "on": True, "x": 0.5, "s": "µ"}
    assert {type(value) for value in got.config.values()} == {float, int, bool, str}


def test_big_endian_scalars_keep_their_value(tmp_path: Path) -> None:
    value = np.array(3.25, ">f8")[()]
    torch.save(cellvit_like(config={"x": np.dtype(">f8").type(value)}), tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").config["x"] == 3.25


def test_the_published_settings_come_back(tmp_path: Path, shared: Path) -> None:
    example = json.loads((shared / "fixtures" / "cellvit" / "checkpoint_config_example.json").read_text())
    for number, entry in enumerate(example.values()):
        path = tmp_path / f"{number}.pth"
        torch.save(cellvit_like(**entry), path)
        got = read_weights(path)
        assert got.arch == entry["arch"]
        assert got.config == entry["config"]


def test_settings_become_one_level_of_plain_values(tmp_path: Path) -> None:
    config = {"data": {"folds": (0, 1), "mean": torch.tensor([0.5, 0.25])}, 7: "seven", "type": torch.float16}
    torch.save(cellvit_like(config=config), tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").config == {
        "data.folds": [0, 1],
        "data.mean": [0.5, 0.25],
        "7": "seven",
        "type": "torch.float16",
    }


def test_arch_and_settings_in_safetensors(tmp_path: Path) -> None:
    metadata = {"arch": "CellViT256", "config": json.dumps({"data.num_nuclei_classes": 6})}
    save_file(state(), tmp_path / "a.safetensors", metadata=metadata)
    got = read_weights(tmp_path / "a.safetensors")
    assert (got.arch, got.config) == ("CellViT256", {"data.num_nuclei_classes": 6})


def test_a_compressed_zip_is_read_and_not_mapped(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    got = read_weights(tmp_path / "b.pth")
    assert all(torch.equal(got.tensors[key], value) for key, value in state().items())


def test_the_digest_is_taken_once_while_the_file_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state(), path)
    calls = []
    real = hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *a: calls.append(1) or real(*a))
    first = read_weights(path).sha256
    assert [read_weights(path).sha256, file_sha256(path)] == [first, first]
    assert len(calls) == 1
    save_file({key: value + 1 for key, value in state().items()}, path)
    os.utime(path, ns=(1, 1))
    assert read_weights(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first


# ---- what would run code ------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *words: Any) -> None:
        self.function, self.words = function, words

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.words


def touch(path: Path) -> str:
    return f"touch {path}"


def hostile(sentinel: Path) -> dict[str, tuple[Any, str]]:
    """What a checkpoint could hold, and the name that the refusal must tell."""
    system = Call(os.system, touch(sentinel))
    return {
        "top": (system, "posix.system"),
        "among the weights": (state() | {"extra": system}, "posix.system"),
        "in the settings": (cellvit_like(config={"data": {"deep": [1, (system,)]}}), "posix.system"),
        "best metric": (cellvit_like(best_metric=Call(eval, f"open({str(sentinel)!r}, 'w')")), "eval"),
        "builtin": (cellvit_like(x=Call(exec, f"open({str(sentinel)!r}, 'w')")), "exec"),
        "attribute": (cellvit_like(x=Call(getattr, 1, "real")), "getattr"),
        "module": (network(), "torch.nn.modules.container.Sequential"),
        "module in it": (cellvit_like(model=network()), "torch.nn.modules.container.Sequential"),
        "object array": (cellvit_like(best_metric=np.array([system], dtype=object)), "multiarray._reconstruct"),
        "array": (cellvit_like(best_metric=np.zeros(3)), "multiarray._reconstruct"),
        "class": (cellvit_like(x=Path("a")), "pathlib"),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", sorted(hostile(Path("x"))))
def test_nothing_of_a_file_is_run(tmp_path: Path, case: str, zipped: bool) -> None:
    sentinel = tmp_path / "ran"
    content, told = hostile(sentinel)[case]
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    error = refused(path)
    assert error.code == "unsafe_checkpoint"
    assert told in error.what
    assert "Nothing of it was run" in error.hint
    assert not sentinel.exists()


def test_the_hostile_files_do_run_elsewhere(tmp_path: Path) -> None:
    """The tests above prove something only if these files are dangerous: read carelessly, they act."""
    sentinel = tmp_path / "ran"
    torch.save(hostile(sentinel)["in the settings"][0], tmp_path / "a.pth")
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert sentinel.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    sentinel = tmp_path / "ran"
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": Call(os.system, touch(sentinel))}, protocol=protocol))
    assert refused(tmp_path / "a.pth").code == "unsafe_checkpoint"
    assert not sentinel.exists()


class Word:
    """Pickles as a name alone, or as a call of it with these words, or with a state on top."""

    def __init__(self, module: str, name: str, *words: Any, state: Any = None) -> None:
        self.module, self.name, self.words, self.state = module, name, words, state


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes names that need not exist here."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _word(self, word: Word) -> None:
        self.write(b"c" + word.module.encode() + b"\n" + word.name.encode() + b"\n")
        self.save(word.words)
        self.write(pickle.REDUCE)
        if word.state is not None:
            self.save(word.state)
            self.write(pickle.BUILD)

    dispatch[Word] = _word


def write_raw(path: Path, content: Any) -> None:
    """A PyTorch zip file whose pickle is written by hand."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            with archive.open(name, "w") as handle:
                if name.endswith("data.pkl"):
                    _Pickler(handle, 2).dump(content)
                else:
                    handle.write(data)


def number(*kind: Any, state: Any = None, raw: Any = b"12345678") -> Word:
    dtype = Word("numpy", "dtype", *kind, state=state)
    return Word("numpy.core.multiarray", "scalar", dtype, raw)


FINE = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "value",
    [
        number("O8", False, True, state=(3, "|", None, None, None, -1, -1, 63)),
        number("V8", False, True, state=(3, "|", None, ("a",), {"a": (1, 0)}, 8, 1, 27)),
        number("f8", False, True, state=(3, "<f8, O", None, None, None, -1, -1, 63)),
        number("f8", False, True, state={"elsize": 1 << 40}),
        number("f8", False, True, state=FINE, raw=b"1234"),
        number("f8", False, True, state=FINE, raw=[object]),
        number(("f8", "O"), False, True, state=FINE),
        number("M8[ns]", False, True, state=FINE),
        Word("numpy.core.multiarray", "scalar", "f8", b"12345678"),
        Word("numpy", "dtype", Word("numpy", "dtype", "f8")),
        Word("argparse", "Namespace", state=[1]),
        Word("argparse", "ArgumentParser"),
        Word("slideloom.encoders.checkpoints.safe_pickle", "Settings"),
    ],
    ids=lambda word: f"{word.name}{word.words!r:.20}",
)
def test_what_only_looks_like_a_harmless_value_is_refused(tmp_path: Path, value: Word) -> None:
    write_raw(tmp_path / "a.pth", {"model": {}, "best_metric": value})
    assert refused(tmp_path / "a.pth").code in {"unsafe_checkpoint", "unreadable_checkpoint"}


def test_the_hand_written_files_are_right_otherwise(tmp_path: Path) -> None:
    raw = np.float64(2.5).tobytes()
    write_raw(tmp_path / "a.pth", {"config": {"x": number("f8", False, True, state=FINE, raw=raw)}})
    assert "no state dict but config" in refused(tmp_path / "a.pth").what


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    error = refused(tmp_path / "a.pt")
    assert (error.code, "TorchScript" in error.what) == ("unsafe_checkpoint", True)


def test_the_door_is_closed_again(tmp_path: Path) -> None:
    """What is let in for one file is let in nowhere else, also when several are read at once."""
    before = set(torch.serialization.get_safe_globals())
    torch.save(cellvit_like(), tmp_path / "a.pth")
    failures = []

    def read() -> None:
        try:
            read_weights(tmp_path / "a.pth")
        except SlideloomError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


# ---- what is not a whole checkpoint -------------------------------------------------------------------------------


def written(tmp_path: Path, name: str, data: bytes) -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 187000000\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (POINTER, "pointer of git-lfs"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b"just a text", "neither a safetensors nor a PyTorch file"),
        (b"\0" * 100, "neither a safetensors nor a PyTorch file"),
    ],
)
def test_what_lies_there_instead_is_named(tmp_path: Path, suffix: str, data: bytes, told: str) -> None:
    error = refused(written(tmp_path, f"a{suffix}", data))
    assert error.code == "unreadable_checkpoint"
    assert told in error.what
    assert error.hint


def test_missing_folder_and_wrong_suffix(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.pth").code == "missing_checkpoint"
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.pth").what
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "b.pth")
    assert ".safetensors" in refused(Path(shutil.copy(tmp_path / "a.safetensors", tmp_path / "c.pth"))).hint
    assert ".pth" in refused(Path(shutil.copy(tmp_path / "b.pth", tmp_path / "d.safetensors"))).hint
    assert "suffix '.h5'" in refused(Path(shutil.copy(tmp_path / "b.pth", tmp_path / "e.h5"))).what


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short_is_never_taken_for_whole(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(state(64), path)
    else:
        torch.save(state(64), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    error = refused(path)
    assert error.code == "unreadable_checkpoint"
    assert "Copy it again" in error.hint


def header_of(body: dict[str, Any] | str, data: bytes = b"\0" * 8) -> bytes:
    text = (body if isinstance(body, str) else json.dumps(body)).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        header_of({"a": F32}, b"\0" * 7),
        header_of({"a": F32}, b"\0" * 9),
        header_of({"a": {**F32, "shape": [3]}}),
        header_of({"a": {**F32, "data_offsets": [0, 4]}}),
        header_of({"a": F32, "b": F32}),
        header_of('{"a": %s, "a": %s}' % ((json.dumps(F32),) * 2)),
        header_of({"a": {**F32, "data_offsets": "08"}}),
        header_of({"a": 3}),
        header_of('{"a": '),
        (1 << 40).to_bytes(8, "little") + b"{}",
    ],
    ids=["short", "long", "shape", "gap", "shared", "twice", "offsets", "number", "json", "huge"],
)
def test_a_damaged_header_is_told(tmp_path: Path, data: bytes) -> None:
    assert refused(written(tmp_path, "a.safetensors", data)).code == "unreadable_checkpoint"


def test_a_header_lists_without_reading(tmp_path: Path) -> None:
    save_file(state() | {"half": torch.zeros(2, 0, 3, dtype=torch.float16)}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert {name: entry.shape for name, entry in header.entries.items()} == {
        **{name: tuple(value.shape) for name, value in state().items()},
        "half": (2, 0, 3),
    }
    assert header.entries["half"].dtype == "F16"


def test_checksums_find_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state(64), path)
    check_checksums(path)
    values = state(64)["0.weight"].numpy().tobytes()
    whole = bytearray(path.read_bytes())
    whole[whole.index(values) + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SlideloomError, match="checksum"):
        check_checksums(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3}, "no state dict but epoch"),
        ({}, "no state dict but nothing"),
        ([1, 2], "no state dict but list"),
        (torch.zeros(2), "no state dict but"),
        (state() | {"version": 3}, "no named tensors: version"),
        (state() | {7: torch.zeros(1)}, "no named tensors: 7"),
        ({"model": state() | {"step": 3}}, "no named tensors: step"),
    ],
)
def test_what_holds_no_state_dict(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    error = refused(tmp_path / "a.pth")
    assert error.code == "unreadable_checkpoint"
    assert told in error.what


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    assert "without weights of PyTorch" in refused((tmp_path / "a.npz").rename(tmp_path / "a.pth")).what


def test_names_of_vectors(tmp_path: Path) -> None:
    folder = tmp_path / "esm"
    folder.mkdir()
    for name in ("P08575", "P08575-4"):
        torch.save(torch.zeros(640), folder / f"{name}.pt")
    (folder / "README.md").touch()
    save_file({"P62736": torch.zeros(640)}, tmp_path / "esm.safetensors")
    assert vector_names(folder) == {"P08575", "P08575-4"}
    assert vector_names(tmp_path / "esm.safetensors") == {"P62736"}
    (tmp_path / "none").mkdir()
    for place in (tmp_path / "none", tmp_path / "absent", folder / "P08575.pt"):
        with pytest.raises(SlideloomError):
            vector_names(place)


# ---- every key accounted for --------------------------------------------------------------------------------------


def weights_of(tensors: dict[str, Tensor], arch: str = "") -> Weights:
    return Weights(tensors, "0" * 64, Path("w.pth"), arch)


def test_strict_loading_is_exact() -> None:
    wanted = {key: value + 1 for key, value in state().items()}
    for module in (network(), network().to("meta")):
        extra = {"head.weight": torch.zeros(2), "headless": torch.zeros(1)}
        assert load_strict(module, weights_of(wanted | {"head.weight": extra["head.weight"]}), "m", ["head"]) == (
            "head.weight",
        )
        assert all(torch.equal(module.state_dict()[key], value) for key, value in wanted.items())
        with pytest.raises(SlideloomError, match="1 unexpected: headless"):
            load_strict(module, weights_of(wanted | extra), "m", ["head"])


def test_a_module_on_the_meta_device_takes_the_tensors_themselves() -> None:
    given = state()
    module = network().to("meta")
    load_strict(module, weights_of(given), "m")
    for name, value in module.state_dict().items():
        assert value.data_ptr() == given[name].data_ptr()
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("meta", [True, False])
def test_other_precisions_become_float32(kind: torch.dtype, meta: bool) -> None:
    given = {key: value.to(kind) if value.is_floating_point() else value for key, value in state().items()}
    module = network().to("meta") if meta else network()
    load_strict(module, weights_of(given), "m")
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32, torch.int64}
    assert all(torch.equal(value, given[key].to(value.dtype)) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"0.weight": None}, "1 missing: 0.weight"),
        ({"0.gamma": torch.zeros(1)}, "1 unexpected: 0.gamma"),
        ({"0.weight": torch.zeros(3, 4)}, "0.weight (3, 4) instead of (4, 3)"),
        ({"0.weight": torch.zeros(4, 3, dtype=torch.int8)}, "0.weight torch.int8 instead of torch.float32"),
        ({"0.weight": torch.zeros(4, 3, dtype=torch.complex64)}, "torch.complex64 instead of"),
        ({"0.weight": torch.zeros(4, 3).to_sparse()}, "0.weight is quantised or sparse"),
        ({"1.num_batches_tracked": torch.zeros(())}, "torch.float32 instead of torch.int64"),
    ],
)
def test_every_misfit_is_told_and_nothing_is_loaded(change: dict[str, Tensor | None], told: str) -> None:
    given = {key: value for key, value in (state() | change).items() if value is not None}
    module = network()
    nn.init.ones_(module.get_parameter("0.bias"))
    with pytest.raises(SlideloomError) as caught:
        load_strict(module, weights_of(given, arch="CellViT256"), "cellvit/vit256")
    assert caught.value.code == "checkpoint_keys"
    assert caught.value.where == "cellvit/vit256"
    assert told in caught.value.what
    assert "says that it is a CellViT256" in caught.value.what
    assert torch.equal(module.get_parameter("0.bias"), torch.ones(4))


def test_renamed_tensors_keep_their_origin(tmp_path: Path) -> None:
    torch.save({"model": {f"backbone.{key}": value for key, value in state().items()}}, tmp_path / "a.pth")
    got = read_weights(tmp_path / "a.pth")
    renamed = replace(got, tensors={key.removeprefix("backbone."): value for key, value in got.tensors.items()})
    assert load_strict(network(), renamed, "m") == ()
    assert renamed.sha256 == got.sha256


def test_kinds_of_files(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "b.pth")
    torch.save(state(), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert [check_file(path) for path in sorted(tmp_path.iterdir())] == ["safetensors", "zip", "pickle"]
