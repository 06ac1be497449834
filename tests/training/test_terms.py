from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slideloom.config.learning import Head, HeadLossConfig, LossConfig
from slideloom.errors import SlideloomError
from slideloom.patches.hv import boundary_map, hv_map
from slideloom.training import losses
from slideloom.training.distance_targets import instance_distance
from slideloom.training.history import HISTORY
from slideloom.training.terms import TERMS, class_weights, terms_of, total_loss

HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes", "boundary", "distance", "three_class")
#: Every term but InstanSeg's, which are drawn, and have tests of their own.
PLAIN = [term for term in TERMS if not term.startswith("instanseg")]


def head_of(term: str) -> Head:
    (head,) = [head for head in HEADS if term.startswith(f"{head}_")]
    return head


def case(seed: int = 0) -> tuple[dict[Head, Tensor], dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    outputs: dict[Head, Tensor] = {
        "nucleus": torch.randn((3, 2, 16, 16), generator=drawn),
        "hv": torch.randn((3, 2, 16, 16), generator=drawn),
        "classes": torch.randn((3, 4, 16, 16), generator=drawn),
        "boundary": torch.randn((3, 1, 16, 16), generator=drawn),
        "distance": torch.randn((3, 1, 16, 16), generator=drawn),
        "three_class": torch.randn((3, 3, 16, 16), generator=drawn),
    }
    classes = torch.randint(0, 4, (3, 16, 16), generator=drawn, dtype=torch.uint8)
    classes[0, :4] = 255
    valid = torch.ones((3, 16, 16), dtype=torch.bool)
    valid[1, 10:] = False
    targets = {
        "valid": valid,
        "nucleus": (classes > 0).to(torch.uint8),
        "classes": classes,
        "hv": torch.randint(-127, 128, (3, 2, 16, 16), generator=drawn).to(torch.int8),
        "boundary": torch.randint(0, 2, (3, 16, 16), generator=drawn, dtype=torch.uint8),
        "distance": torch.rand((3, 16, 16), generator=drawn) * (classes > 0),
    }
    return outputs, targets


#: Every term that there is, all at weight 1.
FULL = HeadLossConfig(
    cross_entropy=1, dice=1, focal=1, tversky=1, focal_tversky=1, lovasz_softmax=1, lovasz_hinge=1
)  # fmt: skip
EVERY = LossConfig(
    hv_mse=1,
    hv_msge=1,
    heads={"nucleus": FULL, "classes": FULL.model_copy(update={"lovasz_hinge": 0.0}), "boundary": FULL},
)
ORIGINAL = EVERY.model_copy(update={"original": True})
#: Terms at weights above 0 in the default config.
DEFAULT = {
    *(f"{head}_{name}" for head in ("nucleus", "classes") for name in ("cross_entropy", "dice", "focal_tversky")),
    *("hv_mse", "hv_msge", "boundary_cross_entropy", "boundary_dice"),
    *("distance_l1", "three_class_cross_entropy", "three_class_dice"),
}


def only(term: str, **changes: Any) -> LossConfig:
    """A config in which one term of its head alone has a weight; three_class has one weight for both of its own."""
    head = head_of(term)
    name = term.removeprefix(f"{head}_")
    if head in ("distance", "three_class"):
        return LossConfig(**changes)
    if head == "hv":
        return LossConfig(**{"hv_mse": 0, "hv_msge": 0, term: 1} | changes)
    heads = {head: HeadLossConfig(**{name: 1})}
    return LossConfig(heads=heads, **changes)  # type: ignore[arg-type]


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    outputs, targets = case()
    config = LossConfig(boundary=0.7, hv_msge=3, lovasz_hinge=0.1)
    loss, terms = total_loss(outputs, targets, config)
    weights = terms_of(HEADS, config)
    assert set(terms) == set(weights) == DEFAULT | {"nucleus_lovasz_hinge"}
    assert list(weights) == [term for term in TERMS if term in weights]
    assert loss.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in terms), rel=1e-6)
    assert weights["classes_dice"] == 0.4
    assert weights["hv_msge"] == 3
    assert weights["boundary_dice"] == weights["boundary_cross_entropy"] == 0.7


