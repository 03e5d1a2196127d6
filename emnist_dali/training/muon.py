"""Muon in few kernels, all of which a CUDA graph can hold."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import timm.optim
import torch

# Five quintic iterations that bring every singular value near 1:
# https://leloykun.github.io/ponder/muon-opt-coeffs/#how-do-we-optimize-the-coefficients
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# By how much a step of Muon changes a weight, and therefore the rate of the others in units of Muon's
# (Liu et al. 2025, arXiv:2502.16982).
RMS = 0.2
# Operations that a stack may waste on padding: about what a GPU does in the time it takes to start a kernel.
PADDING = 2e9


class Muon(timm.optim.Muon):
    """timm's Muon and its state, with the matrices of all parameters in a few padded stacks.

    Muon for hidden kernels and matrices (Jordan 2024, https://kellerjordan.github.io/posts/muon/); NAdamW for the
    1-channel stem, norms and biases, at a fifth of the rate. All parameters have had as many steps as each other.
    """

    def __init__(self, groups: Sequence[dict], lr: float | torch.Tensor, momentum: float = 0.95) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=True, fallback_lr_scale=RMS, capturable=True)
        self._stacks: dict[tuple[int, ...], list[_Stack]] = {}
        self._betas: torch.Tensor | None = None
        # On a CPU each stack is one thread's work.
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), "muon", _work_alone)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        matrices, others = [], []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            of_group = [p for p in parameters if _is_matrix(p)]
            rest = [p for p in parameters if not _is_matrix(p)]
            _decay(of_group, group["lr"], group["weight_decay"])
            _decay(rest, group["lr"], RMS * group["weight_decay"])
            matrices += of_group
            others += rest
        group = self.param_groups[0]  # they differ in their weight decay only
        if matrices:
            self._step_matrices(matrices, group["lr"], group["momentum"], group["eps"])
        if others:
            self._step_others(others, RMS * group["lr"], group["betas"], group["eps"])

    def _step_matrices(
        self, parameters: list[torch.Tensor], lr: float | torch.Tensor, momentum: float, eps: float
    ) -> None:
        gradients, momenta = [p.grad for p in parameters], self._zeros(parameters, "momentum_buffer")
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        key = tuple(map(id, parameters))
        if key not in self._stacks:
            self._stacks[key] = list(map(_Stack, _stacked(parameters)))
        # From the momenta, because the update takes their memory layout: that of the parameters.
        updates = torch._foreach_lerp(momenta, gradients, 1 - momentum)
        update_of = dict(zip(map(id, parameters), updates, strict=True))

        def update(stack: _Stack) -> None:
            of_stack = [update_of[id(parameter)] for parameter in stack.parameters]
            torch._foreach_sub_(stack.parameters, stack.orthogonalized(of_stack, lr, eps))

        if parameters[0].device.type == "cpu":
            list(self._pool.map(update, self._stacks[key]))
        else:
            for stack in self._stacks[key]:
                update(stack)

    def _step_others(
        self, parameters: list[torch.Tensor], lr: float | torch.Tensor, betas: tuple[float, float], eps: float
    ) -> None:
        """NAdamW as timm's, with its bias corrections on the device."""
        beta1, beta2 = betas
        gradients, averages = [p.grad for p in parameters], self._zeros(parameters, "exp_avg")
        squares, steps = self._zeros(parameters, "exp_avg_sq"), self._steps(parameters)
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        if self._betas is None:
            self._betas = torch.tensor(betas, device=steps[0].device)
        corrections = 1 - self._betas.pow(steps[0])
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, corrections[1].sqrt())
        torch._foreach_add_(denominators, eps)
        torch._foreach_mul_(denominators, corrections[0] / -lr)
        torch._foreach_addcdiv_(parameters, torch._foreach_lerp(averages, gradients, 1 - beta1), denominators)

    def _zeros(self, parameters: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _steps(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        return [self.state[parameter]["step"] for parameter in parameters]


def _work_alone() -> None:
    # Threads within an operation would wait for those of other stacks. Grad mode is a thread's own.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def _decay(parameters: list[torch.Tensor], lr: float | torch.Tensor, weight_decay: float) -> None:
    if parameters and weight_decay:
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)


def _is_matrix(parameter: torch.Tensor) -> bool:
    """timm's choice: neither a stem of one channel, a depthwise kernel, nor anything nearly a vector."""
    if parameter.ndim < 2 or 1 in parameter.shape[:2]:
        return False
    short, long = sorted((parameter.shape[0], parameter[0].numel()))
    return short >= 4 and long <= 128 * short


def _stacked(parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Which parameters share a stack: on a CPU those of equal shapes, on a GPU as many as little padding allows."""
    padding = _padding(parameters[0].device)
    stacks: list[list[torch.Tensor]] = []
    for parameter in sorted(parameters, key=_short_and_long, reverse=True):
        if stacks:
            short, long = zip(_short_and_long(parameter), *map(_short_and_long, stacks[-1]), strict=True)
            row, column = max(short), max(long)
            waste = sum(2 * (row**2 * column - s**2 * n) for s, n in zip(short, long, strict=True))
        if stacks and waste <= padding:
            stacks[-1].append(parameter)
        else:
            stacks.append([parameter])
    return stacks


def _padding(device: torch.device) -> float:
    return PADDING if device.type == "cuda" else 0


def _short_and_long(parameter: torch.Tensor) -> tuple[int, int]:
    """The sides of a parameter as a matrix, output channels by all others."""
    short, long = sorted((parameter.shape[0], parameter[0].numel()))
    return short, long


def _is_wide_matrix(parameter: torch.Tensor) -> bool:
    """Whether its output channels are rows in one piece of memory each, of no fewer elements than there are rows."""
    columns = parameter[0].numel()
    return parameter.shape[0] <= columns == parameter.stride(0)


class _Stack:
    """Parameters as matrices, wider than tall and padded with zeros, in one tensor (K, rows, columns).

    Zeros stay zeros in the iterations, and the order of rows or columns is that of the result: so the elements can be
    taken as they lie in memory.
    """

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.parameters = parameters
        # One alone is a matrix as it lies in memory; copies of it would take a third of its update's time.
        self._lone = len(parameters) == 1 and _is_wide_matrix(parameters[0])
        sides = [_short_and_long(parameter) for parameter in parameters]
        shape = len(parameters), max(short for short, _ in sides), max(long for _, long in sides)
        device = parameters[0].device
        self._shape = shape
        self._sizes = [parameter.numel() for parameter in parameters]
        self._zero = torch.zeros(1, device=device)
        self._scales = torch.tensor([RMS * max(p.shape[0], p[0].numel()) ** 0.5 for p in parameters], device=device)
        if self._lone:
            return
        total = sum(self._sizes)
        # Where each element of the stack lies among those of the parameters, and the inverse; `total` is a zero.
        places, start = torch.full(shape, total, dtype=torch.int64), 0
        for k, parameter in enumerate(parameters):
            n = parameter.numel()
            of_parameter = torch.arange(start, start + n).as_strided(parameter.shape, parameter.stride()).flatten(1)
            wide = of_parameter if of_parameter.shape[0] <= of_parameter.shape[1] else of_parameter.mT
            places[k, : wide.shape[0], : wide.shape[1]] = wide
            start += n
        flat = places.flatten()
        inverse = torch.empty(total + 1, dtype=torch.int64)
        inverse[flat] = torch.arange(len(flat))
        self._places, self._inverse = (t.to(device, torch.int32) for t in (flat, inverse[:total]))

    def orthogonalized(
        self, updates: Sequence[torch.Tensor], lr: float | torch.Tensor, eps: float
    ) -> list[torch.Tensor]:
        """Each update, which lies in memory as its parameter does, as the nearest semi-orthogonal matrix, to be
        subtracted: lr times RMS in size, whatever its shape."""
        flat = [u.as_strided((u.numel(),), (1,)) for u in updates]
        elements = flat[0] if self._lone else torch.cat([*flat, self._zero])
        if elements.device.type == "cpu":
            stack = newton_schulz_of_gram(self._gathered(elements), eps)
        else:
            stack = newton_schulz(self._gathered(elements.bfloat16()), eps)
        parts = self._scattered(stack * (self._scales * lr)[:, None, None])
        return [part.as_strided(u.shape, u.stride()) for part, u in zip(parts, updates, strict=True)]

    def _gathered(self, elements: torch.Tensor) -> torch.Tensor:
        return (elements if self._lone else elements.index_select(0, self._places)).view(self._shape)

    def _scattered(self, stack: torch.Tensor) -> Sequence[torch.Tensor]:
        elements = stack.flatten()
        return (elements if self._lone else elements.index_select(0, self._inverse)).split(self._sizes)


def newton_schulz(stack: torch.Tensor, eps: float) -> torch.Tensor:
    """(K, rows, columns), rows ≤ columns → the same with all singular values near 1, or 0 where they are."""
    stack = _of_unit_norm(stack, eps)
    gram = stack.new_empty((*stack.shape[:2], stack.shape[1]))
    polynomial, other = torch.empty_like(gram), torch.empty_like(stack)
    for a, b, c in NEWTON_SCHULZ:
        torch.bmm(stack, stack.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        torch.baddbmm(stack, polynomial, stack, beta=a, out=other)
        stack, other = other, stack
    return stack


def newton_schulz_of_gram(stack: torch.Tensor, eps: float) -> torch.Tensor:
    """`newton_schulz` of float32, on the square Gram matrices (K, rows, rows): fewer operations for wide matrices.

    Half precision would not do: errors of the Gram matrices grow.
    """
    stack = _of_unit_norm(stack, eps)
    gram = stack @ stack.mT
    product = None
    for a, b, c in NEWTON_SCHULZ:
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ stack


def _of_unit_norm(stack: torch.Tensor, eps: float) -> torch.Tensor:
    return stack / torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp_(min=eps)
