"""Nouns and their modifiers, and their tokens."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from english import SENTENCES
from maskunet.errors import DataError
from maskunet.shapes.scenes import training_scene
from maskunet.syngen import shapes_phrases, syntax_phrases
from maskunet.syngen.phrases import word_spans
from maskunet.syngen.tokens import PhraseTokens, locate_tokens


@dataclass(eq=False)
class Token:
    """A word of a parsed prompt, with the attributes of spaCy's tokens that the parser reads."""

    i: int
    idx: int
    text: str
    pos_: str
    dep_: str
    children: list[Token] = field(default_factory=list)


def parse(prompt: str, written: str) -> list[Token]:
    """Build a parse from the part of speech, relation and head of each word; a head of -1 is the root's."""
    spans, rows = word_spans(prompt), [row.split() for row in written.split(", ")]
    tokens = [
        Token(i, start, prompt[start:end], row[0], row[1])
        for i, ((start, end), row) in enumerate(zip(spans, rows, strict=True))
    ]
    for token, (_, _, head) in zip(tokens, rows, strict=True):
        if int(head) >= 0:
            tokens[int(head)].children.append(token)
    return tokens


#: Parts of speech, relations and heads of each prompt in spaCy's notation, and its phrases.
PARSES: dict[str, tuple[str, list[Any]]] = {
    "a red dog and a small blue cat": (
        "DET det 2, ADJ amod 2, NOUN ROOT -1, CCONJ cc 2, DET det 7, ADJ amod 7, ADJ amod 7, NOUN conj 2",
        [(2, [1]), (7, [5, 6])],
    ),
    "a bowl on a red and blue table": (
        "DET det 1, NOUN ROOT -1, ADP prep 1, DET det 7, ADJ amod 7, CCONJ cc 4, ADJ conj 4, NOUN pobj 2",
        [(7, [4, 6])],
    ),
    # A participle is a modifier, and so is a noun's first part.
    "a horned metal-framed lion statue": (
        "DET det 6, VERB amod 6, NOUN npadvmod 4, PUNCT punct 4, VERB amod 6, NOUN compound 6, NOUN ROOT -1",
        [(6, [1, 2, 4, 5])],
    ),
    "a cat and a dog that is red": (
        "DET det 1, NOUN ROOT -1, CCONJ cc 1, DET det 4, NOUN conj 1, PRON nsubj 6, AUX relcl 4, ADJ acomp 6",
        [(4, [7])],
    ),
    "the big dog is red and small": (
        "DET det 2, ADJ amod 2, NOUN nsubj 3, AUX ROOT -1, ADJ acomp 3, CCONJ cc 4, ADJ conj 4",
        [(2, [1, 4, 6])],
    ),
    "a dog": ("DET det 1, NOUN ROOT -1", []),
}


@pytest.mark.parametrize("prompt", PARSES)
def test_syntax(monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    rows, expected = PARSES[prompt]

    def load(name: str) -> object:
        assert name == "en_core_web_sm"
        return lambda text: parse(text, rows)

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    assert syntax_phrases()(prompt) == expected


def test_entities_are_nouns_without_modifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a bowl on a red and blue table"
    nlp = types.SimpleNamespace(load=lambda name: lambda text: parse(text, PARSES[prompt][0]))
    monkeypatch.setitem(sys.modules, "spacy", nlp)
    assert syntax_phrases("any", entities=True)(prompt) == [(1, []), (7, [4, 6])]


def test_missing_spacy_or_model_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(
        DataError, match=r"pip install 'maskunet\[syngen\]' && python -m spacy download en_core_web_sm"
    ):
        syntax_phrases()

    def load(name: str) -> object:
        raise OSError("no model")

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    with pytest.raises(DataError, match="spacy download en_core_web_trf"):
        syntax_phrases("en_core_web_trf")


def test_spacys_own_parses(english: Path) -> None:
    parser = syntax_phrases(str(english))
    assert {sentence: parser(sentence) for sentence in SENTENCES} == {s: PARSES[s][1] for s in SENTENCES}
    assert syntax_phrases(str(english), entities=True)("a bowl on a red and blue table") == [(1, []), (7, [4, 6])]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle to the left of a blue star", [(2, [1]), (9, [8])]),
        ("three red circles", [(2, [1])]),
        ("A Red Circle, above a cross", [(2, [1])]),
        ("a circle and a square", []),
        ("red", []),
    ],
)
def test_captions_of_the_shapes_world(prompt: str, expected: list[Any]) -> None:
    assert shapes_phrases(prompt) == expected


def test_phrases_of_captions_are_their_scenes_objects() -> None:
    for index in range(200):
        scene = training_scene(index)
        words = [scene.caption[a:b] for a, b in word_spans(scene.caption)]
        phrases = shapes_phrases(scene.caption, entities=True)
        parsed = sorted((words[noun].rstrip("es"), [words[m] for m in modifiers]) for noun, modifiers in phrases)
        objects = sorted((n["class"].rstrip("es"), [n["color"]] if "color" in n else []) for n in scene.include)
        assert parsed == objects, scene.caption


def test_tokens_are_located_by_position(shapes_pipe: Any) -> None:
    prompt = "a Red star, a metal star"
    tokens = locate_tokens(shapes_pipe.tokenizer, prompt, [(2, [1, 1, 2]), (6, [5])])
    ids = shapes_pipe.tokenizer(prompt).input_ids
    pieces = [t.removesuffix("</w>") for t in shapes_pipe.tokenizer.convert_ids_to_tokens(ids)]
    assert tokens.content == tuple(range(1, len(ids) - 1))

    def text(word: tuple[int, ...]) -> str:
        return "".join(pieces[t] for t in word)

    first, second = tokens.phrases
    assert [text(first.noun), *map(text, first.modifiers)] == ["star", "red"]
    assert [text(second.noun), *map(text, second.modifiers)] == ["star", "metal"]
    assert first.noun != second.noun
    assert len(second.modifiers[0]) > 1  # the bundled tokenizer spells it


def test_words_beyond_the_limit_are_dropped(pipe: Any) -> None:
    prompt = " ".join("abcdefghijklmnopqrst")  # 20 words; 14 fit
    assert locate_tokens(pipe.tokenizer, prompt, [(2, [1, 18])]).phrases == (PhraseTokens((3,), ((2,),)),)
    assert locate_tokens(pipe.tokenizer, prompt, [(2, [1]), (18, [1])]).phrases == (PhraseTokens((3,), ((2,),)),)
    assert locate_tokens(pipe.tokenizer, prompt, []).phrases == ()
    for phrases in ([(18, [17])], [(2, [18])]):
        with pytest.raises(DataError, match=r"got none for .*shorten the prompt"):
            locate_tokens(pipe.tokenizer, prompt, phrases)
    with pytest.raises(DataError, match="word indices from 0 to 19, got 20"):
        locate_tokens(pipe.tokenizer, prompt, [(20, [1])])
    with pytest.raises(DataError, match="fast tokenizer"):
        locate_tokens(types.SimpleNamespace(), prompt, [])
