"""The models of `third_party.py`: small ones, of each kind that people bring, as their libraries build them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IDS = "int64[B, 12]"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model: how it is built, and what it is called with.

    `inputs` are specs, or a function that makes example inputs. `plain` builds the same model before its weights were
    packed or quantised: params and FLOPs are those of that one. `by_values` says that shapes or FLOPs follow the values
    of weights and inputs, so that an unknown is right there too.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    plain: Callable[[], nn.Module] | None = None
    by_values: bool = False


def entries() -> Iterator[Entry]:
    """All of them, library by library."""
    for library in (graphs, adapters, diffusion, speech, segmentation, pairs, medical, quantised, language, experts,
                    vision, detectors, series, tables, others):  # fmt: skip
        yield from library()


def ids(rows: int = 2, length: int = 12, below: int = 90) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(3, below, (rows, length))


def graphs() -> Iterator[Entry]:
    """torch_geometric."""
    import torch_geometric.nn as geometric
    from torch_geometric.data import Batch, Data, HeteroData

    def edges(nodes: int = 20, count: int = 60) -> torch.Tensor:
        return torch.randint(0, nodes, (2, count))

    def graph() -> tuple[Any, ...]:
        return torch.randn(20, 16), edges()

    def molecule(nodes: int) -> Data:
        return Data(x=torch.randn(nodes, 16), edge_index=edges(nodes, 3 * nodes), y=torch.zeros(1))

    def batch() -> tuple[Any, ...]:
        return (Batch.from_data_list([molecule(5), molecule(8), molecule(3)]),)

    class Classifier(nn.Module):
        """Reads a `Data`, and pools each graph of a batch."""

        def __init__(self, convolve: nn.Module, pool: Callable[..., torch.Tensor]) -> None:
            super().__init__()
            self.convolve, self.pool, self.head = convolve, pool, nn.Linear(32, 3)

        def forward(self, data: Data) -> torch.Tensor:
            return self.head(self.pool(self.convolve(data.x, data.edge_index), data.batch))

    class Pooled(nn.Module):
        """Keeps the best half of the nodes."""

        def __init__(self, pool: type) -> None:
            super().__init__()
            self.convolve, self.pool, self.head = geometric.GCNConv(16, 32), pool(32, ratio=0.5), nn.Linear(32, 3)

        def forward(self, data: Data) -> torch.Tensor:
            x = self.convolve(data.x, data.edge_index).relu()
            x, _, _, batch, *_ = self.pool(x, data.edge_index, None, data.batch)
            return self.head(geometric.global_mean_pool(x, batch))

    class Hetero(nn.Module):
        """Users and items, each kind of edge with weights of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.convolve = geometric.HeteroConv(
                {
                    ("user", "buys", "item"): geometric.SAGEConv((8, 16), 24),
                    ("item", "is bought by", "user"): geometric.GATConv((16, 8), 24, add_self_loops=False),
                    ("user", "knows", "user"): geometric.GCNConv(8, 24, add_self_loops=False),
                }
            )
            self.head = nn.Linear(24, 4)

        def forward(self, x_dict: dict[str, Any], edge_index_dict: dict[Any, Any]) -> torch.Tensor:
            return self.head(self.convolve(x_dict, edge_index_dict)["user"])

    def shop() -> HeteroData:
        data = HeteroData()
        data["user"].x, data["item"].x = torch.randn(10, 8), torch.randn(6, 16)
        data["user", "buys", "item"].edge_index = torch.stack([torch.randint(0, 10, (30,)), torch.randint(0, 6, (30,))])
        data["item", "is bought by", "user"].edge_index = data["user", "buys", "item"].edge_index.flip(0)
        data["user", "knows", "user"].edge_index = edges(10, 15)
        return data

    def shopping() -> tuple[Any, ...]:
        return shop().x_dict, shop().edge_index_dict

    class Points(nn.Module):
        """PointNet's set abstraction, with the neighbours as edges."""

        def __init__(self) -> None:
            super().__init__()
            local = geometric.MLP([3 + 16, 32, 32])
            self.convolve, self.head = geometric.PointNetConv(local, geometric.MLP([32, 64])), nn.Linear(64, 5)

        def forward(self, data: Data) -> torch.Tensor:
            return self.head(geometric.global_max_pool(self.convolve(data.x, data.pos, data.edge_index), data.batch))

    def cloud() -> tuple[Any, ...]:
        clouds = [molecule(12), molecule(9)]
        for data in clouds:
            data.pos = torch.randn(data.num_nodes, 3)
        return (Batch.from_data_list(clouds),)

    class Transformer(nn.Module):
        """GraphGPS: local messages and attention over each graph, which is padded to the largest."""

        def __init__(self) -> None:
            super().__init__()
            self.convolve = geometric.GPSConv(16, geometric.GINConv(geometric.MLP([16, 16])), heads=2)

        def forward(self, data: Data) -> torch.Tensor:
            return self.convolve(data.x, data.edge_index, data.batch)

    yield Entry("pyg_gcn", lambda: geometric.GCN(16, 32, 2, 7), graph)
    yield Entry("pyg_gat", lambda: geometric.GAT(16, 32, 2, 7, heads=4, v2=True), graph)
    yield Entry("pyg_sage", lambda: geometric.GraphSAGE(16, 32, 2, 7, jk="lstm"), graph)
    yield Entry("pyg_gin_batch", lambda: Classifier(geometric.GIN(16, 32, 3), geometric.global_add_pool), batch)
    yield Entry("pyg_pna_set2set", lambda: Classifier(
        geometric.PNA(16, 32, 2, aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 3, 5, 2])),
        geometric.global_max_pool), batch)  # fmt: skip
    yield Entry("pyg_top_k_pool", lambda: Pooled(geometric.TopKPooling), batch, by_values=True)
    yield Entry("pyg_sag_pool", lambda: Pooled(geometric.SAGPooling), batch, by_values=True)
    yield Entry("pyg_hetero", Hetero, shopping)
    yield Entry("pyg_to_hetero", lambda: geometric.to_hetero(
        geometric.GraphSAGE((-1, -1), 16, 2, 4), shop().metadata()), shopping)  # fmt: skip
    yield Entry("pyg_rgcn", lambda: geometric.RGCNConv(16, 32, 3), lambda: (*graph(), torch.randint(0, 3, (60,))))
    yield Entry("pyg_unet", lambda: geometric.GraphUNet(16, 32, 7, depth=2), graph, by_values=True)
    yield Entry("pyg_points", Points, cloud)
    yield Entry("pyg_gps", Transformer, batch)
    yield Entry("pyg_light_gcn", lambda: geometric.LightGCN(20, 16, 2), lambda: (edges(),))


