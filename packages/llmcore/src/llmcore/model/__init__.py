"""The transformer and its parts; nothing is imported here.

config       ModelConfig: the architecture, complete by default, and `build`
transformer  Transformer: embedding, blocks, final norm, head
attention    the contract of attention; grouped-query heads
latent       multi-head latent attention
backends/    what computes attention
masks        which keys each query may see
positions    learned, sinusoidal, rotary, none; how rotary stretches to longer contexts
norms        RMSNorm, LayerNorm
feedforward  SwiGLU, GEGLU, GELU, ReLU²
linear       a projection whose float32 weight is cast at each use
cache        keys and values of the tokens so far
rolling      the cache of a sliding window, for sequences without end
dropout      taken out of a model that is compared with itself
size         parameters, FLOPs and cache bytes per token
"""
