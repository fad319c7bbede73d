"""What computes attention, one way a file; nothing is imported here.

contract   Backend and what it is given
manual     from first principles, with its weights: to read, and to check by hand
sdpa       PyTorch's fused kernels
matmul     two products and a softmax, the fastest on a CPU while sequences are short
auto       matmul or sdpa, by constants
flex       PyTorch's FlexAttention
flash      FlashAttention 2, where a person has installed flash-attn
xformers   memory-efficient attention, where a person has installed xformers
kinds      all of them by name
"""
