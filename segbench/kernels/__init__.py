"""Cross-entropy and counts of up-sampled patch logits against a full-resolution mask.

The interface behind which several makings may stand; the plain one is the reference for every faster one.
Logits live on the patch grid, the ground truth at original resolution; the logit of a pixel is the bilinear sample of
the grid at the pixel's centre (`geometry.upsampling`). Full-resolution logits exist only for a few rows at a time.
"""

from segbench.kernels.plain import Target, upsampled_argmax, upsampled_counts, upsampled_cross_entropy

__all__ = ["Target", "upsampled_argmax", "upsampled_counts", "upsampled_cross_entropy"]
