from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import create_array, create_group, open_array, read_array, read_attributes, write_array


@pytest.mark.parametrize("codec", ["none", "labels", "counts"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "float16", "float32"])
def test_zarr_python_reads_the_same(tmp_path: Path, codec: Any, dtype: str) -> None:
    data: NDArray[Any] = np.random.default_rng(0).integers(0, 99, (37, 2, 9, 11)).astype(dtype)
    create_group(tmp_path / "g", {"schema": 1, "µ": "m"})
    write_array(tmp_path / "g" / "x", data, codec=codec)
    np.testing.assert_array_equal(read_array(tmp_path / "g" / "x"), data)
    group = zarr.open_group(tmp_path / "g", mode="r")
    np.testing.assert_array_equal(group["x"][...], data)
    assert group.attrs["schema"] == 1
    assert read_attributes(tmp_path / "g") == {"schema": 1, "µ": "m"}


def test_writing_shard_by_shard_equals_writing_whole(tmp_path: Path) -> None:
    data = np.arange(40 * 6, dtype=np.uint16).reshape(40, 6)
    array = create_array(
        tmp_path / "x", data.shape, data.dtype, chunk=(4, 6), shard=(10, 6), dimension_names=("n", "k")
    )
    step = array.chunk_layout.write_chunk.shape[0]
    assert step == 12, "a shard holds whole chunks"
    for start in range(0, 40, step):
        stop = min(start + step, len(data))
        array[start:stop].write(data[start:stop]).result()
    np.testing.assert_array_equal(open_array(tmp_path / "x")[5:29].read().result(), data[5:29])
    assert len(list((tmp_path / "x" / "c").rglob("0"))) >= 1
    assert zarr.open_array(tmp_path / "x", mode="r").metadata.dimension_names == ("n", "k")


def test_empty_and_missing_arrays(tmp_path: Path) -> None:
    write_array(tmp_path / "x", np.zeros((0, 3, 4), np.uint8))
    assert read_array(tmp_path / "x").shape == (0, 3, 4)
    with pytest.raises(FileNotFoundError, match="no Zarr array"):
        open_array(tmp_path / "y")
