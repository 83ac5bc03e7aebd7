"""Language models: adapters on them, mixtures of experts, state spaces, quantised ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import IDS, Entry, ids


def _llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**{**small, **changes}, num_attention_heads=4, num_key_value_heads=2))


def adapters() -> Iterator[Entry]:
    """peft on transformers."""
    import bitsandbytes.nn as bits
    import peft
    from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

    def adapted(config: peft.PeftConfig, model: Callable[[], nn.Module] = _llama) -> Callable[[], nn.Module]:
        return lambda: peft.get_peft_model(model(), config)

    def bert() -> nn.Module:
        small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
        return BertForSequenceClassification(BertConfig(**small, num_attention_heads=4))

    def t5() -> nn.Module:
        return T5ForConditionalGeneration(
            T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        )

    def wide() -> nn.Module:
        return _llama(hidden_size=64, intermediate_size=128)

    def in_four_bits() -> nn.Module:
        model = wide()
        for path, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and path != "lm_head":
                packed = bits.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32)
                packed.weight = bits.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                model.set_submodule(path, packed)
        return model.to("cpu")

    def frozen() -> nn.Module:
        return wide().requires_grad_(False)

    words = {"input_ids": IDS}
    causal = {"task_type": "CAUSAL_LM"}
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **causal)
    yield Entry("peft_qlora", adapted(lora, in_four_bits), words, plain=adapted(lora, frozen))
    yield Entry("peft_lora", adapted(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **causal)), words)
    yield Entry("peft_dora", adapted(peft.LoraConfig(r=4, use_dora=True, target_modules="all-linear", **causal)), words)
    yield Entry("peft_lora_embedding", adapted(
        peft.LoraConfig(r=4, target_modules=["embed_tokens", "up_proj"], modules_to_save=["lm_head"], **causal)), words)  # fmt: skip
    yield Entry("peft_ia3", adapted(peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **causal)), words)  # fmt: skip
    yield Entry("peft_prefix", adapted(peft.PrefixTuningConfig(num_virtual_tokens=5, **causal)), words)
    yield Entry("peft_prompt", adapted(peft.PromptTuningConfig(num_virtual_tokens=5, **causal)), words)
    yield Entry("peft_vera", adapted(peft.VeraConfig(r=8, target_modules=["q_proj", "v_proj"], **causal)), words)
    yield Entry("peft_adalora", adapted(peft.AdaLoraConfig(
        total_step=10, target_modules=["q_proj"], **causal)), words)  # fmt: skip
    yield Entry("peft_bert_lora", adapted(peft.LoraConfig(r=4, task_type="SEQ_CLS"), bert), lambda: {
        "input_ids": ids(), "attention_mask": torch.tensor([[1] * 12, [1] * 7 + [0] * 5])})  # fmt: skip
    yield Entry("peft_t5_lora", adapted(peft.LoraConfig(r=4, task_type="SEQ_2_SEQ_LM"), t5), {
        "input_ids": IDS, "decoder_input_ids": "int64[B, 5]"})  # fmt: skip


def language() -> Iterator[Entry]:
    """transformers: state spaces, recurrent ones, and such whose attention is none of the usual."""
    import transformers as hf

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    words = {"input_ids": IDS}

    class Writer(nn.Module):
        """Goes on with a text, word by word."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.model.generate(words, max_new_tokens=4, do_sample=False, pad_token_id=0)

    def continued() -> dict[str, Any]:
        cache = hf.DynamicCache()
        for layer in range(2):
            cache.update(torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), layer)
        return {"input_ids": ids(1, 1), "past_key_values": cache}

    def encoded() -> Any:
        return hf.BatchEncoding({"input_ids": ids(), "attention_mask": torch.tensor([[1] * 12, [1] * 7 + [0] * 5])})

    yield Entry("hf_mamba", lambda: hf.MambaForCausalLM(hf.MambaConfig(**small, state_size=8)), words)
    yield Entry("hf_mamba2", lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(
        **small, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=8)), words)  # fmt: skip
    yield Entry("hf_rwkv", lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**small, attention_hidden_size=32)), words)
    yield Entry("hf_xlstm", lambda: hf.xLSTMForCausalLM(hf.xLSTMConfig(
        vocab_size=100, hidden_size=64, num_blocks=2, num_heads=4, qk_dim_factor=1.0, chunk_size=8)), words)  # fmt: skip
    yield Entry("hf_big_bird", lambda: hf.BigBirdModel(hf.BigBirdConfig(
        **small, num_attention_heads=4, intermediate_size=64, block_size=4, num_random_blocks=1)), lambda: {
        "input_ids": ids(1, 64)})  # fmt: skip
    yield Entry("hf_longformer", lambda: hf.LongformerModel(hf.LongformerConfig(
        **small, num_attention_heads=4, intermediate_size=64, attention_window=4)), lambda: {"input_ids": ids(1, 16)})  # fmt: skip
    yield Entry("hf_t5", lambda: hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)), {**words, "decoder_input_ids": IDS})  # fmt: skip
    yield Entry("hf_bert_mask", lambda: hf.BertForTokenClassification(hf.BertConfig(
        **small, num_attention_heads=4, intermediate_size=64)), lambda: {
        "input_ids": ids(), "attention_mask": torch.tensor([[1] * 12, [1] * 7 + [0] * 5])})  # fmt: skip
    yield Entry("hf_generate", lambda: Writer(_llama()), lambda: (ids(1, 5),), by_values=True)
    yield Entry("hf_llama_cache", _llama, continued)
    yield Entry(
        "hf_bert_encoding",
        lambda: hf.BertModel(hf.BertConfig(**small, num_attention_heads=4, intermediate_size=64)),
        encoded,
    )
    yield Entry("hf_reformer", lambda: hf.ReformerModelWithLMHead(hf.ReformerConfig(
        vocab_size=100, hidden_size=32, attn_layers=["local", "lsh"], num_attention_heads=2, attention_head_size=16,
        feed_forward_size=48, axial_pos_shape=(4, 8), axial_pos_embds_dim=(16, 16), is_decoder=True, num_buckets=4,
        lsh_attn_chunk_length=8, local_attn_chunk_length=8)), lambda: {"input_ids": ids(1, 32)})  # fmt: skip
    yield Entry("hf_gpt2_labels", lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4)), lambda: {"input_ids": (words := ids()), "labels": words})  # fmt: skip


