r"""Distances between sets of pictures in a space of features.

.. math:: \mathrm{FID} = \|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Frechet distance of two sets of features (FID in that feature space); lower is closer.

    Args:
        first: (N, D) features of one set.
        second: (M, D) features of the other.

    Raises:
        DataError: sets of different width, or of fewer than two pictures.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise DataError(
            f"expected two sets of at least two features of one width, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    a, b = first.double(), second.double()
    offset = (a.mean(0) - b.mean(0)).square().sum()
    covariances = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    # The trace of the product's square root is the sum of the roots of its eigenvalues, which are real and >= 0.
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    return float(offset + covariances[0].trace() + covariances[1].trace() - 2 * roots)
