"""One name for every module, whichever way the package is installed and wherever Python is started."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import size

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("tensorgraph", "models", "visualize")
HEAVY = ("sympy", "scipy", "networkx", "graphviz", "rich", "typer", "jax", "cupy", "torch", "transformers")


def copy_checkout(target: Path) -> Path:
    """Copy what a fresh clone holds that packaging reads; symlinks stay symlinks, build outputs stay behind."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "tensorgraph", "models", "visualize"):
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
            shutil.copytree(source, target / name, symlinks=True, ignore=skip)
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout that a test may build in and change."""
    return copy_checkout(tmp_path / "checkout")


def python(interpreter: Path | str, *args: str, cwd: Path) -> str:
    """Run Python as a user's shell would, with none of the test run's own settings; return what it prints."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "MAKE", "MFLAGS"))}
    done = subprocess.run([str(interpreter), *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout}{done.stderr}"
    return done.stdout


# -- what is declared ------------------------------------------------------------------------------------------------


def package_folders() -> dict[str, str]:
    """Package name -> folder, for every folder that holds Python files, as the import system names it."""
    found = {}
    for folder, subfolders, files in os.walk(ROOT / "tensorgraph", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        if any(name.endswith(".py") for name in files):
            name = Path(folder).relative_to(ROOT).as_posix().replace("/", ".")
            found[name] = Path(folder).resolve().relative_to(ROOT).as_posix()
    return found


def test_declared_packages_are_the_folders() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["package-dir"] == package_folders()
    assert sorted(setuptools["packages"]) == sorted(setuptools["package-dir"])
    for folder in setuptools["package-dir"].values():
        assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["models", "visualize"])
def test_links_are_relative(name: str) -> None:
    assert os.readlink(ROOT / "tensorgraph" / name) == f"../{name}"


def python_text() -> Iterator[tuple[str, str]]:
    """Every Python file of the repository, and every Python block of its pages."""
    for room in (*ROOMS, "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            yield str(path.relative_to(ROOT)), block


def imported_roots(text: str) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


def test_no_code_imports_the_rooms_by_their_folder_names() -> None:
    assert imported_roots("import models.gpt2, os\nfrom visualize import draw\nfrom .models import x") == {
        "models",
        "os",
        "visualize",
    }
    guilty = {where for where, text in python_text() if imported_roots(text) & {"models", "visualize"}}
    assert guilty == set()


def test_arrows_point_one_way() -> None:
    """The engine imports neither room, but for the lazy names of tensorgraph/__init__.py and the command line."""
    guilty = set()
    for path in (ROOT / "tensorgraph").rglob("*.py"):
        where = path.relative_to(ROOT / "tensorgraph")
        if where.parts[0] in ("models", "visualize", "__init__.py", "cli"):
            continue
        package = ["tensorgraph", *where.parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                names = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
            else:
                continue
            if any(name.startswith(("tensorgraph.models", "tensorgraph.visualize")) for name in names):
                guilty.add(f"{where}:{node.lineno}")
    assert guilty == set()


def test_completion_shows_the_public_names_alone() -> None:
    code = (
        "import tensorgraph as tg; shown = {n for n in dir(tg) if not n.startswith('__')}; "
        "assert shown == set(tg.__all__), shown ^ set(tg.__all__); "
        "assert all(hasattr(tg, n) for n in shown) and callable(tg.cost) and callable(tg.compile); "
        "assert all(issubclass(getattr(tg, n), Exception) for n in shown if n.endswith('Error')); "
        "assert all(set(dir(m)) == set(m.__all__) for m in (tg.nn, tg.optim)); "
        "assert not {'Any', 'annotations', 'importlib', 'TYPE_CHECKING', 'autodiff', 'enter', 'xp'} & shown"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light() -> None:
    loaded = python(sys.executable, "-c", "import sys, tensorgraph; print(*sys.modules)", cwd=ROOT).split()
    assert "tensorgraph" in loaded
    assert sorted(set(HEAVY) & set(loaded)) == []


# -- what is installed -----------------------------------------------------------------------------------------------

PROBE = """
import importlib, importlib.metadata, importlib.util, json, os, sys
import tensorgraph, tensorgraph.models, tensorgraph.visualize
rooms = {name: importlib.import_module(name) for name in ("tensorgraph", "tensorgraph.models", "tensorgraph.visualize")}
files = [os.path.realpath(m.__file__) for n, m in sys.modules.items() if getattr(m, "__file__", None)
         and n.partition(".")[0] in ("tensorgraph", "models", "visualize")]
entry, = importlib.metadata.entry_points(group="console_scripts", name="tensorgraph")
print(json.dumps({
    "files": {name: os.path.realpath(m.__file__) for name, m in rooms.items()},
    "same": tensorgraph.models is sys.modules["tensorgraph.models"]
            and tensorgraph.visualize is sys.modules["tensorgraph.visualize"],
    "twice": sorted({f for f in files if files.count(f) > 1}),
    "top": [name for name in ("models", "visualize", "tests") if importlib.util.find_spec(name)],
    "entry": entry.value,
}))
"""


def environment(folder: Path) -> tuple[Path, Path]:
    """A new environment, (python, site-packages), that also sees the packages of this one: nothing is downloaded."""
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    packages = Path(
        python(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    # A line in a .pth file adds a folder to sys.path without reading the .pth files inside it,
    # so an editable install of this project in the running environment is not seen.
    (packages / "running.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    return interpreter, packages


def pip(interpreter: Path, *args: str, cwd: Path) -> None:
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    python(interpreter, "-m", "pip", *args, *offline, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", ".", "--wheel-dir", str(base), cwd=copy_checkout(base / "checkout"))
    (built,) = base.glob("*.whl")
    return built


@pytest.mark.parametrize("how", ["editable", "plain", "wheel"])
def test_install_and_import(how: str, checkout: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    interpreter, packages = environment(tmp_path / "env")
    if how == "wheel":
        what = [str(request.getfixturevalue("wheel"))]
    else:
        what = ["--editable", "."] if how == "editable" else ["."]
    pip(interpreter, "install", "--ignore-installed", *what, cwd=checkout)
    outside = tmp_path / "outside"
    outside.mkdir()

    for cwd in (checkout, outside):
        seen = json.loads(python(interpreter, "-c", PROBE, cwd=cwd))
        assert seen["same"]
        assert seen["twice"] == []
        assert seen["entry"] == "tensorgraph.cli:main"
        # Python started in the checkout takes the checkout's files, whatever is installed.
        if how == "editable" or cwd == checkout:
            engine, models, visualize = (checkout / room / "__init__.py" for room in ROOMS)
        else:
            engine = packages / "tensorgraph" / "__init__.py"
            models, visualize = (engine.parent / room / "__init__.py" for room in ROOMS[1:])
        assert seen["files"] == {
            "tensorgraph": os.path.realpath(engine),
            "tensorgraph.models": os.path.realpath(models),
            "tensorgraph.visualize": os.path.realpath(visualize),
        }
        if cwd == outside:
            assert seen["top"] == []
    assert (interpreter.parent / "tensorgraph").is_file()


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Without make: what a checkout has beside its modules (presets, fonts, sample texts) is in the wheel too.

    The gallery and the README's pictures are for readers of the repository and stay there.
    """
    expected = set()
    for folder, subfolders, files in os.walk(ROOT / "tensorgraph", followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in ("__pycache__", "gallery", "examples", "digits")]
        expected |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in files if not name.startswith(".")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "tensorgraph/py.typed" in names
    assert names == expected


# -- what the type checker sees --------------------------------------------------------------------------------------


def test_mypy_sees_both_rooms_once(checkout: Path) -> None:
    # The other files are emptied: the law is about which files are seen, and an empty file is quick to check.
    for room in ROOMS:
        for path in (checkout / room).rglob("*.py"):
            path.write_text("", encoding="utf-8")
    for room in ROOMS[1:]:
        (checkout / room / "planted.py").write_text(f'size: int = "{room}"\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-color-output", "--no-incremental"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert sorted(line.partition(":")[0] for line in errors) == [
        "tensorgraph/models/planted.py",
        "tensorgraph/visualize/planted.py",
    ]
    assert all("Incompatible types in assignment" in line for line in errors)


# -- what `make size` counts -----------------------------------------------------------------------------------------


def test_code_lines_leave_out_blanks_comments_and_docstrings() -> None:
    text = '''"""Module
docstring."""

# a comment
import os  # counted


def f(x):
    """One sentence.

    Another.
    """
    text = """counted

    counted"""
    return (
        x,  # counted
        # not counted
        text,
    )


class A:
    "docstring"
    x = 1; "no docstring"
'''
    assert size.code_lines(text) == 10


def test_every_file_of_the_engine_has_one_room() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert sum(room.files for room in size.rooms(ROOT)) == len({path.resolve() for path in files})
