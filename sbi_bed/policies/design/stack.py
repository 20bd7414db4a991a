"""Several policies of one architecture, each with weights of its own, run side by side as one.

The first dimension of every batch says which policy; `torch.vmap` turns E small matrix products into one batched one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..base import Policy

__all__ = ["PolicyStack"]


class PolicyStack(nn.Module):
    """E policies as one sequential policy over batches (E, B).

    Args:
        policies: Policies of one class and configuration, whose state consists of tensors (`DeepSetsPolicy`,
            `TransformerPolicy`).

    Raises:
        ValueError: If there is none, they differ in kind, or their design space depends on the history.
    """

    def __init__(self, policies: Sequence[Policy]):
        super().__init__()
        if not policies:
            raise ValueError("a stack needs at least one policy.")
        first = policies[0]
        if any(type(p) is not type(first) or p.config != first.config for p in policies):
            raise ValueError("the policies of a stack must be of one class and configuration.")
        if first.design_space.depends_on_history:
            raise ValueError("policies whose design space depends on the history cannot be stacked.")
        weights, buffers = stack_module_state(list(policies))  # pyright: ignore[reportArgumentType]
        self._names = list(weights)
        self.weights = nn.ParameterList(weights.values())
        self._buffers_of = buffers
        self._method = [_Method(copy.deepcopy(first))]  # in a list: its own weights are not the stack's

    def __len__(self) -> int:
        return len(self.weights[0])

    def initial_state(self, batch_shape: Sequence[int] = ()) -> Any:
        """State before the first trial, for a batch (E, B)."""
        return self._call("initial_state", tuple(batch_shape)[1:])

    def update(self, state: Any, design: Tensor, outcome: Tensor) -> Any:
        """State after one more trial with design (E, B, D) and outcome (E, B, O)."""
        return self._call("update", state, design, outcome, over_arguments=True)

    def propose(self, state: Any) -> Tensor:
        """Next design (E, B, D)."""
        return self._call("propose", state, over_arguments=True)

    def read(self, history: Tensor) -> Any:
        """State after histories (E, B, n, D + O + 1) without padding."""
        state, dim = self.initial_state(history.shape[:-2]), self._method[0].policy.design_dim
        for trial in history.unbind(-2):
            state = self.update(state, trial[..., :dim], trial[..., dim:-1])
        return state

    def unstack(self) -> list[Policy]:
        """The E policies, apart again."""
        policies = []
        for index in range(len(self)):
            policy = copy.deepcopy(self._method[0].policy)
            policy.load_state_dict(
                {name: weight[index] for name, weight in zip(self._names, self.weights, strict=True)}
                | {name: buffer[index] for name, buffer in self._buffers_of.items() if name in policy.state_dict()}
            )
            policies.append(policy)
        return policies

    def _call(self, name: str, *arguments: Any, over_arguments: bool = False) -> Any:
        method = self._method[0]

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], *given: Any) -> Any:
            state = {f"policy.{key}": value for key, value in (weights | buffers).items()}
            return functional_call(method, state, (name, *(given if over_arguments else arguments)))

        weights = dict(zip(self._names, self.weights, strict=True))
        return torch.vmap(one)(weights, self._buffers_of, *(arguments if over_arguments else ()))


class _Method(nn.Module):
    """A policy whose every method is reached through `forward`, as `functional_call` wants."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, name: str, *arguments: Any) -> Any:
        return getattr(self.policy, name)(*arguments)