def experts() -> Iterator[Entry]:
    """transformers: mixtures of experts."""
    import transformers as hf

    small = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2,
    }  # fmt: skip
    narrow = {**small, "moe_intermediate_size": 16}
    words, example = {"input_ids": IDS}, (lambda: {"input_ids": ids()})
    latent = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    yield Entry("moe_mixtral", lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**small, num_local_experts=4)), words)
    yield Entry(
        "moe_mixtral_example", lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**small, num_local_experts=4)), example
    )
    yield Entry("moe_qwen2", lambda: hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(
        **narrow, num_experts=4, shared_expert_intermediate_size=24)), words)  # fmt: skip
    yield Entry("moe_qwen3", lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**narrow, num_experts=4)), words)
    yield Entry("moe_deepseek", lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(
        **{**narrow, "num_key_value_heads": 4}, **latent, n_routed_experts=8, n_group=2, topk_group=1, first_k_dense_replace=1)), words)  # fmt: skip
    yield Entry("moe_gpt_oss", lambda: hf.GptOssForCausalLM(hf.GptOssConfig(
        **small, num_local_experts=4, head_dim=8)), words)  # fmt: skip
    yield Entry("moe_switch", lambda: hf.SwitchTransformersForConditionalGeneration(hf.SwitchTransformersConfig(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2,
        num_sparse_decoder_layers=1, num_heads=4, num_experts=4)), {**words, "decoder_input_ids": IDS}, by_values=True)  # fmt: skip
    yield Entry("moe_nllb", lambda: hf.NllbMoeForConditionalGeneration(hf.NllbMoeConfig(
        vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2)),
        {**words, "decoder_input_ids": IDS}, by_values=True)  # fmt: skip
    yield Entry("moe_jamba", lambda: hf.JambaForCausalLM(hf.JambaConfig(
        **{**small, "num_hidden_layers": 4}, num_experts=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False)), words)  # fmt: skip


def quantised() -> Iterator[Entry]:
    """torchao and bitsandbytes."""
    import bitsandbytes.nn as bits
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.qat import QATConfig

    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64)).to(torch.bfloat16)

    def small() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))

    def converted(config: Any, model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            net = model()
            ao.quantize_(net, config)
            return net

        return build

    def packed(layer: Callable[[int, int], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(layer(64, 128), nn.ReLU(), layer(128, 32)).to("cpu")

    for name, config in (
        ("int8", ao.Int8WeightOnlyConfig()),
        ("int8_dynamic", ao.Int8DynamicActivationInt8WeightConfig()),
        ("float8", ao.Float8WeightOnlyConfig()),
        ("int4_groups", ao.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
    ):
        yield Entry(f"torchao_{name}", converted(config, plain), "bfloat16[B, 128]", plain=plain)
    trained = QATConfig(ao.Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)), step="prepare")
    yield Entry("torchao_qat", converted(trained, small), "float32[B, 64]", plain=small)
    llama = lambda: _llama().to(torch.bfloat16)  # noqa: E731
    yield Entry("torchao_llama_int8", converted(ao.Int8WeightOnlyConfig(), llama), {"input_ids": IDS}, plain=llama)
    yield Entry(
        "bnb_8bit", packed(lambda i, o: bits.Linear8bitLt(i, o, has_fp16_weights=False)), "float32[B, 64]", plain=small
    )
    yield Entry("bnb_nf4", packed(lambda i, o: bits.Linear4bit(i, o, quant_type="nf4", compute_dtype=torch.float32)),
                "float32[B, 64]", plain=small)  # fmt: skip