@pytest.mark.parametrize("heads", [h for n in (1, 2) for h in itertools.combinations(HEADS, n)])
def test_each_head_brings_its_own_terms_only(heads: tuple[Head, ...]) -> None:
    outputs, targets = case()
    kept = {head: outputs[head] for head in heads}
    needed = {name: targets[name] for name in ("valid", "nucleus", *heads) if name != "three_class"}
    if "three_class" in heads:
        needed["boundary"] = targets["boundary"]
    _, terms = total_loss(kept, needed, EVERY)
    assert set(terms) == {term for term in PLAIN if head_of(term) in heads}


def test_a_heads_own_weights_stand_for_all_the_common_ones() -> None:
    config = LossConfig(
        dice=0.9, boundary=0.7, heads={"nucleus": HeadLossConfig(lovasz_hinge=2), "boundary": HeadLossConfig(focal=0.5)}
    )
    assert terms_of(("nucleus", "boundary"), config) == {"nucleus_lovasz_hinge": 2, "boundary_focal": 0.5}
    assert terms_of(("classes",), config)["classes_dice"] == 0.9


def test_the_common_hinge_is_the_nucleus_heads_and_a_hinge_of_classes_is_refused() -> None:
    assert set(terms_of(("nucleus", "classes"), LossConfig(lovasz_hinge=1))) - DEFAULT == {"nucleus_lovasz_hinge"}
    config = LossConfig(heads={"classes": HeadLossConfig(dice=1, lovasz_hinge=0.1)})
    with pytest.raises(SlideloomError, match="classes head cannot have the loss lovasz_hinge") as caught:
        terms_of(("nucleus",), config)
    assert caught.value.code == "loss_term"
    only_hinge = LossConfig(cross_entropy=0, dice=0, focal_tversky=0, lovasz_hinge=1)
    assert set(terms_of(("nucleus",), only_hinge)) == {"nucleus_lovasz_hinge"}
    with pytest.raises(SlideloomError, match="head 'classes'") as caught:
        terms_of(("nucleus", "classes"), only_hinge)
    assert caught.value.code == "no_loss"


def test_history_has_a_column_for_every_term() -> None:
    assert {f"train_{term}" for term in TERMS} <= set(HISTORY.names)
    # of the HV maps' squared error the pooled score is kept
    assert {f"val_{term}" for term in TERMS} <= set(HISTORY.names)
    assert len(set(HISTORY.names)) == len(HISTORY.names)


@pytest.mark.parametrize("config", [EVERY, ORIGINAL], ids=["right", "original"])
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 99), st.integers(0, 15), st.integers(0, 15), st.integers(1, 16), st.integers(1, 16))
def test_what_is_not_valid_leaves_no_trace(
    config: LossConfig, seed: int, top: int, left: int, height: int, width: int
) -> None:
    inside = (..., slice(top, top + height), slice(left, left + width))
    outputs, targets = case(seed)
    targets["valid"] = torch.ones_like(targets["valid"])
    cropped = {head: output[inside].double().requires_grad_() for head, output in outputs.items()}
    wanted, wanted_terms = total_loss(cropped, {name: values[inside] for name, values in targets.items()}, config)
    wanted.backward()  # type: ignore[no-untyped-call]
    valid = torch.zeros_like(targets["valid"])
    valid[inside] = True
    spoilt = {head: output.double().masked_fill(~valid[:, None], float("nan")) for head, output in outputs.items()}
    for output in spoilt.values():
        output.requires_grad_()
    noise = {name: values.masked_fill(~(valid if values.dim() == 3 else valid[:, None]), 1 if name == "nucleus" else 99)
             for name, values in targets.items() if name != "valid"}  # fmt: skip
    loss, terms = total_loss(spoilt, noise | {"valid": valid}, config)
    loss.backward()  # type: ignore[no-untyped-call]
    for term in PLAIN:
        assert terms[term].item() == pytest.approx(wanted_terms[term].item(), rel=1e-9, abs=1e-12)
    for head, output in spoilt.items():
        gradient, expected = output.grad, cropped[head].grad
        assert gradient is not None
        assert expected is not None
        assert torch.allclose(gradient[inside], expected, rtol=1e-7, atol=1e-12)
        assert not gradient.masked_fill(valid[:, None], 0).any()


