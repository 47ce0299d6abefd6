"""Small text encoders of transformers in folders, as ``save_pretrained`` leaves them."""

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

WORDS = ("a", "bright", "dark", "cyst", "mass", "ultrasound", "showing", "in", "the", "breast")
TEXTS = ["a bright mass", "ultrasound showing a dark cyst in the breast", "a"]


def word_tokenizer(start, end, padding, **options):
    """A tokenizer of words with marks of a start, an end and of padding."""
    import transformers

    marks = dict.fromkeys(["[UNK]", padding, start, end])
    vocabulary = {word: i for i, word in enumerate([*WORDS, *marks])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(mark, vocabulary[mark]) for mark in (start, end)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token=padding, **options
    )


def save_bert(folder, pooler=True):
    """A BERT of one layer with its tokenizer."""
    import transformers

    tokenizer = word_tokenizer("[CLS]", "[SEP]", "[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20, initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=pooler).eval()
    return _save(folder, model, tokenizer)


def save_clip(folder):
    """CLIP's text tower of one layer, whose end and padding are one token, as OpenAI's are."""
    import transformers

    end = "<|endoftext|>"
    tokenizer = word_tokenizer("<|startoftext|>", end, end, eos_token=end)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20, projection_dim=8,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|startoftext|>"),
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return _save(folder, model, tokenizer)


def save_t5(folder):
    """T5's encoder of one layer, which has neither a pooler nor a class token."""
    import transformers

    tokenizer = word_tokenizer("</s>", "</s>", "<pad>", eos_token="</s>")
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(folder, transformers.T5EncoderModel(config).eval(), tokenizer)


def _save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
