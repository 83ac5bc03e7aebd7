"""Sounds and time series: torchaudio and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import IDS, Entry, ids


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
            self.body = nn.Sequential(
                nn.Conv1d(bands, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5)
            )

        def forward(self, waves: torch.Tensor) -> torch.Tensor:
            return self.body(self.decibels(self.front(waves)))

    spoken = lambda bands: lambda: (torch.randn(2, 40, bands), torch.tensor([40, 28]))  # noqa: E731
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
    yield Entry(
        "audio_conv_tasnet",
        lambda: models.ConvTasNet(
            enc_num_feats=16, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=3, msk_num_stacks=2
        ),
        "float32[B, 1, 800]",
    )
    yield Entry("audio_demucs", lambda: models.hdemucs_low(["drums", "vocals"]), "float32[1, 2, 8000]")
    yield Entry("audio_mel", lambda: Keywords(transforms.MelSpectrogram(n_mels=20, n_fft=256), 20), "float32[B, 4000]")
    yield Entry("audio_mfcc", lambda: Keywords(transforms.MFCC(n_mfcc=13, melkwargs={"n_mels": 20, "n_fft": 256}), 13),
                "float32[B, 4000]")  # fmt: skip
    yield Entry("audio_inverse", lambda: nn.Sequential(
        transforms.Spectrogram(n_fft=128, power=None), transforms.InverseSpectrogram(n_fft=128)), "float32[B, 2000]")  # fmt: skip
    del torchaudio


def series() -> Iterator[Entry]:
    """transformers: speech and time series."""
    import transformers as hf

    forecast = {
        "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    }  # fmt: skip
    past = {
        "past_values": "float32[B, 10]",
        "past_time_features": "float32[B, 10, 1]",
        "past_observed_mask": "float32[B, 10]",
    }

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
    yield Entry(
        "hf_autoformer",
        lambda: hf.AutoformerModel(hf.AutoformerConfig(**forecast, label_length=4, moving_average=3)),
        known,
        by_values=True,
    )
    yield Entry("hf_time_series", lambda: hf.TimeSeriesTransformerModel(hf.TimeSeriesTransformerConfig(**forecast)), {
        **past, "future_values": "float32[B, 4]", "future_time_features": "float32[B, 4, 1]"})  # fmt: skip
