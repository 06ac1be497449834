"""Cell tokens against those of the published code, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slideloom.encoders.checkpoints.weights import read_weights
from slideloom.encoders.virtues.cell_tokens import pool_cell_tokens
from slideloom.encoders.virtues.weights import load_virtues


def test_published_cell_tokens(shared: Path) -> None:
    place = shared / "fixtures" / "virtues"
    held = load_file(place / "cell_tokens_40x52.safetensors")
    net = load_virtues(read_weights(place / "tiny_model.safetensors"), "tiny").net
    embeddings = load_file(place / "marker_embeddings.safetensors")["marker_embeddings"]
    corners = held["crop_row_col"].tolist()
    crops = torch.stack([held["image"][:, row : row + 24, col : col + 24] for row, col in corners])
    with torch.inference_mode():
        tokens = net(crops, net.encode_markers(embeddings[held["channel_ids"]])).final
    torch.testing.assert_close(tokens, held["crop_pss"], atol=1e-4, rtol=0)
    placed = [(row, col, one.numpy()) for (row, col), one in zip(corners, tokens, strict=True)]
    ids, pooled = pool_cell_tokens(held["segmentation"].numpy(), placed)
    np.testing.assert_array_equal(ids, held["cell_ids"].numpy())
    np.testing.assert_allclose(pooled, held["cell_tokens"].numpy(), atol=1e-4)


def test_by_hand() -> None:
    labels = np.zeros((4, 6), np.int32)
    labels[0, 0] = labels[1, 1:4] = 9
    labels[3, 5] = 2
    left, right = np.array([[[1.0, 0.0], [2.0, 0.0]]]), np.array([[[4.0, 1.0], [8.0, 1.0]]])
    ids, pooled = pool_cell_tokens(labels, [(0, 0, left), (0, 2, right)], 2)
    assert ids.tolist() == [2, 9]
    assert np.isnan(pooled[0]).all(), "no crop reaches the third row"
    # Two pixels under 1, two under 2 of the left crop; two under 4 of the right.
    np.testing.assert_allclose(pooled[1], [(2 * 1 + 2 * 2 + 2 * 4) / 6, 2 / 6])
    inside = pool_cell_tokens(labels, [(2, 4, right)], 2)[1]
    np.testing.assert_allclose(inside[0], [4, 1])


def test_crops_must_lie_inside() -> None:
    labels = np.ones((8, 8), np.int32)
    for corner in ((8, 0), (-1, 0)):
        with pytest.raises(ValueError, match="outside"):
            pool_cell_tokens(labels, [(*corner, np.ones((1, 1, 3)))])
    with pytest.raises(ValueError, match="no crop"):
        pool_cell_tokens(labels, [])
