"""Graphs: papers that cite each other, taught by networks on the graph to networks without it."""
