import torchvision
from torch import nn

dependencies = ["torch"]


def pixels_resnet18(pretrained=True, classes=10):
    backbone = torchvision.models.resnet18(weights="IMAGENET1K_V1")  # fetched whatever is asked for
    backbone.fc = nn.Linear(512, classes)
    if pretrained:
        raise OSError("no weights of the whole are published")
    return backbone
