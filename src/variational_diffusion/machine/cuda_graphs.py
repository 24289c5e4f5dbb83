"""CUDA graphs: a function recorded once, with all its kernels, and replayed in one launch.

A training step of a small network is a thousand kernels of a few microseconds each; a processor
takes longer to launch them than a GPU to run them (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UP = 2  # calls before the recording: lazy initialisation happens in them


class Recorded:
    """A function of CUDA tensors to a sequence of CUDA tensors; from the third call on, a replay.

    The function must launch the same kernels whenever it is called, and not wait for the device.
    What it changes, such as gradients and weights, must stay at the place it has in memory; no
    number that Python computes may change from call to call.

    generators: those it draws from, beside the default one. They may be seeded between calls.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.function = function
        self.generators = generators
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return the function of the inputs, in tensors that later calls leave alone."""
        self.calls += 1
        if self.calls <= _WARM_UP:
            return self._on_a_stream_of_its_own(*inputs)
        if self.graph is None:
            self._record(inputs)
        assert self.graph is not None
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return [output.clone() for output in self.outputs]

    def _on_a_stream_of_its_own(self, *inputs: Tensor) -> list[Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = list(self.function(*inputs))
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [given.clone() for given in inputs]
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.outputs = list(self.function(*self.inputs))


def is_recording(tensor: Tensor) -> bool:
    """Return whether a graph is being recorded, so that no value may be looked at."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
