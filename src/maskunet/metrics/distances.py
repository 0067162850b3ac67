r"""Distances between sets of images in a feature space.

.. math:: \mathrm{FID} = \|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError

#: Larger than any feature; KID raises products of features to the sixth power, which must fit into float64.
_HUGE = 1e20


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Frechet distance of two sets of features, FID in their feature space; lower is closer.

    Args:
        first: (N, D) features of one set.
        second: (M, D) features of the other.

    Raises:
        DataError: the sets have different widths, fewer than two images, or values that are not finite.
    """
    a, b = _require_sets(first, second, 2)
    offset = (a.mean(0) - b.mean(0)).square().sum()
    covariances = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    # tr((A B)^(1/2)) is the sum of the square roots of the eigenvalues of A B, which are real and >= 0.
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    return float(offset + covariances[0].trace() + covariances[1].trace() - 2 * roots)


def require_finite(features: Tensor, source: str, items: Sequence[object] | None = None) -> Tensor:
    """Return features that are all finite, and small enough to be multiplied.

    LAPACK reads past its arrays on NaN, which ends the process; other distances return a number that means nothing.

    Args:
        features: (N, D) features.
        source: what they are of, for the error.
        items: N names, for the error; numbers if None.

    Raises:
        DataError: a value is NaN, infinite or huge.
    """
    is_finite = (features.abs() < _HUGE).flatten(1).all(1)  # false for NaN
    if bool(is_finite.all()):
        return features
    bad = (~is_finite).nonzero().flatten().tolist()
    raise DataError(
        f"expected finite features of {source}, got NaN, infinite or huge ones for {len(bad)} of {len(features)}, first for "
        f"{f'number {bad[0]}' if items is None else items[bad[0]]}; look at it, or compute the features in float32"
    )


def _require_sets(first: Tensor, second: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    if (
        first.ndim != 2
        or second.ndim != 2
        or first.shape[1] != second.shape[1]
        or min(len(first), len(second)) < minimum
    ):
        raise DataError(
            f"expected two sets of at least {minimum} features of one width, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    return require_finite(first, "the first set").double(), require_finite(second, "the second set").double()


def kernel_distance(
    first: Tensor, second: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return KID, the unbiased squared MMD with the kernel (x.y / D + 1)^3; lower is closer.

    Args:
        first: (N, D) features of one set.
        second: (M, D) features of the other.
        subsets: number of random subsets.
        subset_size: images per subset, at most the smaller set's.
        seed: seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        DataError: the sets have different widths, fewer than two images, or values that are not finite.

    Reference: Binkowski et al., "Demystifying MMD GANs", ICLR 2018.
    """
    a, b = _require_sets(first, second, 2)
    size, width = min(subset_size, len(a), len(b)), a.shape[1]
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=generator)[:size]]
        y = b[torch.randperm(len(b), generator=generator)[:size]]
        xx, yy, xy = ((p @ q.T / width + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append(within - 2 * xy.mean())
    distances = torch.stack(values)
    return float(distances.mean()), float(distances.std()) if subsets > 1 else 0.0


def gaussian_distance(first: Tensor, second: Tensor, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """Return CMMD: the squared MMD with a Gaussian kernel on features of unit length, times `scale`; lower is closer.

    Args:
        first: (N, D) features of one set.
        second: (M, D) features of the other.
        sigma: width of the kernel.
        scale: factor of the result.

    Raises:
        DataError: the sets have different widths, one is empty, or values that are not finite.

    Reference: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", CVPR 2024.
    """
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in _require_sets(first, second, 1))

    def mean(x: Tensor, y: Tensor) -> float:
        parts = [torch.exp(-torch.cdist(chunk, y).square() / (2 * sigma**2)).sum() for chunk in x.split(2048)]
        return float(torch.stack(parts).sum()) / (len(x) * len(y))

    return scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def precision_recall(generated: Tensor, real: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Return improved precision and recall, shares of one set inside the other's neighbourhoods; higher is better.

    Args:
        generated: (N, D) features of generated images.
        real: (M, D) features of real images.
        neighbours: k; a neighbourhood reaches to an image's k-th nearest neighbour in its set.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        DataError: the sets have different widths, no more images than `neighbours`, or values that are not finite.

    Reference: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019.
    """
    a, b = _require_sets(generated, real, neighbours + 1)

    def coverage(points: Tensor, support: Tensor) -> float:
        radius = torch.cat([torch.cdist(c, support).kthvalue(neighbours + 1).values for c in support.split(1024)])
        inside = [(torch.cdist(c, support) <= radius).any(1) for c in points.split(1024)]
        return float(torch.cat(inside).double().mean())

    return coverage(a, b), coverage(b, a)
