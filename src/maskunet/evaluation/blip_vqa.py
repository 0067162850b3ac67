r"""BLIP-VQA: how sure a network is that something is in an image.

The answer's decoder receives its start token alone. With its distribution p over the first token of the answer, the
probability is

.. math:: P(\mathrm{yes}) = p(\mathrm{yes}) / (p(\mathrm{yes}) + p(\mathrm{no}))

as T2I-CompBench computes it; answers are neither ranked nor generated.

References: Li et al., "BLIP", ICML 2022; Huang et al., "T2I-CompBench", NeurIPS 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..pretrained import Source, is_hub_id, load_tokenizer, require_complete

#: The checkpoint that T2I-CompBench uses (`model_base_vqa_capfilt_large.pth`), in transformers' format.
BLIP_VQA = "Salesforce/blip-vqa-capfilt-large"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_TOKENS, _MAX_WORDS = 35, 50

#: Returns the probability of "yes" to each question about each of N images: N lists, as long as the lists of questions.
Vqa = Callable[[Sequence[Image.Image], Sequence[Sequence[str]]], list[list[float]]]


def clean_question(question: str) -> str:
    """Return a question as BLIP was trained on it: lower case, without some punctuation, at most 50 words.

    Args:
        question: the question.
    """
    words = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:_MAX_WORDS])


class BlipVqa:
    """Answers questions with yes or no.

    Args:
        model: a `BlipForQuestionAnswering`.
        tokenizer: its BERT tokenizer.
        chunk: questions per call of the network.

    Raises:
        CheckpointError: the tokenizer does not know "yes" and "no".
    """

    def __init__(self, model: Any, tokenizer: Any, chunk: int = 64) -> None:
        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        config = model.config.text_config
        self.start = int(config.bos_token_id)
        # The original marks a question by [ENC], which it adds to BERT's vocabulary after its start token [DEC].
        vocabulary = tokenizer.get_vocab()
        self.mark = int(vocabulary.get("[ENC]", self.start + 1))
        self.yes, self.no = vocabulary.get("yes"), vocabulary.get("no")
        if self.yes is None or self.no is None or self.mark >= config.vocab_size:
            raise CheckpointError("expected a BLIP for questions, with [ENC], 'yes' and 'no' among its tokens")

    @classmethod
    def from_pretrained(cls, source: Source = BLIP_VQA, *, device: torch.device | str = "cpu") -> BlipVqa:
        """Load a BLIP for questions from a folder or the hub.

        Args:
            source: a BLIP in transformers' format.
            device: where it runs.

        Raises:
            CheckpointError: it cannot be read.
        """
        from transformers import BertTokenizer, BlipForQuestionAnswering

        text = str(source)
        try:
            model, report = BlipForQuestionAnswering.from_pretrained(
                text, dtype=torch.float32, output_loading_info=True, local_files_only=not is_hub_id(source)
            )
        except Exception as error:  # hub, file and config errors of several libraries
            raise CheckpointError(
                f"expected a BLIP for questions in transformers' format in {text!r}, could not read it: {first_line(error)}"
            ) from error
        require_complete(report, "BLIP")
        return cls(model.to(device).eval().requires_grad_(False), load_tokenizer(BertTokenizer, text))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the probability of "yes" to each question about each image.

        Args:
            images: N images.
            questions: any number of questions per image.
        """
        states = self.model.vision_model(pixel_values=self._prepare(images)).last_hidden_state
        image_of = [i for i, of_image in enumerate(questions) for _ in of_image]
        tokens = [self._tokens(q) for of_image in questions for q in of_image]
        answers = [0.0] * len(tokens)
        # Only questions of the same length share a batch, and none is padded: transformers (5.23) passes no mask to the
        # decoder's cross-attention, which would see the padding.
        for length in sorted({len(ids) for ids in tokens}):
            same_length = [i for i, ids in enumerate(tokens) if len(ids) == length]
            for start in range(0, len(same_length), self.chunk):
                chunk = same_length[start : start + self.chunk]
                ids = torch.tensor([tokens[i] for i in chunk], device=states.device)
                for i, answer in zip(
                    chunk, self._yes_probability(states[[image_of[i] for i in chunk]], ids).tolist(), strict=True
                ):
                    answers[i] = answer
        flat = iter(answers)
        return [[next(flat) for _ in of_image] for of_image in questions]

    def _tokens(self, question: str) -> list[int]:
        ids = self.tokenizer(clean_question(question), truncation=True, max_length=_MAX_TOKENS).input_ids
        return [self.mark, *ids[1:]]

    def _yes_probability(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return probabilities (Q,) for the states of images (Q, L, D) and one question about each, (Q, T)."""
        questions = self.model.text_encoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state
        start = torch.full((len(ids), 1), self.start, device=states.device)
        logits = self.model.text_decoder(input_ids=start, encoder_hidden_states=questions).logits[:, 0]
        return logits[:, [self.yes, self.no]].float().softmax(-1)[:, 0]

    def _prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the network's input: images resized to squares (bicubic, proportions ignored), normalised as CLIP's."""
        side = self.model.config.vision_config.image_size
        squares = [np.array(p.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for p in images]
        x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
        return ((x - mean) / std).to(self.model.device)
