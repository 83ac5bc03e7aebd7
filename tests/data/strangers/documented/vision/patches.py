from torch import nn


class PatchNet(nn.Module):
    def __init__(self, *, image_size, patch_size, dim, classes, channels=3):
        super().__init__()
        assert isinstance(patch_size, tuple), "height and width"
        height, width = patch_size
        assert image_size % height == 0, "whole patches"
        self.patch = height, width
        self.embed = nn.Linear(channels * height * width, dim)
        self.head = nn.Linear(dim * (image_size // height) * (image_size // width), classes)

    def forward(self, img):
        height, width = self.patch
        patches = img.unfold(2, height, height).unfold(3, width, width)
        batch, channels, rows, columns, *_ = patches.shape
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, -1)
        return self.head(self.embed(patches).flatten(1))
