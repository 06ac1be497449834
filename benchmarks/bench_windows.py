"""The label image does not depend on how a slide is worked: windows, workers, order.

For every method, windows of 512, 1024, 2048 and 4096 px and the whole, one, two and four workers, in order and
shuffled: a line each with the seconds and the SHA-256 of the label array. Ends with an error if one differs.

The slide is drawn: crowded nuclei whose maps are blurred and noisy, an object 3000 px long (as far as the slide goes)
that winds through the windows, and a region that is foreground all over, with seeds everywhere. ``--maps`` names stores
of predicted maps to work instead.

Run: ``python benchmarks/bench_windows.py [--side 5000] [--maps results/maps/<experiment>/<fold>/<slide>.zarr …]``
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.distance_watershed import DistanceWatershed
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.method import Method
from slideloom.instances.stitch import SlideMaps, Stitched, stitch
from slideloom.instances.threshold import Threshold
from slideloom.instances.windows import Box
from slideloom.patches.hv import boundary_map, hv_map

METHODS: dict[str, Any] = {
    "hv_watershed": HVWatershed,
    "boundary_watershed": BoundaryWatershed,
    "distance_watershed": DistanceWatershed,
    "threshold": Threshold,
}
_PATCH_PX = 1000


def nuclei(seed: int, side: int) -> NDArray[np.int32]:
    """Ellipses, many of them touching: about 40 % of the area."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for number in range(1, side * side // 500):
        y, x = (int(place) for place in rng.integers(0, side, 2))
        axes = (int(rng.integers(6, 13)), int(rng.integers(6, 13)))
        top, left = max(0, y - 13), max(0, x - 13)
        part = labels[top : y + 14, left : x + 14]
        mask = np.zeros(part.shape, np.uint8)
        cv2.ellipse(mask, (x - left, y - top), axes, int(rng.integers(180)), 0, 360, 1, -1)
        if (part[mask > 0] > 0).mean() < 0.3:
            part[(mask > 0) & (part == 0)] = number
    return labels


def draw(side: int, seed: int = 0) -> tuple[SlideMaps, dict[str, NDArray[np.bool_]]]:
    """Maps of a slide, and where the long object and the full region lie."""
    rng = np.random.default_rng(seed)
    patch = nuclei(seed, _PATCH_PX)
    truth = np.zeros((side, side), np.int32)
    for number, (top, left) in enumerate((y, x) for y in range(0, side, _PATCH_PX) for x in range(0, side, _PATCH_PX)):
        turned = np.rot90(patch[:: 1 if rng.random() < 0.5 else -1], int(rng.integers(4)))
        place = truth[top : top + _PATCH_PX, left : left + _PATCH_PX]
        ids = turned + np.int32(number * _PATCH_PX**2 // 500)
        place[...] = np.where(turned > 0, ids, 0)[: place.shape[0], : place.shape[1]]
    planes = []
    for plane in (*hv_map(truth), (truth > 0).astype(np.float32), boundary_map(truth).astype(np.float32)):
        noise = cv2.GaussianBlur(rng.standard_normal(truth.shape, np.float32), (0, 0), 2)
        planes.append(cv2.GaussianBlur(plane, (0, 0), 1) + 0.15 * noise / noise[:1000].std())
    x, y, nucleus, boundary = planes
    full = np.zeros(truth.shape, bool)
    full[side // 5 : side // 5 + side // 4, side // 2 : side // 2 + side // 4] = True
    nucleus[full] = 1
    long = np.zeros(truth.shape, np.uint8)
    across = np.arange(10, min(side - 10, 3010))
    winding = np.stack([across, side * 0.6 + side / 12 * np.sin(across / 200)], axis=1)
    cv2.polylines(long, [np.rint(winding).astype(np.int32)], False, 1, 30)
    moat = cv2.dilate(long, np.ones((31, 31), np.uint8)) > 0
    for plane in planes:
        plane[moat] = 0
    nucleus[long > 0] = 1
    maps = {
        "nucleus": np.rint(np.clip(nucleus, 0, 1) * 255).astype(np.uint8),
        "hv": np.rint(np.clip(np.stack([x, y]), -1, 1) * 127).astype(np.int8),
        "boundary": np.rint(np.clip(1.5 * boundary, 0, 1) * 255).astype(np.uint8),
    }
    return SlideMaps(maps), {"long object": long > 0, "full region": full}


def digest(found: Stitched, shape: tuple[int, int]) -> str:
    """SHA-256 of the label array, row by row."""
    sums = hashlib.sha256()
    for top in range(0, shape[0], 512):
        sums.update(found.read(Box(top, 0, min(top + 512, shape[0]), shape[1])).tobytes())
    return sums.hexdigest()


def compare(title: str, maps: SlideMaps, method: Method, planted: dict[str, NDArray[np.bool_]]) -> int:
    """Work a slide in all ways; how many label images there are."""
    whole = max(maps.shape)
    sides = [side for side in (512, 1024, 2048, 4096) if side < whole] + [whole]
    seen: dict[str, int] = {}
    print(f"\n{title}: {maps.shape[0]} x {maps.shape[1]} px")
    for side in sides:
        n = -(-maps.shape[0] // side) * -(-maps.shape[1] // side)
        for workers, shuffled in ((1, False), (1, True), (2, True), (4, True)):
            order = np.random.default_rng(workers).permutation(n).tolist() if shuffled else None
            with tempfile.TemporaryDirectory() as scratch:
                start = time.perf_counter()
                found = stitch(maps, method, Path(scratch), window_px=side, workers=workers, order=order)
                seconds = time.perf_counter() - start
                code = digest(found, maps.shape)
                if planted and not seen:
                    labels = found.read(Box(0, 0, *maps.shape))
                    for what, where in planted.items():
                        print(f"  instances of the {what}: {np.count_nonzero(np.unique(labels[where]))}")
            seen[code] = seen.get(code, 0) + 1
            name = "whole" if side == whole else str(side)
            way = "shuffled" if shuffled else "in order"
            print(f"  window {name:>5}  workers {workers}  {way}  {found.n:>7} instances  {seconds:6.2f} s  {code}")
    print(f"  {'identical' if len(seen) == 1 else 'DIFFERENT'}: {sum(seen.values())} ways, {len(seen)} label image(s)")
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3000, help="side of the drawn slide, px")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--maps", type=Path, nargs="+", help="Zarr groups of maps to work instead of a drawn slide")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    slides: list[tuple[str, SlideMaps, float, dict[str, NDArray[np.bool_]]]] = []
    for place in options.maps or ():
        names = [name for name in ("nucleus", "hv", "boundary") if (place / name).exists()]
        maps = SlideMaps({name: open_array(place / name) for name in names})
        slides.append((str(place), maps, float(read_attributes(place)["mpp_um"]), {}))
    if not slides:
        drawn, planted = draw(options.side)
        slides.append(("drawn", drawn, 0.25, planted))
    worst = 1
    for title, maps, mpp_um, planted in slides:
        for name in options.methods:
            method: Method = METHODS[name].from_config(InstancesConfig(), mpp_um)
            if all(read in maps.arrays for read in method.reads):
                worst = max(worst, compare(f"{title}, {name}", maps, method, planted))
    if worst > 1:
        sys.exit("label images differ")


if __name__ == "__main__":
    main()
