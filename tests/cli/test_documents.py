from pathlib import Path

from slideloom.cli.documents import config_readme, write_documents
from slideloom.config.schema import schema_text
from slideloom.slides.sheet import COLUMNS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_config_page_is_current() -> None:
    page = REPOSITORY / "config" / "README.md"
    assert page.read_text(encoding="utf-8") == config_readme(), "run `slideloom schema --write config`"


def test_it_describes_every_column() -> None:
    page = config_readme()
    assert all(f"| `{name}` | " in page for name in COLUMNS)


def test_both_documents_are_written(tmp_path: Path) -> None:
    assert [path.relative_to(tmp_path).as_posix() for path in write_documents(tmp_path)] == [
        "README.md",
        "schema/config.schema.json",
    ]
    assert (tmp_path / "schema" / "config.schema.json").read_text(encoding="utf-8") == schema_text()
