"""Speed and memory: ratios of contenders that take turns in one run, each beside a null pair."""
