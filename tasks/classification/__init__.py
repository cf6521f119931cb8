"""Image classification: any model of timm, the data sets that distillation papers report."""