@pytest.mark.parametrize("config", [EVERY, ORIGINAL], ids=["right", "original"])
def test_no_usable_pixel_is_no_loss_and_no_pull(config: LossConfig) -> None:
    outputs, targets = case()
    maps = {head: output.requires_grad_() for head, output in outputs.items()}
    loss, terms = total_loss(maps, targets | {"valid": torch.zeros_like(targets["valid"])}, config)
    loss.backward()  # type: ignore[no-untyped-call]
    assert {term: value.item() for term, value in terms.items()} == dict.fromkeys(PLAIN, 0)
    assert not any(output.grad.any() for output in maps.values() if output.grad is not None)


def test_a_batch_without_nuclei_loses_nothing_by_their_overlap() -> None:
    outputs, targets = case()
    empty = {name: torch.zeros_like(values) for name, values in targets.items()} | {"valid": targets["valid"]}
    overlaps = ("nucleus_tversky", "nucleus_focal_tversky", "nucleus_lovasz_hinge", "hv_msge",
                "boundary_dice", "boundary_tversky", "boundary_focal_tversky", "boundary_lovasz_softmax",
                "boundary_lovasz_hinge")  # fmt: skip
    for term in PLAIN:
        head = head_of(term)
        output = outputs[head].clone().requires_grad_()  # type: ignore[index]
        loss, _ = total_loss({head: output}, empty, only(term))  # type: ignore[dict-item]
        loss.backward()  # type: ignore[no-untyped-call]
        assert output.grad is not None
        assert (loss.item() == 0) == (not output.grad.any()) == (term in overlaps), term


@pytest.mark.parametrize("config", [EVERY, ORIGINAL], ids=["right", "original"])
@pytest.mark.parametrize(("scale", "dtype"), [(1e30, torch.float32), (60000, torch.float16), (1e30, torch.bfloat16)])
def test_extreme_logits_have_finite_losses_and_slopes(config: LossConfig, scale: float, dtype: torch.dtype) -> None:
    drawn, targets = case()
    for right in (True, False):
        outputs = dict(drawn)
        for head, k in (("nucleus", 2), ("classes", 4)):
            label = targets[head].long() % k if right else (targets[head].long() + 1) % k
            one_hot = torch.nn.functional.one_hot(label, k).permute(0, 3, 1, 2)
            outputs[head] = (one_hot * 2 - 1) * scale  # type: ignore[index]
        outputs["boundary"] = ((targets["boundary"][:, None] == int(right)) * 2 - 1) * float(scale)
        maps = {head: output.to(dtype).requires_grad_() for head, output in outputs.items()}
        loss, terms = total_loss(maps, targets, config)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(torch.isfinite(value) for value in terms.values()), terms
        assert all(torch.isfinite(output.grad).all() for output in maps.values() if output.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_computed_in_single(dtype: torch.dtype) -> None:
    outputs, targets = case()
    halves = {head: output.to(dtype) for head, output in outputs.items()}
    _, got = total_loss(halves, targets, EVERY)
    _, wanted = total_loss({head: output.float() for head, output in halves.items()}, targets, EVERY)
    assert got == wanted


def test_nan_reaches_the_loss_from_wherever_it_counts() -> None:
    outputs, targets = case()
    n, y, x = torch.nonzero((targets["nucleus"] > 0) & targets["valid"] & (targets["classes"] != 255))[0].tolist()
    for term in PLAIN:
        head = head_of(term)
        output = outputs[head].clone()  # type: ignore[index]
        output[n, 0, y, x] = float("nan")
        loss, terms = total_loss({head: output}, targets, only(term))  # type: ignore[dict-item]
        assert torch.isnan(loss), term
        assert torch.isnan(terms[term])


def test_a_class_without_a_weight_does_not_pull_at_the_cross_entropy() -> None:
    outputs, targets = case()
    targets["classes"] = torch.full_like(targets["classes"], 2)
    output = outputs["classes"].requires_grad_()
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])  # class 2 is absent from the training, and all that this batch holds
    loss, _ = total_loss({"classes": output}, targets, only("classes_cross_entropy"), weights)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