def _llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=4, num_key_value_heads=2, **changes))


def adapters() -> Iterator[Entry]:
    """peft on transformers."""
    import peft
    from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

    def adapted(config: peft.PeftConfig, model: Callable[[], nn.Module] = _llama) -> Callable[[], nn.Module]:
        return lambda: peft.get_peft_model(model(), config)

    def bert() -> nn.Module:
        small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
        return BertForSequenceClassification(BertConfig(**small, num_attention_heads=4))

    def t5() -> nn.Module:
        return T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))

    words = {"input_ids": IDS}
    causal = {"task_type": "CAUSAL_LM"}
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


def diffusion() -> Iterator[Entry]:
    """diffusers."""
    import diffusers

    blocks = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    crossed = {
        **blocks, "sample_size": 8, "cross_attention_dim": 24, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    noisy = lambda *shape: (lambda: (torch.randn(1, *shape), torch.tensor(7)))  # noqa: E731
    prompted = ["float32[B, 4, 8, 8]", "int64[B]", "float32[B, 6, 24]"]

    def sd3() -> nn.Module:
        return diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
        )  # fmt: skip

    def flux() -> nn.Module:
        return diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, axes_dims_rope=(4, 4, 8),
            num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
        )  # fmt: skip

    def fluxed() -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 6, 24),
            "pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([1.0]),
            "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3),
        }  # fmt: skip

    yield Entry("diffusers_unet", lambda: diffusers.UNet2DModel(
        sample_size=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, **blocks), noisy(3, 16, 16))  # fmt: skip
    yield Entry("diffusers_unet_conditional", lambda: diffusers.UNet2DConditionModel(
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **crossed), prompted)  # fmt: skip
    yield Entry("diffusers_controlnet", lambda: diffusers.ControlNetModel(
        conditioning_embedding_out_channels=(8, 16), **{name: value for name, value in crossed.items() if name != "sample_size"}),
        [*prompted, "float32[B, 3, 16, 16]"])  # fmt: skip
    yield Entry("diffusers_vae", lambda: diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks),
        "float32[B, 3, 32, 32]")  # fmt: skip
    yield Entry("diffusers_vq", lambda: diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=32, **blocks),
        "float32[B, 3, 32, 32]")  # fmt: skip
    yield Entry("diffusers_dit", lambda: diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, norm_num_groups=8),
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 9]), "class_labels": torch.tensor([1, 5])})  # fmt: skip
    yield Entry("diffusers_sd3", sd3, {
        "hidden_states": "float32[B, 4, 8, 8]", "encoder_hidden_states": "float32[B, 6, 24]",
        "pooled_projections": "float32[B, 16]", "timestep": "int64[B]"})  # fmt: skip
    yield Entry("diffusers_flux", flux, fluxed)
    yield Entry("diffusers_unet_video", lambda: diffusers.UNet3DConditionModel(
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        **{name: value for name, value in crossed.items() if name != "down_block_types"}),
        ["float32[B, 4, 3, 8, 8]", "int64[B]", "float32[B, 6, 24]"])  # fmt: skip


