from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slideloom.demo.cohort import DemoSlide
from slideloom.demo.panel import CLASSES, MARKERS, class_id, marker_index

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


def _stains(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(h, w, 2) haematoxylin and eosin by textbook colours, not those that the slide was painted with."""
    density = -np.log10((picture.astype(float) + 1) / 245)
    return np.asarray(density @ np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN])), np.float64)


def _cell_means(slide: DemoSlide, reach: int) -> NDArray[np.float64]:
    """(n, 16) log mean of every channel under a nucleus and the pixels that are nearer to it than to others."""
    labels = slide.nuclei.labels
    far, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    cells = np.where(far <= reach, labels[rows, columns], 0)
    index = np.arange(1, len(slide.nuclei) + 1)
    return np.stack([np.log(ndimage.mean(channel, cells, index) - 80) for channel in slide.sp], axis=1)


def test_pictures_have_their_forms(slides: list[DemoSlide]) -> None:
    for slide in slides:
        assert (slide.he.shape, slide.he.dtype) == ((320, 320, 3), np.uint8)
        assert (slide.sp.shape, slide.sp.dtype) == ((16, 320, 320), np.uint16)
        assert 800 < slide.sp.max() < 20_000


def test_haematoxylin_lies_in_the_nuclei(slides: list[DemoSlide]) -> None:
    for slide in slides:
        blue = _stains(slide.he)[..., 0]
        tissue = ~slide.tissue.hollow
        labels = slide.nuclei.labels
        assert blue[labels > 0].mean() > 2 * blue[(labels == 0) & tissue].mean()
        ring = ndimage.binary_dilation(labels > 0, iterations=4) & (labels == 0)
        beside = np.median(blue[ring])
        inside = ndimage.mean(blue, labels, np.arange(1, len(slide.nuclei) + 1))
        assert np.mean(inside > beside) > 0.97
        for number, kind in enumerate(CLASSES, 1):
            own = slide.nuclei.classes == number
            if own.any():
                assert blue[own].mean() > beside, kind.name


def test_glass_is_white_and_stroma_pink(slides: list[DemoSlide]) -> None:
    for slide in slides:
        glass = ndimage.binary_erosion(slide.tissue.glass, iterations=4)
        assert slide.he[glass].mean() > 225
        ground = ~slide.tissue.hollow & ~slide.tissue.nest & (slide.nuclei.labels == 0)
        red, green, blue = slide.he[ground].mean(axis=0)
        assert red > blue > green
        assert slide.sp[:, glass].mean() < slide.sp[:, ground].mean()


def test_lymphocytes_are_darker_than_tumour_nuclei(slides: list[DemoSlide]) -> None:
    for slide in slides:
        blue = _stains(slide.he)[..., 0]
        classes = slide.nuclei.classes
        assert blue[classes == class_id("Helper T cell")].mean() > 1.15 * blue[classes == class_id("Tumor")].mean()


def test_both_images_show_the_same_cells(slides: list[DemoSlide]) -> None:
    """A shift of one image against the other lowers their agreement."""
    for slide in slides:
        blue = _stains(slide.he)[..., 0]
        dark = ndimage.gaussian_filter(blue, 1)
        haze = slide.sp[[marker_index("Pan-CK"), marker_index("SMA"), marker_index("CD68")]].astype(float)
        dip = ndimage.gaussian_filter(np.log(haze - 80).mean(axis=0), 1)
        dip -= ndimage.gaussian_filter(dip, 8)
        dark -= ndimage.gaussian_filter(dark, 8)

        def agreement(dy: int, dx: int, dark: NDArray[np.float64] = dark, dip: NDArray[np.float64] = dip) -> float:
            return float(np.corrcoef(np.roll(dark, (dy, dx), (0, 1)).ravel(), -dip.ravel())[0, 1])

        here = agreement(0, 0)
        assert here > 0.15
        assert all(agreement(dy, dx) < here for dy, dx in ((0, 5), (5, 0), (0, -5), (-5, 0), (9, 9)))


def test_markers_lie_where_they_belong(slides: list[DemoSlide]) -> None:
    def brightness(marker: str, name: str, *, ring: bool) -> float:
        values = []
        for slide in slides:
            own = slide.nuclei.classes == class_id(name)
            around = ndimage.binary_dilation(own, iterations=2) & (slide.nuclei.labels == 0)
            where = around if ring else ndimage.binary_erosion(own, iterations=2)
            values.append(slide.sp[marker_index(marker)][where].astype(float))
        return float(np.concatenate(values).mean())

    for marker, name in (("CD4", "Helper T cell"), ("CD8a", "Cytotoxic T cell"), ("CD68", "Macrophage"),
                         ("CD31", "Endothelia"), ("Pan-CK", "Tumor"), ("E-cadherin", "Tumor")):  # fmt: skip
        assert brightness(marker, name, ring=True) > 1.3 * brightness(marker, name, ring=False), marker
        strangers = [kind.name for kind in CLASSES if marker not in kind.expression and kind.frequency > 0.003]
        worst = max(brightness(marker, stranger, ring=True) for stranger in strangers)
        assert brightness(marker, name, ring=True) > 1.5 * worst, marker
    assert brightness("FOXP3", "Treg", ring=False) > 2 * brightness("FOXP3", "Helper T cell", ring=False)
    assert brightness("FOXP3", "Treg", ring=False) > 1.5 * brightness("FOXP3", "Treg", ring=True)
    assert brightness("Ki67", "Tumor", ring=False) > 1.5 * brightness("Ki67", "Stroma", ring=False)


def test_markers_tell_the_classes_apart_on_another_slide(slides: list[DemoSlide]) -> None:
    """Linear discriminants learnt on three slides name the nuclei of the fourth; two markers alone do not."""
    features = [_cell_means(slide, 3) for slide in slides]
    names = [slide.nuclei.class_of[1:].astype(int) for slide in slides]

    def accuracy(channels: list[int]) -> float:
        x = np.concatenate(features[:3])[:, channels]
        y = np.concatenate(names[:3])
        known = [number for number in np.unique(y) if np.sum(y == number) >= 3]
        means = np.stack([x[y == number].mean(axis=0) for number in known])
        spread = sum(np.cov(x[y == number].T, bias=True) * np.sum(y == number) for number in known) / y.size
        inverse = np.linalg.inv(np.atleast_2d(spread) + 1e-3 * np.eye(len(channels)))
        test, truth = features[3][:, channels], names[3]
        far = np.einsum("nkc,cd,nkd->nk", test[:, None] - means, inverse, test[:, None] - means)
        guess = np.array(known)[far.argmin(axis=1)]
        return float(
            np.mean([np.mean(guess[truth == number] == number) for number in known if np.any(truth == number)])
        )

    assert accuracy(list(range(len(MARKERS)))) > 0.8
    assert accuracy([marker_index("Pan-CK"), marker_index("CD45")]) < 0.65


def test_slides_differ_in_stain_and_gain(slides: list[DemoSlide]) -> None:
    colours = np.array([slide.he[~slide.tissue.hollow].mean(axis=0) for slide in slides])
    assert np.ptp(colours, axis=0).max() > 4
    haze = np.array([np.median(slide.sp[:, ~slide.tissue.hollow], axis=1) for slide in slides])
    assert np.std(np.log(haze - 90), axis=0).mean() > 0.05
