"""Graph fusion, measured: what eager mode launches and moves, and what a compiler, or kernels written by hand, make of it.

block.py          the layer as model repositories write it
graph.py          as torch.export sees it
launches.py       as eager mode runs it: kernels, bytes, operations
passes.py         fused by hand, level by level
inductor.py       fused by torch.compile
onnx_runtime.py   fused by ONNX Runtime
engine_layer.py   as this engine runs it
compare.py        all of them in one table
"""
