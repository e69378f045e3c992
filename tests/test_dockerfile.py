"""The Dockerfile, step by step outside a container: its paths moved to a temporary folder, its commands as they are.

The one step that cannot run as it would in the image is the installation of Python by apt-get, which only NVIDIA's
base image needs. Its guard is run both ways, with stand-ins for the two commands behind it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repository import FILES, ROOT

PREFIX = "/opt/gpuopt"  # every absolute path of the Dockerfile lies under it
CPU_BUILD = {"BASE": "python:3.12-slim", "EXTRAS": "demo"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest of the line) in order, comments left out."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    found = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, rest in found]


def steps(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], text)


def stand_ins(folder: Path, *names: str) -> Path:
    """Programs of these names that write down how they were called, in `folder/calls`."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{folder}/calls"\n')
        (folder / name).chmod(0o755)
    return folder


def calls(folder: Path) -> list[str]:
    log = folder / "calls"
    return log.read_text().splitlines() if log.exists() else []


def test_base_images_and_extras() -> None:
    arguments = dict(rest.split("=", 1) for rest in steps("ARG"))
    assert re.fullmatch(r"nvidia/cuda:13\.[\d.]+-runtime-ubuntu24\.04", arguments["BASE"])
    assert arguments["EXTRAS"] == "cuda13,demo"
    assert set(CPU_BUILD) == set(arguments)
    assert steps("FROM") == ["${BASE}"]


def test_only_known_instructions_and_only_one_step_uses_apt() -> None:
    assert {name for name, _ in instructions()} == {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "CMD"}
    assert [step for step in steps("RUN") if "apt-get" in step] == steps("RUN")[:1]


def test_python_is_installed_only_where_it_is_missing(tmp_path: Path) -> None:
    step = steps("RUN")[0]
    present = stand_ins(tmp_path / "present", "apt-get")
    here = f"{present}:{Path(sys.executable).parent}"
    subprocess.run(["/bin/sh", "-c", step], env={"PATH": here}, check=True)
    assert calls(present) == []

    missing = stand_ins(tmp_path / "missing", "apt-get", "rm")
    subprocess.run(["/bin/sh", "-c", step], env={"PATH": str(missing)}, check=True)
    install, *clean = calls(missing)[1:]
    assert calls(missing)[0] == "apt-get update"
    assert install == "apt-get install -y --no-install-recommends python3 python3-venv"
    assert [line.split()[:2] for line in clean] == [["rm", "-rf"]]


@pytest.mark.slow
def test_image_builds_and_runs(tmp_path: Path) -> None:
    image, folder = tmp_path / "gpuopt", tmp_path
    variables = dict(CPU_BUILD)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "GPUOPT_BACKEND")}

    def shell(command: list[str]) -> str:
        command = [expand(part, variables).replace(PREFIX, str(image)) for part in command]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    for name, rest in instructions():
        if name == "RUN":
            shell(["/bin/sh", "-c", rest])
        elif name == "COPY":
            source, target = rest.split()
            assert source == "."
            copy_repository(Path(target.replace(PREFIX, str(image))))
        elif name == "ENV":
            variable, value = rest.split("=", 1)
            environment[variable] = expand(value, environment).replace(PREFIX, str(image))
        elif name == "WORKDIR":
            folder = Path(rest.replace(PREFIX, str(image)))
            folder.mkdir(parents=True)
        elif name == "CMD":
            printed = shell(json.loads(rest))
    assert printed.startswith("gpuopt ")
    assert "backends:" in printed and "test accuracy" in printed
    assert (folder / "gpuopt-demo.png").stat().st_size > 10_000
    for kind in ("*.cuh", "*.py"):
        installed = list((image / "venv").rglob(f"site-packages/gpuopt/kernels/{kind}"))
        assert {path.name for path in installed} == {path.name for path in (ROOT / "kernels").glob(kind)} != set()


def copy_repository(target: Path) -> None:
    for path in FILES:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
