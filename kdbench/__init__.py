"""Knowledge distillation in any domain, on one protocol: teacher, student alone, student with the teacher."""

__version__ = "0.1.0"
