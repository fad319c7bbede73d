"""A batch of sequences between two tokens: one cache, and the rows that are not finished."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmcore.generate.noise import NoiseBlocks
from llmcore.generate.penalties import Usage
from llmcore.generate.sampling import Sampling, choose_tokens, chosen_logprobs, steer
from llmcore.generate.stops import StopStrings
from llmcore.model.cache import Cache
from llmcore.model.rolling import allocate_cache
from llmcore.model.sharing import SharedCache
from llmcore.model.step import Step
from llmcore.tokenizer import Tokenizer

PENDING_ELEMENTS = 1 << 19
"""Scores that wait until the log-probabilities of several tokens are taken from them at once, as numbers: two MiB."""
LEAVE_SHARE = 0.25
"""Finished rows leave when they are this share of the batch: it copies the cache, about the price of one step."""
SHARED_TOKENS = 128
"""Copies of prompt tokens that sharing must spare: it is three operations more a layer, which 2 × 64 do not repay.

CPU time of a step, repeated / shared, of prompts × samples × prompt tokens (the shape in docs/performance.md, 1 thread,
best of 5): 1×2×64 0.93, 1×4×16 0.95, 1×2×512 1.03, 2×2×64 1.07, 1×8×64 1.15, 8×8×16 1.08, 32×2×64 1.25, 4×16×256 2.5.
"""


class Decoding:
    """Prompts with `samples` continuations each, side by side; `step` adds one token to every row that is left.

    Prompts are padded on the left, so that all rows continue in the same column. All tensors that grow with the
    sequences are allocated here, once; a step costs one exchange with the device.
    """

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        stop_ids: Collection[int],
        tokenizer: Tokenizer | None,
        streaming: bool = False,
    ) -> None:
        """Each prompt is shorter than the context; `seeds` has one number for each sample of each prompt.

        Where `streaming`, only `last` tells the tokens, and an endless model goes on beyond its context.
        """
        samples = len(seeds) // len(prompts)
        model = step.model
        self.model, self.sampling, self.read_token = model, sampling, step
        self.device = model.head_weight().device
        self.vocab_size = model.head_weight().shape[0]
        lengths = [len(prompt) for prompt in prompts for _ in range(samples)]
        self.limits = [sampling.max_new_tokens] * len(lengths)
        if not (streaming and model.config.endless):
            self.limits = [min(sampling.max_new_tokens, model.config.context - length) for length in lengths]
        self.room = torch.tensor(self.limits, device=self.device)
        self.steps = max(self.limits)
        self.count = 0
        self.next_full = min(self.limits)
        recorded = 0 if streaming else self.steps
        self.tokens = torch.zeros(recorded, len(seeds), dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(recorded, len(seeds), device=self.device)
        self.rows = torch.arange(len(seeds), device=self.device)
        self.finished = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        self.is_stop = torch.zeros(self.vocab_size, dtype=torch.bool)
        self.is_stop[[i for i in stop_ids if i < self.vocab_size]] = True
        self.may_stop = bool(self.is_stop.any()) or bool(sampling.stop)
        self.is_stop = self.is_stop.to(self.device)
        assert tokenizer is not None or not sampling.stop, "stop strings need a tokenizer"
        self.stops = [StopStrings(tokenizer, sampling.stop) for _ in seeds] if tokenizer and sampling.stop else []
        self.string_ends: dict[int, int] = {}
        self.usage: Usage | None = None
        if sampling.penalises:
            self.usage = Usage.of_prompts(prompts, self.vocab_size, self.device)
            self.usage.keep(torch.arange(len(prompts)).repeat_interleave(samples).to(self.device))
        self.noise: NoiseBlocks | None = None
        if not sampling.greedy:
            self.noise = NoiseBlocks(
                torch.tensor(seeds, device=self.device),
                torch.tensor(lengths, device=self.device),
                vocab_size=self.vocab_size,
                steps=self.steps,
            )
        self.cache, self.logits = self.read_prompts(prompts, samples)
        self.last = self.rows  # (B,) the tokens chosen last; none yet
        self.pending: list[tuple[Tensor, Tensor]] = []  # logits (B, V) and tokens (B,) that are not in `tokens` yet

    @property
    def done(self) -> bool:
        return len(self.rows) == 0

    @torch.no_grad()
    def read_prompts(self, prompts: Sequence[Sequence[int]], samples: int) -> tuple[Cache | SharedCache, Tensor]:
        """The cache and the logits (B, V) of the first new token; each prompt is read once for all its samples."""
        longest = max(map(len, prompts))
        columns = longest + self.steps - 1
        spared = (samples - 1) * len(prompts) * longest
        shared = spared >= SHARED_TOKENS and self.read_token.shares(columns)
        cache = allocate_cache(
            self.model.config,
            len(prompts),
            longest if shared else columns,
            dtype=self.model.activation_dtype,
            device=self.device,
        )
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device).unsqueeze(1)
        ragged = any(len(prompt) < longest for prompt in prompts)
        attended = torch.arange(longest, device=self.device) >= padding if ragged else None
        context = self.model.config.context
        for start in range(0, longest, context):  # only an endless model has prompts of more than one piece
            piece = slice(start, start + context)
            hidden = self.model.hidden(
                ids[:, piece], attended=None if attended is None else attended[:, piece], cache=cache
            )
        logits = self.model.logits(hidden[:, -1])
        if samples == 1:
            return cache, logits
        logits = logits.repeat_interleave(samples, 0)
        if shared:
            return SharedCache(cache, samples=samples, columns=self.steps - 1), logits
        cache.repeat(samples)
        return cache, logits

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one more token for each row, note it, and let finished rows leave.

        Inference mode saves a tenth of a step's time. The prompts are read without it, because what a layer makes
        at its first use and keeps (rotary tables) would be of no use for training afterwards.
        """
        if self.count:
            self.logits = self.read_token(self.last, self.cache)
        noise = None if self.noise is None else self.noise.next()
        steered = steer(self.logits, self.sampling, usage=self.usage)
        self.last = choose_tokens(steered, noise=noise)
        self.count += 1
        if len(self.tokens):
            self.pending.append((steered, self.last))
            if (len(self.pending) + 1) * self.logits.numel() > PENDING_ELEMENTS:
                self.note()
        if self.usage is not None:
            self.usage.add(self.last)
        self.leave()

    def note(self) -> None:
        """Write down the tokens that are pending, and their log-probabilities."""
        if not self.pending:
            return
        if len(self.pending) == 1:
            logits, tokens = (one.unsqueeze(0) for one in self.pending[0])
        else:
            logits, tokens = (torch.stack(several) for several in zip(*self.pending, strict=True))
        columns = slice(self.count - len(self.pending), self.count)
        self.tokens[columns, self.rows] = tokens
        self.logprobs[columns, self.rows] = chosen_logprobs(logits, tokens)
        self.pending = []

    def completes_string(self) -> Tensor:
        """(B,) which rows' last token completed a stop string."""
        rows, tokens = self.rows.tolist(), self.last.tolist()
        found = [self.stops[row].complete(token) for row, token in zip(rows, tokens, strict=True)]
        for row, hit in zip(rows, found, strict=True):
            if hit:
                self.string_ends.setdefault(row, self.count)
        return torch.tensor(found, device=self.device)

    def leave(self) -> None:
        """Take finished rows out of the batch: when they are many, and always before one outgrows its context."""
        full = self.count >= self.next_full
        if not full and not self.may_stop:
            return
        if self.may_stop:
            self.finished |= self.is_stop[self.last]
        if self.stops:
            self.finished |= self.completes_string()
        if full:
            self.finished |= self.room <= self.count
        finished = int(self.finished.sum())
        if finished == len(self.rows):
            self.note()
            self.rows = self.rows[:0]
        elif finished and (full or finished >= LEAVE_SHARE * len(self.rows)):
            self.keep((~self.finished).nonzero().squeeze(1))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.note()
        self.rows, self.last, self.room = self.rows[rows], self.last[rows], self.room[rows]
        self.finished = self.finished[rows]
        self.next_full = int(self.room.min())
        self.cache.keep(rows)
        if self.noise is not None:
            self.noise.keep(rows)
        if self.usage is not None:
            self.usage.keep(rows)