def test_the_published_total_and_its_gradients_are_met_in_original_mode(shared: Path) -> None:
    folder = shared / "fixtures/cellvit"
    expected = json.loads((folder / "losses.json").read_text())
    with np.load(folder / "losses_inputs.npz") as stored:
        inputs = {name: torch.from_numpy(stored[name]) for name in stored}
    wanted = expected["TOTAL/as trained (paper weights)"]
    names = {"nucleus": "bin_logits", "hv": "hv_pred", "classes": "type_logits"}
    outputs: dict[Head, Tensor] = {
        head: inputs[name].clone().requires_grad_()
        for head, name in names.items()  # type: ignore[misc]
    }
    nucleus = (inputs["inst_map"] > 0).long()
    targets = {
        "nucleus": nucleus,
        "classes": inputs["type_map"],
        "hv": inputs["hv_gt"],
        "valid": torch.ones_like(nucleus),
    }
    # docs/decisions/0009
    published = LossConfig.model_validate(yaml.safe_load("""
        original: true
        hv_mse: 2.5
        hv_msge: 8
        heads:
          nucleus: {dice: 1, focal_tversky: 1}
          classes: {cross_entropy: 0.5, dice: 0.2, focal_tversky: 0.5}
    """))  # fmt: skip
    loss, terms = total_loss(outputs, targets, published)
    loss.backward()  # type: ignore[no-untyped-call]
    tissue = 0.1 * expected["CrossEntropyLoss/tissue"]["value"]  # a head that Slideloom does not have
    assert loss.item() + tissue == pytest.approx(wanted["value"], rel=1e-5)
    for output, norm in zip(outputs.values(), wanted["grad_l2_wrt_raw_input"], strict=False):
        assert output.grad is not None
        assert output.grad.norm().item() == pytest.approx(norm, rel=1e-5)
    singles = {
        "nucleus_dice": "dice_loss/binary(probs)",
        "nucleus_focal_tversky": "FocalTverskyLoss/binary(probs: as trained)",
        "hv_mse": "mse_loss_maps/hv",
        "hv_msge": "msge_loss_maps/hv(focus=binary one-hot)",
        "classes_cross_entropy": "xentropy_loss/type(probs)",
        "classes_dice": "dice_loss/type(probs)",
        "classes_focal_tversky": "MCFocalTverskyLoss/type(probs: as trained)",
    }
    assert set(terms) == set(singles)
    for term, name in singles.items():
        assert terms[term].item() == pytest.approx(expected[name]["value"], rel=1e-5)
    _, more = total_loss({"nucleus": outputs["nucleus"]}, targets, only("nucleus_cross_entropy", original=True))
    name = "xentropy_loss/binary(probs)"
    assert more["nucleus_cross_entropy"].item() == pytest.approx(expected[name]["value"], rel=1e-5)


def test_original_changes_what_cellvit_has_and_nothing_else() -> None:
    outputs, targets = case()
    _, right = total_loss(outputs, targets, EVERY)
    _, original = total_loss(outputs, targets, ORIGINAL)
    changed = {term for term in PLAIN if abs(right[term] - original[term]) > 1e-6}
    assert changed == {
        *(f"{head}_{name}" for head in ("nucleus", "classes") for name in ("dice", "focal_tversky")),
        "hv_msge",
    }  # cross-entropy differs at extreme logits only


