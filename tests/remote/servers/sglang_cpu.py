"""Runs SGLang's server on a CPU, with the flags of ``python -m sglang.launch_server``.

Two things that it imports have no build for a CPU. ``sgl_kernel`` is replaced by a module of which
nothing works, since what runs on plain torch never calls it. The compiled half of torchvision wants
the CUDA libraries; of its operators only the names are needed, and they are declared here. All else
is SGLang's own: scheduler, radix cache, sampler, HTTP.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import torch


class Unavailable(ModuleType):
    """A package that can be imported, and whose every function says that it is not there."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__ = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError(f"{self.__name__}.{name} needs a GPU")

        return refuse


def declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# At the top, since the processes that SGLang spawns import this file again. The library lives as
# long as the name.
operators = declare_operators()
sys.modules["sgl_kernel"] = Unavailable("sgl_kernel")


def main() -> None:
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    settings = prepare_server_args(sys.argv[1:])
    try:
        run_server(settings)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
