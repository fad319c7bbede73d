"""Products with few rows, as decoding makes them: how a matrix is laid out for them, and which library multiplies."""

import torch
from torch import Tensor

# In float32 on a CPU, PyTorch multiplies through oneDNN where the matmul precision is "medium" (train/device.py),
# through MKL where it is "highest". A product of one row costs oneDNN the same as one of four, and products of one
# query with its own keys (`backends/matmul.py`) four times what they cost MKL. Microseconds, 1 thread of a Zen 5,
# best of 12, MKL / oneDNN:
#     rows                      1          2          3          4          8         16
#     256 x 768         8 /  18   16 /  19   23 /  20   37 /  20   90 /  29  145 /  39
#     256 x 1376       16 /  31   31 /  28   51 /  29   58 /  30  120 /  83  251 / 103
#     688 x 256         8 /  18   14 /  19   20 /  19   27 /  18   64 /  28   93 /  37
ONEDNN_FROM_ROWS = 3


ROWS = torch.contiguous_format


class Product:
    """A projection for few rows: (N, inputs) -> (N, outputs).

    The matrix is stored [inputs, outputs]: a CPU reads it in longer strides than the other way round. It is a copy,
    which carries no gradient and does not follow an update of the weights.
    """

    __slots__ = ("bias", "matrix")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` (outputs, inputs) in the dtype of the activations, not copied where it is already stored so."""
        turned = weight.detach().mT
        self.matrix = turned if turned.is_contiguous() else torch.empty_like(turned, memory_format=ROWS).copy_(turned)
        self.bias = None if bias is None else bias.detach().to(weight.dtype)

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The product, added to `onto` (N, outputs) where it is given, which is overwritten."""
        if onto is not None:
            onto = onto if self.bias is None else onto.add_(self.bias)
            return onto.addmm_(x, self.matrix)
        return torch.mm(x, self.matrix) if self.bias is None else torch.addmm(self.bias, x, self.matrix)


class FloatProducts:
    """While inside, products of float32 matrices go to MKL instead of oneDNN.

    It sets PyTorch's matmul precision, which all threads of a process share, and puts it back: two assignments. A
    compiled step has none of these in it; it is run as a whole inside one.
    """

    __slots__ = ("before",)

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *error: object) -> None:
        torch.set_float32_matmul_precision(self.before)
