"""Make the README's pictures: run each tutorial and save one of its figures.

python tutorials/pictures/make.py [name ...]
"""

import base64
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
FIGURES = {  # picture: notebook, cell
    "model_probabilities": ("01_comparing_hierarchical_models", "cell-28"),
    "prior_ridges": ("02_sensitivity_of_conclusions", "cell-11"),
    "ridge_of_a_person": ("03_inverse_decision_making", "cell-13"),
    "treatment_experiment": ("04_whom_to_treat_next", "cell-11"),
}


def make(name: str) -> None:
    """Run a notebook and save the picture of one cell."""
    notebook, cell_id = FIGURES[name]
    content = nbformat.read(HERE.parent / f"{notebook}.ipynb", as_version=4)
    NotebookClient(
        content, timeout=1200, kernel_name="python3", resources={"metadata": {"path": HERE.parent}}
    ).execute()
    outputs = next(cell for cell in content.cells if cell.get("id") == cell_id).outputs
    picture = next(output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    (HERE / f"{name}.png").write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FIGURES:
        make(chosen)
