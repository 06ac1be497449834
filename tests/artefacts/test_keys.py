from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.artefacts import keys
from slideloom.config.model import InstancesConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_text_ignores_the_order_of_keys(value: object) -> None:
    def turned(part: object) -> object:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(list(part))}
        return [turned(child) for child in part] if isinstance(part, list) else part

    assert keys.canonical(value) == keys.canonical(turned(value))


def test_canonical_text_tells_exchanged_values_apart() -> None:
    a = InstancesConfig(nucleus_threshold=0.4, energy_threshold=0.6)
    b = InstancesConfig(nucleus_threshold=0.6, energy_threshold=0.4)
    assert keys.canonical(a) != keys.canonical(b)


def test_canonical_refuses_what_has_no_text() -> None:
    with pytest.raises(TypeError, match="set"):
        keys.canonical({"a": {1}})


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_digest_tells_where_a_part_ends(parts: list[str]) -> None:
    assert (keys.digest_text(*parts) == keys.digest_text("".join(parts))) == (len(parts) == 1)


def test_digest_of_a_tree_follows_content_not_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "c" / "0").write_bytes(b"chunk")
    first = keys.digest_tree(tmp_path / "a")
    assert first == keys.digest_tree(tmp_path / "b")
    (tmp_path / "b" / "c" / "0").write_bytes(b"chunK")
    assert first != keys.digest_tree(tmp_path / "b")
    (tmp_path / "b" / "c" / "0").rename(tmp_path / "b" / "c" / "1")
    assert first != keys.digest_tree(tmp_path / "b")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "slideloom"
    for name, text in {
        "__init__.py": "",
        "_version.py": '__version__ = "1"\n',
        "near.py": "from slideloom.far import f\nfrom slideloom._version import __version__\n",
        "far.py": '"""Far."""\n\ndef f():\n    """Say."""\n    return 1\n',
        "aside.py": "x = 1\n",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(keys, "_PACKAGE", root)
    (tmp_path / "script.py").write_text("from slideloom.near import f\n")
    return root


def _fingerprint(package: Path) -> str:
    keys._read_code.cache_clear()
    return keys.code_fingerprint([package.parent / "script.py"])


@pytest.mark.parametrize(
    ("module", "text", "changes"),
    [
        ("far.py", "def f():\n    return 2\n", True),
        ("far.py", '"""Elsewhere."""\n\n\ndef f():  # why\n    return 1\n', False),
        ("aside.py", "x = 2\n", False),
        ("_version.py", '__version__ = "2"\n', False),
        ("near.py", "from slideloom.far import f\n", True),
    ],
)
def test_fingerprint_follows_what_runs(package: Path, module: str, text: str, changes: bool) -> None:
    before = _fingerprint(package)
    (package / module).write_text(text)
    assert (_fingerprint(package) != before) is changes