def speech() -> Iterator[Entry]:
    """torchaudio."""
    import torchaudio
    from torchaudio import models, transforms

    def wav2vec() -> nn.Module:
        return models.wav2vec2_model(
            extractor_mode="group_norm", extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2), (16, 2, 2)],
            extractor_conv_bias=False, encoder_embed_dim=32, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=16,
            encoder_pos_conv_groups=4, encoder_num_layers=2, encoder_num_heads=4, encoder_attention_dropout=0.0,
            encoder_ff_interm_features=64, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
            encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=12,
        )  # fmt: skip

    def rnnt() -> nn.Module:
        return models.emformer_rnnt_model(
            input_dim=16, encoding_dim=32, num_symbols=20, segment_length=8, right_context_length=4,
            time_reduction_input_dim=8, time_reduction_stride=4, transformer_num_heads=2, transformer_ffn_dim=32,
            transformer_num_layers=2, transformer_dropout=0.0, transformer_activation="gelu",
            transformer_left_context_length=8, transformer_max_memory_size=0, transformer_weight_init_scale_strategy="depthwise",
            transformer_tanh_on_mem=True, symbol_embedding_dim=16,
            num_lstm_layers=2, lstm_layer_norm=True, lstm_layer_norm_epsilon=1e-3, lstm_dropout=0.0,
        )  # fmt: skip

    class Keywords(nn.Module):
        """A front end of mel bands, and a small convolutional network."""

        def __init__(self, front: nn.Module, bands: int) -> None:
            super().__init__()
            self.front, self.decibels = front, transforms.AmplitudeToDB()
            self.body = nn.Sequential(nn.Conv1d(bands, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5))

        def forward(self, waves: torch.Tensor) -> torch.Tensor:
            return self.body(self.decibels(self.front(waves)))

    spoken = lambda bands: (lambda: (torch.randn(2, 40, bands), torch.tensor([40, 28])))  # noqa: E731
    yield Entry("audio_wav2vec2", wav2vec, lambda: (torch.randn(2, 1600), torch.tensor([1600, 1200])))
    yield Entry("audio_wav2vec2_spec", wav2vec, "float32[B, 1600]")
    yield Entry("audio_conformer", lambda: models.Conformer(16, 2, 32, 2, 5), spoken(16))
    yield Entry("audio_emformer", lambda: models.Emformer(16, 2, 32, 2, 8, right_context_length=4), lambda: (
        torch.randn(2, 44, 16), torch.tensor([40, 32])))  # fmt: skip
    yield Entry("audio_rnnt", rnnt, lambda: (
        torch.randn(2, 36, 16), torch.tensor([36, 36]), torch.randint(0, 20, (2, 6)), torch.tensor([6, 4], dtype=torch.int32)))  # fmt: skip
    yield Entry("audio_tacotron2", lambda: models.Tacotron2(
        n_mels=16, n_symbol=30, symbol_embedding_dim=32, encoder_embedding_dim=32, attention_rnn_dim=32, attention_hidden_dim=16,
        decoder_rnn_dim=32, prenet_dim=16, postnet_embedding_dim=32), lambda: (
        torch.randint(0, 30, (2, 9)), torch.tensor([9, 7]), torch.randn(2, 16, 14), torch.tensor([14, 11])))  # fmt: skip
    yield Entry("audio_deepspeech", lambda: models.DeepSpeech(16, 32, 10), "float32[B, 1, 20, 16]")
    yield Entry("audio_wavernn", lambda: models.WaveRNN(
        [2, 2, 4], 32, 16, n_res_block=2, n_rnn=32, n_fc=32, kernel_size=3, n_freq=16, n_hidden=16, n_output=16),
        ["float32[B, 1, 64]", "float32[B, 1, 16, 6]"])  # fmt: skip
    yield Entry("audio_conv_tasnet", lambda: models.ConvTasNet(
        enc_num_feats=16, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=3, msk_num_stacks=2), "float32[B, 1, 800]")
    yield Entry("audio_demucs", lambda: models.hdemucs_low(["drums", "vocals"]), "float32[1, 2, 8000]")
    yield Entry("audio_mel", lambda: Keywords(transforms.MelSpectrogram(n_mels=20, n_fft=256), 20), "float32[B, 4000]")
    yield Entry("audio_mfcc", lambda: Keywords(transforms.MFCC(n_mfcc=13, melkwargs={"n_mels": 20, "n_fft": 256}), 13),
                "float32[B, 4000]")  # fmt: skip
    yield Entry("audio_inverse", lambda: nn.Sequential(
        transforms.Spectrogram(n_fft=128, power=None), transforms.InverseSpectrogram(n_fft=128)), "float32[B, 2000]")  # fmt: skip
    del torchaudio


