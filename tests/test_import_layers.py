"""The order of the house: imports point down, and nothing else in it names a frozen model's library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up: a module imports from its own room, or from a floor below.
FLOORS = (
    ("errors", "options", "types"),
    ("trees", "flops", "collectives", "timing", "versions", "parallel"),
    ("kept",),
    ("media", "diffusion", "models"),
    ("convert", "data"),
    ("config", "checkpoint", "compiled"),
    ("sampling", "metrics"),
    ("evaluation",),
    ("training",),
    ("tpu",),
)
FILES = sorted((ROOT / "fyp_jax").rglob("*.py"))


def imports(file: Path) -> list[str]:
    """All modules that a file imports, at its top or inside."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def room(file: Path) -> str:
    return file.relative_to(ROOT / "fyp_jax").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path):
    if file.name == "__init__.py":
        assert not imports(file)
        return
    for name in imports(file):
        package, _, rest = name.partition(".")
        if package == "fyp_jax" and rest != "__version__":
            target = rest.split(".")[0]
            assert target == room(file) or floor(target) < floor(room(file)), f"{file.name} imports {name}"


def test_only_frozen_imports_the_model_libraries():
    for file in FILES:
        libraries = {name.split(".")[0] for name in imports(file)} & {"diffusers", "transformers"}
        assert not libraries or file.name in ("frozen.py", "clip.py", "verify.py"), (
            f"{file} imports {libraries}"
        )


def test_torch_is_imported_where_files_need_it_only():
    for file in FILES:
        assert "torch" not in imports(file) or file.name in ("torch_files.py", "verify.py"), file


def test_models_know_no_mesh():
    for file in (ROOT / "fyp_jax" / "models").glob("*.py"):
        assert not any("sharding" in name or "parallel" in name for name in imports(file)), file
