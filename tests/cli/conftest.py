"""A small study of real files: three slides, one of them broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

CONFIG = """\
study: small
slides: slides.tsv
markers: markers.tsv
classes: classes.tsv
grids:
  sp64: {image: sp, tile_px: 64}
  he64: {image: he, tile_px: 64}
encoders:
  mm: {model: mean_marker, grid: sp64, markers: [DNA, CD3e], statistics: holdout}
  vit: {model: timm/vit_tiny_patch16_224, grid: he64, random: 0}
splits:
  holdout: {scheme: column}
experiments:
  sp: {encoder: mm, split: holdout, heads: [nucleus, hv]}
  he: {encoder: vit, split: holdout, heads: [nucleus, hv, classes]}
"""
SHEET = """\
slide_id\tpatient_id\the\tsp\tinstances\tclasses\tmpp_um\tsp_channels\tsplit
good\tP1\tgood_he.png\tgood_sp.tif\tgood_labels.tif\tclasses.csv::good\t0.5\tDAPI;CD3\ttrain
few\tP2\tgood_he.png\tfew_sp.tif\tgood_labels.tif\t\t0.5\tDAPI\ttest
broken\tP3\tbroken_he.png\tgood_sp.tif\tsmall_labels.tif\t\t0.5\tDAPI;CD3\ttest
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the config; the current folder is the study's."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save("good_he.png")
    Path("broken_he.png").write_bytes(Path("good_he.png").read_bytes()[:20])
    tifffile.imwrite("good_sp.tif", rng.integers(0, 999, (2, 96, 128), dtype=np.uint16), photometric="minisblack")
    tifffile.imwrite("few_sp.tif", rng.integers(0, 999, (96, 128), dtype=np.uint16), photometric="minisblack")
    labels = np.zeros((96, 128), np.uint16)
    labels[5:15, 5:15], labels[30:40, 50:60], labels[70:80, 100:110] = 1, 2, 7
    tifffile.imwrite("good_labels.tif", labels)
    tifffile.imwrite("small_labels.tif", labels[:50])
    Path("classes.csv").write_text("image,label_id,class\ngood,1,tumour\ngood,2,stroma\ngood,7,tumour\n")
    Path("slides.tsv").write_text(SHEET)
    Path("markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\nCD3\tCD3e\tP07766\tno\n")
    Path("classes.tsv").write_text("id\tname\tcolour\n1\ttumour\t#ff0000\n2\tstroma\t#00ff00\n")
    Path("config.yaml").write_text(CONFIG)
    return Path("config.yaml")
