"""Fourier transforms. Keras takes and gives complex numbers in two parts, as real ones."""

from __future__ import annotations

from math import prod

from pytest_modelbudget.backends.costs.flop_rule import OperatorCall, flop_rule
from pytest_modelbudget.backends.costs.formulas import COMPLEX_FFT, REAL_FFT, fft


@flop_rule(keras="ops.FFT", tensorflow="FFT IFFT BatchFFT BatchIFFT", axes=1, counts_complex=True)
@flop_rule(keras="ops.FFT2 ops.IFFT2", tensorflow="FFT2D IFFT2D BatchFFT2D BatchIFFT2D", axes=2, counts_complex=True)
@flop_rule(tensorflow="FFT3D IFFT3D BatchFFT3D BatchIFFT3D", axes=3, counts_complex=True)
def complex_transform(call: OperatorCall, *, axes: int) -> int:
    """Over the last axes."""
    return fft(prod(call.inputs[0][-axes:]), prod(call.inputs[0][:-axes]), COMPLEX_FFT)


@flop_rule(keras="ops.RFFT ops.STFT", tensorflow="RFFT", axes=1, counts_complex=True)
@flop_rule(tensorflow="RFFT2D", litert="RFFT2D", axes=2, counts_complex=True)
@flop_rule(tensorflow="RFFT3D", axes=3, counts_complex=True)
def transform_from_real(call: OperatorCall, *, axes: int) -> int:
    """Over the last axes, which may be cut or padded to a length; one for each frame, where there are frames."""
    lengths = call.argument("fft_length")
    points = prod(lengths if isinstance(lengths, (list, tuple)) else [lengths or prod(call.inputs[0][-axes:])])
    return fft(points, prod(call.outputs[0][:-axes]), REAL_FFT)


@flop_rule(keras="ops.IRFFT", tensorflow="IRFFT", axes=1, counts_complex=True)
@flop_rule(tensorflow="IRFFT2D", axes=2, counts_complex=True)
@flop_rule(tensorflow="IRFFT3D", axes=3, counts_complex=True)
def transform_to_real(call: OperatorCall, *, axes: int) -> int:
    """Over the last axes."""
    return fft(prod(call.outputs[0][-axes:]), prod(call.outputs[0][:-axes]), REAL_FFT)


@flop_rule(keras="ops.ISTFT", counts_complex=True)
def frames_to_real(call: OperatorCall) -> int:
    """One transform for each frame."""
    return fft(call.argument("fft_length"), prod(call.inputs[0][:-1]), REAL_FFT)


@flop_rule(torch="aten._fft_c2c prims.fft_c2c", share=COMPLEX_FFT, counts_complex=True)
@flop_rule(torch="aten._fft_r2c prims.fft_r2c", share=REAL_FFT, counts_complex=True)
@flop_rule(torch="aten._fft_c2r prims.fft_c2r", share=REAL_FFT, to_real=True, counts_complex=True)
def transform_of_axes(call: OperatorCall, *, share: float, to_real: bool = False) -> int:
    """Over the axes that are named."""
    transformed = (call.outputs if to_real else call.inputs)[0]
    points = prod(transformed[axis] for axis in call.argument("dim"))
    return fft(points, prod(transformed) // max(points, 1), share)


@flop_rule(torch_export="aten.fft_rfft", axes=1, counts_complex=True)
@flop_rule(torch_export="aten.fft_rfft2", axes=2, counts_complex=True)
@flop_rule(torch_export="aten.fft_rfftn", axes=0, counts_complex=True)
@flop_rule(torch_export="aten.fft_irfft", axes=1, to_real=True, counts_complex=True)
@flop_rule(torch_export="aten.fft_irfft2", axes=2, to_real=True, counts_complex=True)
@flop_rule(torch_export="aten.fft_irfftn", axes=0, to_real=True, counts_complex=True)
def real_transform_of_axes(call: OperatorCall, *, axes: int, to_real: bool = False) -> int:
    """Over the axes that are named, else the last ones (0: all); the real side may be cut or padded to lengths."""
    real, named = (call.outputs if to_real else call.inputs)[0], call.argument("dim")
    lengths = call.argument("n") or call.argument("s")
    transformed = ([named] if isinstance(named, int) else named) or range(-(axes or len(lengths or real)), 0)
    before = prod(real[axis] for axis in transformed)
    points = prod([lengths] if isinstance(lengths, int) else lengths) if lengths and not to_real else before
    return fft(points, prod(real) // max(before, 1), REAL_FFT)


@flop_rule(jax="fft", counts_complex=True)
def transform_of_lengths(call: OperatorCall) -> int:
    """Over the last axes, as many as there are lengths."""
    lengths, kind = call.argument("fft_lengths"), call.argument("fft_type")
    name = str(getattr(kind, "name", kind))
    transformed = call.outputs[0] if "IRFFT" in name else call.inputs[0]
    share = REAL_FFT if "RFFT" in name else COMPLEX_FFT
    return fft(prod(lengths), prod(transformed[: -len(lengths)]), share)


@flop_rule(keras="layers.MelSpectrogram")
def mel_spectrogram(call: OperatorCall) -> int:
    """One real transform for each frame, and a product of its magnitudes with the filters; `(.., bins, frames)`."""
    points, bins, outputs = int(call.argument("fft_length")), int(call.argument("num_mel_bins")), prod(call.outputs[0])
    return fft(points, outputs // bins, REAL_FFT) + 2 * outputs * (points // 2 + 1)


@flop_rule(onnx="DFT", counts_complex=True)
def transform_of_axis(call: OperatorCall) -> int:
    """Over one axis, which may be cut or padded to a length; numbers are complex where the last axis has two parts."""
    data, axis, length = call.inputs[0], int(call.argument("axis")), call.argument("dft_length")
    points = data[axis] if length is None else int(length)
    share = REAL_FFT if data[-1] == 1 or call.argument("onesided") else COMPLEX_FFT
    return fft(points, prod(data[:-1]) // max(data[axis], 1), share)


@flop_rule(onnx="STFT", counts_complex=True)
def transform_of_frames(call: OperatorCall) -> int:
    """One transform for each frame, as long as its window; `(B, points, parts)` to `(B, frames, bins, 2)`."""
    length = call.argument("frame_length")
    points = int(call.inputs[2][0] if length is None else length)
    return fft(points, prod(call.outputs[0][:2]), REAL_FFT if call.inputs[0][-1] == 1 else COMPLEX_FFT)
