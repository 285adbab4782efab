"""Text encoders: the texts of turns, with the turns before as context, to sequences of features.

Padding never changes a result: a batch equals its items one by one.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, PreTrainedModel

from shared.modeling.tokens import Tokens, length_mask

MOST_LETTERS = 4096
"""Enough of a text to tell whether its script is known."""


@dataclass(frozen=True)
class TokenizedTurn:
    """Token ids of a turn and of those before it; `own` are the places of the turn itself."""

    ids: list[int]
    own: list[int]


@dataclass(frozen=True)
class TurnTokenizer:
    """A conversation's turns as a text encoder reads them.

    First comes the encoder's mark of a beginning and its prefix, then the turns before, each with a separator behind
    it, then the turn and a last separator. What does not fit into `max_tokens` is left out of the turns before, from
    the oldest on, and after that of the turn's end.
    """

    pieces: Tokenizer
    first: int
    separator: int
    unknown: int | None
    padding: int
    prefix: str
    max_tokens: int

    def __post_init__(self) -> None:
        self.pieces.no_padding()
        self.pieces.no_truncation()

    def turn(self, text: str, before: Sequence[str] = ()) -> TokenizedTurn:
        """A turn with those before it, the oldest first."""
        own = self._ids(self.prefix + text)[: self.max_tokens - 2]
        opening = min(len(own), len(self._ids(self.prefix.rstrip())) if self.prefix else 0)
        earlier = [piece for turn in before for piece in (*self._ids(turn), self.separator)]
        earlier = earlier[max(0, len(earlier) - (self.max_tokens - 2 - len(own))) :]
        ids = [self.first, *own[:opening], *earlier, *own[opening:], self.separator]
        return TokenizedTurn(ids, [*range(1 + opening), *range(1 + opening + len(earlier), len(ids))])

    def knows(self, text: str, max_unknown: float) -> bool:
        """Whether the text has letters, and at most the share `max_unknown` of them is not in the vocabulary."""
        letters = [unicodedata.category(letter)[0] in "LN" for letter in text]
        if not any(letters):
            return False
        encoding = self.pieces.encode(text[:MOST_LETTERS], add_special_tokens=False)
        spans = [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ == self.unknown]
        seen = encoding.offsets[-1][1] if encoding.offsets else 0
        return sum(sum(letters[start:end]) for start, end in spans) <= max_unknown * sum(letters[:seen])

    def _ids(self, text: str) -> list[int]:
        return self.pieces.encode(text, add_special_tokens=False).ids


class TextEncoderConfig(BaseModel):
    """multilingual-e5-small's shape is the default, but for the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int
    width: int = 384
    layers: int = 12
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    padding_id: int = 1
    prefix: str = "query: "
    max_tokens: int = 256
    context_turns: int = 0
    """How many of the turns before a text it is read with."""
    max_unknown: float = 0.2
    """Largest share of a text's letters that may be missing from the vocabulary."""


class TextEncoder(nn.Module):
    """A BERT over an XLM-R vocabulary (Wang et al. 2024, "Multilingual E5 Text Embeddings")."""

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.hidden,
                max_position_embeddings=config.positions,
                type_vocab_size=2,
                layer_norm_eps=1e-12,
                pad_token_id=config.padding_id,
            ),
            add_pooling_layer=False,
        )
        first, last, unknown = (_mark(tokenizer, mark) for mark in ("<s>", "</s>", "<unk>"))
        self._turns = TurnTokenizer(
            tokenizer, first, last, unknown, config.padding_id, config.prefix, config.max_tokens
        )

    def knows(self, text: str) -> bool:
        """Whether the text has letters, and nearly all of them are in the vocabulary."""
        return self._turns.knows(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Features of shape [batch, tokens, width], of the texts alone: the context is read but not given.

        Args:
            texts: one longer than `max_tokens` is cut at its end.
            context: for every text the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return read_turns(self.bert, self._turns, texts, context)


def read_turns(
    model: PreTrainedModel,
    tokenizer: "TurnTokenizer",
    texts: Sequence[str],
    context: Sequence[Sequence[str]] | None = None,
) -> Tokens:
    """The last hidden states of the texts' own tokens, having read them with their context."""
    turns = [tokenizer.turn(text, before) for text, before in zip(texts, context or [()] * len(texts), strict=True)]
    ids = [torch.tensor(turn.ids, device=model.device) for turn in turns]
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.padding)
    mask = length_mask(torch.tensor([len(row) for row in ids], device=model.device), padded.shape[1])
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
    return Tokens.padded([states[turn.own] for states, turn in zip(hidden, turns, strict=True)])


def _mark(tokenizer: Tokenizer, mark: str) -> int:
    id_ = tokenizer.token_to_id(mark)
    if id_ is None:
        raise ValueError(f"the tokenizer has no {mark}, as that of XLM-R has")
    return id_
