"""Images beside words, and detectors: transformers and torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import IDS, Entry, ids


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
    from torchvision.models import detection, feature_extraction

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
    yield Entry(
        "tv_faster_rcnn", lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**sized), frames, by_values=True
    )
    yield Entry("tv_mask_rcnn", lambda: detection.maskrcnn_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_retinanet", lambda: detection.retinanet_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_fcos", lambda: detection.fcos_resnet50_fpn(**sized), frames, by_values=True)
    yield Entry("tv_ssdlite", lambda: detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
                {"args": [["float32[3, 320, 320]"]]}, by_values=True)  # fmt: skip
    yield Entry("tv_raft", lambda: models.optical_flow.raft_small(), ["float32[B, 3, 128, 128]"] * 2)
    del image
    yield Entry("tv_features", lambda: feature_extraction.create_feature_extractor(
        models.resnet18(), {"layer2": "fine", "layer4": "coarse"}), "float32[B, 3, 64, 64]")  # fmt: skip
