"""BLIP-VQA on a tiny random checkpoint in the real format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipForQuestionAnswering, BlipImageProcessorPil

from maskunet.errors import CheckpointError
from maskunet.evaluation.blip_vqa import BlipVqa, clean_question


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 44, 3), dtype=np.uint8))


def test_equals_the_first_token_of_transformers_answer(blip_folder: Path) -> None:
    """transformers' processor and `generate` are the reference; only [ENC] is inserted by hand."""
    vqa = BlipVqa.from_pretrained(blip_folder)
    images = [noise(0), noise(1)]
    questions = [["a red bench?", "a blue bowl?"], ["The Round, (Clock)?"]]
    probabilities = vqa(images, questions)
    assert [len(p) for p in probabilities] == [2, 1]
    model = BlipForQuestionAnswering.from_pretrained(blip_folder).eval()
    tokenizer = BertTokenizer.from_pretrained(blip_folder)
    size = {"height": 32, "width": 32}
    for image, texts, answers in zip(images, questions, probabilities, strict=True):
        pixels = BlipImageProcessorPil(size=size)(image, return_tensors="pt").pixel_values
        for question, answer in zip(texts, answers, strict=True):
            tokens = tokenizer(clean_question(question), return_tensors="pt")
            tokens.input_ids[:, 0] = model.config.text_config.vocab_size - 1
            options = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
            out = model.generate(
                input_ids=tokens.input_ids,
                pixel_values=pixels,
                attention_mask=tokens.attention_mask,
                do_sample=False,
                **options,
            )
            p = out.scores[0][0].softmax(-1)
            yes, no = (p[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
            assert answer == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    assert len({round(p, 5) for of_image in probabilities for p in of_image}) == 3


def test_questions_do_not_depend_on_their_batch(blip_folder: Path) -> None:
    vqa = BlipVqa.from_pretrained(blip_folder)
    questions = [["a cat?", "a very long question about a bench?"], [], ["a dog?"]]
    together = vqa([noise(i) for i in range(3)], questions)
    vqa.chunk = 1
    singly = [vqa([noise(i)], [questions[i]])[0] for i in range(3)]
    assert together[1] == []
    for a, b in zip(together, singly, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_questions_are_cleaned() -> None:
    assert clean_question('A "Red" bench (old)!?') == "a red bench old?"
    assert clean_question(" ".join(["a"] * 60)).count("a") == 50


def test_unreadable_networks(tmp_path: Path, blip_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="BLIP for questions"):
        BlipVqa.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    model = BlipForQuestionAnswering.from_pretrained(blip_folder)
    with pytest.raises(CheckpointError, match="'yes' and 'no'"):
        BlipVqa(model, BertTokenizer.from_pretrained(tmp_path))
    assert torch.is_grad_enabled()
