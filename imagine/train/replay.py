"""Forward and backward pass of a loss as one CUDA graph: a small model's step is thousands of launches otherwise.

A loss that can be replayed is told apart into what the processor draws (:meth:`Replayable.draw`) and what the GPU
computes (:meth:`Replayable.compute`), which must neither wait for the processor nor take anything from it.

Source: PyTorch's notes on CUDA graphs, "whole-network capture".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Numbers = dict[str, Any]


@runtime_checkable
class Replayable(Protocol):
    """A loss in two halves."""

    def draw(self, step: int, generator: torch.Generator) -> tuple[Hashable | None, dict[str, Tensor]]:
        """What a step needs, on the CPU, and a key: equal keys have equal shapes and equal computations.

        The key is None where the step is not worth a graph of its own.
        """
        ...

    def compute(self, given: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, Numbers]:
        """The loss of what was drawn, on its device, and numbers to log; all noise is of the generator."""
        ...


class Replay:
    """Computes a loss and its gradients, from a graph where it can, else operation by operation."""

    def __init__(
        self,
        loss: Replayable,
        module: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.loss, self.device, self.autocast = loss, device, autocast
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.key: Hashable | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: dict[str, Tensor] = {}
        self.answer: tuple[Tensor, Numbers] = torch.zeros(()), {}
        self.works = True

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, Numbers]:
        """The loss of a step; gradients are then in place, and need not be cleared."""
        key, drawn = self.loss.draw(step, generator)
        torch.cuda.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        if key is not None and key != self.key and self.works:
            self._capture(key, drawn)
        if self.graph is None or key != self.key:
            return self._compute_now({name: value.to(self.device) for name, value in drawn.items()})
        for name, value in drawn.items():
            self.given[name].copy_(value)
        self.graph.replay()
        value, numbers = self.answer
        return value.clone(), {name: number.clone() for name, number in numbers.items()}

    def _compute_now(self, given: dict[str, Tensor]) -> tuple[Tensor, Numbers]:
        for p in self.parameters:
            if p.grad is not None:
                p.grad.zero_()  # in place: a graph may write there
        return self._pass(given)

    def _pass(self, given: dict[str, Tensor]) -> tuple[Tensor, Numbers]:
        with self.autocast():
            value, numbers = self.loss.compute(given, None)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach(), numbers

    def _capture(self, key: Hashable, drawn: dict[str, Tensor]) -> None:
        """Record a pass, after a few that are not recorded, in which libraries choose how to compute it."""
        self.graph, self.key, self.answer = None, key, (torch.zeros(()), {})
        self._forget()
        self.given = {name: value.to(self.device) for name, value in drawn.items()}
        try:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(3):
                    self._pass(self.given)
                    self._forget()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.answer = self._pass(self.given)
            self.graph = graph
        except RuntimeError as error:
            logging.getLogger(__name__).warning("no CUDA graph: %s", error)
            self.works = False
            self._forget()

    def _forget(self) -> None:
        for p in self.parameters:
            p.grad = None
