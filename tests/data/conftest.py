"""A tokenizer small enough to encode by hand: letters, one merge, specials; with and without a post-processor."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

_SPECIALS = ["<unk>", "<s>", "</s>", "<user>", "<bot>"]
_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer("<s> $A </s>"): a tokenizer that puts these around every text; "a" and "b" merge to "ab"."""

    def make(single="$A", *, chat=_CHAT, eos="</s>"):
        vocabulary = [*_SPECIALS, "a", "b", "c", "d", " ", "ab"]
        ids = {token: index for index, token in enumerate(vocabulary)}
        backend = Tokenizer(models.BPE(vocab=ids, merges=[("a", "b")], unk_token="<unk>"))
        backend.add_special_tokens(_SPECIALS)
        if single != "$A":
            specials = [(token, ids[token]) for token in ("<s>", "</s>")]
            backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos, unk_token="<unk>", pad_token=eos
        )
        tokenizer.chat_template = chat
        return tokenizer

    return make
