# ruff: noqa
"""Builders of the PyTorch models whose printed summaries are beside this file; each returns (model, example inputs)."""

import torch

from torch import nn

import torch.nn.functional as F

class MnistNet(nn.Module):
    def __init__(s):
        super().__init__(); s.conv1 = nn.Conv2d(1, 10, 5); s.conv2 = nn.Conv2d(10, 20, 5); s.drop = nn.Dropout2d(); s.fc1 = nn.Linear(320, 50); s.fc2 = nn.Linear(50, 10)
    def forward(s, x):
        x = F.relu(F.max_pool2d(s.conv1(x), 2)); x = F.relu(F.max_pool2d(s.drop(s.conv2(x)), 2))
        return F.log_softmax(s.fc2(F.relu(s.fc1(x.flatten(1)))), 1)

class TwoInputConv(nn.Module):
    def __init__(s): super().__init__(); s.features = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    def forward(s, x, y): return s.features(x), s.features(y)

class LSTMNet(nn.Module):
    def __init__(s): super().__init__(); s.embedding = nn.Embedding(20, 300); s.encoder = nn.LSTM(300, 512, 2, batch_first=True); s.decoder = nn.Linear(512, 20)
    def forward(s, x):
        o, h = s.encoder(s.embedding(x)); o = s.decoder(o); return o.reshape(-1, o.shape[2]), h

class TinyVGG(nn.Module):
    def __init__(s, pad=1, hidden=10, out=3):
        super().__init__(); b = lambda i: nn.Sequential(nn.Conv2d(i, hidden, 3, padding=pad), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=pad), nn.ReLU(), nn.MaxPool2d(2))
        s.b1 = b(3); s.b2 = b(hidden); s.classifier = nn.Sequential(nn.Flatten(), nn.Linear(hidden * 16 * 16, out))
    def forward(s, x): return s.classifier(s.b2(s.b1(x)))

def torchsummary_mnist(): return MnistNet(), (torch.empty(1, 1, 28, 28),)

def torchsummary_vgg16():
    from torchvision.models import vgg16
    return vgg16(weights=None), (torch.empty(1, 3, 224, 224),)

def torchsummary_two_inputs(): return TwoInputConv(), (torch.empty(1, 1, 16, 16), torch.empty(1, 1, 28, 28))

def torchinfo_single_input(): return MnistNet(), (torch.empty(7, 1, 28, 28),)

def torchinfo_lstm(): return LSTMNet(), (torch.zeros(1, 100, dtype=torch.long),)

def torchinfo_resnet18_64():
    from torchvision.models import resnet18
    return resnet18(weights=None), (torch.empty(1, 3, 64, 64),)

def torchinfo_frozen_resnet18():
    m, x = torchinfo_resnet18_64()
    for i, p in enumerate(m.parameters()):
        if i < 30: p.requires_grad = False
    return m, x

def ztm_tinyvgg_64(): return TinyVGG(), (torch.empty(1, 3, 64, 64),)

def ztm_efficientnet_b0():
    from torchvision.models import efficientnet_b0
    return efficientnet_b0(weights=None), (torch.empty(32, 3, 224, 224),)

def ztm_efficientnet_b0_feature_extractor():
    m, x = ztm_efficientnet_b0()
    for p in m.features.parameters(): p.requires_grad = False
    m.classifier = nn.Sequential(nn.Dropout(.2), nn.Linear(1280, 3)); return m, x
