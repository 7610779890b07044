"""Adam (Kingma & Ba 2015, arXiv 1412.6980), torch's, fused into one pass.

    m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
    w <- w - lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)

There is no weight decay: directions have unit norm.
"""

import torch

from saelab.sae.sae import SAE
from saelab.train.optimizer import Optimizer


class Adam(Optimizer):
    """Adam with a small epsilon, because the gradients of wide SAEs are small.

    Args:
        beta1: of the average of gradients, at least 0 and below 1.
        beta2: of the average of their squares, at least 0 and below 1.
        epsilon: is added to the root of the average square; 6.25e-10 in Gao et al. 2024's code.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 6.25e-10):
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def make(self, sae: SAE, lr: float) -> list[torch.optim.Optimizer]:
        self.check_share("beta1")
        self.check_share("beta2")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"Adam: epsilon must not be negative, infinite or NaN, got {self.epsilon}")
        betas = (self.beta1, self.beta2)
        return [torch.optim.Adam(list(sae.parameters()), lr=lr, betas=betas, eps=self.epsilon, fused=True)]
