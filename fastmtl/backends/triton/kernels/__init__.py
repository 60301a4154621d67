"""The Triton kernels: device code alone. The host side that launches them is beside this package.

Vocabulary: ``i_`` indices of programs and blocks, ``o_`` offsets, ``m_`` masks, ``p_`` pointers, ``b_`` values of a block;
upper case for what is known at compile time. Offsets are 64-bit. All kernels are compiled without contraction of products
and sums (``enable_fp_fusion=False``): contracted, the lanes of a reduction may differ in their last bits, and which of them
is stored is not defined.
"""
