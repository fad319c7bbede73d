"""Products with few rows, as decoding makes them: how a matrix is laid out for them, and which library multiplies."""

import torch
from torch import Tensor

# In float32 on a CPU, PyTorch multiplies through oneDNN where the matmul precision is "medium" (train/device.py),
# through MKL where it is "highest". One row costs oneDNN as much as four, and products of one query with its own keys
# (`backends/matmul.py`) four times what they cost MKL; of two rows on oneDNN is ahead. All 32 matrices of 8 layers of
# width 256 (256 x 768, 256 x 256, 256 x 1376, 688 x 256), 2 threads of a Zen 5, median of 60, milliseconds:
#     rows                        1      2     16     64
#     MKL                      1.05   1.91   2.16   5.02
#     MKL in column blocks     0.62   0.80   1.64   4.42
#     oneDNN                   0.91   0.80   1.17   2.39
ONEDNN_FROM_ROWS = 2

# MKL reads the matrix of a one-row product with one thread, and that reading is what a step of decoding waits for. In
# column blocks of one batched product each thread reads its own.
NARROWEST_BLOCK = 128


ROWS = torch.contiguous_format


class Product:
    """A projection for few rows: (N, inputs) -> (N, outputs).

    The matrix is stored [inputs, outputs]: a CPU reads it in longer strides than the other way round. It is a copy,
    which carries no gradient and does not follow an update of the weights.
    """

    __slots__ = ("bias", "blocks", "matrix")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` (outputs, inputs) in the dtype of the activations, not copied where it is already stored so."""
        turned = weight.detach().mT
        self.matrix = turned if turned.is_contiguous() else torch.empty_like(turned, memory_format=ROWS).copy_(turned)
        self.bias = None if bias is None else bias.detach().to(weight.dtype)
        count = block_count(self.matrix)
        self.blocks = self.matrix.view(len(self.matrix), count, -1).transpose(0, 1) if count > 1 else None
        """(blocks, inputs, outputs / blocks): the same memory, as one row is multiplied with it."""

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The product, added to `onto` (N, outputs) where it is given, which is overwritten."""
        if onto is None and self.bias is not None:
            onto = self.bias.repeat(len(x), 1)
        elif onto is not None and self.bias is not None:
            onto.add_(self.bias)
        if self.blocks is None or len(x) > 1:
            return torch.mm(x, self.matrix) if onto is None else onto.addmm_(x, self.matrix)
        count = len(self.blocks)
        row = x.expand(count, 1, -1)
        if onto is None and torch.compiler.is_compiling():  # torch.compile writes loops of its own for `bmm` of one row
            onto = x.new_zeros(1, self.matrix.shape[1])
        if onto is None:
            return torch.bmm(row, self.blocks).view(1, -1)
        onto.view(count, 1, -1).baddbmm_(row, self.blocks)
        return onto


def block_count(matrix: Tensor) -> int:
    """Into how many blocks of columns (inputs, outputs) is divided for products of one row: at most one a thread."""
    if matrix.device.type != "cpu" or matrix.dtype != torch.float32:
        return 1
    outputs = matrix.shape[1]
    most = min(torch.get_num_threads(), outputs // NARROWEST_BLOCK)
    return next((count for count in range(most, 1, -1) if outputs % count == 0), 1)


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
