"""docs/quickstart.ipynb runs from top to bottom, but for what needs the network."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
FROM_THE_NETWORK = ("%pip", "fyp-import", "checkpoints/sd15", "wget", "curl", "git clone")
FEW_STEPS = "num_inference_steps = 2\nnum_train_steps = 2\n"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def tags(cell: Any) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_notebook_has_no_outputs():
    for cell in cells("code"):
        assert cell["outputs"] == [], cell["id"]
        assert cell["execution_count"] is None, cell["id"]


def test_cells_of_the_network_and_no_others_are_marked():
    for cell in cells("code"):
        needs_network = any(word in "".join(cell["source"]) for word in FROM_THE_NETWORK)
        assert ("network" in tags(cell)) == needs_network, cell["id"]
    assert sum("network" in tags(cell) for cell in cells("code")) == 3
    assert sum("parameters" in tags(cell) for cell in cells("code")) == 1


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "network" not in tags(cell)]
    for cell in notebook.cells:
        if "parameters" in tags(cell):
            cell.source = FEW_STEPS
    command = tmp_path / "bin" / "fyp-export"  # as an installed wheel has it
    command.parent.mkdir()
    main = "from fyp_jax.cli.export_pytorch import console"
    command.write_text(f"#!{sys.executable}\n{main}\nconsole()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(command.parent), os.environ["PATH"]]))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()

    pictures = [
        output.data["image/gif"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/gif" in output.get("data", {})
    ]
    assert len(pictures) == 4, "clips that the notebook shows"
    assert len(set(pictures)) == 4
    assert (tmp_path / "robot_model" / "model_index.json").is_file()
    assert (tmp_path / "robot_model" / "README.md").read_text().startswith("---\n")
