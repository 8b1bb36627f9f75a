"""Twelve bugs are put into a copy of the package, one at a time: the property catalogue must fail on each of them.

The whole catalogue runs each time, with few examples and always the same ones, and stops at its first failure.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import terramoe

HERE = Path(__file__).parent
SOURCE = Path(terramoe.__file__).parent
BUGS = sorted((HERE / "seeded_bugs").glob("*.patch"))
CATALOGUE = [
    path
    for name in ("property_*.py", "recipe_*.py", "test_properties_*.py", "test_traps.py")
    for path in HERE.glob(name)
]
LONG = ("test_properties_experts.py", "test_properties_recipes.py")  # run last, as the first failure ends a run

# An editable install, or a package that was imported before, must not stand in for the copy.
CONFTEST = """
from pathlib import Path
import terramoe
from hypothesis import Phase, settings
source, here = Path(terramoe.__file__).resolve(), Path(__file__).resolve().parents[1]
if not source.is_relative_to(here):
    raise RuntimeError(f"testing {source} instead of the copy under {here}")
settings.register_profile("same", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
settings.load_profile("same")
"""

pytestmark = pytest.mark.slow


def copy_package(folder: Path) -> None:
    """folder/src/terramoe, and the catalogue in folder/tests."""
    shutil.copytree(SOURCE, folder / "src" / "terramoe")
    (folder / "tests").mkdir()
    for path in CATALOGUE:
        shutil.copy(path, folder / "tests")
    (folder / "tests" / "conftest.py").write_text(CONFTEST)


def apply_patch(folder: Path, patch: Path) -> None:
    """Fails where the patch does not fit the code any more."""
    # Inside a repository git would leave out what is not below the current folder, without an error.
    apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", "--verbose", str(patch)]
    run = subprocess.run(command, cwd=folder, env=apart, capture_output=True, text=True)
    (target,) = re.findall(r"^\+\+\+ b/src/terramoe/(\S+)", patch.read_text(), re.MULTILINE)
    changed = (folder / "src" / "terramoe" / target).read_text() != (SOURCE / target).read_text()
    if run.returncode or not changed:
        pytest.fail(f"{patch.name} no longer applies; write it anew against {target}:\n{run.stderr}")


def run_catalogue(folder: Path) -> tuple[int, str]:
    """Exit code of pytest and its output."""
    clean = {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
        "PROPERTY_EXAMPLES": "4",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    clean.pop("PYTEST_ADDOPTS", None)
    files = sorted((f"tests/{path.name}" for path in CATALOGUE if path.name.startswith("test_")), key=_long_last)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rf", "--tb=line", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def _long_last(file: str) -> tuple[bool, str]:
    return file.removeprefix("tests/") in LONG, file


def test_there_are_twelve_bugs():
    assert [path.name[:2] for path in BUGS] == [f"{n:02d}" for n in range(1, 13)]


def test_the_catalogue_passes_without_a_bug(tmp_path):
    copy_package(tmp_path)
    code, output = run_catalogue(tmp_path)
    assert code == 0, output[-3000:]


@pytest.mark.parametrize("patch", BUGS, ids=lambda path: path.stem)
def test_the_catalogue_catches(patch, tmp_path, capsys, record_property):
    copy_package(tmp_path)
    apply_patch(tmp_path, patch)
    code, output = run_catalogue(tmp_path)
    assert code != 0, f"nothing in the catalogue notices {patch.stem}"
    assert code == 1, f"the catalogue did not run (exit code {code}):\n{output[-3000:]}"
    (caught_by,) = re.findall(r"^FAILED tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    record_property("caught_by", caught_by)
    with capsys.disabled():
        print(f"\n{patch.stem}: caught by {caught_by}")


def test_a_patch_that_does_not_fit_is_said(tmp_path):
    copy_package(tmp_path)
    patch = tmp_path / "old.patch"
    patch.write_text(BUGS[0].read_text().replace("self", "this"))
    with pytest.raises(pytest.fail.Exception, match=r"old\.patch no longer applies"):
        apply_patch(tmp_path, patch)
