"""Functions of tensors, compiled by PyTorch's compiler (TorchInductor): for planners, whose time
goes into the dispatch of many small operations.

A function is traced once for each shape of its arguments, down to tensor operations, and those are
compiled: on a CPU ahead of time to machine code (AOTInductor), whose calls check nothing; elsewhere
by `torch.compile`, on an NVIDIA GPU as one CUDA graph."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from modules.by_hand.caches import tracing
from modules.types import ConfigError, shorten

log = logging.getLogger(__name__)

MAX_GRAPHS = 8
"""Shapes for which a function is compiled; for others it is called as it is."""

Run: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def compiler() -> str:
    """The C++ compiler that PyTorch's compiler calls."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def check_compiler() -> None:
    """Raises ConfigError where there is no C++ compiler."""
    if shutil.which(compiler()) is None:
        raise ConfigError(
            f"compilation needs a C++ compiler, and {shorten(compiler())} is not found: install "
            "one (apt install g++), name one in the environment variable CXX, or leave --compile "
            "out"
        )


class Keyed:
    """An argument of compiled functions that is read once for all of them."""

    def __init__(self, value: Any, tensors: list[Tensor] | None = None, key: Any = None) -> None:
        """`tensors` and `key`: of the value, where they are known; of the value itself only the
        structure and the constants count then."""
        self.value, self.tensors, self.key = value, tensors or [], key
        if tensors is None:
            self.key = _key(value, self.tensors)

    def get(self) -> Any:
        """The value with its tensors."""
        return _rebuilt(self.value, iter(self.tensors))


class Compiled:
    """A function of tensors without side effects, compiled once for each shape. Its arguments are
    tensors, tuples and mappings of tensors, and values that can be hashed, which are constants; so
    are all random draws. Its result has no gradient. What it reads of tensors that are not
    arguments, weights above all, is read anew in each call.

    Raises ConfigError for a function that can't be compiled, because it has branches that depend on
    numbers in tensors for instance."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        self.graphs: dict[Any, Graph | None] = {}

    def __call__(self, *args: Any) -> Any:
        return self.keyed(*args).get()

    def keyed(self, *args: Any) -> Keyed:
        """The result, as an argument of another compiled function."""
        tensors: list[Tensor] = []
        key = _key(args, tensors)
        try:
            graph = self.graphs[key]
        except KeyError:
            graph = self.graphs[key] = self._compile(args, tensors)
        return Keyed(self.function(*_plain(args))) if graph is None else graph(tensors)

    def _compile(self, args: Any, tensors: Sequence[Tensor]) -> Graph | None:
        count = sum(graph is not None for graph in self.graphs.values())
        if count == MAX_GRAPHS == len(self.graphs):
            log.warning("%s is compiled for %d shapes, and not for more", self.name, count)
        if count >= MAX_GRAPHS:
            return None
        log.info("compiling %s, once for tensors of these shapes", self.name)
        try:
            # tensors of inference mode can't be differentiated
            with torch.inference_mode(False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, about itself
                copies = [part.clone(memory_format=torch.contiguous_format) for part in tensors]
                return Graph(self.function, args, copies)
        except Exception as error:  # whatever tracing, code generation or a compiler raises
            line = " ".join(str(error).split())
            raise ConfigError(
                f"{self.name} can't be compiled, leave --compile out: {type(error).__name__}: "
                f"{line[:300]}"
            ) from error


class Graph:
    """A function, compiled for arguments of one shape."""

    def __init__(self, function: Callable[..., Any], args: Any, tensors: list[Tensor]) -> None:
        """`tensors`: those in `args`, in their order."""
        result: Any = None
        order: list[int] = []  # of each tensor of the result, its place among the outputs

        def flat_function(*inputs: Tensor) -> list[Tensor]:
            nonlocal result, order
            result = function(*_rebuilt(args, iter(inputs)))
            found: list[Tensor] = []
            _key(result, found)
            unique = {id(tensor): tensor for tensor in found}
            order = [list(unique).index(id(tensor)) for tensor in found]
            return [tensor.detach() for tensor in unique.values()]

        tracing.active = True
        try:
            with torch.no_grad():
                flat_function(*tensors)  # fills caches, which must not keep what is traced
                module, weights = traced(flat_function, tensors)
        finally:
            tracing.active = False
        self.result, self.order = _rebuilt(result, repeat(torch.empty(0))), order
        self.used, self.weights = only_used(module, len(tensors), weights)
        device = tensors[0].device.type
        compile_module = ahead_of_time if device == "cpu" else just_in_time
        examples = [*(tensors[i] for i in self.used), *(part.detach() for part in self.weights)]
        self.run = compile_module(module, examples)
        self.key: Any = None
        self.key = _key(self(tensors).get(), [])

    def __call__(self, tensors: Sequence[Tensor]) -> Keyed:
        outputs = self.run([*(tensors[i].contiguous() for i in self.used), *self.weights])
        return Keyed(self.result, [outputs[i] for i in self.order], self.key)


def traced(
    function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of a function of tensors, and the tensors that are no arguments of it, which
    become its last ones."""
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    module = make_fx(function, decomposition_table={torch.ops.aten.addmm.default: _addmm})(*tensors)
    graph: Any = module.graph
    weights: dict[str, tuple[fx.Node, Tensor]] = {}
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if node.target not in weights:
            with graph.inserting_after(last):
                last = graph.placeholder(f"weight_{len(weights)}")
            weights[node.target] = last, getattr(module, node.target)
        node.replace_all_uses_with(weights[node.target][0])
        graph.erase_node(node)
    module.recompile()
    # not detached: a parameter that is moved has another memory then
    return module, [tensor for _, tensor in weights.values()]


