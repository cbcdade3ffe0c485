"""What the SGLang plugin needs: the same check as when it loads, and what has to be so before it is loaded at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.findings import Finding
from coatcheck.integrations.sglang import settings
from coatcheck.integrations.sglang.plugin import GROUP, NAME
from coatcheck.integrations.sglang.targets import version

_PROBE = (sys.executable, "-m", "coatcheck.doctor.probe")
_TIMEOUT = 300.0  # seconds; a cold import of SGLang takes up to a minute or two
_WHAT = "SGLang"


def sglang_plugin(environ: Mapping[str, str], wanted: bool) -> list[Finding]:
    """``wanted``: SGLang is to be served with; without it, its absence is no failure, nor is a plugin switched off."""
    findings = [chosen(environ, wanted), *elsewhere(wanted)]
    if version() is None:
        means = "install coatcheck into SGLang's environment" if wanted else "nothing to do, unless you want to use it"
        return [*findings, Finding(_WHAT, f"not installed in {sys.prefix}", means, "failed" if wanted else "ok")]
    if environ.get(settings.ENABLED) == "0" and not wanted:
        return findings
    return [*findings, entry_point(environ), *probe(_PROBE)]


def chosen(environ: Mapping[str, str], wanted: bool) -> Finding:
    """The plugin's settings."""
    what = f"settings ({settings.PREFIX}*)"
    try:
        read = settings.read(environ)
    except ConfigError as error:
        return Finding(what, str(error), "the plugin stands aside until this is put right", "failed")
    values = {variable.name: environ.get(variable.name, variable.default) for variable in settings.VARIABLES}
    found = ", ".join(f"{name.removeprefix(settings.PREFIX)}={value}" for name, value in values.items())
    if not read.enabled or read.share == 0:
        means = "every request takes SGLang's own path" if read.enabled else "the plugin is switched off"
        return Finding(what, found, means, "failed" if wanted else "warning")
    return Finding(what, found, "as they are in this shell; what counts is the server's environment", "ok")


def elsewhere(wanted: bool) -> list[Finding]:
    """The ``sglang`` that this shell would start, if it belongs to another environment than this one."""
    command = shutil.which("sglang")
    python = interpreter(Path(command)) if command else None
    if python is None or python.parent.parent.resolve() == Path(sys.prefix).resolve():
        return []
    means = f"the plugin has to be installed beside SGLang: {python} -m pip install coatcheck"
    found = f"{command} runs in {python.parent.parent}, coatcheck is in {sys.prefix}"
    return [Finding("environment", found, means, "failed" if wanted else "warning")]


def interpreter(script: Path) -> Path | None:
    """The Python that a console script names in its first line; None if it names none."""
    try:
        with script.open("rb") as file:
            line = file.readline(4096)
    except OSError:
        return None
    found = re.fullmatch(
        rb"#!(/.*/python[0-9.]*)", line.strip()
    )  # not "/usr/bin/env python3": that is this shell's own
    return Path(os.fsdecode(found[1])) if found else None


def entry_point(environ: Mapping[str, str]) -> Finding:
    """Whether SGLang will find the plugin, and load it."""
    what = "entry point"
    if not any(entry.name == NAME for entry in entry_points(group=GROUP)):
        means = "SGLang does not find the plugin: install coatcheck again, with pip, into this environment"
        return Finding(what, f"none named {NAME} in {GROUP}", means, "failed")
    chosen = [name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()]
    if chosen and NAME not in chosen:
        means = f"SGLang does not load the plugin: add {NAME}, or unset the variable"
        return Finding(what, f"SGLANG_PLUGINS={','.join(chosen)}", means, "failed")
    return Finding(what, f"{NAME} in {GROUP}", "SGLang loads the plugin in each of its processes", "ok")


def probe(command: tuple[str, ...]) -> list[Finding]:
    """The plugin's own check, in a process of its own. ``command`` prints the findings as JSON."""
    means = "what the plugin hooks could not be looked at; SGLang would fail here in the same way"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
        return msgspec.json.decode(done.stdout, type=list[Finding])
    except subprocess.TimeoutExpired:
        return [Finding(_WHAT, f"its import did not end within {_TIMEOUT:.0f} s", means, "failed")]
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing was printed"]
        return [Finding(_WHAT, f"its import ended with status {done.returncode}: {lines[-1]}", means, "failed")]