def segmentation() -> Iterator[Entry]:
    """segmentation_models_pytorch."""
    import segmentation_models_pytorch as smp

    image = "float32[B, 3, 64, 64]"
    for name, kind, options in (
        ("unet", smp.Unet, {"encoder_name": "resnet18"}),
        ("unet_plus_scse", smp.UnetPlusPlus, {"encoder_name": "mobilenet_v2", "decoder_attention_type": "scse"}),
        ("unet_timm", smp.Unet, {"encoder_name": "timm-efficientnet-b0", "aux_params": {"classes": 4}}),
        ("fpn", smp.FPN, {"encoder_name": "resnet18"}),
        ("deeplab", smp.DeepLabV3Plus, {"encoder_name": "resnet18"}),
        ("pspnet", smp.PSPNet, {"encoder_name": "resnet18"}),
        ("manet", smp.MAnet, {"encoder_name": "resnet18"}),
        ("segformer", smp.Segformer, {"encoder_name": "mit_b0"}),
        ("upernet", smp.UPerNet, {"encoder_name": "resnet18"}),
        ("dpt", smp.DPT, {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True}),
    ):
        build = lambda kind=kind, options=options: kind(encoder_weights=None, classes=3, **options)  # noqa: E731
        yield Entry(f"smp_{name}", build, image)


