"""PyTorch decoders, and what times them beside leapjax: `leapjax benchmark --against torch`.

No part of the installed package, because only developers need it.
"""
