"""Distillation methods, one file per paper; ``conf/method/<name>.yaml`` names the class and its weights."""
