"""Logistic regression: of one input for very many inputs at once, and of many inputs at once.

    minimise over w, b   mean softplus(-s (w z + b)) + ridge / 2 w^2         s = 1 where the label is yes, else -1

`one_each` fits each of c inputs by itself, by Newton's method with 2 x 2 Hessians, on inputs brought to mean 0 and
variance 1 on the examples that are fitted; a step that does not lower the loss is halved; |w| is capped, since labels
that an input separates have no finite optimum. `least_loss` says of which inputs a fit would be wasted. `together` fits
all inputs of one task jointly in float64, by Newton's method, or L-BFGS where there are very many.
"""

# Shape letters: n examples, c inputs.

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE, CAP = 1e-6, 20.0
NEWTON_INPUTS, NEWTON_STEPS = 1024, 50
"""Inputs that are fitted together by Newton's method at most, and its steps."""
ITERATIONS, TOLERANCE = 20, 3e-3
STEP = 4.0
"""No step of w or b is longer than this."""


@dataclass(frozen=True)
class OneEach:
    """c regressions of one input."""

    weight: Tensor
    """Of the input itself, [c]."""
    bias: Tensor
    """[c]."""
    loss: Tensor
    """Mean loss on the examples fitted, in nats, without the ridge; [c]."""

    def losses(self, z: Tensor, label: Tensor) -> Tensor:
        """Loss of each example [n, c] for inputs z [n, c] and labels [n]."""
        return F.softplus(-_sign(label, z)[:, None] * (self.weight * z + self.bias))


def _sign(label: Tensor, like: Tensor) -> Tensor:
    return label.to(like) * 2 - 1


def one_each(z: Tensor, label: Tensor, ridge: float = RIDGE, cap: float = CAP) -> OneEach:
    """Fit each column of z [n, c] by itself to labels [n] bool. A column that is constant gets no weight.

    Args:
        z: inputs.
        label: whether the answer is yes.
        ridge: on the weight of the standardised input.
        cap: of the absolute weight of the standardised input.
    """
    mean, std = z.mean(0), z.std(0, correction=0)
    scale = (1 / std).where(std > 1e-6 * (1 + mean.abs()), 0)
    fit = _Fit((z - mean) * scale, _sign(label, z)[:, None], ridge, cap)
    found = torch.zeros(3, z.shape[1], dtype=z.dtype, device=z.device)
    left = torch.arange(z.shape[1], device=z.device)
    for _ in range(ITERATIONS):
        moving = fit.step()
        found[:, left] = torch.stack([fit.loss, fit.w, fit.b])
        # Most inputs are done after a few steps: go on with the others once they are the smaller half.
        count = int(moving.sum())
        if not count:
            break
        if 2 * count < len(left):
            left = left[moving]
            fit.keep(moving)
    loss, w, b = found
    return OneEach(w * scale, b - w * scale * mean, loss - ridge / 2 * w.square())


def least_loss(z: Tensor, labels: Tensor) -> Tensor:
    """A bound that the loss of no weight and bias goes below, [Q, c], for inputs z [n, c] and labels [Q, n] bool.

    By duality, the loss is at least the mean entropy of any a in [0, 1]^n with sum s a = sum s a z = 0. The residuals
    of least squares, a = |y - p|, are such if all p are in [0, 1], and the entropy of a is at least 4 ln 2 a (1 - a):

        loss >= 4 ln 2 m (1 - m) (1 - r^2)        m the mean of y, r its correlation with z

    An input with outliers has some p outside [0, 1]: see `_least_with_outliers`.
    """
    middle = z.mean(0)
    centred = z - middle
    std = centred.square().mean(0).sqrt()
    scale = (1 / std).where(std > 1e-6 * (1 + middle.abs()), 0)
    y = labels.to(z)
    mean = y.mean(1, keepdim=True)
    slope = (y - mean) @ centred * scale / len(z)  # of the standardised input
    fits = _between(mean, slope, centred.amin(0) * scale, centred.amax(0) * scale)
    found = (mean * (1 - mean) - slope.square()).where(fits, 0)
    rest = (~fits.all(0)).nonzero().flatten()
    if len(rest):
        other = _least_with_outliers(centred[:, rest] * scale[rest], mean, slope[:, rest])
        found[:, rest] = torch.maximum(found[:, rest], other)
    return 4 * math.log(2) * found


