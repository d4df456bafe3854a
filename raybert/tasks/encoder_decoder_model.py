"""An encoder-decoder made of two pretrained encoders (Rothe et al. 2020, arXiv 1907.12461), as transformers has it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, EncoderDecoderModel, GenerationConfig
from transformers.utils import logging

from raybert.config.finetune import FinetuneModelSettings
from raybert.config.tasks import GenerationSettings
from raybert.encoder.folders import read_folder, resolve
from raybert.train.task_models import set_dropout


def make_plain(
    settings: FinetuneModelSettings, task: GenerationSettings, facts: Mapping[str, Any]
) -> EncoderDecoderModel:
    """The named encoder and a decoder, float32; weights that they lack are random, from torch's global generator.

    The decoder has the weights of an encoder, a causal mask, and new cross attention. Its word embeddings, which are also the
    matrix that tokens are predicted with, are new where its vocabulary is; so is the head's bias then. The encoder's pooler
    takes no part and is not trained. How texts are written stands in `generation_config`.

    Args:
        facts: of the decoder (see `raybert.train.generation_job.describe_decoder`).
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it tells of every weight that is new
    encoder = _encoder(settings)
    decoder = _decoder(settings, task, facts)
    plain = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    if task.share:
        _share(encoder, decoder, words=facts["known_words"])
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler.requires_grad_(False)
    ids = {"decoder_start_token_id": facts["start"], "pad_token_id": facts["pad"]}
    for name, number in ids.items():
        setattr(plain.config, name, number)
    plain.generation_config = GenerationConfig(**ids, bos_token_id=facts["start"], eos_token_id=facts["end"])
    set_writing(plain, task)
    if facts["own_tokenizer"]:
        plain.note = " (what it writes is read with the tokenizer in `target_tokenizer/`)"
    return plain


def set_writing(plain: EncoderDecoderModel, task: GenerationSettings) -> None:
    """Write how texts are written into a model's `generation_config`, which is saved with it."""
    how: Any = plain.generation_config
    how.do_sample, how.num_beams = False, task.beams
    how.length_penalty, how.no_repeat_ngram_size = task.length_penalty, task.no_repeat_ngram
    how.max_new_tokens = task.longest_output


def untied(plain: EncoderDecoderModel) -> EncoderDecoderModel:
    """The same model with weights of its own for the decoder, which is how transformers reads one."""
    shared = {id(p) for p in plain.encoder.parameters()}
    for module in plain.decoder.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in shared:
                assert parameter is not None
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
    plain.decoder.tie_weights()
    return plain


def _encoder(settings: FinetuneModelSettings) -> Any:
    folder, _ = resolve(settings.name, settings.revision, code=settings.trust_remote_code)
    path = read_folder(folder).transformer
    config = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    set_dropout(config, settings)
    return AutoModel.from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=settings.trust_remote_code,
    )


def _decoder(settings: FinetuneModelSettings, task: GenerationSettings, facts: Mapping[str, Any]) -> Any:
    folder, _ = resolve(facts["name"], facts["revision"], code=False)
    path = read_folder(folder).transformer
    config = AutoConfig.from_pretrained(path)
    set_dropout(config, settings)
    config.is_decoder = config.add_cross_attention = True
    config.num_hidden_layers = task.decoder_layers or config.num_hidden_layers
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        facts[name] for name in ("start", "end", "pad")
    )
    if not facts["known_words"]:
        config.vocab_size = facts["vocabulary"]
    decoder = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
    )
    if not facts["known_words"]:
        _renew_words(decoder)
    return decoder


@torch.no_grad()
def _renew_words(decoder: Any) -> None:
    """Also where the number of words is by chance the same."""
    words, head = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    words.weight.normal_(0.0, decoder.config.initializer_range)
    words.weight[decoder.config.pad_token_id] = 0
    if head.bias is not None:
        head.bias.zero_()


def _share(encoder: Any, decoder: Any, *, words: bool) -> None:
    """Let the decoder's modules have the parameters of those of the same name in the encoder (BERTshare)."""
    own = dict(encoder.named_modules())
    for name, module in decoder.base_model.named_modules():
        if name not in own or (isinstance(module, nn.Embedding) and "word" in name and not words):
            continue
        for key, parameter in module._parameters.items():
            twin = own[name]._parameters.get(key)
            if twin is not None and parameter is not None and twin.shape == parameter.shape:
                module._parameters[key] = twin
    decoder.tie_weights()
