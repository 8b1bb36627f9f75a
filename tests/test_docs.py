"""The README tells the truth: its table is current and its Python runs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_systems_is_current():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_table(README) == README, "run 'make docs'"


@pytest.mark.parametrize("number", range(len(re.findall(r"```python", README))))
def test_python_in_the_readme_runs(number, capsys):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    exec(compile(code, "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out


def test_every_file_that_the_readme_shows_exists():
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name


def test_every_folder_is_in_the_picture_of_the_house():
    folders = {p.name for p in (ROOT / "src" / "terramoe").iterdir() if (p / "__init__.py").exists()}
    assert set(re.findall(r"^\| `(\w+)` \| \w", README, re.MULTILINE)) >= folders
