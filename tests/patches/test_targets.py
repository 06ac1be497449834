from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideloom.patches.hv import boundary_map, hv_map
from slideloom.patches.target_store import TargetStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.annotations import slide_annotations
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("a", "b"), ((0, 0, 0),) * 2)


def _nuclei(height, width, seed=0, count=12):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    y, x = np.ogrid[:height, :width]
    for number in range(1, count + 1):
        cy, cx, radius = rng.integers(0, height), rng.integers(0, width), rng.integers(2, 7)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = number * 1000
    return labels


def _targets(slide, store, classes=CLASSES):
    place = slide.root / "targets.zarr"
    assert cut_targets(slide.row, slide.root, slide.facts, store, classes, place)
    return TargetStore(place)


@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    tile=st.integers(8, 24),
    seed=st.integers(0, 99),
    mpp_um=st.sampled_from([None, 1.0, 0.9]),
    data=st.data(),
)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_targets_are_crops_of_slide_level_maps(make_slide, size, tile, seed, mpp_um, data):
    stride = data.draw(st.integers(5, tile))
    slide = make_slide(sp=np.zeros((1, *size), np.uint8), instances=_nuclei(*size, seed=seed))
    store = slide.cut(image="sp", tile_px=tile, stride_px=stride, mpp_um=mpp_um)
    maps = slide_annotations(slide.row, slide.root, slide.facts, "sp", store.scale, CLASSES)
    hv = np.rint(hv_map(maps.instances) * np.float32(127))
    wanted = {
        "instances": maps.instances[None],
        "classes": maps.class_map[None],
        "hv": hv,
        "boundary": boundary_map(maps.instances)[None],
    }
    targets = _targets(slide, store)
    assert targets.n == store.n
    for name, cut in targets.read(slice(None)).items():
        cut = cut if cut.ndim == 4 else cut[:, None]
        whole = np.zeros((cut.shape[1], store.height_px, store.width_px))
        for index, patch in enumerate(cut):
            y, x, h, w = (
                int(column[index]) for column in (store.y_px, store.x_px, store.height_valid, store.width_valid)
            )
            assert np.array_equal(patch[:, :h, :w], wanted[name][:, y : y + h, x : x + w])
            assert not patch[:, h:].any()
            assert not patch[:, :, w:].any()
            whole[:, y : y + h, x : x + w] = patch[:, :h, :w]
        assert np.array_equal(whole, wanted[name])


def test_a_nucleus_on_a_tile_edge_keeps_its_shape(make_slide):
    labels = np.zeros((32, 32), np.int32)
    labels[4:9, 10:21] = 1
    slide = make_slide(sp=np.zeros((1, 32, 32), np.uint8), instances=labels)
    targets = _targets(slide, slide.cut(image="sp", tile_px=16)).read([0, 1])
    across = np.concatenate([targets["hv"][0, 0, 6], targets["hv"][1, 0, 6]])
    assert np.array_equal(across, np.rint(hv_map(labels)[0, 6] * 127))
    assert targets["boundary"][0, 6, 15] == 0, "the edge of the tile is no edge of the nucleus"
    assert targets["hv"][1, 0, 6, 0] > 0, "the right half does not begin at -1 again"


def test_types_and_attributes(make_slide):
    labels = _nuclei(40, 40)
    slide = make_slide(sp=np.zeros((1, 40, 40), np.uint8), instances=labels)
    store = slide.cut(image="sp", tile_px=16)
    targets = _targets(slide, store)
    read = targets.read([8, 0])
    assert {name: (values.shape, values.dtype.name) for name, values in read.items()} == {
        "instances": ((2, 16, 16), "int32"),
        "classes": ((2, 16, 16), "uint8"),
        "hv": ((2, 2, 16, 16), "int8"),
        "boundary": ((2, 16, 16), "uint8"),
    }
    assert targets.attributes["n_instances"] == len(np.unique(labels)) - 1
    assert targets.attributes["slide_id"] == store.slide_id
    assert targets.attributes["classes"] == {"1": "a", "2": "b"}
    assert set(np.unique(read["classes"])) <= {0, 255}
    assert set(targets.read([0], names=("hv",))) == {"hv"}


def test_without_annotation_nothing_is_written(make_slide):
    slide = make_slide(sp=np.zeros((1, 20, 20), np.uint8))
    store = slide.cut(image="sp", tile_px=16)
    assert not cut_targets(slide.row, slide.root, slide.facts, store, CLASSES, slide.root / "targets.zarr")
    assert not (slide.root / "targets.zarr").exists()


def test_conflicting_classes_are_recorded(make_slide):
    labels = np.zeros((20, 20), np.int32)
    labels[2:6, 2:6] = 4
    slide = make_slide(sp=np.zeros((1, 20, 20), np.uint8), instances=labels)
    (slide.root / "c.csv").write_text("id,class\n4,b\n4,a\n")
    slide = replace(slide, row=replace(slide.row, classes="c.csv"))
    targets = _targets(slide, slide.cut(image="sp", tile_px=20))
    assert (targets.read([0])["classes"][0] == np.where(labels > 0, 1, 0)).all()
    assert any("disagree" in text for text in targets.attributes["warnings"])


def test_nucls_field_end_to_end(shared, tmp_path):
    from slideloom.config.model import GridConfig, TissueConfig
    from slideloom.patches.cut import cut_patches
    from slideloom.patches.store import PatchStore
    from slideloom.slides.headers import read_facts
    from slideloom.slides.sheet import SlideRow
    from slideloom.slides.tables import MarkerTable
    from slideloom.slides.tissue import write_tissue

    root = shared / "data" / "nucls_he_15"
    classes = ClassTable(
        (1, 2, 3, 4), ("tumour", "stroma", "til", "other"), ((0, 0, 0),) * 4, (("0",), ("1",), ("2",), ("3",))
    )
    row = SlideRow(
        "t",
        he="train_02_image.png",
        he_mpp_um=0.2,
        instances="train_02_labels.png",
        classes="nuclei_classes.csv::train_02",
    )
    facts = read_facts(row, root, MarkerTable())
    write_tissue(facts, row, root, TissueConfig(), tmp_path / "t.geojson", tmp_path / "t.png")
    cut_patches(row, root, facts, tmp_path / "t.geojson", GridConfig(image="he", tile_px=64), tmp_path / "p.zarr")
    store = PatchStore(tmp_path / "p.zarr")
    assert store.n == 5 * 5
    assert cut_targets(row, root, facts, store, classes, tmp_path / "t.zarr")
    targets = TargetStore(tmp_path / "t.zarr").read(slice(None))
    assert set(np.unique(targets["classes"])) - {0, 255} <= {1, 2, 3, 4}
    assert (targets["classes"] > 0).sum() == (targets["instances"] > 0).sum() > 1000


def test_an_annotation_on_he_serves_the_sp_grid(make_slide):
    labels = _nuclei(60, 60)
    slide = make_slide(he=np.zeros((60, 60, 3), np.uint8), sp=np.zeros((1, 30, 30), np.uint8), instances=labels)
    images = dict(slide.facts.images)
    images["sp"] = replace(images["sp"], mpp_um=1.0)
    slide = replace(slide, facts=replace(slide.facts, images=images))
    targets = _targets(slide, slide.cut(image="sp", tile_px=30)).read([0])
    assert np.array_equal(targets["instances"][0], labels[1::2, 1::2])