def _least_with_outliers(z: Tensor, mean: Tensor, slope: Tensor) -> Tensor:
    """The bound over 4 ln 2 for standardised inputs z [n, c] of any kind; 0 where nothing can be said; [Q, c].

    p = m + v (a + b z) has what the bound needs, too, where a and b are such that p - y is orthogonal to 1 and to z,
    whatever v [n] is; a (1 - a) is then m (1 - m) - v^2 (a + b z)^2 in the mean. With v = 1 / (1 + (z / 2)^2) outliers
    hardly move p.

    Args:
        z: inputs.
        mean: m of each kind of label, [Q, 1].
        slope: mean of (y - m) z, [Q, c].
    """
    v = 1 / (1 + (z / 2).square())
    vz = v * z
    once = [v.mean(0), vz.mean(0), (vz * z).mean(0)]
    twice = [(v * v).mean(0), (v * vz).mean(0), (vz * vz).mean(0)]
    determinant = once[0] * once[2] - once[1].square()
    a, b = -slope * once[1] / determinant, slope * once[0] / determinant
    moved = a.square() * twice[0] + 2 * a * b * twice[1] + b.square() * twice[2]
    fits = _between(mean, a, v.amin(0), v.amax(0), b, vz.amin(0), vz.amax(0))
    return (mean * (1 - mean) - moved).where(fits, 0)


def _between(mean: Tensor, *terms: Tensor) -> Tensor:
    """Whether mean + sum of f u is surely between 0 and 1, for triples of a factor f [Q, c] and the ends of u [c]."""
    low = high = mean
    for factor, least, most in zip(terms[::3], terms[1::3], terms[2::3], strict=True):
        low, high = (
            low + torch.minimum(factor * least, factor * most),
            high + torch.maximum(factor * least, factor * most),
        )
    return (low >= 0) & (high <= 1)


class _Fit:
    """Newton's method for standardised inputs [n, c]: the best parameters so far and the step to try next."""

    def __init__(self, inputs: Tensor, sign: Tensor, ridge: float, cap: float):
        self.inputs, self.sign, self.ridge, self.cap = inputs, sign, ridge, cap
        zero = torch.zeros_like(inputs[0])
        self.w, self.b, self.step_w, self.step_b = zero, zero, zero, zero
        self.loss = torch.full_like(zero, torch.inf)

    def step(self) -> Tensor:
        """Try the step; which inputs [c] have not come to rest."""
        w, b = (self.w + self.step_w).clamp(-self.cap, self.cap), self.b + self.step_b
        margin = self.sign * (w * self.inputs + b)
        wrong = torch.sigmoid(-margin)  # the probability of the other label
        loss = F.softplus(-margin).mean(0) + self.ridge / 2 * w.square()
        better = loss < self.loss
        newton_w, newton_b = _newton(self.inputs, self.sign, wrong, w, self.ridge)
        self.loss, self.w, self.b = loss.where(better, self.loss), w.where(better, self.w), b.where(better, self.b)
        self.step_w, self.step_b = newton_w.where(better, self.step_w / 2), newton_b.where(better, self.step_b / 2)
        ahead = (self.w + self.step_w).clamp(-self.cap, self.cap) - self.w
        return torch.maximum(ahead.abs(), self.step_b.abs()) > TOLERANCE

    def keep(self, which: Tensor) -> None:
        """Go on with some of the inputs, [c] bool."""
        self.inputs = self.inputs[:, which]
        for name in ("w", "b", "step_w", "step_b", "loss"):
            setattr(self, name, getattr(self, name)[which])


