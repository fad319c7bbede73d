"""All backends by name; other packages add theirs by entry point."""

from typing import Annotated

from llmcore.extensions import part
from llmcore.model.backends.auto import Auto
from llmcore.model.backends.contract import Backend
from llmcore.model.backends.flash import Flash
from llmcore.model.backends.flex import Flex
from llmcore.model.backends.manual import Manual
from llmcore.model.backends.matmul import Matmul
from llmcore.model.backends.sdpa import SDPA
from llmcore.model.backends.xformers import XFormers

AnyBackend = Annotated[
    Backend,
    part(
        "llmcore.attention_backend",
        auto=Auto,
        sdpa=SDPA,
        matmul=Matmul,
        manual=Manual,
        flex=Flex,
        flash=Flash,
        xformers=XFormers,
    ),
]