def pairs() -> Iterator[Entry]:
    """open_clip."""
    import open_clip

    seen = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
    read = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 4, "layers": 2}
    shown = ["float32[B, 3, 32, 32]", IDS]

    def coca() -> nn.Module:
        text = {**read, "embed_cls": True, "output_tokens": True}
        return open_clip.CoCa(
            32, {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 4, "layers": 2}, text,
            {**seen, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6, "output_tokens": True},
        )  # fmt: skip

    yield Entry("clip_vit", lambda: open_clip.CLIP(32, open_clip.CLIPVisionCfg(**seen), open_clip.CLIPTextCfg(**read)), shown)
    yield Entry("clip_resnet", lambda: open_clip.CLIP(
        32, open_clip.CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, image_size=64), open_clip.CLIPTextCfg(**read)),
        ["float32[B, 3, 64, 64]", IDS])  # fmt: skip
    yield Entry("clip_siglip", lambda: open_clip.CustomTextCLIP(
        32, open_clip.CLIPVisionCfg(timm_model_name="vit_tiny_patch16_224", timm_pool="map", timm_proj="none", image_size=224),
        open_clip.CLIPTextCfg(**read, no_causal_mask=True, pool_type="last", proj_bias=True), init_logit_bias=-10.0), ["float32[B, 3, 224, 224]", IDS])  # fmt: skip
    yield Entry("clip_coca", coca, lambda: (torch.randn(2, 3, 32, 32), ids()))


def medical() -> Iterator[Entry]:
    """monai."""
    from monai.networks import nets

    volume = "float32[B, 1, 32, 32, 32]"
    yield Entry("monai_unet", lambda: nets.UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2), volume)
    yield Entry("monai_swin_unetr", lambda: nets.SwinUNETR(1, 2, feature_size=12), "float32[B, 1, 64, 64, 64]")
    yield Entry("monai_unetr", lambda: nets.UNETR(
        1, 2, (32, 32, 32), feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4), volume)  # fmt: skip
    yield Entry("monai_segresnet", lambda: nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 2), blocks_up=(1,)), volume)
    yield Entry("monai_vit", lambda: nets.ViT(
        1, (32, 32, 32), (16, 16, 16), hidden_size=48, mlp_dim=64, num_layers=2, num_heads=4, classification=True), volume)  # fmt: skip
    yield Entry("monai_dynunet", lambda: nets.DynUNet(
        3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32], deep_supervision=True, deep_supr_num=1), volume)  # fmt: skip
    yield Entry("monai_attention_unet", lambda: nets.AttentionUnet(3, 1, 2, channels=(8, 16), strides=(2,)), volume)
    yield Entry("monai_diffusion", lambda: nets.DiffusionModelUNet(
        2, 1, 1, channels=(16, 32), attention_levels=(False, True), num_res_blocks=1, num_head_channels=8, norm_num_groups=8),
        ["float32[B, 1, 16, 16]", "int64[B]"])  # fmt: skip
    yield Entry("monai_vnet", lambda: nets.VNet(3, 1, 2), volume)


def quantised() -> Iterator[Entry]:
    """torchao and bitsandbytes."""
    import bitsandbytes.nn as bits
    from torchao import quantization as ao

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
    llama = lambda: _llama().to(torch.bfloat16)  # noqa: E731
    yield Entry("torchao_llama_int8", converted(ao.Int8WeightOnlyConfig(), llama), {"input_ids": IDS}, plain=llama)
    yield Entry("bnb_8bit", packed(lambda i, o: bits.Linear8bitLt(i, o, has_fp16_weights=False)), "float32[B, 64]", plain=small)
    yield Entry("bnb_nf4", packed(lambda i, o: bits.Linear4bit(i, o, quant_type="nf4", compute_dtype=torch.float32)),
                "float32[B, 64]", plain=small)  # fmt: skip


