import package_that_nobody_has
from torch import nn


class Extra(nn.Module):
    pass
