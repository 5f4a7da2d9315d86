"""The layers of the package: imports point down only, and few modules may import other libraries' models."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import fyp_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fyp_jax"
# From the bottom: a module imports from its own package, or from a layer below.
LAYERS = (
    ("errors", "types", "freed_memory"),
    ("config", "interrupts", "platforms"),
    ("console", "trees", "versions", "parallel"),
    ("compilation_cache",),
    ("models", "diffusion", "media"),
    ("editing", "pose"),
    ("synthetic", "convert"),
    ("data",),
    ("checkpoints",),
    ("pipeline",),
    ("evaluation",),
    ("training",),
    ("tpu",),
    ("demo",),
    ("cli",),
)
FILES = sorted(PACKAGE.rglob("*.py"))
MODEL_LIBRARIES = {"diffusers", "transformers"}
IMPORT_MODEL_LIBRARIES = {"models/encoders.py", "evaluation/clip_score.py", "convert/verify.py"}
IMPORT_TORCH = {"convert/torch_load.py", "convert/verify.py"}
MAX_LINES = 300


@functools.cache
def imports(file: Path) -> list[str]:
    """All modules that a file imports, at its top or inside of a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def libraries(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def layer(package: str) -> int:
    """The layer of a package, or of a module of the root, by its name."""
    (number,) = [i for i, packages in enumerate(LAYERS) if package in packages]
    return number


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file: Path):
    if file.name == "__init__.py":
        # The root's are the lazy exports, for type checkers; it imports nothing of the package at run time.
        light = {name.partition(".")[0] for name in imports(file)} <= sys.stdlib_module_names
        assert file.parent == PACKAGE or light, (
            f"{name_of(file)} makes the import of each of its modules slow"
        )
        return
    package = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(file):
        root, _, rest = name.partition(".")
        if root == "fyp_jax" and rest != "__version__":
            target = rest.split(".")[0]
            assert target == package or layer(target) < layer(package), f"{name_of(file)} imports {name}"


def test_every_package_has_a_layer_and_every_layer_a_package():
    packages = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert packages == {package for packages in LAYERS for package in packages}


def test_few_modules_import_diffusers_or_transformers():
    assert {name_of(file) for file in FILES if libraries(file) & MODEL_LIBRARIES} == IMPORT_MODEL_LIBRARIES


def test_torch_is_imported_only_where_files_need_it():
    assert {name_of(file) for file in FILES if "torch" in libraries(file)} == IMPORT_TORCH


def test_models_know_no_mesh():
    for file in (PACKAGE / "models").glob("*.py"):
        for name in imports(file):
            assert "sharding" not in name.lower(), f"{name_of(file)} imports {name}"
            assert "parallel" not in name, f"{name_of(file)} imports {name}"
            assert name.rpartition(".")[2] != "Mesh", f"{name_of(file)} imports {name}"


def test_long_modules_have_their_reason_in_the_architecture_page():
    reasons = (ROOT / "docs" / "architecture.md").read_text().partition("## Modules over 300 lines")[2]
    reasons = reasons.partition("\n## ")[0]
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in FILES}
    unexplained = {name: n for name, n in lengths.items() if n > MAX_LINES and f"`{name}`" not in reasons}
    assert not unexplained, f"over {MAX_LINES} lines without a reason in docs/architecture.md: {unexplained}"


@pytest.mark.parametrize(
    "module", ["fyp_jax", "fyp_jax.config", "fyp_jax.pipeline.config", "fyp_jax.training.config"]
)
def test_import_of_a_light_module_loads_no_heavy_library(module: str):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "fyp_jax" in loaded
    assert not loaded & {"av", "diffusers", "transformers", "torch"}
    if module in ("fyp_jax", "fyp_jax.config"):
        assert "jax" not in loaded


@pytest.mark.parametrize("name", fyp_jax.__all__)
def test_exported_name_resolves_and_is_listed(name: str):
    assert callable(getattr(fyp_jax, name))
    assert name in dir(fyp_jax)
    assert name == getattr(fyp_jax, name).__name__


def test_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fyp_jax' has no attribute 'Sampler'"):
        fyp_jax.Sampler  # noqa: B018
