"""Small random models and batches of random tokens for the tests that need torch."""

import peft
import torch
import transformers

LAYERS = 4
WORDS = 60


def bert_config():
    return transformers.BertConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2,
                                   intermediate_size=24, max_position_embeddings=128, num_labels=2)


def llama_config():
    return transformers.LlamaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2,
                                    num_key_value_heads=1, intermediate_size=24, max_position_embeddings=128,
                                    bos_token_id=None, eos_token_id=1, pad_token_id=2)


def bert(**lora):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert_config())
    settings = dict(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.0)
    return grown(peft.get_peft_model(model, peft.LoraConfig(**{**settings, **lora})))


def llama(**lora):
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(llama_config())
    settings = dict(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return grown(peft.get_peft_model(model, peft.LoraConfig(**{**settings, **lora})))


def grown(model):
    """Gives every B random values, larger ones in higher layers."""
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            layer = int([part for part in name.split(".") if part.isdigit()][0])
            value.data.normal_(std=0.05 * (1 + layer))
    return model


def batches(count=3, labels=True):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        ids = torch.randint(3, WORDS, (5, 9), generator=generator)
        lengths = torch.randint(4, 10, (5,), generator=generator)
        mask = (torch.arange(9) < lengths[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask}
        if labels:
            batch["labels"] = torch.randint(0, 2, (5,), generator=generator)
        yield batch


def tokenizer():
    """Words are the numbers of their tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"{i}": i for i in range(WORDS)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="1", pad_token="2")