def only_used(
    module: fx.GraphModule, num_arguments: int, weights: Sequence[Tensor]
) -> tuple[list[int], list[Tensor]]:
    """Removes the inputs that no operation reads, arguments first and then weights; the indices of
    the other arguments, and the other weights."""
    graph: Any = module.graph
    graph.eliminate_dead_code()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    used = [index for index, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            graph.erase_node(node)
    module.recompile()
    arguments = [index for index in used if index < num_arguments]
    return arguments, [weights[i - num_arguments] for i in used if i >= num_arguments]


def _addmm(
    bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """With the addition as an operation of its own, which is compiled into the next one. The
    compiler would join an addition that follows a product directly with it again."""
    product = (left @ right)[None] if alpha == 1 else alpha * (left @ right)[None]
    return (product + (bias if beta == 1 else beta * bias))[0]


def ahead_of_time(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Compiled to machine code, whose calls check nothing."""
    import torch._inductor  # slow to import

    program = torch.export.export(module, tuple(tensors), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "function.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
    run: Any = package.loader.run
    return run


def just_in_time(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Compiled in the first call; on an NVIDIA GPU to a CUDA graph, whose results the next call
    overwrites, and which are copied therefore."""
    is_cuda = tensors[0].device.type == "cuda"
    mode = "reduce-overhead" if is_cuda else None
    call = torch.compile(module, fullgraph=True, dynamic=False, mode=mode)

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        outputs = call(*tensors)
        return [output.clone() for output in outputs] if is_cuda else outputs

    run(tensors)
    return run


def _key(value: Any, tensors: list[Tensor]) -> Any:
    """What a compiled function depends on besides the numbers in tensors, which are appended."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.dtype, value.device
    if isinstance(value, Keyed):
        tensors += value.tensors
        return value.key
    if isinstance(value, tuple):
        return type(value), *(_key(part, tensors) for part in value)
    if isinstance(value, Mapping):
        return tuple((name, _key(part, tensors)) for name, part in value.items())
    return value


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.get() if isinstance(arg, Keyed) else arg for arg in args)


def _rebuilt(value: Any, tensors: Iterator[Any]) -> Any:
    """The value with other tensors in it, in the order of `_key`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Keyed):
        return _rebuilt(value.value, tensors)
    if isinstance(value, tuple):
        parts = [_rebuilt(part, tensors) for part in value]
        return type(value)._make(parts) if hasattr(value, "_fields") else tuple(parts)  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {name: _rebuilt(part, tensors) for name, part in value.items()}
    return value
