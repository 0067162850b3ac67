"""Phrases of a prompt: nouns and the words that modify them.

A phrase is a noun and its modifiers, as word indices: "a red circle" has the words "a", "red" and "circle" and one phrase,
(2, [1]). A noun without modifiers, (2, []), is only separated from the other words.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import DataError
from ..shapes.vocabulary import COLOURS, SHAPES, plural

#: Index of a noun and indices of its modifiers.
Phrase = tuple[int, list[int]]
#: Returns the phrases of a prompt.
PhraseParser = Callable[[str], Sequence[Phrase]]

_SPACY_MODEL = "en_core_web_sm"
#: Relations of a modifier to its head, as in the original.
_MODIFIERS = frozenset({"amod", "nmod", "compound", "npadvmod", "advmod", "acomp"})
_NOUNS = frozenset({"NOUN", "PROPN"})
_VERBS = frozenset({"AUX", "VERB"})
_SHAPE_WORDS = frozenset(SHAPES) | {plural(shape) for shape in SHAPES}


def word_spans(prompt: str) -> list[tuple[int, int]]:
    """Return start and end of each word: a run of letters and digits, or a single punctuation mark.

    Args:
        prompt: the prompt.
    """
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", prompt)]


def shapes_phrases(prompt: str, *, entities: bool = False) -> list[Phrase]:
    """Return the phrases of a caption of the shapes world: a shape and the colours right before it.

    Args:
        prompt: a caption, such as "a red circle to the left of a blue star".
        entities: also return shapes without a colour.
    """
    words = [prompt[start:end].lower() for start, end in word_spans(prompt)]
    phrases = []
    for noun, word in enumerate(words):
        if word in _SHAPE_WORDS:
            first = noun
            while first and words[first - 1] in COLOURS:
                first -= 1
            if entities or first < noun:
                phrases.append((noun, list(range(first, noun))))
    return phrases


def syntax_phrases(model: str = _SPACY_MODEL, *, entities: bool = False) -> PhraseParser:
    """Return a parser of English prompts: spaCy's dependencies under the original's rules.

    A noun's modifiers are its children by amod, nmod, compound, npadvmod, advmod or acomp, and theirs, also across
    conjunctions; likewise through a relative clause ("a dog that is red") and a copula ("the dog is red"), whose verbs
    are left out. A phrase is dropped if another contains its words.

    Two rules differ from the original, which stops at the first noun when it looks for relative clauses, and takes the
    last word of a copula's clause for the noun instead of its subject. The original's model is `en_core_web_trf`.

    Args:
        model: spaCy's English model.
        entities: also return nouns without modifiers (the original's `include_entities`).

    Raises:
        DataError: spaCy or the model is missing.
    """
    try:
        import spacy

        nlp = spacy.load(model)
    except (ImportError, OSError) as error:
        raise DataError(
            f"expected spaCy with its English model {model}, to find nouns and their modifiers; pip install "
            f"'maskunet[syngen]' && python -m spacy download {model}, or pass phrases of your own"
        ) from error

    def parse(prompt: str) -> list[Phrase]:
        starts = [start for start, _ in word_spans(prompt)]
        phrases = []
        for noun, modifiers in _dependencies(nlp(prompt), entities=entities):
            # spaCy's tokens may be finer than words.
            indices = [max(bisect.bisect_right(starts, token.idx) - 1, 0) for token in (noun, *modifiers)]
            phrases.append((indices[0], [i for i in dict.fromkeys(indices[1:]) if i != indices[0]]))
        return phrases

    return parse


def _dependencies(doc: Iterable[Any], *, entities: bool) -> list[tuple[Any, list[Any]]]:
    """Return nouns and modifiers of a parsed prompt, as tokens in the prompt's order."""
    tokens = list(doc)
    heads = [t for t in tokens if t.pos_ in _NOUNS and t.dep_ not in _MODIFIERS]
    candidates = []
    for noun in heads:
        candidates.append((noun, _descendants(_children(noun, _MODIFIERS), _MODIFIERS, frozenset())))
        relations = _MODIFIERS | {"relcl"}
        candidates.append((noun, _descendants(_children(noun, relations), relations, _VERBS)))
    for verb in tokens:
        if verb.pos_ == "AUX" and verb.dep_ not in _MODIFIERS:
            children = [c for c in verb.children if c.dep_ in _MODIFIERS or c.pos_ in _NOUNS]
            words = [c for c in children if c.pos_ not in _VERBS]
            subject = next((c for c in words if c.pos_ in _NOUNS), None)
            if subject is not None and len(words) > 1:
                grandchildren = [g for c in children for g in _children(c, _MODIFIERS | {"conj"})]
                words += _descendants(grandchildren, _MODIFIERS, frozenset({"AUX"}))
                candidates.append((subject, [t for t in words if t.i != subject.i]))
    phrases = _largest([(noun, modifiers) for noun, modifiers in candidates if modifiers])
    if entities:
        used = {t.i for noun, modifiers in phrases for t in (noun, *modifiers)}
        phrases += [(noun, []) for noun in heads if noun.i not in used]
    return sorted(phrases, key=lambda phrase: phrase[0].i)


def _children(token: Any, relations: frozenset[str]) -> list[Any]:
    return [child for child in token.children if child.dep_ in relations]


def _descendants(stack: list[Any], relations: frozenset[str], omitted: frozenset[str]) -> list[Any]:
    """Return tokens and their descendants by the relations or conjunctions, without the omitted parts of speech."""
    tokens = []
    while stack:
        token, *stack = stack
        if token.pos_ not in omitted:
            tokens.append(token)
        stack += _children(token, relations | {"conj"})
    return tokens


def _largest(phrases: list[tuple[Any, list[Any]]]) -> list[tuple[Any, list[Any]]]:
    """Drop repeated phrases and those that another contains."""
    sets = [frozenset(t.i for t in (noun, *modifiers)) for noun, modifiers in phrases]
    return [
        (noun, sorted({t.i: t for t in modifiers}.values(), key=lambda t: t.i))
        for k, (noun, modifiers) in enumerate(phrases)
        if not any(sets[k] < other for other in sets) and sets[k] not in sets[:k]
    ]