def test_exponents_come_from_the_config() -> None:
    outputs, targets = case()
    _, before = total_loss(outputs, targets, EVERY)
    for change, moved in (
        ({"focal_gamma": 1.0}, {"focal"}),
        ({"tversky_alpha": 0.2}, {"tversky", "focal_tversky"}),
        ({"tversky_beta": 0.9}, {"tversky", "focal_tversky"}),
        ({"tversky_gamma": 0.75}, {"focal_tversky"}),
    ):
        _, after = total_loss(outputs, targets, EVERY.model_copy(update=change))
        assert {term.removeprefix(f"{head_of(term)}_") for term in PLAIN if before[term] != after[term]} == moved


def discs() -> dict[str, Tensor]:
    """Targets of two tiles with round nuclei of three classes."""
    ids, kinds = np.zeros((16, 32), np.int32), np.zeros((16, 32), np.uint8)
    y, x = np.mgrid[:16, :32]
    for number, (row, column, radius) in enumerate(
        [(5, 5, 4), (11, 12, 3.5), (4, 14, 2.5), (6, 22, 4.5), (12, 29, 3)], start=1
    ):
        disc = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        ids[disc], kinds[disc] = number, number % 3 + 1
    maps = {"nucleus": ids > 0, "classes": kinds, "hv": hv_map(ids), "boundary": boundary_map(ids)}
    maps["distance"] = np.hstack(list(instance_distance(np.stack([ids[:, :16], ids[:, 16:]]))))
    tiles = {name: np.stack([values[..., :16], values[..., 16:]]) for name, values in maps.items()}
    targets = {name: torch.from_numpy(values) for name, values in tiles.items()}
    targets["nucleus"] = targets["nucleus"].to(torch.uint8)
    return targets | {"valid": torch.ones((2, 16, 16), dtype=torch.bool)}


def descend(term: str, config: LossConfig, targets: dict[str, Tensor]) -> tuple[float, Tensor]:
    """The loss that free maps of a head come down to, and the maps."""
    head: Any = head_of(term)
    channels = {"nucleus": 2, "hv": 2, "classes": 4, "boundary": 1, "distance": 1, "three_class": 3}[head]
    drawn = torch.Generator().manual_seed(0)
    output = (0.1 * torch.randn((2, channels, 16, 16), generator=drawn)).requires_grad_()
    optimiser = torch.optim.Adam([output], lr=0.3)
    for _ in range(150):
        optimiser.zero_grad()
        loss, _ = total_loss({head: output}, targets, config)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return loss.item(), output.detach()


@pytest.mark.parametrize("term", PLAIN)
def test_each_term_alone_drives_two_tiles_to_their_targets(term: str) -> None:
    targets = discs()
    loss, output = descend(term, only(term), targets)
    assert loss < 0.01
    head = head_of(term)
    if head == "boundary":
        assert torch.equal(output[:, 0] > 0, targets["boundary"].bool())
    elif head == "distance":
        assert (output[:, 0].sigmoid() - targets["distance"]).abs().max() < 0.05
    elif head == "three_class":
        wanted = torch.where(targets["boundary"] > 0, 2, targets["nucleus"])
        assert torch.equal(output.argmax(1), wanted.long())
    elif head != "hv":
        assert torch.equal(output.argmax(1), targets[head].long())
    elif term == "hv_mse":
        assert (output - targets["hv"]).abs().max() < 0.05


@pytest.mark.parametrize("term", [f"{head}_{name}" for head in ("nucleus", "classes")
                                  for name in ("cross_entropy", "dice", "focal_tversky")])  # fmt: skip
def test_each_original_term_finds_the_targets_as_well(term: str) -> None:
    targets = discs()
    loss, output = descend(term, only(term, original=True), targets)
    head = head_of(term)
    assert torch.equal(output.argmax(1), targets[head].long())
    if term == "nucleus_focal_tversky":  # the second softmax never gets beyond e / (e + 1)
        assert loss == pytest.approx((1 - np.e / (np.e + 1)) ** (4 / 3), rel=0.02)


