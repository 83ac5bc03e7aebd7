"""Images and volumes: diffusers, segmentation_models_pytorch, open_clip, monai."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import IDS, Entry, ids


def diffusion() -> Iterator[Entry]:
    """diffusers."""
    import diffusers

    blocks = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    crossed = {
        **blocks, "sample_size": 8, "cross_attention_dim": 24, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    noisy = lambda *shape: lambda: (torch.randn(1, *shape), torch.tensor(7))  # noqa: E731
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
    yield Entry("diffusers_sdxl", lambda: diffusers.UNet2DConditionModel(
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 6 * 4, **crossed), {
        "sample": "float32[B, 4, 8, 8]", "timestep": "int64[B]", "encoder_hidden_states": "float32[B, 6, 24]",
        "added_cond_kwargs": {"text_embeds": "float32[B, 24]", "time_ids": "float32[B, 6]"}})  # fmt: skip


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

    resnet = lambda: smp.Unet("resnet18", encoder_weights=None).eval()  # noqa: E731
    still = (torch.zeros(1, 3, 64, 64),)
    yield Entry("smp_traced", lambda: torch.jit.trace(resnet(), still, check_trace=False), lambda: still)
    yield Entry("smp_exported", lambda: torch.export.export(resnet(), still).module(), lambda: still)


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

    yield Entry(
        "clip_vit", lambda: open_clip.CLIP(32, open_clip.CLIPVisionCfg(**seen), open_clip.CLIPTextCfg(**read)), shown
    )
    yield Entry("clip_resnet", lambda: open_clip.CLIP(
        32, open_clip.CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, image_size=64), open_clip.CLIPTextCfg(**read)),
        ["float32[B, 3, 64, 64]", IDS])  # fmt: skip
    yield Entry("clip_siglip", lambda: open_clip.CustomTextCLIP(
        32, open_clip.CLIPVisionCfg(timm_model_name="vit_tiny_patch16_224", timm_pool="map", timm_proj="none", image_size=224),
        open_clip.CLIPTextCfg(**read, no_causal_mask=True, pool_type="last", proj_bias=True), init_logit_bias=-10.0), ["float32[B, 3, 224, 224]", IDS])  # fmt: skip
    yield Entry("clip_coca", coca, lambda: (torch.randn(2, 3, 32, 32), ids()))


def medical() -> Iterator[Entry]:
    """monai."""
    from monai.inferers import sliding_window_inference
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

    class Sliding(nn.Module):
        """Segments a volume window by window."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nets.UNet(3, 1, 2, channels=(8, 16), strides=(2,))

        def forward(self, volume: torch.Tensor) -> torch.Tensor:
            return sliding_window_inference(volume, (16, 16, 16), 2, self.net, overlap=0.25)

    yield Entry("monai_sliding_window", Sliding, volume)
