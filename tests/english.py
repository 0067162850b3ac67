"""A real spaCy model of a few sentences, trained in seconds, so that what reads spaCy's parses is tested on spaCy itself."""

from __future__ import annotations

from pathlib import Path

#: Of each sentence: parts of speech, relations and heads as spaCy's English models write them; a root is its own head.
SENTENCES = {
    "a red dog and a small blue cat": (
        "DET det 2, ADJ amod 2, NOUN ROOT 2, CCONJ cc 2, DET det 7, ADJ amod 7, ADJ amod 7, NOUN conj 2"
    ),
    "a bowl on a red and blue table": (
        "DET det 1, NOUN ROOT 1, ADP prep 1, DET det 7, ADJ amod 7, CCONJ cc 4, ADJ conj 4, NOUN pobj 2"
    ),
    "a cat and a dog that is red": (
        "DET det 1, NOUN ROOT 1, CCONJ cc 1, DET det 4, NOUN conj 1, PRON nsubj 6, AUX relcl 4, ADJ acomp 6"
    ),
    "the big dog is red and small": (
        "DET det 2, ADJ amod 2, NOUN nsubj 3, AUX ROOT 3, ADJ acomp 3, CCONJ cc 4, ADJ conj 4"
    ),
    "a dog": "DET det 1, NOUN ROOT 1",
}


def train_english(folder: Path) -> Path:
    """Train a tagger and a dependency parser until they know `SENTENCES`, and write them in spaCy's own format."""
    import spacy
    from spacy.tokens import Doc
    from spacy.training import Example

    nlp = spacy.blank("en")
    nlp.add_pipe("morphologizer")
    nlp.add_pipe("parser", config={"min_action_freq": 1})  # by default rare relations are merged into one
    examples = []
    for sentence, written in SENTENCES.items():
        tags, relations, heads = zip(*(row.split() for row in written.split(", ")), strict=True)
        parsed = Doc(nlp.vocab, words=sentence.split(), pos=tags, deps=relations, heads=[int(h) for h in heads])
        examples.append(Example(nlp.make_doc(sentence), parsed))
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: examples)
    optimizer = nlp.create_optimizer()
    for _ in range(60):
        nlp.update(examples, sgd=optimizer)
    nlp.to_disk(folder)
    return folder
