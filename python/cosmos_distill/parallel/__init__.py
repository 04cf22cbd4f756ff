"""The only folder that imports ``megatron.core``: how networks and their training are spread over ranks.

A model file contains no process group; it asks this folder for linears, attention and a stage split that fit
the layout chosen once, by :func:`groups.initialize`.

    groups                  who is who under a layout
    linear  tokens  context inside a network: matrices over tensor-parallel ranks, tokens over context ranks
    runs  pipeline          blocks over pipeline ranks; a pipelined network is a node of autograd
    parts                   what a parameter here is of the whole, and how its gradient becomes whole
    data                    what data-parallel ranks share: share (the rules), buffers (Megatron's), fsdp
    cpu                     Megatron on a machine without CUDA
"""
