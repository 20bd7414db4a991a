"""What benchmarks measured: printed, and as a row of the Markdown file that SBI_BED_BENCHMARKS names."""

import datetime
import os
import platform

import matplotlib.pyplot as plt


def report(what, figure, command):
    """Print one measured figure and append it to the table."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch on CPU"
    row = f"| {what} | {figure} | {machine}, {datetime.date.today().isoformat()} | `{command}` |"
    print("\n" + row)
    path = os.environ.get("SBI_BED_BENCHMARKS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(row + "\n")


def save_picture(figure, name):
    """Save a matplotlib figure beside the table that SBI_BED_BENCHMARKS names, if there is one, and close it."""
    path = os.environ.get("SBI_BED_BENCHMARKS")
    if path:
        figure.savefig(os.path.join(os.path.dirname(path), name), dpi=150)
    plt.close(figure)