def language() -> Iterator[Entry]:
    """transformers: state spaces, recurrent ones, and such whose attention is none of the usual."""
    import transformers as hf

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    words = {"input_ids": IDS}
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
    yield Entry("moe_mixtral_example", lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**small, num_local_experts=4)), example)
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


def vision() -> Iterator[Entry]:
    """transformers: images, and images beside words."""
    import transformers as hf

    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    seen = {**layers, "image_size": 32, "patch_size": 8}
    read = {**layers, "vocab_size": 100}

    def llava() -> nn.Module:
        return hf.LlavaForConditionalGeneration(hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**seen, projection_dim=32), text_config=hf.LlamaConfig(**read),
            image_token_index=99))  # fmt: skip

    def talked() -> dict[str, Any]:
        words = ids(1, 24)
        words[0, 2:18] = 99
        return {"input_ids": words, "pixel_values": torch.randn(1, 3, 32, 32)}

    yield Entry("hf_llava", llava, talked)
    yield Entry("hf_clip", lambda: hf.CLIPModel(hf.CLIPConfig(
        text_config={**read, "eos_token_id": 2}, vision_config=seen, projection_dim=16)), {
        "input_ids": IDS, "pixel_values": "float32[B, 3, 32, 32]"})  # fmt: skip
    yield Entry("hf_trocr", lambda: hf.VisionEncoderDecoderModel(hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(**seen), hf.BertConfig(**read))), {
        "pixel_values": "float32[B, 3, 32, 32]", "decoder_input_ids": IDS})  # fmt: skip
    yield Entry("hf_sam", lambda: hf.SamModel(hf.SamConfig(
        vision_config={**layers, "image_size": 64, "patch_size": 16, "output_channels": 16, "global_attn_indexes": [1],
                       "window_size": 2, "mlp_dim": 64, "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "image_embedding_size": 4},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16})), {
        "pixel_values": "float32[B, 3, 64, 64]", "input_points": "float32[B, 1, 2, 2]"})  # fmt: skip
    yield Entry("hf_perceiver", lambda: hf.PerceiverForImageClassificationLearned(hf.PerceiverConfig(
        num_latents=8, d_latents=32, d_model=64, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=4,
        num_cross_attention_heads=1, image_size=16)), {"inputs": "float32[B, 3, 16, 16]"})  # fmt: skip


def detectors() -> Iterator[Entry]:
    """transformers and torchvision: detectors and flow."""
    import transformers as hf
    from torchvision import models
    from torchvision.models import detection

    tiny = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
                           out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    heads = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7,
    }  # fmt: skip
    plain = {"backbone_config": tiny, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    image, pixels = "float32[B, 3, 64, 64]", {"pixel_values": "float32[B, 3, 64, 64]"}

    def detr() -> nn.Module:
        only = hf.ResNetConfig(**{**tiny.to_dict(), "out_features": ["stage4"], "out_indices": None})
        return hf.DetrForObjectDetection(hf.DetrConfig(**{**plain, "backbone_config": only}, **heads))

    def rt_detr() -> nn.Module:
        return hf.RTDetrForObjectDetection(hf.RTDetrConfig(
            backbone_config=hf.RTDetrResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
                out_features=["stage2", "stage3", "stage4"]),
            encoder_hidden_dim=32, encoder_in_channels=[16, 16, 24], encoder_attention_heads=4, encoder_ffn_dim=48,
            d_model=32, num_queries=7, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=48, decoder_attention_heads=4,
            decoder_layers=2, num_denoising=0))  # fmt: skip

    def mask2former() -> nn.Module:
        swin = hf.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                             out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
        return hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(
            backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
            encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=5))  # fmt: skip

    yield Entry("hf_detr", detr, pixels)
    yield Entry("hf_detr_mask", detr, lambda: {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "pixel_mask": torch.ones(2, 64, 64, dtype=torch.int64).index_fill_(1, torch.arange(50, 64), 0)})  # fmt: skip
    yield Entry("hf_deformable_detr", lambda: hf.DeformableDetrForObjectDetection(
        hf.DeformableDetrConfig(**plain, **heads, num_feature_levels=4)), {"pixel_values": "float32[B, 3, 128, 128]"})  # fmt: skip
    yield Entry("hf_rt_detr", rt_detr, pixels)
    yield Entry("hf_yolos", lambda: hf.YolosForObjectDetection(hf.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=[64, 64],
        num_detection_tokens=5)), pixels)  # fmt: skip
    yield Entry("hf_mask2former", mask2former, pixels)
    frames = lambda: ([torch.rand(3, 96, 96), torch.rand(3, 80, 112)],)  # noqa: E731
    sized = {"weights": None, "weights_backbone": None, "min_size": 96, "max_size": 128}
    yield Entry("tv_faster_rcnn", lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**sized), frames, by_values=True)
    yield Entry("tv_mask_rcnn", lambda: detection.maskrcnn_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_retinanet", lambda: detection.retinanet_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_fcos", lambda: detection.fcos_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_ssdlite", lambda: detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
                {"args": [["float32[3, 320, 320]"]]}, by_values=True)  # fmt: skip
    yield Entry("tv_raft", lambda: models.optical_flow.raft_small(), [f"float32[B, 3, 128, 128]"] * 2)
    del image


