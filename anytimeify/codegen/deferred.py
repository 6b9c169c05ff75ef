"""`Deferred`: a graph module whose graph is made, and turned into code, when it is first needed.

A model has one graph for all of its levels and one for each of them, and most are never run. It is made by

* a call;
* whoever asks for its `graph` or its `code`, copies or pickles it;
* a compiler that is about to look at the call: as for the lazy modules of torch, it lets the module initialise itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from anytimeify.process import ONE_AT_A_TIME

__all__ = ["Deferred"]


class Deferred(fx.GraphModule, LazyModuleMixin):
    """Runs the graph that a function gives, over the parameters, buffers and children that it has by then.

    Its own names are private: children of backbones may have any other."""

    _make: Callable[[], fx.Graph] | None = None
    _initialize_hook = True  # what compilers know modules by that are yet to be initialised

    @staticmethod
    def of(make: Callable[[], fx.Graph]) -> Deferred:
        module = Deferred(nn.Module(), fx.Graph())
        module._defer(make)
        return module

    def _defer(self, make: Callable[[], fx.Graph]) -> None:
        """Runs what `make` gives, from now on."""
        self.graph = fx.Graph()
        self._make = make

    @property
    def graph(self) -> fx.Graph:
        """As in `fx.GraphModule`. One that is assigned is turned into code when it is first run."""
        if self._make is not None:
            with ONE_AT_A_TIME:
                if self._make is not None:
                    self._graph = self._make()
                    self._graph.owning_module = self
                    self._make = None
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self._make, self._graph = None, graph
        graph.owning_module = self
        type(self).forward = Deferred._first_forward  # every graph module is of a class of its own

    def _first_forward(self, *args: Any) -> Any:
        self._ready()
        return self.forward(*args)

    def _ready(self) -> None:
        with ONE_AT_A_TIME:
            self.graph.owning_module = self
            if type(self).forward is Deferred._first_forward:
                self.recompile()

    def _infer_parameters(self, *_: Any) -> None:  # compilers call it before they look at a lazy module
        self._ready()

    @property
    def code(self) -> str:
        self._ready()
        return super().code

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._ready()
        return super().__deepcopy__(memo)

    def __reduce__(self) -> Any:
        self._ready()
        return super().__reduce__()

    def __str__(self) -> str:
        self._ready()
        return super().__str__()
