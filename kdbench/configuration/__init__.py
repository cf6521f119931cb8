"""From overrides to one checked configuration, and from that to classes: the task and the plugins of a run."""
