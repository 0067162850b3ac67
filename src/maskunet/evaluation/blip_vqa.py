r"""BLIP-VQA: how sure a network is that something is in a picture.

The answer's decoder is given its start token alone, and of its distribution p over the first token of the answer

.. math:: P(\mathrm{yes}) = p(\mathrm{yes}) / (p(\mathrm{yes}) + p(\mathrm{no}))

as T2I-CompBench computes it; no answers are ranked or generated.

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
_MOST_TOKENS, _MOST_WORDS = 35, 50

#: Gives the probability of "yes" to each question about each of N pictures: N lists, as long as the lists of questions.
Vqa = Callable[[Sequence[Image.Image], Sequence[Sequence[str]]], list[list[float]]]


def clean_question(question: str) -> str:
    """Return a question as BLIP was trained on it: lower case, without some punctuation, at most 50 words."""
    words = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:_MOST_WORDS])


class BlipVqa:
    """Answers questions with yes or no.

    Args:
        model: a `BlipForQuestionAnswering`.
        tokenizer: its BERT tokenizer.
        chunk: questions a call of the network.

    Raises:
        CheckpointError: the tokenizer does not know "yes" and "no".
    """

    def __init__(self, model: Any, tokenizer: Any, chunk: int = 64) -> None:
        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        config = model.config.text_config
        self.start = int(config.bos_token_id)
        # The original marks a question by [ENC], which it adds to BERT's vocabulary after its start token [DEC].
        known = tokenizer.get_vocab()
        self.mark = int(known.get("[ENC]", self.start + 1))
        self.yes, self.no = known.get("yes"), known.get("no")
        if self.yes is None or self.no is None or self.mark >= config.vocab_size:
            raise CheckpointError("expected a BLIP for questions, with [ENC], 'yes' and 'no' among its tokens")

    @classmethod
    def from_pretrained(cls, source: Source = BLIP_VQA, *, device: torch.device | str = "cpu") -> BlipVqa:
        """Load a BLIP for questions from a folder or the hub.

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
    def __call__(self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the probability of "yes" to each question about each picture.

        Args:
            pictures: N pictures.
            questions: for each, any number of questions.
        """
        seen = self.model.vision_model(pixel_values=self._prepare(pictures)).last_hidden_state
        owner = [i for i, of_one in enumerate(questions) for _ in of_one]
        tokens = [self._tokens(q) for of_one in questions for q in of_one]
        answers = [0.0] * len(owner)
        # Questions of one length go together and none is padded: transformers (5.23) hands the decoder's cross-attention
        # no mask, so that it would see the padding.
        for length in sorted({len(ids) for ids in tokens}):
            same = [i for i, ids in enumerate(tokens) if len(ids) == length]
            for start in range(0, len(same), self.chunk):
                chunk = same[start : start + self.chunk]
                ids = torch.tensor([tokens[i] for i in chunk], device=seen.device)
                for i, answer in zip(chunk, self._ask(seen[[owner[i] for i in chunk]], ids).tolist(), strict=True):
                    answers[i] = answer
        flat = iter(answers)
        return [[next(flat) for _ in of_one] for of_one in questions]

    def _tokens(self, question: str) -> list[int]:
        ids = self.tokenizer(clean_question(question), truncation=True, max_length=_MOST_TOKENS).input_ids
        return [self.mark, *ids[1:]]

    def _ask(self, seen: Tensor, ids: Tensor) -> Tensor:
        """Return probabilities (Q,) for pictures' states (Q, L, D) and a question about each, (Q, T)."""
        states = self.model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.full((len(ids), 1), self.start, device=seen.device)
        logits = self.model.text_decoder(input_ids=start, encoder_hidden_states=states).logits[:, 0]
        return logits[:, [self.yes, self.no]].float().softmax(-1)[:, 0]

    def _prepare(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the network's input: squares (bicubic, without regard to their proportions), normalised as CLIP's."""
        side = self.model.config.vision_config.image_size
        squares = [np.array(p.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
        x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
        return ((x - mean) / std).to(self.model.device)