def _newton(inputs: Tensor, sign: Tensor, wrong: Tensor, w: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The steps of w and b [c] of Newton's method, cut to STEP."""
    n, slope = len(inputs), sign * wrong
    curve = wrong * (1 - wrong)
    curved = curve * inputs
    g_w, g_b = (slope * inputs).sum(0) / n - ridge * w, slope.sum(0) / n
    h_ww, h_wb, h_bb = (curved * inputs).sum(0) / n + ridge, curved.sum(0) / n, curve.sum(0) / n
    determinant = (h_ww * h_bb - h_wb.square()).clamp_min(1e-10)
    step_w = (h_bb * g_w - h_wb * g_b) / determinant
    step_b = (h_ww * g_b - h_wb * g_w) / determinant
    return step_w.clamp(-STEP, STEP), step_b.clamp(-STEP, STEP)


@dataclass(frozen=True)
class Together:
    """A regression of d inputs."""

    weight: Tensor
    """[d], of the inputs themselves."""
    bias: float

    def logits(self, x: Tensor) -> Tensor:
        """Log odds of yes [n] for inputs [n, d]."""
        return x @ self.weight.to(x) + self.bias

    def accuracy(self, x: Tensor, label: Tensor) -> Tensor:
        """Whether each example is answered right, [n] float64, for inputs [n, d] and labels [n]."""
        return ((self.logits(x) > 0) == label).double()


def together(x: Tensor, label: Tensor, ridge: float = 1e-2) -> Together:
    """Fit all inputs [n, d] of a task jointly to labels [n] bool.

    Args:
        x: inputs; one that is constant gets no weight.
        label: whether the answer is yes.
        ridge: on the weights of standardised inputs.
    """
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    scale = (1 / std).where(std > 1e-6 * (1 + mean.abs()), 0)
    inputs, sign = (x.double() - mean) * scale, _sign(label, x.double())

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = torch.from_numpy(parameters[:-1]), parameters[-1]
        margin = sign * (inputs @ w + b)
        slope = -sign * torch.sigmoid(-margin) / len(x)
        value = F.softplus(-margin).mean() + ridge / 2 * w.square().sum()
        gradient = torch.cat([inputs.T @ slope + ridge * w, slope.sum()[None]])
        return value.item(), gradient.numpy()

    if x.shape[1] <= NEWTON_INPUTS:
        found = _newton_together(inputs, sign, ridge)
    else:
        start = np.zeros(x.shape[1] + 1)
        options = {"maxiter": 300}
        found = torch.from_numpy(scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)
    weight = found[:-1] * scale
    return Together(weight, float(found[-1] - (weight * mean).sum()))


def _newton_together(inputs: Tensor, sign: Tensor, ridge: float) -> Tensor:
    """Weights and bias [d + 1] of standardised inputs [n, d]; a step that does not lower the loss is halved."""
    n = len(inputs)
    padded = torch.cat([inputs, inputs.new_ones(n, 1)], 1)
    penalty = inputs.new_full((padded.shape[1],), ridge)
    penalty[-1] = 1e-9  # next to none for the bias

    def loss(parameters: Tensor) -> Tensor:
        return F.softplus(-sign * (padded @ parameters)).mean() + (penalty * parameters.square()).sum() / 2

    found = inputs.new_zeros(padded.shape[1])
    best = loss(found)
    for _ in range(NEWTON_STEPS):
        wrong = torch.sigmoid(-sign * (padded @ found))
        gradient = penalty * found - padded.T @ (sign * wrong) / n
        hessian = padded.T @ (padded * (wrong * (1 - wrong) / n)[:, None]) + torch.diag(penalty.clamp_min(1e-9))
        step = torch.linalg.solve(hessian, gradient)
        while not (now := loss(found - step)) <= best and step.abs().max() > 1e-9:
            step = step / 2
        if not now <= best:
            break
        found, best = found - step, now
        if step.abs().max() < 1e-6:
            break
    return found
