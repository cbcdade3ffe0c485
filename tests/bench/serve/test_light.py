"""What measures a server stays light: its processes share the machine with nothing of ours."""

from __future__ import annotations

import subprocess
import sys


def test_measuring_needs_no_plots_no_command_line_and_no_torch() -> None:
    names = ("matplotlib", "typer", "jinja2", "av", "torch", "transformers", "rich")
    code = (
        "import sys, coatcheck.bench.serve.config, coatcheck.bench.serve.result, coatcheck.bench.serve.measure, "
        f"coatcheck.bench.serve.worker; sys.exit(', '.join(set({names!r}) & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
