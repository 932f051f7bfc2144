"""Other people's weights in, and weights out as safetensors. Nothing here unpickles or imports
PyTorch.
"""
