r"""SynGen's loss: the attention maps of a noun and its modifiers agree, and differ from those of all other words.

With the maps :math:`A` as distributions over positions, the distance of two words is

.. math:: d(a, b) = \tfrac12 KL(A_a \| A_b) + \tfrac12 KL(A_b \| A_a) = \tfrac12 \sum_x (A_a - A_b)(\log A_a - \log A_b)

and the loss of a prompt, over phrases S with noun n and modifiers m, and the tokens U of the prompt outside S,

.. math::
    L = \sum_S \sum_{m \in S} \Big[ d(m, n) - \frac{1}{|U|} \sum_{u \in U} \frac{d(m, u) + d(n, u)}{2} \Big].

A word of several tokens counts by its most distant token. A noun without modifiers adds the negative part for itself.

Reference: Rassin et al., "Linguistic Binding in Diffusion Models: Enhancing Attribute Correspondence through Attention Map
Alignment", NeurIPS 2023, equations 1 to 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tokens import PromptTokens, WordTokens


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return the distance d of every pair of maps, (R, K), differentiable.

    Args:
        first: maps (R, N), not negative; each is scaled to a sum of 1.
        second: maps (K, N), not negative; each is scaled to a sum of 1.
    """
    p, q = (maps / maps.sum(1, keepdim=True) for maps in (first, second))
    # A map may be zero in half precision; the original clamps its logarithms alike (torch.distributions.Categorical).
    eps = torch.finfo(p.dtype).eps
    log_p, log_q = (x.clamp(eps, 1 - eps).log() for x in (p, q))
    return ((p[:, None] - q) * (log_p[:, None] - log_q)).sum(2) / 2


def binding_loss(maps: Tensor, prompt: PromptTokens) -> Tensor:
    """Return the loss L of one prompt, a scalar.

    Args:
        maps: attention to each of L tokens at N positions, (N, L), not negative.
        prompt: tokens of the prompt and of its phrases; without phrases the loss is 0.
    """
    phrase_tokens = sorted({t for phrase in prompt.phrases for word in phrase.words for t in word})
    if not phrase_tokens:
        return maps.new_zeros(())
    rows, columns = ({t: i for i, t in enumerate(tokens)} for tokens in (phrase_tokens, prompt.content))
    distances = symmetric_kl(maps[:, phrase_tokens].T, maps[:, list(prompt.content)].T)

    def pairwise(a: WordTokens, b: WordTokens) -> Tensor:
        return distances[[rows[t] for t in a]][:, [columns[t] for t in b]]

    total = maps.new_zeros(())
    for phrase in prompt.phrases:
        inside = {t for word in phrase.words for t in word}
        outside = tuple(t for t in prompt.content if t not in inside)
        contrast = {
            word: pairwise(word, outside).amax(0).mean() if outside else maps.new_zeros(()) for word in phrase.words
        }
        for modifier in phrase.modifiers:
            agreement = pairwise(modifier, phrase.noun).max()
            total = total + agreement - (contrast[modifier] + contrast[phrase.noun]) / 2
        if not phrase.modifiers:
            total = total - contrast[phrase.noun]
    return total
