"""Networks: a prediction from (z, γ, conditioning), in the shape of z.

Any `nn.Module` with the signature `network(z, gamma, conditioning=None)`, where gamma has shape
(batch,), can be the network of a model. The ones in this table can also be named in a
configuration; each is built as `NETWORKS[name](shape, **options)`. `Dropout` makes a training that
is the same in any number of parts and processes, which torch's own does not.
"""

from torch import nn

from variational_diffusion.networks.dropout import Dropout
from variational_diffusion.networks.mlp import MLP
from variational_diffusion.networks.paper import PaperUNet
from variational_diffusion.networks.transformer import Transformer
from variational_diffusion.networks.unet import UNet
from variational_diffusion.networks.variance import VarianceHead as VarianceHead

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "paper-unet": PaperUNet,
    "transformer": Transformer,
    "mlp": MLP,
}

__all__ = ["MLP", "NETWORKS", "Dropout", "PaperUNet", "Transformer", "UNet"]