def test_pixels_of_unknown_class_count_for_the_nucleus_but_not_for_the_class() -> None:
    outputs, targets = case()
    _, before = total_loss(outputs, targets, EVERY)
    outputs["classes"][0, :, :4] += torch.randn((4, 4, 16))
    _, after = total_loss(outputs, targets, EVERY)
    assert all(before[term] == after[term] for term in PLAIN)
    outputs["nucleus"][0, 1, :4] += 3
    _, moved = total_loss(outputs, targets, EVERY)
    assert all((before[term] != moved[term]) == term.startswith("nucleus") for term in PLAIN)


def test_stored_hv_is_read_as_its_127th() -> None:
    outputs, targets = case()
    _, terms = total_loss(outputs, targets, LossConfig())
    wanted = losses.hv_mse(outputs["hv"], targets["hv"].float() / 127, targets["valid"])
    assert terms["hv_mse"].item() == pytest.approx(wanted.item(), rel=1e-6)
    _, same = total_loss(outputs, targets | {"hv": targets["hv"].float() / 127}, LossConfig())
    assert same["hv_msge"].item() == pytest.approx(terms["hv_msge"].item(), rel=1e-6)


def test_class_weights_reach_the_class_heads_cross_entropy_only() -> None:
    outputs, targets = case()
    _, plain = total_loss(outputs, targets, EVERY)
    _, weighted = total_loss(outputs, targets, EVERY, torch.tensor([0.1, 1.0, 2.0, 0.9]))
    assert {term for term in PLAIN if plain[term] != weighted[term]} == {"classes_cross_entropy"}


def test_a_term_of_weight_0_is_not_computed_and_a_head_without_terms_is_refused() -> None:
    outputs, targets = case()
    _, terms = total_loss(outputs, targets, LossConfig(focal_tversky=0, hv_mse=0))
    assert DEFAULT - set(terms) == {"nucleus_focal_tversky", "classes_focal_tversky", "hv_mse"}
    with pytest.raises(SlideloomError, match="head 'hv'") as caught:
        terms_of(("nucleus", "hv"), LossConfig(hv_mse=0, hv_msge=0))
    assert caught.value.code == "no_loss"
    with pytest.raises(SlideloomError, match="head 'classes'") as caught:
        terms_of(("classes",), LossConfig(heads={"classes": HeadLossConfig()}))
    assert caught.value.code == "no_loss"
    assert caught.value.where == "loss.heads.classes"


def test_descending_the_loss_finds_the_target() -> None:
    outputs, targets = case()
    maps = {head: output.clone().requires_grad_() for head, output in outputs.items()}
    optimiser = torch.optim.Adam(maps.values(), lr=0.2)
    for _ in range(100):
        optimiser.zero_grad()
        loss, _ = total_loss(maps, targets, LossConfig())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    usable = targets["valid"] & (targets["classes"] != 255)
    assert (maps["classes"].argmax(1) == targets["classes"])[usable].all()
    assert (maps["nucleus"].argmax(1) == targets["nucleus"])[targets["valid"]].all()
    assert ((maps["boundary"][:, 0] > 0) == targets["boundary"].bool())[targets["valid"]].all()
    error = (maps["hv"] - targets["hv"] / 127).abs() * targets["valid"][:, None]
    assert error.mean() < 0.04


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_class_weights_have_mean_1_fall_with_frequency_and_stay_bounded(pixels: list[int]) -> None:
    weights = class_weights(pixels)
    counts = np.asarray(pixels)
    assert (weights[counts == 0] == 0).all()
    present = weights[counts > 0]
    if present.size:
        assert present.mean() == pytest.approx(1, rel=1e-5)
        assert present.max() <= 20.001 * present.min()
        order = np.argsort(counts[counts > 0], kind="stable")
        assert (np.diff(present[order]) <= 1e-6).all()


def test_class_weights_go_with_the_inverse_root() -> None:
    weights = class_weights([10000, 2500, 400])
    assert weights / weights[0] == pytest.approx([1, 2, 5])
