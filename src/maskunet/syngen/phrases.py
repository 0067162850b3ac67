"""Which words of a prompt are nouns and which words modify them.

A phrase is a noun and its modifiers, as numbers of words: `words("a red circle")` are "a", "red" and "circle", and its one
phrase is (2, [1]). A noun without modifiers, (2, []), is only kept apart from other words.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import DataError
from ..shapes.vocabulary import COLOURS, SHAPES, plural

#: A noun's number and those of its modifiers.
Phrase = tuple[int, list[int]]
#: Finds the phrases of a prompt.
Phrases = Callable[[str], Sequence[Phrase]]

_SPACY_MODEL = "en_core_web_sm"
#: Relations that tie a modifier to what it modifies, as in the original.
_MODIFIERS = frozenset({"amod", "nmod", "compound", "npadvmod", "advmod", "acomp"})
_NOUNS = frozenset({"NOUN", "PROPN"})
_VERBS = frozenset({"AUX", "VERB"})
_SHAPE_WORDS = frozenset(SHAPES) | {plural(shape) for shape in SHAPES}


def words(prompt: str) -> list[tuple[int, int]]:
    """Return where each word of a prompt begins and ends: runs of letters and digits, and single punctuation marks."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", prompt)]


def shapes_phrases(prompt: str, *, entities: bool = False) -> list[Phrase]:
    """Return the phrases of a caption of the shapes world: a shape and the colours right before it.

    Args:
        prompt: a caption, as "a red circle to the left of a blue star".
        entities: also give shapes without a colour.
    """
    given = [prompt[start:end].lower() for start, end in words(prompt)]
    found = []
    for noun, word in enumerate(given):
        if word in _SHAPE_WORDS:
            first = noun
            while first and given[first - 1] in COLOURS:
                first -= 1
            if entities or first < noun:
                found.append((noun, list(range(first, noun))))
    return found


def syntax_phrases(model: str = _SPACY_MODEL, *, entities: bool = False) -> Phrases:
    """Return a parser of English prompts: spaCy's dependencies, read by the original's rules.

    A noun's modifiers are its children by amod, nmod, compound, npadvmod, advmod or acomp, and theirs, also across
    conjunctions; likewise through a relative clause ("a dog that is red") and a copula ("the dog is red"), whose verbs
    are left out. Phrases whose words all belong to another's are dropped.

    Two rules are mended: the original stops at the first noun when it looks for relative clauses, and takes the last word
    of a copula's clause for the noun, where here its subject is. The original's model is `en_core_web_trf`.

    Args:
        model: spaCy's English model.
        entities: also give nouns without modifiers (the original's `include_entities`).

    Raises:
        DataError: spaCy or the model is missing.
    """
    try:
        import spacy

        nlp = spacy.load(model)
    except (ImportError, OSError) as error:
        raise DataError(
            f"expected spaCy with its English model {model}, to find nouns and their modifiers; "
            f"pip install 'maskunet[syngen]' && python -m spacy download {model}, or give phrases of your own"
        ) from error

    def phrases(prompt: str) -> list[Phrase]:
        starts = [start for start, _ in words(prompt)]
        found = []
        for noun, modifiers in _dependencies(nlp(prompt), entities=entities):
            numbers = [max(bisect.bisect_right(starts, token.idx) - 1, 0) for token in (noun, *modifiers)]
            found.append((numbers[0], [n for n in dict.fromkeys(numbers[1:]) if n != numbers[0]]))
        return found

    return phrases


def _dependencies(doc: Iterable[Any], *, entities: bool) -> list[tuple[Any, list[Any]]]:
    """Nouns and modifiers of a parsed prompt, as tokens in the prompt's order."""
    tokens = list(doc)
    heads = [t for t in tokens if t.pos_ in _NOUNS and t.dep_ not in _MODIFIERS]
    found = []
    for noun in heads:
        found.append((noun, _walk(_tied(noun, _MODIFIERS), _MODIFIERS, frozenset())))
        through = _MODIFIERS | {"relcl"}
        found.append((noun, _walk(_tied(noun, through), through, _VERBS)))
    for verb in tokens:
        if verb.pos_ == "AUX" and verb.dep_ not in _MODIFIERS:
            parts = [c for c in verb.children if c.dep_ in _MODIFIERS or c.pos_ in _NOUNS]
            held = [c for c in parts if c.pos_ not in _VERBS]
            subject = next((c for c in held if c.pos_ in _NOUNS), None)
            if subject is not None and len(held) > 1:
                below = _walk(
                    [g for c in parts for g in _tied(c, _MODIFIERS | {"conj"})], _MODIFIERS, frozenset({"AUX"})
                )
                found.append((subject, [t for t in [*held, *below] if t.i != subject.i]))
    phrases = _largest([(noun, modifiers) for noun, modifiers in found if modifiers])
    if entities:
        bound = {t.i for noun, modifiers in phrases for t in (noun, *modifiers)}
        phrases += [(noun, []) for noun in heads if noun.i not in bound]
    return sorted(phrases, key=lambda phrase: phrase[0].i)


def _tied(token: Any, relations: frozenset[str]) -> list[Any]:
    return [child for child in token.children if child.dep_ in relations]


def _walk(stack: list[Any], relations: frozenset[str], left_out: frozenset[str]) -> list[Any]:
    """These tokens and what hangs on them by the relations or conjunctions; verbs are passed through where left out."""
    found = []
    while stack:
        node, *stack = stack
        if node.pos_ not in left_out:
            found.append(node)
        stack += _tied(node, relations | {"conj"})
    return found


def _largest(phrases: list[tuple[Any, list[Any]]]) -> list[tuple[Any, list[Any]]]:
    """Drop repeated phrases and those whose words are part of another's."""
    sets = [frozenset(t.i for t in (noun, *modifiers)) for noun, modifiers in phrases]
    return [
        (noun, sorted({t.i: t for t in modifiers}.values(), key=lambda t: t.i))
        for k, (noun, modifiers) in enumerate(phrases)
        if not any(sets[k] < other for other in sets) and sets[k] not in sets[:k]
    ]
