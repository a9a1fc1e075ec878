"""Fine-tuning in torch: the last stages of a backbone, or all of it, with a linear head on top.

`plan` alone knows no torch; everything else is imported only where a network is trained.
"""
