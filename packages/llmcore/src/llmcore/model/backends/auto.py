"""The choice between products and fused kernels, by constants."""

from typing import Literal

import torch
from torch import Tensor

from llmcore.model.backends.contract import Backend, Prefix, Scores
from llmcore.model.backends.matmul import Matmul
from llmcore.model.backends.sdpa import SDPA
from llmcore.model.masks import Mask

# On a CPU, matrix products with a softmax between beat the fused kernel up to some number of keys: it is written
# for memory, which B·H·T·S scores do not strain while they are short. Milliseconds forward + backward of 2048
# tokens, 4 heads (2 for keys) of 64, 2 threads of a Zen 5, best of 7 in one process, fused / products:
#     T                               64          128          256          512         1024
#     bfloat16                 9.7 / 1.8   11.6 / 2.4   12.3 / 4.1  21.0 / 13.7  30.3 / 28.2
#     float32, "medium"       16.1 / 2.7   18.0 / 4.0   13.5 / 6.9  23.6 / 25.5  19.6 / 43.5
#     float32, "highest"       4.6 / 3.6    7.2 / 5.9  11.6 / 12.0  22.5 / 26.9  31.3 / 72.1
# At 1024 the memory of the scores is not worth 7 %. Committed, never tuned at run time, so that a resumed run
# computes what the first one did.
MATMUL_UP_TO_KEYS = {torch.bfloat16: 512, torch.float32: 256}

# Made once: settings are validated when they are made, which each layer of each step would wait for, and where
# torch.compile would stop.
PRODUCTS: Backend = Matmul()
FUSED: Backend = SDPA()


class Auto(Backend):
    """Whichever is faster: `MATMUL_UP_TO_KEYS` on a CPU, the fused kernels elsewhere."""

    kind: Literal["auto"] = "auto"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        limit = MATMUL_UP_TO_KEYS.get(queries.dtype, 0) if queries.device.type == "cpu" else 0
        small = keys.shape[2] <= limit or (queries.shape[2] == 1 and queries.device.type == "cpu")
        backend = PRODUCTS if small or scores.soft_cap is not None else FUSED
        return backend.attend(queries, keys, values, mask=mask, scores=scores)

    def attend_one(self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores) -> Tensor:
        backend = PRODUCTS if queries.device.type == "cpu" or scores.soft_cap is not None else FUSED
        return backend.attend_one(queries, keys, values, mask=mask, scores=scores)

    def shares(self, device: torch.device) -> bool:
        return PRODUCTS.shares(device)

    def attend_shared(self, queries: Tensor, keys: Tensor, values: Tensor, *, prefix: Prefix, scores: Scores) -> Tensor:
        return PRODUCTS.attend_shared(queries, keys, values, prefix=prefix, scores=scores)