def series() -> Iterator[Entry]:
    """transformers: speech and time series."""
    import transformers as hf

    forecast = {
        "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    }  # fmt: skip
    past = {"past_values": "float32[B, 10]", "past_time_features": "float32[B, 10, 1]", "past_observed_mask": "float32[B, 10]"}

    def known() -> dict[str, Any]:
        return {
            "past_values": torch.randn(2, 10), "past_time_features": torch.randn(2, 10, 1),
            "past_observed_mask": torch.ones(2, 10), "future_values": torch.randn(2, 4),
            "future_time_features": torch.randn(2, 4, 1),
        }  # fmt: skip

    yield Entry("hf_whisper", lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(
        vocab_size=100, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=20, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)), {
        "input_features": "float32[B, 8, 40]", "decoder_input_ids": IDS})  # fmt: skip
    yield Entry("hf_wav2vec2_ctc", lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4)), lambda: {
        "input_values": torch.randn(2, 800), "attention_mask": torch.tensor([[1] * 800, [1] * 600 + [0] * 200])})  # fmt: skip
    yield Entry("hf_encodec", lambda: hf.EncodecModel(hf.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[4, 2], target_bandwidths=[30.0])),
        lambda: {"input_values": torch.randn(1, 1, 640), "bandwidth": 30.0}, by_values=True)  # fmt: skip
    yield Entry("hf_vits", lambda: hf.VitsModel(hf.VitsConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=16, flow_size=16,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], prior_encoder_num_flows=2, depth_separable_num_layers=1,
        posterior_encoder_num_wavenet_layers=2, prior_encoder_num_wavenet_layers=2)),
        lambda: {"input_ids": ids(1, 8, 30)}, by_values=True)  # fmt: skip
    yield Entry("hf_patch_tst", lambda: hf.PatchTSTForPrediction(hf.PatchTSTConfig(
        num_input_channels=3, context_length=32, patch_length=8, patch_stride=4, prediction_length=6, d_model=16,
        num_attention_heads=2, ffn_dim=24, num_hidden_layers=2)), {"past_values": "float32[B, 32, 3]"})  # fmt: skip
    yield Entry("hf_informer", lambda: hf.InformerModel(hf.InformerConfig(**forecast)), known)
    yield Entry("hf_autoformer", lambda: hf.AutoformerModel(hf.AutoformerConfig(
        **forecast, label_length=4, moving_average=3)), known, by_values=True)
    yield Entry("hf_time_series", lambda: hf.TimeSeriesTransformerModel(hf.TimeSeriesTransformerConfig(**forecast)), {
        **past, "future_values": "float32[B, 4]", "future_time_features": "float32[B, 4, 1]"})  # fmt: skip


