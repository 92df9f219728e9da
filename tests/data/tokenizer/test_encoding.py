"""Texts as token ids: text gives no special tokens, truncation keeps the added ones, and settings are restored."""

import json

import pytest
from corpora import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from hfbsz.data.tokenizer.encoding import encode_plain, encode_texts
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from hfbsz.errors import UserError

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TRICKY = ["a [SEP] b", "x[CLS]", "[PAD][PAD]", "a <|endoftext|> b", "</s> and <s>", "", "plain words " * 30, "ünï"]


def wrapped(model, trainer, split, special):
    """A tokenizer that adds the second-last special token before a text and the last one after it."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(TEXTS, trainer)
    first, last = list(special.values())[-2:]
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def wordpiece():
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(SPECIAL.values()), show_progress=False)
    return wrapped(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), SPECIAL)


def words():
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=list(SPECIAL.values()), show_progress=False)
    return wrapped(models.WordLevel(unk_token="[UNK]"), trainer, pre_tokenizers.WhitespaceSplit(), SPECIAL)


def unigram():
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(special.values()), unk_token="<unk>", show_progress=False
    )
    return wrapped(models.Unigram(), trainer, pre_tokenizers.Metaspace(), special)


KINDS = {
    "wordpiece": wordpiece,
    "words": words,
    "unigram": unigram,
    "bytes": lambda: train_tokenizer(TEXTS, 300),
    "slow": lambda: ByT5Tokenizer(extra_ids=2),
}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def specials(tokenizer):
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def test_special_tokens_inside_a_text_are_text(tokenizer):
    plain = encode_plain(tokenizer, TRICKY)
    assert all(specials(tokenizer).isdisjoint(ids) for ids in plain) and all(plain[:5])
    rows, lengths = encode_texts(tokenizer, TRICKY)
    assert lengths == [len(ids) for ids in rows]
    added = tokenizer.num_special_tokens_to_add()
    assert all(len(row) == len(ids) + added for row, ids in zip(rows, plain, strict=True))


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_the_tokens_that_the_tokenizer_adds(tokenizer, side):
    tokenizer.truncation_side = side
    usual = ["plain words " * 30, "short", "", *TEXTS[:5]]
    for limit in (None, 8):
        rows, lengths = encode_texts(tokenizer, usual, limit)
        arguments = {"truncation": True, "max_length": limit} if limit else {}
        assert rows == tokenizer(usual, **arguments)["input_ids"]
        assert lengths == [len(ids) for ids in tokenizer(usual)["input_ids"]]


def test_a_limit_without_room_for_text_is_refused():
    with pytest.raises(UserError, match=r"data\.sequence_length: 2 leaves no room for text beside the 2 tokens"):
        encode_texts(wordpiece(), ["a"], 2)


def test_the_settings_of_the_tokenizer_are_restored():
    backend = (tokenizer := wordpiece()).backend_tokenizer
    backend.enable_truncation(128, stride=3)
    backend.enable_padding(length=128, pad_token="[PAD]")
    before = backend.to_str(), backend.encode_special_tokens
    encode_texts(tokenizer, TRICKY, 6)
    encode_plain(tokenizer, TRICKY)
    assert (backend.to_str(), backend.encode_special_tokens) == before
    with pytest.raises(TypeError):
        encode_plain(tokenizer, [None])
    assert (backend.to_str(), backend.encode_special_tokens) == before


@pytest.mark.parametrize("truncates", [False, True])
def test_case_40_the_saved_tokenizer_has_the_settings_that_it_was_loaded_with(tmp_path, truncates):
    """Truncation set during use is not saved; that of the tokenizer's file, such as MiniLM's, is."""
    tokenizer = wordpiece()
    if truncates:
        tokenizer.backend_tokenizer.enable_truncation(128)
        tokenizer.backend_tokenizer.enable_padding(length=128, pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "original")
    loaded = load_tokenizer(tmp_path / "original", needs_end=False)
    for use in range(2):
        encode_texts(loaded, TRICKY, 8)
        loaded(["a text " * 20], truncation=True, max_length=8, padding="max_length")
        save_tokenizer(loaded, tmp_path / "saved")
        original, saved = (
            json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("original", "saved")
        )
        assert original == saved and (saved["truncation"] is not None) is truncates, use
        loaded = load_tokenizer(tmp_path / "saved", needs_end=False)
    alone = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert len(alone.encode("word " * 200).ids) == (128 if truncates else 202)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a b")["input_ids"] == loaded("a b")["input_ids"]


def test_case_40_a_slow_tokenizer_is_saved(tmp_path):
    save_tokenizer(ByT5Tokenizer(extra_ids=2), tmp_path)
    assert encode_plain(load_tokenizer(tmp_path), ["a</s>"]) == [[100, 63, 50, 118, 65]]
