"""Programs in C++ around the CPU kernels, built without Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"
# As CMakeLists.txt has them.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", f"-I{CSRC}"]


class BuildFailed(RuntimeError):
    """g++ refused; the message is its own."""


def build(main: Path, flags: list[str], folder: Path) -> Path:
    """The program of ``main`` and all CPU kernels, compiled with ``flags`` besides, in ``folder``.

    Raises:
        BuildFailed: a source does not compile.
    """
    sources = [main, *sorted(CSRC.glob("*.cpp")), *sorted(CSRC.glob("common/*.cpp"))]
    sources = [source for source in sources if "binding" not in source.name]
    objects = [folder / f"{source.stem}.o" for source in sources]
    builds = [
        subprocess.Popen(
            ["g++", *FLAGS, *flags, "-c", source, "-o", target], stderr=subprocess.PIPE, text=True
        )
        for source, target in zip(sources, objects, strict=True)
    ]
    messages = [build.communicate()[1] for build in builds]
    for one, message in zip(builds, messages, strict=True):
        if one.returncode:
            raise BuildFailed(message)
    program = folder / main.stem
    subprocess.run(["g++", *flags, *objects, "-o", program], check=True)
    return program
