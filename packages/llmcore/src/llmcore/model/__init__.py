"""The transformer and its parts; nothing is imported here.

config       ModelConfig: the architecture, complete by default, and `build`
transformer  Transformer: embedding, blocks, final norm, head
attention    grouped-query attention and its backends
masks        which keys each query may see
positions    learned, sinusoidal, rotary, none; how rotary stretches to longer contexts
norms        RMSNorm, LayerNorm
feedforward  SwiGLU, GEGLU, GELU, ReLU²
linear       a projection whose float32 weight is cast at each use
cache        keys and values of the tokens so far
size         parameters, FLOPs and cache bytes per token
"""
