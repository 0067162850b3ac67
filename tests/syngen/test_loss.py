"""The loss, by hand and from the paper's equations."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from maskunet.syngen.loss import binding_loss, symmetric_kl
from maskunet.syngen.tokens import PhraseTokens, PromptTokens


def distance(a: Tensor, b: Tensor) -> Tensor:
    p, q = Categorical(probs=a), Categorical(probs=b)
    return (kl_divergence(p, q) + kl_divergence(q, p)) / 2


def random_maps(positions: int = 16, tokens: int = 9) -> Tensor:
    return torch.rand(positions, tokens, generator=torch.Generator().manual_seed(0)) + 0.01


def test_distance_by_hand() -> None:
    # d((3, 1) / 4, (1, 1) / 2) = 1/2 (1/4 log(3/2) - 1/4 log(1/2)) = log(3) / 8, at any scale of the maps.
    first, second = torch.tensor([[3.0, 1.0], [0.5, 0.5]]), torch.tensor([[10.0, 10.0]])
    torch.testing.assert_close(symmetric_kl(first, second), torch.tensor([[math.log(3) / 8], [0.0]]))


def test_distance_of_disjoint_maps_is_finite() -> None:
    maps = torch.eye(2).requires_grad_(True)
    distances = symmetric_kl(maps, maps.detach())
    distances.sum().backward()
    assert 5 < float(distances[0, 1].detach()) < 20
    assert maps.grad is not None
    assert bool(torch.isfinite(maps.grad).all())


def test_loss_by_hand() -> None:
    # Tokens: start, "a", modifier, noun, "b". The modifier's map is (3, 1) / 4, all others are flat.
    maps = torch.ones(2, 5)
    maps[:, 2] = torch.tensor([3.0, 1.0])
    prompt = PromptTokens((PhraseTokens((3,), ((2,),)),), (1, 2, 3, 4))
    one = math.log(3) / 8
    # d(m, n) - 1/2 (d(m, a) + d(n, a) + d(m, b) + d(n, b)) / 2
    torch.testing.assert_close(binding_loss(maps, prompt), torch.tensor(one - (one + 0 + one + 0) / 4))


def test_loss_as_in_the_paper() -> None:
    maps = random_maps()
    phrases = (PhraseTokens((3,), ((1,), (2,))), PhraseTokens((6, 7), ((4, 5), (2,))), PhraseTokens((8,), ()))
    content = tuple(range(1, 9))
    expected = torch.zeros(())
    for phrase in phrases:
        inside = {t for word in phrase.words for t in word}
        outside = [t for t in content if t not in inside]

        def farthest(xs: tuple[int, ...], ys: tuple[int, ...]) -> Tensor:
            return torch.stack([distance(maps[:, x], maps[:, y]) for x, y in itertools.product(xs, ys)]).max()

        for m in phrase.modifiers:
            expected += farthest(m, phrase.noun)
            expected -= sum(farthest(m, (u,)) + farthest(phrase.noun, (u,)) for u in outside) / (2 * len(outside))
        if not phrase.modifiers:
            expected -= sum(farthest(phrase.noun, (u,)) for u in outside) / len(outside)
    torch.testing.assert_close(binding_loss(maps, PromptTokens(phrases, content)), expected, atol=1e-5, rtol=1e-5)


def test_start_and_padding_do_not_count() -> None:
    maps = random_maps()
    prompt = PromptTokens((PhraseTokens((3,), ((2,),)),), (1, 2, 3, 4))
    loss = binding_loss(maps, prompt)
    maps[:, [0, 5, 6, 7, 8]] = torch.rand(16, 5)
    assert torch.equal(binding_loss(maps, prompt), loss)


def test_without_modifiers_or_other_words_the_loss_is_zero() -> None:
    maps = random_maps().requires_grad_(True)
    assert float(binding_loss(maps, PromptTokens((), (1, 2)))) == 0
    alone = PromptTokens((PhraseTokens((1,), ()),), (1,))
    assert float(binding_loss(maps, alone)) == 0
    # All words belong to one phrase: only the positive part.
    both = PromptTokens((PhraseTokens((2,), ((1,),)),), (1, 2))
    torch.testing.assert_close(binding_loss(maps, both), distance(maps[:, 1], maps[:, 2]))
