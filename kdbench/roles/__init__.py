"""Who answers for a role: the networks and other sources of a run."""