def tables() -> Iterator[Entry]:
    """Plain torch: recommenders with bags of ids, taggers that pack their sequences, clouds of points."""

    class Dlrm(nn.Module):
        """Dense features and bags of ids, and the products of each pair."""

        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.ModuleList(nn.EmbeddingBag(50, 8, mode="sum", include_last_offset=True) for _ in range(3))
            self.bottom, self.top = nn.Linear(5, 8), nn.Linear(8 + 6, 1)

        def forward(self, dense: torch.Tensor, sparse: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
            low = self.bottom(dense).relu()
            parts = torch.stack([low, *(bag(*pair) for bag, pair in zip(self.bags, sparse, strict=True))], 1)
            rows, columns = torch.tril_indices(4, 4, -1)
            return self.top(torch.cat([low, (parts @ parts.mT)[:, rows, columns]], 1)).sigmoid()

    def clicks() -> tuple[Any, ...]:
        offsets = torch.tensor([0, 2, 5, 6])
        return torch.randn(3, 5), [(torch.randint(0, 50, (6,)), offsets) for _ in range(3)]

    class Tagger(nn.Module):
        """Packs what it reads by its lengths."""

        def __init__(self, kind: type[nn.Module]) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(90, 16, padding_idx=0), nn.Linear(48, 5)
            self.read = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
            return self.head(nn.utils.rnn.pad_packed_sequence(self.read(packed)[0], batch_first=True)[0])

    class PointNet(nn.Module):
        """Moves each cloud into a frame that it finds, then takes the largest of each feature."""

        def __init__(self) -> None:
            super().__init__()
            self.frame = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 9))
            self.points, self.head = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1)), nn.Linear(64, 10)

        def forward(self, cloud: torch.Tensor) -> torch.Tensor:
            turn = self.frame(cloud).reshape(-1, 3, 3) + torch.eye(3, device=cloud.device)
            return self.head(self.points(turn @ cloud).amax(-1))

    class Edges(nn.Module):
        """DGCNN: the nearest neighbours of each point, found anew."""

        def __init__(self) -> None:
            super().__init__()
            self.edge, self.head = nn.Conv2d(6, 16, 1), nn.Linear(16, 4)

        def forward(self, cloud: torch.Tensor) -> torch.Tensor:
            near = torch.cdist(cloud, cloud).topk(4, largest=False).indices
            around = cloud[torch.arange(len(cloud), device=cloud.device)[:, None, None], near]
            pairs = torch.cat([around - cloud[:, :, None], cloud[:, :, None].expand_as(around)], -1)
            return self.head(self.edge(pairs.permute(0, 3, 1, 2)).amax((2, 3)))

    packed = lambda: (ids(3, 10), torch.tensor([10, 4, 7]))  # noqa: E731
    yield Entry("torch_dlrm", Dlrm, clicks)
    yield Entry("torch_tagger_lstm", lambda: Tagger(nn.LSTM), packed)
    yield Entry("torch_tagger_gru", lambda: Tagger(nn.GRU), packed)
    yield Entry("torch_point_net", PointNet, "float32[B, 3, 40]")
    yield Entry("torch_edge_points", Edges, "float32[B, 20, 3]")


def others() -> Iterator[Entry]:
    """x-transformers, vit-pytorch, neuraloperator."""
    import vit_pytorch
    import x_transformers
    from neuralop.models import FNO

    yield Entry("x_transformers", lambda: x_transformers.TransformerWrapper(
        num_tokens=100, max_seq_len=16, attn_layers=x_transformers.Decoder(
            dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True, ff_glu=True, attn_flash=True)), IDS)  # fmt: skip
    yield Entry("vit_pytorch", lambda: vit_pytorch.ViT(
        image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=48), "float32[B, 3, 32, 32]")  # fmt: skip
    yield Entry("neuralop_fno", lambda: FNO(
        n_modes=(4, 4), hidden_channels=8, in_channels=1, out_channels=1, n_layers=2), "float32[B, 1, 16, 16]")  # fmt: skip
